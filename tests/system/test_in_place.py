"""Networks and losses that write into their batch: the user's data stay as they are."""

import collections

import pytest
import torch
from problems import problem_of
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dynprune as dp
from dynprune.operators import (
    EmpiricalFisherOperator,
    GaussNewtonOperator,
    HessianOperator,
    NTKOperator,
)
from dynprune.system import GradientSystem
from dynprune.training import Recipe, evaluate, train, train_many

MSE = nn.functional.mse_loss


class Shift(nn.Module):
    """Subtract a number; into its input, or into a copy."""

    def __init__(self, *, leaves):
        nn.Module.__init__(self)
        self.leaves = leaves
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        return self.layer((x.clone() if self.leaves else x).sub_(0.5))


class Hidden(nn.Module):
    """Write into the input where autograd does not look."""

    def __init__(self, *, leaves):
        nn.Module.__init__(self)
        self.leaves = leaves
        self.layer = nn.Linear(3, 1)

    def forward(self, x):
        x = x.clone() if self.leaves else x
        x.data.mul_(0.5)
        return self.layer(x)


class Clone(nn.Module):
    def forward(self, x):
        return x.clone()


def shift(leaves):
    return Shift(leaves=leaves)


def hidden(leaves):
    return Hidden(leaves=leaves)


def relu(leaves):
    first = nn.ReLU(inplace=True)
    head = [Clone(), first] if leaves else [nn.Identity(), first]
    return nn.Sequential(*head, nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


def dropout(leaves):
    """In train mode only."""
    first = nn.Dropout(0.5, inplace=True)
    head = [Clone(), first] if leaves else [nn.Identity(), first]
    return nn.Sequential(*head, nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))


NETS = [shift, hidden, relu, dropout]


def made(kind, *, leaves):
    net = kind(leaves).double()
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in net.parameters():
            part.uniform_(-1, 1, generator=source)
    return net


def rows(count=10, *, dtype=torch.float64):
    source = torch.Generator().manual_seed(0)
    x = torch.randn(count, 3, generator=source, dtype=dtype)
    return x, torch.randn(count, 1, generator=source, dtype=dtype)


def resident(x, y):
    return x, y


def batches(x, y):
    return list(zip(x.split(4), y.split(4), strict=True))


def loader(x, y):
    return DataLoader(TensorDataset(x, y), batch_size=4)


class OneRow(torch.utils.data.Dataset):
    """Hand out the same tensors at each pass."""

    def __init__(self, x, y):
        self.parts = batches(x, y)

    def __len__(self):
        return len(self.parts)

    def __getitem__(self, index):
        return self.parts[index]


def whole_batches(x, y):
    return DataLoader(OneRow(x, y), batch_size=None)


FORMS = [resident, batches, loader, whole_batches]


def sgd(params):
    return torch.optim.SGD(params, lr=0.05)


def measured(system, data):
    """What is computed of a system: name to function."""
    one = torch.ones(system.size, dtype=torch.float64)
    many = Recipe(sgd, steps=4, batch_size=4)
    whole = Recipe(sgd, steps=4, batch_size=10)
    stacks = {}
    # vmap draws other masks, and knows no .data
    apart = nn.Dropout | Hidden
    if not any(isinstance(part, apart) for part in system.module.modules()):
        stacks = {
            f"stack of {recipe.batch_size}, {seeds}": lambda r=recipe, s=seeds: [
                run.state for run in train_many([system] * 2, r, seeds=s, how="stacked")
            ]
            for recipe in (many, whole)
            for seeds in (0, (0, 1))
            if seeds == 0 or isinstance(data, tuple)
        }
    return {
        "loss": system.loss,
        "gradient": system.gradient,
        "hessian": lambda: HessianOperator(system) @ one,
        "gauss-newton": lambda: GaussNewtonOperator(system) @ one,
        "fisher": lambda: EmpiricalFisherOperator(system) @ one,
        "ntk": lambda: NTKOperator(system).dense(),
        "snip": lambda: dp.pruning.snip(system, density=0.5).masks,
        "snip in train mode": lambda: (
            dp.pruning.snip(system, density=0.5, mode="train").masks
        ),
        "train": lambda: many(system).state,
        "train on whole": lambda: whole(system).state,
        "line search": lambda: (
            train(
                system, lambda params: torch.optim.LBFGS(params, lr=0.1), steps=2
            ).state
        ),
        "other data": lambda: system.with_data(data).gradient(),
        "evaluate": lambda: evaluate(system.model, data, loss_fn=MSE).loss,
        **stacks,
    }


RACED = {"hessian", "gauss-newton", "fisher", "ntk"}  # a stopwatch chooses the rounding


