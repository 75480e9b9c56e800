"""Stacked training against the same runs one by one."""

import copy
import math
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from dynprune import tasks
from dynprune.core import (
    ConvergenceError,
    InvalidInputError,
    Outcome,
    generator,
    generator_states,
    isolated,
    mean_interval,
)
from dynprune.pruning import magnitude
from dynprune.system import GradientSystem
from dynprune.training import (
    Recipe,
    Run,
    Runs,
    _stacked_many,
    _stacked_probe,
    evaluate,
    train,
    train_many,
)
from dynprune.training._stacked_chain import chain_losses

optim = torch.optim
MSE = nn.functional.mse_loss


def sgd(params: list[Tensor]) -> optim.Optimizer:
    return optim.SGD(params, lr=0.05)


def momentum(params: list[Tensor]) -> optim.Optimizer:
    return optim.SGD(params, lr=0.05, momentum=0.9, weight_decay=0.1)


def decay_of_matrices(params: list[Tensor]) -> optim.Optimizer:
    """Weight decay by the number of dimensions, as many recipes have it."""
    return optim.SGD(
        [
            {"params": [p for p in params if p.ndim > 1], "weight_decay": 0.5},
            {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=0.05,
        momentum=0.9,
    )


OPTIMIZERS = {
    "SGD": sgd,
    "momentum": momentum,
    "nesterov": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "matrices decay": decay_of_matrices,
    "Adam": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.1),
    "AdamW": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.5, amsgrad=True),
    "NAdam": lambda p: optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: optim.RAdam(p, lr=0.01),
    "Adamax": lambda p: optim.Adamax(p, lr=0.01),
    "Adadelta": lambda p: optim.Adadelta(p, lr=1.0),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.1),
    "ASGD": lambda p: optim.ASGD(p, lr=0.01),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "Rprop": lambda p: optim.Rprop(p, lr=0.01),
}


def data(n: int = 22, inputs: int = 3, outputs: int = 1) -> tuple[Tensor, Tensor]:
    source = generator(1)
    x = torch.randn(n, inputs, generator=source, dtype=torch.float64)
    return x, torch.randn(n, outputs, generator=source, dtype=torch.float64)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()


def fill(net: nn.Module, seed: int) -> nn.Module:
    source = generator(seed)
    with torch.no_grad():
        for part in net.parameters():
            part.copy_(torch.randn(part.shape, generator=source, dtype=part.dtype) / 2)
    return net


def systems(
    make: Callable[[], nn.Module] = mlp,
    batches: Any = None,
    *,
    count: int = 4,
    masked: bool = True,
    loss: Any = MSE,
    **settings: Any,
) -> list[GradientSystem]:
    """Networks of several seeds, each with a mask of its own; number 0 is dense."""
    batches = data() if batches is None else batches
    found = []
    for seed in range(count):
        net = fill(make(), seed)
        system = GradientSystem(net, loss, batches, **settings)
        if seed and masked:
            source = generator(100 + seed)
            shapes = dict(zip(system.names, system.coordinates.shapes, strict=True))
            keep = 0.3 * seed
            system = system.with_mask({
                name: torch.rand(shapes[name], generator=source) < keep
                for name in system.prunable
            })
        found.append(system)
    return found


def one_by_one(
    given: list[GradientSystem], recipe: Recipe, seeds: list[int], **settings: Any
) -> list[Run]:
    return [
        recipe(system, seed=seed, **settings)
        for system, seed in zip(given, seeds, strict=True)
    ]


