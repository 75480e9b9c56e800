"""Gap and cone conditions against closed forms and dense twins."""

import math

import numpy as np
import problems
import pytest
import torch
from torch import nn

from dynprune import manifold
from dynprune.core import InvalidInputError
from dynprune.operators import HessianOperator, MatrixOperator
from dynprune.spectral import eigenpairs
from dynprune.system import GradientSystem

EPS = torch.finfo(torch.float64).eps


class Energy(nn.Module):
    """½ θ'Aθ + ρ θ₁³/6: the Hessian is A + ρ θ₁ e₁e₁'."""

    def __init__(self, values, rho: float) -> None:
        nn.Module.__init__(self)
        self.register_buffer("values", torch.as_tensor(values, dtype=torch.float64))
        self.theta = nn.Parameter(torch.zeros(len(values), dtype=torch.float64))
        self.rho = rho

    def forward(self, x):
        value = 0.5 * self.values.dot(self.theta**2) + self.rho * self.theta[0] ** 3 / 6
        return value + 0.0 * x[:, 0]


def energy_system(values, rho: float = 0.0) -> GradientSystem:
    x = torch.ones(4, 1, dtype=torch.float64)
    return GradientSystem(Energy(values, rho), lambda out, _: out.mean(), (x, x))


def net_system(activation=nn.Tanh) -> GradientSystem:
    """Return a net of 49 parameters."""
    net = problems.small_net(widths=(4, 5, 4), activation=activation)
    data = problems.classes(40, 4, 4)
    return GradientSystem(net, nn.functional.cross_entropy, data)


def top(system: GradientSystem, k: int):
    return eigenpairs(HessianOperator(system), k, tol=1e-12, completeness=True)


VALUES = [5.0, 4.0, 1.0, 0.5, 0.25, -0.1]


def test_a_quadratic_has_no_lipschitz_constant_and_the_margin_is_the_gap():
    system = energy_system(VALUES)
    pairs = top(system, 5)
    found = manifold.gap_condition(system, system.state, pairs, n_fast=2, radius=10.0)
    assert found.lipschitz == pytest.approx(0.0, abs=100 * EPS)
    assert found.margin == pytest.approx(3.0)
    assert found.lyapunov_perron_margin == pytest.approx(3.0)
    assert found.verdict == "not refuted"
    cones = manifold.cone_condition(system, system.state, pairs, n_fast=2, radius=10.0)
    assert cones.margins == pytest.approx((3.0,) * 4)
    assert cones.lipschitz is None


@pytest.mark.parametrize(
    ("rho", "verdict"), [(0.5, "not refuted"), (0.9, "failed")], ids=str
)
def test_c1_of_a_cubic_is_known(rho, verdict):
    system = energy_system(VALUES, rho)
    w = torch.zeros(6, 2, dtype=torch.float64)
    w[0] = torch.tensor([2.0, -1.0])
    found = manifold.gap_condition(
        system, system.state, top(system, 3), n_fast=2, displacements=w
    )
    assert found.lipschitz == pytest.approx(2.0 * rho)
    assert found.radius == pytest.approx(2.0)
    assert found.margin == pytest.approx(3.0 - 4.0 * rho)
    assert found.margins == pytest.approx((3.0 - 4.0 * rho, 3.0 - 2.0 * rho))
    assert found.verdict == verdict


@pytest.mark.parametrize(("step", "margin"), [(-2.0, 2.0), (-4.5, -0.5)], ids=str)
def test_c3_of_a_cubic_is_known(step, margin):
    # fast: e1, e2. sharpest block diag(5 + step, 4), flat part at most 1
    system = energy_system(VALUES, 1.0)
    w = torch.zeros(6, 1, dtype=torch.float64)
    w[0] = step
    found = manifold.cone_condition(
        system, system.state, top(system, 3), n_fast=2, displacements=w
    )
    assert found.margin == pytest.approx(margin)
    assert found.verdict == ("not refuted" if margin > 0 else "failed")


def test_c3_does_not_see_the_zeros_of_the_projection():
    system = energy_system([5.0, 4.0, -1.0, -2.0])
    found = manifold.cone_condition(
        system, system.state, top(system, 3), n_fast=2, radius=1.0, samples=1
    )
    assert found.margin == pytest.approx(5.0)  # 4 - (-1), not 4 - 0


