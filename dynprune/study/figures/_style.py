"""How the report's figures look: sizes, panels, axes, legends."""

import io
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, final

from dynprune.study.figures._strokes import Stroke

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure as Canvas

Draw: TypeAlias = "Callable[[Canvas, pd.DataFrame, Look], None]"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """Say in which of its two renderings a figure is drawn.

    Args:
        narrow: For a phone: panels below each other, two legend columns.
        width: Of the figure, in inches.
        size: Of the text, in points.
    """

    narrow: bool
    width: float
    size: float


# shown at about 1.4 and 1.3 CSS pixels a point: text of 14 and 11.5 pixels
WIDE = Look(narrow=False, width=9.6, size=10.0)
NARROW = Look(narrow=True, width=3.8, size=9.0)


_DIGITS = re.compile(r"(\.\d{3})\d+")  # a thousandth of a point is invisible


def short(name: str, *, most: int = 28) -> str:
    """Write the name of a parameter so that it fits above a panel.

    Args:
        name: Its name.
        most: Characters that fit.

    Returns:
        The end of the name, dollars escaped lest matplotlib reads mathematics.

    Example:
        >>> short("stage0.block1.conv2.weight")
        'stage0.block1.conv2'
    """
    text = name.removesuffix(".weight") or name
    text = text if len(text) <= most else "…" + text[1 - most :]
    return text.replace("$", r"\$")


