"""Each compatibility rule against its code's rule, written once more in NumPy.

Nothing here is shared with dynprune: whole arrays are sorted, as those codes do.
"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from problems import classes, small_net
from torch import nn

from dynprune.core import InvalidInputError, derive_seed, generator
from dynprune.pruning import from_scores, kept_count
from dynprune.system import GradientSystem

DENSITIES = [1.0, 0.999, 0.8, 0.7, 0.5, 0.36, 0.2, 0.1, 0.05]
SHAPES = {
    "0.weight": (6, 5),
    "2.weight": (4, 6),
}  # 30 + 24 weights of a net of widths 5, 6, 4
TOTAL = 54


def system_of(*widths: int) -> GradientSystem:
    data = classes(6, widths[0], widths[-1])
    return GradientSystem(small_net(widths=widths), nn.functional.cross_entropy, data)


def open_lth(scores, alive, density):
    """Frankle's open_lth: one global threshold, strictly above it."""
    left = int(sum(mask.sum() for mask in alive.values()))
    pruning_share = round(1 - density * TOTAL / left, 12)
    count = int(np.ceil(pruning_share * left))
    every = np.concatenate([scores[n][alive[n] == 1] for n in scores])
    threshold = np.sort(every)[count]
    return {
        n: np.where(s > threshold, alive[n], np.zeros_like(s))
        for n, s in scores.items()
    }


def lth2018(scores, alive, density):
    """The code of the 2018 paper: a cutoff in every layer, strictly above it."""
    masks = {}
    for n, s in scores.items():
        ranked = np.sort(s[alive[n] == 1])
        percent = round(1 - density * s.size / ranked.size, 12)
        cutoff = ranked[np.round(percent * ranked.size).astype(int)]
        masks[n] = np.where(s <= cutoff, np.zeros_like(s), alive[n])
    return masks


def gem_miner(scores, alive, density):
    """Rare Gems: the value at place ceil(p R) − 1, strictly above it."""
    left = int(sum(mask.sum() for mask in alive.values()))
    count = int(np.ceil(round(1 - density * TOTAL / left, 12) * left))
    if count == 0:
        return alive
    every = np.concatenate([scores[n][alive[n] == 1] for n in scores])
    threshold = np.sort(every)[count - 1]
    return {n: (s > threshold) * alive[n] for n, s in scores.items()}


def masked_low(scores, alive):
    """Pruned weights score 0, as in those codes, and no more than any that is alive.

    The codes multiply by the mask. Their own scores are of one sign, but for GraSP's,
    whose code never meets a mask: there zero would stand above what is alive.
    """
    lowest = min(s[alive[n] == 1].min(initial=0.0) for n, s in scores.items())
    return {n: np.where(alive[n] == 1, s, lowest) for n, s in scores.items()}


def synflow(scores, alive, density):
    """Synaptic-Flow: masked scores are zero; k-th lowest of all, what is ≤ it goes."""
    masked = masked_low(scores, alive)
    every = np.concatenate([s.ravel() for s in masked.values()])
    k = int((1.0 - density) * every.size)
    if k < 1:
        return alive
    threshold = np.sort(every)[k - 1]
    return {n: np.where(s <= threshold, 0.0, alive[n]) for n, s in masked.items()}


def grasp(scores, alive, density):
    """GraSP: of the negated scores, those ≤ the k-th largest stay."""
    negated = {n: -s for n, s in masked_low(scores, alive).items()}
    every = np.concatenate([s.ravel() for s in negated.values()])
    k = int(every.size * (1 - density))
    if k == 0:
        return alive
    acceptable = np.sort(every)[::-1][:k][-1]
    return {n: (s <= acceptable) * alive[n] for n, s in negated.items()}


def force(scores, alive, density):
    """FORCE: int(N d) highest, and whatever ties with the last of them."""
    masked = masked_low(scores, alive)
    every = np.concatenate([s.ravel() for s in masked.values()])
    k = int(every.size * density)
    acceptable = np.sort(every)[::-1][:k][-1]
    return {n: (s >= acceptable) * alive[n] for n, s in masked.items()}


