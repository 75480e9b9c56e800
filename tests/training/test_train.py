"""Training against closed forms and loops written by hand."""

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from dynprune.core import (
    ConvergenceError,
    Cost,
    InvalidInputError,
    Outcome,
    derive_seed,
    generator,
)
from dynprune.system import GradientSystem
from dynprune.training import Recipe, Run, train

Data = tuple[Tensor, Tensor]
optim = torch.optim


def sgd(params: list[Tensor]) -> optim.Optimizer:
    return optim.SGD(params, lr=0.05)


class Drift(optim.SGD):
    """Move every weight, whatever its gradient, as Muon or added noise would."""

    def step(self, closure: object = None) -> None:  # type: ignore[override]
        with torch.no_grad():
            for part in self.param_groups[0]["params"]:
                part.add_(0.1)


WOLFE = "strong_wolfe"
OPTIMIZERS = {
    "SGD": sgd,
    "momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "nesterov": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "Adam": lambda p: optim.Adam(p, lr=0.01, weight_decay=0.1),
    "AdamW": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.5, amsgrad=True),
    "NAdam": lambda p: optim.NAdam(p, lr=0.01),
    "RAdam": lambda p: optim.RAdam(p, lr=0.01),
    "Adamax": lambda p: optim.Adamax(p, lr=0.01),
    "Adadelta": lambda p: optim.Adadelta(p, lr=1.0),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.01),
    "Adafactor": lambda p: optim.Adafactor(p, lr=0.01),
    "ASGD": lambda p: optim.ASGD(p, lr=0.01),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "Rprop": lambda p: optim.Rprop(p, lr=0.01),
    "drift": lambda p: Drift(p, lr=0.1),
    "L-BFGS": lambda p: optim.LBFGS(p, lr=0.5, max_iter=3),
    "strong Wolfe": lambda p: optim.LBFGS(p, line_search_fn=WOLFE),
}


