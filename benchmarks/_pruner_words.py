"""What the numbers say, in sentences made from them: nothing is said beforehand."""

import math
from collections.abc import Iterable

import pandas as pd
from _pruner_figures import square
from _pruner_methods import DENSE, DURING, GROUPS, INITIAL, LEARNT, METHODS, REWOUND
from scipy import stats

from dynprune.core import mean_interval

BLIND = ("random", "erk")
_FEW = 3


def points(values: Iterable[float]) -> str:
    """Write a mean of accuracies with its 95 % Student interval, in per cent."""
    found = [100.0 * value for value in values]
    mean, low, _ = mean_interval(found)
    if math.isnan(mean):
        return "–"
    return f"{mean:.2f}" if math.isnan(low) else f"{mean:.2f} ± {mean - low:.2f}"


def drop(frame: pd.DataFrame, better: str, worse: str) -> tuple[float, float, float]:
    """Return the mean paired difference of two methods in points, and its interval.

    Args:
        frame: Rows of one task and density.
        better: The method expected to be better.
        worse: The other.

    Returns:
        Mean, low, high; NaN without a seed that has both.
    """
    table = frame.pivot_table(index="seed", columns="method", values="test_accuracy")
    if not {better, worse} <= set(table.columns):
        return math.nan, math.nan, math.nan
    both = (100.0 * (table[better] - table[worse])).dropna()
    return mean_interval(both.to_numpy())


def verdict(found: tuple[float, float, float]) -> str:
    """Say what an interval of a difference that should be positive says."""
    mean, low, high = found
    if math.isnan(mean):
        return "not there"
    if math.isnan(low):
        return "one seed"
    if low > 0.0:
        return "held"
    return "reversed" if high < 0.0 else "not decided"


