"""Claims of inertial-manifold theory: gap conditions, densities, one-shot ticket."""

import math
from collections.abc import Sequence
from typing import Any

from dynprune.core import mean_interval
from dynprune.study._findings import Findings
from dynprune.study._statistics import paired_p, ratio_interval
from dynprune.study.claims._draft import (
    Draft,
    column,
    low_densities,
    mean_over,
    not_testable,
    number,
    percent,
    superior,
)
from dynprune.study.claims._lossless import Lossless, lossless_density
from dynprune.study.claims._pruning import points

THEORY = "inertial manifold"
SPANS = ("10", "100", "all")
MARGIN = 1.0
HVP_GRADIENTS = 2.0
FORWARD_GRADIENTS = 1.0 / 3.0
COST_SHARE = 0.5
GAP_SHARE = 0.5
_CONDITIONS = {
    "C1": "gap > 2 Lip of the Hessian's change (inertial manifold)",
    "C3": "cones stay invariant: smallest sharp > largest flat curvature",
    "C4": "gap of |1 − ηλ| > 2 η Lip (gradient descent)",
}
_READINGS = {
    "slaving": "d_slave = 1 - k/P",
    "freezing": "d_freeze = k/P",
    "participation": "d_PR = participation ratio of the leverages / P",
}


def manifold_claims(findings: Findings) -> list[Draft]:
    """Draft the claims about the spectral gap and what follows from it.

    Args:
        findings: What was measured.

    Returns:
        Drafts: resolved gap, C1, C3 and C4, frozen directions, three densities, the
        one-shot ticket.
    """
    found = lossless_density(findings)
    return [
        _resolved(findings),
        *(_condition(findings, name, span) for name in ("C1", "C3") for span in SPANS),
        *(_condition(findings, "C4", span) for span in _spans(findings, "C4")),
        _frozen(findings),
        *(_density(findings, reading, found) for reading in _READINGS),
        *_one_shot(findings),
    ]


def _resolved(findings: Findings) -> Draft:
    key = "gap-resolved"
    claim = (
        "After the transient the Hessian has a spectral gap that decides k: in every "
        "seed the enclosures on its sides are disjoint and no eigenvalue is missing."
    )
    analyses = [facts for _, facts in sorted(findings.analyses.items())]
    if not analyses:
        return not_testable(key, THEORY, claim, "no manifold analysis was made")
    count = sum(bool(facts["resolved"]) for facts in analyses)
    gaps = [
        gap for facts in analyses if (gap := number(facts["relative_gap"])) is not None
    ]
    mean, low, high = mean_interval(gaps)
    return Draft(
        key=key,
        theory=THEORY,
        claim=claim,
        verdict="held" if count == len(analyses) else "failed",
        measured=mean,
        interval=(low, high),
        seeds=len(analyses),
        unit="relative gap",
        note=f"resolved in {count} of {len(analyses)} seeds",
    )


def _condition(findings: Findings, name: str, span: str) -> Draft:
    key = f"{name}-{span}"
    steps = "in all remaining steps" if span == "all" else f"in the next {span} steps"
    claim = f"{name}, {_CONDITIONS[name]}, at the radius travelled {steps}: margin > 0."
    found = [
        condition
        for _, facts in sorted(findings.analyses.items())
        for condition in facts.get("conditions", ())
        if condition["name"] == name and str(condition["span"]) == span
    ]
    if not found:
        return not_testable(key, THEORY, claim, "the condition was not measured")
    verdicts = [condition["verdict"] for condition in found]
    margins = [m for c in found if (m := number(c["margin"])) is not None]
    mean, low, high = mean_interval(margins)
    for verdict in ("failed", "not testable", "not applicable"):
        if verdict in verdicts:
            break
    else:
        verdict = "not refuted"
    return Draft(
        key=key,
        theory=THEORY,
        claim=claim,
        verdict=verdict,
        measured=mean,
        interval=(low, high),
        seeds=len(found),
        unit="margin, loss per parameter squared" if name != "C4" else "margin",
        note=_tally(verdicts) + "; sampled, so it can be refuted but not proved",
    )


