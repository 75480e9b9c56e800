"""The units of a study: what a worker computes, and from what."""

from dynprune.study.units._multipliers import multipliers
from dynprune.study.units._pruning import run_path
from dynprune.study.units._setup import problem_of, seed_of, system_of
from dynprune.study.units._units import compute, units_of

__all__ = [
    "compute",
    "multipliers",
    "problem_of",
    "run_path",
    "seed_of",
    "system_of",
    "units_of",
]
