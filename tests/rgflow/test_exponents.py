"""Log-slopes against flows whose exponents are known."""

import math

import pytest
import torch

from dynprune import rgflow
from dynprune.core import InvalidInputError

SCHEDULES = {
    "geometric": [0.8**n for n in range(8)],
    "linear": [1 - 0.1 * n for n in range(10)],  # a tenth of the ORIGINAL count a round
    "uneven": [1.0, 0.9, 0.3, 0.29, 0.02],
}


def power_law(densities, sigma, amplitude, q=0.0):
    x = -torch.tensor(densities, dtype=torch.float64).log()[:, None]
    return (
        torch.tensor(amplitude).double().log()
        + torch.tensor(sigma, dtype=torch.float64) * x
        + q * x**2
    ).exp()


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_a_power_law_gives_its_exponents_for_any_schedule(schedule):
    sigma = [0.7, -1.3, 0.0]
    flow = power_law(schedule, sigma, [2.0, 0.5, 1.0])
    found = rgflow.exponents(flow, torch.tensor(schedule, dtype=torch.float64))
    truth = torch.tensor([sigma], dtype=torch.float64)
    torch.testing.assert_close(found.exponents, truth, rtol=0, atol=1e-12)
    zero = torch.zeros_like(truth)
    torch.testing.assert_close(found.quadratic, zero, rtol=0, atol=1e-10)
    assert found.r2[0, :2].tolist() == pytest.approx([1.0, 1.0], abs=1e-12)
    assert math.isnan(found.r2[0, 2])  # nothing varies, so nothing is explained
    assert found.levels_used.tolist() == [[len(schedule)] * 3]


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_a_quadratic_flow_gives_its_coefficient(schedule):
    flow = power_law(schedule, [0.7, -1.3], [2.0, 0.5], q=-0.25)
    found = rgflow.exponents(flow, torch.tensor(schedule, dtype=torch.float64))
    truth = torch.full((1, 2), -0.25, dtype=torch.float64)
    torch.testing.assert_close(found.quadratic, truth, rtol=0, atol=1e-10)


def test_slopes_equal_least_squares_by_numpy():
    np = pytest.importorskip("numpy")
    draw = torch.Generator().manual_seed(3)
    d = torch.tensor(SCHEDULES["uneven"], dtype=torch.float64)
    flow = torch.rand((4, 5, 3), generator=draw, dtype=torch.float64) + 0.1
    found = rgflow.exponents(flow, d)
    x = -d.log().numpy()
    for s in range(4):
        y = flow[s].log().numpy()
        np.testing.assert_allclose(found.exponents[s], np.polyfit(x, y, 1)[0])
        np.testing.assert_allclose(found.quadratic[s], np.polyfit(x, y, 2)[0])
        left = y - x[:, None] * np.polyfit(x, y, 1)[0]
        left -= left.mean(0)
        np.testing.assert_allclose(
            found.r2[s], 1 - (left**2).sum(0) / ((y - y.mean(0)) ** 2).sum(0)
        )


def test_share_and_absolute_slopes_differ_by_one_constant():
    draw = torch.Generator().manual_seed(0)
    d = torch.tensor(SCHEDULES["linear"], dtype=torch.float64)
    sums = torch.rand((2, len(d), 4), generator=draw, dtype=torch.float64) + 0.1
    shares = sums / sums.sum(-1, keepdim=True)
    on_sums, on_shares = rgflow.exponents(sums, d), rgflow.exponents(shares, d)
    for name in ("exponents", "quadratic"):
        gap = getattr(on_sums, name) - getattr(on_shares, name)
        torch.testing.assert_close(gap, gap[:, :1].expand_as(gap), rtol=0, atol=1e-12)
        assert float(gap.abs().min()) > 1e-3


def test_levels_without_survivors_are_left_out_of_that_group_and_seed_only():
    d = torch.tensor([1.0, 0.6, 0.3, 0.2, 0.1], dtype=torch.float64)
    flow = power_law(d.tolist(), [0.5, -0.5], [1.0, 1.0]).repeat(2, 1, 1)
    flow[0, 4, 1] = 0.0
    found = rgflow.exponents(flow, d)
    assert found.levels_used.tolist() == [[5, 4], [5, 5]]
    assert found.exponents[:, 1].tolist() == pytest.approx([-0.5, -0.5], abs=1e-12)
    flow[0, 2:, 1] = 0.0
    found = rgflow.exponents(flow, d)
    assert found.levels_used.tolist() == [[5, 2], [5, 5]]
    assert found.exponents.isnan().tolist() == [[False, True], [False, False]]
    assert bool(found.quadratic[0, 1].isnan())
    assert bool(found.r2[0, 1].isnan())


