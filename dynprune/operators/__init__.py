"""Matrix-free symmetric operators: Hessian, masked, shifted, deflated, dense."""

from dynprune.operators._arithmetic import Precision
from dynprune.operators._hessian import HessianOperator
from dynprune.operators._matrix import MatrixOperator
from dynprune.operators._operator import (
    AbstractOperator,
    DeflatedOperator,
    RestrictedOperator,
    ShiftedOperator,
    SumOperator,
)
from dynprune.operators._plan import Plan, Route

__all__ = [
    "AbstractOperator",
    "DeflatedOperator",
    "HessianOperator",
    "MatrixOperator",
    "Plan",
    "Precision",
    "RestrictedOperator",
    "Route",
    "ShiftedOperator",
    "SumOperator",
]
