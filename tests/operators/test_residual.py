import pytest
import torch
from dense_curvature import dense_gauss_newton, dense_residual
from problems import classes, dense_hessian, half_squares, linear_regression, small_net
from torch import nn

from dynprune.core import InvalidInputError
from dynprune.operators import GaussNewtonOperator, HessianOperator, ResidualOperator
from dynprune.system import GradientSystem

CROSS = nn.functional.cross_entropy


def parts(x, y, sizes):
    return list(zip(x.split(sizes), y.split(sizes), strict=True))


@pytest.mark.parametrize("sizes", [(16,), (8, 8), (15, 1)], ids=str)
def test_it_equals_the_dense_twin_for_any_batches(sizes):
    x, y = classes(16, 3, 3)
    system = GradientSystem(small_net(), CROSS, parts(x, y, sizes), l2=0.01)
    found = ResidualOperator(system).dense()
    assert torch.allclose(found, dense_residual(system), rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("route", ["auto", "kept", "rebuilt", "batched", "linearised"])
def test_hessian_is_gauss_newton_plus_residual(route):
    system = GradientSystem(small_net(), CROSS, classes(13, 3, 3), l2=0.01)
    H = dense_hessian(system, system.state)
    G, R = GaussNewtonOperator(system), ResidualOperator(system, route=route)
    assert torch.allclose((G + R).dense(), H, rtol=1e-11, atol=1e-14)
    assert torch.allclose(HessianOperator(system).dense(), H, rtol=1e-11, atol=1e-14)
    assert float(R.dense().norm()) > 1e-3 * float(H.norm())
    assert R.matvecs == 2 * system.size


def test_it_vanishes_iff_the_outputs_are_affine():
    model, data, _ = linear_regression()
    affine = GradientSystem(model, half_squares, data, l2=0.3)
    assert not bool(ResidualOperator(affine).dense().any())
    deep = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 1, bias=False))
    system = GradientSystem(deep.double(), half_squares, data)
    R = ResidualOperator(system).dense()
    assert float(R.norm()) > 1e-2  # a deep linear network is not affine
    assert torch.allclose(R, dense_residual(system), rtol=1e-11, atol=1e-14)
    # within a layer it is: the diagonal blocks vanish
    assert not bool(R[:9, :9].any())
    assert not bool(R[9:, 9:].any())


def test_it_vanishes_where_the_fit_is_perfect():
    net = small_net()
    x, _ = classes(9, 3, 3)
    system = GradientSystem(net, half_squares, (x, net(x).detach()))
    H = HessianOperator(system).dense()
    assert float(ResidualOperator(system).dense().norm()) <= 1e-14 * float(H.norm())
    assert torch.allclose(H, dense_gauss_newton(system), rtol=1e-11, atol=1e-14)


def test_masked_system_gives_the_block_of_the_survivors():
    dense = GradientSystem(small_net(), CROSS, classes(13, 3, 3))
    masked = dense.with_mask({"0.weight": torch.arange(12).reshape(4, 3) % 3 > 0})
    R, G = ResidualOperator(masked), GaussNewtonOperator(masked)
    wanted = dense_hessian(masked, masked.state)
    assert R.size == masked.size == dense.size - 4
    assert torch.allclose(R.dense() + G.dense(), wanted, rtol=1e-11, atol=1e-14)


def test_selected_and_frozen_parameters_and_a_state_of_its_own():
    net = small_net()
    net[0].bias.requires_grad_(False)
    system = GradientSystem(net, CROSS, classes(13, 3, 3), parameters="*.weight")
    at = 0.5 * system.state
    R = ResidualOperator(system, at)
    wanted = dense_residual(system.with_state(at))
    with torch.no_grad():
        net[0].weight.mul_(2)
    assert torch.allclose(R.dense(), wanted, rtol=1e-11, atol=1e-14)


def test_outputs_in_float32_and_norms():
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)
    )
    x = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    system = GradientSystem(net, CROSS, (x, torch.arange(6) % 3))
    found, wanted = ResidualOperator(system).dense(), dense_residual(system.double())
    rounding = 100 * torch.finfo(torch.float32).eps
    assert float((found - wanted).norm()) <= rounding * float(wanted.norm())


def test_it_refuses_a_system_without_outputs():
    system = GradientSystem(
        small_net(),
        None,
        classes(5, 3, 3),
        batch_loss=lambda m, b: CROSS(m(b[0]), b[1]),
    )
    with pytest.raises(InvalidInputError, match="ResidualOperator needs"):
        ResidualOperator(system)
