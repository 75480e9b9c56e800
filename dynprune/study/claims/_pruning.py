"""Claims of the lottery ticket: what IMP's mask and initial weights are worth."""

from collections.abc import Sequence

from dynprune.study._findings import Findings
from dynprune.study.claims._draft import (
    Draft,
    column,
    low_densities,
    mean_over,
    not_testable,
    percent,
    superior,
)

THEORY = "lottery ticket"
_RIVALS = (
    ("imp-shuffled", "imp-mask", "its own layer-wise shuffle"),
    ("imp-reinitialised", "imp-weights", "its own mask on re-initialised weights"),
)


def pruning_claims(findings: Findings) -> list[Draft]:
    """Draft the claims about IMP.

    Args:
        findings: What was measured.

    Returns:
        Drafts: IMP beats its shuffle, IMP beats its re-initialisation.
    """
    densities = low_densities(findings.config)
    drafts = []
    for rival, key, words in _RIVALS:
        claim = (
            f"IMP beats {words} in test accuracy, averaged over the densities "
            f"{percent(densities)}: interval above 0 points."
        )
        if rival not in set(findings.results["method"]):
            drafts.append(not_testable(key, THEORY, claim, f"no rows of {rival!r}"))
            continue
        values = list(points(findings, "imp", rival, densities).values())
        drafts.append(superior(key, THEORY, claim, values, unit="points"))
    return drafts


def points(
    findings: Findings, first: str, second: str, densities: Sequence[float]
) -> dict[int, float]:
    """Return paired differences of test accuracy, averaged over densities.

    Args:
        findings: What was measured.
        first: A method.
        second: The method that is subtracted.
        densities: Which densities.

    Returns:
        Seed to difference in points (1 point = .01); seeds with both only.
    """
    seeds = findings.config.seed_values
    a = mean_over(column(findings.results, first), densities, seeds)
    b = mean_over(column(findings.results, second), densities, seeds)
    return {
        seed: 100.0 * (a[seed] - b[seed]) for seed in seeds if seed in a and seed in b
    }
