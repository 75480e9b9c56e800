"""How weights are shared out between layers: given, ERK, LAMP."""

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, strategies as st
from problems import classes, small_net
from torch import nn

from dynprune.core import Cost, InvalidInputError, cite
from dynprune.pruning import (
    erk,
    erk_densities,
    from_scores,
    kept_count,
    lamp,
    lamp_scores,
    magnitude,
    random,
)
from dynprune.system import GradientSystem

CE = nn.functional.cross_entropy


def system_of(*widths: int, **kwargs) -> GradientSystem:
    data = classes(6, widths[0], widths[-1])
    return GradientSystem(small_net(widths=widths), CE, data, **kwargs)


def conv_system() -> GradientSystem:
    net = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    ).double()
    x, y = classes(6, 32, 10)
    return GradientSystem(net, CE, (x.view(6, 2, 4, 4), y))


def shapes_of(system):
    own = dict(system.module.named_parameters())
    return {name: tuple(own[name].shape) for name in system.prunable}


def transcribed_erk(shapes, density):
    """Solve for ε in exact fractions; one layer becomes dense at a time."""
    d, dense = Fraction(density), []
    while True:
        rest = [name for name in shapes if name not in dense]
        left = d * sum(math.prod(shapes[n]) for n in rest)
        left -= (1 - d) * sum(math.prod(shapes[n]) for n in dense)
        divisor = sum(
            Fraction(sum(shapes[n]), math.prod(shapes[n])) * math.prod(shapes[n])
            for n in rest
        )
        found = {n: Fraction(1) for n in dense}
        if not rest:
            return found
        epsilon = left / divisor
        found |= {
            n: epsilon * Fraction(sum(shapes[n]), math.prod(shapes[n])) for n in rest
        }
        worst = max(rest, key=lambda n: found[n])
        if found[worst] <= 1:
            return {n: found[n] for n in shapes}
        dense.append(worst)


@given(density=st.floats(1e-3, 1.0))
def test_erk_is_its_definition(density):
    for system in (ERK_CHAIN, ERK_CONV):
        shapes = shapes_of(system)
        found, exact = erk_densities(system, density=density), None
        exact = transcribed_erk(shapes, density)
        assert list(found) == list(shapes)
        total = sum(math.prod(shape) for shape in shapes.values())
        for name in shapes:
            assert found[name] == pytest.approx(float(exact[name]), rel=1e-12)
            assert 0 < found[name] <= 1
        asked = sum(found[n] * math.prod(shapes[n]) for n in shapes)
        assert asked == pytest.approx(density * total, rel=1e-12)


ERK_CHAIN, ERK_CONV = system_of(5, 9, 4, 3), conv_system()


def test_erk_makes_small_layers_dense_one_after_the_other():
    densities = [erk_densities(ERK_CONV, density=d) for d in (0.05, 0.75, 0.9, 1.0)]
    dense = [[n for n, d in found.items() if d == 1.0] for found in densities]
    assert [len(names) for names in dense] == [0, 1, 2, 3]
    assert dense[1] == ["0.weight"]


@given(density=st.floats(0.02, 1.0), seed=st.integers(0, 100))
def test_erk_tickets_have_the_exact_count_near_their_densities(density, seed):
    system = ERK_CONV
    ticket = erk(system, density=density, collapse="ignore", seed=seed)
    assert ticket.kept == kept_count(density, ticket.prunable_size)
    for name, wanted in erk_densities(system, density=density).items():
        mask = ticket.masks[name]
        assert abs(int(mask.sum()) - wanted * mask.numel()) < 1 + 1e-9


ERK_THIN = system_of(200, 100, 2, 2, 2, 2)


@given(density=st.floats(2e-4, 3e-3))
def test_erk_keeps_no_more_where_thin_layers_ask_for_less_than_one(density):
    total = sum(math.prod(shape) for shape in shapes_of(ERK_THIN).values())
    ticket = erk(ERK_THIN, density=density, collapse="ignore")
    counts = [int(mask.sum()) for mask in ticket.masks.values()]
    assert min(counts) == 1
    assert sum(counts) == max(5, kept_count(density, total))


def test_erk_takes_back_from_the_layer_that_was_rounded_down_least():
    # 7.25, 2.46 and three times 0.10 are 7, 2 and three ones: two too many
    ticket = erk(ERK_THIN, density=10 / 20212, collapse="ignore")
    assert [int(mask.sum()) for mask in ticket.masks.values()] == [6, 1, 1, 1, 1]


def test_erk_keeps_one_weight_in_every_layer():
    ticket = erk(ERK_CONV, density=1e-6, collapse="ignore")
    assert [int(mask.sum()) for mask in ticket.masks.values()] == [1, 1, 1]


def test_erk_is_its_seed_and_says_where_it_comes_from():
    a, b, c = (erk(ERK_CONV, density=0.2, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a.masks[n], b.masks[n]) for n in a.masks)
    assert any(not torch.equal(a.masks[n], c.masks[n]) for n in a.masks)
    assert a.provenance.made_by == "pruning.erk"
    assert dict(a.provenance.settings)["density"] == 0.2
    assert "Rigging the Lottery" in cite(a)
    with pytest.raises(InvalidInputError, match=r"density of 0\.0 was asked"):
        erk(ERK_CONV, density=0.0)


