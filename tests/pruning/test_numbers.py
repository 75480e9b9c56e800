"""Numbers of other libraries become plain ones at the door, others are refused."""

import functools
import json

import numpy as np
import pytest
import torch
from problems import classes, small_net
from torch import nn

from dynprune.core import InvalidInputError
from dynprune.pruning import (
    densities_by_factor,
    densities_by_share,
    densities_by_target,
    early_bird,
    edge_popup,
    erk,
    force,
    from_scores,
    gem_miner,
    gradual_magnitude,
    imp,
    iterative_snip,
    kept_count,
    lamp,
    magnitude,
    magnitude_scores,
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

CE = nn.functional.cross_entropy
RECIPE = Recipe(lambda params: torch.optim.SGD(params, lr=0.1), steps=8, batch_size=10)


def system_of() -> GradientSystem:
    return GradientSystem(small_net(widths=(4, 5, 3)), CE, classes(40, 4, 3))


def by_scores(system, density):
    return from_scores(system, magnitude_scores(system), density=density)


def by_layers(system, density):
    densities = dict.fromkeys(system.prunable, density)
    return magnitude(system, layer_densities=densities)


PRUNERS = {
    "random": random,
    "erk": erk,
    "lamp": lamp,
    "snip": snip,
    "from_scores": by_scores,
    "layer densities": by_layers,
    "iterative_snip": functools.partial(iterative_snip, rounds=3),
    "synflow": functools.partial(synflow, rounds=3),
    "obd": functools.partial(obd, matvecs=50),
    "obs": functools.partial(obs, block_size=5),
    "sparsegpt": sparsegpt,
    "gem_miner": functools.partial(gem_miner, epochs=6),
    "edge_popup": functools.partial(edge_popup, epochs=2),
    "gradual_magnitude": functools.partial(
        gradual_magnitude, train=RECIPE, update_every=2
    ),
    "rigl": functools.partial(rigl, train=RECIPE, update_every=2),
    "sparse_evolution": functools.partial(
        sparse_evolution, train=RECIPE, update_every=2
    ),
    "early_bird": functools.partial(
        early_bird, train=RECIPE, unit="weight", window=2, tolerance=0.9
    ),
}


@pytest.mark.parametrize("kind", [np.float32, torch.tensor], ids=["numpy", "torch"])
@pytest.mark.parametrize("prune", PRUNERS.values(), ids=PRUNERS.keys())
def test_densities_of_other_libraries_are_plain(prune, kind, tmp_path):
    found = prune(system_of(), density=kind(0.5))
    plain = prune(system_of(), density=0.5)
    ticket = found if isinstance(found, Ticket) else found.ticket
    expected = plain if isinstance(plain, Ticket) else plain.ticket
    for name, mask in expected.masks.items():
        assert torch.equal(ticket.masks[name], mask)
    settings, others = ticket.provenance.settings, expected.provenance.settings
    assert json.dumps(settings) == json.dumps(others)
    ticket.save(tmp_path / "found.safetensors")


def test_a_count_is_of_the_number_that_was_given():
    # in float32 the product has not enough digits
    assert kept_count(np.float32(0.5), 2**25 + 2) == 2**24 + 1


@pytest.mark.parametrize(
    "densities",
    [np.array([1.0, 0.5]), torch.tensor([1.0, 0.5]), [1, np.float32(0.5)]],
    ids=["numpy", "torch", "mixed"],
)
def test_levels_may_be_an_array(densities, tmp_path):
    found = imp(system_of(), densities=densities, train=RECIPE)
    plain = imp(system_of(), densities=(1.0, 0.5), train=RECIPE)
    for name, mask in plain.tickets[1].masks.items():
        assert torch.equal(found.tickets[1].masks[name], mask)
    found.save(tmp_path / "run")
    for densities in (np.array([]), torch.ones(2, 2), ["dense", "half"]):
        with pytest.raises(InvalidInputError, match="ensit"):
            imp(system_of(), densities=densities, train=RECIPE)


@pytest.mark.parametrize("prune", PRUNERS.values(), ids=PRUNERS.keys())
@pytest.mark.parametrize("density", ["half", None, [0.5]])
def test_what_is_no_number_is_no_density(prune, density, untouched):
    system = system_of()
    with untouched(), pytest.raises(InvalidInputError, match="ensit"):
        prune(system, density=density)


COUNTS = {
    "rounds of synflow": (synflow, "rounds", {}),
    "rounds of force": (force, "rounds", {}),
    "rounds of iterative_snip": (iterative_snip, "rounds", {}),
    "block_size of obs": (obs, "block_size", {}),
    "samples of obs": (obs, "samples", {"block_size": 2}),
    "block_size of sparsegpt": (sparsegpt, "block_size", {}),
    "epochs of gem_miner": (gem_miner, "epochs", {"freeze_every": 1}),
    "freeze_every of gem_miner": (gem_miner, "freeze_every", {"epochs": 8}),
    "epochs of edge_popup": (edge_popup, "epochs", {}),
    "update_every of rigl": (rigl, "update_every", {"train": RECIPE}),
    "stop_step of rigl": (
        rigl,
        "stop_step",
        {"train": RECIPE, "update_every": 1},
    ),
    "updates of gradual_magnitude": (
        gradual_magnitude,
        "updates",
        {"train": RECIPE, "update_every": 1},
    ),
    "start_step of gradual_magnitude": (
        gradual_magnitude,
        "start_step",
        {"train": RECIPE, "update_every": 1},
    ),
    "window of early_bird": (
        early_bird,
        "window",
        {"train": RECIPE, "unit": "weight", "tolerance": 0.9},
    ),
}


@pytest.mark.parametrize(("prune", "knob", "more"), COUNTS.values(), ids=COUNTS.keys())
def test_counts_are_whole_numbers(prune, knob, more, tmp_path, untouched):
    system = system_of()
    for value in (3.0, "3", torch.tensor(3.0)):
        with untouched(), pytest.raises(InvalidInputError, match=knob):
            prune(system, density=0.5, **more | {knob: value})
    found = prune(system_of(), density=0.5, **more | {knob: np.int64(2)})
    ticket = found if isinstance(found, Ticket) else found.ticket
    ticket.save(tmp_path / "found.safetensors")


def test_products_and_levels_are_whole_numbers(tmp_path):
    with pytest.raises(InvalidInputError, match="matvecs"):
        obd(system_of(), density=0.5, matvecs=20.0)
    found = obd(system_of(), density=0.5, matvecs=np.int64(50))
    found.save(tmp_path / "found.safetensors")
    with pytest.raises(InvalidInputError, match="rewind_step"):
        imp(system_of(), densities=(1.0, 0.5), train=RECIPE, rewind_step=1.0)
    for densities_by in (densities_by_factor, densities_by_target, densities_by_share):
        with pytest.raises(InvalidInputError, match="levels"):
            densities_by(0.3, 2.0)
        with pytest.raises(InvalidInputError, match="number in"):
            densities_by("third", 2)
        plain = densities_by(np.float64(0.3), np.int64(2))
        assert plain == densities_by(0.3, 2)
        assert all(type(density) is float for density in plain)


def test_an_example_of_another_shape_is_refused(untouched):
    system = system_of()
    with untouched(), pytest.raises(InvalidInputError, match=r"\(1, 7\)"):
        synflow(system, density=0.5, example=torch.ones(1, 7))
    with untouched(), pytest.raises(InvalidInputError, match="example is a list"):
        synflow(system, density=0.5, example=[1.0] * 4)
    same = synflow(system_of(), density=0.5, example=torch.ones(1, 4)).masks
    for name, mask in synflow(system_of(), density=0.5).masks.items():
        assert torch.equal(mask, same[name])
