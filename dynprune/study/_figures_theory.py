"""Draw what the theories say: spectrum and gap, forecasts, flow."""

import math
from typing import TYPE_CHECKING, Any

from dynprune.study._figure_style import (
    BLACK,
    BLUE,
    FORECAST_STROKES,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    Look,
    Stroke,
    grid,
    legend_below,
    log_axis,
    short,
    strokes_of,
    with_intervals,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

_SEED_COLOURS = (BLACK, BLUE, RED, GREEN, PURPLE, ORANGE, SKY, GREY)
_SEED_MARKERS = ("o", "s", "D", "^", "v", "P", "X", "h")
FLOW_STROKES = {
    "IMP": Stroke(label="IMP", colour=BLACK, marker="o", width=2.0),
    "no retraining": Stroke(
        label="control: no retraining", colour=RED, marker="D", line="--", hollow=True
    ),
    "random": Stroke(
        label="control: random pruning", colour=BLUE, marker="s", line=":", hollow=True
    ),
}
MOST_GROUPS = 24
FEW_GROUPS = 6  # more of them have bands: a page of bars is heavy


def draw_spectrum(canvas: "Canvas", frame: "pd.DataFrame", look: Look) -> None:
    """Draw the sharpest eigenvalues with enclosures, and the gaps between them.

    Args:
        canvas: Where.
        frame: ``figure_data()["spectrum"]``.
        look: Which rendering.
    """
    from matplotlib.ticker import MaxNLocator

    values, gaps = grid(canvas, 2, look, across=2, height=3.2 if look.narrow else 3.8)
    seeds = list(dict.fromkeys(frame["seed"]))
    handles: dict[str, Any] = {}
    for i, seed in enumerate(seeds):
        rows = frame[frame["seed"] == seed]
        colour = _SEED_COLOURS[i % len(_SEED_COLOURS)]
        marker = _SEED_MARKERS[i % len(_SEED_MARKERS)]
        x = (rows["index"] + 0.5 * ((i + 0.5) / len(seeds) - 0.5)).to_numpy()
        handles[_seed_label(seed, rows)] = _seed_values(values, rows, x, colour, marker)
        _seed_gaps(gaps, rows, x + 0.5, colour, marker)
    for ax in (values, gaps):
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    values.set_xlabel("index i, sharpest first")
    label = r"Ritz value $\lambda_i$ (loss / parameter$^2$)"
    if bool((frame["low"] > 0).all()):
        log_axis(values, "y", label=label)
    else:
        values.set_ylabel(label)
    _stability_edge(values, frame)
    gaps.set_xlabel("k = number of fast modes")
    gaps.set_ylabel(r"relative gap $(\lambda_k-\lambda_{k+1})\,/\,\lambda_k$")
    lows = frame.loc[frame["resolved"], "relative_gap_low"].dropna()
    gaps.set_ylim(min(-0.03, float(lows.min()) - 0.03 if len(lows) else 0.0), None)
    values.set_title("filled: fast modes, above the gap")
    gaps.set_title("filled: resolved; ringed: chosen")
    legend_below(canvas, handles, look, across=3)


def _seed_values(
    ax: "Axes", rows: "pd.DataFrame", x: Any, colour: str, marker: str
) -> Any:
    y = rows["value"].to_numpy()
    bars = [(y - rows["low"]).clip(0.0), (rows["high"] - y).clip(0.0)]
    fast = (rows["index"] <= rows["n_fast"]).to_numpy()
    line = ax.errorbar(
        x,
        y,
        yerr=bars,
        color=colour,
        marker=marker,
        markerfacecolor="white",
        markersize=4.5,
        linewidth=0.6,
        elinewidth=1.0,
    )
    ax.plot(x[fast], y[fast], color=colour, marker=marker, ls="none", ms=4.5, zorder=4)
    return line


def _seed_gaps(
    ax: "Axes", rows: "pd.DataFrame", x: Any, colour: str, marker: str
) -> None:
    gap = rows["relative_gap"].to_numpy()
    reach = (gap - rows["relative_gap_low"].to_numpy()).clip(0.0)
    reach = [r if r == r else 0.0 for r in reach]
    there = gap == gap
    resolved = rows["resolved"].to_numpy() & there
    ax.errorbar(
        x[there],
        gap[there],
        yerr=[
            [r for r, ok in zip(reach, there, strict=True) if ok],
            [0.0] * sum(there),
        ],
        color=colour,
        marker=marker,
        markerfacecolor="white",
        markersize=4.5,
        linestyle="none",
        elinewidth=1.0,
        capsize=0.0,
    )
    ax.plot(
        x[resolved],
        gap[resolved],
        color=colour,
        marker=marker,
        ls="none",
        ms=4.5,
        zorder=4,
    )
    chosen = (rows["index"] == rows["n_fast"]).to_numpy() & there
    ax.plot(
        x[chosen], gap[chosen], "o", ms=12, mfc="none", mec=colour, mew=1.3, zorder=5
    )


def _seed_label(seed: int, rows: "pd.DataFrame") -> str:
    n_fast, product = rows["n_fast"].iloc[0], rows["sharpness_product"].iloc[0]
    k = f"k = {n_fast:.0f}" if n_fast == n_fast else "no k"
    edge = f"ηλ₁ = {product:.3g}" if product == product else ""
    return ", ".join(part for part in (f"seed {seed}", k, edge) if part)


def _stability_edge(ax: "Axes", frame: "pd.DataFrame") -> None:
    eta = frame["learning_rate"].iloc[0]
    low, high = ax.get_ylim()
    if eta == eta and low < 2.0 / eta < high:
        ax.axhline(2.0 / eta, color="#555555", lw=1.0, ls=":")
        ax.annotate(
            r"$2/\eta$",
            (1.0, 2.0 / eta),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 2),
            textcoords="offset points",
            ha="right",
            va="bottom",
        )


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
        for name, stroke in strokes_of(
            list(dict.fromkeys(there["series"])), FORECAST_STROKES
        ):
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
    strokes = strokes_of(list(dict.fromkeys(frame["series"])), FORECAST_STROKES)
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
    handles = _series(ax, frame)
    ax.axhline(0.0, color="#555555", lw=1.0, zorder=1)
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


