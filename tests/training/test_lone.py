"""Batches that leave one example alone, and batch norm that cannot take it."""

import pytest
import torch
from torch import Tensor, nn

from dynprune.core import InvalidInputError
from dynprune.pruning import edge_popup, gem_miner, rigl
from dynprune.system import GradientSystem
from dynprune.training import Recipe, train, train_many

MSE = nn.functional.mse_loss
SAYS = "49 examples in batches of 16 leave one alone.*batch_size=17"


def sgd(params: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.05)


def flat(n: int = 49) -> GradientSystem:
    source = torch.Generator().manual_seed(0)
    x, y = torch.randn(n, 3, generator=source), torch.randn(n, 1, generator=source)
    net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
    return GradientSystem(net, MSE, (x, y))


def images() -> GradientSystem:
    source = torch.Generator().manual_seed(0)
    x = torch.randn(49, 1, 4, 4, generator=source)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.3),
        nn.Flatten(),
        nn.Linear(16, 1),
    )
    return GradientSystem(net, MSE, (x, x.mean((1, 2, 3))[:, None]))


RECIPE = Recipe(sgd, steps=8, batch_size=16)
CALLS = {
    "train": lambda s: train(s, sgd, steps=8, batch_size=16),
    "alone": lambda s: train(s, sgd, steps=1, batch_size=1),
    "train_many": lambda s: train_many([s, s], RECIPE, seeds=[0, 1]),
    "a stack": lambda s: train_many([s, s], RECIPE, seeds=[0, 1], how="stacked"),
    "rigl": lambda s: rigl(s, density=0.5, train=RECIPE, update_every=2),
    "edge_popup": lambda s: edge_popup(s, density=0.5, epochs=1, batch_size=16),
    "gem_miner": lambda s: gem_miner(
        s, density=0.5, epochs=2, freeze_every=1, batch_size=16
    ),
}


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_a_lone_example_is_refused_before_the_first_step(call, untouched):
    says = SAYS if call != "alone" else "49 examples in batches of 1 .*batch_size=5"
    system = flat()
    with untouched(), pytest.raises(InvalidInputError, match=says):
        CALLS[call](system)


def test_the_default_batches_too():
    with pytest.raises(InvalidInputError, match=r"129 .* of 64 .* batch_size=65"):
        gem_miner(flat(129), density=0.5, epochs=2, freeze_every=1)
    with pytest.raises(InvalidInputError, match="Pass more examples"):
        train(flat(1), sgd, steps=1)


def test_what_never_meets_it_or_can_take_it_is_trained():
    assert len(train(flat(), sgd, steps=3, batch_size=16).history[1]) == 3
    assert len(train(flat(), sgd, steps=6, start_step=4, batch_size=16).history[1]) == 2
    assert len(train(flat(), sgd, steps=8, batch_size=17).history[1]) == 8
    train(flat(), sgd, steps=8, batch_size=16, mode="eval")


def test_the_trial_of_a_lone_example_changes_nothing(untouched):
    system = images()
    with untouched():
        whole = train(system, sgd, steps=8, batch_size=16, seed=3)
    first = train(system, sgd, steps=8, stop_step=3, batch_size=16, seed=3)
    # three steps that do not meet it, so that nothing is tried
    start = train(system, sgd, steps=8, record=1, batch_size=16, seed=3).trajectory
    assert torch.equal(start.snapshots[:, 3], first.state)
    assert whole.buffers["1.num_batches_tracked"] == 8