def _frozen(findings: Findings) -> Draft:
    key = "sharp-directions-move"
    claim = (
        "The sharp directions carry more of the remaining travel than as many random "
        "ones: interval of log10 of (share of the squared travel / k/P) above 0."
    )
    values = []
    for _, facts in sorted(findings.analyses.items()):
        flat = number(facts["frozen_share"])
        freezing = number(_suggestion(facts, "freezing"))
        if flat is None or freezing is None or freezing <= 0.0:
            continue
        sharp = max(1.0 - flat * flat, 1e-12)
        values.append(math.log10(sharp / freezing))
    return superior(key, THEORY, claim, values, unit="log10 ratio")


def _density(findings: Findings, reading: str, found: Lossless) -> Draft:
    key = f"density-{reading}"
    claim = (
        f"{_READINGS[reading]} suggests the measured lossless density: lossless ≤ "
        "suggestion ≤ 2 × lossless; above that, or if it prunes less than half of "
        "what can go, it is vacuous. Lossless is the smallest density at which, and "
        "above which, the lower end of the paired 95 % interval of IMP minus dense is "
        "above -0.5 points, interpolated between levels."
    )
    values = [
        value
        for _, facts in sorted(findings.analyses.items())
        if (value := number(_suggestion(facts, reading))) is not None
    ]
    if not values:
        return not_testable(key, THEORY, claim, "no seed has such a suggestion")
    if found.why:
        return not_testable(key, THEORY, claim, found.why, len(values))
    suggestion = math.fsum(values) / len(values)
    return Draft(
        key=key,
        theory=THEORY,
        claim=claim,
        verdict=_compare(suggestion, found),
        predicted=suggestion,
        measured=found.density,
        interval=(found.below, found.above),
        seeds=len(values),
        unit="density",
        note=(
            f"suggestions {min(values):.3g} to {max(values):.3g}; lossless down to "
            f"{found.density:.3g}"
            + (", the lowest level of IMP" if found.censored else "")
        ),
    )


def _compare(suggestion: float, found: Lossless) -> str:
    if suggestion > min(2.0 * found.density, 0.5 * (1.0 + found.density)):
        return "vacuous"
    if found.censored:
        return "not testable"  # lossless may lie anywhere below the lowest level
    return "held" if suggestion >= found.density else "failed"


def _one_shot(findings: Findings) -> list[Draft]:
    densities = low_densities(findings.config)
    where = f"averaged over the densities {percent(densities)}"
    return [
        _own_shuffle(findings, densities, where),
        _share(findings, densities, where),
        _within(findings, densities, where),
        _cost(findings, densities, where),
    ]


def _own_shuffle(findings: Findings, densities: Sequence[float], where: str) -> Draft:
    claim = (
        "The one-shot ticket beats its own layer-wise shuffle in test accuracy, "
        f"{where}: interval above 0 points."
    )
    values = list(points(findings, "manifold", "manifold-shuffled", densities).values())
    return superior("one-shot-mask", THEORY, claim, values, unit="points")


def _share(findings: Findings, densities: Sequence[float], where: str) -> Draft:
    key = "one-shot-share"
    claim = (
        "The one-shot ticket closes more than half of the way from its layer-wise "
        f"shuffle to IMP in test accuracy, {where}: Fieller interval above "
        f"{GAP_SHARE:g}."
    )
    closed = points(findings, "manifold", "manifold-shuffled", densities)
    whole = points(findings, "imp", "manifold-shuffled", densities)
    seeds = sorted(closed.keys() & whole.keys())
    if len(seeds) < 2:
        why = f"needs 2 seeds with all three methods, found {len(seeds)}"
        return not_testable(key, THEORY, claim, why, len(seeds))
    x, y = [closed[seed] for seed in seeds], [whole[seed] for seed in seeds]
    ratio, low, high = ratio_interval(x, y)
    _, distance, _ = mean_interval(y)
    if distance <= 0.0 or math.isnan(low):
        why = "IMP is not shown to beat the shuffled copy, so there is no way to close"
        return not_testable(key, THEORY, claim, why, len(seeds))
    held = low > GAP_SHARE
    beyond = [a - GAP_SHARE * b for a, b in zip(x, y, strict=True)]
    return Draft(
        key=key,
        theory=THEORY,
        claim=claim,
        verdict="held" if held else "failed",
        unproven="not refuted" if held else "",
        predicted=1.0,
        measured=ratio,
        interval=(low, high),
        p_value=paired_p(beyond, alternative="greater"),
        seeds=len(seeds),
        unit="share",
        note=f"of {math.fsum(y) / len(y):.3g} points between the shuffle and IMP",
    )


