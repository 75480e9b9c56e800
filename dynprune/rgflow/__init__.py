"""Reads IMP rounds as a renormalization-group flow: exponents, fixed points."""

from dynprune.rgflow._controls import Controls, controls
from dynprune.rgflow._exponents import (
    LogSlopes,
    classify,
    eigenvalues,
    exponents,
    fixed_point_distance,
    over_seeds,
)
from dynprune.rgflow._fit import fit, fit_shares
from dynprune.rgflow._observables import Observables, observables
from dynprune.rgflow._permutation import differs
from dynprune.rgflow._results import RGFlow

__all__ = [
    "Controls",
    "LogSlopes",
    "Observables",
    "RGFlow",
    "classify",
    "controls",
    "differs",
    "eigenvalues",
    "exponents",
    "fit",
    "fit_shares",
    "fixed_point_distance",
    "observables",
    "over_seeds",
]
