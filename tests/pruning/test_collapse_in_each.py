"""A network that comes apart is told in the same way by every pruner."""

import copy
import inspect
import re
import warnings

import pytest
import torch
from problems import classes, small_net
from torch import nn

from dynprune.core import InvalidInputError, NumericalWarning
from dynprune.pruning import (
    edge_popup,
    from_scores,
    gem_miner,
    gradual_magnitude,
    imp,
    magnitude,
    obd,
    obs,
    random,
    rigl,
    snip,
    sparse_evolution,
    sparsegpt,
)
from dynprune.system import GradientSystem
from dynprune.training import Recipe

CE = nn.functional.cross_entropy
LOST = "no path of kept weights leads from the input to the output"
STILL = {"epochs": 2, "optimizer": lambda params: torch.optim.SGD(params, lr=1e-12)}
# each keeps so little of two layers of 4 → 5 → 3 that nothing meets in the middle
ONE_SHOT = {
    "magnitude": (magnitude, {"density": 0.1}),
    "obd": (obd, {"density": 0.1}),
    "obs": (obs, {"density": 0.1, "block_size": 5}),
    "sparsegpt": (sparsegpt, {"density": 1e-9}),
    "edge_popup": (edge_popup, {"density": 1e-9, **STILL}),
    "edge_popup, global": (edge_popup, {"density": 1e-9, "scope": "global", **STILL}),
    "gem_miner": (
        gem_miner,
        {"density": 0.09, "rule": "exact", "freeze_every": 1, "seed": 1, **STILL},
    ),
    "gem_miner, throw=False": (
        gem_miner,
        {"density": 1e-9, "rule": "exact", "freeze_every": 1, "throw": False, **STILL},
    ),
}
EACH = pytest.mark.parametrize(
    ("prune", "knobs"), ONE_SHOT.values(), ids=ONE_SHOT.keys()
)


def system_of(*, empty: bool = True) -> GradientSystem:
    net = small_net(widths=(4, 5, 3))
    if empty:
        with torch.no_grad():
            net[2].weight.mul_(1e-6)  # nothing of it is kept by size
            net[0].weight[0] *= 100.0  # what is kept goes to a unit
            net[2].weight[:, 0] = 0.0  # that leads nowhere
    return GradientSystem(net, CE, classes(20, 4, 3))


def found_in(ticket) -> dict:
    return dict(ticket.provenance.settings)["collapse"]


def connected(masks) -> bool:
    first, last = masks["0.weight"].double(), masks["2.weight"].double()
    return bool((last @ first).any())


@EACH
@pytest.mark.filterwarnings("ignore:After epoch")
def test_a_ticket_that_lost_its_input_is_refused(prune, knobs, untouched):
    system = system_of()
    before = copy.deepcopy(system.model.state_dict())
    with untouched():
        if knobs.get("throw", True):
            with pytest.raises(InvalidInputError, match=LOST):
                prune(system, **knobs)
        with pytest.warns(NumericalWarning, match=LOST):
            told = prune(system, collapse="warn", **knobs)
        quiet = prune(system, collapse="ignore", **knobs)
    assert not connected(told.masks)
    assert found_in(told)["dependence"] == "lost"
    assert found_in(told)["empty_layers"] == [
        name for name, mask in told.masks.items() if not mask.any()
    ]
    assert found_in(quiet) == {"dependence": "not tested"}
    assert all(torch.equal(quiet.masks[n], m) for n, m in told.masks.items())
    assert quiet.cost == told.cost  # what the test takes is in the provenance
    with pytest.raises(InvalidInputError, match="collapse is 'raise'"):
        prune(system, collapse="raise", **knobs)
    for name, part in system.model.state_dict().items():
        assert torch.equal(part, before[name]), name


@EACH
def test_a_ticket_that_kept_its_input_passes(prune, knobs):
    ticket = prune(system_of(empty=False), **knobs | {"density": 0.8})
    assert connected(ticket.masks)
    assert found_in(ticket)["dependence"] == "kept"


def recipe() -> Recipe:
    return Recipe(
        lambda params: torch.optim.SGD(params, lr=1e-6), steps=8, batch_size=20
    )


TRAININGS = {
    "gradual_magnitude": lambda s, **k: gradual_magnitude(
        s, density=0.1, update_every=2, **k
    ),
    "rigl": lambda s, **k: rigl(
        s, density=0.06, layers="uniform", update_every=2, drop=0.01, seed=0, **k
    ),
    "sparse_evolution": lambda s, **k: sparse_evolution(
        s, density=0.06, layers="uniform", update_every=2, drop=0.01, seed=0, **k
    ),
}