KINDS = ["distinct", "ties", "clamped", "signed", "negative"]
RULES = [open_lth, lth2018, gem_miner, synflow, grasp, force]


def drawn(kind: str, seed: int, dtype=torch.float64):
    make = generator(derive_seed(kind, seed))
    if kind == "ties":
        return {
            n: torch.randint(0, 6, shape, generator=make).to(dtype)
            for n, shape in SHAPES.items()
        }
    if kind == "signed":  # as those of GraSP are
        return {
            n: torch.randn(shape, generator=make, dtype=dtype)
            for n, shape in SHAPES.items()
        }
    if kind == "negative":
        return {
            n: -torch.rand(shape, generator=make, dtype=dtype)
            for n, shape in SHAPES.items()
        }
    if kind == "clamped":  # half of them zero
        return {
            n: torch.randn(shape, generator=make, dtype=dtype).clamp_min(0)
            for n, shape in SHAPES.items()
        }
    return {
        n: torch.rand(shape, generator=make, dtype=dtype) for n, shape in SHAPES.items()
    }


def thinned(seed: int):
    make = generator(seed)
    return {n: torch.rand(s, generator=make) < 0.7 for n, s in SHAPES.items()}


def in_numpy(tensors):
    return {n: part.numpy().astype("float64") for n, part in tensors.items()}


def check(rule, scores, alive, density):
    system = system_of(5, 6, 4)
    if alive is not None:
        system = system.with_mask(alive)
    free = alive or {n: torch.ones(s, dtype=torch.bool) for n, s in SHAPES.items()}
    try:
        expected = rule(in_numpy(scores), in_numpy(free), density)
    except IndexError:  # their own code stops, too
        expected = None
    left = sum(int(mask.sum()) for mask in free.values())
    by_layer = rule is lth2018
    short = kept_count(density, TOTAL) > left or (
        by_layer
        and any(kept_count(density, m.numel()) > int(m.sum()) for m in free.values())
    )
    if short or expected is None or not any(m.any() for m in expected.values()):
        with pytest.raises(
            InvalidInputError, match=r"survive the system|looks for the|keeps no weight"
        ):
            from_scores(system, scores, density=density, rule=rule.__name__)
        return None
    ticket = from_scores(
        system, scores, density=density, rule=rule.__name__, collapse="ignore"
    )
    for name, mask in ticket.masks.items():
        assert np.array_equal(mask.numpy(), expected[name].astype(bool)), name
    assert dict(ticket.provenance.settings)["rule"] == rule.__name__
    return ticket


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_bit_for_bit(rule, kind, masked):
    made = [
        check(rule, drawn(kind, seed), thinned(seed) if masked else None, density)
        for seed, density in itertools.product(range(3), DENSITIES)
    ]
    assert sum(ticket is not None for ticket in made) >= 9  # many are no refusal


@given(
    seed=st.integers(0, 10**6),
    density=st.floats(1e-3, 1.0),
    rule=st.sampled_from(RULES),
    kind=st.sampled_from(KINDS),
    masked=st.booleans(),
)
def test_bit_for_bit_at_any_density(seed, density, rule, kind, masked):
    check(rule, drawn(kind, seed), thinned(seed) if masked else None, density)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_single_precision_scores_are_compared_as_they_are(rule):
    assert check(rule, drawn("distinct", 5, torch.float32), None, 0.4) is not None


def test_how_many_more_or_less_each_rule_keeps():
    # distinct scores, N = 54, d = .5: K = 27
    scores = drawn("distinct", 0)
    kept = {
        rule.__name__: check(rule, scores, None, 0.5).kept
        for rule in RULES
        if rule is not lth2018
    }
    assert kept == {
        "open_lth": 26,
        "gem_miner": 27,
        "synflow": 27,
        "grasp": 28,
        "force": 27,
    }
    by_layer = check(lth2018, scores, None, 0.5)
    assert [int(m.sum()) for m in by_layer.masks.values()] == [14, 11]