def same(found: Runs, wanted: list[Run], *, tolerance: float = 1e-10) -> None:
    assert len(found) == len(wanted)
    for mine, alone in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine.state, alone.state, rtol=0.0, atol=tolerance)
        assert mine.state.dtype == alone.state.dtype
        assert list(mine.buffers) == list(alone.buffers)
        for name, part in alone.buffers.items():
            torch.testing.assert_close(
                mine.buffers[name], part, rtol=0.0, atol=tolerance
            )
        assert torch.equal(mine.history[0], alone.history[0])
        torch.testing.assert_close(
            mine.history[1], alone.history[1], rtol=tolerance, atol=tolerance
        )
        assert mine.cost == alone.cost
        assert mine.outcome is alone.outcome
        assert mine.coordinates.size == alone.coordinates.size
        assert (mine.trajectory is None) == (alone.trajectory is None)
        if mine.trajectory is not None and alone.trajectory is not None:
            assert torch.equal(mine.trajectory.steps, alone.trajectory.steps)
            torch.testing.assert_close(
                mine.trajectory.snapshots,
                alone.trajectory.snapshots,
                rtol=0.0,
                atol=tolerance,
            )
        made, other = dict(mine.provenance.settings), dict(alone.provenance.settings)
        assert mine.provenance.seed == alone.provenance.seed
        assert {key: made[key] for key in other} == other


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_every_element_wise_optimiser_moves_a_stack_as_it_moves_one(name: str) -> None:
    given, seeds = systems(l2=0.03), [0, 7, 7, 3]
    recipe = Recipe(OPTIMIZERS[name], steps=20, batch_size=8)
    found = train_many(given, recipe, seeds=seeds, record=6, how="stacked")
    same(found, one_by_one(given, recipe, seeds, record=6))
    assert (found.how, found.stack) == ("stacked", 4)
    assert found.cost.steps == 80


@pytest.mark.parametrize(
    "schedule",
    [
        None,
        lambda opt: lr_scheduler.StepLR(opt, 3, gamma=0.5),
        lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=40),
    ],
    ids=["constant", "StepLR", "OneCycleLR moves momentum"],
)
def test_a_late_start_continues_schedule_and_order(schedule: Any) -> None:
    given, seeds = systems(), [5, 6, 7, 8]
    recipe = Recipe(momentum, steps=40, batch_size=8, schedule=schedule)
    span = {"start_step": 7, "stop_step": 27}
    found = train_many(given, recipe, seeds=seeds, how="stacked", **span)
    same(found, one_by_one(given, recipe, seeds, **span))


@pytest.mark.parametrize("batch_size", [5, 22, 100], ids=str)
def test_one_seed_is_one_order_for_all(batch_size: int) -> None:
    given = systems()
    recipe = Recipe(momentum, steps=20, batch_size=batch_size)
    found = train_many(given, recipe, seeds=9, how="stacked")
    same(found, one_by_one(given, recipe, [9] * 4))


def test_the_whole_data_is_one_batch_whatever_the_seeds() -> None:
    given, recipe = systems(), Recipe(momentum, steps=20, batch_size=22)
    found = train_many(given, recipe, seeds=[1, 2, 3, 4], how="stacked")
    same(found, one_by_one(given, recipe, [1, 2, 3, 4]))


def test_a_loader_is_read_once_for_all() -> None:
    loader = DataLoader(
        TensorDataset(*data()), batch_size=8, shuffle=True, generator=generator(3)
    )
    given, recipe = systems(batches=loader), Recipe(momentum, steps=20)
    found = train_many(given, recipe, seeds=4, how="stacked")
    same(found, one_by_one(given, recipe, [4] * 4))
    with pytest.raises(InvalidInputError, match="2 data orders of a DataLoader"):
        train_many(given, recipe, seeds=[0, 0, 1, 1], how="stacked")


def test_data_of_the_recipe_stand_for_those_of_the_systems() -> None:
    given = systems(masked=False)
    given[1] = given[1].with_data(tuple(part[:11] for part in data()))
    recipe = Recipe(momentum, steps=20, batch_size=4, data=data(13))
    found = train_many(given, recipe, seeds=range(4), how="stacked")
    same(found, one_by_one(given, recipe, [0, 1, 2, 3]))
    with pytest.raises(InvalidInputError, match=r"number 1 and number 0 in data\."):
        train_many(given, Recipe(sgd, steps=2), how="stacked")


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(12, 4),
        nn.LayerNorm(4),
        nn.Linear(4, 3),
        nn.BatchNorm1d(3, affine=False),
    ).double()


def images() -> tuple[Tensor, Tensor]:
    x, _ = data(21, 16)
    return x.view(21, 1, 4, 4), torch.randint(0, 3, (21,), generator=generator(2))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("seeds", [[0, 1, 2, 3], [2] * 4], ids=["own", "shared"])
