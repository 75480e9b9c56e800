"""Iterative SNIP and FORCE against the definition, written once more."""

import itertools
import math

import pytest
import torch
from problems import classes, small_net
from torch import nn

from dynprune.core import Cost, InvalidInputError, cite
from dynprune.pruning import (
    force,
    force_scores,
    from_scores,
    iterative_snip,
    kept_count,
    random,
    snip,
    snip_scores,
)
from dynprune.system import GradientSystem

CE = nn.functional.cross_entropy
WIDTHS = (4, 7, 5, 3)
SIZE = 4 * 7 + 7 * 5 + 5 * 3


def problem(**kwargs):
    net = small_net(widths=WIDTHS)
    data = classes(20, 4, 3)
    return net, data, GradientSystem(net, CE, data, **kwargs)


def kept_by(rule, scores, allowed, density, before):
    """Which of a list of scores a published code keeps, by a sort of the list."""
    masked = [s if own else 0.0 for s, own in zip(scores, allowed, strict=True)]
    ranked = sorted(masked)
    left = sorted(s for s, own in zip(scores, allowed, strict=True) if own)
    p = round(1 - density / before, 12)  # of those alive
    if rule == "open_lth":
        level = left[math.ceil(p * len(left))]
    elif rule == "gem_miner":
        count = math.ceil(p * len(left))
        level = left[count - 1] if count else -1.0
    elif rule == "synflow":
        count = int((1 - density) * SIZE)
        level = ranked[count - 1] if count else -1.0
    elif rule == "grasp":
        count = int((1 - density) * SIZE)
        level = math.nextafter(ranked[count - 1], -1.0) if count else -1.0
    else:
        assert rule == "force"
        level = math.nextafter(ranked[-int(SIZE * density)], -1.0)
    return [own and s > level for s, own in zip(masked, allowed, strict=True)]


def transcription(net, data, density, rounds, *, may_return, free=None, rule="exact"):
    """Lists, sorting and one forward pass written out; no dynprune."""
    weights = [part.weight.detach() for part in net if isinstance(part, nn.Linear)]
    biases = [part.bias.detach() for part in net if isinstance(part, nn.Linear)]
    own = free or [torch.ones_like(w, dtype=torch.bool) for w in weights]
    masks, start = own, sum(int(m.sum()) for m in own) / SIZE
    for t in range(1, rounds + 1):
        at = [(w * m).requires_grad_() for w, m in zip(weights, masks, strict=True)]
        h = data[0]
        for place, (w, b) in enumerate(zip(at, biases, strict=True)):
            h = h @ w.T + b
            if place < len(at) - 1:
                h = torch.tanh(h)
        slopes = torch.autograd.grad(CE(h, data[1]), at)
        factors = weights if may_return else [a.detach() for a in at]
        flat = torch.cat([
            (w * g).abs().reshape(-1) for w, g in zip(factors, slopes, strict=True)
        ]).tolist()
        allowed = torch.cat([
            m.reshape(-1) for m in (own if may_return else masks)
        ]).tolist()
        d = density if t == rounds else start * (density / start) ** (t / rounds)
        last = start * (density / start) ** ((t - 1) / rounds)
        count = max(1, int(d * SIZE + 0.5))
        order = sorted(
            (i for i in range(SIZE) if allowed[i]), key=lambda i: (-flat[i], i)
        )
        mask = torch.zeros(SIZE, dtype=torch.bool)
        mask[order[:count]] = True
        if rule != "exact":
            before = start if may_return else last
            mask = torch.tensor(kept_by(rule, flat, allowed, d, before))
        parts = mask.split([w.numel() for w in weights])
        masks = [m.view(w.shape) for m, w in zip(parts, weights, strict=True)]
    return masks


PRUNERS = pytest.mark.parametrize(
    ("prune", "may_return"),
    [(iterative_snip, False), (force, True)],
    ids=["iterative_snip", "force"],
)


@PRUNERS
@pytest.mark.parametrize("density", [1.0, 0.5, 0.2])
@pytest.mark.parametrize("rounds", [1, 2, 10])
def test_rounds_agree_with_the_transcription(prune, may_return, density, rounds):
    net, data, system = problem()
    ticket = prune(system, density=density, rounds=rounds)
    expected = transcription(net, data, density, rounds, may_return=may_return)
    for mask, other in zip(ticket.masks.values(), expected, strict=True):
        assert torch.equal(mask, other)
    assert ticket.kept == kept_count(density, SIZE)
    assert ticket.cost == Cost(gradients=float(rounds))


