"""Captured steps on a CPU, by an emulated graph; CUDA itself is in test_gpu.py."""

import collections
from dataclasses import replace

import emulated_graph
import numpy as np
import pytest
import torch
from problems import classes, small_net
from torch import nn

from dynprune.core import InvalidInputError
from dynprune.pruning import magnitude, rigl
from dynprune.system import GradientSystem
from dynprune.training import (
    Recipe,
    _captured,
    _mover,
    _stacked_mover,
    train,
    train_many,
)

CROSS = nn.functional.cross_entropy


@pytest.fixture
def graph(monkeypatch):
    """Let systems on a CPU be captured; the class counts recordings and replays."""

    class Counted(emulated_graph.OnCPU):
        pass

    monkeypatch.setattr(_captured, "recorded", emulated_graph.recorded)
    monkeypatch.setattr(_mover, "Captured", Counted)
    monkeypatch.setattr(_stacked_mover, "Captured", Counted)
    return Counted


def net(*middle):
    first, last = small_net(widths=(6, 5))[0], small_net(widths=(5, 3), seed=1)[0]
    return nn.Sequential(first, *middle, last).double()


def system(*middle, count=42, **knobs):
    return GradientSystem(net(*middle), CROSS, classes(count, 6, 3), **knobs)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


# 42 examples: four batches of 10 and one of 2 in every pass
RECIPE = Recipe(sgd, steps=20, batch_size=10)


def same(one, other, *, tolerance=0.0):
    assert torch.allclose(one.state, other.state, rtol=tolerance, atol=tolerance)
    assert torch.allclose(
        one.history[1], other.history[1], rtol=tolerance, atol=tolerance
    )
    for name, part in one.buffers.items():
        assert torch.allclose(part, other.buffers[name], rtol=tolerance, atol=tolerance)
    assert one.cost == other.cost


OPTIMIZERS = {
    "sgd": sgd,
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "rprop": lambda p: torch.optim.Rprop(p, lr=1e-2),
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.5, line_search_fn="strong_wolfe"),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())
@pytest.mark.parametrize("density", [1.0, 0.3])
def test_a_captured_run_is_the_run(graph, optimizer, density):
    made = system(nn.BatchNorm1d(5), nn.Tanh(), l2=1e-3)
    if density < 1.0:
        made = made.with_ticket(magnitude(made, density=density))
    recipe = replace(RECIPE, optimizer=optimizer, steps=12)
    runs = [replace(recipe, capture=on)(made, seed=1) for on in (False, True)]
    same(*runs)
    assert graph.recordings == 1
    assert graph.replays > 0
    on = [dict(run.provenance.settings).get("capture") for run in runs]
    assert on == [None, True]


def test_a_stack_is_captured_too(graph):
    first = system(nn.BatchNorm1d(5), nn.Tanh(), l2=1e-3)
    starts = [first.with_state((1.0 + 0.1 * i) * first.state) for i in range(3)]
    alone = train_many(starts, RECIPE, seeds=[1, 2, 3], how="serial").runs
    stacked = train_many(
        starts, replace(RECIPE, capture=True), seeds=[1, 2, 3], how="stacked"
    ).runs
    for one, other in zip(alone, stacked, strict=True):
        same(one, other, tolerance=1e-12)
    assert graph.recordings == 1


def test_masks_that_change_while_training(graph):
    found = [
        rigl(
            system(nn.Tanh()),
            density=0.4,
            train=replace(RECIPE, capture=on, steps=40),
            update_every=5,
            seed=0,
        )
        for on in (False, True)
    ]
    assert graph.replays > 20
    for name, mask in found[0].ticket.masks.items():
        assert torch.equal(mask, found[1].ticket.masks[name])
    ends = [one.trained.masked_state for one in found]
    assert all(torch.equal(part, ends[1][name]) for name, part in ends[0].items())


