"""Claims of Koopman theory: multipliers, the forecast bound, the forecast itself."""

import math
from collections.abc import Sequence
from typing import Any

from dynprune.core import mean_interval
from dynprune.study._findings import Findings
from dynprune.study.claims._draft import Draft, not_testable, number, superior

THEORY = "Koopman"
LEAST_MODES = 5
GRADIENT_NORM = 1e-8
SLACK = 10.0
FORECAST = "dmd-network"  # the forecast that the bound is for
PUBLISHED = "dmd-node"  # no centring, no truncation, one operator a neuron
_FORECASTS = {
    FORECAST: "network DMD forecast (affine, held-out rank)",
    PUBLISHED: "published node-wise DMD forecast (no constant, no truncation)",
    "dmd-layer": "layer-wise DMD forecast",
}
BASELINES = ("stay", "linear-extrapolation", "window-mean")


def koopman_claims(findings: Findings) -> list[Draft]:
    """Draft the claims of gradient dynamics seen by dynamic mode decomposition.

    Args:
        findings: What was measured.

    Returns:
        Drafts: multipliers, forecast bound, forecast against each baseline, and the
        published forecast against staying put.
    """
    return [
        _multipliers(findings),
        _bound(findings),
        *(_beats(findings, FORECAST, baseline) for baseline in BASELINES),
        _beats(findings, PUBLISHED, "stay"),
    ]


def horizon_of(findings: Findings) -> int:
    """Return the horizon at which forecasts are judged, fixed by the config alone.

    It is the horizon nearest to the window's own length; the shorter one of two.

    Args:
        findings: What was measured.

    Returns:
        Optimiser steps beyond the window.
    """
    start, stop = findings.config.koopman_window
    return min(
        findings.config.koopman_horizons, key=lambda h: (abs(h - (stop - start)), h)
    )


def _multipliers(findings: Findings) -> Draft:
    key = "multipliers"
    claim = (
        "Near a minimum, gradient descent has the multipliers 1 − ηλ: each "
        "mode whose DMD interval and Ritz enclosure are both shorter than the "
        f"distance to the next mode, at least {LEAST_MODES} a seed, has it inside both."
    )
    ran = {
        seed: facts
        for seed, facts in sorted(findings.multipliers.items())
        if _reached(facts)
    }
    if not ran:
        notes = {str(facts.get("note", "")) for facts in findings.multipliers.values()}
        why = "; ".join(sorted(notes - {""})) or "the experiment was not run"
        return not_testable(key, THEORY, claim, why)
    worst, outside, few, total = [], 0, 0, 0
    for facts in ran.values():
        modes = [mode for mode in facts["modes"] if mode["testable"]]
        outside += sum(not _is_inside(mode) for mode in modes)
        few += len(modes) < LEAST_MODES
        total += len(modes)
        if modes:
            worst.append(max(abs(mode["dmd"] - mode["predicted"]) for mode in modes))
    mean, low, high = mean_interval(worst)
    note = f"{total - outside} of {total} testable modes inside both"
    if few:
        note += f"; {few} of {len(ran)} seeds have fewer than {LEAST_MODES} of them"
    note += "".join(
        f"; seed {seed}: {facts['note']}"
        for seed, facts in ran.items()
        if facts["note"]
    )
    return Draft(
        key=key,
        theory=THEORY,
        claim=claim,
        verdict="failed" if outside or few else "held",
        predicted=0.0,
        measured=mean,
        interval=(low, high),
        seeds=len(ran),
        unit="largest |μ − (1 − ηλ)|",
        note=note,
    )


def _reached(facts: dict[str, Any]) -> bool:
    # with the minimum found, a mode that cannot be tested counts against the claim
    found = number(facts.get("gradient_norm"))
    return found is not None and found < GRADIENT_NORM


def _is_inside(mode: dict[str, Any]) -> bool:
    return all(
        mode[name][0] <= mode["predicted"] <= mode[name][1]
        for name in ("dmd_interval", "predicted_interval")
    )


