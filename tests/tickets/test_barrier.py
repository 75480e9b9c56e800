"""The error barrier: closed forms, both ways to treat norm statistics, refusals."""

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from dynprune.core import InvalidInputError, cite
from dynprune.system import GradientSystem
from dynprune.tasks import Problem
from dynprune.tickets import Ticket, compare, error_barrier
from dynprune.training import train


def ended(**state):
    return SimpleNamespace(
        state={name: torch.tensor(value) for name, value in state.items()}, buffers={}
    )


def squares(outputs, targets):
    return (outputs - targets).square().mean()


def line():
    """One weight w on x = 1 with target 0: loss w², metric 1 − |w|."""
    data = torch.ones(4, 1), torch.zeros(4, 1)
    return Problem(
        make_model=lambda seed: nn.Linear(1, 1, bias=False),
        loss_fn=squares,
        train=data,
        validation=data,
        test=data,
        metric=lambda outputs, targets: 1.0 - outputs.abs().flatten(),
    )


def hill():
    """|w| → the metric is |w|: error 1 − |w| has its top between −1 and 1."""
    data = torch.ones(4, 1), torch.zeros(4, 1)
    return Problem(
        make_model=lambda seed: nn.Linear(1, 1, bias=False),
        loss_fn=squares,
        train=data,
        validation=data,
        test=data,
        metric=lambda outputs, targets: outputs.abs().flatten(),
    )


def test_barrier_of_a_hill_is_its_height():
    # odd points: w = 0 is one; error 1 there and 0 at the ends
    found = error_barrier(
        ended(weight=[[-1.0]]), ended(weight=[[1.0]]), hill(), points=31
    )
    assert found.error_barrier == pytest.approx(1.0)
    assert found.errors.tolist()[15] == pytest.approx(1.0)
    expected = 1.0 - (2.0 * found.alphas - 1.0).abs()
    assert torch.allclose(found.errors, expected, atol=1e-6)
    assert found.loss_barrier == pytest.approx(0.0)  # w² is highest at the ends


def test_convex_error_has_the_barrier_of_its_higher_end():
    # |w| from 1 to 3: sup 3, mean of the ends 2
    found = error_barrier(ended(weight=[[1.0]]), ended(weight=[[3.0]]), line())
    assert found.error_barrier == pytest.approx(1.0)
    assert found.loss_barrier == pytest.approx(9.0 - 5.0)
    assert len(found.alphas) == 30
    assert found.cost.forwards == 30


def test_same_state_has_no_barrier():
    one = ended(weight=[[0.4]])
    found = error_barrier(one, one, line(), points=3)
    assert found.error_barrier == 0.0
    assert found.loss_barrier == 0.0


def normed():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=draw) * 3.0 + 1.0
    y = (x.sum(1) > 3.0).long()

    def make(seed):
        return nn.Sequential(
            nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)
        )

    return Problem(
        make_model=make,
        loss_fn=nn.functional.cross_entropy,
        train=(x, y),
        validation=(x, y),
        test=(x[:30], y[:30]),
    )


def runs(problem):
    found = []
    for seed in (0, 1):
        system = GradientSystem(problem.model(seed), problem.loss_fn, problem.train)
        found.append(
            train(system, lambda p: torch.optim.SGD(p, lr=0.1), steps=20, seed=seed)
        )
    return found


@pytest.mark.parametrize("buffers", ["interpolate", "reestimate"], ids=str)
def test_norm_statistics_along_the_segment(buffers, untouched):
    problem = normed()
    a, b = runs(problem)
    with untouched():
        found = error_barrier(a, b, problem, points=5, buffers=buffers)
    for alpha, error, loss in zip(
        found.alphas.tolist(), found.errors.tolist(), found.losses.tolist(), strict=True
    ):
        model = problem.model(0).eval()
        mixed = {
            name: (1 - alpha) * part + alpha * b.parameters[name]
            for name, part in a.parameters.items()
        }
        model.load_state_dict(mixed, strict=False)
        x = problem.train[0]
        if buffers == "interpolate":
            mean, var = (
                (1 - alpha) * a.buffers[n] + alpha * b.buffers[n]
                for n in ("1.running_mean", "1.running_var")
            )
        else:
            inside = model[0](x).detach()
            mean, var = inside.mean(0), inside.var(0)
        model[1].running_mean.copy_(mean)
        model[1].running_var.copy_(var)
        with torch.no_grad():
            outputs = model(problem.test[0])
            expected = (outputs.argmax(1) != problem.test[1]).double().mean()
            assert error == pytest.approx(float(expected), abs=1e-6)
            value = problem.loss_fn(outputs, problem.test[1])
            assert loss == pytest.approx(float(value), rel=1e-4)
    assert found.cost.forwards == (5 if buffers == "interpolate" else 10)


