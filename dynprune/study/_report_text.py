"""What was found, in a few plain sentences that are computed from the numbers."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from dynprune.study._findings import VERDICTS, Findings, LedgerLine
from dynprune.study.claims._koopman import FORECAST, horizon_of
from dynprune.study.claims._lossless import lossless_density
from dynprune.study.figures._captions import short_list
from dynprune.study.figures._frames_pruning import accuracy_frame, cost_in_gradients
from dynprune.study.figures._frames_theory import forecast_frame
from dynprune.study.figures._seed_intervals import interval
from dynprune.study.figures._strokes import FORECAST_STROKES, label_of

ONE_SHOT = ("manifold", "snip", "grasp", "synflow", "magnitude-init")
BASELINES = ("stay", "linear-extrapolation", "window-mean")
SPARSE = 0.1


def what_was_found(findings: Findings, lines: Sequence[LedgerLine]) -> list[str]:
    """Say in plain sentences what a study found.

    Args:
        findings: What was measured.
        lines: The ledger.

    Returns:
        Sentences; what was not measured is left out.
    """
    sentences = (
        _dense(findings),
        _lossless(findings),
        _one_shot(findings),
        _price(findings),
        _gap(findings),
        _forecast(findings),
        _flow(findings),
        verdict_counts(lines),
    )
    return [sentence for sentence in sentences if sentence]


def plus_minus(values: Iterable[float], *, scale: float = 1.0, digits: int = 1) -> str:
    """Write a mean with half its 95 % interval.

    Args:
        values: One number a seed.
        scale: Multiplies them, e.g. 100 for percent.
        digits: After the point.

    Returns:
        For example ``"97.3 ± 0.4"``; no half-width for one seed.

    Example:
        >>> plus_minus([0.97, 0.98, 0.99], scale=100)
        '98.0 ± 2.5'
    """
    mean, low, high, seeds = interval(scale * float(value) for value in values)
    if not seeds:
        return "–"
    text = f"{mean:.{digits}f}"
    return text if math.isnan(low) else f"{text} ± {(high - low) / 2:.{digits}f}"


def verdict_counts(lines: Sequence[LedgerLine]) -> str:
    """Count the verdicts of a ledger.

    Args:
        lines: The ledger.

    Returns:
        One sentence.

    Example:
        >>> verdict_counts([])
        'No claim was put to the test.'
    """
    if not lines:
        return "No claim was put to the test."
    counted = Counter(line.verdict for line in lines)
    parts = [f"{counted[word]} {word}" for word in VERDICTS if counted[word]]
    claims = "claim was" if len(lines) == 1 else "claims were"
    return f"{len(lines)} {claims} compared with the measurements: {short_list(parts)}."


def sparse_density(findings: Findings) -> float:
    """Choose the density at which the summary compares methods: nearest to 10 %.

    Args:
        findings: What was measured.

    Returns:
        One of the config's compared densities.
    """
    return min(
        findings.config.compared, key=lambda d: abs(math.log(d) - math.log(SPARSE))
    )


def percent(density: float) -> str:
    """Write a density.

    Args:
        density: In (0, 1].

    Returns:
        In percent.

    Example:
        >>> percent(0.0347)
        '3.47 %'
    """
    return f"{100 * density:.3g} %"


def _accuracies(findings: Findings, method: str, density: float) -> list[float]:
    rows = findings.results
    chosen = (rows["method"] == method) & (rows["density"] == density)
    return [float(value) for value in rows.loc[chosen, "accuracy"].dropna()]


def _dense(findings: Findings) -> str:
    values = _accuracies(findings, "dense", 1.0)
    if not values:
        return ""
    spread = " (95 % interval over seeds)" if len(values) > 1 else " (one seed)"
    return (
        f"The dense network reaches {plus_minus(values, scale=100)} % test accuracy"
        f"{spread}."
    )


def _lossless(findings: Findings) -> str:
    found = lossless_density(findings)
    if found.why:
        return f"The lossless density of IMP cannot be given: it {found.why}."
    rule = "(lower end of the paired 95 % interval above −0.5 points)"
    if found.censored:
        return (
            "Iterative magnitude pruning (IMP) loses nothing down to the lowest "
            f"density tried, {percent(found.density)} {rule}."
        )
    if found.above == 1.0:
        return (
            "Iterative magnitude pruning (IMP) is not lossless even at its first "
            f"level, {percent(found.below)} of the weights {rule}."
        )
    return (
        f"Iterative magnitude pruning (IMP) is lossless down to {percent(found.above)} "
        f"of the weights and no longer at {percent(found.below)} {rule}."
    )


def _one_shot(findings: Findings) -> str:
    density = sparse_density(findings)
    frame = accuracy_frame(findings)
    there = frame[(frame["density"] == density) & frame["method"].isin(ONE_SHOT)]
    if not len(there):
        return ""
    ranked = there.sort_values("accuracy", ascending=False, kind="stable")
    best = str(ranked["method"].iloc[0])
    text = (
        f"At {percent(density)} of the weights the best pruner without a full "
        f"training before it is {label_of(best)}, with "
        f"{plus_minus(_accuracies(findings, best, density), scale=100)} %"
    )
    rivals = [
        f"{label_of(name)} {plus_minus(values, scale=100)} %"
        for name in ("imp", "manifold", "magnitude-trained", "random")
        if name != best and (values := _accuracies(findings, name, density))
    ]
    return text + (f"; {short_list(rivals)}." if rivals else ".")


def _price(findings: Findings) -> str:
    density = sparse_density(findings)
    rows = findings.results.assign(cost=cost_in_gradients(findings.results))
    at = rows[rows["density"] == density].groupby("method")["cost"].mean()
    if "imp" not in at or "manifold" not in at or not at["imp"] > 0.0:
        return ""
    return (
        f"The trained one-shot manifold ticket at that density costs "
        f"{at['manifold']:.3g} gradient equivalents in all, "
        f"{at['manifold'] / at['imp']:.2g} times IMP's {at['imp']:.3g}."
    )


def _gap(findings: Findings) -> str:
    analyses = [facts for _, facts in sorted(findings.analyses.items())]
    if not analyses:
        return ""
    resolved = sum(bool(facts.get("resolved")) for facts in analyses)
    counts = Counter(
        int(facts["n_fast"]) for facts in analyses if facts.get("n_fast") is not None
    )
    kinds = [
        f"{k} in {n} seed{'' if n == 1 else 's'}" for k, n in sorted(counts.items())
    ]
    chosen = f" Fast modes above it: {short_list(kinds)}." if kinds else ""
    return (
        f"After {findings.config.transient} steps the Hessian's chosen spectral gap is "
        f"resolved in {resolved} of {len(analyses)} seeds.{chosen}"
    )


def _forecast(findings: Findings) -> str:
    frame = forecast_frame(findings)
    horizon = horizon_of(findings)
    there = frame[(frame["quantity"] == "error2growth") & (frame["horizon"] == horizon)]
    errors = dict(zip(there["series"], there["value"], strict=True))
    ours = {name: error for name, error in errors.items() if name not in BASELINES}
    rivals = {name: error for name, error in errors.items() if name in BASELINES}
    if not ours or not rivals:
        return ""
    name = FORECAST if FORECAST in ours else next(iter(ours))
    best = min(ours, key=lambda key: ours[key])
    rival = min(rivals, key=lambda key: rivals[key])
    text = (
        f"Weights {horizon} steps ahead: the {_series(name)} forecast is off by "
        f"{ours[name]:.3g} times the distance travelled (1 is staying put)"
    )
    if best != name:
        text += f", the best Koopman forecast, {_series(best)}, by {ours[best]:.3g}"
    return f"{text}, the best baseline, {_series(rival)}, by {rivals[rival]:.3g}."


def _series(name: str) -> str:
    stroke = FORECAST_STROKES.get(name)
    return name if stroke is None else stroke.label


def _flow(findings: Findings) -> str:
    flow = findings.flow
    if flow is None or flow.seeds < 2:  # no standard errors, no classes
        return ""
    counted = Counter(flow.classes)
    words = ("relevant", "irrelevant", "marginal", "not testable")
    parts = [f"{counted[word]} {word}" for word in words if counted[word]]
    text = (
        "Read as a renormalization-group flow, IMP makes of the network's "
        f"{len(flow.groups)} layers {short_list(parts)}"
    )
    excess = flow.excess_classes
    if excess is not None:
        beyond = sum(word in {"relevant", "irrelevant"} for word in excess)
        text += (
            f"; the exponents of {beyond} differ from those of pruning without "
            "retraining by more than two standard errors"
        )
    return text + "."
