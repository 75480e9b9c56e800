"""Figure of a split spectrum."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dynprune.manifold._results import ManifoldReport


def plot_split(report: "ManifoldReport", ax: "Axes | None") -> "Axes":
    """Draw the spectrum with enclosures, and the gap that was chosen.

    Args:
        report: The report.
        ax: Where to draw; a new one if None.

    Returns:
        The axes.
    """
    ax = report.pairs.plot(ax)
    if report.n_fast is not None:
        low, high = report.pairs.values[[report.n_fast, report.n_fast - 1]].tolist()
        word = "resolved" if report.resolved else "not resolved"
        ax.axhspan(
            low,
            high,
            color="C1",
            alpha=0.2,
            lw=0,
            label=f"gap, n_fast = {report.n_fast} ({word})",
        )
        ax.legend(loc="best", fontsize="small")
    ax.set_xlabel("eigenpair, counted from the sharp end")
    return ax
