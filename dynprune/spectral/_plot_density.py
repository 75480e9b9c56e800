"""The figure of a spectral density."""

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dynprune.spectral._density_results import Density


def plot_density(density: "Density", ax: "Axes | None") -> "Axes":
    """Draw a density with its band, logarithmically, and the locked eigenvalues.

    Args:
        density: The density.
        ax: Where to draw; a new one if None.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        ax = plt.subplots()[1]
    t = density.grid.cpu().numpy()
    one = 1.0 / (density.size * density.width * math.sqrt(2.0 * math.pi))
    floor = 0.01 * one  # less than a hundredth of an eigenvalue is nothing to look at
    ax.fill_between(
        t,
        density.lower.clamp_min(floor).cpu().numpy(),
        density.upper.clamp_min(floor).cpu().numpy(),
        color="C0",
        alpha=0.3,
        lw=0,
        label=f"{100 * density.level:g} % band",
    )
    values = density.values.where(density.values >= floor, torch.nan)
    ax.plot(
        t,
        values.cpu().numpy(),
        color="C0",
        lw=1.0,
        label=f"density, width {density.width:.2g}",
    )
    ax.axhline(one, color="0.6", lw=0.8, ls=":", zorder=0, label="one eigenvalue")
    ax.plot(
        density.locked.cpu().numpy(),
        [floor] * len(density.locked),
        "|",
        color="C3",
        ms=8,
        label=f"{len(density.locked)} locked",
    )
    ax.set_yscale("log")
    ax.set_ylim(bottom=0.7 * floor)
    ax.set_xlabel("eigenvalue (loss per parameter²)")
    ax.set_ylabel("density (1 / (loss per parameter²))")
    ax.legend(loc="best", fontsize="small")
    return ax