def test_batch_norm_keeps_statistics_for_each_run(mode: Any, seeds: list[int]) -> None:
    cross_entropy = nn.functional.cross_entropy
    given = systems(conv_net, images(), loss=cross_entropy)
    given[2] = given[2].with_state(
        given[2].state,
        buffers={"1.running_mean": torch.full((3,), 0.3, dtype=torch.float64)},
    )
    recipe = Recipe(momentum, steps=20, batch_size=6, mode=mode)
    found = train_many(given, recipe, seeds=seeds, how="stacked")
    same(found, one_by_one(given, recipe, seeds))
    moved = [int(run.buffers["1.num_batches_tracked"]) for run in found]
    assert moved == [20 if mode == "train" else 0] * 4


class Tied(nn.Module):
    """Two layers that share a weight, and one that is not trained."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(3, 1).requires_grad_(False)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(self.second(self.first(x).tanh()))


def test_tied_frozen_and_unused_weights() -> None:
    given = systems(lambda: Tied().double())
    recipe = Recipe(momentum, steps=20, batch_size=8)
    found = train_many(given, recipe, seeds=range(4), how="stacked")
    same(found, one_by_one(given, recipe, [0, 1, 2, 3]))


class Scaled(nn.Module):
    """A network with a temperature, a parameter without dimensions."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.scale, self.net = nn.Parameter(torch.tensor(1.5)), mlp()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.scale * self.net(x)
        return out


def test_parameters_without_dimensions() -> None:
    given = systems(lambda: Scaled().double(), l2=0.1)
    recipe = Recipe(momentum, steps=20, batch_size=8)
    found = train_many(given, recipe, seeds=range(4), how="stacked")
    same(found, one_by_one(given, recipe, [0, 1, 2, 3]))


def test_selected_parameters_leave_the_others_to_each_network() -> None:
    given = systems(parameters="2.*")
    recipe = Recipe(momentum, steps=20, batch_size=8)
    found = train_many(given, recipe, seeds=range(4), how="stacked")
    same(found, one_by_one(given, recipe, [0, 1, 2, 3]))


