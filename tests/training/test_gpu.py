"""Training on a GPU, captured or not: the same runs."""

import pytest
import torch
from torch import nn

from dynprune.core import InvalidInputError
from dynprune.pruning import magnitude, rigl
from dynprune.system import GradientSystem
from dynprune.training import Recipe, train_many

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    # torch's own, once a process, from the thread of the first backward pass
    pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS:UserWarning"),
]

CROSS = nn.functional.cross_entropy


def images(loss=CROSS, *, count=42):
    draw = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 3),
    ).double()
    with torch.no_grad():
        for layer in (net[0], net[4]):
            for part in layer.parameters():
                part.copy_(0.2 * torch.randn(part.shape, generator=draw))
    x = torch.randn(count, 1, 6, 6, generator=draw, dtype=torch.float64)
    y = torch.arange(count) % 3
    return GradientSystem(net.cuda(), loss, (x.cuda(), y.cuda()), l2=1e-3)


def recipe(*, capture, optimizer="sgd", steps=20):
    def make(parameters):
        if optimizer == "adam":
            return torch.optim.Adam(parameters, lr=1e-2, fused=True)
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)

    def schedule(made):
        return torch.optim.lr_scheduler.CosineAnnealingLR(made, steps)

    # 42 examples: four batches of 10 and one of 2 in every pass
    return Recipe(make, steps=steps, batch_size=10, schedule=schedule, capture=capture)


def same(one, other):
    assert torch.allclose(one.state, other.state, rtol=1e-10, atol=1e-12)
    assert torch.allclose(one.history[1], other.history[1], rtol=1e-10, atol=1e-12)
    for name, part in one.buffers.items():
        assert torch.allclose(part, other.buffers[name], rtol=1e-10, atol=1e-12), name


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("pruned", [False, True])
def test_a_captured_run_is_the_run(optimizer, pruned):
    system = images()
    if pruned:
        system = system.with_ticket(magnitude(system, density=0.3))
    made = [
        recipe(capture=on, optimizer=optimizer)(system, seed=1) for on in (False, True)
    ]
    same(*made)
    assert made[0].cost == made[1].cost
    assert made[1].provenance.settings != made[0].provenance.settings


def test_a_stack_is_captured_too():
    system = images()
    starts = [system.with_state((1.0 + 0.1 * i) * system.state) for i in range(3)]
    found = [
        train_many(starts, recipe(capture=on), seeds=[1, 2, 3], how=how).runs
        for on, how in ((False, "serial"), (True, "stacked"))
    ]
    for one, other in zip(*found, strict=True):
        same(one, other)


def test_masks_that_change_while_training():
    found = [
        rigl(
            images(),
            density=0.3,
            train=recipe(capture=on, steps=40),
            update_every=5,
            seed=0,
        )
        for on in (False, True)
    ]
    assert found[0].ticket.kept == found[1].ticket.kept
    for name, mask in found[0].ticket.masks.items():
        assert torch.equal(mask, found[1].ticket.masks[name])
    ends = [one.trained.masked_state for one in found]
    for name, part in ends[0].items():
        assert torch.allclose(part, ends[1][name], rtol=1e-9, atol=1e-11), name


def test_a_loss_that_waits_for_the_gpu_is_refused():
    def waits(out, y):
        loss = CROSS(out, y)
        return loss * (2.0 if loss.item() > 1e9 else 1.0)

    system, stream = images(waits), torch.cuda.current_stream()
    with pytest.raises(InvalidInputError, match=r"cannot be recorded.*capturing"):
        recipe(capture=True)(system)
    assert torch.cuda.current_stream() == stream
    recipe(capture=False)(system)  # the GPU goes on


def test_dropout_draws_anew_in_every_replay():
    net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 3)).double()
    x = torch.ones(40, 1, 6, 6, dtype=torch.float64)
    y = torch.zeros(40, dtype=torch.int64)
    system = GradientSystem(net.cuda(), CROSS, (x.cuda(), y.cuda()))

    def still(parameters):
        return torch.optim.SGD(parameters, lr=0.0)

    runs = [
        Recipe(still, steps=12, batch_size=10, capture=True)(system, seed=seed)
        for seed in (1, 1, 2)
    ]
    losses = [run.history[1] for run in runs]
    assert len(set(losses[0].tolist())) == 12  # the same batch, another mask
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])
