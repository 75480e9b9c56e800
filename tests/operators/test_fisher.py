import warnings

import pytest
import torch
from dense_curvature import example_gradients
from problems import classes, half_squares, linear_regression, small_net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune.core import InvalidInputError, NumericalWarning
from dynprune.operators import EmpiricalFisherOperator, GaussNewtonOperator
from dynprune.system import GradientSystem

CROSS = nn.functional.cross_entropy


def parts(x, y, sizes):
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def twin(system):
    g, weights = example_gradients(system)
    return (g.T * weights) @ g / system.examples


def by_batch(model, batch):
    return CROSS(model(batch["x"]), batch["y"])


@pytest.mark.parametrize("sizes", [(16,), (8, 8), (15, 1)], ids=str)
def test_linear_regression_has_its_closed_form(sizes):
    model, (x, y), _ = linear_regression()
    system = GradientSystem(model, half_squares, parts(x, y, sizes), l2=0.1)
    g = 2 * (x @ model.weight.detach().T - y) * x  # l2 is no example's loss
    F = EmpiricalFisherOperator(system).dense()
    assert torch.allclose(F, g.T @ g / 16, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("route", ["auto", "kept", "rebuilt", "batched"])
@pytest.mark.parametrize("sizes", [(16,), (8, 8), (15, 1)], ids=str)
def test_it_is_of_examples_and_not_of_batches(sizes, route):
    x, y = classes(16, 3, 3)
    data = (x, y) if len(sizes) == 1 else parts(x, y, sizes)
    if len(sizes) > 1 and route == "kept":
        data = x, y
    system = GradientSystem(small_net(), CROSS, data)
    F = EmpiricalFisherOperator(system, route=route)
    wanted = twin(system)
    assert torch.allclose(F.dense(), wanted, rtol=1e-11, atol=1e-14)
    gradient = system.gradient()
    assert not torch.allclose(wanted, torch.outer(gradient, gradient), atol=1e-3)
    v = torch.linspace(-1, 1, system.size, dtype=torch.float64)
    assert torch.allclose(F @ v, wanted @ v, rtol=1e-11, atol=1e-14)
    assert F.matvecs == system.size + 1


def test_trace_is_the_mean_square_of_the_gradients_of_examples():
    system = GradientSystem(small_net(), CROSS, classes(16, 3, 3))
    g, _ = example_gradients(system)
    trace = float(EmpiricalFisherOperator(system).dense().trace())
    assert trace == pytest.approx(float(g.square().sum(1).mean()), rel=1e-12)


@pytest.mark.parametrize("sizes", [(18,), (9, 9), (17, 1)], ids=str)
def test_labels_weighted_by_the_model_make_it_gauss_newton(sizes):
    # Fisher information of a softmax: the mean over labels drawn from p is G
    x, _ = classes(6, 3, 3)
    net = small_net()
    p = net(x).detach().softmax(1).reshape(-1)
    rows = {
        "p": p.split(sizes),
        "x": x.repeat_interleave(3, 0).split(sizes),
        "y": (torch.arange(18) % 3).split(sizes),
    }
    data = [
        dict(zip(rows, part, strict=True)) for part in zip(*rows.values(), strict=True)
    ]

    def mean(model, batch):
        losses = CROSS(model(batch["x"]), batch["y"], reduction="none")
        return (losses * batch["p"]).sum() / batch["p"].sum()

    system = GradientSystem(
        net, None, data, batch_loss=mean, batch_weight=lambda b: float(b["p"].sum())
    )
    plain = GradientSystem(net, CROSS, (x, torch.zeros(6, dtype=torch.int64)))
    F, G = EmpiricalFisherOperator(system), GaussNewtonOperator(plain)
    assert torch.allclose(F.dense(), G.dense(), rtol=1e-11, atol=1e-14)


def test_masked_system_gives_the_block_of_the_survivors():
    dense = GradientSystem(small_net(), CROSS, classes(13, 3, 3))
    masked = dense.with_mask({"0.weight": torch.arange(12).reshape(4, 3) % 3 > 0})
    F = EmpiricalFisherOperator(masked)
    assert F.size == dense.size - 4
    assert torch.allclose(F.dense(), twin(masked), rtol=1e-11, atol=1e-14)


def test_float32_agrees_with_float64_to_its_rounding():
    system = GradientSystem(small_net().float(), CROSS, classes(13, 3, 3))
    found, wanted = EmpiricalFisherOperator(system).dense(), twin(system.double())
    rounding = 100 * torch.finfo(torch.float32).eps
    assert float((found - wanted).norm()) <= rounding * float(wanted.norm())


# -- how the losses of examples are found ---------------------------------------------


def way(op):
    return op._losses.way


@pytest.mark.parametrize("shuffle", [False, True], ids=["in order", "shuffled"])
def test_batch_loss_is_mapped_over_the_network(shuffle):
    x, y = classes(13, 3, 3)

    class Named(TensorDataset):
        def __getitem__(self, index):
            a, b = super().__getitem__(index)
            return {"x": a, "y": b}

    data = DataLoader(Named(x, y), 5, shuffle=shuffle)
    system = GradientSystem(small_net(), None, data, batch_loss=by_batch)
    F = EmpiricalFisherOperator(system)
    assert way(F) == "network"
    assert torch.allclose(F.dense(), twin(system), rtol=1e-11, atol=1e-14)


def test_a_transformer_by_batch_loss():
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, activation="gelu")
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3)).double()
    x = torch.randn(5, 3, 4, generator=torch.Generator().manual_seed(0)).double()
    batch = {"x": x, "y": torch.arange(5) % 3}
    system = GradientSystem(net, None, [batch], batch_loss=by_batch)
    pair = GradientSystem(net, CROSS, (x, batch["y"]))
    wanted = twin(pair)
    for one in (system, pair):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="torch")
            F = EmpiricalFisherOperator(one)
            assert torch.allclose(F.dense(), wanted, rtol=1e-10, atol=1e-13)


