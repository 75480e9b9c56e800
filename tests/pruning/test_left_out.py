"""Weights that no pruner counts are named, and can be masked by hand or on request."""

import warnings

import pytest
import torch
from problems import classes, small_net
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from dynprune.core import NumericalWarning
from dynprune.pruning import edge_popup, erk, from_scores, imp, magnitude, snip, synflow
from dynprune.pruning._prunable import left_out
from dynprune.system import GradientSystem
from dynprune.training import Recipe

CE = nn.functional.cross_entropy
RNN = ("rnn.weight_ih_l0", "rnn.weight_hh_l0")
RECIPE = Recipe(lambda params: torch.optim.SGD(params, lr=0.1), steps=2)


class Recurrent(nn.Module):
    """A recurrent layer and a matrix of its own between two that are pruned."""

    def __init__(self):
        nn.Module.__init__(self)
        self.first, self.rnn = nn.Linear(6, 5), nn.RNN(5, 4, batch_first=True)
        self.own = nn.Parameter(torch.ones(4, 4))
        self.pos_embed = nn.Parameter(torch.zeros(3, 5))
        self.norm, self.last = nn.LayerNorm((2, 4)), nn.Linear(4, 3)

    def forward(self, x):
        h = self.first(x)[:, None] + self.pos_embed[:2]
        return self.last(self.norm(self.rnn(h)[0]).mean(1) @ self.own)


def system_of(make=Recurrent, **kwargs) -> GradientSystem:
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        net = make().double()
    return GradientSystem(net, CE, classes(12, 6, 3), **kwargs)


PRUNERS = {
    "magnitude": magnitude,
    "snip": snip,
    "erk": erk,
    "synflow": lambda s, density: synflow(s, density=density, rounds=2),
    "edge_popup": lambda s, density: edge_popup(s, density=density, epochs=1),
    "from_scores": lambda s, density: from_scores(
        s, {n: s.unflatten(s.state)[n].abs() for n in s.prunable}, density=density
    ),
    "imp": lambda s, density: imp(s, densities=(1.0, density), train=RECIPE),
}


@pytest.mark.parametrize("prune", PRUNERS.values(), ids=PRUNERS.keys())
def test_what_stays_dense_is_named_once(prune):
    system = system_of()
    say = r"own, rnn.weight_ih_l0, rnn.weight_hh_l0, 52 weights that .* stay dense"
    with pytest.warns(NumericalWarning, match=say) as said:
        prune(system, density=0.8)
    assert len(said) == 1
    assert said[0].filename == __file__
    prune(system.with_state(system.state), density=0.8)  # it was said of this model


class Deep(Recurrent):
    """Two layers in both directions: eight weights of one module."""

    def __init__(self):
        Recurrent.__init__(self)
        self.rnn = nn.LSTM(5, 2, 2, bidirectional=True, batch_first=True)


@pytest.mark.parametrize("make", [Recurrent, Deep])
def test_the_advice_works(make):
    system = system_of(make)
    with pytest.warns(NumericalWarning, match="Left out") as said:
        magnitude(system, density=0.5)
    advice = str(said[0].message).rpartition(": ")[2].rstrip(".")
    asked = eval(advice.replace("GradientSystem(..., ", "dict("), {"system": system})
    chosen = system_of(make, **asked)
    names = [n for n in chosen.names if "rnn.weight" in n]
    assert len(names) == (2 if make is Recurrent else 8)
    assert chosen.prunable == ("own", "first.weight", *names, "last.weight")
    assert set(magnitude(chosen, density=0.5).masks) == set(chosen.prunable)


def test_masks_of_ones_own_beside_a_ticket():
    system = system_of()
    with pytest.warns(NumericalWarning, match="Left out"):
        ticket = magnitude(system, density=0.5)
    own = system.unflatten(system.state)
    masks = {name: own[name].abs() > own[name].abs().median() for name in RNN}
    masked = system.with_ticket(ticket).with_mask(ticket.masks | masks)
    kept = sum(int(mask.sum()) for mask in masks.values())
    assert masked.size == system.size - (42 - ticket.kept) - (36 - kept)
    trained = masked.unflatten(RECIPE(masked).state)
    for name, mask in (ticket.masks | masks).items():
        assert not trained[name][~mask].any()
    assert f"of {sum(p.numel() for p in own.values())} parameters" in ticket.summary()


def test_what_is_chosen_and_what_is_no_matrix_is_not_named():
    chosen = system_of(parameters=("first.*", "rnn.*", "last.*"))
    assert left_out(chosen) == RNN
    with torch.random.fork_rng():
        tied = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
        tied = tied.double()
    attends = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True).double()
    pooled = nn.Sequential(attends, nn.Flatten(), nn.Linear(6, 3)).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        magnitude(chosen, density=0.5)
        magnitude(GradientSystem(tied, CE, classes(12, 6, 3)), density=0.5)
        magnitude(GradientSystem(small_net(), CE, classes(12, 3, 3)), density=0.5)
        x, y = classes(12, 6, 3)
        magnitude(GradientSystem(pooled, CE, (x[:, None], y)), density=0.5)


def test_computed_weights_are_told_of_once_elsewhere():
    net = nn.Sequential(weight_norm(nn.Linear(6, 4)), nn.Linear(4, 3)).double()
    system = GradientSystem(net, CE, classes(12, 6, 3))
    with pytest.warns(NumericalWarning, match=r"0\.weight, computed of") as said:
        magnitude(system, density=0.5)
    assert len(said) == 1
