"""The figures of the comparison, as SVG with text as text."""

import io
import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from _pruner_methods import DENSE, GROUPS, METHODS
from _pruner_units import replace_text
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from dynprune.core import mean_interval
from dynprune.tickets import _plot_comparison

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dynprune",
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#AA4499",
    "#E69F00",
    "#56B4E9",
    "#8C5A2B",
    "#767676",
    "#000000",
)
_MARKERS = "osD^vPX<>"
_GROUP_COLOURS = dict(
    zip(GROUPS, ("#0072B2", "#009E73", "#000000", "#AA4499", "#D55E00"), strict=True)
)
_DIGITS = re.compile(r"(\.\d)\d+(?=[ \"])")  # a tenth of a point is invisible
_NAMES = re.compile(r' id="(?:line2d|text|patch|matplotlib|axes|xtick|ytick)\w*"')


def accuracy_density(frame: pd.DataFrame, titles: dict[str, str], path: Path) -> None:
    """Draw test error against density: a row of panels per task, a column per group.

    Args:
        frame: Rows of the short recipe with accuracies.
        titles: Of the tasks.
        path: The SVG.
    """
    pruned = frame[frame.density < 1.0].task.unique()
    tasks = [task for task in titles if task in pruned]
    if not tasks:
        return

    def draw() -> Figure:
        canvas = Figure(figsize=(11.0, 2.2 + 2.8 * len(tasks)), layout="constrained")
        panels = canvas.subplots(len(tasks), len(GROUPS), squeeze=False, sharey="row")
        for row, task in zip(panels, tasks, strict=True):
            own = frame[frame.task == task]
            for ax, group in zip(row, GROUPS, strict=True):
                _panel(ax, own, group)
            title = textwrap.fill(titles[task], 38)
            row[0].set_ylabel(f"{title}\ntest error (%)", fontsize=8.0)
        for ax, group in zip(panels[0], GROUPS, strict=True):
            ax.set_title(group, loc="left", fontsize=9.0)
        for ax in panels[-1]:
            ax.set_xlabel("weights kept (%)")
            handles, labels = _merged(panels, list(panels[-1]).index(ax))
            ax.legend(
                handles,
                labels,
                loc="upper left",
                bbox_to_anchor=(-0.08, -0.24),
                fontsize=7.5,
                frameon=False,
                handlelength=1.8,
            )
        return canvas

    _save(draw, path)


def _merged(panels: Any, column: int) -> tuple[list[Any], list[str]]:
    found: dict[str, Any] = {}
    for row in panels:
        handles, labels = row[column].get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    return list(found.values()), list(found)


def _panel(ax: Any, own: pd.DataFrame, group: str) -> None:
    dense = own[own.method == DENSE].test_accuracy
    if len(dense):
        error = 100.0 * (1.0 - dense.mean())
        ax.axhline(error, color="#767676", lw=1.2, label=DENSE)
    if group != METHODS["imp"].group:
        _series(ax, own, "imp", colour="#000000", width=1.0, line="--")
    names = [name for name, method in METHODS.items() if method.group == group]
    for place, name in enumerate(names):
        black = name == "imp"
        _series(
            ax,
            own,
            name,
            colour="#000000" if black else _COLOURS[place % len(_COLOURS)],
            width=2.0 if black else 1.2,
            marker=_MARKERS[place % len(_MARKERS)],
            beside=place - (len(names) - 1) / 2,
        )
    ax.set_xscale("log")
    ax.set_yscale("log")
    ticks = sorted({density for density in own.density if density < 1.0})
    ax.set_xticks(ticks, [f"{100.0 * tick:g}" for tick in ticks], fontsize=8.0)
    ax.minorticks_off()
    ax.set_xlim(ticks[-1] * 1.25, ticks[0] / 1.25)
    errors = 100.0 * (1.0 - own.groupby(["method", "density"]).test_accuracy.mean())
    low, high = 0.85 * errors.min(), min(100.0, 1.15 * errors.max())
    ax.set_ylim(low, high)
    every = (1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 90)
    shown = [tick for tick in every if low <= tick <= high]
    ax.set_yticks(shown, [f"{tick:g}" for tick in shown], fontsize=8.0)
    ax.grid(axis="y", color="#e4e4e4", lw=0.6)


def _series(
    ax: Any,
    own: pd.DataFrame,
    name: str,
    *,
    colour: str,
    width: float,
    line: str = "-",
    marker: str = "",
    beside: float = 0.0,
) -> None:
    part = own[own.method == name].dropna(subset=["test_accuracy"])
    found = [
        (density, *mean_interval([100.0 * (1.0 - value) for value in values]))
        for density, values in part.groupby("density").test_accuracy
    ]
    if not found:
        return
    x = np.array([density for density, *_ in found]) * 1.02**beside
    mean, low, high = np.array([numbers for _, *numbers in found]).T
    ax.plot(x, mean, color=colour, lw=width, ls=line, marker=marker, ms=3.6, label=name)
    if marker:  # all bars of a series as one path
        gap = np.full_like(x, np.nan)
        bars = np.stack([np.maximum(low, 1e-3), high, gap]).T.reshape(-1)
        ax.plot(np.repeat(x, 3), bars, color=colour, lw=0.8)


def similarity(
    table: pd.DataFrame,
    densities: Sequence[Sequence[float]],
    layers: Sequence[str],
    path: Path,
    *,
    title: str,
) -> None:
    """Draw masks clustered by their overlap beyond chance, beside layer densities.

    Args:
        table: Square, methods by methods, means over seeds.
        densities: For each method the density of all and of each layer.
        layers: Names of the columns: "all" and the layers.
        path: The SVG.
        title: What and where.
    """

    def draw() -> Figure:
        import matplotlib.pyplot as plt

        ax = _plot_comparison.plot(
            table,
            measure="excess_overlap",
            where="",
            distance=False,
            densities=densities,
            layers=layers,
        )
        for label in (*ax.get_xticklabels(), *ax.get_yticklabels()):
            method = METHODS.get(label.get_text())
            if method is not None:
                label.set_color(_GROUP_COLOURS[method.group])
        canvas: Figure = ax.figure
        canvas.suptitle(title, x=0.01, ha="left", fontsize=10.0)
        said = {"prunes …": "#767676"} | _GROUP_COLOURS
        for place, (words, colour) in enumerate(said.items()):
            canvas.text(
                0.99,
                0.985 - 0.022 * place,
                words,
                color=colour,
                ha="right",
                va="top",
                fontsize=8.0,
            )
        plt.close(canvas)
        return canvas

    _save(draw, path)


def square(rows: pd.DataFrame, value: str) -> pd.DataFrame:
    """Return the mean over seeds of a measure of pairs, methods by methods."""
    means = rows.groupby(["method", "other"])[value].mean()
    there = {name for pair in means.index for name in pair}
    names = [name for name in METHODS if name in there]
    table = pd.DataFrame(np.nan, index=names, columns=names)
    for name in names:
        table.loc[name, name] = 1.0
    for (a, b), found in means.items():
        table.loc[a, b] = table.loc[b, a] = found
    return table


def _save(draw: Callable[[], Figure], path: Path) -> None:
    with mpl.rc_context(_STYLE):
        canvas = draw()
        text = io.StringIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(canvas).print_svg(text, metadata=nothing)
    svg = text.getvalue()
    svg = re.sub(r"\s+", " ", _NAMES.sub("", svg[svg.index("<svg") :]))
    replace_text(path, _DIGITS.sub(r"\1", svg) + "\n")