class Branching(nn.Module):
    """Cannot be mapped: it looks at the values of an example."""

    def forward(self, x):
        return x * 2 if bool(x.sum() > 0) else x * 2.0


def test_a_layer_that_cannot_be_mapped_falls_back_and_is_named():
    x, y = classes(5, 3, 3)
    net = nn.Sequential(nn.Linear(3, 3), Branching(), nn.Linear(3, 3)).double()
    system = GradientSystem(net, None, [{"x": x, "y": y}], batch_loss=by_batch)
    F = EmpiricalFisherOperator(system)
    with pytest.warns(NumericalWarning, match="in Branching.*one by one"):
        found = F.dense()
    assert way(F) == "loop"
    assert torch.allclose(found, twin(system), rtol=1e-11, atol=1e-14)


def test_a_loss_that_cannot_be_mapped_falls_back_and_is_named():
    def branching(outputs, targets):
        return CROSS(outputs, targets) * (2.0 if outputs.sum() > 1e9 else 1.0)

    system = GradientSystem(small_net(), branching, classes(5, 3, 3))
    F = EmpiricalFisherOperator(system)
    with pytest.warns(NumericalWarning, match="in the loss"):
        found = F.dense()
    assert way(F) == "loop"
    assert torch.allclose(found, twin(system), rtol=1e-11, atol=1e-14)


class Summed(nn.Module):
    """Outputs that are not one row per example."""

    def __init__(self):
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        out = self.net(x)
        return {"logits": out, "size": out.new_ones(3) * self.net[0].bias.sum()}


def test_outputs_that_are_no_rows_are_mapped_with_the_network():
    def loss(outputs, targets):
        return CROSS(outputs["logits"], targets) + outputs["size"].square().mean()

    system = GradientSystem(Summed(), loss, classes(5, 3, 3))
    F = EmpiricalFisherOperator(system)
    assert way(F) == "network"
    assert torch.allclose(F.dense(), twin(system), rtol=1e-11, atol=1e-14)


