"""Means over a split are exact, whatever the batches are."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import dynprune as dp
from dynprune.core import InvalidInputError, isolated
from dynprune.system import GradientSystem
from dynprune.training import Recipe, evaluate, train

Data = tuple[Tensor, Tensor]


def close(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets).abs() < 1).float().reshape(-1)


@dataclass(frozen=True)
class Toy:
    """What evaluate needs of a problem."""

    make: Callable[[], nn.Module]
    data: Any
    loss_fn: Any = nn.functional.mse_loss
    metric: Any = close
    batch_loss: Any = None
    batch_weight: Any = None

    def model(self, seed: int) -> nn.Module:
        with isolated(seed):
            return self.make()

    def split(self, name: str) -> Any:
        return {"train": None, "validation": self.data, "test": self.data}[name]


@pytest.fixture
def toy(make_net: Callable[[], nn.Module], data: Data) -> Toy:
    return Toy(make_net, data)


@pytest.mark.parametrize("sizes", [(22,), (11, 11), (21, 1), (5, 15, 2)], ids=str)
def test_the_means_do_not_depend_on_the_batches(
    toy: Toy, data: Data, sizes: tuple[int, ...]
) -> None:
    net = toy.model(0)
    x, y = data
    outputs = copy.deepcopy(net).eval()(x).detach()
    loss = float(((outputs - y) ** 2).mean())
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    found = evaluate(net, Toy(toy.make, batches), "test")
    # 22 squares and 22 hits, summed in other orders
    assert found.loss == pytest.approx(loss, rel=1e-13)
    hits = float(close(outputs, y).double().mean())
    assert found.metric == pytest.approx(hits, rel=1e-13)
    assert found.examples == 22
    assert len(found.summary().splitlines()) == 3


def test_resident_data_are_read_in_parts(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = toy.model(0)
    whole = evaluate(net, toy)
    monkeypatch.setattr("dynprune.training._evaluate._AT_ONCE", 7)
    parts = evaluate(net, toy)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-13)
    assert parts.metric == pytest.approx(whole.metric, rel=1e-13)


def test_a_state_a_run_and_a_model_agree(toy: Toy, data: Data) -> None:
    mask = {"0.weight": torch.arange(24).reshape(8, 3) % 3 != 0}
    system = GradientSystem(toy.model(1), toy.loss_fn, data, mask=mask)
    run = train(
        system,
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        steps=9,
        batch_size=6,
    )
    net = toy.model(2)
    run.apply_(net)
    truth = evaluate(net, toy)
    full = system.with_mask({}).flatten(run.parameters)
    given = {"buffers": run.buffers}
    assert evaluate(run, toy) == truth
    assert evaluate(run.parameters, toy, **given) == truth
    assert evaluate(full, toy, **given) == truth
    masked = evaluate(run.state, toy, coordinates=system.coordinates, **given)
    assert masked == truth
    at_init = evaluate(run.state, toy, coordinates=system.coordinates)
    assert at_init.loss != truth.loss  # the running statistics count
    with_l2 = system.with_state(run.state, buffers=run.buffers)
    assert truth.loss == pytest.approx(float(with_l2.loss()), rel=1e-12)


def test_evaluation_leaves_the_user_alone(
    toy: Toy, data: Data, untouched: Callable[[], Any]
) -> None:
    net = toy.model(0).train()
    net[0].eval()
    source = torch.Generator().manual_seed(3)
    loader = DataLoader(TensorDataset(*data), 5, shuffle=True, generator=source)
    before = copy.deepcopy(net.state_dict())
    modes, position = [part.training for part in net.modules()], source.get_state()
    with untouched():
        evaluate(net, loader, loss_fn=nn.functional.mse_loss)
        with pytest.raises(ZeroDivisionError, match="stop"):
            evaluate(net, data, loss_fn=stop)
    assert [part.training for part in net.modules()] == modes
    assert all(
        torch.equal(part, before[name]) for name, part in net.state_dict().items()
    )
    assert net[0].weight.requires_grad
    assert torch.equal(source.get_state(), position)


def stop(outputs: Tensor, targets: Tensor) -> Tensor:
    raise ZeroDivisionError("stop")


def test_other_batches_are_weighted_by_the_problem(toy: Toy, data: Data) -> None:
    x, y = data
    batches = [{"x": x[:4], "y": y[:4]}, {"x": x[4:], "y": y[4:]}]

    def batch_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.mse_loss(model(batch["x"]), batch["y"])

    found = evaluate(
        toy.model(0),
        Toy(
            toy.make,
            batches,
            loss_fn=None,
            batch_loss=batch_loss,
            batch_weight=lambda batch: len(batch["y"]) * 10.0,
        ),
    )
    assert found.loss == pytest.approx(evaluate(toy.model(0), toy).loss, rel=1e-13)
    assert found.examples == 220
    assert found.metric != found.metric  # nobody chose it, and there are no outputs


def other_batches(data: Data) -> list[dict[str, Tensor]]:
    x, y = data
    return [{"x": x[:4], "y": y[:4]}, {"x": x[4:], "y": y[4:]}]


def loss_of_other(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return nn.functional.mse_loss(model(batch["x"]), batch["y"])


def far(outputs: Tensor, targets: Tensor) -> Tensor:
    return 1.0 - close(outputs, targets)


@pytest.mark.parametrize("chosen", ["argument", "problem"])
def test_a_metric_that_a_batch_cannot_have_is_refused(
    toy: Toy, data: Data, chosen: str
) -> None:
    batches = other_batches(data)
    own = far if chosen == "problem" else None
    problem = Toy(toy.make, batches, loss_fn=None, metric=own, batch_loss=loss_of_other)
    metric = far if chosen == "argument" else None
    with pytest.raises(InvalidInputError, match=r"metric.*type dict.*metric=None"):
        evaluate(toy.model(0), problem, metric=metric)
    given = {"metric": close} if chosen == "argument" else {}
    mixed = replace(problem, data=[data, *batches], batch_loss=loss_of_any)
    with pytest.raises(InvalidInputError, match=r"metric.*type dict.*metric=None"):
        evaluate(toy.model(0), mixed, **given)


def test_a_mean_over_some_batches_only_is_no_metric(toy: Toy, data: Data) -> None:
    mixed = Toy(
        toy.make,
        [data, *other_batches(data)],
        loss_fn=None,
        batch_loss=loss_of_any,
    )
    found = evaluate(toy.model(0), mixed)
    assert found.examples == 44
    assert found.metric != found.metric


def loss_of_any(model: nn.Module, batch: Any) -> Tensor:
    x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch
    return nn.functional.mse_loss(model(x), y)


def test_a_sanity_check_does_not_lose_a_metric(toy: Toy, data: Data) -> None:
    net = nn.Linear(3, 1, bias=False).double()
    batches = other_batches(data)
    system = dp.GradientSystem(net, None, batches, batch_loss=loss_of_other)
    ticket = dp.pruning.magnitude(system, density=0.5)
    with pytest.raises(InvalidInputError, match=r"metric.*type dict.*metric=None"):
        dp.pruning.sanity_check(
            ticket,
            system,
            train=Recipe(lambda params: torch.optim.SGD(params, lr=0.1), steps=1),
            held_out=batches,
            make_model=lambda _seed: nn.Linear(3, 1, bias=False).double(),
            metric=close,
            seeds=(0, 1),
            how="serial",
        )


def test_a_metric_per_token_is_a_mean_over_tokens() -> None:
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    batches = [(x[:2], x[:2]), (x[2:], x[2:])]
    found = evaluate(
        nn.Identity(),
        batches,
        loss_fn=nn.functional.mse_loss,
        metric=lambda outputs, targets: outputs[outputs >= 0].reshape(-1),
    )
    assert found.metric == 0.5
    scalar = evaluate(
        nn.Identity(),
        batches,
        loss_fn=nn.functional.mse_loss,
        metric=lambda outputs, targets: outputs.mean(),
    )
    assert scalar.metric == pytest.approx(0.5, rel=1e-15)


def test_what_cannot_be_evaluated_is_refused(toy: Toy, data: Data) -> None:
    net = toy.model(0)
    with pytest.raises(InvalidInputError, match="without a loss"):
        evaluate(net, data)
    with pytest.raises(InvalidInputError, match="no model for it"):
        evaluate(torch.zeros(3), data, loss_fn=toy.loss_fn)
    with pytest.raises(InvalidInputError, match="holds no batch"):
        evaluate(net, [], loss_fn=toy.loss_fn)
    with pytest.raises(InvalidInputError, match="not a pair"):
        evaluate(net, [data[0]], loss_fn=toy.loss_fn)
    with pytest.raises(InvalidInputError, match="only once"):
        evaluate(net, iter([data]), loss_fn=toy.loss_fn)
    with pytest.raises(InvalidInputError, match="3 coordinates was given"):
        evaluate(torch.zeros(3), toy)
    with pytest.raises(InvalidInputError, match=r"'w' of shape \(1,\).*no such"):
        evaluate({"w": torch.zeros(1)}, toy)
    run = train(
        GradientSystem(net, toy.loss_fn, data),
        lambda p: torch.optim.SGD(p, lr=0.1),
        steps=1,
    )
    other = nn.Sequential(nn.Linear(3, 8))
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(InvalidInputError, match=r"'1.weight'|'1.running_mean'|'4"):
        run.apply_(other)
    assert all(
        torch.equal(part, before[name]) for name, part in other.state_dict().items()
    )


def head(freeze: bool) -> nn.Module:
    """Return a body of two units and the head that is trained."""
    net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    if freeze:
        with torch.no_grad():
            for part in net[0].parameters():
                part.fill_(0.5).requires_grad_(False)
    return net


def test_parameters_that_a_run_lacks_are_not_made_up(data: Data) -> None:
    toy = Toy(lambda: head(False), data)
    net = toy.model(3)
    system = GradientSystem(net, toy.loss_fn, data, parameters="2.*")
    run = train(system, lambda p: torch.optim.SGD(p, lr=0.1), steps=3)
    for state, given in (
        (run, {}),
        (run.parameters, {}),
        (run.state, {"coordinates": run.coordinates}),
    ):
        with pytest.raises(InvalidInputError, match=r"no 0\.weight, 0\.bias, 2 of"):
            evaluate(state, toy, **given)
    run.apply_(net)
    after = float(system.with_state(run.state).loss())
    assert evaluate(net, toy).loss == pytest.approx(after, rel=1e-12)


def test_what_the_problem_freezes_need_not_be_in_a_run(data: Data) -> None:
    toy = Toy(lambda: head(True), data)
    system = GradientSystem(toy.model(3), toy.loss_fn, data)
    run = train(system, lambda p: torch.optim.SGD(p, lr=0.1), steps=3)
    after = float(system.with_state(run.state).loss())
    assert evaluate(run, toy).loss == pytest.approx(after, rel=1e-12)
    assert evaluate(run.state, toy).loss == pytest.approx(after, rel=1e-12)


def test_a_model_that_the_problem_keeps_stays_as_it_is(toy: Toy) -> None:
    kept = toy.model(0)
    shared = replace(toy, make=lambda: kept)
    before = {name: part.clone() for name, part in kept.state_dict().items()}
    state = {name: 2 * part.detach() for name, part in kept.named_parameters()}
    wanted = copy.deepcopy(kept)
    wanted.load_state_dict(kept.state_dict() | state)
    assert evaluate(state, shared).loss == evaluate(wanted, toy).loss
    after = kept.state_dict()
    assert all(torch.equal(after[name], part) for name, part in before.items())
