"""Moves a system forward: optimiser loop, recorder, exact resume, evaluation."""

from dynprune.training._evaluate import evaluate
from dynprune.training._mover import OptimizerFactory, Schedule
from dynprune.training._recipe import Recipe, Trainer
from dynprune.training._recorder import Recorder
from dynprune.training._results import Evaluation, Run
from dynprune.training._stacked_many import train_many
from dynprune.training._stacked_results import Runs
from dynprune.training._train import train

__all__ = [
    "Evaluation",
    "OptimizerFactory",
    "Recipe",
    "Recorder",
    "Run",
    "Runs",
    "Schedule",
    "Trainer",
    "evaluate",
    "train",
    "train_many",
]
