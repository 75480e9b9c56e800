"""Tickets as sets of weights: identities of Boolean algebra, refusals, inversion."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, strategies as st

from dynprune.core import Cost, InvalidInputError, Provenance, cite
from dynprune.tickets import (
    Ticket,
    complement,
    difference,
    intersection,
    invert,
    shuffle,
    union,
)

SHAPES = {"a": (2, 3), "b": (5,)}


def ticket(bits: int, *, scale: float = 1.0, cost: float = 1.0) -> Ticket:
    """Return a ticket whose masks spell a number of 11 bits, one always kept."""
    flat = torch.tensor([bool(bits >> i & 1) for i in range(11)])
    masks = {"a": flat[:6].view(2, 3), "b": flat[6:]}
    state = {name: scale * torch.arange(6.0 if name == "a" else 5.0) for name in masks}
    state["a"] = state["a"].view(2, 3)
    state["c"] = torch.full((2,), scale)
    return Ticket.make(
        masks,
        state,
        {"mean": torch.zeros(2)},
        cost=Cost(gradients=cost),
        provenance=Provenance(made_by="mine", seed=bits, sources=("imp",)),
    )


def bits(made: Ticket) -> int:
    flat = torch.cat([mask.reshape(-1) for mask in made.masks.values()])
    return sum(1 << i for i, kept in enumerate(flat.tolist()) if kept)


WORDS = st.integers(1, 2**11 - 1)


@given(x=WORDS, y=WORDS)
def test_operations_are_those_on_bits(x, y):
    a, b = ticket(x), ticket(y, cost=2.0)
    assert bits(union(a, b)) == x | y
    for operation, wanted in ((intersection, x & y), (difference, x & ~y)):
        if wanted:
            assert bits(operation(a, b)) == wanted
        else:
            with pytest.raises(InvalidInputError, match="keeps 0 of 11 weights"):
                operation(a, b)
    made = union(a, b)
    assert made.cost == Cost(gradients=3.0)
    assert torch.equal(made.state["c"], a.state["c"])


@given(x=st.integers(1, 2**11 - 2))
def test_complement_is_the_rest(x):
    a = ticket(x)
    rest = complement(a)
    assert bits(rest) == 2**11 - 1 - x
    assert bits(complement(rest)) == x
    assert bits(union(a, rest)) == 2**11 - 1
    assert rest.density + a.density == pytest.approx(1.0, abs=1e-15)
    assert rest.cost == a.cost


def test_a_dense_ticket_has_no_complement():
    with pytest.raises(InvalidInputError, match="complement of a ticket keeps 0 of 11"):
        complement(ticket(2**11 - 1))


def test_states_must_agree_or_be_chosen():
    a, b = ticket(3), ticket(6, scale=2.0)
    with pytest.raises(InvalidInputError, match=r"different states: a, b, c differ"):
        union(a, b)
    assert torch.equal(union(a, b, state="first").state["a"], a.state["a"])
    assert torch.equal(union(a, b, state="second").state["a"], b.state["a"])
    with pytest.raises(InvalidInputError, match="state is 'mine'"):
        union(a, b, state="mine")
    moved = replace(
        b, state_items=a.state_items, buffer_items=(("mean", torch.ones(2)),)
    )
    with pytest.raises(InvalidInputError, match="different states: mean differ"):
        difference(a, moved)


@pytest.mark.parametrize(
    ("masks", "state", "says"),
    [
        ({"a": (2, 3)}, {"a": (2, 3), "b": (5,), "c": (2,)}, "in the second: b"),
        (
            {"a": (2, 3), "b": (4,)},
            {"a": (2, 3), "b": (4,), "c": (2,)},
            r"b \(4,\) instead of \(5,\)",
        ),
        (
            {"a": (2, 3), "b": (5,), "d": (1,)},
            {"a": (2, 3), "b": (5,), "c": (2,), "d": (1,)},
            "missing in the first: d",
        ),
        (SHAPES, {**SHAPES, "c": (3,)}, r"parameters.*c \(3,\) instead of \(2,\)"),
    ],
    ids=["missing", "shape", "too many", "state"],
)
def test_what_differs_is_named(masks, state, says):
    other = Ticket.make(
        {name: torch.ones(shape).bool() for name, shape in masks.items()},
        {name: torch.ones(shape) for name, shape in state.items()},
        {"mean": torch.zeros(2)},
    )
    for operation in (union, intersection, difference):
        with pytest.raises(InvalidInputError, match=says):
            operation(ticket(7), other)


def test_records_where_it_came_from(tmp_path):
    made = union(ticket(3), ticket(12))
    assert made.provenance.made_by == "tickets.union"
    assert dict(made.provenance.settings)["second_seed"] == 12
    assert "frankle2019lottery" in cite(made)
    made.save(tmp_path / "union")
    assert Ticket.load(tmp_path / "union").provenance == made.provenance


@given(x=WORDS, seed=st.integers(0, 5))
def test_inversion_without_scores_avoids_what_was_kept(x, seed):
    a = ticket(x)
    found = invert(a, seed=seed)
    assert found.layer_densities == a.layer_densities
    for name, mask in a.masks.items():
        kept, size = int(mask.sum()), mask.numel()
        assert int((found.masks[name] & mask).sum()) == max(0, 2 * kept - size)
    assert bits(invert(a, seed=seed)) == bits(found)
    assert torch.equal(found.state["a"], a.state["a"])


def test_inversion_without_scores_is_uniform():
    # 4 standard errors of a binomial with p = 1/3 over 400 draws
    mask = {"w": torch.tensor([True, False, False, False])}
    made = Ticket.make(mask, {"w": torch.ones(4)})
    draws = torch.stack([invert(made, seed=s).masks["w"] for s in range(400)])
    shares = draws.double().mean(0)
    assert shares[0] == 0
    assert float((shares[1:] - 1 / 3).abs().max()) < 4 * (2 / 9 / 400) ** 0.5


@given(
    values=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=11, max_size=11)
)
def test_inversion_by_scores_keeps_the_lowest(values):
    a = ticket(0b10110010011)
    scores = torch.tensor(values)
    named = {"a": scores[:6].view(2, 3), "b": scores[6:]}
    found = invert(a, named).masks
    for name, mask in a.masks.items():
        flat = named[name].reshape(-1).tolist()
        order = sorted(range(len(flat)), key=lambda i: (flat[i], i))
        wanted = torch.zeros(len(flat), dtype=torch.bool)
        wanted[order[: int(mask.sum())]] = True
        assert torch.equal(found[name].reshape(-1), wanted)


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        ({"a": torch.ones(2, 3)}, "missing in the scores: b"),
        ({"a": torch.ones(3, 2), "b": torch.ones(5)}, r"a \(3, 2\) instead"),
        ({"a": torch.ones(2, 3), "b": torch.full((5,), torch.nan)}, "infinite: b"),
    ],
    ids=["missing", "shape", "nan"],
)
def test_scores_that_do_not_fit_are_refused(scores, says):
    with pytest.raises(InvalidInputError, match=says):
        invert(ticket(7), scores)


def test_globals_stay(untouched):
    with untouched():
        invert(ticket(7), seed=3)
        shuffle(union(ticket(7), ticket(9)))


def test_a_buffer_that_is_not_a_number_is_the_same_state():
    masks, state = {"a": torch.tensor([True, False])}, {"a": torch.ones(2)}
    nan, other = torch.tensor([torch.nan, 1.0]), torch.tensor([torch.nan, 2.0])
    made = Ticket.make(masks, state, {"range": nan, "count": torch.tensor(3)})
    found = union(made, made)
    assert torch.equal(found.masks["a"], masks["a"])
    assert found.buffers["range"].isnan().tolist() == [True, False]
    changed = Ticket.make(masks, state, {"range": other, "count": torch.tensor(3)})
    with pytest.raises(InvalidInputError, match="different states: range differ"):
        union(made, changed)