@pytest.mark.parametrize("train", TRAININGS.values(), ids=TRAININGS.keys())
def test_trainings_warn_and_are_returned(train):
    system = system_of()
    with pytest.warns(NumericalWarning, match=LOST):
        told = train(system, train=recipe())
    quiet = train(system, train=recipe(), collapse="ignore")
    assert not connected(told.ticket.masks)
    assert found_in(told.ticket)["dependence"] == "lost"
    assert found_in(quiet.ticket) == {"dependence": "not tested"}
    assert torch.equal(quiet.run.state, told.run.state)
    with pytest.raises(
        InvalidInputError, match=r"is 'error'\. Pass 'warn' or 'ignore'"
    ):
        train(system, train=recipe(), collapse="error")


def test_iterative_pruning_warns_once_and_goes_on():
    system = system_of()
    densities = (1.0, 0.8, 0.4, 0.3, 0.1)
    with pytest.warns(NumericalWarning, match=f"At density 0.4 {LOST}") as warned:
        run = imp(system, densities=densities, train=recipe())
    assert len(warned) == 1  # the levels after it found the same
    found = [found_in(ticket)["dependence"] for ticket in run.tickets]
    assert found == ["not tested", "kept", "lost", "lost", "lost"]
    assert [connected(ticket.masks) for ticket in run.tickets] == [
        *(True, True),
        *(False, False, False),
    ]
    quiet = imp(system, densities=densities, train=recipe(), collapse="ignore")
    for a, b in zip(run.levels, quiet.levels, strict=True):
        assert all(torch.equal(b.state[n], part) for n, part in a.state.items())
    with pytest.raises(
        InvalidInputError, match=r"is 'error'\. Pass 'warn' or 'ignore'"
    ):
        imp(system, densities=densities, train=recipe(), collapse="error")


def knobs_in(message: str, pruner) -> list[str]:
    """Names of arguments that a message advises and that do not exist."""
    elsewhere = re.findall(r"from_scores\((.*?)\)", message)
    own = re.sub(r"from_scores\(.*?\)", "", message)
    missing = []
    for text, function in [(own, pruner), *((part, from_scores) for part in elsewhere)]:
        known = inspect.signature(function).parameters
        missing += [name for name in re.findall(r"(\w+)=", text) if name not in known]
    return missing


def test_the_oracle_of_advice_bites():
    assert knobs_in("pass scope='layer'", snip) == ["scope"]
    assert knobs_in("call from_scores(..., scope='layer')", snip) == []
    assert knobs_in("call from_scores(..., window=3)", snip) == ["window"]


CALLS = {
    **{name: (prune, knobs) for name, (prune, knobs) in ONE_SHOT.items()},
    "imp": (imp, {"densities": (1.0, 0.1), "train": recipe()}),
    "gradual_magnitude": (
        gradual_magnitude,
        {"density": 0.1, "update_every": 2, "train": recipe()},
    ),
    **{
        prune.__name__: (
            prune,
            {
                "density": 0.06,
                "layers": "uniform",
                "update_every": 2,
                "drop": 0.01,
                "train": recipe(),
            },
        )
        for prune in (rigl, sparse_evolution)
    },
    "snip": (snip, {"density": 0.05}),
    "random": (random, {"density": 0.06, "seed": 1}),
    "random, by layer": (random, {"density": 0.01, "scope": "layer", "seed": 1}),
    "magnitude, each": (
        magnitude,
        {
            "layer_densities": {"0.weight": 0.05, "2.weight": 0.07},
            "scope": "layer",
        },
    ),
}


@pytest.mark.parametrize(("prune", "knobs"), CALLS.values(), ids=CALLS.keys())
def test_advice_names_arguments_that_there_are(prune, knobs):
    system = system_of()
    messages = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            prune(system, **knobs)
        except InvalidInputError as error:
            messages.append(str(error))
    messages += [str(one.message) for one in caught]
    assert any(LOST in message for message in messages)
    assert {one.filename for one in caught} <= {__file__}  # the caller's line
    for message in messages:
        assert knobs_in(message, prune) == [], message
        # what was asked already is no advice
        if prune is edge_popup and knobs.get("scope", "layer") == "layer":
            assert "scope=" not in message
        assert "density" in message
        if prune in {magnitude, random, obd, obs}:  # they have the knobs themselves
            assert "from_scores" not in message
            assert ("scope='layer'" in message) == ("scope" not in knobs)
            has = "layer_densities" in inspect.signature(prune).parameters
            assert ("layer_densities" in message) == has
