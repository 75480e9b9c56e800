import pytest
import torch
from dense_curvature import output_jacobian, rows
from problems import classes, half_squares, linear_regression, small_net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune.core import InvalidInputError, NotDeterministicError
from dynprune.operators import GaussNewtonOperator, NTKOperator
from dynprune.system import GradientSystem

CROSS = nn.functional.cross_entropy


def parts(x, y, sizes):
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


def test_a_linear_model_has_the_gram_matrix_of_its_inputs():
    model, (x, y), _ = linear_regression()
    K = NTKOperator(GradientSystem(model, half_squares, (x, y), l2=0.5))
    assert torch.allclose(K.dense(), x @ x.T, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("sizes", [(16,), (8, 8), (15, 1)], ids=str)
@pytest.mark.parametrize("route", ["auto", "rebuilt", "batched"])
def test_it_equals_the_dense_twin_in_the_order_of_the_data(route, sizes):
    x, y = classes(16, 3, 3)
    data = (x, y) if len(sizes) == 1 else parts(x, y, sizes)
    system = GradientSystem(small_net(), CROSS, data)
    K = NTKOperator(system, route=route)
    J = output_jacobian(GradientSystem(small_net(), CROSS, (x, y)))
    assert K.shape == (48, 48)
    assert torch.allclose(K.dense(), J @ J.T, rtol=1e-11, atol=1e-13)
    u = torch.linspace(-1, 1, 48, dtype=torch.float64)
    assert torch.allclose(K @ u, J @ (J.T @ u), rtol=1e-11, atol=1e-13)
    V = torch.eye(system.size, dtype=torch.float64)[:, :3]
    assert torch.allclose(K.push(V), J[:, :3], rtol=1e-11, atol=1e-13)
    assert torch.allclose(K.pull(u[:, None]), (J.T @ u)[:, None], rtol=1e-11)
    assert K.matvecs == 49


def test_trace_and_eigenvalues_are_those_of_the_other_product():
    system = GradientSystem(small_net(), _half, _curve(4))
    K, G = NTKOperator(system).dense(), GaussNewtonOperator(system).dense()
    # ½ the mean of squares: G = J'J/N
    assert float(K.trace()) == pytest.approx(4 * float(G.trace()), rel=1e-12)
    top = torch.linalg.eigvalsh(K), 4 * torch.linalg.eigvalsh(G)
    assert torch.allclose(top[0][-5:], top[1][-5:], rtol=1e-9)
    assert float(top[0][0]) >= -1e-13 * float(top[0][-1])  # 12 outputs, PSD
    assert torch.equal(K, K.T)


def _half(outputs, targets):
    return 0.5 * half_squares(outputs, targets)


def _curve(n):
    x, _ = classes(n, 3, 3)
    return x, x.cos()


def test_pulling_the_slopes_of_the_loss_gives_the_gradient():
    x, y = classes(9, 3, 3)
    net = small_net()
    system = GradientSystem(net, CROSS, (x, y))
    point = net(x).detach().requires_grad_()
    (slope,) = torch.autograd.grad(CROSS(point, y), point)
    found = NTKOperator(system).pull(slope.reshape(-1, 1))[:, 0]
    assert torch.allclose(found, system.gradient(), rtol=1e-12, atol=1e-15)


def test_masked_system_moves_the_survivors_alone():
    dense = GradientSystem(small_net(), CROSS, classes(5, 3, 3))
    masked = dense.with_mask({"0.weight": torch.arange(12).reshape(4, 3) % 3 > 0})
    J = output_jacobian(masked)
    assert J.shape[1] == dense.size - 4
    assert torch.allclose(NTKOperator(masked).dense(), J @ J.T, rtol=1e-11, atol=1e-13)


def test_nested_outputs_come_leaf_by_leaf():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = small_net()

        def forward(self, x):
            out = self.net(x)
            return {"b": out[:, :2], "a": out[:, 2:].tanh(), "n": len(x)}

    x, y = classes(4, 3, 3)
    system = GradientSystem(Two(), lambda f, y: CROSS(f["b"], y % 2), (x, y))
    theta = system.state.requires_grad_()
    out = system.forward(system.unflatten(theta), {}, x)
    J = torch.cat([rows(out["b"], theta), rows(out["a"], theta)])  # as the dict is
    K = NTKOperator(system)
    assert torch.allclose(K.dense(), J @ J.T, rtol=1e-11, atol=1e-13)


def test_float32_agrees_with_float64_to_its_rounding():
    system = GradientSystem(small_net().float(), CROSS, classes(6, 3, 3))
    J = output_jacobian(system.double())
    found, wanted = NTKOperator(system).dense(), J @ J.T
    rounding = 100 * torch.finfo(torch.float32).eps
    assert float((found - wanted).norm()) <= rounding * float(wanted.norm())


def test_an_order_that_changes_is_refused():
    x, y = classes(13, 3, 3)
    data = TensorDataset(x, y)
    shuffled = GradientSystem(small_net(), CROSS, DataLoader(data, 5, shuffle=True))
    with pytest.raises(NotDeterministicError, match="shuffle=False"):
        NTKOperator(shuffled)
    plain = GradientSystem(small_net(), CROSS, DataLoader(data, 5))
    assert NTKOperator(plain).size == 39


def test_it_refuses_what_it_cannot_do():
    data = classes(5, 3, 3)
    system = GradientSystem(
        small_net(), None, data, batch_loss=lambda m, b: CROSS(m(b[0]), b[1])
    )
    with pytest.raises(InvalidInputError, match="NTKOperator needs"):
        NTKOperator(system)
    system = GradientSystem(small_net(), CROSS, data)
    with pytest.raises(InvalidInputError, match=r"Pass \(15,\) or"):
        NTKOperator(system) @ system.state
    with pytest.raises(InvalidInputError, match="not finite"):
        NTKOperator(system) @ torch.full((15,), torch.nan, dtype=torch.float64)

    with pytest.raises(InvalidInputError, match=r"Pass \(15, k\)"):
        NTKOperator(system).pull(system.state[:, None])
    with pytest.raises(InvalidInputError, match=r"Pass \(31, k\)"):
        NTKOperator(system).push(system.state)

    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.unused, self.used = nn.Linear(3, 3).double(), True

        def forward(self, x):
            return self.unused(x) if self.used else x

    constant = GradientSystem(Constant(), CROSS, data)
    constant.module.used = False
    with pytest.raises(InvalidInputError, match="No output of the network depends"):
        NTKOperator(constant)