def test_a_share_is_the_decimal_that_was_meant():
    # 1 − 0.7 is 0.30000000000000004, and ceil(10 · that) would be 4
    scores = {"0.weight": torch.arange(10.0).view(2, 5)}
    system = system_of(5, 2)
    ticket = from_scores(system, scores, density=0.7, rule="open_lth")
    assert ticket.kept == 10 - (3 + 1)


def test_ties_may_leave_nothing():
    scores = {n: torch.ones(s) for n, s in SHAPES.items()}
    scores["0.weight"][0, 0] = 0.0
    system = system_of(5, 6, 4)
    for rule in ("open_lth", "lth2018", "gem_miner", "synflow"):
        with pytest.raises(InvalidInputError, match=r"keeps no weight|flat index"):
            from_scores(system, scores, density=0.5, rule=rule)


def test_scopes_belong_to_rules_unless_given():
    system, scores = system_of(5, 6, 4), drawn("distinct", 3)
    default = from_scores(system, scores, density=0.5, rule="lth2018")
    assert dict(default.provenance.settings)["scope"] == "layer"
    whole = from_scores(system, scores, density=0.5, rule="lth2018", scope="global")
    assert whole.kept == 54 - 28
    assert default.kept == (30 - 16) + (24 - 13)
    parts = from_scores(system, scores, density=0.5, rule="gem_miner", scope="layer")
    assert [int(m.sum()) for m in parts.masks.values()] == [15, 12]


def test_scores_are_not_changed_by_a_selection():
    system, scores = system_of(5, 6, 4), drawn("distinct", 3)
    before = {n: part.clone() for n, part in scores.items()}
    for rule in ("exact", *(rule.__name__ for rule in RULES)):
        from_scores(system, scores, density=0.5, rule=rule)
    assert all(torch.equal(scores[n], part) for n, part in before.items())
    one = system_of(5, 6)
    only = {"0.weight": scores["0.weight"]}
    from_scores(one, only, density=0.5)
    assert torch.equal(only["0.weight"], before["0.weight"])


# -- integers -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("beside", [None, torch.float32, torch.int64], ids=str)
def test_wide_integers_are_told_apart(dtype, beside):
    scores = {"0.weight": torch.full((6, 5), 2**24, dtype=dtype)}
    scores["0.weight"][3, 2] += 1
    system = system_of(5, 6)
    if beside is not None:
        scores["2.weight"] = torch.zeros(SHAPES["2.weight"], dtype=beside)
        system = system_of(5, 6, 4)
    ticket = from_scores(system, scores, density=1e-9, collapse="ignore")
    assert ticket.masks["0.weight"].nonzero().tolist() == [[3, 2]]
    assert ticket.kept == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.bool], ids=str)
def test_narrow_integers_are_exact_in_single_precision(dtype):
    make = generator(3)
    scores = {n: torch.randint(0, 2, s, generator=make) for n, s in SHAPES.items()}
    of_floats = from_scores(
        system_of(5, 6, 4), {n: s.double() for n, s in scores.items()}, density=0.3
    )
    own = {n: s.to(dtype) for n, s in scores.items()}
    found = from_scores(system_of(5, 6, 4), own, density=0.3)
    assert all(torch.equal(m, of_floats.masks[n]) for n, m in found.masks.items())


def test_integers_that_floats_do_not_tell_apart_are_refused():
    system = system_of(5, 6)
    scores = torch.arange(30).view(6, 5)
    from_scores(system, {"0.weight": scores + 2**53 - 29}, density=0.5)
    for wide in (scores + 2**53, -scores - 2**53, scores - 2**63):
        with pytest.raises(InvalidInputError, match=r"'0.weight' .*beyond 2\*\*53"):
            from_scores(system, {"0.weight": wide}, density=0.5)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.uint32], ids=str)
def test_scores_of_other_kinds_are_refused(dtype):
    scores = {"0.weight": torch.ones(6, 5).to(dtype)}
    with pytest.raises(InvalidInputError, match=r"of '0.weight' are of torch\..*Pass"):
        from_scores(system_of(5, 6), scores, density=0.5)
