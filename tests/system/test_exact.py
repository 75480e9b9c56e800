"""Closed forms by SymPy beside what the package computes; each checks the other."""

import math

import numpy as np
import pytest
import sympy
import torch
from hypothesis import given, settings, strategies
from scipy.integrate import solve_ivp
from torch import nn

from dynprune.core import AssumptionError, InvalidInputError, generator
from dynprune.operators import HessianOperator
from dynprune.system import (
    ExactSystem,
    GradientSystem,
    aligned_start,
    deep_scalar,
    double_well,
    linear_network,
    quadratic,
)

INDEFINITE = [[2.0, 0.5, 0.0], [0.5, -0.3, 0.2], [0.0, 0.2, 1.0]]
EPS = torch.finfo(torch.float64).eps


def network(**kwargs) -> ExactSystem:
    kwargs = {"singular_values": [2.0, 1.0], "strengths": [0.3, 0.1]} | kwargs
    return linear_network(*aligned_start(**kwargs))


MAKE = {
    "quadratic": lambda: quadratic(
        INDEFINITE, [1.0, -1.0, 2.0], fixed_point=[0.5, 0.0, 1.0], offset=0.7
    ),
    "linear network": network,
    "wide linear network": lambda: network(widths=(3, 4, 2)),
    "flat mode": lambda: network(singular_values=[1.5, 0.0], strengths=[0.2, 0.4]),
    "deep scalar 2": lambda: deep_scalar(-0.8, [0.3, -0.3]),
    "deep scalar 3": lambda: deep_scalar(1.3, [-0.4, -0.4, 0.4]),
    "deep scalar 3, from above": lambda: deep_scalar(1.3, [1.6] * 3),
    "deep scalar 5, from above": lambda: deep_scalar(0.6, [1.0] * 5),
    "double well": lambda: double_well([0.2, 0.9], depth=0.5, stiffness=3.0, angle=0.6),
}


@pytest.fixture(params=MAKE, ids=str, scope="module")
def exact(request) -> ExactSystem:
    return MAKE[request.param]()


def same(found, want, *, rtol: float, atol: float = 0.0) -> bool:
    """torch.allclose without its absolute tolerance of 1e-8."""
    return torch.allclose(found, want, rtol=rtol, atol=atol)


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def some_states(exact: ExactSystem, count: int = 3):
    make = generator(1)
    for _ in range(count):
        yield torch.randn(exact.system.size, generator=make, dtype=torch.float64)


# -- loss, gradient, Hessian ------------------------------------------------------


def test_loss_gradient_and_products_are_those_of_the_formulas(exact):
    for state in some_states(exact):
        hessian = exact.hessian(state)
        scale = max(1.0, float(hessian.abs().max()))
        torch.testing.assert_close(
            exact.system.loss(state), exact.loss(state), rtol=1e-12, atol=1e-13
        )
        torch.testing.assert_close(
            exact.system.gradient(state),
            exact.gradient(state),
            rtol=1e-12,
            atol=1e-13 * scale,
        )
        eye = torch.eye(exact.system.size, dtype=torch.float64)
        product = HessianOperator(exact.system, state) @ eye
        torch.testing.assert_close(product, hessian, rtol=1e-12, atol=1e-13 * scale)


def test_hessian_agrees_with_finite_differences_of_the_package_gradient(exact):
    # a central difference of step h errs by h²/6 |D⁴L|, at most 1e3 for these systems
    # near the unit ball, and by rounding, eps |∇L| / h
    h = 1e-5
    for state in some_states(exact, 1):
        columns = [
            (
                exact.system.gradient(state + h * e)
                - exact.system.gradient(state - h * e)
            )
            / (2 * h)
            for e in torch.eye(exact.system.size, dtype=torch.float64)
        ]
        rounding = EPS * float(exact.gradient(state).abs().max() + 1) / h
        bound = h**2 / 6 * 1e3 + 100 * rounding
        error = (torch.stack(columns, 1) - exact.hessian(state)).abs().max()
        assert float(error) <= bound


