"""Training as a gradient dynamical system: which weights can go, and how early?

Three nouns cross the rooms: :class:`GradientSystem` (what evolves),
:class:`Trajectory` (what it did) and :class:`Ticket` (a mask and the state that it is
trained from).
"""

from dynprune import (
    core,
    koopman,
    manifold,
    operators,
    pruning,
    rgflow,
    spectral,
    study,
    system,
    tasks,
    tickets,
    training,
    trajectory,
)
from dynprune._version import __version__
from dynprune.core import (
    AssumptionError,
    ConvergenceError,
    Cost,
    DynPruneError,
    DynPruneWarning,
    InvalidInputError,
    NotDeterministicError,
    NumericalWarning,
    Outcome,
    cite,
)
from dynprune.operators import GaussNewtonOperator, HessianOperator
from dynprune.system import GradientSystem
from dynprune.tasks import Problem
from dynprune.tickets import Ticket
from dynprune.training import Recipe, Recorder, Run, evaluate, train
from dynprune.trajectory import Trajectory

__all__ = [
    "AssumptionError",
    "ConvergenceError",
    "Cost",
    "DynPruneError",
    "DynPruneWarning",
    "GaussNewtonOperator",
    "GradientSystem",
    "HessianOperator",
    "InvalidInputError",
    "NotDeterministicError",
    "NumericalWarning",
    "Outcome",
    "Problem",
    "Recipe",
    "Recorder",
    "Run",
    "Ticket",
    "Trajectory",
    "__version__",
    "cite",
    "core",
    "evaluate",
    "koopman",
    "manifold",
    "operators",
    "pruning",
    "rgflow",
    "spectral",
    "study",
    "system",
    "tasks",
    "tickets",
    "train",
    "training",
    "trajectory",
]
