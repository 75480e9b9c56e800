"""The figure of a comparison: tree, similarity, layer densities."""

import math
from collections.abc import Sequence
from typing import Any

_TITLES = {
    "excess_overlap": "Overlap of masks beyond chance\n0 = chance, 1 = nested",
    "jaccard": "Jaccard similarity of masks\nkept by both / kept by either",
    "overlap_coefficient": "Overlap coefficient of masks\nkept by both / smaller mask",
    "hamming": "Hamming distance of masks\nweights that differ / all",
    "error_barrier": "Error barrier\nabove the mean of the ends",
    "loss_barrier": "Loss barrier\nabove the mean of the ends",
    "input_correlation": "Correlation of input degrees\n1 = the same inputs kept",
    "output_correlation": "Correlation of output degrees\n1 = the same units kept",
}
_CELL, _SMALL, _NOTE = 0.44, 9.0, 7.5
_MOST_NOTED = 16


def plot(
    table: Any,
    *,
    measure: str,
    where: str,
    distance: bool,
    densities: Sequence[Sequence[float]],
    layers: Sequence[str],
    ax: Any = None,
) -> Any:
    """Draw a clustered heat map, with its tree and the layer densities.

    Args:
        table: Square pandas frame.
        measure: Its name.
        where: What to add to the title.
        distance: Whether small means alike.
        densities: For each ticket one density per column of the second panel.
        layers: Names of these columns.
        ax: Axes for the heat map alone; a new figure by default.

    Returns:
        The axes of the heat map.
    """
    tree = _tree(table, distance=distance)
    order = tree["leaves"]
    title = _TITLES.get(measure, measure.replace("_", " ")) + _plain(where)
    if ax is not None:
        _heat(ax, table, order, title, distance=distance)
        return ax
    canvas, panels = _canvas(len(table), len(layers))
    _heat(panels["heat"], table, order, title="", distance=distance)
    _branches(panels["tree"], tree, title)
    _densities(panels["layers"], densities, layers, order)
    _bars(canvas, panels)
    return panels["heat"]


def _tree(table: Any, *, distance: bool) -> Any:
    import numpy as np
    from scipy.cluster.hierarchy import dendrogram, linkage
    from scipy.spatial.distance import squareform

    values = table.to_numpy(dtype=float, copy=True)
    apart = values if distance else 1.0 - values
    # what is not defined is as far as anything
    far = np.nanmax(apart) if np.isfinite(apart).any() else 1.0
    apart = np.clip(np.nan_to_num(apart, nan=far), 0.0, None)
    np.fill_diagonal(apart, 0.0)
    joined = linkage(squareform(apart), "average", optimal_ordering=True)
    return dendrogram(joined, no_plot=True)


def _canvas(tickets: int, layers: int) -> tuple[Any, dict[str, Any]]:
    import matplotlib.pyplot as plt

    cell = _CELL if tickets <= _MOST_NOTED else max(0.16, 7.0 / tickets)
    side = max(2.4, cell * tickets)
    wide = max(1.6, min(6.0, 0.5 * layers))
    canvas = plt.figure(figsize=(side + wide + 2.6, side + 2.9), layout="constrained")
    grid = canvas.add_gridspec(
        2, 2, width_ratios=(side, wide), height_ratios=(0.7, side)
    )
    panels = {
        "tree": canvas.add_subplot(grid[0, 0]),
        "heat": canvas.add_subplot(grid[1, 0]),
        "layers": canvas.add_subplot(grid[1, 1]),
    }
    return canvas, panels