def test_system_reads_a_mean_over_examples_whatever_the_batches():
    exact = network()
    x, y = exact.system.data
    sizes = (7, 4, 1)
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    system = exact.system.with_data(batches)
    state = next(some_states(exact))
    eye = torch.eye(system.size, dtype=torch.float64)
    product = HessianOperator(system, state) @ eye
    torch.testing.assert_close(product, exact.hessian(state), rtol=1e-12, atol=1e-12)
    assert same(system.loss(state), exact.loss(state), rtol=1e-12)
    assert same(system.gradient(state), exact.gradient(state), rtol=1e-11, atol=1e-13)
    means = [exact.system.with_data([batch]) for batch in batches]
    wrong = sum(HessianOperator(part, state) @ eye for part in means) / 3
    assert float((wrong - product).abs().max()) > 0.01 * float(product.abs().max())


def test_the_quadratic_has_signed_examples_that_a_batch_may_split():
    exact = MAKE["quadratic"]()
    x, y = exact.system.data
    split = exact.system.with_data([(x[:2], y[:2]), (x[2:], y[2:])])
    state = next(some_states(exact))
    assert same(split.gradient(state), exact.gradient(state), rtol=1e-12, atol=1e-13)
    assert sorted(y.tolist()) == [-1.0, 1.0, 1.0]  # INDEFINITE has one λ < 0


def test_a_mask_asks_the_hessian_at_the_masked_state():
    exact = network(widths=(3, 2, 2))
    state = next(some_states(exact))
    mask = {"0.weight": torch.tensor([[1, 0, 1], [1, 1, 0]]).bool()}
    kept = torch.cat([mask["0.weight"].reshape(-1), torch.ones(4).bool()])
    masked = exact.system.with_state(state).with_mask(mask)
    block = HessianOperator(masked).dense()
    at_masked = exact.hessian(state * kept)[kept][:, kept]
    assert same(block, at_masked, rtol=1e-12, atol=1e-12)
    at_dense = exact.hessian(state)[kept][:, kept]
    assert not same(block, at_dense, rtol=1e-3, atol=1e-3)


# -- flow ---------------------------------------------------------------------------

TIMES = [0.0, 0.1, 0.5, 1.5, 3.0]


