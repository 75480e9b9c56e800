"""Moves a system forward: optimiser loop, recorder, exact resume, evaluation."""

from dynprune.training._evaluate import (
    ProblemLike,
    check_whole,
    evaluate,
)
from dynprune.training._lone import (
    check_lone,
)
from dynprune.training._mover import (
    Mover,
    OptimizerFactory,
    Schedule,
)
from dynprune.training._order import (
    AbstractOrder,
    LoaderOrder,
    ResidentOrder,
)
from dynprune.training._recipe import (
    Recipe,
    Trainer,
    check_trainer,
)
from dynprune.training._recorder import (
    Recorder,
)
from dynprune.training._results import (
    Evaluation,
    Run,
)
from dynprune.training._stacked_many import (
    train_many,
)
from dynprune.training._stacked_results import (
    Runs,
)
from dynprune.training._train import (
    Move,
    train,
)

__all__ = [
    "AbstractOrder",
    "Evaluation",
    "LoaderOrder",
    "Move",
    "Mover",
    "OptimizerFactory",
    "ProblemLike",
    "Recipe",
    "Recorder",
    "ResidentOrder",
    "Run",
    "Runs",
    "Schedule",
    "Trainer",
    "check_lone",
    "check_trainer",
    "check_whole",
    "evaluate",
    "train",
    "train_many",
]
