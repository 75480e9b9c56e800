"""Figures of a spectrum."""

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dynprune.spectral._results import Eigenpairs, Gaps
    from dynprune.spectral._track_results import SpectrumTrack


def plot_values(pairs: "Eigenpairs", ax: "Axes | None") -> "Axes":
    """Draw Ritz values with their enclosures against their rank.

    Args:
        pairs: The pairs.
        ax: Where to draw; a new one if None.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    if ax is None:
        ax = plt.subplots()[1]
    values, ends = pairs.values.cpu(), pairs.enclosures.cpu()
    below = (values - ends[:, 0]).clamp_min(0.0)
    above = (ends[:, 1] - values).clamp_min(0.0)
    ranks = torch.arange(1, len(values) + 1)
    for flag, face, label in (
        (True, "C0", "Ritz value, enclosure"),
        (False, "none", "not converged"),
    ):
        chosen = pairs.converged.cpu() == flag
        if not bool(chosen.any()):
            continue
        ax.errorbar(
            ranks[chosen].tolist(),
            values[chosen].tolist(),
            yerr=[below[chosen].tolist(), above[chosen].tolist()],
            fmt="o",
            ms=4,
            capsize=3,
            lw=1.0,
            color="C0",
            mfc=face,
            label=label,
        )
    ax.axhline(0.0, color="0.8", lw=0.8, zorder=0)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(f"pair ({pairs.which}), values descending")
    ax.set_ylabel("eigenvalue (loss per parameter²)")
    ax.legend(loc="best", fontsize="small")
    return ax


def plot_gaps(gaps: "Gaps", ax: "Axes | None") -> "Axes":
    """Draw gaps against the index n_fast, resolved ones filled.

    Args:
        gaps: The gaps.
        ax: Where to draw; a new one if None.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    if ax is None:
        ax = plt.subplots()[1]
    for flag, face, label in ((True, "C0", "resolved"), (False, "none", "unresolved")):
        chosen = (gaps.resolved == flag).cpu()
        ax.bar(
            gaps.n_fast.cpu()[chosen].tolist(),
            gaps.spectral_gap.cpu()[chosen].tolist(),
            color=face,
            edgecolor="C0",
            label=label,
        )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("n_fast = k")
    ax.set_ylabel("spectral gap λ_k − λ_{k+1} (loss per parameter²)")
    ax.legend(loc="best", fontsize="small")
    return ax


def plot_track(track: "SpectrumTrack", ax: "Axes | None") -> "Axes":
    """Draw values with enclosures against the optimiser step, a line per rank.

    Args:
        track: The track.
        ax: Where to draw; a new one if None.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        ax = plt.subplots()[1]
    steps = track.steps.cpu().tolist()
    values, ends = track.values.cpu(), track.enclosures.cpu()
    colours = plt.get_cmap("viridis")
    for i in range(track.k):
        colour = colours(0.9 * i / max(track.k - 1, 1))
        name = f"pair {i + 1}" if i in {0, track.k - 1} else None
        ax.plot(steps, values[:, i].tolist(), ".-", lw=1.0, color=colour, label=name)
        low, high = ends[:, i, 0].tolist(), ends[:, i, 1].tolist()
        ax.fill_between(steps, low, high, color=colour, alpha=0.3, lw=0)
    missed = torch.nonzero(~track.converged.cpu()).tolist()
    if missed:
        ax.plot(
            [steps[t] for t, _ in missed],
            [float(values[t, i]) for t, i in missed],
            "rx",
            ms=5,
            label="not converged",
        )
    ax.axhline(0.0, color="0.8", lw=0.8, zorder=0)
    ax.set_xlabel("optimiser step")
    ax.set_ylabel("eigenvalue (loss per parameter²)")
    ax.legend(loc="best", fontsize="small")
    return ax