def _bound(findings: Findings) -> Draft:
    key, horizon = "forecast-bound", horizon_of(findings)
    claim = (
        "The residual bound holds for the network forecast and says something: "
        f"measured ≤ bound ≤ {SLACK:g} × measured for every seed, {horizon} steps "
        "ahead; a larger bound is vacuous."
    )
    pairs = {
        seed: (facts["bound"][i], facts["measured"][i])
        for seed, facts in sorted(findings.forecasts.items())
        for i in _position(facts, horizon)
    }
    if not pairs:
        return not_testable(key, THEORY, claim, "no forecast was made")
    bounds = [_or_infinite(bound) for bound, _ in pairs.values()]
    errors = [_or_infinite(error) for _, error in pairs.values()]
    broken = [
        seed
        for seed, b, e in zip(pairs, bounds, errors, strict=True)
        if e > b or math.isinf(e)
    ]
    loose = [
        seed for seed, b, e in zip(pairs, bounds, errors, strict=True) if b > SLACK * e
    ]
    finite = [error for error in errors if math.isfinite(error)]
    mean, low, high = mean_interval(finite)
    return Draft(
        key=key,
        theory=THEORY,
        claim=claim,
        verdict="failed" if broken else "vacuous" if loose else "held",
        predicted=math.fsum(bounds) / len(bounds),
        measured=mean,
        interval=(low, high),
        seeds=len(pairs),
        unit="parameter (2-norm)",
        note=(
            f"measured above the bound in {len(broken)}, bound above "
            f"{SLACK:g} x measured in {len(loose)} of {len(pairs)} seeds"
        ),
    )


def _beats(findings: Findings, forecast: str, baseline: str) -> Draft:
    horizon, words = horizon_of(findings), baseline.replace("-", " ")
    key = f"{'forecast' if forecast == FORECAST else forecast}-beats-{baseline}"
    claim = (
        f"The {_FORECASTS[forecast]} is nearer to the weights {horizon} steps ahead "
        f"than {words}: interval of the log error ratio ({words} / DMD), paired by "
        "seed, above 0."
    )
    ratios = _log_ratios(findings, forecast, baseline, horizon)
    diverged = sum(math.isinf(ratio) for ratio in ratios)
    if diverged:
        return Draft(
            key=key,
            theory=THEORY,
            claim=claim,
            verdict="failed",
            seeds=len(ratios),
            unit="log ratio",
            note=f"the forecast left the finite numbers in {diverged} seeds",
        )
    note = "error / baseline's: " + ", ".join(
        f"{name} {_times(_log_ratios(findings, name, baseline, horizon))}"
        for name in _FORECASTS
    )
    return superior(key, THEORY, claim, ratios, unit="log ratio", note=note)


def _log_ratios(
    findings: Findings, name: str, baseline: str, horizon: int
) -> list[float]:
    # ln(baseline's error / forecast's error), one a seed; -inf if it diverged
    found = []
    for _, facts in sorted(findings.forecasts.items()):
        for i in _position(facts, horizon):
            ours, other = _error(facts, name, i), _error(facts, baseline, i)
            if other is not None:
                found.append(-math.inf if ours is None else math.log(other / ours))
    return found


def _times(ratios: Sequence[float]) -> str:
    if not ratios or any(math.isinf(ratio) for ratio in ratios):
        return "infinite"
    return f"{math.exp(-math.fsum(ratios) / len(ratios)):.3g} x"


def _error(facts: dict[str, Any], name: str, i: int) -> float | None:
    errors = facts["methods"].get(name, {}).get("parameter_error")
    found = number(errors[i]) if errors else None
    return None if found is None else max(found, 1e-300)


def _position(facts: dict[str, Any], horizon: int) -> list[int]:
    return [i for i, h in enumerate(facts.get("horizons", ())) if h == horizon]


def _or_infinite(value: Any) -> float:
    found = number(value)
    return math.inf if found is None else found