def render(draw: "Draw", frame: "pd.DataFrame", look: Look) -> str:
    """Draw one figure to SVG; the same numbers give the same bytes.

    No state of matplotlib outside this call changes, whatever the user has set.

    Args:
        draw: Draws a frame.
        frame: What is drawn.
        look: Which rendering.

    Returns:
        The ``<svg>`` element.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context(_settings(look)):
        canvas = Canvas(figsize=(look.width, look.width / 2), layout="constrained")
        draw(canvas, frame, look)
        backend: Any = FigureCanvasSVG(canvas)  # its methods have no types
        text = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        backend.print_svg(text, metadata=nothing)
    svg = text.getvalue()
    return _DIGITS.sub(r"\1", svg[svg.index("<svg") :]).replace("\n", " ")


def grid(
    canvas: "Canvas", panels: int, look: Look, *, across: int, height: float
) -> "list[Axes]":
    """Lay out panels: side by side, or below each other on a phone.

    Args:
        canvas: The figure; its height is set.
        panels: How many.
        look: Which rendering.
        across: How many beside each other where there is room.
        height: Of one row of panels, in inches.

    Returns:
        The panels, row by row.
    """
    columns = 1 if look.narrow else min(across, panels)
    rows = math.ceil(panels / columns)
    canvas.set_size_inches(look.width, rows * height)
    axes = canvas.subplots(rows, columns, squeeze=False)
    flat = list(axes.reshape(-1))
    for unused in flat[panels:]:
        unused.remove()
    return flat[:panels]


def legend_below(
    canvas: "Canvas", handles: "dict[str, Any]", look: Look, *, across: int = 4
) -> None:
    """Put one legend under all panels, where it covers no data.

    Args:
        canvas: The figure; it grows by the legend's height.
        handles: Label to artist.
        look: Which rendering.
        across: Columns where there is room.
    """
    longest = max((len(label) for label in handles), default=0)
    columns = (1 if longest > 21 else 2) if look.narrow else across
    rows = math.ceil(len(handles) / columns)
    width, height = canvas.get_size_inches()
    canvas.set_size_inches(width, height + 0.2 + rows * look.size * 1.75 / 72)
    canvas.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=columns,
        columnspacing=1.2,
        handlelength=2.6,
    )


def with_intervals(
    ax: "Axes",
    x: Sequence[float],
    frame: "pd.DataFrame",
    stroke: Stroke,
    *,
    value: str,
    caps: float = 2.0,
) -> Any:
    """Draw a series with its 95 % intervals as error bars.

    Args:
        ax: Where.
        x: Positions.
        frame: The series' rows, with the columns ``value``, low and high.
        stroke: How it looks.
        value: Name of the column of values.
        caps: Length of the caps in points; 0 where there are many bars.

    Returns:
        The artist, for a legend.
    """
    y = frame[value].to_numpy()
    below = (y - frame["low"].to_numpy()).clip(0.0)
    above = (frame["high"].to_numpy() - y).clip(0.0)
    bars = [[v if v == v else 0.0 for v in side] for side in (below, above)]
    return ax.errorbar(
        x,
        y,
        yerr=bars,
        capsize=caps,
        elinewidth=1.0,
        **stroke.keywords,
        zorder=3 if stroke.width >= 2.0 else 2,
    )


def density_axis(ax: "Axes", densities: Iterable[float]) -> None:
    """Make x a logarithmic axis of densities in percent, dense on the left.

    Args:
        ax: The panel.
        densities: Those that are drawn.
    """
    there = sorted(densities)
    steps = (base * 10.0**power for power in range(-8, 1) for base in (1, 2, 5))
    low, high = there[0] * 0.88, there[-1] * 1.14
    ticks = [tick for tick in steps if low <= tick <= high]
    ax.set_xscale("log")
    _fix(ax.xaxis, ticks, [f"{100 * tick:g}" for tick in ticks])
    ax.set_xlim(high, low)
    ax.set_xlabel("density: weights kept (%)")


def log_axis(ax: "Axes", which: str, *, label: str) -> None:
    """Make an axis logarithmic with few, readable ticks; call it after drawing.

    Args:
        ax: The panel.
        which: "x" or "y".
        label: Quantity and unit.
    """
    getattr(ax, f"set_{which}scale")("log")
    low, high = getattr(ax, f"get_{which}lim")()
    decades = math.log10(high / low)
    axis = ax.xaxis if which == "x" else ax.yaxis
    if decades < 0.7:
        wanted = _linear_ticks(low, high)
    else:
        few = (1, 2, 3, 5, 7) if decades < 1.0 else (1, 2, 5)
        bases = few if decades < 2.2 else (1, 3) if decades < 3.2 else (1,)
        step = max(1, math.ceil(decades / 7))
        first = math.floor(math.log10(low))
        last = math.ceil(math.log10(high))
        wanted = [b * 10.0**p for p in range(first, last + 1, step) for b in bases]
    ticks = [tick for tick in wanted if low <= tick <= high]
    _fix(axis, ticks, [_power(tick) for tick in ticks])
    getattr(ax, f"set_{which}lim")(low, high)
    getattr(ax, f"set_{which}label")(label)


def _linear_ticks(low: float, high: float) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    return [float(tick) for tick in MaxNLocator(4).tick_values(low, high)]


def _fix(axis: "Axis", ticks: list[float], labels: list[str]) -> None:
    from matplotlib.ticker import NullLocator

    axis.set_minor_locator(NullLocator())
    axis.set_ticks(ticks, labels)


def _power(value: float) -> str:
    if 1e-3 <= value < 1e5:
        return f"{value:g}"
    power = math.floor(math.log10(value) + 1e-9)
    base = round(value / 10.0**power, 6)
    return f"$10^{{{power}}}$" if base == 1 else f"${base:g}\\cdot10^{{{power}}}$"


def _settings(look: Look) -> Any:  # its keys are literals in matplotlib >= 3.11
    import matplotlib as mpl

    kept = ("backend", "toolbar", "interactive", "timezone", "datapath", "savefig.dir")
    skipped = (*kept, "tk.", "webagg.", "date.", "docstring", "figure.hooks", "_inter")
    defaults: dict[Any, Any] = {
        name: value
        for name, value in mpl.rcParamsDefault.items()
        if not name.startswith(skipped)
    }
    return defaults | {
        "font.size": look.size,
        "axes.titlesize": look.size,
        "axes.labelsize": look.size,
        "xtick.labelsize": look.size,
        "ytick.labelsize": look.size,
        "legend.fontsize": look.size,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "axes.titlelocation": "left",
        "grid.color": "#e6e6e6",
        "grid.linewidth": 0.7,
        "axes.edgecolor": "#555555",
        "errorbar.capsize": 2.0,
        "svg.hashsalt": "dynprune",
        "svg.fonttype": "path",
    }
