import math

import pytest
import torch
from problems import classes, small_net
from torch import nn
from torch.nn import functional

import dynprune as dp
from dynprune.core import InvalidInputError, cite
from dynprune.pruning import edge_popup, from_scores, random
from dynprune.pruning._edge_popup import _start, highest
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket

CE = nn.functional.cross_entropy


class Top(torch.autograd.Function):
    """Keep the k highest of each row of |s|; the backward pass is the identity."""

    @staticmethod
    def forward(ctx, sizes, k):
        order = sorted(
            range(sizes.numel()), key=lambda i: (-float(sizes.view(-1)[i]), i)
        )
        mask = torch.zeros(sizes.numel(), dtype=sizes.dtype)
        mask[order[:k]] = 1.0
        return mask.view_as(sizes)

    @staticmethod
    def backward(ctx, slope):
        return slope, None


def transcribed(system, *, density, epochs):
    """Edge-popup on a 3-4-3 tanh net without biases, full batches."""
    x, y = system.data
    w = [
        part.sign() * math.sqrt(2 / part.shape[1])
        for part in system.unflatten(system.state).values()
        if part.ndim == 2
    ]
    s = list(_start(system, seed=0).values())
    zeros = torch.zeros(4).double(), torch.zeros(3).double()
    velocity, history = [None, None], []
    for epoch in range(epochs):
        lr = 0.1 * (1 + math.cos(math.pi * epoch / epochs)) / 2
        history.append([part.clone() for part in s])
        s = [part.detach().requires_grad_() for part in s]
        kept = [
            Top.apply(part.abs(), max(1, math.floor(density * part.numel() + 0.5)))
            for part in s
        ]
        h = functional.linear(x, w[0] * kept[0], zeros[0]).tanh()
        loss = CE(functional.linear(h, w[1] * kept[1], zeros[1]), y)
        slopes = torch.autograd.grad(loss, s)
        with torch.no_grad():
            for i in (0, 1):
                slope = slopes[i].add(s[i], alpha=1e-4)
                old = velocity[i]
                velocity[i] = slope if old is None else 0.9 * old + slope
            s = [s[i].add(velocity[i], alpha=-lr) for i in (0, 1)]
    return s, history


def test_steps_agree_with_the_transcription():
    system = GradientSystem(small_net(), CE, classes(12, 3, 3))
    ticket = edge_popup(system, density=0.4, epochs=12)
    s, history = transcribed(system, density=0.4, epochs=12)
    sizes = {n: part.abs() for n, part in zip(system.prunable, s, strict=True)}
    expected = from_scores(system, sizes, density=0.4, scope="layer")
    assert all(torch.equal(ticket.masks[n], m) for n, m in expected.masks.items())
    # the mask did move: an edge popped up
    start = {n: p.abs() for n, p in zip(system.prunable, history[0], strict=True)}
    first = from_scores(system, start, density=0.4, scope="layer")
    assert any(not torch.equal(first.masks[n], m) for n, m in expected.masks.items())


def test_scores_agree_with_the_transcription(monkeypatch):
    system = GradientSystem(small_net(), CE, classes(12, 3, 3))
    import dynprune.pruning._edge_popup as own

    seen = []
    made = own.highest

    def spied(density, scope):
        rule = made(density, scope)

        def masks(scores, alive):
            if scores[0].requires_grad and torch.is_grad_enabled():
                seen.append([part.detach().clone() for part in scores])
            return rule(scores, alive)

        return masks

    monkeypatch.setattr(own, "highest", spied)
    edge_popup(system, density=0.4, epochs=5)
    _, history = transcribed(system, density=0.4, epochs=5)
    for a, b in zip(seen[-5:], history, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(a, b, strict=True))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_the_rule_keeps_what_the_final_count_keeps(scope):
    system = GradientSystem(small_net(), CE, classes(12, 3, 3))
    values = torch.tensor([
        0.0,
        -2.0,
        2.0,
        1.0,
        -1.0,
        1.0,
        0.5,
        0.0,
        0.0,
        3.0,
        -3.0,
        1.0,
    ])
    scores = [values.view(4, 3).double(), values.flip(0).view(3, 4).double()]
    alive = [torch.ones_like(part) for part in scores]
    found = highest(0.4, scope)(scores, alive)
    named = {n: s.abs() for n, s in zip(system.prunable, scores, strict=True)}
    expected = from_scores(system, named, density=0.4, scope=scope).masks
    for mask, other in zip(found, expected.values(), strict=True):
        assert torch.equal(mask.bool(), other)
        assert set(mask.unique().tolist()) <= {0.0, 1.0}


def test_popped_edges_beat_random_masks_on_the_same_weights():
    problem = dp.tasks.digits()
    system = GradientSystem(problem.model(0), problem.loss_fn, problem.train)
    ticket = edge_popup(system, density=0.5, epochs=8)

    def accuracy(masks):
        state = Ticket.make(masks, ticket.state).masked_state
        return dp.evaluate(state, problem, "test").metric

    chance = [accuracy(random(system, density=0.5, seed=i).masks) for i in range(3)]
    assert accuracy(ticket.masks) > max(chance) + 0.3
    assert abs(ticket.density - 0.5) < 1e-3
    assert max(ticket.layer_densities.values()) < 0.501
    assert "ramanujan" in cite(ticket)


def test_global_scope_keeps_the_exact_count():
    system = GradientSystem(small_net(), CE, classes(12, 3, 3))
    assert edge_popup(system, density=0.3, epochs=3, scope="global").kept == 7


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"density": 2.0}, "density of 2.0"),
        ({"density": 0.5, "scope": "row"}, "scope is 'row'"),
        ({"density": 0.5, "epochs": 0}, "epochs is 0"),
        ({"density": 0.5, "weights": "kaiming"}, "weights is 'kaiming'"),
    ],
    ids=["density", "scope", "epochs", "weights"],
)
def test_refusals(knobs, message):
    system = GradientSystem(small_net(), CE, classes(12, 3, 3))
    with pytest.raises(InvalidInputError, match=message):
        edge_popup(system, **knobs)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_scores_of_a_model_in_half_precision_choose_and_not_ties(scope):
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        net = small_net(widths=(6, 256, 3)).to(dtype)
        x, y = classes(16, 6, 3)
        system = GradientSystem(net, CE, (x.to(dtype), y))
        resting = lambda params: torch.optim.SGD(params, lr=0.0)  # noqa: E731
        knobs = {"density": 0.9, "epochs": 1, "optimizer": resting}
        found.append(edge_popup(system, scope=scope, **knobs))
    half, single = found
    assert half.state["0.weight"].dtype == torch.bfloat16
    assert all(torch.equal(half.masks[n], m) for n, m in single.masks.items())