def _within(findings: Findings, densities: Sequence[float], where: str) -> Draft:
    claim = (
        f"The one-shot ticket is within {MARGIN:g} point of IMP in test accuracy, "
        f"{where}: interval of the difference above -{MARGIN:g}."
    )
    values = list(points(findings, "manifold", "imp", densities).values())
    return superior(
        "one-shot-within",
        THEORY,
        claim,
        values,
        threshold=-MARGIN,
        predicted=0.0,
        unit="points",
    )


def _cost(findings: Findings, densities: Sequence[float], where: str) -> Draft:
    key = "one-shot-cost"
    claim = (
        f"The trained one-shot ticket costs less than {COST_SHARE:g} of IMP's, all "
        f"counted, {where}; in gradients, one Hessian product as {HVP_GRADIENTS:g} "
        "and one forward pass as a third of a gradient."
    )
    ours = _costs(findings, "manifold", densities)
    theirs = _costs(findings, "imp", densities)
    seeds = [s for s in sorted(ours["total"]) if theirs["total"].get(s, 0.0) > 0.0]
    if not seeds:
        return not_testable(key, THEORY, claim, "no seed has both costs")
    ratios = [ours["total"][seed] / theirs["total"][seed] for seed in seeds]
    mean, low, high = mean_interval(ratios)
    worst = mean if math.isnan(high) else high
    return Draft(
        key=key,
        theory=THEORY,
        claim=claim,
        verdict="held" if worst < COST_SHARE else "failed",
        measured=mean,
        interval=(low, high),
        seeds=len(seeds),
        unit="share of IMP's cost",
        note=f"one-shot {_counts(ours, seeds)}; IMP {_counts(theirs, seeds)}",
    )


def _costs(
    findings: Findings, method: str, densities: Sequence[float]
) -> dict[str, dict[int, float]]:
    seeds = findings.config.seed_values
    weights = {"gradients": 1.0, "hvps": HVP_GRADIENTS, "forwards": FORWARD_GRADIENTS}
    parts = {
        name: mean_over(column(findings.results, method, name), densities, seeds)
        for name in weights
    }
    total = {
        seed: math.fsum(weights[name] * parts[name].get(seed, 0.0) for name in weights)
        for seed in parts["gradients"]
    }
    return {**parts, "total": total}


def _counts(costs: dict[str, dict[int, float]], seeds: Sequence[int]) -> str:
    mean = {
        name: math.fsum(costs[name].get(seed, 0.0) for seed in seeds) / len(seeds)
        for name in ("gradients", "hvps")
    }
    return f"{mean['gradients']:.4g} gradients and {mean['hvps']:.4g} HVPs"


def _suggestion(facts: dict[str, Any], reading: str) -> Any:
    return (facts.get("densities") or {}).get(reading)


def _spans(findings: Findings, name: str) -> tuple[str, ...]:
    found = {
        str(condition["span"])
        for facts in findings.analyses.values()
        for condition in facts.get("conditions", ())
        if condition["name"] == name
    }
    return tuple(span for span in SPANS if span in found) or ("all",)


def _tally(verdicts: Sequence[str]) -> str:
    kinds = sorted(set(verdicts), key=lambda kind: (-verdicts.count(kind), kind))
    return ", ".join(f"{kind} in {verdicts.count(kind)}" for kind in kinds) + " seeds"