def draw_flow(canvas: "Canvas", frame: "pd.DataFrame", look: Look) -> None:
    """Draw shares of magnitude against 1/density, log-log, a panel for each group.

    Args:
        canvas: Where.
        frame: ``figure_data()["flow"]``.
        look: Which rendering.
    """
    groups = list(dict.fromkeys(frame["group"]))[:MOST_GROUPS]
    across = 3 if len(groups) < 7 else 4
    height = 2.6 if look.narrow else 3.3 if len(groups) < 4 else 2.8
    panels = grid(canvas, len(groups), look, across=across, height=height)
    handles: dict[str, Any] = {}
    for i, (ax, group) in enumerate(zip(panels, groups, strict=True)):
        there = frame[frame["group"] == group]
        for name, stroke in FLOW_STROKES.items():
            rows = there[there["series"] == name].dropna(subset=["share"])
            if len(rows):
                x = (1.0 / rows["density"]).tolist()
                draw = with_intervals if len(groups) <= FEW_GROUPS else _with_band
                handles[stroke.label] = draw(ax, x, rows, stroke, value="share")
        log_axis(ax, "y", label="share of magnitude" if i % across == 0 else "")
        bottom = look.narrow or i >= len(groups) - across
        log_axis(ax, "x", label="1 / density" if bottom else "")
        ax.set_title(_flow_title(group, there), fontsize=look.size)
    legend_below(canvas, handles, look, across=3)


def _with_band(
    ax: "Axes", x: list[float], rows: "pd.DataFrame", stroke: Stroke, *, value: str
) -> Any:
    there = rows[["low", "high"]].notna().all(axis=1).to_numpy()
    ax.fill_between(
        x, rows["low"], rows["high"], where=there, color=stroke.colour, alpha=0.15, lw=0
    )
    (line,) = ax.plot(
        x, rows[value], color=stroke.colour, ls=stroke.line, lw=stroke.width
    )
    return line


def _flow_title(group: str, rows: "pd.DataFrame") -> str:
    lines = [short(group)]
    for name, word in (("IMP", r"$\sigma$"), ("no retraining", r"$\sigma_{control}$")):
        there = rows[rows["series"] == name]
        if len(there):
            first = there.iloc[0]
            half = first["exponent_half"]
            text = f"{word} = {first['exponent']:+.3f}".replace("-", "−")
            lines.append(text + (f" ± {half:.3f}" if half == half else ""))
    return "\n".join(lines)
