"""Second order and sparse training on models that are no plain chain."""

import copy

import pytest
import torch
from other_models import SYSTEMS

from dynprune.pruning import (
    gradual_magnitude,
    imp,
    kept_count,
    obd,
    obs,
    rigl,
    sparse_evolution,
    sparsegpt,
)
from dynprune.training import Recipe


def recipe(**knobs) -> Recipe:
    return Recipe(lambda p: torch.optim.Adam(p, lr=1e-2), steps=6, **knobs)


SOON = {"train": recipe(), "update_every": 2}
METHODS = {
    "obd": lambda s, d: obd(s, density=d, matvecs=2000),
    "obs": lambda s, d: obs(s, density=d, block_size=8),
    "obs, sequential": lambda s, d: obs(
        s, density=d, block_size=8, order="sequential", scope="layer"
    ),
    "sparsegpt": lambda s, d: sparsegpt(s, density=d),
    "gradual": lambda s, d: gradual_magnitude(s, density=d, **SOON).trained,
    "rigl": lambda s, d: rigl(s, density=d, **SOON).trained,
    "set": lambda s, d: sparse_evolution(s, density=d, **SOON).trained,
    "imp": lambda s, d: imp(
        s, densities=(1.0, d), train=recipe(), rewind="learning-rate"
    ).tickets[-1],
}
BY_LAYER = {"obs, sequential", "sparsegpt"}


@pytest.fixture(scope="module", params=SYSTEMS.values(), ids=SYSTEMS.keys())
def system(request):
    return request.param()


@pytest.mark.parametrize("method", METHODS)
def test_counts_are_exact_and_the_user_keeps_everything(system, method, untouched):
    before = copy.deepcopy(system.model.state_dict())
    with untouched():
        ticket = METHODS[method](system, 0.6)
    sizes = {name: mask.numel() for name, mask in ticket.masks.items()}
    assert tuple(sizes) == system.prunable
    if method in BY_LAYER:
        counts = {name: int(mask.sum()) for name, mask in ticket.masks.items()}
        assert counts == {name: kept_count(0.6, size) for name, size in sizes.items()}
    else:
        assert ticket.kept == kept_count(0.6, sum(sizes.values()))
    for name, part in system.model.state_dict().items():
        assert torch.equal(part, before[name]), name
    other = copy.deepcopy(system.model)
    ticket.apply_(other)
    own = dict(other.named_parameters())
    for name, mask in ticket.masks.items():
        assert not own[name][~mask].any()
    assert torch.isfinite(system.with_ticket(ticket).loss())