# -- weights --------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(13,), (8, 5), (12, 1)], ids=str)
def test_class_weights_are_supported(sizes):
    weight = torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)
    x, y = classes(13, 3, 3)
    system = GradientSystem(
        small_net(),
        None,
        [{"x": a, "y": b} for a, b in parts(x, y, sizes)],
        batch_loss=lambda m, b: CROSS(m(b["x"]), b["y"], weight=weight),
        batch_weight=lambda b: float(weight[b["y"]].sum()),
    )
    g, w = example_gradients(system)
    assert torch.equal(w, weight[y])
    wanted = (g.T * weight[y]) @ g / weight[y].sum()
    F = EmpiricalFisherOperator(system)
    assert torch.allclose(F.dense(), wanted, rtol=1e-11, atol=1e-14)


def test_weights_that_do_not_add_up_are_refused():
    x, y = classes(12, 3, 3)
    system = GradientSystem(
        small_net(), CROSS, parts(x, y, (8, 4)), batch_weight=lambda _: 1.0
    )
    v = torch.ones(system.size, dtype=torch.float64)
    with pytest.raises(InvalidInputError, match=r"8 examples has weight 1 .*sum 8"):
        EmpiricalFisherOperator(system) @ v


def test_losses_that_do_not_add_up_are_refused():
    x, y = classes(12, 3, 3)

    def spread(model, batch):
        out = model(batch[0])
        return CROSS(out, batch[1]) + out.var(0, correction=0).sum()

    system = GradientSystem(
        small_net(), None, [[x, y, y]], batch_loss=lambda m, b: spread(m, b[:2])
    )
    v = torch.ones(system.size, dtype=torch.float64)
    with pytest.raises(InvalidInputError, match="no mean over examples"):
        EmpiricalFisherOperator(system) @ v


def test_batches_that_cannot_be_cut_are_refused():
    x, y = classes(5, 3, 3)
    edges = torch.zeros(2, 7, dtype=torch.int64)
    system = GradientSystem(
        small_net(),
        None,
        [{"edges": edges, "x": x, "y": y}],
        batch_loss=by_batch,
    )
    with pytest.raises(InvalidInputError, match="cannot be cut into 5 examples"):
        EmpiricalFisherOperator(system).dense()


def test_not_finite_products_name_the_parameter():
    system = GradientSystem(small_net(), CROSS, classes(5, 3, 3))
    v = torch.full((system.size,), torch.inf, dtype=torch.float64)
    with pytest.raises(InvalidInputError, match=r"first in parameter '0\.weight'"):
        EmpiricalFisherOperator(system) @ v


def test_nothing_of_the_users_is_changed(untouched):
    net = small_net()
    before = [part.clone() for part in net.parameters()]
    hooks = len(net[0]._forward_hooks) + len(net[0]._forward_pre_hooks)
    system = GradientSystem(net, CROSS, classes(5, 3, 3))
    with untouched():
        EmpiricalFisherOperator(system).dense()
    for module in (net[0], system.module[0]):
        assert len(module._forward_hooks) + len(module._forward_pre_hooks) == hooks
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    assert all(part.grad is None for part in net.parameters())


def test_curvlinops_makes_the_same_products():
    curvlinops = pytest.importorskip("curvlinops")
    x, y = classes(15, 3, 3)
    net = small_net().float()
    data = parts(x.float(), y, (8, 7))
    with warnings.catch_warnings():  # torch's own, of its forward mode
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = curvlinops.EFLinearOperator(
            net, nn.CrossEntropyLoss(), list(net.parameters()), data
        )
    system = GradientSystem(net, CROSS, data)
    v = torch.linspace(-1, 1, system.size)
    found, wanted = EmpiricalFisherOperator(system) @ v, theirs @ v
    assert torch.allclose(found, wanted, rtol=1e-4, atol=1e-6)