def test_shares_times_eigenvalues_sum_to_one_at_every_level():
    draw = torch.Generator().manual_seed(1)
    shares = torch.rand((3, 6, 4), generator=draw, dtype=torch.float64)
    shares = shares / shares.sum(-1, keepdim=True)
    zeta = rgflow.eigenvalues(shares)
    assert zeta.shape == (3, 5, 4)
    total = (shares[:, :-1] * zeta).sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-14)


def test_fixed_point_distance_is_the_curvature_that_power_laws_would_give():
    sigma = torch.tensor([0.4, -0.3, 0.1], dtype=torch.float64)
    first = torch.tensor([[0.2, 0.3, 0.5]], dtype=torch.float64)

    def total(x):
        return float((first * (sigma * x).exp()).sum())

    h = 1e-3
    second = (total(h) - 2 * total(0.0) + total(-h)) / h**2
    distance = float(rgflow.fixed_point_distance(first, sigma))
    # the fourth derivative of the total is at most max |sigma|^4 = .026
    assert distance**2 == pytest.approx(second, abs=0.026 * h**2 / 12 + 1e-9)
    assert float(rgflow.fixed_point_distance(7 * first, sigma)) == pytest.approx(
        distance
    )


def test_shares_bend_by_minus_half_the_squared_distance():
    # three levels close to density one: fitted slopes and curvatures are local ones
    h = 1e-3
    d = torch.tensor([h, 0.0, -h], dtype=torch.float64).sub(h).exp()
    d = d / d[0]
    sums = power_law(d.tolist(), [0.4, -0.3, 0.1], [0.2, 0.3, 0.5])
    shares = sums / sums.sum(-1, keepdim=True)
    found = rgflow.exponents(shares, d)
    total = shares[1] * (found.exponents[0] ** 2 + 2 * found.quadratic[0])
    assert abs(float(total.sum())) < 1e-6
    assert float((shares[1] * found.exponents[0] ** 2).sum()) > 0.05


def test_standard_error_over_seeds():
    values = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 0.0]])
    mean, error = rgflow.over_seeds(values)
    assert mean.tolist() == [3.0, 0.0]
    assert error.tolist() == pytest.approx([2 / math.sqrt(3), 0.0])
    assert rgflow.over_seeds(values[:1])[1].isnan().all()


def test_classes_by_two_standard_errors():
    values = torch.tensor([0.21, -0.21, 0.2, 0.0, 1.0, torch.nan])
    errors = torch.tensor([0.1, 0.1, 0.1, 0.0, torch.nan, 0.1])
    assert rgflow.classify(values, errors) == (
        "relevant",
        "irrelevant",
        "marginal",
        "marginal",
        "not testable",
        "not testable",
    )


FLOW, DENSITIES = torch.ones(4, 2), torch.tensor([1.0, 0.5, 0.4, 0.2])


@pytest.mark.parametrize(
    ("flow", "densities", "message"),
    [
        (FLOW, DENSITIES[:3], r"shape \(1, 4, 2\), densities \(3,\)"),
        (FLOW[0], DENSITIES, "Pass \\(seeds, levels, groups\\)"),
        (FLOW[:2], DENSITIES[:2], "2 levels"),
        (FLOW, DENSITIES.flip(0), "strictly decreasing"),
        (FLOW, DENSITIES - 0.2, r"Densities are 0.8, 0.3, 0.2, 0"),
        (FLOW, DENSITIES + 0.1, "in \\(0, 1\\]"),
        (-FLOW, DENSITIES, "finite and not negative"),
        (FLOW * torch.nan, DENSITIES, "finite and not negative"),
    ],
    ids=[
        "lengths",
        "dimensions",
        "short",
        "rising",
        "zero",
        "above",
        "negative",
        "nan",
    ],
)
def test_refusals(flow, densities, message):
    with pytest.raises(InvalidInputError, match=message):
        rgflow.exponents(flow, densities)
