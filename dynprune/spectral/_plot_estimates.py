"""Figures of estimates with error bars."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dynprune.spectral._diagonal_results import Diagonal
    from dynprune.spectral._trace_results import Trace


def plot_trace(trace: "Trace", ax: "Axes | None") -> "Axes":
    """Draw an estimate with its interval.

    Args:
        trace: The estimate.
        ax: Where to draw; a new one if None.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        ax = plt.subplots(figsize=(5.0, 1.6), layout="constrained")[1]
    low, high = trace.interval
    ax.errorbar(
        [trace.value],
        [trace.method],
        xerr=[[max(trace.value - low, 0.0)], [max(high - trace.value, 0.0)]],
        fmt="o",
        ms=5,
        capsize=4,
        color="C0",
        label=f"{100 * trace.level:g} % interval",
    )
    ax.set_xlabel(trace.quantity + (f" ({trace.unit})" if trace.unit else ""))
    ax.legend(loc="best", fontsize="small")
    return ax


def plot_diagonal(diagonal: "Diagonal", ax: "Axes | None") -> "Axes":
    """Draw the entries by size, with their standard errors.

    Args:
        diagonal: The estimate.
        ax: Where to draw; a new one if None.

    Returns:
        The axes.
    """
    import matplotlib.pyplot as plt

    if ax is None:
        ax = plt.subplots()[1]
    order = diagonal.values.argsort(descending=True)
    values = diagonal.values[order].double().cpu()
    errors = diagonal.standard_error[order].double().cpu()
    ranks = range(1, len(values) + 1)
    ax.fill_between(
        ranks,
        (values - errors).numpy(),
        (values + errors).numpy(),
        color="C0",
        alpha=0.3,
        lw=0,
        label="± standard error",
    )
    ax.plot(ranks, values.numpy(), color="C0", lw=1.0, label="estimate")
    ax.axhline(0.0, color="0.8", lw=0.8, zorder=0)
    ax.set_yscale("symlog", linthresh=max(float(errors.median()), 1e-12))
    ax.set_xlabel("coordinate, by estimated entry")
    ax.set_ylabel("diagonal entry (loss per parameter²)")
    ax.legend(loc="best", fontsize="small")
    return ax
