"""Draw spectrum and gap, and the renormalization-group flow."""

from typing import TYPE_CHECKING, Any

from dynprune.study.figures._strokes import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    Stroke,
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
        log_axis(
            ax,
            "y",
            label="share of magnitude" if look.narrow or i % across == 0 else "",
        )
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
