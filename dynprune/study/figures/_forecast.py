"""Draw forecasts of weights against the truth."""

import math
from typing import TYPE_CHECKING, Any

from dynprune.study.figures._strokes import (
    BLACK,
    FORECAST_STROKES,
    SKY,
    Stroke,
    strokes_of,
)
from dynprune.study.figures._style import (
    Look,
    grid,
    legend_below,
    log_axis,
    short,
    with_intervals,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas


def draw_example(canvas: "Canvas", frame: "pd.DataFrame", look: Look) -> None:
    """Draw a few weights: the window, what they did, and each forecast.

    Args:
        canvas: Where.
        frame: ``figure_data()["forecast-example"]``.
        look: Which rendering.
    """
    weights = list(dict.fromkeys(frame["weight"]))
    across = 3 if len(weights) % 3 == 0 else 2
    height = 2.3 if look.narrow else 3.2
    panels = grid(canvas, len(weights), look, across=across, height=height)
    handles: dict[str, Any] = {}
    start, stop = frame[["window_start", "window_stop"]].iloc[0]
    for ax, weight in zip(panels, weights, strict=True):
        there = frame[frame["weight"] == weight]
        window = ax.axvspan(start, stop, color="#f0e4b8", lw=0, zorder=0)
        handles["window of the fit"] = window
        for name, stroke in _strokes(there):
            rows = there[there["series"] == name]
            rows = rows.iloc[:: max(1, len(rows) // 150)]
            keywords = stroke.keywords | {"markersize": 4.5}
            if len(rows) > 12:
                keywords["marker"] = ""
            zorder = 4 if name == "truth" else 3
            (handles[stroke.label],) = ax.plot(
                rows["step"], rows["value"], zorder=zorder, **keywords
            )
        _limit_to_truth(ax, there)
        ax.set_title(short(weight))
        ax.set_ylabel("value of the weight" if look.narrow or ax is panels[0] else "")
        if look.narrow or ax in panels[-across:]:
            ax.set_xlabel("optimiser step")
    legend_below(canvas, handles, look)


def _limit_to_truth(ax: "Axes", rows: "pd.DataFrame") -> None:
    """Keep a diverging forecast from flattening everything else."""
    truth = rows.loc[rows["series"] == "truth", "value"]
    low, high = float(truth.min()), float(truth.max())
    reach = max(high - low, 1e-9)
    bottom, top = ax.get_ylim()
    ax.set_ylim(max(bottom, low - 1.2 * reach), min(top, high + 1.2 * reach))


def draw_forecast(canvas: "Canvas", frame: "pd.DataFrame", look: Look) -> None:
    """Draw the errors of the forecasts against the horizon, and the bound.

    Args:
        canvas: Where.
        frame: ``figure_data()["forecast-error"]``.
        look: Which rendering.
    """
    parts = [
        (quantity, draw)
        for quantity, draw in (
            ("error2growth", _draw_growth),
            ("accuracy", _draw_points),
            ("bound", _draw_bound),
        )
        if (frame["quantity"] == quantity).any()
    ]
    height = 2.9 if look.narrow else 3.5
    panels = grid(canvas, len(parts), look, across=3, height=height)
    handles: dict[str, Any] = {}
    for ax, (quantity, draw) in zip(panels, parts, strict=True):
        handles |= draw(ax, frame[frame["quantity"] == quantity])
        horizons = sorted(frame["horizon"].unique())
        ax.set_xscale("log")
        ax.xaxis.minorticks_off()
        ax.set_xticks(horizons, [f"{h:g}" for h in horizons])
        ax.set_xlabel("horizon (optimiser steps)")
    legend_below(canvas, handles, look)


def _series(ax: "Axes", frame: "pd.DataFrame") -> dict[str, Any]:
    handles = {}
    strokes = _strokes(frame)
    for i, (name, stroke) in enumerate(strokes):
        rows = frame[frame["series"] == name].sort_values("horizon")
        shift = math.exp(0.16 * (i / len(strokes) - 0.5))
        x = (rows["horizon"] * shift).tolist()
        handles[stroke.label] = with_intervals(ax, x, rows, stroke, value="value")
    return handles


def _draw_growth(ax: "Axes", frame: "pd.DataFrame") -> dict[str, Any]:
    handles = _series(ax, frame)
    ax.axhline(1.0, color="#555555", lw=1.0, zorder=1)
    low = max(float(frame["value"].min()) / 3, 1e-6)
    high = min(float(frame["value"].max()) * 3, 1e6)
    bottom, top = ax.get_ylim()
    ax.set_ylim(max(bottom, low), min(top, high))
    log_axis(ax, "y", label="error2growth (1 = staying put)")
    ax.set_title("error of the weights")
    return handles


def _draw_points(ax: "Axes", frame: "pd.DataFrame") -> dict[str, Any]:
    from matplotlib.ticker import NullLocator

    handles = _series(ax, frame)
    ax.axhline(0.0, color="#555555", lw=1.0, zorder=1)
    low, high = ax.get_ylim()
    if low < -5.0:  # a forecast that broke the network would hide all others
        ax.set_yscale("symlog", linthresh=1.0)
        ticks = [t for t in (-100, -30, -10, -3, -1, 0, 1, 3, 10) if low <= t <= high]
        ax.yaxis.set_minor_locator(NullLocator())
        ax.set_yticks(ticks, [f"{tick:g}".replace("-", "−") for tick in ticks])
        ax.set_ylim(max(low, -150.0), max(high, 1.5))
    ax.set_ylabel("test accuracy − trained (points)")
    ax.set_title("accuracy of the forecast")
    return handles


def _draw_bound(ax: "Axes", frame: "pd.DataFrame") -> dict[str, Any]:
    handles = {}
    for name, stroke in (
        ("measured", Stroke(label="measured error", colour=BLACK, marker="o")),
        (
            "bound",
            Stroke(
                label="residual bound", colour=SKY, marker="v", line="-.", width=1.8
            ),
        ),
    ):
        rows = frame[frame["series"] == name].sort_values("horizon")
        if len(rows):
            x = rows["horizon"].tolist()
            handles[stroke.label] = with_intervals(ax, x, rows, stroke, value="value")
    log_axis(ax, "y", label="error (parameter 2-norm)")
    ax.set_title("DMD (network): error and bound")
    return handles


def _strokes(frame: "pd.DataFrame") -> list[tuple[str, Stroke]]:
    there = list(dict.fromkeys(frame["series"]))
    known = [name for name in FORECAST_STROKES if name in there]
    return strokes_of(
        known + [name for name in there if name not in known], FORECAST_STROKES
    )
