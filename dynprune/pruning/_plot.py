"""Draw how iterative pruning thins each layer."""

from collections.abc import Mapping, Sequence
from typing import Any


def plot(
    layer_densities: Sequence[Mapping[str, float]],
    densities: Sequence[float],
    ax: Any = None,
) -> Any:
    """Draw the density of each layer, and of all, against the level.

    Args:
        layer_densities: Layer to density, for each level.
        densities: Of all prunable weights, for each level.
        ax: Matplotlib axes, or None for new ones.

    Returns:
        The axes.
    """
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(6, 4), layout="constrained")
    levels = range(len(densities))
    for name in layer_densities[0]:
        ax.plot(levels, [row[name] for row in layer_densities], marker=".", label=name)
    ax.plot(levels, densities, color="black", linestyle="--", label="all")
    ax.set_yscale("log")
    ax.set_xlabel("level")
    ax.set_ylabel("density (kept / prunable weights)")
    ax.legend(fontsize="small")
    return ax