@PRUNERS
@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("idle", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("rule", ["force", "synflow", "grasp", "open_lth", "gem_miner"])
def test_rules_of_other_codes_hold_in_every_round(
    prune, may_return, rule, idle, masked
):
    net, data, system = problem()
    if idle:  # two units that nothing enters, and three weights of zero elsewhere
        with torch.no_grad():
            net[0].weight[:2] = 0.0
            net[2].weight[0, 2:5] = 0.0
        system = GradientSystem(net, CE, data)
    free = None
    if masked:
        system = system.with_ticket(random(system, density=0.9, seed=4))
        free = list(system.masks.values())
    seen = []
    for rounds in (1, 2, 7):
        ticket = prune(system, density=0.3, rounds=rounds, rule=rule, collapse="ignore")
        expected = transcription(
            net, data, 0.3, rounds, may_return=may_return, free=free, rule=rule
        )
        for mask, other in zip(ticket.masks.values(), expected, strict=True):
            assert torch.equal(mask, other)
        assert dict(ticket.provenance.settings)["rule"] == rule
        seen.append(ticket.kept)
    if rule == "open_lth" and not (may_return or idle or masked):
        assert seen == [22, 21, 16]  # by hand; 23 were asked for


@PRUNERS
def test_a_rule_for_layers_holds_in_each_layer(prune, may_return):
    _, _, system = problem()
    ticket = prune(system, density=0.5, rounds=1, rule="lth2018")
    # of n weights round(n / 2) + 1 go, halves to even
    assert [int(m.sum()) for m in ticket.masks.values()] == [13, 16, 6]
    assert dict(ticket.provenance.settings)["scope"] == "layer"


@PRUNERS
def test_rules_are_checked_before_anything_is_scored(prune, may_return):
    _, _, system = problem()
    with pytest.raises(InvalidInputError, match="Unknown rule 'snip'"):
        prune(system, density=0.5, rule="snip")
    with pytest.raises(InvalidInputError, match=r"looks for the .* Pass a higher"):
        prune(system, density=0.01, rule="force")


def test_the_two_and_the_number_of_rounds_differ_here():
    # so that the comparison above can fail
    _, _, system = problem()
    made = [
        prune(system, density=0.2, rounds=rounds).masks
        for prune in (iterative_snip, force)
        for rounds in (2, 10)
    ]
    flat = [torch.cat([m.reshape(-1) for m in masks.values()]) for masks in made]
    assert len({tuple(mask.tolist()) for mask in flat}) == 4


@PRUNERS
def test_one_round_is_snip(prune, may_return):
    _, _, system = problem()
    one, plain = prune(system, density=0.3, rounds=1), snip(system, density=0.3)
    assert all(torch.equal(one.masks[n], m) for n, m in plain.masks.items())


@PRUNERS
def test_the_systems_own_mask_is_where_they_start(prune, may_return):
    net, data, dense = problem()
    first = random(dense, density=0.6, seed=4)
    system = dense.with_ticket(first)
    ticket = prune(system, density=0.3, rounds=5)
    assert all(not (m & ~first.masks[n]).any() for n, m in ticket.masks.items())
    expected = transcription(
        net, data, 0.3, 5, may_return=may_return, free=list(first.masks.values())
    )
    for mask, other in zip(ticket.masks.values(), expected, strict=True):
        assert torch.equal(mask, other)
    with pytest.raises(InvalidInputError, match="but only 47 survive"):
        prune(system, density=0.9)


def test_force_scores_what_is_pruned():
    _, _, system = problem()
    masks = random(system, density=0.5, seed=1).masks
    found = force_scores(system, masks=masks)
    again = snip_scores(system, masks=masks)
    for name, mask in masks.items():
        assert torch.equal(found[name][mask], again[name][mask])
        assert not again[name][~mask].any()
        assert found[name][~mask].any()
    plain, dense = force_scores(system), snip_scores(system)
    assert all(torch.equal(plain[n], dense[n]) for n in dense)


def test_weights_return_in_force_only():
    _, _, system = problem()
    for prune, returns in ((iterative_snip, False), (force, True)):
        seen = [
            torch.cat([
                m.reshape(-1)
                for m in prune(system, density=0.2 ** (t / 4), rounds=t).masks.values()
            ])
            for t in (1, 2, 3, 4)
        ]
        # round t of 4 towards .2 is the last of t rounds towards .2^(t/4)
        back = any((b & ~a).any() for a, b in itertools.pairwise(seen))
        assert back is returns, prune.__name__


@PRUNERS
def test_bad_knobs_are_refused(prune, may_return):
    _, _, system = problem()
    with pytest.raises(InvalidInputError, match="rounds is 0"):
        prune(system, density=0.5, rounds=0)
    with pytest.raises(InvalidInputError, match=r"density of 1\.5"):
        prune(system, density=1.5)
    with pytest.raises(InvalidInputError, match="mode is 'test'"):
        prune(system, density=0.5, mode="test")


@PRUNERS
def test_a_network_that_came_apart_has_equal_scores(prune, may_return):
    _, _, system = problem()
    with pytest.raises(InvalidInputError, match="all 0, and"):
        prune(system.with_state(torch.zeros(system.size).double()), density=0.5)


@PRUNERS
def test_sources_and_settings(prune, may_return):
    _, _, system = problem()
    ticket = prune(system, density=0.5, rounds=3, mode="train", seed=7)
    settings = dict(ticket.provenance.settings)
    assert (settings["rounds"], settings["mode"]) == (3, "train")
    assert ticket.provenance.seed == 7
    assert "Progressive Skeletonization" in cite(ticket)


@pytest.mark.parametrize("rule", ["force", "synflow"])
def test_rounds_of_other_codes_can_be_written_with_from_scores(rule):
    # the authors' counts instead of ours: a loop of three lines
    _, _, system = problem()
    masks = None
    for t in range(1, 6):
        scores = force_scores(system, masks=masks)
        ticket = from_scores(
            system, scores, density=0.2 ** (t / 5), rule=rule, collapse="ignore"
        )
        masks = ticket.masks
    assert abs(ticket.kept - kept_count(0.2, SIZE)) <= 1