class Spy:
    """A batch loss that notes what it was called with."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.loss = loss
        self.models: list[dict[str, Tensor]] = []
        self.batches: list[list[float]] = []

    def __call__(self, model: nn.Module, batch: Data) -> Tensor:
        if torch.is_grad_enabled():
            named = model.named_parameters()
            self.models.append({name: part.detach().clone() for name, part in named})
            self.batches.append(batch[1].reshape(-1).tolist())
        return self.loss(model(batch[0]), batch[1])


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_gradient_descent_follows_its_closed_form(data: Data, l2: float) -> None:
    # L = |Xθ − y|²/N + l2/2 |θ|²: θ_t − θ* = (I − ηH)^t (θ_0 − θ*)
    (x, y), rate, steps = data, 0.1, 20
    net = nn.Linear(3, 1, bias=False).double()
    system = GradientSystem(net, nn.functional.mse_loss, data, l2=l2)
    n = len(x)
    hessian = 2 / n * x.T @ x + l2 * torch.eye(3, dtype=x.dtype)
    best = torch.linalg.solve(hessian, 2 / n * x.T @ y).reshape(-1)
    run = train(
        system,
        lambda p: optim.SGD(p, lr=rate),
        steps=steps,
        batch_size=n,
        record=1,
    )
    contraction = torch.eye(3, dtype=x.dtype) - rate * hessian
    expected = [system.state]
    for _ in range(steps):
        expected.append(best + contraction @ (expected[-1] - best))
    assert run.trajectory is not None
    truth = torch.stack(expected).T
    # each step rounds three sums of 22 products, amplified by no more than |I−ηH| ≤ 1
    bound = steps * 100 * torch.finfo(x.dtype).eps * float(truth.abs().max() + 1)
    assert float((run.trajectory.snapshots - truth).abs().max()) < bound
    losses = torch.stack([system.loss(state) for state in expected[:-1]])
    torch.testing.assert_close(run.history[1], losses, rtol=1e-12, atol=0.0)


def test_a_run_equals_a_loop_written_by_hand(data: Data) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    system = GradientSystem(net, nn.functional.mse_loss, data)
    factory = OPTIMIZERS["momentum"]
    run = train(system, factory, epochs=3, batch_size=8, seed=5)
    mine = copy.deepcopy(net)
    optimizer = factory(list(mine.parameters()))
    losses = []
    for epoch in range(3):
        source = generator(derive_seed(5, epoch))
        for part in torch.randperm(22, generator=source).split(8):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(mine(data[0][part]), data[1][part])
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    assert torch.equal(run.state, system.flatten(dict(mine.named_parameters())))
    assert torch.equal(run.history[1], torch.stack(losses))
    assert run.history[0].tolist() == list(range(9))
    assert run.cost == Cost(gradients=3.0, steps=9)
    assert run.outcome is Outcome.FINISHED


@pytest.mark.parametrize("l2", [0.0, 0.1], ids=["plain", "l2"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_are_zero_after_every_step(
    data: Data, name: str, l2: float
) -> None:
    net = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1)).double()
    source = generator(3)
    mask = {
        name: torch.rand(part.shape, generator=source) < 0.5
        for name, part in net.named_parameters()
        if name != "2.bias"
    }
    spy = Spy(nn.functional.mse_loss)
    system = GradientSystem(net, None, data, mask=mask, batch_loss=spy, l2=l2)
    spy.models.clear()
    run = train(system, OPTIMIZERS[name], steps=12, batch_size=8)
    assert len(spy.models) >= 12
    for named in [*spy.models, run.parameters]:
        for key, kept in mask.items():
            assert not bool(named[key][~kept].any())
    moved = run.state - system.state
    assert bool((moved != 0).any())
    assert bool(torch.isfinite(run.state).all())


def test_a_masked_run_equals_the_small_net_of_its_survivors(data: Data) -> None:
    # hidden unit 1 of 2 pruned away altogether = a net with one hidden unit
    wide = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 1, bias=False))
    narrow = nn.Sequential(nn.Linear(3, 1), nn.Tanh(), nn.Linear(1, 1, bias=False))
    wide, narrow = wide.double(), narrow.double()
    mask = {name: torch.ones_like(p).bool() for name, p in wide.named_parameters()}
    mask["0.weight"][1], mask["0.bias"][1], mask["2.weight"][:, 1] = False, False, False
    masked = GradientSystem(wide, nn.functional.mse_loss, data, mask=mask)
    small = GradientSystem(narrow, nn.functional.mse_loss, data)
    factory = OPTIMIZERS["AdamW"]
    one = train(masked, factory, steps=10, batch_size=8)
    two = train(small.with_state(masked.state), factory, steps=10, batch_size=8)
    torch.testing.assert_close(one.state, two.state, rtol=1e-12, atol=1e-14)


def test_lbfgs_minimises_least_squares(linear: GradientSystem, data: Data) -> None:
    best = torch.linalg.lstsq(*data).solution.reshape(-1)
    flattest = torch.linalg.eigvalsh(2 / 22 * data[0].T @ data[0])[0]

    def lbfgs(params: list[Tensor]) -> optim.Optimizer:
        return optim.LBFGS(
            params, tolerance_grad=1e-9, tolerance_change=0, line_search_fn=WOLFE
        )

    run = train(linear, lbfgs, steps=10, batch_size=22)
    # H (θ − θ*) = ∇L and max |∇L_i| < 1e-9
    assert float((run.state - best).norm()) < 3**0.5 * 1e-9 / float(flattest) + 1e-12
    # an evaluation of the closure is a gradient: more of them than steps
    assert run.cost.gradients > run.cost.steps == 10


def test_selected_parameters_move_and_others_do_not(data: Data) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    spy = Spy(nn.functional.mse_loss)
    system = GradientSystem(net, None, data, parameters="2.*", batch_loss=spy)
    spy.models.clear()
    run = train(system, sgd, steps=5)
    assert run.coordinates.names == ("2.weight", "2.bias")
    assert torch.equal(spy.models[-1]["0.weight"], net[0].weight)
    assert not torch.equal(run.parameters["2.weight"], net[2].weight)


def test_training_leaves_the_user_alone(
    data: Data,
    make_net: Callable[[], nn.Module],
    untouched: Callable[[], object],
) -> None:
    net = make_net().train()
    net[0].eval()
    net[4].weight.grad = torch.ones_like(net[4].weight)
    source = torch.Generator().manual_seed(7)
    loader = DataLoader(TensorDataset(*data), 8, shuffle=True, generator=source)
    before = {name: part.clone() for name, part in net.state_dict().items()}
    modes, position = [part.training for part in net.modules()], source.get_state()
    system = GradientSystem(net, nn.functional.mse_loss, data)
    with untouched():  # type: ignore[attr-defined]
        train(system, OPTIMIZERS["Adam"], steps=4, data=loader, record=1)
        with pytest.raises(InvalidInputError, match="not a pair"):
            train(system, sgd, steps=2, data=[data[0]])
    assert all(
        torch.equal(part, before[name]) for name, part in net.state_dict().items()
    )
    assert [part.training for part in net.modules()] == modes
    assert torch.equal(net[4].weight.grad, torch.ones_like(net[4].weight))
    assert net[0].weight.grad is None
    assert torch.equal(source.get_state(), position)


def test_buffers_and_dropout_follow_the_mode(
    data: Data, make_net: Callable[[], nn.Module]
) -> None:
    system = GradientSystem(make_net(), nn.functional.mse_loss, data)
    trained = train(system, sgd, steps=3)
    assert trained.buffers["1.num_batches_tracked"] == 3
    fixed = train(system, sgd, steps=3, mode="eval")
    assert torch.equal(
        fixed.buffers["1.running_mean"], system.buffers["1.running_mean"]
    )
    again = train(system, sgd, steps=3)
    assert torch.equal(again.state, trained.state)
    other = train(system, sgd, steps=3, batch_size=22, seed=1)
    assert not torch.equal(other.state, trained.state)


@pytest.mark.parametrize("k", [0, 2, 3, 7, 10])
@pytest.mark.parametrize("kind", ["resident", "loader", "own generator", "no length"])
def test_two_calls_visit_the_batches_of_one(data: Data, kind: str, k: int) -> None:
    class NoLength:
        def __iter__(self) -> object:
            order = torch.randperm(22)
            return iter([(data[0][part], data[1][part]) for part in order.split(8)])

    dataset = TensorDataset(*data)
    given = {
        "resident": data,
        "loader": DataLoader(dataset, 8, shuffle=True),
        "own generator": DataLoader(
            dataset, 8, shuffle=True, generator=torch.Generator()
        ),
        "no length": NoLength(),
    }[kind]
    spy = Spy(nn.functional.mse_loss)
    net = nn.Linear(3, 1).double()
    system = GradientSystem(net, None, data, batch_loss=spy)
    size = 8 if kind == "resident" else None
    recipe = {"steps": 10, "data": given, "batch_size": size, "seed": 4}

    def visit(system: GradientSystem, **span: int) -> tuple[Run, list[list[float]]]:
        spy.batches.clear()
        run = train(
            system,
            sgd,
            schedule=lambda o: lr_scheduler.StepLR(o, 3, gamma=0.5),
            **recipe,
            **span,
        )
        return run, list(spy.batches)

    whole, batches = visit(system)
    first, head = visit(system, stop_step=k)
    second, tail = visit(
        system.with_state(first.state, buffers=first.buffers), start_step=k
    )
    assert head + tail == batches
    assert len(batches) == 10
    # without an optimiser state the schedule makes the states equal, too
    assert torch.equal(second.state, whole.state)
    assert second.history[0].tolist() == list(range(k, 10))
    everything = sorted(itertools.chain(*batches[:3]))
    assert everything == sorted(data[1].reshape(-1).tolist())
    assert batches[:3] != batches[3:6]


def test_the_order_depends_on_the_seed_only(linear: GradientSystem) -> None:
    one = train(linear, sgd, steps=5, batch_size=4)
    assert torch.equal(one.state, train(linear, sgd, steps=5, batch_size=4).state)
    other = train(linear, sgd, steps=5, batch_size=4, seed=1)
    assert not torch.equal(one.state, other.state)


def test_large_data_are_read_in_the_same_order(
    linear: GradientSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = train(linear, sgd, steps=9, batch_size=4)
    monkeypatch.setattr("dynprune.training._order._GATHERED_BYTES", 0)
    assert torch.equal(train(linear, sgd, steps=9, batch_size=4).state, small.state)


def test_snapshots_are_the_start_every_few_and_the_last(
    linear: GradientSystem,
) -> None:
    run = train(linear, sgd, steps=11, start_step=2, record=4, batch_size=8)
    path = run.trajectory
    assert path is not None
    assert path.steps.tolist() == [2, 6, 10, 11]
    assert torch.equal(path.state_at(2), linear.state)
    assert torch.equal(path.state_at(11), run.state)
    short = train(linear, sgd, steps=11, start_step=2, stop_step=6, batch_size=8)
    assert torch.equal(path.state_at(6), short.state)
    assert path.losses is not None
    assert path.losses[:3].tolist() == [float(run.history[1][i]) for i in (0, 4, 8)]
    assert path.losses[3].isnan()
    assert short.trajectory is None


@pytest.mark.parametrize("steps", [0, 1])
def test_no_step_is_a_run_too(linear: GradientSystem, steps: int) -> None:
    run = train(linear, sgd, steps=steps, record=10)
    assert run.trajectory is not None
    assert run.trajectory.steps.tolist() == list(range(steps + 1))
    assert "Run of" in run.summary()
    assert len(run.to_frame()) == steps


@pytest.mark.parametrize("bad", [5, 13], ids=["epoch 0", "epoch 1"])
@pytest.mark.parametrize("as_loader", [False, True], ids=["resident", "loader"])
def test_a_loss_that_is_not_finite_is_placed(
    linear: GradientSystem, data: Data, bad: int, as_loader: bool
) -> None:
    calls = []

    def batch_loss(model: nn.Module, batch: Data) -> Tensor:
        loss = nn.functional.mse_loss(model(batch[0]), batch[1])
        if torch.is_grad_enabled():
            calls.append(1)
            if len(calls) == bad + 1:
                return loss * float("nan")
        return loss

    system = GradientSystem(linear.model, None, data, batch_loss=batch_loss)
    loader = DataLoader(TensorDataset(*data), 3) if as_loader else None
    where = rf"nan at step {bad} \(epoch {bad // 8}, batch {bad % 8}\)"
    options = {"steps": 20, "data": loader, "batch_size": None if as_loader else 3}
    calls.clear()
    with pytest.raises(ConvergenceError, match=where) as caught:
        train(system, sgd, **options)
    assert isinstance(caught.value.partial, Run)
    assert caught.value.partial.outcome is Outcome.DIVERGED
    calls.clear()
    assert train(system, sgd, throw=False, **options).outcome is Outcome.DIVERGED


def test_a_state_that_is_not_finite_at_the_end_is_named(
    linear: GradientSystem,
) -> None:
    def explode(params: list[Tensor]) -> optim.Optimizer:
        return optim.SGD(params, lr=1e400)

    with pytest.raises(ConvergenceError, match="not finite after step 0"):
        train(linear, explode, steps=1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "steps=None and epochs=None"),
        ({"steps": 1, "epochs": 1}, "Pass one of them"),
        ({"steps": 3, "start_step": 4}, "start_step=4"),
        ({"steps": 3, "stop_step": 4}, "stop_step=4"),
        ({"steps": -1}, "do not fit"),
        ({"steps": 3, "batch_size": 0}, "batch_size is 0"),
        ({"steps": 3, "record": 0}, "record is 0"),
        ({"steps": 3, "checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"steps": 3, "mode": "test"}, "mode is 'test'"),
    ],
    ids=str,
)
def test_contradictory_arguments_are_refused(
    linear: GradientSystem, options: dict[str, object], match: str
) -> None:
    with pytest.raises(InvalidInputError, match=match):
        train(linear, sgd, **options)


def test_wrong_factories_and_loaders_are_refused(
    linear: GradientSystem, data: Data
) -> None:
    made = sgd(list(nn.Linear(1, 1).parameters()))
    with pytest.raises(InvalidInputError, match="makes\\) a SGD"):
        train(linear, made, steps=1)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="a int"):
        train(linear, lambda p: 1, steps=1)  # type: ignore[arg-type,return-value]
    plateau = lr_scheduler.ReduceLROnPlateau
    with pytest.raises(InvalidInputError, match="ReduceLROnPlateau"):
        train(linear, sgd, steps=1, schedule=plateau)
    batches = [data, data]
    with pytest.raises(InvalidInputError, match="batch_size=4 was given with a list"):
        train(linear, sgd, steps=1, data=batches, batch_size=4)
    with pytest.raises(InvalidInputError, match="read only once"):
        train(linear, sgd, steps=1, data=iter(batches))
    with pytest.raises(InvalidInputError, match="-1 steps"):
        Recipe(sgd, steps=-1)


def test_loaders_that_lie_about_their_length_are_refused(
    linear: GradientSystem, data: Data
) -> None:
    class Liar:
        def __len__(self) -> int:
            return 3

        def __iter__(self) -> object:
            return iter([data, data])

    class Once:
        def __init__(self) -> None:
            self.left = 2

        def __iter__(self) -> object:
            self.left -= 1
            return iter([data] if self.left >= 0 else [])

    with pytest.raises(InvalidInputError, match="says 3 batches, epoch 0 had 2"):
        train(linear, sgd, epochs=1, data=Liar())
    with pytest.raises(InvalidInputError, match="Epoch 1 of the training data"):
        train(linear, sgd, steps=3, data=Once())
    with pytest.raises(InvalidInputError, match="without a length"):
        train(linear, sgd, epochs=3, data=Once())


def test_a_recipe_is_train_with_its_arguments(
    linear: GradientSystem, data: Data
) -> None:
    def half(optimizer: optim.Optimizer) -> lr_scheduler.LRScheduler:
        return lr_scheduler.ExponentialLR(optimizer, 0.9)

    recipe = Recipe(sgd, steps=7, batch_size=4, schedule=half)
    span = {"seed": 2, "start_step": 1, "stop_step": 6}
    run = recipe(linear, record=2, **span)
    mine = train(linear, sgd, steps=7, batch_size=4, schedule=half, record=2, **span)
    assert torch.equal(run.state, mine.state)
    assert run.trajectory is not None
    assert run.trajectory.steps.tolist() == [1, 3, 5, 6]
    loader = DataLoader(TensorDataset(*data), 5)
    assert Recipe(sgd, steps=5, data=loader)(linear).cost.gradients == 1.0


def test_weighted_batches_count_by_their_weight(data: Data) -> None:
    batches = [(data[0][:10], data[1][:10]), (data[0][10:], data[1][10:])]
    system = GradientSystem(
        nn.Linear(3, 1).double(),
        nn.functional.mse_loss,
        batches,
        batch_weight=lambda batch: 2.0 * len(batch[0]),
    )
    assert train(system, sgd, epochs=2).cost == Cost(gradients=2.0, steps=4)
    assert train(system, sgd, steps=1).cost == Cost(gradients=10 / 22, steps=1)


def test_a_progress_bar_goes_to_standard_error(
    linear: GradientSystem, capfd: pytest.CaptureFixture[str]
) -> None:
    train(linear, sgd, steps=3, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "training.train" in err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_run_agrees_with_the_cpu(data: Data) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    mask = {"0.weight": torch.arange(12).reshape(4, 3) % 2 == 0}
    runs = []
    for device in ("cpu", "cuda"):
        placed = copy.deepcopy(net).to(device)
        system = GradientSystem(
            placed, nn.functional.mse_loss, data, mask=mask, l2=0.01
        )
        runs.append(
            train(system, OPTIMIZERS["momentum"], steps=20, batch_size=8, record=5)
        )
    assert runs[1].state.is_cuda
    torch.testing.assert_close(runs[1].state.cpu(), runs[0].state, rtol=0, atol=1e-10)
    assert runs[1].trajectory is not None
    assert runs[1].trajectory.snapshots.is_cuda
