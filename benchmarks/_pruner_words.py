"""What the numbers say, in sentences made from them: nothing is said beforehand."""

import math
from collections.abc import Iterable

import pandas as pd
from _pruner_figures import square
from _pruner_methods import DENSE, DURING, GROUPS, INITIAL, LEARNT, METHODS, REWOUND
from scipy import stats

from dynprune.core import mean_interval

BLIND = ("random", "erk")
# |w| of trained weights, as in IMP
RELATIVES = ("magnitude-trained", "lamp-trained", "early-bird", "gmp")
_FEW, _FEWEST, _LEVEL = 3, 5, 0.05
_REST = ("one seed", "not there")


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


def ordering_pairs(
    frame: pd.DataFrame,
    *,
    first: str = "imp",
    after: str = "magnitude-trained",
    blind: str = "random",
) -> list[tuple[str, str]]:
    """Return the pairs of IMP > after training > at initialisation > blind with rows.

    Args:
        frame: Rows of one task, recipe and density.
        first: What stands for IMP.
        after: What stands for one-shot pruning after training.
        blind: What stands for random masks.
    """
    there = set(frame.dropna(subset=["test_accuracy"]).method)
    early = [
        name
        for name, method in METHODS.items()
        if method.group == INITIAL and name not in BLIND and name in there
    ]
    pairs = [(first, after)]
    pairs += [(after, name) for name in early]
    pairs += [(name, blind) for name in early]
    return [pair for pair in pairs if set(pair) <= there]


def ordering(frame: pd.DataFrame, density: float) -> tuple[str, list[dict[str, str]]]:
    """Test IMP > magnitude after training > at initialisation > random.

    Args:
        frame: Rows of one task and recipe.
        density: Where.

    Returns:
        Sentences, and a row for each pair; the pairs that were not asked for, with
        ERK for random, LAMP for magnitude, and layer by layer, come last.
    """
    own = frame[frame.density == density]
    asked = ordering_pairs(own)
    if not asked:
        return "No pair of the expected order has been trained yet.", []
    said, rows = _tested(own, asked)
    whole = all(row["the expectation"] == "held" for row in rows)
    if any(row["the expectation"] != "one seed" for row in rows):
        said += (
            ": the whole order holds outside the intervals"
            if whole
            else ": the whole order is not shown"
        )
    said = f"Of {len(asked)} pairs {said}."
    for what, other in (
        (
            "Against random masks with ERK layer densities",
            ordering_pairs(own, blind="erk"),
        ),
        (
            "With LAMP in the place of one-shot magnitude",
            ordering_pairs(own, after="lamp-trained"),
        ),
        (
            "Layer by layer, as in the source",
            ordering_pairs(own, first="imp-layer", after="magnitude-layer"),
        ),
    ):
        new = [pair for pair in other if pair not in asked]
        if new:
            also, table = _tested(own, new)
            said += f" {what}: of {len(new)} pairs {also}."
            rows += table
    return said, rows


def _tested(
    own: pd.DataFrame, pairs: list[tuple[str, str]]
) -> tuple[str, list[dict[str, str]]]:
    rows = []
    for better, worse in pairs:
        found = mean, low, high = drop(own, better, worse)
        rows.append({
            "expected": f"{better} > {worse}",
            "difference, points": f"{mean:+.2f}",
            "95 % interval": "–" if math.isnan(low) else f"{low:+.2f} to {high:+.2f}",
            "the expectation": verdict(found),
        })
    named: dict[str, list[str]] = {}
    for row in rows:
        named.setdefault(row["the expectation"], []).append(row["expected"])
    if named.keys() == {"one seed"}:
        ups = sum(row["difference, points"].startswith("+") for row in rows)
        return f"{ups} have the expected sign on one seed, which decides nothing", rows
    parts = [
        f"{len(named.get(word, ()))} {word}"
        for word in ("held", "not decided", "reversed")
    ]
    parts += [f"{len(named[word])} {word}" for word in _REST if word in named]
    wrong = named.get("reversed", [])
    tail = f" ({', '.join(wrong)})" if wrong else ""
    return f"{', '.join(parts)}{tail}", rows


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


