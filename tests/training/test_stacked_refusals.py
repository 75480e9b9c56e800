"""What a stack would lose or confuse: it is refused, and ``auto`` trains it alone."""

import functools
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_pre_hook

from dynprune.core import InvalidInputError, generator
from dynprune.system import GradientSystem
from dynprune.training import Recipe, train_many

optim = torch.optim
Data = tuple[Tensor, Tensor]


@pytest.fixture
def starts(linear: GradientSystem) -> list[GradientSystem]:
    """Return two starts of one system."""
    draw = torch.randn(2, 3, generator=generator(3), dtype=torch.float64)
    return [linear.with_state(row) for row in draw]


def alone_is_right(starts: list[GradientSystem], recipe: Recipe, message: str) -> None:
    """Check that a stack is refused and that auto gives the runs one by one."""
    with pytest.raises(InvalidInputError, match=message):
        train_many(starts, recipe, how="stacked")
    found = train_many(starts, recipe, jobs=1)
    assert found.how == "serial"
    for mine, system in zip(found, starts, strict=True):
        assert torch.equal(mine.state, recipe(system).state)


# -- what the optimiser's factory attached ---------------------------------------------


def clipped_step(params: list[Tensor]) -> optim.Optimizer:
    made = optim.SGD(params, lr=0.1)
    plain = made.step

    def step(self: optim.Optimizer, closure: Any = None) -> Any:
        nn.utils.clip_grad_norm_(params, 0.01)
        return plain(closure)

    made.step = types.MethodType(step, made)  # type: ignore[method-assign]
    return made


def wrapped_step(params: list[Tensor]) -> optim.Optimizer:
    made = optim.SGD(params, lr=0.1)
    inner = optim.SGD.step

    @functools.wraps(inner)
    def step(self: optim.SGD, closure: Any = None) -> Any:
        nn.utils.clip_grad_norm_(params, 0.01)
        return inner(self, closure)

    made.step = types.MethodType(step, made)  # type: ignore[method-assign]
    return made


def hooked_gradient(params: list[Tensor]) -> optim.Optimizer:
    for part in params:
        part.register_hook(lambda slope: slope / slope.norm())
    return optim.SGD(params, lr=0.1)


def hooked_accumulator(params: list[Tensor]) -> optim.Optimizer:
    def halve(part: Tensor) -> None:
        assert part.grad is not None
        part.grad.mul_(0.5)

    for part in params:
        part.register_post_accumulate_grad_hook(halve)
    return optim.SGD(params, lr=0.1)


def warm_momentum(params: list[Tensor]) -> optim.Optimizer:
    made = optim.SGD(params, lr=0.1, momentum=0.9)
    for part in params:
        made.state[part]["momentum_buffer"] = torch.ones_like(part)
    return made


def warm_adagrad(params: list[Tensor]) -> optim.Optimizer:
    made = optim.Adagrad(params, lr=0.1, initial_accumulator_value=0.5)
    made.state[params[0]]["sum"].fill_(2.0)
    return made


def stepped_adagrad(params: list[Tensor]) -> optim.Optimizer:
    made = optim.Adagrad(params, lr=0.1, lr_decay=1.0)
    made.state[params[0]]["step"].fill_(7.0)
    return made


@pytest.mark.parametrize("schedule", [None, lambda o: lr_scheduler.StepLR(o, 2)])
@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (clipped_step, "whose step is its own"),
        (wrapped_step, "whose step is its own"),
        (hooked_gradient, "hooks on 1 of its tensors"),
        (hooked_accumulator, "hooks on 1 of its tensors"),
        (warm_momentum, "state before the first step"),
        (warm_adagrad, "state before the first step"),
        (stepped_adagrad, "state before the first step"),
    ],
)
def test_what_a_factory_attached_is_not_dropped(
    starts: list[GradientSystem],
    factory: Callable[[list[Tensor]], optim.Optimizer],
    message: str,
    schedule: Any,
) -> None:
    recipe = Recipe(factory, steps=5, batch_size=8, schedule=schedule)
    alone_is_right(starts, recipe, message)


def test_a_hook_on_all_optimisers_is_refused(starts: list[GradientSystem]) -> None:
    hook = register_optimizer_step_pre_hook(lambda *_: None)
    try:
        with pytest.raises(InvalidInputError, match="1 step hooks"):
            train_many(
                starts, Recipe(lambda p: optim.SGD(p, lr=0.1), steps=1), how="stacked"
            )
    finally:
        hook.remove()