def test_given_layer_densities_are_kept_exactly():
    system = system_of(5, 9, 4)
    wanted = {"2.weight": 0.75, "0.weight": 0.2}
    for prune in (random, magnitude):
        ticket = prune(system, layer_densities=wanted)
        assert ticket.layer_densities == {"0.weight": 9 / 45, "2.weight": 27 / 36}
        assert dict(ticket.provenance.settings)["layer_densities"] == wanted
        assert "density" not in dict(ticket.provenance.settings)
    sizes = dict(system.unflatten(system.state))
    ticket = magnitude(system, layer_densities=wanted)
    for name, mask in ticket.masks.items():
        assert sizes[name][mask].abs().min() > sizes[name][~mask].abs().max()


def test_layer_densities_of_another_ticket_can_be_drawn_at_random():
    system = system_of(5, 9, 4)
    first = magnitude(system, density=0.5)
    drawn = random(system, layer_densities=first.layer_densities, seed=3)
    assert drawn.layer_densities == first.layer_densities
    assert drawn.kept == first.kept


def test_scores_with_erk_densities():
    system = ERK_CHAIN
    wanted = erk_densities(system, density=0.4)
    scores = {n: s.abs() for n, s in system.unflatten(system.state).items()}
    scores = {n: scores[n] for n in system.prunable}
    ticket = from_scores(system, scores, layer_densities=wanted)
    for name, mask in ticket.masks.items():
        assert int(mask.sum()) == kept_count(wanted[name], mask.numel())


@given(
    values=st.lists(
        st.sampled_from([-3.0, -1.5, -1.0, 0.0, 1e-9, 0.5, 1.0, 2.0]),
        min_size=12,
        max_size=12,
    )
)
def test_lamp_is_its_definition(values):
    system = LAMP_SYSTEM
    own = torch.tensor(values, dtype=torch.float64)
    state = {
        name: own.view(3, 4) if name == "0.weight" else part
        for name, part in system.unflatten(system.state).items()
    }
    found = lamp_scores(system, state=state)["0.weight"].reshape(-1)
    for score, w in zip(found.tolist(), values, strict=True):
        below = sum(v * v for v in values if v * v >= w * w)
        assert score == pytest.approx(w * w / below if below else 0.0, rel=1e-12)


LAMP_SYSTEM = system_of(4, 3, 2)


def test_lamp_keeps_the_largest_of_each_layer_until_the_end():
    system = system_of(5, 9, 4, 3)
    with torch.no_grad():  # a layer of tiny weights, which magnitude would empty
        system.model[2].weight.mul_(1e-6)
    ticket = lamp(system, density=3 / 93, collapse="ignore")
    assert ticket.kept == 3
    for name, mask in ticket.masks.items():
        (place,) = torch.nonzero(mask.reshape(-1)).reshape(-1).tolist()
        sizes = dict(system.model.named_parameters())[name].abs().reshape(-1)
        assert place == int(sizes.argmax())
    with pytest.raises(InvalidInputError, match=r"empty layers: '2\.weight'"):
        magnitude(system, density=0.3)


def test_lamp_of_equally_large_weights_shares_the_score():
    system = system_of(2, 2, 3)
    one = torch.tensor([2.0, 2.0, 1.0, -2.0, 0, 0, 9, 3, 3, 3, 3, 3, 0, 0, 0]).double()
    found = lamp_scores(system, state=one)
    assert found["0.weight"].tolist() == [[1 / 3, 1 / 3], [1 / 13, 1 / 3]]
    assert found["2.weight"].max() == 1.0
    # so that a layer of ties is empty before the rest of the other one is gone
    ends = lamp(system, state=one, density=1 / 10, collapse="ignore").masks
    assert [int(mask.sum()) for mask in ends.values()] == [0, 1]


def test_lamp_orders_each_layer_by_magnitude():
    system = system_of(5, 9, 4, 3)
    ticket = lamp(system, density=0.4)
    sizes = {n: p.detach().abs() for n, p in system.model.named_parameters()}
    for name, mask in ticket.masks.items():
        assert sizes[name][mask].min() > sizes[name][~mask].max()


def test_lamp_of_a_trained_state_in_single_precision():
    system = system_of(5, 9, 4)
    trained = system.state * 2.0 + 0.1
    ticket = lamp(system, density=0.3, state=trained, cost=Cost(gradients=5.0))
    assert ticket.cost == Cost(gradients=5.0)
    assert torch.equal(system.flatten(ticket.state), system.state)
    single = lamp_scores(system, state=trained.float().double())
    double = lamp_scores(system, state=trained)
    for name in single:
        # squares of numbers with 24 bits, and their sums
        torch.testing.assert_close(single[name], double[name], rtol=1e-6, atol=0)
    assert "Layer-adaptive" in cite(ticket)