def test_the_conditions_agree_with_dense_twins():
    system = net_system()
    pairs = top(system, 6)
    w = manifold.sample_displacements(pairs, radius=0.3, samples=3)
    centre = problems.dense_hessian(system, system.state)
    moved = [problems.dense_hessian(system, system.state + part) for part in w.T]
    c1 = manifold.gap_condition(
        system, system.state, pairs, n_fast=3, displacements=w, smooth=True
    )
    truth = max(float(torch.linalg.matrix_norm(part - centre, 2)) for part in moved)
    assert truth * 0.98 <= c1.lipschitz <= truth * (1 + 1e-10)

    c3 = manifold.cone_condition(
        system, system.state, pairs, n_fast=3, displacements=w, smooth=True
    )
    values, vectors = torch.linalg.eigh(centre)
    fast, slow = vectors[:, -3:], vectors[:, :-3]
    margins = [
        float(torch.linalg.eigvalsh(fast.T @ part @ fast)[0])
        - float(torch.linalg.eigvalsh(slow.T @ part @ slow)[-1])
        for part in moved
    ]
    scale = float(values[-1])
    for found, true in zip(c3.margins, margins, strict=True):
        assert true - 1e-9 * scale <= found <= true + 1e-3 * scale


def test_the_cone_identity_holds_to_machine_precision():
    # V'/2 = -q.H q + p.H p for the difference of two orbits, H averaged between them
    system = net_system()
    U = top(system, 4).vectors[:, :3]
    make = torch.Generator().manual_seed(1)
    first = system.state
    step = torch.randn(system.size, generator=make, dtype=torch.float64)
    second = first - 0.05 * step / step.norm()
    delta = first - second
    rate = system.field(first) - system.field(second)
    q, q_rate = U.T @ delta, U.T @ rate
    p, p_rate = delta - U @ q, rate - U @ q_rate
    left = q.dot(q_rate) - p.dot(p_rate)
    nodes, weights = np.polynomial.legendre.leggauss(12)
    mean = sum(
        0.5 * w * problems.dense_hessian(system, second + 0.5 * (1 + x) * delta)
        for x, w in zip(nodes, weights, strict=True)
    )
    right = -(U @ q).dot(mean @ (U @ q)) + p.dot(mean @ p)
    scale = float(torch.linalg.matrix_norm(mean, 2)) * float(delta.norm()) ** 2
    assert abs(float(left - right)) < 1e3 * EPS * scale


@pytest.mark.parametrize("lip", [0.4, 0.99, 1.01, 3.0])
def test_the_skew_example_has_real_distinct_eigenvalues_iff_the_gap_condition_holds(
    lip,
):
    # u' = -diag(3, 1) u + lip [[0, 1], [-1, 0]] u: gap 2, Lip F = lip
    matrix = torch.tensor([[-3.0, lip], [-lip, -1.0]], dtype=torch.float64)
    found = torch.linalg.eigvals(matrix)
    real = bool((found.imag.abs() < 1e-12).all())
    assert (real and abs(found[0] - found[1]) > 1e-12) == (2.0 - 2.0 * lip > 0.0)


def test_c4_puts_the_largest_multipliers_in_the_slow_part():
    # η λ = 1.9, .8, .7, .1, .05: |1 - ηλ| = .9, .2, .3, .9, .95; fast are .8 and .7
    op = MatrixOperator(torch.diag(torch.tensor([19.0, 8.0, 7.0, 1.0, 0.5]).double()))
    found = manifold.step_condition(
        eigenpairs(op, 5), n_fast=2, learning_rate=0.1, lipschitz=2.0, radius=1.0
    )
    assert found.gap == pytest.approx(0.9 - 0.3)
    assert found.margin == pytest.approx(0.6 - 2 * 0.1 * 2.0)
    assert "1.9" in found.note


def test_c4_refuses_to_guess_multipliers_beyond_the_known_pairs():
    op = MatrixOperator(torch.diag(torch.linspace(20.0, 1.0, 80).double()))
    found = manifold.step_condition(
        eigenpairs(op, 4), n_fast=2, learning_rate=0.1, lipschitz=0.0, radius=1.0
    )
    assert found.verdict == "not applicable"
    assert "unknown" in found.note
    assert found.margin is None


