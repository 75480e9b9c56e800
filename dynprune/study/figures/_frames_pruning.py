"""What the figures of pruning draw: accuracy, cost, layer densities."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dynprune.study._findings import Findings
from dynprune.study.claims._manifold import FORWARD_GRADIENTS, HVP_GRADIENTS
from dynprune.study.figures._seed_intervals import frame_of, interval, log_interval

if TYPE_CHECKING:
    import pandas as pd

ORDER = (
    "dense",
    "imp",
    "imp-shuffled",
    "imp-reinitialised",
    "magnitude-trained",
    "manifold",
    "manifold-shuffled",
    "snip",
    "grasp",
    "synflow",
    "magnitude-init",
    "random",
)
COST_PANELS = 3
LAYER_PANELS = 3


def methods_of(names: Iterable[str]) -> list[str]:
    """Sort method names for reading; names of a user's own come last.

    Args:
        names: Names, repeated or not.

    Returns:
        Each name once.
    """
    there = set(names)
    return [name for name in ORDER if name in there] + sorted(there - set(ORDER))


def chosen_densities(findings: Findings, count: int) -> tuple[float, ...]:
    """Choose densities that every method was trained at, spread on a log scale.

    They depend on the config alone: the nearest to 50, 10 and 2 % (or to the ends and
    the middle of what was compared).

    Args:
        findings: What was measured.
        count: How many at most.

    Returns:
        Densities, falling.
    """
    compared = sorted(findings.config.compared, reverse=True)
    if len(compared) <= count:
        return tuple(compared)
    top, bottom = math.log(min(0.5, compared[0])), math.log(compared[-1])
    aims = [top + (bottom - top) * i / (count - 1) for i in range(count)]
    near = {min(compared, key=lambda d: abs(math.log(d) - aim)) for aim in aims}
    return tuple(sorted(near, reverse=True))


def accuracy_frame(findings: Findings) -> "pd.DataFrame":
    """Return test accuracy (percent) of each method at each density.

    Args:
        findings: What was measured.

    Returns:
        Columns method, density, accuracy, low, high, seeds.
    """
    rows = []
    results = findings.results
    for method in methods_of(results["method"]):
        of_method = results[results["method"] == method]
        for density in sorted(of_method["density"].unique(), reverse=True):
            there = of_method.loc[of_method["density"] == density, "accuracy"]
            mean, low, high, seeds = interval(100.0 * there)
            rows.append((method, density, mean, low, high, seeds))
    return frame_of(rows, ("method", "density", "accuracy", "low", "high", "seeds"))


def cost_in_gradients(results: "pd.DataFrame") -> "pd.Series":
    """Return total costs in one currency: gradients + 2 HVPs + forwards / 3.

    Args:
        results: Rows with the columns gradients, hvps and forwards.

    Returns:
        Gradient equivalents, in full-data gradients.
    """
    return (
        results["gradients"].fillna(0.0)
        + HVP_GRADIENTS * results["hvps"].fillna(0.0)
        + FORWARD_GRADIENTS * results["forwards"].fillna(0.0)
    )


def cost_frame(findings: Findings) -> "pd.DataFrame":
    """Return accuracy and total cost of each method at a few densities.

    Args:
        findings: What was measured.

    Returns:
        Columns density, method, cost, cost_low, cost_high (gradient equivalents),
        accuracy, low, high (percent), seeds. Dense stands in every panel.
    """
    results = findings.results.assign(cost=cost_in_gradients(findings.results))
    rows = []
    for density in chosen_densities(findings, COST_PANELS):
        for method in methods_of(results["method"]):
            at = results["density"] == (1.0 if method == "dense" else density)
            there = results[at & (results["method"] == method)]
            if len(there):
                cost, cost_low, cost_high, _ = log_interval(there["cost"])
                mean, low, high, seeds = interval(100.0 * there["accuracy"])
                rows.append((
                    density,
                    method,
                    cost,
                    cost_low,
                    cost_high,
                    mean,
                    low,
                    high,
                    seeds,
                ))
    columns = ("density", "method", "cost", "cost_low", "cost_high")
    return frame_of(rows, (*columns, "accuracy", "low", "high", "seeds"))


def layer_frame(findings: Findings) -> "pd.DataFrame":
    """Return the density of each layer of each method's tickets.

    Args:
        findings: What was measured.

    Returns:
        Columns method, density, layer, layer_density, low, high, seeds, at a few
        densities; layers in the network's order. Controls that share their origin's
        layer densities by construction are left out.
    """
    layers, rows = findings.layers, []
    copies = ("imp-shuffled", "imp-reinitialised", "manifold-shuffled")
    names = [name for name in methods_of(layers["method"]) if name not in copies]
    for density in chosen_densities(findings, LAYER_PANELS):
        for method in names:
            chosen = (layers["method"] == method) & (layers["density"] == density)
            there = layers[chosen]
            for layer in dict.fromkeys(there["layer"]):
                values = there.loc[there["layer"] == layer, "layer_density"]
                rows.append((method, density, layer, *interval(values)))
    columns = ("method", "density", "layer", "layer_density", "low", "high", "seeds")
    return frame_of(rows, columns)
