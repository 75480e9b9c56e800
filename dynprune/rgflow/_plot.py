"""The flow on log-log axes, beside its controls."""

from typing import TYPE_CHECKING, Literal

from torch import Tensor

from dynprune.rgflow._exponents import over_seeds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dynprune.rgflow._results import RGFlow

Style = Literal["-", "--", ":"]
_LABELLED = 10


def plot_flow(flow: "RGFlow", ax: "Axes | None") -> "Axes":
    """Draw a flow.

    Args:
        flow: The flow.
        ax: Axes, or None for new ones.

    Returns:
        The axes.
    """
    import matplotlib as mpl
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    ax = plt.subplots()[1] if ax is None else ax
    colours = mpl.colormaps["tab10" if len(flow.groups) <= _LABELLED else "viridis"]
    steps = range(len(flow.groups))
    shades = [
        colours(i if len(steps) <= _LABELLED else i / (len(steps) - 1)) for i in steps
    ]
    kinds: dict[str, tuple[Tensor, Style, float]]
    kinds = {"IMP": (flow.shares, "-", 1.6)}
    if flow.no_retraining is not None:
        kinds["no retraining"] = (flow.no_retraining, "--", 1.0)
    if flow.random is not None:
        kinds["random pruning"] = (flow.random, ":", 1.0)
    for values, style, width in kinds.values():
        _draw(ax, flow, values, shades, style, width)
    # Of many groups, those that move most are named.
    named = flow.exponents.nan_to_num().abs().argsort(descending=True)[:_LABELLED]
    handles = [
        Line2D([], [], color=shades[i], label=flow.groups[i])
        for i in sorted(named.tolist())
    ] + [
        Line2D([], [], color="0.3", linestyle=style, linewidth=width, label=kind)
        for kind, (_, style, width) in kinds.items()
    ]
    ax.legend(handles=handles, fontsize="small", ncols=2)
    ax.set_xscale("log")
    ax.set_yscale("log")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(_plain)
        axis.set_minor_formatter(_minor)
    ax.set_xlabel("1 / density")
    what = {"share": "share of", "absolute": "sum of"}[flow.normalisation]
    ax.set_ylabel(f"{what} {'|w|' if flow.magnitude == 'L1' else 'w²'}")
    ax.set_title(f"Flow over IMP levels, {flow.stage} pruning (mean ± se of seeds)")
    return ax


def _plain(value: float, position: float) -> str:
    del position
    return f"{value:g}"


def _minor(value: float, position: float) -> str:
    # Two labels between powers of ten: few enough for phones.
    digit = f"{value:e}"[0]
    return _plain(value, position) if digit in {"2", "5"} else ""


def _draw(
    ax: "Axes",
    flow: "RGFlow",
    values: Tensor,
    shades: list[tuple[float, float, float, float]],
    style: Style,
    width: float,
) -> None:
    mean, error = over_seeds(values)
    x = (1.0 / flow.densities).numpy()
    for i, shade in enumerate(shades):
        seen = (mean[:, i] > 0).numpy()  # zero has no place on a log axis
        ax.errorbar(
            x[seen],
            mean[:, i].numpy()[seen],
            yerr=error[:, i].nan_to_num().numpy()[seen],
            color=shade,
            linestyle=style,
            linewidth=width,
            capsize=2,
        )