@pytest.mark.parametrize(
    ("activation", "smooth"),
    [(nn.Tanh, True), (nn.GELU, True), (nn.Softplus, True), (nn.ReLU, False)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_kinks_make_the_theorem_not_applicable(activation, smooth):
    system = net_system(activation)
    pairs = top(system, 4)
    for check in (manifold.gap_condition, manifold.cone_condition):
        found = check(system, system.state, pairs, n_fast=1, radius=0.5, samples=2)
        assert (found.verdict != "not applicable") == smooth
        assert (found.margin is not None) == smooth


def test_quotients_double_at_a_jump_and_converge_where_smooth():
    relu, tanh = net_system(nn.ReLU), net_system(nn.Tanh)
    make = torch.Generator().manual_seed(0)
    w = torch.randn(relu.size, generator=make, dtype=torch.float64)
    jumps = manifold.difference_quotients(relu, relu.state, w)
    assert jumps[-1] / jumps[-2] == pytest.approx(2.0, rel=1e-3)
    assert jumps[-1] > 1e4
    bounded = manifold.difference_quotients(tanh, tanh.state, w)
    assert bounded[-1] / bounded[-2] == pytest.approx(1.0, rel=1e-2)
    float32 = GradientSystem(tanh.model.float(), tanh.loss_fn, _single(tanh.data))
    same = manifold.difference_quotients(float32, float32.state, w.float())
    assert same.dtype == torch.float64
    assert manifold.is_smooth(same)


def _single(data):
    return data[0].float(), data[1]


def test_a_quadratic_leaves_nothing_above_rounding():
    system = energy_system(VALUES)
    w = torch.ones(6, dtype=torch.float64)
    assert manifold.is_smooth(manifold.difference_quotients(system, system.state, w))


def test_sampled_displacements_lie_on_the_sphere_and_start_with_the_flow():
    system = net_system()
    pairs = top(system, 4)
    g = system.gradient()
    w = manifold.sample_displacements(pairs, radius=0.5, samples=5, gradient=g)
    assert w.norm(dim=0).tolist() == pytest.approx([0.5] * 5)
    assert torch.allclose(w[:, 0], -0.5 * g / g.norm())
    inside = pairs.vectors.T @ w[:, 1]
    assert float(inside.norm()) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_fast": 4}, "n_fast=4 was asked of 4 eigenpairs"),
        ({"n_fast": 0}, "n_fast=0"),
        ({"radius": None}, "Pass radius= to sample"),
        ({"radius": -1.0}, "radius=-1.0"),
        ({"radius": math.inf}, "finite radius"),
        ({"samples": 0}, "samples is 0"),
        (
            {"radius": None, "displacements": torch.ones(3, 1)},
            r"displacements have shape \(3, 1\)",
        ),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(change, message):
    system = energy_system(VALUES)
    arguments = {"n_fast": 2, "radius": 1.0} | change
    for check in (manifold.gap_condition, manifold.cone_condition):
        with pytest.raises(InvalidInputError, match=message):
            check(system, system.state, top(system, 4), **arguments)


def test_a_step_needs_a_positive_rate_and_a_segment_a_length():
    system = energy_system(VALUES)
    with pytest.raises(InvalidInputError, match=r"learning_rate is -0\.1"):
        manifold.step_condition(
            top(system, 4), n_fast=2, learning_rate=-0.1, lipschitz=0.0, radius=1.0
        )
    with pytest.raises(InvalidInputError, match=r"has norm 0\.0"):
        manifold.difference_quotients(system, system.state, torch.zeros(6).double())


def test_unknown_multipliers_close_the_split_when_the_last_known_pair_is_fast():
    # η λ = 1.9, 1.84, .3 known and .28 not: the smallest known multiplier is .7, the
    # next of all is .72, not the .84 that the known ones suggest
    op = MatrixOperator(torch.diag(torch.tensor([9.5, 9.2, 1.5, 1.4, 0.1])).double())
    rule = {"learning_rate": 0.2, "lipschitz": 0.0, "radius": 1.0}
    found = manifold.step_condition(eigenpairs(op, 3), n_fast=1, **rule)
    assert found.verdict == "not applicable"
    whole = manifold.step_condition(eigenpairs(op, 5), n_fast=1, **rule)
    assert whole.margin == pytest.approx(0.02)
    assert whole.verdict == "not refuted"
