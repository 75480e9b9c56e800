"""What units measure: the network that was trained, and all that it cost."""

import dataclasses

import pytest
import torch
from torch import nn

from dynprune.core import generator
from dynprune.study import configure
from dynprune.study.units._forecast import forecast_unit
from dynprune.study.units._manifold import manifold_unit
from dynprune.study.units._pruning import imp_unit, method_unit
from dynprune.study.units._setup import recipe_of, seed_of, system_of
from dynprune.tasks import Problem, accuracy
from dynprune.tickets import Ticket
from dynprune.training import evaluate

CONFIG = configure(
    task="mine",
    seeds=2,
    densities=(1.0, 0.5, 0.25),
    steps=40,
    batch_size=16,
    rewind_step=8,
)


def blobs(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = generator(seed)
    y = torch.arange(96) % 3
    return torch.eye(3, 6)[y] + 0.5 * torch.randn(96, 6, generator=draw), y


def random_features(seed: int) -> nn.Module:
    """A frozen first layer, another one for every seed."""
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    net[0].requires_grad_(False)
    return net


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem(
        make_model=random_features,
        loss_fn=nn.functional.cross_entropy,
        train=blobs(0),
        validation=blobs(1),
        test=blobs(2),
        metric=accuracy,
    )


@pytest.fixture(scope="module")
def folder(problem, tmp_path_factory):
    path = tmp_path_factory.mktemp("study")
    imp_unit(problem, CONFIG, 1, path)
    return path


def loss_of(problem, masked, state) -> float:
    """Of the very network that was trained, frozen layers included."""
    net = problem.model(seed_of(CONFIG, "init", 1))
    net.load_state_dict({**net.state_dict(), **masked.unflatten(state)})
    return evaluate(net, problem, "test").loss


def test_a_row_is_of_the_network_that_was_trained(problem, folder):
    rows, _, files = method_unit(problem, CONFIG, "magnitude-init", 1, folder)
    masked = system_of(problem, CONFIG, 1).with_ticket(Ticket.load(files[0]))
    run = recipe_of(CONFIG)(masked, seed=seed_of(CONFIG, "order", 1))
    assert rows[0]["loss"] == pytest.approx(loss_of(problem, masked, run.state))


def test_a_forecast_is_of_the_network_that_was_trained(problem):
    facts = forecast_unit(problem, CONFIG, 1)
    system = system_of(problem, CONFIG, 1)
    run = recipe_of(CONFIG)(system, seed=seed_of(CONFIG, "order", 1), record=1)
    step = CONFIG.koopman_window[1] + CONFIG.koopman_horizons[-1]
    state = run.trajectory.state_at(step)
    assert facts["truth"]["loss"][-1] == pytest.approx(loss_of(problem, system, state))


def test_magnitude_of_trained_weights_costs_all_of_the_dense_training(problem, folder):
    rows, _, _ = method_unit(problem, CONFIG, "magnitude-trained", 1, folder)
    # dense training with its first 8 steps, then the ticket's own
    assert [row["steps"] for row in rows] == [2 * CONFIG.steps] * 2
    each = CONFIG.steps * CONFIG.batch_size / len(problem.train[1])
    assert rows[0]["gradients"] == pytest.approx(2 * each)


@pytest.mark.parametrize(
    ("change", "conditions"),
    [
        ({}, {"C1", "C3", "C4"}),
        ({"weight_decay": 0.1}, {"C1", "C3"}),
        ({"momentum": 0.9}, {"C1", "C3"}),
    ],
    ids=["plain", "weight decay", "momentum"],
)
def test_multipliers_are_those_of_plain_gradient_descent(problem, change, conditions):
    # with weight decay they are 1 - η(λ + wd), which the bare Hessian does not say
    config = dataclasses.replace(CONFIG, samples=1, k_max=4, **change)
    facts = manifold_unit(problem, config, 1)
    assert {check["name"] for check in facts["conditions"]} == conditions
    assert (facts["learning_rate"] is not None) == ("C4" in conditions)
