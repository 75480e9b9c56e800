"""Draw the density of each layer of a ticket."""

from collections.abc import Mapping
from typing import Any


def plot(layer_densities: Mapping[str, float], density: float, ax: Any = None) -> Any:
    """Draw horizontal bars, one per layer, and the total density.

    Args:
        layer_densities: Layer to density.
        density: Of the whole ticket.
        ax: Matplotlib axes, or None for new ones.

    Returns:
        The axes.
    """
    if ax is None:
        import matplotlib.pyplot as plt

        height = 1.2 + 0.25 * len(layer_densities)
        _, ax = plt.subplots(figsize=(6, height), layout="constrained")
    # a pair of $ would be read as mathematics
    names = [name.replace("$", r"\$") for name in layer_densities]
    ax.barh(names, list(layer_densities.values()), color="tab:blue")
    ax.axvline(density, color="black", linestyle="--", label=f"all: {density:.3g}")
    ax.invert_yaxis()
    ax.set_xlim(0, 1)
    ax.set_xlabel("density (kept / prunable weights)")
    ax.set_ylabel("layer")
    ax.legend()
    return ax