class Attention(nn.Module):
    """Self-attention on three tokens, and the layer of Hugging Face's GPT-2."""

    def __init__(self) -> None:
        from transformers.pytorch_utils import Conv1D

        nn.Module.__init__(self)
        self.mix = nn.MultiheadAttention(4, 2, batch_first=True)
        self.out = Conv1D(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.view(-1, 3, 4)
        mixed, _ = self.mix(tokens, tokens, tokens)
        return self.out(mixed.contiguous()).mean(1)


def test_attention_and_a_batch_loss_with_weights() -> None:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        each = batch[1].abs().sum(1)
        return each @ (model(batch[0]) - batch[1]).square().sum(1) / each.sum()

    def weight(batch: tuple[Tensor, Tensor]) -> float:
        return float(batch[1].abs().sum())

    given = systems(
        lambda: Attention().double(),
        data(14, 12, 3),
        loss=None,
        batch_loss=loss,
        batch_weight=weight,
    )
    recipe = Recipe(OPTIMIZERS["Adam"], steps=18, batch_size=4)
    found = train_many(given, recipe, seeds=range(4), how="stacked")
    alone = one_by_one(given, recipe, [0, 1, 2, 3])
    assert len({run.cost.gradients for run in alone}) == 4
    same(found, alone)


def test_pruned_weights_are_zero_at_every_snapshot() -> None:
    given = systems(count=3)
    recipe = Recipe(momentum, steps=12, batch_size=8)
    for run, system in zip(
        train_many(given, recipe, seeds=range(3), record=1, how="stacked"),
        given,
        strict=True,
    ):
        for name, mask in system.masks.items():
            assert not run.parameters[name][~mask].any()
        assert run.trajectory is not None
        assert run.trajectory.snapshots.shape == (system.size, 13)


def test_float32_accuracies_agree_within_the_seed_interval() -> None:
    problem, count = tasks.digits("mlp:16:relu"), 6
    systems = []
    for seed in range(count):
        system = GradientSystem(problem.model(seed), problem.loss_fn, problem.train)
        systems.append(system.with_ticket(magnitude(system, density=0.2)))
    recipe = Recipe(lambda p: optim.SGD(p, lr=0.2), steps=300, batch_size=64)
    found = {}
    for how in ("serial", "stacked"):
        runs = train_many(systems, recipe, seeds=list(range(count)), how=how)
        found[how] = []
        for run in runs:
            net = problem.model(0)
            run.apply_(net)
            found[how].append(evaluate(net, problem, "test").metric)
    mean, low, high = mean_interval(found["serial"])
    assert mean > 0.8
    other = sum(found["stacked"]) / count
    assert low <= other <= high


def test_stacks_of_two_are_the_runs_of_one_stack() -> None:
    given, recipe = systems(count=5), Recipe(momentum, steps=20, batch_size=8)
    found = train_many(given, recipe, seeds=range(5), how="stacked", stack=2)
    assert found.stack == 2
    same(found, one_by_one(given, recipe, list(range(5))))


def test_no_step_is_a_run_too() -> None:
    given, recipe = systems(), Recipe(sgd, steps=3)
    found = train_many(given, recipe, stop_step=0, how="stacked")
    same(found, one_by_one(given, recipe, [0] * 4, stop_step=0))
    assert "no step was made" in found.summary()


# -- chains of linear layers ----------------------------------------------------------


def deep(*shape: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten() if len(shape) > 1 else nn.Identity(),
        nn.Sequential(nn.Linear(math.prod(shape), 5, bias=False), nn.GELU()),
        nn.LeakyReLU(0.2),
        nn.Linear(5, 3),
    ).double()


def labelled(*shape: int) -> tuple[Tensor, Tensor]:
    draw = generator(3)
    x = torch.randn(21, *shape, generator=draw, dtype=torch.float64)
    return x, torch.randint(0, 3, (21,), generator=draw)


def soft(*shape: int) -> tuple[Tensor, Tensor]:
    x, _ = labelled(*shape)
    return x, torch.randn(21, 3, generator=generator(4), dtype=x.dtype).softmax(1)


def ignoring(*shape: int) -> tuple[Tensor, Tensor]:
    x, y = labelled(*shape)
    return x, y.masked_fill(torch.arange(21) % 5 == 1, -100)


def per_token(*shape: int) -> tuple[Tensor, Tensor]:
    draw = generator(5)
    x = torch.randn(21, *shape, generator=draw, dtype=torch.float64)
    return x, torch.randn(21, *shape[:-1], 3, generator=draw, dtype=x.dtype)


def counted(batch: tuple[Tensor, Tensor]) -> float:
    return float((batch[1] != -100).sum())


CROSS_ENTROPY = nn.functional.cross_entropy


@pytest.mark.parametrize("seeds", [[0, 1, 2, 3], [6] * 4], ids=["own", "shared"])
@pytest.mark.parametrize(
    ("make", "batches", "loss", "weight"),
    [
        (lambda: deep(6), labelled(6), CROSS_ENTROPY, None),
        (lambda: deep(2, 3), labelled(2, 3), CROSS_ENTROPY, None),
        (lambda: deep(6), soft(6), CROSS_ENTROPY, None),
        (lambda: deep(6), ignoring(6), CROSS_ENTROPY, counted),
        (lambda: deep(6), labelled(6), nn.CrossEntropyLoss(), None),
        (lambda: deep(6), per_token(4, 6), MSE, None),
        (lambda: nn.Linear(3, 1).double(), data(), nn.functional.huber_loss, None),
    ],
    ids=["classes", "images", "soft", "ignored", "module", "tokens", "bare layer"],
)
def test_chains_are_batched_by_hand(
    make: Any, batches: Any, loss: Any, weight: Any, seeds: list[int]
) -> None:
    given = systems(make, batches, loss=loss, batch_weight=weight)
    names = tuple(name for name, _ in make().named_parameters())
    assert chain_losses(make(), loss, runs=4, own=True, stacked=names) is not None
    recipe = Recipe(momentum, steps=20, batch_size=6)
    found = train_many(given, recipe, seeds=seeds, how="stacked")
    same(found, one_by_one(given, recipe, seeds))


def test_what_is_no_chain_is_left_to_vmap() -> None:
    layer, hooked_net = nn.Linear(3, 3), mlp()
    hooked_net[0].register_forward_hook(lambda _, __, out: 2 * out)
    twice = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(3, 1)).double()
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 1)).double()
    tied[1].weight = tied[0].weight
    for make in (lambda: hooked_net, lambda: twice, lambda: tied):
        names = tuple(name for name, _ in make().named_parameters())
        assert chain_losses(make(), MSE, runs=2, own=True, stacked=names) is None
        given = systems(lambda: copy.deepcopy(make()))  # noqa: B023
        recipe = Recipe(momentum, steps=20, batch_size=8)
        found = train_many(given, recipe, seeds=range(4), how="stacked")
        same(found, one_by_one(given, recipe, [0, 1, 2, 3]))
    assert chain_losses(mlp(), None, runs=2, own=True, stacked=("0.weight",)) is None
    assert chain_losses(mlp(), MSE, runs=2, own=True, stacked=("0.weight",)) is None