def test_flow_of_the_system_is_the_solution(exact):
    flow = exact.system.flow(TIMES, rtol=1e-12, atol=1e-13)
    solution = exact.solution(TIMES)
    assert flow.shape == solution.shape
    # global error ≤ local tolerance × steps (< 1e3) × growth e^(.42·3) of the saddle
    torch.testing.assert_close(solution, flow, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(solution[:, 0], exact.system.state, rtol=1e-13, atol=0.0)


def test_runge_kutta_on_the_formulas_converges_to_the_solution_at_order_four(exact):
    def end(steps: int) -> torch.Tensor:
        theta, h = exact.system.state, 0.2 / steps
        for _ in range(steps):
            a = -exact.gradient(theta)
            b = -exact.gradient(theta + h / 2 * a)
            c = -exact.gradient(theta + h / 2 * b)
            d = -exact.gradient(theta + h * c)
            theta = theta + h / 6 * (a + 2 * b + 2 * c + d)
        return theta

    want = exact.solution([0.2])[:, 0]
    coarse, fine = (float((end(steps) - want).norm()) for steps in (64, 128))
    assert 2**3.7 < coarse / fine < 2**4.3
    assert fine < 1e-7


def test_the_symbolic_derivative_of_the_solution_is_minus_the_gradient(exact):
    forms = exact.formulas
    if forms.solution is None:
        assert forms.elapsed is not None
        return
    for when in (0.2, 1.7):
        speed = forms.solution.diff(forms.time).subs(forms.time, when).evalf()
        field = -exact.gradient(exact.solution([when])[:, 0])
        assert same(doubles(*map(float, speed)), field, rtol=1e-12, atol=1e-12)


def test_simple_systems_hold_exact_numbers_and_simplify_to_zero():
    for exact in (deep_scalar(2.0, [0.5, 0.5]), double_well([0.5, 0.25])):
        forms = exact.formulas
        along = dict(zip(forms.parameters, forms.solution, strict=True))
        defect = forms.solution.diff(forms.time) + forms.gradient.subs(along)
        assert defect.applyfunc(sympy.simplify) == sympy.zeros(2, 1)
        assert not forms.loss.atoms(sympy.Float)


@pytest.mark.parametrize("start", [0.4, 1.6], ids=["from below", "from above"])
@pytest.mark.parametrize("depth", [3, 4, 7], ids=str)
def test_elapsed_time_of_a_deep_scalar_is_the_integral_of_one_over_speed(depth, start):
    exact = deep_scalar(1.5, [start] * depth)
    forms = exact.formulas
    x = forms.parameters[0]
    speed = (sympy.Rational(3, 2) - x**depth) * x ** (depth - 1)
    for value in (0.7, 0.95) if start < 1 else (1.5, 1.3):
        slope = forms.elapsed.diff(x).subs(x, value).evalf()
        assert abs(float(slope * speed.subs(x, value)) - 1) < 1e-12
    assert abs(float(forms.elapsed.subs(x, start).evalf())) < 1e-12


def test_a_deep_scalar_comes_to_rest_at_its_minimum():
    for exact in (deep_scalar(1.3, [0.4] * 3), deep_scalar(1.3, [1.9] * 3)):
        late = exact.solution([4.0, 5.0, 40.0, 1e6])
        end = exact.fixed_points[:, 1]
        assert same(late[:, 2], end, rtol=1e-14)
        assert same(late[:, 3], end, rtol=1e-14)
        away = (late[:, :2] - end[:, None])[0]
        # the curvature of the minimum along the path is D a^(2 - 2/D)
        assert float(away[1] / away[0]) == pytest.approx(
            math.exp(-3 * 1.3 ** (4 / 3)), rel=1e-4
        )
    resting = deep_scalar(8.0, [2.0, 2.0, 2.0])
    assert torch.equal(resting.solution([0.0, 5.0]), torch.full((3, 2), 2.0).double())


def test_a_deep_scalar_of_two_is_a_linear_network_of_width_one():
    s, a = 1.7, 0.2
    scalar = deep_scalar(s, [math.sqrt(a)] * 2).solution(TIMES)
    data = torch.tensor([[1.0], [-1.0]]).double()
    root = doubles(math.sqrt(a))[:, None]
    wide = linear_network((data, s * data), root, root).solution(TIMES)
    assert same(scalar, wide, rtol=1e-13)


@settings(max_examples=15)
@given(
    first=strategies.floats(0.0, 3.0),
    second=strategies.floats(0.0, 3.0),
    start=strategies.lists(strategies.floats(-2, 2), min_size=3, max_size=3),
)
def test_a_flow_composes(first, second, start):
    whole = quadratic(INDEFINITE, start).solution([first + second])[:, 0]
    middle = quadratic(INDEFINITE, start).solution([first])[:, 0]
    halves = quadratic(INDEFINITE, middle).solution([second])[:, 0]
    assert same(whole, halves, rtol=1e-11, atol=1e-11)


def test_an_independent_integrator_agrees_with_the_flow():
    exact = network()
    solved = solve_ivp(
        lambda _, theta: -exact.gradient(torch.as_tensor(theta)).numpy(),
        (0.0, 3.0),
        exact.system.state.numpy(),
        method="Radau",
        t_eval=TIMES,
        rtol=1e-9,
        atol=1e-11,
    )
    assert np.abs(solved.y - exact.solution(TIMES).numpy()).max() < 1e-6


# -- fixed points ---------------------------------------------------------------------


def test_fixed_points_are_zeros_of_the_gradient(exact):
    for point in exact.fixed_points.T:
        assert float(exact.gradient(point).abs().max()) < 1e-13
        assert float(exact.system.gradient(point).abs().max()) < 1e-13


def test_the_saddle_of_a_double_well_has_one_negative_direction_along_the_wells():
    angle, depth, width, stiffness = 0.6, 0.5, 2.0, 3.0
    exact = double_well(
        [0.1, 0.1], depth=depth, width=width, stiffness=stiffness, angle=angle
    )
    k = 4 * depth / width**2
    saddle, plus, minus = exact.fixed_points.T
    values, vectors = torch.linalg.eigh(HessianOperator(exact.system, saddle).dense())
    assert same(values, doubles(-k, stiffness), rtol=1e-14)
    along = doubles(math.cos(angle), math.sin(angle))
    assert abs(abs(float(vectors[:, 0] @ along)) - 1) < 1e-14
    assert torch.equal(plus, -minus)
    for well in (plus, minus):
        found = torch.linalg.eigvalsh(HessianOperator(exact.system, well).dense())
        assert same(found, doubles(*sorted([2 * k, stiffness])), rtol=1e-13)
    assert float(exact.system.loss(saddle)) == pytest.approx(depth, rel=1e-14)
    late = exact.solution([60.0])[:, 0]
    assert same(late, plus, rtol=1e-12)


def test_a_linear_network_learns_each_mode_or_leaves_it():
    exact = network()
    products = []
    for point in exact.fixed_points.T:
        layers = exact.system.unflatten(point)
        products.append(torch.linalg.svdvals(layers["1.weight"] @ layers["0.weight"]))
    found = sorted(tuple(round(float(v), 12) for v in part) for part in products)
    assert found == [(0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (2.0, 1.0)]


def test_gradient_descent_on_a_quadratic_has_multipliers_one_minus_eta_lambda():
    A, eta = torch.tensor(INDEFINITE).double(), 0.3
    exact = quadratic(A, [1.0, -1.0, 2.0])
    values, Q = torch.linalg.eigh(A)
    theta = exact.system.state
    for _ in range(20):
        theta = theta - eta * exact.system.gradient(theta)
    want = Q @ ((1 - eta * values) ** 20 * (Q.T @ exact.system.state))
    assert same(theta, want, rtol=1e-12)


# -- the three hypotheses of the logistic law -----------------------------------------


def logistic_defect(data, first, second) -> float:
    """Largest distance of the modes of the flow from the logistic law, over s₁."""
    layers = nn.Sequential(
        nn.Linear(*first.T.shape, bias=False), nn.Linear(*second.T.shape, bias=False)
    ).double()
    start = torch.cat([first.reshape(-1), second.reshape(-1)])
    system = GradientSystem(
        layers, lambda f, y: 0.5 * (f - y).square().sum(1).mean(), data
    ).with_state(start)
    x, y = data
    U, s, Vh = torch.linalg.svd(y.T @ x / len(x), full_matrices=False)
    U, s, Vh = U[:, :2], s[:2], Vh[:2]
    a = (U.T @ second @ first @ Vh.T).diagonal()
    times = torch.linspace(0, 4, 21, dtype=torch.float64)
    law = s / (1 + (s / a - 1) * torch.exp(-2 * s * times[:, None]))
    worst = 0.0
    for state, want in zip(system.flow(times, rtol=1e-11).T, law, strict=True):
        named = system.unflatten(state)
        product = U.T @ named["1.weight"] @ named["0.weight"] @ Vh.T
        worst = max(worst, float((product - torch.diag(want)).abs().max()))
    return worst / float(s[0])


def spoilt(which: str):
    data, first, second = aligned_start([2.0, 1.0], strengths=0.2, widths=(3, 3, 2))
    x, y = data
    if which == "whitened":
        stretch = torch.diag(doubles(1.5, 1.0, 0.6))
        # y is made anew with the same Σ_yx, so that alignment is kept
        correlation = y.T @ x / len(x)
        x = x @ stretch
        return (
            (x, x @ torch.linalg.inv(stretch @ stretch) @ correlation.T),
            first,
            second,
        )
    if which == "balanced":
        return data, 2.0 * first, second / 2.0  # same W2 W1
    if which == "aligned":
        turn = torch.linalg.matrix_exp(
            torch.tensor([[0.0, 1.2, 0.0], [-1.2, 0.0, 0.5], [0.0, -0.5, 0.0]]).double()
        )
        return data, first @ turn, second  # same W1 W1'
    return data, first, second


def margins(data, first, second) -> dict[str, float]:
    """The three hypotheses, measured here and not by the package."""
    x, y = data
    sigma, product = y.T @ x / len(x), second @ first
    skew = [sigma.T @ product, sigma @ product.T]  # symmetric iff aligned
    eye = torch.eye(x.shape[1], dtype=torch.float64)
    return {
        "whitened": float((x.T @ x / len(x) - eye).norm()),
        "balanced": float((first @ first.T - second.T @ second).norm()),
        "aligned": max(float((part - part.T).norm()) for part in skew),
    }


def test_with_all_three_hypotheses_every_mode_is_logistic():
    parts = spoilt("nothing")
    assert max(margins(*parts).values()) < 1e-12
    assert logistic_defect(*parts) < 1e-9


@pytest.mark.parametrize("which", ["whitened", "balanced", "aligned"])
def test_without_any_one_of_the_three_the_law_fails_and_is_refused(which):
    parts = spoilt(which)
    for name, margin in margins(*parts).items():
        assert margin > 0.05 if name == which else margin < 1e-12
    assert logistic_defect(*parts) > 0.02
    with pytest.raises(AssumptionError, match=rf"{which}.*\(margin 1e-08\)"):
        linear_network(*parts)


def test_hypotheses_are_judged_by_a_tolerance_that_the_user_may_loosen():
    data, first, second = aligned_start([2.0, 1.0])
    single = tuple(part.float() for part in data), first.float(), second.float()
    with pytest.raises(AssumptionError, match="whitened inputs"):
        linear_network(*single, tol=1e-12)
    loose = linear_network(*single, tol=1e-5).solution([1.0])
    sharp = linear_network(data, first, second).solution([1.0])
    assert same(loose, sharp, rtol=1e-5, atol=1e-5)


def test_equal_modes_are_aligned_in_any_frame():
    data, first, second = aligned_start([1.5, 1.5, 0.5], strengths=[0.2, 0.1, 0.1])
    exact = linear_network(data, first, second)
    flow = exact.system.flow(TIMES, rtol=1e-11)
    assert same(exact.solution(TIMES), flow, rtol=1e-8, atol=1e-8)


def test_a_mode_of_strength_zero_stays_there():
    exact = network(strengths=[0.2, 0.0])
    flow = exact.system.flow(TIMES, rtol=1e-11)
    assert same(exact.solution(TIMES), flow, rtol=1e-8, atol=1e-8)
    assert exact.fixed_points.shape == (10, 2)


# -- refusals -----------------------------------------------------------------------


def test_a_mode_of_the_wrong_sign_is_refused():
    data, first, second = aligned_start([2.0, 1.0])
    with pytest.raises(AssumptionError, match=r"signs included.*strength -"):
        linear_network(data, -first, second)


def test_an_unbalanced_scalar_is_refused_with_the_margin():
    with pytest.raises(AssumptionError, match=r"spread over 0\.09 \(margin 1e-08"):
        deep_scalar(1.0, [0.5, 0.4])


def test_a_scalar_that_ends_in_the_saddle_is_refused():
    with pytest.raises(AssumptionError, match="sign -1 and the target is 1"):
        deep_scalar(1.0, [0.5, -0.5])
    with pytest.raises(AssumptionError, match="sign 0 "):
        deep_scalar(1.0, [0.0, 0.0])


def test_a_matrix_that_is_not_symmetric_is_refused():
    with pytest.raises(AssumptionError, match="reaches 1 where"):
        quadratic([[1.0, 2.0], [1.0, 1.0]], [0.0, 0.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quadratic([[1.0, 0.0]], [1.0]), r"\(P, P\), P and P"),
        (lambda: quadratic([1.0], [1.0]), "2 dimension"),
        (lambda: quadratic([[float("nan")]], [1.0]), "finite"),
        (lambda: quadratic([["a"]], [1.0]), "cannot be read"),
        (lambda: quadratic(torch.eye(65), torch.ones(65)), "P ≤ 64"),
        (lambda: deep_scalar(1.0, [1.0]), "at least two"),
        (lambda: deep_scalar(0.0, [1.0, 1.0]), "not zero"),
        (lambda: double_well([1.0]), "two numbers"),
        (lambda: double_well(depth=-1.0), "depth -1"),
        (lambda: network(strengths=[0.1]), "one for each mode"),
        (lambda: network(strengths=-0.1), "negative"),
        (lambda: network(widths=(2, 1, 2)), "do not fit widths"),
        (lambda: network(examples=2), "do not fit"),
        (
            lambda: linear_network(
                (torch.eye(2), torch.eye(2)), torch.ones(2, 3), torch.ones(2, 2)
            ),
            r"\(N, n\), \(N, m\)",
        ),
        (lambda: double_well().solution([-1.0]), "numbers ≥ 0"),
        (lambda: double_well().solution([]), "numbers ≥ 0"),
        (lambda: quadratic([[-1.0]], [1.0]).solution([0.0, 800.0]), "t = 800"),
        (lambda: double_well().hessian(torch.ones(3)), r"has \(2,\)"),
    ],
    ids=[
        "not square",
        "vector",
        "nan",
        "words",
        "large",
        "one layer",
        "no target",
        "one number",
        "hill",
        "strengths",
        "negative",
        "narrow",
        "few",
        "shapes",
        "past",
        "no times",
        "overflow",
        "state",
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()


def test_making_a_system_moves_no_generator(untouched):
    with untouched():
        for make in MAKE.values():
            repr(make())


def test_one_line_says_what_it_is():
    line = repr(double_well())
    assert "\n" not in line
    assert line.startswith("ExactSystem(Formulas(L = ")
    assert "3 fixed" in line