def complete(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the seeds that have all pairs: means over seeds are of the same ones.

    Args:
        pairs: Pairs of methods within a seed, of one task and density.
    """
    counts = pairs.groupby("seed").size()
    return pairs[pairs.seed.isin(counts[counts == counts.max()].index)]


def seeds_of(pairs: pd.DataFrame) -> str:
    """Say which seeds pairs rest on."""
    found = sorted({int(seed) for seed in pairs.seed})
    return f"seed{'s' * (len(found) > 1)} {', '.join(map(str, found))}"


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
    pairs = complete(rows[rows.seed == rows.other_seed])
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
        f"At {100 * density:g} % two methods (random and ERK masks left out) share on "
        f"average {plain(by_seed)} "
        f"({seeds_of(informed)}) of what they could share beyond chance (0 = "
        "independent masks with these layer densities, 1 = nested); the middle "
        f"half of the {len(medians)} pairs lies "
        f"between {medians.quantile(0.25):.2f} and {medians.quantile(0.75):.2f}. "
        f"{int(beyond.sum())} of {len(beyond)} pairs exceed chance (z > 3.3) on each "
        "of these seeds."
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
        f"at most {means.max():.3f} ({top}; {_pairs_of_seeds(null)})"
    )
    if not len(inputs):
        return [f"{text}."]
    high = inputs.sort_values(ascending=False)
    named = ", ".join(f"{n} {v:.2f}" for n, v in high.head(_FEW).items())
    return [
        f"{text}. How many weights each input keeps in the first layer correlates "
        f"between seeds by {inputs.mean():.2f} in the mean (highest: {named})."
    ]


def _pairs_of_seeds(null: pd.DataFrame) -> str:
    counts = [int(count) for count in null.groupby("method").size()]
    few, most = min(counts), max(counts)
    number = f"{few}" if few == most else f"{few} to {most}"
    return f"{number} pair{'s' * (most > 1)} of seeds each"


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
    table = square(pairs, "excess_overlap")
    if "imp" not in table:
        return []
    near = table["imp"].drop("imp").dropna()
    own = frame[frame.seed.isin(pairs.seed)].groupby("method").test_accuracy.mean()
    # fine-tuned weights were trained twice: what they reach is not the mask's
    names = [
        name
        for name in near.index
        if METHODS[name].group in {INITIAL, LEARNT, REWOUND, DURING}
        and math.isfinite(own.get(name, math.nan))
    ]
    others = [name for name in names if name not in RELATIVES]
    informed = [name for name in others if name not in BLIND]
    if len(informed) < _FEWEST:
        return []
    every, apart, chosen = (
        _ranked(near[part], own[part]) for part in (names, others, informed)
    )
    clear = "whether likeness to IMP's mask goes with accuracy is not shown"
    if every[0] > 0 and every[1] < _LEVEL and not (apart[0] > 0 and apart[1] < _LEVEL):
        clear = (
            "those that rank trained weights by size, as IMP does, are near it and "
            "accurate; that likeness to IMP's mask matters beyond them is not shown"
        )
    elif apart[1] < _LEVEL:
        up = "higher" if apart[0] > 0 else "lower"
        clear = f"masks more like IMP's train to {up} accuracy, its relatives apart"
    relatives = ", ".join(name for name in RELATIVES if name in names)
    return [
        f"Over the {len(names)} methods that do not fine-tune, the rank correlation of "
        f"overlap with IMP and test accuracy is {_said(every)}, p by permutation of "
        f"methods; without its relatives ({relatives}) "
        f"it is {_said(apart)}, and without random and erk as well {_said(chosen)}: "
        f"{clear}."
    ]


def _ranked(x: pd.Series, y: pd.Series) -> tuple[float, float]:
    # Spearman's, two-sided, by permutation of methods
    one, other = (stats.zscore(stats.rankdata(values)) for values in (x, y))
    found = stats.permutation_test(
        (one,),
        lambda part, axis: (part * other).mean(axis),
        vectorized=True,
        permutation_type="pairings",
        n_resamples=9999,
        rng=0,
    )
    return float(found.statistic), float(found.pvalue)


def _said(found: tuple[float, float]) -> str:
    rho, p = found
    return f"{rho:+.2f} (p = {p:.2g})"


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
