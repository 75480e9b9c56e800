import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from dynprune.core import Cost, InvalidInputError, Provenance
from dynprune.pruning import from_scores, kept_count, magnitude, random
from dynprune.system import GradientSystem


def system_of(model: nn.Module, width: int, **kwargs) -> GradientSystem:
    x = torch.ones(4, width, dtype=torch.float64)
    return GradientSystem(model, lambda out, y: out.mean() * 0 + 1.0, (x, x), **kwargs)


def chain(*widths: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*layers).double()


def transcribed(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Keep by sorting (−score, index) pairs in Python."""
    flat = scores.tolist()
    order = sorted(range(len(flat)), key=lambda i: (-flat[i], i))
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[order[:count]] = True
    return mask


@given(
    values=st.lists(
        st.sampled_from([-2.0, -1.0, -0.0, 0.0, 1.0, 1.5]), min_size=14, max_size=14
    ),
    density=st.one_of(
        st.floats(1e-12, 1.0), st.sampled_from([1e-300, 0.25, 0.5, 1.0, 1.5 / 14])
    ),
)
def test_exact_count_with_ties_to_the_lower_index(values, density):
    system = system_of(chain(4, 2, 3), 4)
    scores = torch.tensor(values).double()
    named = {"0.weight": scores[:8].view(2, 4), "1.weight": scores[8:].view(3, 2)}
    given = dict(reversed(named.items()))
    count = max(1, math.floor(density * 14 + 0.5))
    if count < 14 and len(set(values)) == 1:  # a set takes −0 and 0 for one
        with pytest.raises(InvalidInputError, match="scores of all layers are all"):
            from_scores(system, given, density=density, collapse="ignore")
        return
    ticket = from_scores(system, given, density=density, collapse="ignore")
    found = torch.cat([mask.reshape(-1) for mask in ticket.masks.values()])
    assert list(ticket.masks) == ["0.weight", "1.weight"]
    assert int(found.sum()) == count == ticket.kept
    assert torch.equal(found, transcribed(scores, count))
    assert ticket.density == count / 14


@given(density=st.floats(0, 1, exclude_min=True), size=st.integers(1, 10**6))
def test_count_is_the_nearest_one(density, size):
    count = kept_count(density, size)
    assert 1 <= count <= size
    if count > 1:
        # one rounding of the product in float64
        slack = Fraction(size) * Fraction(2) ** -52
        assert abs(count - Fraction(density) * size) <= Fraction(1, 2) + slack


@given(scale=st.sampled_from([1e-3, 2.0, 1e6]), shift=st.sampled_from([-5.0, 0.0, 7.0]))
def test_masks_ignore_increasing_maps_of_the_scores(scale, shift):
    system = system_of(chain(4, 2, 3), 4)
    scores = {
        n: s * 1.0 for n, s in system.unflatten(system.state).items() if s.ndim > 1
    }
    moved = {n: scale * s + shift for n, s in scores.items()}
    a = from_scores(system, scores, density=0.3).masks
    b = from_scores(system, moved, density=0.3).masks
    assert all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("density", [1e-9, 0.02, 0.36, 0.5, 0.51, 0.999, 1.0], ids=str)
def test_layer_scope_counts_in_each_layer(density):
    system = system_of(chain(4, 2, 3), 4)
    ticket = random(system, density=density, scope="layer", collapse="ignore", seed=1)
    counts = [int(mask.sum()) for mask in ticket.masks.values()]
    assert counts == [kept_count(density, 8), kept_count(density, 6)]


def test_masked_system_keeps_what_is_pruned_pruned():
    dense = system_of(chain(4, 2, 3), 4)
    first = random(dense, density=0.5, seed=0)
    masked = dense.with_mask(first.masks)
    second = random(masked, density=0.25, seed=1)
    assert second.kept == kept_count(0.25, 14) == 4
    assert second.prunable_size == 14
    for name, mask in second.masks.items():
        assert not (mask & ~first.masks[name]).any()
    same = random(masked, density=0.5, seed=1)
    assert all(torch.equal(same.masks[n], m) for n, m in first.masks.items())
    with pytest.raises(InvalidInputError, match="but only 7 survive"):
        random(masked, density=0.6)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.0001, float("nan"), float("inf")])
def test_densities_outside_are_refused(density):
    with pytest.raises(InvalidInputError, match=f"density of {density} was asked"):
        random(system_of(chain(4, 2), 4), density=density)


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ({}, r"missing for \['0.weight'\]"),
        (
            {"0.weight": torch.ones(2, 4), "0.bias": torch.ones(2)},
            r"too much for \['0.b",
        ),
        ({"0.weight": torch.ones(4, 2)}, r"shape \(4, 2\), the weights \(2, 4\)"),
        ({"0.weight": torch.tensor([[1.0, 2, 3, torch.nan]] * 2)}, "2 of 8 scores"),
        ({"0.weight": torch.tensor([[1.0, 2, 3, torch.inf]] * 2)}, "2 of 8 scores"),
    ],
    ids=["missing", "bias", "shape", "nan", "inf"],
)
def test_wrong_scores_are_refused(scores, says):
    with pytest.raises(InvalidInputError, match=says):
        from_scores(system_of(chain(4, 2), 4), scores, density=0.5)


def test_unknown_rule_and_scope_are_refused():
    system = system_of(chain(4, 2), 4)
    scores = {"0.weight": torch.arange(8.0).view(2, 4)}
    with pytest.raises(InvalidInputError, match="Unknown rule 'top'"):
        from_scores(system, scores, density=0.5, rule="top")
    with pytest.raises(InvalidInputError, match="scope is 'local'"):
        from_scores(system, scores, density=0.5, scope="local")


def test_model_without_prunable_weights_is_refused():
    model = nn.Sequential(nn.LayerNorm(3)).double()
    with pytest.raises(InvalidInputError, match="no prunable weight"):
        random(system_of(model, 3), density=0.5)


def test_ticket_records_who_made_it_and_what_it_cost():
    system = system_of(chain(4, 2), 4)
    ticket = from_scores(
        system,
        {"0.weight": torch.arange(8.0).view(2, 4)},
        density=0.5,
        provenance=Provenance(made_by="mine", seed=4, settings=(("knob", 2),)),
        cost=Cost(hvps=3.0),
    )
    made = ticket.provenance
    assert (made.made_by, made.seed, made.dtype) == ("mine", 4, "float64")
    assert dict(made.settings)["knob"] == 2
    assert dict(made.settings)["density"] == 0.5
    assert ticket.cost == Cost(hvps=3.0)


def test_frozen_parameters_and_buffers_travel_with_the_ticket():
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2), nn.Linear(2, 3)).double()
    model[0].requires_grad_(False)
    ticket = random(system_of(model, 4), density=0.5)
    assert list(ticket.masks) == ["2.weight"]
    assert list(ticket.state) == [name for name, _ in model.named_parameters()]
    assert list(ticket.buffers) == [name for name, _ in model.named_buffers()]
    assert torch.equal(ticket.state["0.weight"], model[0].weight)


def test_tied_weights_are_counted_once():
    model = chain(3, 3, 3)
    model[1].weight = model[0].weight
    ticket = magnitude(system_of(model, 3), density=0.5)
    assert ticket.prunable_size == 9
    assert list(ticket.masks) == ["0.weight"]
    ticket.apply_(model)
    assert int((model[1].weight != 0).sum()) == kept_count(0.5, 9)


def test_half_precision_scores_are_ranked():
    system = system_of(chain(4, 2), 4)
    scores = {"0.weight": torch.arange(8.0).view(2, 4).bfloat16()}
    mask = from_scores(system, scores, density=0.25).masks["0.weight"]
    assert mask.reshape(-1).tolist() == [False] * 6 + [True] * 2