# -- noise ----------------------------------------------------------------------------


def dropping(p: float = 0.5) -> nn.Module:
    return nn.Sequential(
        nn.Linear(3, 8), nn.Tanh(), nn.Dropout(p), nn.Linear(8, 1)
    ).double()


def twins(seeds: list[int], recipe: Recipe) -> Runs:
    """Train copies of one network, with a seed each."""
    system = GradientSystem(fill(dropping(), 0), MSE, data())
    return train_many([system] * len(seeds), recipe, seeds=seeds, how="stacked")


def test_dropout_is_random_per_run_and_shared_with_a_shared_seed() -> None:
    recipe = Recipe(sgd, steps=3, batch_size=8)
    one = twins([1, 1], recipe)
    assert torch.equal(one[0].state, one[1].state)
    again = twins([1, 1], recipe)
    assert torch.equal(one[0].state, again[0].state)
    # with all data in one batch, nothing but dropout tells two seeds apart
    other = twins([1, 2], Recipe(sgd, steps=3, batch_size=22))
    assert not torch.equal(other[0].state, other[1].state)
    calm = twins([1, 2], Recipe(sgd, steps=3, batch_size=22, mode="eval"))
    torch.testing.assert_close(calm[0].state, calm[1].state, rtol=0.0, atol=1e-14)


def test_dropout_masks_differ_between_runs_and_keep_their_rate() -> None:
    # L = mean over outputs of (mask / (1-p) * w): the gradient reads the mask
    rate, width, count = 0.3, 400, 8
    net = nn.Sequential(nn.Linear(1, width, bias=False), nn.Dropout(rate)).double()
    with torch.no_grad():
        net[0].weight.fill_(1.0)
    x = torch.ones(2, 1, dtype=torch.float64)
    y = torch.zeros(2, width, dtype=torch.float64)
    system = GradientSystem(net, lambda a, _: a.sum(1).mean(), (x, y))
    recipe = Recipe(lambda p: optim.SGD(p, lr=1.0), steps=1, batch_size=1)
    found = train_many([system] * count, recipe, seeds=range(count), how="stacked")
    kept = torch.stack([run.state != 1.0 for run in found]).double()
    assert len({tuple(row.tolist()) for row in kept}) == count
    # binomial: five standard errors of a share of 3200 draws
    bound = 5 * math.sqrt(rate * (1 - rate) / (width * count))
    assert abs(float(kept.mean()) - (1 - rate)) < bound


def test_auto_leaves_dropout_to_its_own_noise() -> None:
    given, seeds = systems(dropping), [0, 1, 2, 3]
    recipe = Recipe(sgd, steps=5, batch_size=8)
    found = train_many(given, recipe, seeds=seeds, jobs=1)
    assert found.how == "serial"
    assert "dropout" in found.reason
    for mine, alone in zip(found, one_by_one(given, recipe, seeds), strict=True):
        assert torch.equal(mine.state, alone.state)


class Skipping(nn.Module):
    """Leave a layer out now and then, as LayerDrop does, drawn in Python."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.first, self.last = nn.Linear(3, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and random.random() < 1e-3):
            x = torch.tanh(self.first(x))
        return self.last(x)


class Rare(Skipping):
    """The same, drawn by torch."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x * torch.empty(()).bernoulli_(0.999)
        return self.last(torch.tanh(self.first(x)))


@pytest.mark.parametrize("make", [Skipping, Rare])
def test_auto_never_stacks_what_draws_rarely(make, untouched) -> None:
    system = GradientSystem(fill(make().double(), 0), MSE, data())
    recipe = Recipe(sgd, steps=5, batch_size=8)
    for seed in range(3):
        with untouched(), isolated(seed):
            before = generator_states()
            found = train_many([system] * 8, recipe, seeds=range(8), jobs=1)
            assert generator_states() == before
        assert found.how == "serial"


# -- what cannot be stacked -----------------------------------------------------------


class Clipped(optim.SGD):
    """Scale the step by the norm of all gradients."""