def _heat(ax: Any, table: Any, order: list[int], title: str, *, distance: bool) -> None:
    values = table.to_numpy(dtype=float)[order][:, order]
    names = [_plain(str(table.index[index])) for index in order]
    finite = [v for row in values for v in row if math.isfinite(v)]
    low = min([0.0, *finite])
    high = max(finite, default=1.0) if distance else 1.0
    image = ax.imshow(
        values,
        cmap="Blues_r" if distance else "Blues",
        vmin=low,
        vmax=high if high > low else low + 1.0,
        aspect="auto",
    )
    _note(ax, image, values, _two_digits)
    ax.set_xticks(range(len(names)), names, rotation=90, fontsize=_SMALL)
    ax.set_yticks(range(len(names)), names, fontsize=_SMALL)
    _bare(ax)
    if title:
        ax.set_title(title, loc="left", fontsize=_SMALL + 1)


def _branches(ax: Any, tree: Any, title: str) -> None:
    for x, y in zip(tree["icoord"], tree["dcoord"], strict=True):
        # leaves lie at 5, 15, 25, ...; the columns at 0, 1, 2, ...
        ax.plot([(place - 5.0) / 10.0 for place in x], y, color="0.35", lw=1.0)
    ax.set_xlim(-0.5, len(tree["leaves"]) - 0.5)
    ax.set_ylim(bottom=0.0)
    ax.set_axis_off()
    ax.set_title(title, loc="left", fontsize=_SMALL + 1)


def _densities(
    ax: Any,
    densities: Sequence[Sequence[float]],
    layers: Sequence[str],
    order: list[int],
) -> None:
    import numpy as np
    from matplotlib.colors import LogNorm

    values = 100.0 * np.array([densities[index] for index in order])
    there = values[values > 0]
    low = float(there.min()) if there.size else 1.0
    image = ax.imshow(
        np.where(values > 0, values, np.nan),
        cmap="Greens",
        norm=LogNorm(vmin=min(low, 50.0), vmax=100.0),
        aspect="auto",
    )
    _note(ax, image, values, _percent)
    names = [_plain(name.removesuffix(".weight") or name) for name in layers]
    step = math.ceil(len(names) / 30)
    ax.set_xticks(
        range(0, len(names), step), names[::step], rotation=90, fontsize=_SMALL
    )
    ax.set_yticks([])
    _bare(ax)
    ax.axvline(0.5, color="white", lw=3.0)
    ax.set_xlabel("layer", fontsize=_SMALL)
    ax.set_title("Weights kept (%)", loc="left", fontsize=_SMALL + 1)


def _note(ax: Any, image: Any, values: Any, write: Any) -> None:
    rows, columns = values.shape
    if rows > _MOST_NOTED or columns > _MOST_NOTED:
        return
    for i in range(rows):
        for j in range(columns):
            shade = image.cmap(image.norm(values[i, j]))
            # nothing is drawn where the colour is transparent
            light = (
                shade[3] == 0
                or 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] > 0.55
            )
            ax.text(
                j,
                i,
                write(values[i, j]),
                ha="center",
                va="center",
                fontsize=_NOTE,
                color="black" if light else "white",
            )


def _bars(canvas: Any, panels: dict[str, Any]) -> None:
    for name in ("heat", "layers"):
        image = panels[name].images[0]
        bar = canvas.colorbar(
            image, ax=panels[name], location="bottom", shrink=0.9, aspect=25, pad=0.02
        )
        bar.ax.tick_params(labelsize=_NOTE)
        bar.outline.set_visible(False)
    axis = panels["layers"].images[0].colorbar.ax.xaxis
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(lambda value, _: "")


def _bare(ax: Any) -> None:
    ax.tick_params(length=0)
    for edge in ax.spines.values():
        edge.set_visible(False)


def _two_digits(value: float) -> str:
    if not math.isfinite(value):
        return "–"
    if abs(value) < 0.005:
        return "0"
    text = f"{value:.2f}"
    return (
        text.replace("0.", ".", 1)
        if abs(value) < 0.995
        else text.rstrip("0").rstrip(".")
    )


def _percent(value: float) -> str:
    if value == 0:
        return "0"
    return (
        f"{value:.0f}"
        if value >= 9.95
        else f"{value:.1f}"
        if value >= 0.095
        else f"{value:.2f}"
    )


def _plain(name: str) -> str:
    return name.replace("$", r"\$")
