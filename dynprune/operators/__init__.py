"""Matrix-free symmetric operators: Hessian, Gauss-Newton, Fisher, NTK, and composed."""

from dynprune.operators._arithmetic import Precision
from dynprune.operators._fisher import EmpiricalFisherOperator
from dynprune.operators._gauss_newton import GaussNewtonOperator
from dynprune.operators._hessian import HessianOperator
from dynprune.operators._kernels import twice_differentiable
from dynprune.operators._matrix import MatrixOperator
from dynprune.operators._ntk import NTKOperator
from dynprune.operators._operator import (
    AbstractOperator,
    DeflatedOperator,
    RestrictedOperator,
    ShiftedOperator,
    SumOperator,
)
from dynprune.operators._passes import JacobianRoute
from dynprune.operators._plan import Plan, Route
from dynprune.operators._residual import ResidualOperator
from dynprune.operators._selection import select
from dynprune.operators._sharded import ShardedOperator

__all__ = [
    "AbstractOperator",
    "DeflatedOperator",
    "EmpiricalFisherOperator",
    "GaussNewtonOperator",
    "HessianOperator",
    "JacobianRoute",
    "MatrixOperator",
    "NTKOperator",
    "Plan",
    "Precision",
    "ResidualOperator",
    "RestrictedOperator",
    "Route",
    "ShardedOperator",
    "ShiftedOperator",
    "SumOperator",
    "select",
    "twice_differentiable",
]