def hooked(params: list[Tensor]) -> optim.Optimizer:
    made = optim.SGD(params, lr=0.1)
    made.register_step_pre_hook(
        lambda opt, *_: (
            nn.utils.clip_grad_norm_(opt.param_groups[0]["params"], 1.0) and None
        )
    )
    return made


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (lambda p: optim.LBFGS(p), "LBFGS, which may mix"),
        (lambda p: optim.Adafactor(p), "Adafactor, which may mix"),
        (lambda p: Clipped(p, lr=0.1), "Clipped, which may mix"),
        (hooked, "1 step hooks"),
        (
            lambda p: optim.SGD([*p, torch.zeros(2, requires_grad=True)], lr=0.1),
            "1 tensors that are no parameters",
        ),
    ],
    ids=["L-BFGS", "Adafactor", "subclass", "hook", "stranger"],
)
def test_what_mixes_the_networks_is_refused(factory: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        train_many(systems(), Recipe(factory, steps=2), how="stacked")


class WrongRule(torch.autograd.Function):
    """The identity, but for a vmap rule that adds to all networks after the first."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return slope

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor) -> tuple[Tensor, int]:
        first = torch.arange(x.shape[in_dims[0]], dtype=x.dtype) < 2
        moved = x.movedim(in_dims[0], -1)
        return (moved + 0.01 * (~first)).movedim(-1, 0), 0


class Wrong(nn.Module):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.map = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return WrongRule.apply(self.map(x))


class Branching(nn.Module):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.map = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        found = self.map(x)
        return found if float(found.detach().sum()) < 1e9 else -found


def test_networks_that_differ_are_refused() -> None:
    recipe = Recipe(sgd, steps=2)
    one = systems(count=1)[0]
    for other, what in (
        (systems(lambda: nn.Sequential(nn.Linear(3, 1)).double())[0], "architecture"),
        (systems(l2=0.1)[0], "l2"),
        (systems(loss=nn.functional.l1_loss)[0], "loss"),
        (systems(lambda: mlp().float(), tuple(p.float() for p in data()))[0], "dtype"),
    ):
        with pytest.raises(
            InvalidInputError, match=f"number 1 and number 0 in.*{what}"
        ):
            train_many([one, other], recipe, how="stacked")


def test_a_wrong_rule_of_vmap_is_found() -> None:
    given = systems(lambda: Wrong().double(), count=3, masked=False)
    with pytest.raises(InvalidInputError, match=r"of run 2 differs by"):
        train_many(given, Recipe(sgd, steps=2), how="stacked")
    found = train_many(given[:2], Recipe(sgd, steps=2), how="stacked")
    assert len(found) == 2


def test_what_vmap_cannot_batch_is_refused_and_auto_goes_on() -> None:
    given = systems(lambda: Branching().double())
    recipe = Recipe(sgd, steps=3)
    with pytest.raises(InvalidInputError, match="cannot batch"):
        train_many(given, recipe, how="stacked")
    found = train_many(given, recipe)
    assert found.how == "serial"
    assert "cannot batch" in found.reason
    same(found, one_by_one(given, recipe, [0] * 4), tolerance=0.0)


def test_other_trainers_run_one_by_one() -> None:
    def trainer(system: GradientSystem, *, seed: int = 0, **span: Any) -> Run:
        span = {key: part for key, part in span.items() if key != "record"}
        return train(system, sgd, steps=4, seed=seed, **span)

    given = systems()
    with pytest.raises(InvalidInputError, match="Pass a Recipe"):
        train_many(given, trainer, how="stacked")
    found = train_many(given, trainer, seeds=range(4))
    assert found.how == "serial"
    for run, system, seed in zip(found, given, range(4), strict=True):
        assert torch.equal(run.state, train(system, sgd, steps=4, seed=seed).state)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": [1, 2]}, "4 systems and 2 seeds"),
        ({"how": "fast"}, "how"),
        ({"stack": 0}, "stack is 0"),
        ({"jobs": 0}, "jobs is 0"),
        ({"how": "stacked", "start_step": 9}, "do not fit"),
    ],
    ids=str,
)
def test_contradictions_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        train_many(systems(), Recipe(sgd, steps=3), **settings)
    with pytest.raises(InvalidInputError, match="0 systems"):
        train_many([], Recipe(sgd, steps=3))


# -- divergence -----------------------------------------------------------------------


def test_a_run_that_diverges_leaves_the_others_alone() -> None:
    given = systems(masked=False)
    # finite, and beyond float64 when it is squared
    given[1] = given[1].with_state(given[1].state * 1e200)
    calm = Recipe(sgd, steps=3, batch_size=8)
    with pytest.raises(ConvergenceError, match=r"Run 0 \(seed 5\)") as caught:
        train_many([given[1]], calm, seeds=5, how="stacked")
    assert isinstance(caught.value.partial, Run)
    for how in ("stacked", "serial"):
        found = train_many(given[:3], calm, seeds=1, how=how, throw=False)
        ended = [run.outcome for run in found]
        assert ended == [Outcome.FINISHED, Outcome.DIVERGED, Outcome.FINISHED]
        assert "1 DIVERGED" in found.summary()
        alone = one_by_one([given[0], given[2]], calm, [1, 1])
        for mine, other in zip((found[0], found[2]), alone, strict=True):
            torch.testing.assert_close(mine.state, other.state, rtol=0.0, atol=1e-10)


# -- the choice -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "steps", "how"),
    [
        ((1.0, 1.0), 10, "stacked"),
        ((1.0, 5.0), 10, "processes"),
        ((1.0, 3.0), 10, "processes"),
        ((1e-4, 5e-4), 10, "serial"),
        ((1e-4, 3e-4), 10, "stacked"),
    ],
    ids=["stack", "slow stack", "two jobs beat it", "short", "short stack"],
)
def test_auto_takes_what_the_stopwatch_finds(
    monkeypatch: pytest.MonkeyPatch,
    seconds: tuple[float, float],
    steps: int,
    how: str,
) -> None:
    monkeypatch.setattr(_stacked_probe, "measured", lambda *_, **__: seconds)
    given, recipe = systems(), Recipe(sgd, steps=steps)
    found, speedup, reason = _stacked_probe.choose(
        given, recipe, seeds=range(4), steps=None, stack=4, jobs=2
    )
    assert found == how
    assert speedup == pytest.approx(4 * seconds[0] / seconds[1])
    assert "a stack of 4" in reason


def test_auto_measures_once_and_records_it(
    monkeypatch: pytest.MonkeyPatch, untouched: Any
) -> None:
    monkeypatch.setattr(_stacked_probe, "_MEASURED", {})
    given = systems()
    before = copy.deepcopy([system.model.state_dict() for system in given])
    with untouched():
        first = train_many(given, Recipe(sgd, steps=3, batch_size=8), seeds=range(4))
        again = train_many(given, Recipe(sgd, steps=5, batch_size=8), seeds=range(4))
    assert first.speedup == again.speedup > 0
    assert dict(first.provenance.settings)["how"] == first.how
    for system, held in zip(given, before, strict=True):
        assert all(
            torch.equal(part, held[name])
            for name, part in system.model.state_dict().items()
        )
        assert all(part.grad is None for part in system.model.parameters())


def test_processes_give_the_bits_of_one_by_one() -> None:
    given, recipe = systems(count=2), Recipe(momentum, steps=5, batch_size=8)
    found = train_many(given, recipe, seeds=range(2), how="processes", jobs=1)
    assert found.how == "processes"
    same(found, one_by_one(given, recipe, [0, 1]), tolerance=0.0)


def test_shares_of_processes_come_back_in_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        _stacked_many, "process_pool", lambda _: ThreadPoolExecutor(max_workers=1)
    )
    given, recipe = systems(count=5), Recipe(momentum, steps=5, batch_size=8)
    found = train_many(given, recipe, seeds=range(5), how="processes", jobs=2)
    same(found, one_by_one(given, recipe, list(range(5))), tolerance=0.0)


def test_runs_are_listed_framed_and_drawn() -> None:
    import matplotlib.pyplot as plt

    given, recipe = systems(), Recipe(sgd, steps=3)
    found = train_many(given, recipe, seeds=range(4), how="stacked")
    frame = found.to_frame()
    assert list(frame.columns) == ["run", "seed", "step", "loss"]
    assert len(frame) == 12
    assert len(found.plot().lines) == 4
    plt.close()
    assert "4 FINISHED" in found.summary()
    assert repr(found) == "Runs(4, how='stacked', stack=4)"
    assert [run.provenance.seed for run in found] == [0, 1, 2, 3]
