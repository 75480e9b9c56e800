"""The recipe that goes on at the learning rate at which another one ended."""

import copy
import functools
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from dynprune.core import InvalidInputError
from dynprune.pruning._warn import warn
from dynprune.system import GradientSystem
from dynprune.training import Recipe

_LEAST = 1e-3  # of the largest rate; less moves nothing that the run has not moved


def at_last_rate(recipe: Recipe, system: GradientSystem) -> Recipe:
    """Return a recipe at the hyperparameters of the last step of another one.

    The schedule is played to the last step on an optimiser of its own; learning rate,
    momentum and whatever else it moves are taken over, and there is no schedule.

    Args:
        recipe: Of T steps.
        system: Whose parameters are tried, not changed.

    Returns:
        The same recipe without a schedule.

    Raises:
        InvalidInputError: If the last learning rate is zero.

    Warns:
        NumericalWarning: If that of every group is below a thousandth of its largest.
    """
    found = replace(
        recipe, optimizer=functools.partial(_at_last_rate, recipe), schedule=None
    )
    named = system.unflatten(system.state)
    tried = found.optimizer([part.clone().requires_grad_() for part in named.values()])
    rates = [float(group["lr"]) for group in tried.param_groups if "lr" in group]
    if rates and not any(rates):
        raise InvalidInputError(
            f"The learning rate of step {recipe.steps - 1}, the last one, is 0: fine-"
            "tuning would do nothing. Pass fine_tune=Recipe(...) with one that moves."
        )
    most = _largest_rates(recipe, named.values())
    if rates and all(a < _LEAST * b for a, b in zip(rates, most, strict=True)):
        warn(
            f"The learning rate of step {recipe.steps - 1}, the last one, is "
            f"{_said(rates)}, and the largest of the run {_said(most)}: fine-tuning at "
            "it would do next to nothing. Pass fine_tune=Recipe(...) with a rate of "
            "its own, or rewind='learning-rate'."
        )
    return found


def _largest_rates(recipe: Recipe, values: Iterable[Tensor]) -> list[float]:
    played = recipe.optimizer([part.clone().requires_grad_() for part in values])
    groups = [group for group in played.param_groups if "lr" in group]
    if recipe.schedule is None:
        return [float(group["lr"]) for group in groups]
    scheduler = recipe.schedule(played)
    found = [float(group["lr"]) for group in groups]
    for _ in _played(scheduler, recipe.steps - 1):
        found = [max(a, float(g["lr"])) for a, g in zip(found, groups, strict=True)]
    return found


def _said(rates: list[float]) -> str:
    return ", ".join(dict.fromkeys(f"{rate:.3g}" for rate in rates))


def _at_last_rate(recipe: Recipe, parameters: list[Tensor]) -> Optimizer:
    made = recipe.optimizer(parameters)
    if recipe.schedule is None:
        return made
    played = recipe.optimizer(parameters)
    for _ in _played(recipe.schedule(played), recipe.steps - 1):
        pass
    for group, last in zip(made.param_groups, played.param_groups, strict=True):
        group.update({key: copy.copy(last[key]) for key in group if key != "params"})
    return made


def _played(scheduler: LRScheduler, steps: int) -> Iterator[int]:
    for step in range(steps):
        with warnings.catch_warnings():
            # "lr_scheduler.step() before optimizer.step()": no step is made here
            warnings.simplefilter("ignore", UserWarning)
            scheduler.step()
        yield step
