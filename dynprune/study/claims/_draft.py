"""A claim with its test, before the correction for the number of tests."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from dynprune.core import mean_interval
from dynprune.study._config import Config
from dynprune.study._findings import LedgerLine
from dynprune.study._statistics import holm, paired_p

if TYPE_CHECKING:
    import pandas as pd

LEVEL = 0.05
LOW_DENSITY = 0.2
NAN = float("nan")
NO_INTERVAL = (NAN, NAN)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """State a claim and its verdict before Holm's correction.

    Args:
        key: Short name.
        theory: Whose claim it is.
        claim: The claim with its tolerance.
        verdict: If the correction changes nothing.
        predicted: What the theory says.
        measured: What was measured.
        interval: Its 95 % interval.
        p_value: Of the test, or NaN.
        unproven: Verdict where the corrected p-value exceeds .05; empty if the
            verdict does not rest on a rejection.
        seeds: Number of seeds.
        unit: Of predicted and measured.
        note: How the verdict came about.
    """

    key: str
    theory: str
    claim: str
    verdict: str
    predicted: float = NAN
    measured: float = NAN
    interval: tuple[float, float] = NO_INTERVAL
    p_value: float = NAN
    unproven: str = ""
    seeds: int = 0
    unit: str = ""
    note: str = ""


def decide(drafts: Sequence[Draft]) -> tuple[LedgerLine, ...]:
    """Correct all p-values together and settle the verdicts.

    Args:
        drafts: The claims of all theories.

    Returns:
        One ledger line each, in the same order.
    """
    corrected = holm([draft.p_value for draft in drafts])
    tests = sum(not math.isnan(draft.p_value) for draft in drafts)
    lines = []
    for draft, p_holm in zip(drafts, corrected, strict=True):
        verdict, note = draft.verdict, draft.note
        if draft.unproven and p_holm > LEVEL:
            verdict = draft.unproven
            note = _join(
                note,
                f"in favour before, not after, Holm's correction over {tests} tests",
            )
        lines.append(
            LedgerLine(
                key=draft.key,
                theory=draft.theory,
                claim=draft.claim,
                predicted=draft.predicted,
                measured=draft.measured,
                interval=draft.interval,
                p_value=draft.p_value,
                p_holm=p_holm,
                verdict=verdict,
                seeds=draft.seeds,
                unit=draft.unit,
                note=note,
            )
        )
    return tuple(lines)


def not_testable(key: str, theory: str, claim: str, why: str, seeds: int = 0) -> Draft:
    """Draft a claim that the study says nothing about.

    Args:
        key: Short name.
        theory: Whose claim.
        claim: The claim.
        why: What is missing.
        seeds: Seeds there were.

    Returns:
        The draft.
    """
    return Draft(
        key=key,
        theory=theory,
        claim=claim,
        verdict="not testable",
        seeds=seeds,
        note=why,
    )


def superior(
    key: str,
    theory: str,
    claim: str,
    values: Sequence[float],
    *,
    threshold: float = 0.0,
    unit: str = "",
    predicted: float = NAN,
    note: str = "",
) -> Draft:
    """Draft "the mean over seeds exceeds a threshold".

    Held if the 95 % interval lies above the threshold and the one-sided paired
    t-test survives Holm's correction; *not refuted* if only the correction stands
    against it; *failed* if the interval does not lie above.

    Args:
        key: Short name.
        theory: Whose claim.
        claim: The claim.
        values: One finite number a seed.
        threshold: What the mean has to exceed.
        unit: Of the values.
        predicted: What the theory says, or NaN.
        note: What else to say.

    Returns:
        The draft; not testable with fewer than two seeds.
    """
    if len(values) < 2:
        why = f"needs 2 seeds with both measurements, found {len(values)}"
        return not_testable(key, theory, claim, why, len(values))
    mean, low, high = mean_interval(values)
    held = low > threshold
    if high < threshold:
        note = _join(f"the interval lies wholly below {threshold:g}", note)
    elif not held:
        note = _join(f"the interval covers {threshold:g}", note)
    return Draft(
        key=key,
        theory=theory,
        claim=claim,
        verdict="held" if held else "failed",
        unproven="not refuted" if held else "",
        predicted=predicted,
        measured=mean,
        interval=(low, high),
        p_value=paired_p(values, null=threshold, alternative="greater"),
        seeds=len(values),
        unit=unit,
        note=note,
    )


def low_densities(config: Config) -> tuple[float, ...]:
    """Return the compared densities up to .2, or the lowest one.

    Fixed before any result: claims about sparse networks are averaged over these.

    Args:
        config: The config.

    Returns:
        Densities.
    """
    low = tuple(density for density in config.compared if density <= LOW_DENSITY)
    return low or (min(config.compared),)


def column(
    results: "pd.DataFrame", method: str, name: str = "accuracy"
) -> dict[tuple[float, int], float]:
    """Return one measured column of a method.

    Args:
        results: The study's rows.
        method: The method.
        name: The column.

    Returns:
        (density, seed) to number; missing ones are left out.
    """
    rows = results[results["method"] == method]
    found = zip(rows["density"], rows["seed"], rows[name], strict=True)
    return {
        (round(float(density), 9), int(seed)): float(value)
        for density, seed, value in found
        if number(value) is not None
    }


def mean_over(
    values: Mapping[tuple[float, int], float],
    densities: Sequence[float],
    seeds: Iterable[int],
) -> dict[int, float]:
    """Average over densities, seed by seed.

    Args:
        values: (density, seed) to number.
        densities: Which densities.
        seeds: Which seeds.

    Returns:
        Seed to mean; seeds that lack one of the densities are left out.
    """
    found = {}
    for seed in seeds:
        row = [values.get((round(density, 9), seed)) for density in densities]
        there = [value for value in row if value is not None]
        if len(there) == len(densities):
            found[seed] = math.fsum(there) / len(there)
    return found


def number(value: Any) -> float | None:
    """Read a fact that may be missing.

    Args:
        value: A number, None or NaN.

    Returns:
        The number, or None where it is missing or not finite.
    """
    if value is None:
        return None
    found = float(value)
    return found if math.isfinite(found) else None


def percent(densities: Sequence[float]) -> str:
    """Write densities as percentages.

    Args:
        densities: In (0, 1].

    Returns:
        For example ``"20 %, 5 %"``.
    """
    return ", ".join(f"{100 * density:.3g} %" for density in densities)


def _join(first: str, second: str) -> str:
    return "; ".join(part for part in (first, second) if part)
