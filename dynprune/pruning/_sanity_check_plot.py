"""Draw how much worse than the ticket each control is."""

from collections.abc import Mapping, Sequence
from typing import Any


def plot(
    points: Mapping[str, Sequence[float]],
    drops: Mapping[str, tuple[float, float, float]],
    *,
    measure: str,
    ax: Any = None,
) -> Any:
    """Draw the paired drop of each seed, and the mean with its interval.

    Args:
        points: Control to one drop a seed.
        drops: Control to mean, lower and upper end.
        measure: What was measured.
        ax: Matplotlib axes, or None for new ones.

    Returns:
        The axes.
    """
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(6, 3), layout="constrained")
    for place, name in enumerate(points):
        mean, low, high = drops[name]
        ax.plot(points[name], [place] * len(points[name]), ".", color="0.7")
        ax.errorbar(
            [mean], [place], xerr=[[mean - low], [high - mean]], fmt="o", capsize=4
        )
    ax.axvline(0.0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(points)), list(points))
    ax.invert_yaxis()
    ax.set_xlabel(f"worse than the ticket by (held-out {measure})")
    return ax