def ordering_pairs(frame: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the pairs of the expected order that have rows."""
    there = set(frame.dropna(subset=["test_accuracy"]).method)
    early = [
        name
        for name, method in METHODS.items()
        if method.group == INITIAL and name not in BLIND and name in there
    ]
    pairs = [("imp", "magnitude-trained")]
    pairs += [("magnitude-trained", name) for name in early]
    pairs += [(name, "random") for name in early]
    return [pair for pair in pairs if set(pair) <= there]


def ordering(frame: pd.DataFrame, density: float) -> tuple[str, list[dict[str, str]]]:
    """Test IMP > magnitude after training > at initialisation > random.

    Args:
        frame: Rows of one task and recipe.
        density: Where.

    Returns:
        A sentence, and a row for each pair.
    """
    own = frame[frame.density == density]
    rows, count = [], dict.fromkeys(("held", "reversed", "not decided", "one seed"), 0)
    for better, worse in ordering_pairs(own):
        found = drop(own, better, worse)
        said = verdict(found)
        if said == "not there":
            continue
        count[said] += 1
        mean, low, high = found
        rows.append({
            "expected": f"{better} > {worse}",
            "difference, points": f"{mean:+.2f}",
            "95 % interval": "–" if math.isnan(low) else f"{low:+.2f} to {high:+.2f}",
            "the expectation": said,
        })
    if not rows:
        return "No pair of the expected order has been trained yet.", rows
    tested = len(rows) - count["one seed"]
    if not tested:
        ups = sum(row["difference, points"].startswith("+") for row in rows)
        return (
            f"With one seed nothing can be told from noise; {ups} of {len(rows)} "
            "differences have the expected sign.",
            rows,
        )
    parts = [f"{count[word]} {word}" for word in ("held", "not decided", "reversed")]
    if count["one seed"]:
        parts.append(f"{count['one seed']} on one seed only")
    wrong = [row["expected"] for row in rows if row["the expectation"] == "reversed"]
    chain = (
        "the whole order holds outside the intervals"
        if count["held"] == len(rows)
        else "the whole order is not shown"
    )
    tail = f" Reversed: {', '.join(wrong)}." if wrong else ""
    return f"Of {len(rows)} pairs {', '.join(parts)}: {chain}.{tail}", rows


def group_table(rows: pd.DataFrame) -> list[dict[str, str]]:
    """Return the mean overlap beyond chance within and between groups, per seed.

    Args:
        rows: Pairs of methods of one seed, one task and density.

    Returns:
        One row per group; random masks are left out.
    """
    own = rows[~rows.method.isin(BLIND) & ~rows.other.isin(BLIND)].copy()
    own["a"] = [METHODS[name].group for name in own.method]
    own["b"] = [METHODS[name].group for name in own.other]
    table = []
    for a in GROUPS:
        line = {"group": a}
        for b in GROUPS:
            part = own[((own.a == a) & (own.b == b)) | ((own.a == b) & (own.b == a))]
            means = part.groupby("seed").excess_overlap.mean()
            line[b] = plain(means)
        table.append(line)
    return table


def plain(values: Iterable[float]) -> str:
    """Write a mean with its 95 % interval over seeds."""
    mean, low, _ = mean_interval([v for v in values if not math.isnan(v)])
    if math.isnan(mean):
        return "–"
    return f"{mean:.2f}" if math.isnan(low) else f"{mean:.2f} ± {mean - low:.2f}"


def likeness(rows: pd.DataFrame, frame: pd.DataFrame, density: float) -> list[str]:
    """Say what masks of different methods have in common.

    Args:
        rows: Pairs of one task and density.
        frame: Accuracies of the task.
        density: Of the masks.

    Returns:
        Sentences.
    """
    pairs = rows[(rows.seed == rows.other_seed)]
    informed = pairs[~pairs.method.isin(BLIND) & ~pairs.other.isin(BLIND)]
    if not len(informed):
        return []
    said = [_in_common(informed, density)]
    said += _across_seeds(rows)
    said += _nearest(pairs)
    said += _does_it_matter(pairs, frame[frame.density == density])
    return said


def _in_common(informed: pd.DataFrame, density: float) -> str:
    by_seed = informed.groupby("seed").excess_overlap.mean()
    beyond = informed.groupby(["method", "other"]).z.min() > stats.norm.ppf(0.9995)
    medians = informed.groupby(["method", "other"]).excess_overlap.mean()
    return (
        f"At {100 * density:g} % two methods share on average {plain(by_seed)} of what "
        "they could share beyond chance (0 = independent masks with these layer "
        f"densities, 1 = nested); the middle half of the {len(medians)} pairs lies "
        f"between {medians.quantile(0.25):.2f} and {medians.quantile(0.75):.2f}. "
        f"{int(beyond.sum())} of {len(beyond)} pairs exceed chance (z > 3.3) on every "
        f"seed."
    )


def _across_seeds(rows: pd.DataFrame) -> list[str]:
    null = rows[(rows.seed != rows.other_seed) & ~rows.method.isin(BLIND)]
    if not len(null):
        return ["The same method on another seed: no second seed yet."]
    means = null.groupby("method").excess_overlap.mean()
    inputs = null.groupby("method").input_correlation.mean().dropna()
    top = means.idxmax()
    text = (
        "The same method on another seed (other initial weights, other data order) "
        f"shares {means.mean():.3f} beyond chance in the mean of {len(means)} methods, "
        f"at most {means.max():.3f} ({top})"
    )
    if not len(inputs):
        return [f"{text}."]
    high = inputs.sort_values(ascending=False)
    named = ", ".join(f"{n} {v:.2f}" for n, v in high.head(_FEW).items())
    return [
        f"{text}. How many weights each input keeps in the first layer correlates "
        f"between seeds by {inputs.mean():.2f} in the mean (highest: {named})."
    ]


def _nearest(pairs: pd.DataFrame) -> list[str]:
    table = square(pairs, "excess_overlap")
    if "imp" not in table:
        return []
    near = table["imp"].drop(["imp", *(b for b in BLIND if b in table)]).dropna()
    if not len(near):
        return []
    high = near.sort_values(ascending=False)
    first = ", ".join(f"{name} {value:.2f}" for name, value in high.head(_FEW).items())
    last = ", ".join(f"{name} {value:.2f}" for name, value in high.tail(_FEW).items())
    return [f"Nearest to IMP's mask: {first}; farthest: {last}."]


def _does_it_matter(pairs: pd.DataFrame, frame: pd.DataFrame) -> list[str]:
    found = []
    for seed, part in pairs.groupby("seed"):
        table = square(part, "excess_overlap")
        if "imp" not in table:
            continue
        near = table["imp"].drop("imp")
        own = frame[frame.seed == seed].set_index("method").test_accuracy
        # the weights of other groups were trained from elsewhere, or twice
        names = [
            name
            for name in near.index
            if METHODS[name].group in {INITIAL, LEARNT, REWOUND, DURING}
            and name in own.index
            and math.isfinite(near[name])
            and math.isfinite(own[name])
        ]
        if len(names) > 4:
            rho = stats.spearmanr(near[names], own[names]).statistic
            found.append((float(rho), len(names)))
    if not found:
        return []
    mean, low, high = _mean_correlation([rho for rho, _ in found])
    count = min(count for _, count in found)
    spread = (
        "one seed" if math.isnan(low) else f"95 % interval {low:+.2f} to {high:+.2f}"
    )
    clear = (
        "whether likeness to IMP goes with accuracy cannot be told from one seed"
        if math.isnan(low)
        else "masks more like IMP's train to higher accuracy"
        if low > 0
        else "masks more like IMP's train to lower accuracy"
        if high < 0
        else "likeness to IMP's mask does not predict accuracy beyond seed noise"
    )
    return [
        f"Over the {count} methods that train once from a start of their own, the rank "
        f"correlation of overlap with IMP and test accuracy is {mean:+.2f} ({spread}; "
        f"methods are few and related): {clear}."
    ]


def _mean_correlation(values: list[float]) -> tuple[float, float, float]:
    # averaged as arctanh, where the interval cannot leave [-1, 1]
    z = [math.atanh(min(max(value, -0.999), 0.999)) for value in values]
    mean, low, high = mean_interval(z)
    return math.tanh(mean), math.tanh(low), math.tanh(high)


def best_of(frame: pd.DataFrame, density: float) -> str:
    """Say which methods are best at a density, chosen by validation accuracy."""
    own = frame[(frame.density == density) & (frame.method != DENSE)]
    means = own.groupby("method")[["validation_accuracy", "test_accuracy"]].mean()
    means = means.dropna().sort_values("validation_accuracy", ascending=False)
    if not len(means):
        return "no method yet"
    return ", ".join(
        f"{name} {100 * row.test_accuracy:.2f}"
        for name, row in means.head(3).iterrows()
    )