def test_batches_of_dicts_from_a_loader(graph):
    x, y = classes(40, 6, 3)
    data = [{"x": x[i : i + 8], "y": y[i : i + 8], "n": 8} for i in range(0, 40, 8)]
    kept = [batch["x"].clone() for batch in data]

    def loss(model, batch):
        return CROSS(model(batch["x"]), batch["y"])

    made = GradientSystem(net(nn.Tanh()), None, data, batch_loss=loss)
    recipe = Recipe(sgd, steps=12)
    same(*(replace(recipe, capture=on)(made, seed=1) for on in (False, True)))
    assert graph.replays == 11
    assert all(torch.equal(b["x"], x) for b, x in zip(data, kept, strict=True))


@pytest.mark.parametrize("count", [64, 65, 100, 128])
def test_the_first_shape_that_is_seen_twice_is_recorded_once(graph, count):
    recipe = Recipe(sgd, steps=20, batch_size=64, capture=True)
    recipe(system(nn.Tanh(), count=count))
    assert graph.recordings == 1
    per_pass = 1 if count <= 64 or count == 128 else 0.5  # of that shape
    assert graph.replays == 20 * per_pass - 1


class Moving(nn.Module):
    """A running mean that is a new tensor in every pass."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(5, dtype=torch.float64))

    def forward(self, h):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        return torch.tanh(h - self.mean)


class Replacing(torch.optim.Optimizer):
    """Gradient descent that gives the parameters new memory."""

    def __init__(self, parameters):
        super().__init__(parameters, {})

    def step(self, closure=None):
        for group in self.param_groups:
            for part in group["params"]:
                part.data = part.data - 0.1 * part.grad


def test_buffers_that_move_to_other_memory_are_refused(graph):
    with pytest.raises(InvalidInputError, match="other memory in one pass"):
        replace(RECIPE, capture=True)(system(Moving()))


def test_parameters_that_move_to_other_memory_are_refused(graph):
    recipe = replace(RECIPE, optimizer=Replacing, capture=True)
    with pytest.raises(InvalidInputError, match="other memory since"):
        recipe(system(nn.Tanh()))


class Opaque(collections.UserDict):
    pass


def test_batches_that_a_graph_cannot_read_are_refused(graph):
    x, y = classes(4, 6, 3)
    made = net(nn.Tanh())

    def gradient(batch):
        raise AssertionError("not computed")

    for batch, what in (
        (Opaque(x=x, y=y), "Opaque"),
        ((x, np.arange(4)), "ndarray"),
        (None, "no tensor"),
        ((x.to_sparse(), y), "sparse_coo"),
    ):
        step = graph(
            gradient,
            parameters=list(made.parameters()),
            buffers=list,
            device=torch.device("cuda"),
        )
        with pytest.raises(InvalidInputError, match=what):
            step(batch)


class Waits(nn.Module):
    def forward(self, h):
        return h * (2.0 if float(h.detach().sum()) > 1e9 else 1.0)


def test_what_waits_for_the_gpu_is_refused(graph):
    made = system(nn.BatchNorm1d(5), Waits())
    state = made.state.clone()
    with pytest.raises(InvalidInputError, match=r"cannot be recorded.*not permitted"):
        replace(RECIPE, capture=True)(made)
    assert torch.equal(made.state, state)
    replace(RECIPE, capture=False)(made)


def test_the_first_cause_of_a_failed_recording_is_told(monkeypatch, graph):
    def fails(function, *, device):
        try:
            raise RuntimeError("the cause")
        finally:
            raise RuntimeError("a later error")  # as torch.cuda.graph does on leaving

    monkeypatch.setattr(_captured, "recorded", fails)
    with pytest.raises(InvalidInputError, match="the cause"):
        replace(RECIPE, capture=True)(system(nn.Tanh()))


def test_a_lack_of_memory_is_not_called_anything_else(monkeypatch, graph):
    def fails(function, *, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(_captured, "recorded", fails)
    with pytest.raises(torch.OutOfMemoryError):
        replace(RECIPE, capture=True)(system(nn.Tanh()))


@pytest.mark.parametrize("how", ["train", "recipe"])
def test_a_cpu_is_refused(how):
    def ask():
        if how == "train":
            return train(system(), sgd, steps=1, capture=True)
        return Recipe(sgd, steps=1, capture=True)(system())

    with pytest.raises(InvalidInputError, match="only a GPU"):
        ask()
