"""Draw what pruning did: accuracy against density and cost, layer densities."""

import itertools
import math
from typing import TYPE_CHECKING, Any

from dynprune.study.figures._frames_pruning import methods_of
from dynprune.study.figures._strokes import METHOD_STROKES, Stroke, strokes_of
from dynprune.study.figures._style import (
    Look,
    density_axis,
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

ZOOM_POINTS = 6.0
FEW_LAYERS = 8


def draw_accuracy(canvas: "Canvas", frame: "pd.DataFrame", look: Look) -> None:
    """Draw accuracy against density: all of it, and the upper end enlarged.

    Args:
        canvas: Where.
        frame: ``figure_data()["accuracy-density"]``.
        look: Which rendering.
    """
    panels = grid(canvas, 2, look, across=2, height=3.6 if look.narrow else 4.0)
    handles: dict[str, Any] = {}
    for ax in panels:
        handles |= _accuracy_lines(ax, frame)
        density_axis(ax, frame["density"])
        ax.set_ylabel("test accuracy (%)")
    top = float(frame[["accuracy", "high"]].max().max())
    bottom = float(frame[["accuracy", "low"]].min().min())
    best = float(frame.loc[frame["method"].isin(["dense", "imp"]), "accuracy"].max())
    best = top if math.isnan(best) else best
    room = 0.04 * (top - bottom) + 0.1
    panels[0].set_ylim(max(0.0, bottom - room), min(100.5, top + room))
    panels[0].set_title("all densities")
    panels[1].set_ylim(best - ZOOM_POINTS, min(100.2, top + 0.3))
    panels[1].set_title(f"the upper {ZOOM_POINTS:g} points, enlarged")
    legend_below(canvas, handles, look)


def draw_cost(canvas: "Canvas", frame: "pd.DataFrame", look: Look) -> None:
    """Draw accuracy against total cost, a panel for each density.

    Args:
        canvas: Where.
        frame: ``figure_data()["accuracy-cost"]``.
        look: Which rendering.
    """
    densities = sorted(frame["density"].unique(), reverse=True)
    height = 2.7 if look.narrow else 3.4
    panels = grid(canvas, len(densities), look, across=3, height=height)
    handles: dict[str, Any] = {}
    for ax, density in zip(panels, densities, strict=True):
        there = frame[frame["density"] == density]
        for method, stroke in _strokes(there):
            row = there[there["method"] == method]
            handles[stroke.label] = _cross(ax, row, stroke)
        ax.margins(0.1)
        bottom, top = ax.get_ylim()
        ax.set_ylim(max(-1.0, bottom), min(101.0, top))
        log_axis(ax, "x", label="cost (gradient equivalents)")
        ax.set_title(f"density {100 * density:.3g} %")
        ax.set_ylabel("test accuracy (%)" if look.narrow or ax is panels[0] else "")
    legend_below(canvas, handles, look)


def draw_layers(canvas: "Canvas", frame: "pd.DataFrame", look: Look) -> None:
    """Draw the density of each layer, a panel for each density of the network.

    Args:
        canvas: Where.
        frame: ``figure_data()["layer-densities"]``.
        look: Which rendering.
    """
    densities = sorted(frame["density"].unique(), reverse=True)
    layers = list(dict.fromkeys(frame["layer"]))
    height = 2.9 if look.narrow else 3.8
    panels = grid(canvas, len(densities), look, across=3, height=height)
    strokes = _strokes(frame)
    handles: dict[str, Any] = {}
    for ax, density in zip(panels, densities, strict=True):
        there = frame[frame["density"] == density]
        for i, (method, stroke) in enumerate(strokes):
            rows = there[there["method"] == method]
            if not len(rows):
                continue
            shift = 0.5 * (i / max(1, len(strokes) - 1) - 0.5)
            x = [layers.index(layer) + shift for layer in rows["layer"]]
            thin = Stroke(
                label=stroke.label,
                colour=stroke.colour,
                marker=stroke.marker,
                width=0.9,
            )
            percent = rows.assign(**{
                c: 100 * rows[c] for c in ("layer_density", "low", "high")
            })
            handles[stroke.label] = with_intervals(
                ax,
                x,
                percent,
                thin,
                value="layer_density",
                caps=2.0 if len(layers) <= FEW_LAYERS else 0.0,
            )
        whole = ax.axhline(100 * density, color="#555555", lw=1.0, ls="--")
        handles["the whole network"] = whole
        _layer_axes(ax, there, layers, look)
        ax.set_title(f"density {100 * density:.3g} %")
        ax.set_ylabel(
            "weights kept in the layer (%)" if look.narrow or ax is panels[0] else ""
        )
    legend_below(canvas, handles, look)


def _layer_axes(
    ax: "Axes", there: "pd.DataFrame", layers: list[str], look: Look
) -> None:
    kept = 100 * there["layer_density"]
    if len(kept) and bool((kept > 0).all()):
        ax.set_ylim(float(kept.min()) / 1.6, min(float(kept.max()) * 1.6, 115.0))
        log_axis(ax, "y", label="")
    else:  # a layer without survivors has no place on a logarithmic axis
        ax.set_ylim(-2, 105)
    names = [short(layer) for layer in layers]
    if sum(len(name) for name in names) > (38 if look.narrow else 24):
        names = [str(number) for number in range(1, len(layers) + 1)]
    step = math.ceil(len(layers) / 12)
    ax.set_xticks(range(0, len(layers), step), names[::step])
    ax.set_xlim(-0.5, len(layers) - 0.5)
    ax.set_xlabel("layer, input first")


def _accuracy_lines(ax: "Axes", frame: "pd.DataFrame") -> dict[str, Any]:
    handles: dict[str, Any] = {}
    strokes = _strokes(frame)
    spread = _spread(frame)
    for i, (method, stroke) in enumerate(strokes):
        rows = frame[frame["method"] == method]
        if method == "dense":
            handles[stroke.label] = _dense_line(ax, rows, stroke)
            continue
        if method == "imp":
            ax.fill_between(
                rows["density"],
                rows["low"],
                rows["high"],
                color="#000000",
                alpha=0.13,
                linewidth=0,
            )
        shift = 0.0 if method == "imp" else spread * (i / len(strokes) - 0.5)
        x = (rows["density"] * math.exp(shift)).tolist()
        handles[stroke.label] = with_intervals(ax, x, rows, stroke, value="accuracy")
    return handles


def _dense_line(ax: "Axes", rows: "pd.DataFrame", stroke: Stroke) -> Any:
    row = rows.iloc[0]
    if row["low"] == row["low"]:
        ax.axhspan(row["low"], row["high"], color=stroke.colour, alpha=0.15, lw=0)
    return ax.axhline(row["accuracy"], color=stroke.colour, lw=stroke.width)


def _spread(frame: "pd.DataFrame") -> float:
    """Return how far, in ln density, error bars may be moved apart."""
    there = sorted(frame["density"].unique())
    steps = [math.log(b / a) for a, b in itertools.pairwise(there)]
    return min(0.22, 0.45 * min(steps, default=0.2))


def _cross(ax: "Axes", row: "pd.DataFrame", stroke: Stroke) -> Any:
    first = row.iloc[0]

    def reach(value: str, low: str, high: str) -> list[list[float]]:
        sides = (first[value] - first[low], first[high] - first[value])
        return [[max(0.0, side) if side == side else 0.0] for side in sides]

    look = stroke.keywords | {"linestyle": "none", "markersize": 7.0}
    if not stroke.marker:
        look |= {"marker": "_", "markersize": 12.0, "markeredgewidth": 2.0}
    drawn = ax.errorbar(
        [first["cost"]],
        [first["accuracy"]],
        xerr=reach("cost", "cost_low", "cost_high"),
        yerr=reach("accuracy", "low", "high"),
        elinewidth=1.0,
        **look,
    )
    return drawn.lines[0]


def _strokes(frame: "pd.DataFrame") -> list[tuple[str, Stroke]]:
    return strokes_of(methods_of(frame["method"]), METHOD_STROKES)