def same(name, found, wanted):
    if name in RACED:
        return torch.allclose(found, wanted, rtol=0, atol=1e-12 * float(wanted.norm()))
    if isinstance(found, dict):
        return all(torch.equal(found[name], wanted[name]) for name in wanted)
    if isinstance(found, list):
        return all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    if isinstance(found, float):
        return found == wanted
    return torch.equal(found, wanted)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", NETS)
def test_data_stay_and_results_are_those_of_a_network_that_copies(kind, form):
    x, y = rows()
    kept = x.clone(), y.clone()
    data, other = form(x, y), form(*(part.clone() for part in kept))
    system = GradientSystem(made(kind, leaves=False), MSE, data)
    twin = GradientSystem(made(kind, leaves=True), MSE, other)
    assert torch.equal(x, kept[0])
    wanted = measured(twin, other)
    for name, function in measured(system, data).items():
        found = function()
        assert torch.equal(x, kept[0]), name
        assert torch.equal(y, kept[1]), name
        assert same(name, found, wanted[name]()), name


def test_targets_that_a_loss_writes_into_stay():
    def loss(outputs, targets):
        return (outputs - targets.mul_(2.0)).square().mean()

    def wanted(outputs, targets):
        return (outputs - 2.0 * targets).square().mean()

    x, y = rows()
    kept = x.clone(), y.clone()
    net = made(relu, leaves=False)
    system = GradientSystem(net, loss, (x, y))
    twin = GradientSystem(made(relu, leaves=True), wanted, kept)
    found = measured(system, (x, y))
    found["evaluate"] = lambda: evaluate(net, (x, y), loss_fn=loss).loss
    right = measured(twin, kept)
    right["evaluate"] = lambda: evaluate(net, kept, loss_fn=wanted).loss
    for name, function in found.items():
        assert same(name, function(), right[name]()), name
        assert torch.equal(x, kept[0]), name
        assert torch.equal(y, kept[1]), name


@pytest.mark.parametrize("kind", [dict, collections.UserDict])
def test_a_batch_loss_that_writes_into_its_batch(kind):
    def loss(model, batch):
        return MSE(model(batch["x"].sub_(0.5)), batch["y"])

    def wanted(model, batch):
        return MSE(model(batch["x"] - 0.5), batch["y"])

    x, y = rows()
    kept = x.clone()
    net = nn.Linear(3, 1).double()
    mine = [kind({"x": x, "y": y})]
    plain = [{"x": kept.clone(), "y": y}]
    system = GradientSystem(net, None, mine, batch_loss=loss)
    twin = GradientSystem(net, None, plain, batch_loss=wanted)
    recipe = Recipe(sgd, steps=3)
    one = torch.ones(system.size, dtype=torch.float64)
    for function in (
        GradientSystem.loss,
        GradientSystem.gradient,
        lambda system: HessianOperator(system) @ one,
        lambda system: recipe(system).state,
        lambda system: dp.pruning.snip(system, density=0.5).masks["weight"],
    ):
        found, right = function(system), function(twin)
        assert torch.allclose(found, right, rtol=0, atol=1e-12)
        assert torch.equal(x, kept)

    def loss_of(data, batch_loss):
        return evaluate(net, problem_of(lambda: net, data, batch_loss)).loss

    assert loss_of(mine, loss) == loss_of(plain, wanted)
    assert torch.equal(x, kept)


def test_a_metric_sees_the_data_as_they_are():
    x, y = rows()
    kept = x.clone()
    net = made(shift, leaves=False)
    problem = dp.Problem(
        make_model=lambda _seed: net,
        loss_fn=None,
        train=(x, y),
        validation=(x, y),
        test=(x, y),
        metric=lambda outputs, targets: (outputs - targets).square().mean(1),
        batch_loss=lambda model, batch: MSE(model(batch[0]), batch[1]),
    )
    found = evaluate(net, problem)
    assert torch.equal(x, kept)
    assert found.metric == pytest.approx(found.loss, rel=1e-12)


def test_an_ordinary_network_gets_its_batches_themselves():
    class Seen(nn.Module):
        def __init__(self):
            nn.Module.__init__(self)
            self.layer = nn.Linear(3, 1).double()
            self.places = []

        def forward(self, x):
            self.places.append(x.data_ptr())
            return self.layer(x)

    x, y = rows()
    system = GradientSystem(Seen(), MSE, (x, y))
    assert not system.module._forward_pre_hooks
    places = system.module.places
    places.clear()
    system.loss()
    assert places == [x.data_ptr()]


def test_data_that_need_gradients_keep_them():
    def loss(model, batch):
        with torch.enable_grad():
            value = model(batch["x"])
            (slope,) = torch.autograd.grad(value.sum(), batch["x"], create_graph=True)
        return (slope - batch["y"]).square().mean()

    x, y = rows()
    x.requires_grad_()
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    system = GradientSystem(net, None, [{"x": x, "y": y}], batch_loss=loss)
    assert system.gradient().isfinite().all()
    assert x.requires_grad
