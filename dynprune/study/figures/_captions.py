"""What each figure shows: title, caption, and a description for those who hear it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dynprune.study._findings import Findings
from dynprune.study.claims._manifold import HVP_GRADIENTS
from dynprune.study.figures._frames_pruning import methods_of
from dynprune.study.figures._theory import FEW_GROUPS, MOST_GROUPS

if TYPE_CHECKING:
    import pandas as pd

TITLES = {
    "accuracy-density": "Test accuracy against density",
    "accuracy-cost": "Test accuracy against cost",
    "spectrum": "Hessian spectrum and its gap",
    "forecast-example": "Forecast against truth: a few weights",
    "forecast-error": "Forecast against truth: all weights",
    "flow": "Renormalization-group flow of the layers",
    "layer-densities": "Layer densities of the tickets",
}


def caption_of(name: str, frame: "pd.DataFrame", findings: Findings) -> str:
    """Say what is drawn, over how many seeds, and what the intervals are.

    Args:
        name: The figure's.
        frame: Its data.
        findings: What was measured.

    Returns:
        One paragraph of plain text.
    """
    return {
        "accuracy-density": _accuracy,
        "accuracy-cost": _cost,
        "spectrum": _spectrum,
        "forecast-example": _example,
        "forecast-error": _forecast,
        "flow": _flow,
        "layer-densities": _layers,
    }[name](frame, findings)


def description_of(name: str, frame: "pd.DataFrame") -> str:
    """Describe a figure in one line, for its alt text.

    Args:
        name: The figure's.
        frame: Its data.

    Returns:
        Plain text; numbers are in the caption, the tables and the CSV files.
    """
    if "method" in frame:
        series = methods_of(frame["method"])
    else:
        column = next(c for c in ("series", "seed") if c in frame)
        series = [str(value) for value in dict.fromkeys(frame[column])]
    what = "seeds" if "series" not in frame and "method" not in frame else "series"
    return f"{TITLES[name]}. {len(series)} {what}: {', '.join(series)}."


def over_seeds(count: int, what: str = "Means") -> str:
    """Say what averages and error bars are, or that there are none.

    Args:
        count: Number of seeds.
        what: What is averaged.

    Returns:
        One sentence.

    Example:
        >>> over_seeds(1)
        'One seed only, so there are no intervals.'
    """
    if count < 2:
        return "One seed only, so there are no intervals."
    return f"{what} over {count} seeds; bars are 95 % t-intervals over seeds."


def _accuracy(frame: "pd.DataFrame", findings: Findings) -> str:
    seeds = int(frame["seeds"].max())
    missing = frame[frame["seeds"] < seeds]
    short = methods_of(missing["method"])
    text = (
        "Accuracy of each method's trained ticket on the test split, dense on the "
        "left, sparse on the right; the second panel enlarges the upper end. "
        f"{over_seeds(seeds)} Bands are the intervals of IMP and of the "
        "dense network. Points of one density are moved apart a little so that their "
        "bars can be read. Dashed lines with hollow markers are controls: the same "
        "mask shuffled within each layer, or the same mask on newly drawn weights."
    )
    if short and findings.config.seeds > 1:
        text += f" Some seeds are missing for {', '.join(short)}."
    return text


def _cost(frame: "pd.DataFrame", findings: Findings) -> str:
    del findings
    return (
        "What a trained ticket cost in all: finding the mask (for IMP every earlier "
        "level, for the one-shot pruner its transient and its Hessian products) and "
        "training it. One unit is one gradient over the whole training split; a "
        f"Hessian-vector product counts as {HVP_GRADIENTS:g} of them and a forward "
        "pass as a third, nominally. Up and to the left is better. "
        f"{over_seeds(int(frame['seeds'].max()))} Costs are geometric means."
    )


def _spectrum(frame: "pd.DataFrame", findings: Findings) -> str:
    seeds = frame["seed"].nunique()
    chosen = frame.drop_duplicates("seed")["n_fast"]
    without = int(chosen.isna().sum())
    count = "the one seed" if seeds == 1 else f"each of {seeds} seeds"
    text = (
        f"The sharpest Ritz values of the training loss's Hessian after the transient "
        f"of {findings.config.transient} steps, {count} by itself (no average). Bars "
        "of the values are enclosures from the residuals: an eigenvalue lies within "
        "each; most are shorter than the markers. The other panel shows the gap "
        "below each value, its bar reaching down to the smallest gap "
        "that the enclosures allow. A gap is resolved if the "
        "enclosures on its two sides are disjoint and no eigenvalue was missed; the "
        "ringed one is the gap that decides k. The legend gives ηλ₁, the step size "
        "times the sharpest value: at 2 gradient descent is at the edge of stability, "
        "and the sharpest direction is no longer a fast one."
    )
    return text + (f" {without} seed(s) have no chosen gap." if without else "")


def _example(frame: "pd.DataFrame", findings: Findings) -> str:
    del findings
    first = frame.iloc[0]
    return (
        f"Weights of seed {first['seed']}, one run, so there are no intervals. The "
        f"forecasts were fitted to the snapshots in the shaded window, steps "
        f"{first['window_start']:g} to {first['window_stop']:g}, and know nothing of "
        "what follows; the black line is what training did. The vertical range "
        "follows the truth, so a forecast that leaves it is cut off."
    )


def _forecast(frame: "pd.DataFrame", findings: Findings) -> str:
    del findings
    seeds = int(frame["seeds"].max())
    return (
        "error2growth is the median over weights of the forecast's error divided by "
        "the median of how far the weights moved: 1 is no better than staying put. "
        "The accuracy panel subtracts the accuracy of the trained weights at the same "
        "step; where a forecast breaks the network its scale is logarithmic beyond "
        "one point. The last panel sets the residual bound of the network forecast "
        "beside its measured error; a bound far above it says nothing. Solid lines "
        f"are DMD, dashed lines baselines. {over_seeds(seeds)} Errors and bounds are "
        "geometric means with intervals of the logarithm. Points of one horizon are "
        "moved apart a little. A series that leaves the range is cut off."
    )


def _flow(frame: "pd.DataFrame", findings: Findings) -> str:
    groups = frame["group"].nunique()
    flow = findings.flow
    text = (
        "The share of the network's absolute weight that each layer holds, level by "
        "level of IMP, on logarithmic axes; a straight line is a scaling law with "
        "exponent σ, its slope against ln(1/density). A relevant layer (σ > 0) gains "
        "weight as the network is pruned. Dashed and dotted are the two controls: "
        "pruning the trained dense network without retraining, and random pruning. "
        f"{over_seeds(int(frame['seeds'].max()), 'Geometric means')}"
    )
    if groups > FEW_GROUPS:
        text = text.replace("bars are", "bands are")
    if flow is not None and flow.normalisation != "share":
        text = text.replace("share of the network's", "sum of the")
    if groups > MOST_GROUPS:
        text += f" The first {MOST_GROUPS} of {groups} layers are drawn; see the table."
    return text


def _layers(frame: "pd.DataFrame", findings: Findings) -> str:
    del findings
    names = list(dict.fromkeys(frame["layer"]))
    return (
        "The density of each layer of each method's tickets, at a few densities of the "
        "whole network (dashed line). Shuffled and re-initialised copies have their "
        "origin's layer densities by construction and are not drawn. "
        f"{over_seeds(int(frame['seeds'].max()))} Methods are moved apart a little "
        f"within each layer. The layers, input first: {', '.join(names)}."
    )


def short_list(parts: Sequence[str]) -> str:
    """Join parts as one writes them.

    Args:
        parts: At least one.

    Returns:
        Commas, and "and" before the last.

    Example:
        >>> short_list(["a", "b", "c"])
        'a, b and c'
    """
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