def test_the_two_ways_differ():
    problem = normed()
    a, b = runs(problem)
    found = [
        error_barrier(a, b, problem, points=5, buffers=way).losses
        for way in ("interpolate", "reestimate")
    ]
    assert not torch.allclose(*found, rtol=1e-3)


def test_runs_stay_as_they_were():
    problem = normed()
    a, b = runs(problem)
    before = copy.deepcopy((a.state, a.buffers))
    error_barrier(a, b, problem, points=3, buffers="reestimate")
    assert torch.equal(a.state, before[0])
    assert all(torch.equal(a.buffers[n], part) for n, part in before[1].items())


def test_says_what_it_is():
    found = error_barrier(ended(weight=[[1.0]]), ended(weight=[[3.0]]), line())
    assert "error     1 above" in found.summary()
    assert list(found.to_frame().columns) == ["alpha", "error", "loss"]
    assert "tensor(" not in repr(found)
    assert "Linear Mode" in cite(found)
    ax = found.plot()
    assert "error" in ax.get_ylabel()
    assert found.plot(ax) is ax


def test_refusals():
    one = ended(weight=[[1.0]])
    with pytest.raises(InvalidInputError, match="over 2 points"):
        error_barrier(one, one, line(), points=2)
    with pytest.raises(InvalidInputError, match="Unknown way to treat buffers"):
        error_barrier(one, one, line(), buffers="freeze")
    with pytest.raises(InvalidInputError, match=r"weight is \(1, 1\) .* \(1, 2\)"):
        error_barrier(one, ended(weight=[[1.0, 2.0]]), line())
    with pytest.raises(InvalidInputError, match="no such tensor in the second"):
        error_barrier(one, ended(bias=[1.0]), line())
    with pytest.raises(InvalidInputError, match="Pass the problem that was trained"):
        error_barrier(ended(other=[1.0]), ended(other=[1.0]), line())
    with pytest.raises(InvalidInputError, match="given as a finished run"):
        error_barrier(one, torch.ones(3), line())


def test_ends_that_are_tickets_are_masked():
    # E = 1 − |w|: masked, w is 0 at one end; unmasked, 0.5 at both
    state = {"weight": torch.tensor([[0.5]]), "bias": torch.tensor([0.0])}
    problem = Problem(
        make_model=lambda seed: nn.Linear(1, 1),
        loss_fn=squares,
        train=hill().train,
        validation=hill().train,
        test=hill().train,
        metric=lambda outputs, targets: outputs.abs().flatten(),
    )
    none, full = (
        Ticket.make(
            {"weight": torch.tensor([[kept]]), "bias": torch.tensor([True])}, state
        )
        for kept in (False, True)
    )
    found = error_barrier(none, full, problem, points=3)
    assert found.errors.tolist() == [1.0, 0.75, 0.5]
    # locality of what is trained: one weight of two has 1, both have 1/2
    wide = {"weight": torch.ones(1, 2)}
    one = Ticket.make({"weight": torch.tensor([[True, False]])}, wide)
    both = Ticket.make({"weight": torch.tensor([[True, True]])}, wide)
    data = torch.ones(4, 2), torch.zeros(4, 1)
    plane = Problem(
        make_model=lambda seed: nn.Linear(2, 1, bias=False),
        loss_fn=squares,
        train=data,
        validation=data,
        test=data,
        metric=lambda outputs, targets: outputs.abs().flatten(),
    )
    table = compare(
        {"one": one, "both": both}, runs=(one, both), problem=plane, shuffles=0
    )
    rows = [r for r in table.readings if r.measure == "locality_trained"]
    assert [row.value for row in rows] == [1.0, 0.5]
    # the loss (1 + α)² goes from 1 to 4
    (loss,) = [r.value for r in table.readings if r.measure == "loss_barrier"]
    assert loss == pytest.approx(4.0 - 2.5)


