"""Figures of a Koopman fit."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dynprune.koopman._results import KoopmanModel

_DISCS = 200  # more than this many residual discs hide each other


def plot_eigenvalues(model: "KoopmanModel", ax: "Axes | None") -> "Axes":
    """Draw eigenvalues, residual discs and the unit circle.

    Args:
        model: The fit.
        ax: Where to draw; a new one if None.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt
    from matplotlib.patches import Circle

    if ax is None:
        ax = plt.subplots()[1]
    angle = torch.linspace(0.0, 2.0 * torch.pi, 361)
    ax.plot(angle.cos(), angle.sin(), color="0.6", lw=1.0, label="unit circle")
    mu, radius = model.eigenvalues, model.residual_norms
    if len(mu) <= _DISCS:
        for centre, size in zip(mu.tolist(), radius.tolist(), strict=True):
            disc = Circle(
                (centre.real, centre.imag), size, color="C0", alpha=0.12, lw=0
            )
            ax.add_patch(disc)
    ax.plot(
        mu.real.numpy(),
        mu.imag.numpy(),
        "o",
        ms=4,
        color="C0",
        label="eigenvalues, discs of their residual norm",
    )
    ax.set_aspect("equal", adjustable="datalim")
    ax.set_xlabel(f"Re μ (per {model.dt:g} steps)")
    ax.set_ylabel(f"Im μ (per {model.dt:g} steps)")
    ax.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=2,
        frameon=False,
        fontsize="small",
    )
    return ax
