"""Figures of a spectrum."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dynprune.spectral._results import Eigenpairs, Gaps


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
    ax.errorbar(
        range(1, len(values) + 1),
        values.tolist(),
        yerr=[below.tolist(), above.tolist()],
        fmt="o",
        ms=4,
        capsize=3,
        lw=1.0,
        color="C0",
        label="Ritz value, enclosure",
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
