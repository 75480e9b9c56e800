"""What differentiates does so inside ``torch.no_grad()``, too."""

import pytest
import torch
from torch import nn

import dynprune as dp
from dynprune.core import InvalidInputError
from dynprune.operators import (
    EmpiricalFisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    NTKOperator,
    ResidualOperator,
)
from dynprune.system import GradientSystem
from dynprune.training import Mover, Recipe, train, train_many

RECIPE = Recipe(lambda params: torch.optim.SGD(params, lr=0.1), steps=5, batch_size=8)


@pytest.fixture
def tanh(data):
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    return GradientSystem(net, nn.functional.mse_loss, data)


def lbfgs(params):
    return torch.optim.LBFGS(params, lr=0.1)


def ones(system):
    return torch.ones(system.size, dtype=torch.float64)


def product(kind):
    return lambda system: kind(system) @ ones(system)


def stacks(how):
    def ran(system):
        return train_many([system] * 2, RECIPE, seeds=(0, 1), how=how).runs[1].state

    return ran


def stepped(system):
    mover = Mover(system, RECIPE.optimizer, schedule=None, training=True, step=0)
    mover.step(next(system.batches()))
    return mover.state()


USES = {
    "gradient": GradientSystem.gradient,
    "field": GradientSystem.field,
    "flow": lambda system: system.flow([0.0, 0.1]),
    "probe": lambda system: system.check_deterministic(),
    "hessian": product(HessianOperator),
    "gauss-newton": product(GaussNewtonOperator),
    "fisher": product(EmpiricalFisherOperator),
    "residual": product(ResidualOperator),
    "ntk": lambda system: NTKOperator(system).dense(),
    "train": lambda system: RECIPE(system).state,
    "closure": lambda system: train(system, lbfgs, steps=2).state,
    "mover": stepped,
    "serial": stacks("serial"),
    "stacked": stacks("stacked"),
    "auto": stacks("auto"),
    "imp": lambda system: (
        dp.pruning
        .imp(system, train=RECIPE, densities=[1.0, 0.5], rewind_step=2)
        .tickets[-1]
        .state["0.weight"]
    ),
    "snip": lambda system: dp.pruning.snip(system, density=0.5).masks["0.weight"],
}


# a stopwatch chooses the rounding
RACED = {"hessian", "gauss-newton", "fisher", "residual", "ntk", "auto"}


@pytest.mark.parametrize("use", USES)
def test_it_is_the_same_inside_no_grad(tanh, use):
    wanted = USES[use](tanh.with_state(tanh.state))
    with torch.no_grad():
        found = USES[use](tanh.with_state(tanh.state))
        assert not torch.is_grad_enabled()
    if wanted is not None:
        atol = 1e-12 * float(wanted.double().norm()) if use in RACED else 0.0
        torch.testing.assert_close(found, wanted, rtol=0.0, atol=atol)


def test_a_system_made_inside_no_grad(tanh):
    with torch.no_grad():
        system = GradientSystem(tanh.model, tanh.loss_fn, tanh.data)
        found = system.gradient()
    assert torch.equal(found, tanh.gradient())
    assert bool(found.abs().sum() > 0)
    assert torch.equal(system.gradient(), found)


REFUSED = ["gradient", "field", "flow", "train", "mover", "serial", "stacked", "auto"]


@pytest.mark.parametrize("use", [*REFUSED, "imp"])
def test_inference_mode_is_refused(tanh, use):
    with (
        torch.inference_mode(),
        pytest.raises(InvalidInputError, match=r"inference_mode.*no_grad"),
    ):
        USES[use](tanh)


def test_no_system_is_made_in_inference_mode(tanh):
    with (
        torch.inference_mode(),
        pytest.raises(InvalidInputError, match=r"inference_mode.*no_grad"),
    ):
        GradientSystem(tanh.model, tanh.loss_fn, tanh.data)


def test_a_loss_is_computed_in_inference_mode(tanh):
    with torch.inference_mode():
        assert float(tanh.loss()) == float(tanh.loss())
        loss = dp.evaluate(tanh.model, tanh.data, loss_fn=tanh.loss_fn).loss
    assert loss == pytest.approx(float(tanh.loss()), rel=1e-12)
