"""Layers without a weight, as ``nn.Linear(0, 3)``, neither count nor disturb."""

import functools

import pytest
import torch
from problems import classes, small_net
from torch import Tensor, nn

from dynprune.core import InvalidInputError
from dynprune.pruning import (
    early_bird,
    edge_popup,
    erk,
    erk_densities,
    force,
    gem_miner,
    gradual_magnitude,
    grasp,
    imp,
    iterative_snip,
    lamp,
    magnitude,
    obd,
    obs,
    random,
    rigl,
    snip,
    sparse_evolution,
    sparsegpt,
    synflow,
)
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket
from dynprune.training import Recipe

pytestmark = pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
CE = nn.functional.cross_entropy
RECIPE = Recipe(lambda params: torch.optim.SGD(params, lr=0.1), steps=8, batch_size=10)


class Net(nn.Module):
    def __init__(self, *, empty: bool) -> None:
        nn.Module.__init__(self)
        self.none = nn.Linear(0, 3, bias=False).double() if empty else None
        self.body = small_net(widths=(4, 5, 3))

    def forward(self, x: Tensor) -> Tensor:
        out = self.body(x)
        return out if self.none is None else out + self.none(x[:, :0])


def system_of(*, empty: bool) -> GradientSystem:
    return GradientSystem(Net(empty=empty), CE, classes(40, 4, 3))


def trained(prune, **knobs):
    return functools.partial(prune, train=RECIPE, update_every=2, **knobs)


def levels(scope: str):
    def prune(system, density):
        return imp(system, densities=(1.0, density), train=RECIPE, scope=scope)

    return prune


PRUNERS = {
    "random": random,
    "random by layer": functools.partial(random, scope="layer"),
    "magnitude": magnitude,
    "magnitude by layer": functools.partial(magnitude, scope="layer"),
    "erk": erk,
    "lamp": lamp,
    "snip": snip,
    "iterative_snip": functools.partial(iterative_snip, rounds=3),
    "force": functools.partial(force, rounds=3),
    "grasp": grasp,
    "synflow": functools.partial(synflow, rounds=3),
    "obd": functools.partial(obd, matvecs=50),
    "obs": functools.partial(obs, block_size=5),
    "obs, whole tensors": functools.partial(obs, block_size=None, scope="layer"),
    "obs, in turn": functools.partial(obs, block_size=5, order="sequential"),
    "obs, exact": functools.partial(obs, curvature="hessian", damping=10.0),
    "sparsegpt": sparsegpt,
    "sparsegpt, dense": functools.partial(sparsegpt, inputs="dense"),
    "gem_miner": functools.partial(gem_miner, epochs=6, rule="exact"),
    "edge_popup": functools.partial(edge_popup, epochs=2),
    "edge_popup, global": functools.partial(edge_popup, epochs=2, scope="global"),
    "gradual_magnitude": trained(gradual_magnitude),
    "gradual_magnitude by layer": trained(gradual_magnitude, scope="layer"),
    "rigl": trained(rigl),
    "rigl, uniform": trained(rigl, layers="uniform"),
    "sparse_evolution": trained(sparse_evolution),
    "imp": levels("global"),
    "imp by layer": levels("layer"),
    "early_bird": functools.partial(
        early_bird, train=RECIPE, unit="weight", window=2, tolerance=0.9
    ),
}


def last(found) -> Ticket:
    if isinstance(found, Ticket):
        return found
    return found.ticket if getattr(found, "tickets", None) is None else found.tickets[1]


@pytest.mark.parametrize("prune", PRUNERS.values(), ids=PRUNERS.keys())
def test_the_others_are_pruned_as_without_it(prune):
    system, twin = system_of(empty=True), system_of(empty=False)
    assert "none.weight" in system.prunable
    found, expected = last(prune(system, density=0.5)), last(prune(twin, density=0.5))
    for name, mask in expected.masks.items():
        assert torch.equal(found.masks[name], mask)
    assert found.masks["none.weight"].shape == (3, 0)
    collapse = dict(found.provenance.settings).get("collapse", {"empty_layers": []})
    assert collapse["empty_layers"] == []  # it never held a weight


def test_densities_by_shape_leave_it_out():
    found = erk_densities(system_of(empty=True), density=0.3)
    expected = erk_densities(system_of(empty=False), density=0.3)
    assert {name: found[name] for name in expected} == expected
    assert found["none.weight"] == 1.0


def test_nothing_but_empty_layers_is_refused(untouched):
    net = nn.Linear(0, 3).double()
    data = torch.ones(6, 0, dtype=torch.float64), torch.arange(6) % 3
    system = GradientSystem(net, CE, data)
    for prune in (magnitude, random, snip, erk, synflow, gem_miner, sparsegpt, obs):
        with untouched(), pytest.raises(InvalidInputError, match="no prunable weight"):
            prune(system, density=0.5)
