"""What every unit of a study starts from: problem, system, recipe, seeds."""

import functools
import math
from typing import Any

import torch
from torch import Tensor

from dynprune.core import Cost, derive_seed
from dynprune.study._config import Config
from dynprune.system import GradientSystem, is_resident
from dynprune.tasks import Problem, make
from dynprune.tickets import Ticket
from dynprune.training import Recipe, Run, evaluate


@functools.lru_cache(maxsize=2)
def problem_of(config: Config) -> Problem:
    """Make the problem that a config names.

    Args:
        config: The config.

    Returns:
        The problem; the same object on a second call in one process.
    """
    return make(config.task, config.model, data=config.data, loss=config.loss)


def seed_of(config: Config, purpose: str, seed: int, density: float = 1.0) -> int:
    """Hash (task, model, purpose, density, seed) to the seed of one computation.

    Initial weights ("init") and data order ("order") depend on the study's seed
    alone, so that methods are compared in pairs.

    Args:
        config: The config.
        purpose: "init", "order", or a method's name.
        seed: The study's seed.
        density: Of the ticket.

    Returns:
        The derived seed.
    """
    return derive_seed(config.task, config.model, purpose, density, seed)


def system_of(problem: Problem, config: Config, seed: int) -> GradientSystem:
    """Return the dense system of a seed, on the config's device, at initialisation.

    Args:
        problem: The problem.
        config: The config.
        seed: The study's seed.

    Returns:
        The system over the whole training split.
    """
    model = problem.model(seed_of(config, "init", seed)).to(config.device)
    return GradientSystem(
        model,
        problem.loss_fn,
        placed(problem.train, config),
        batch_loss=problem.batch_loss,
        batch_weight=problem.batch_weight,
    )


def hessian_data(system: GradientSystem, config: Config) -> Any:
    """Return the examples that Hessians are taken over, where not all of them.

    Args:
        system: A system over the training split.
        config: The config.

    Returns:
        The first ``hessian_examples`` of resident data; None for the system's own.
    """
    if not config.hessian_examples or not is_resident(system.data):
        return None
    x, y = system.data
    return x[: config.hessian_examples], y[: config.hessian_examples]


def placed(data: Any, config: Config) -> Any:
    """Move resident data to the config's device once.

    Args:
        data: A split of a problem.
        config: The config.

    Returns:
        The split; loaders are left as they are.
    """
    if not is_resident(data):
        return data
    return tuple(part.to(config.device) for part in data)


def recipe_of(config: Config) -> Recipe:
    """Return how the study trains.

    Args:
        config: The config.

    Returns:
        The recipe.
    """
    return Recipe(
        optimizer=functools.partial(_optimizer, config),
        steps=config.steps,
        batch_size=config.batch_size,
    )


def _optimizer(config: Config, parameters: list[Tensor]) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, lr=rate, weight_decay=decay)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    return torch.optim.SGD(
        parameters,
        lr=rate,
        momentum=config.momentum,
        weight_decay=decay,
        fused=parameters[0].device.type in {"cpu", "cuda"},
    )


def train_ticket(
    problem: Problem,
    config: Config,
    system: GradientSystem,
    ticket: Ticket,
    *,
    method: str,
    density: float,
    seed: int,
    start_step: int = 0,
) -> dict[str, Any]:
    """Train a ticket with the study's recipe and measure the result.

    Args:
        problem: The problem.
        config: The config.
        system: The dense system.
        ticket: What to train.
        method: Its method's name.
        density: The density asked for.
        seed: The study's seed.
        start_step: Step of the schedule and data order to start at.

    Returns:
        One row of results.csv.
    """
    masked = system.with_ticket(ticket)
    run: Run = recipe_of(config)(
        masked,
        seed=seed_of(config, "order", seed),
        start_step=start_step,
    )
    return row_of(
        problem,
        config,
        named_state(masked, run.state),
        run.buffers,
        method=method,
        density=density,
        seed=seed,
        cost=ticket.cost + run.cost,
    )


def named_state(system: GradientSystem, vector: Tensor) -> dict[str, Tensor]:
    """Return all parameters of a system's network at a state.

    Frozen parameters are those of the system: a problem's model of another seed may
    have others.

    Args:
        system: The system.
        vector: Its coordinates, shape ``(P,)``.

    Returns:
        Name to tensor; pruned weights are zero.
    """
    own = system.module.named_parameters()
    return {name: part.detach() for name, part in own} | system.unflatten(vector)


def row_of(
    problem: Problem,
    config: Config,
    state: dict[str, Tensor],
    buffers: dict[str, Tensor],
    *,
    method: str,
    density: float,
    seed: int,
    cost: Cost,
) -> dict[str, Any]:
    """Measure trained weights on the validation and test splits.

    Args:
        problem: The problem.
        config: The config.
        state: Named parameters.
        buffers: Named buffers.
        method: How they were pruned.
        density: The density asked for.
        seed: The study's seed.
        cost: What it took to get them.

    Returns:
        One row of results.csv.
    """
    test = evaluate(state, problem, "test", buffers=buffers)
    validation = evaluate(state, problem, "validation", buffers=buffers)
    return {
        "task": config.task,
        "model": config.model or "default",
        "method": method,
        "density": density,
        "seed": seed,
        "accuracy": finite(test.metric),
        "loss": finite(test.loss),
        "validation_accuracy": finite(validation.metric),
        "gradients": cost.gradients,
        "hvps": cost.hvps,
        "forwards": cost.forwards,
        "steps": cost.steps,
    }


def finite(value: float | None) -> float | None:
    """Return a number that JSON can hold, None for NaN and infinities.

    Args:
        value: Any float.

    Returns:
        The float, or None.
    """
    if value is None or not math.isfinite(value):
        return None
    return float(value)
