"""The measured lossless density of IMP."""

import math
from dataclasses import dataclass
from typing import final

from dynprune.study._findings import Findings
from dynprune.study._statistics import paired_interval
from dynprune.study.claims._draft import column, mean_over

LOSS_ALLOWED = 0.5


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Lossless:
    """Say down to which density IMP loses nothing.

    Args:
        density: Where the lower end of the paired 95 % interval of IMP minus dense
            crosses -0.5 points, linear in ln density between two levels.
        below: The highest level that is not lossless; 0 if all levels are lossless.
        above: The lowest level at which, and above which, nothing is lost.
        censored: Whether all levels are lossless, so that the true one lies below.
        why: Why there is none; empty if there is one.
    """

    density: float
    below: float
    above: float
    censored: bool
    why: str = ""


def lossless_density(findings: Findings) -> Lossless:
    """Measure the lossless density of IMP.

    A level is lossless if the lower end of the paired 95 % interval, over seeds, of
    its accuracy minus the dense network's is above -0.5 points. Starting from the
    dense one, the last level before the first that is not lossless counts.

    Args:
        findings: What was measured.

    Returns:
        The density; ``why`` says what is missing where it cannot be measured.

    Example:
        >>> Lossless(density=0.1, below=0.05, above=0.12, censored=False).why
        ''
    """
    above, above_end = 1.0, 0.0
    for density in findings.config.densities[1:]:
        differences = _minus_dense(findings, density)
        if len(differences) < 2:
            return Lossless(
                density=math.nan,
                below=math.nan,
                above=math.nan,
                censored=False,
                why=(
                    f"needs 2 seeds with IMP at density {density:g} and the dense "
                    f"network, found {len(differences)}"
                ),
            )
        _, end, _ = paired_interval(differences)
        if end <= -LOSS_ALLOWED:
            share = (above_end + LOSS_ALLOWED) / (above_end - end)
            crossing = above * (density / above) ** share
            return Lossless(
                density=crossing, below=density, above=above, censored=False
            )
        above, above_end = density, end
    return Lossless(density=above, below=0.0, above=above, censored=True)


def _minus_dense(findings: Findings, density: float) -> list[float]:
    seeds = findings.config.seed_values
    dense = mean_over(column(findings.results, "dense"), (1.0,), seeds)
    sparse = mean_over(column(findings.results, "imp"), (density,), seeds)
    return [
        100.0 * (sparse[seed] - dense[seed])
        for seed in seeds
        if seed in sparse and seed in dense
    ]
