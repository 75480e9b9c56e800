"""Iterative SNIP and FORCE against the definition, written once more."""

import itertools

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


def transcription(net, data, density, rounds, *, may_return, free=None):
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
        count = max(1, int(d * SIZE + 0.5))
        order = sorted(
            (i for i in range(SIZE) if allowed[i]), key=lambda i: (-flat[i], i)
        )
        mask = torch.zeros(SIZE, dtype=torch.bool)
        mask[order[:count]] = True
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
