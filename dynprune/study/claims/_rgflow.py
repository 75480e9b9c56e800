"""Claims of the renormalization-group view of iterative pruning."""

import math
from collections.abc import Sequence

from torch import Tensor

from dynprune import rgflow
from dynprune.core import mean_interval
from dynprune.rgflow import RGFlow
from dynprune.study._findings import Findings
from dynprune.study._statistics import holm, paired_p
from dynprune.study.claims._draft import LEVEL, Draft, not_testable, superior

THEORY = "renormalization group"
LEAST_LEVELS = 3
_CONTROLS = {
    "no-retraining": "pruning the trained weights without retraining",
    "random": "random pruning",
}


def rgflow_claims(findings: Findings) -> list[Draft]:
    """Draft the claims about the flow of magnitude shares over IMP levels.

    Args:
        findings: What was measured.

    Returns:
        Drafts: constant exponents, their prediction, the flow against each control.
    """
    return [
        _constant(findings.flow),
        _prediction(findings.flow),
        *(_differs(findings.flow, control) for control in _CONTROLS),
    ]


def _constant(flow: RGFlow | None) -> Draft:
    key = "exponents-constant"
    claim = (
        "Shares are power laws of the density: for every group the 95 % interval over "
        "seeds of the coefficient of (ln 1/d)² covers 0 (Holm over groups). Vacuous "
        "if the intervals allow drifts as large as the exponents' spread."
    )
    if flow is None:
        return not_testable(key, THEORY, claim, "there is no flow")
    columns = _columns(flow.groups, flow.slopes.quadratic)
    if flow.seeds < 2 or len(columns) < 2:
        why = f"{flow.seeds} seed(s) and {len(columns)} group(s); needs 2 of each"
        return not_testable(key, THEORY, claim, why, flow.seeds)
    intervals = {name: mean_interval(column) for name, column in columns.items()}
    p = dict(zip(columns, holm([paired_p(c) for c in columns.values()]), strict=True))
    curved = [name for name in columns if p[name] <= LEVEL]
    worst = min(columns, key=lambda name: p[name])
    mean, low, high = intervals[worst]
    reach = 2.0 * math.log(float(flow.densities[0]) / float(flow.densities[-1]))
    hidden = reach * max((high - low) / 2.0 for _, low, high in intervals.values())
    slopes = [
        float(value)
        for name, value in zip(flow.groups, flow.exponents, strict=True)
        if name in columns
    ]
    spread = max(slopes) - min(slopes)
    verdict = "failed" if curved else "vacuous" if hidden > spread else "held"
    note = f"shown for {worst}, the group with the smallest p"
    if curved:
        note += f"; not constant: {', '.join(curved)}"
    else:
        note += (
            f"; drifts up to {hidden:.2g} are not excluded, exponents span {spread:.2g}"
        )
    return Draft(
        key=key,
        theory=THEORY,
        claim=claim,
        verdict=verdict,
        predicted=0.0,
        measured=mean,
        interval=(low, high),
        p_value=p[worst],
        seeds=flow.seeds,
        unit="exponent per ln(1/d)",
        note=note,
    )


def _prediction(flow: RGFlow | None) -> Draft:
    key = "exponents-predict"
    claim = (
        "Exponents of the first half of the levels predict the shares at the last one "
        "better than no further change: interval of the log ratio of the errors in "
        "ln share (no change / prediction) above 0."
    )
    if flow is None:
        return not_testable(key, THEORY, claim, "there is no flow")
    levels = len(flow.densities)
    first = max(LEAST_LEVELS, levels // 2)
    if levels <= first:
        why = f"{levels} levels; needs {LEAST_LEVELS + 1}"
        return not_testable(key, THEORY, claim, why, flow.seeds)
    early = rgflow.exponents(flow.shares[:, :first], flow.densities[:first]).exponents
    ahead = float((flow.densities[first - 1] / flow.densities[-1]).log())
    change = (flow.shares[:, -1] / flow.shares[:, first - 1]).log()
    usable = change.isfinite().all(0) & early.isfinite().all(0)
    change, early = change[:, usable], early[:, usable]
    stays = change.norm(dim=1).tolist()
    errors = (change - early * ahead).norm(dim=1).tolist()
    ratios = [
        math.log(stay / error)
        for stay, error in zip(stays, errors, strict=True)
        if stay > 0.0 and error > 0.0
    ]
    return superior(
        key,
        THEORY,
        claim,
        ratios,
        unit="log ratio",
        note=f"levels 0 to {first - 1} predict level {levels - 1}",
    )


def _differs(flow: RGFlow | None, control: str) -> Draft:
    key = f"flow-differs-{control}"
    claim = (
        f"The exponents of IMP differ from those of {_CONTROLS[control]}: p ≤ .05 by "
        "permutation of the labels over all seeds' exponent vectors."
    )
    other = None
    if flow is not None:
        other = (
            flow.random_exponents
            if control == "random"
            else flow.no_retraining_exponents
        )
    if flow is None or other is None:
        return not_testable(key, THEORY, claim, "the control was not computed")
    smallest = 2.0 / math.comb(2 * flow.seeds, flow.seeds)
    ours = flow.seed_exponents
    usable = ours.isfinite().all(0) & other.isfinite().all(0)
    if not bool(usable.any()):
        return not_testable(key, THEORY, claim, "no group has exponents", flow.seeds)
    # With the seeds' own pairs the sign-flip test could reach 2^(1-S) at best, .0625
    # for 5 seeds; exchanging labels over all 2S vectors reaches 2 / C(2S, S), .0079.
    # It is conservative where the two vectors of a seed are positively correlated,
    # as those of one dense network are.
    distance, p = rgflow.differs(ours[:, usable], other[:, usable], paired=False)
    if smallest > LEVEL:
        why = (
            f"the smallest p that {flow.seeds} seeds allow is {smallest:.3g}; distance "
            f"{distance:.3g}, p {p:.3g}"
        )
        return not_testable(key, THEORY, claim, why, flow.seeds)
    different = p <= LEVEL
    return Draft(
        key=key,
        theory=THEORY,
        claim=claim,
        verdict="held" if different else "failed",
        unproven="not refuted" if different else "",
        measured=distance,
        p_value=p,
        seeds=flow.seeds,
        unit="2-norm of the exponents' mean difference",
        note=f"the smallest p that {flow.seeds} seeds allow is {smallest:.2g}",
    )


def _columns(groups: Sequence[str], values: Tensor) -> dict[str, list[float]]:
    finite = values.isfinite().all(0).tolist()
    return {name: values[:, i].tolist() for i, name in enumerate(groups) if finite[i]}
