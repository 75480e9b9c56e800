"""The units of a study: what a worker computes, and from what."""

from dynprune.study.units._door import check_problem
from dynprune.study.units._multipliers import multipliers
from dynprune.study.units._pruning import run_path
from dynprune.study.units._setup import problem_of, seed_of, system_of
from dynprune.study.units._units import compute, units_of

__all__ = [
    "check_problem",
    "compute",
    "multipliers",
    "problem_of",
    "run_path",
    "seed_of",
    "system_of",
    "units_of",
]