def test_tensors_that_the_runs_lack_are_not_made_up():
    problem = normed()
    a, b = runs(problem)
    part = GradientSystem(
        problem.model(3), problem.loss_fn, problem.train, parameters="3.*"
    )
    head = train(part, lambda p: torch.optim.SGD(p, lr=0.1), steps=2)
    with pytest.raises(
        InvalidInputError, match=r"no 0\.weight, .*With net the one that was trained"
    ):
        error_barrier(head, head, problem, points=3)
    deeper = dataclasses.replace(
        problem, make_model=lambda seed: problem.model(seed).append(nn.Linear(2, 2))
    )
    with pytest.raises(InvalidInputError, match=r"no 4\.weight, 4\.bias"):
        error_barrier(a, b, deeper, points=3)
    bare = [SimpleNamespace(state=run.parameters) for run in (a, b)]
    with pytest.raises(InvalidInputError, match=r"no buffer 1\.running_mean"):
        error_barrier(*bare, problem, points=3)
    again = {"points": 3, "buffers": "reestimate"}
    mine = error_barrier(*bare, problem, **again)
    assert torch.equal(mine.losses, error_barrier(a, b, problem, **again).losses)


@pytest.mark.parametrize("rest", [1, 3])
@pytest.mark.parametrize("by_loader", [False, True])
def test_every_example_counts_alike_when_statistics_are_measured_again(
    rest, by_loader, monkeypatch
):
    monkeypatch.setattr("dynprune.tickets._barrier._BATCH", 20)
    x = torch.randn(40 + rest, 3, generator=torch.Generator().manual_seed(0))
    x[40:] += 30.0
    pair = x, torch.zeros(len(x), 3)
    problem = Problem(
        make_model=lambda seed: nn.Sequential(nn.BatchNorm1d(3)),
        loss_fn=squares,
        train=list(zip(*(part.split(20) for part in pair), strict=True))
        if by_loader
        else pair,
        validation=pair,
        test=pair,
    )
    one = SimpleNamespace(state=dict(problem.model(0).named_parameters()))
    found = error_barrier(one, one, problem, points=3, buffers="reestimate")
    parts = [x[:20], x[20:]] if rest == 1 else x.split(20)
    shares = [len(part) / len(x) for part in parts]
    var = sum(w * part.var(0) for w, part in zip(shares, parts, strict=True))
    expected = ((x - x.mean(0)) ** 2 / (var + 1e-5)).mean()
    assert found.losses.tolist() == pytest.approx([float(expected)] * 3, rel=1e-4)


class Centring(nn.Module):
    """Batch norm behind a layer that writes into its input."""

    def __init__(self):
        nn.Module.__init__(self)
        self.norm, self.head = nn.BatchNorm1d(3), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.norm(x.sub_(0.5)))


def test_reestimating_norms_leaves_the_data_as_they_were():
    problem = dataclasses.replace(normed(), make_model=lambda seed: Centring())
    before = [part.clone() for part in (*problem.train, *problem.test)]
    ends = [
        SimpleNamespace(
            state={n: p.detach() for n, p in Centring().named_parameters()},
            buffers=dict(Centring().named_buffers()),
        )
        for _ in range(2)
    ]
    error_barrier(*ends, problem, points=3, buffers="reestimate")
    for part, old in zip((*problem.train, *problem.test), before, strict=True):
        assert torch.equal(part, old)


def test_a_model_that_the_maker_shares_stays_as_it_is():
    problem = hill()
    mine = nn.Linear(1, 1, bias=False)
    before = mine.weight.detach().clone()
    shared = dataclasses.replace(problem, make_model=lambda seed: mine)
    ends = ended(weight=[[-1.0]]), ended(weight=[[1.0]])
    found = error_barrier(*ends, shared, points=3)
    assert found.error_barrier == pytest.approx(1.0)
    assert torch.equal(mine.weight, before)
    assert mine.training
