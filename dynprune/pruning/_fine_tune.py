"""The recipe that goes on at the learning rate at which another one ended."""

import copy
import functools
import warnings
from dataclasses import replace

from torch import Tensor
from torch.optim import Optimizer

from dynprune.core import InvalidInputError
from dynprune.system import GradientSystem
from dynprune.training import Recipe


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
    return found


def _at_last_rate(recipe: Recipe, parameters: list[Tensor]) -> Optimizer:
    made = recipe.optimizer(parameters)
    if recipe.schedule is None:
        return made
    played = recipe.optimizer(parameters)
    scheduler = recipe.schedule(played)
    with warnings.catch_warnings():
        # "lr_scheduler.step() before optimizer.step()": no step is made here
        warnings.simplefilter("ignore", UserWarning)
        for _ in range(recipe.steps - 1):
            scheduler.step()
    for group, last in zip(made.param_groups, played.param_groups, strict=True):
        group.update({key: copy.copy(last[key]) for key in group if key != "params"})
    return made
