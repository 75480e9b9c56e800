"""Traces of functions: exact cases, error bars, what positivity asks."""

import math

import pytest
import torch
from spectra import Products, diagonal_operator, like_a_network, normal, turned

from dynprune.core import (
    AssumptionError,
    InvalidInputError,
    NumericalWarning,
    Outcome,
)
from dynprune.spectral import (
    Trace,
    effective_dimension,
    eigenpairs,
    log_determinant,
    spectral_sum,
)


def test_a_small_operator_is_summed_whole():
    values = normal(20).abs()
    op = turned(values)
    options = {"probes": 3, "steps": 7}
    for found, exact in (
        (log_determinant(op, 0.5, **options), (values + 0.5).log().sum()),
        (effective_dimension(op, 0.5, **options), (values / (values + 0.5)).sum()),
        (spectral_sum(op, torch.square, **options), values.square().sum()),
    ):
        assert found.value == pytest.approx(float(exact), rel=1e-9)
        assert found.standard_error == 0.0
        assert found.interval[0] <= float(exact) <= found.interval[1]
        assert found.outcome is Outcome.FINISHED


def test_a_multiple_of_the_identity_is_exact():
    op = Products(60, lambda block: 2.0 * block)
    found = log_determinant(op, -1.5)
    assert found.value == pytest.approx(60 * math.log(0.5))
    assert effective_dimension(op, 2.0).value == pytest.approx(30.0)


def test_a_polynomial_needs_few_steps_and_only_the_probes_err():
    """tr A² of 4 steps against the same from each probe's own |Av|²."""
    values = normal(150, seed=3)
    op = turned(values)
    found = spectral_sum(op, torch.square, probes=3, steps=4, seed=1)
    assert abs(found.value - float(values.square().sum())) < 4 * found.standard_error
    assert float(found.samples.mean()) == pytest.approx(found.value)
    assert found.standard_error > 0


@pytest.mark.parametrize(("kind", "mu"), [("network", 0.05), ("normal", 0.5)], ids=str)
def test_error_bars_are_calibrated(kind, mu):
    """200 seeds; 95 % nominal."""
    values = like_a_network() if kind == "network" else normal(300, seed=8)
    mu = mu - float(values.min())
    op = diagonal_operator(values)
    for estimate, exact in (
        (log_determinant, (values + mu).log().sum()),
        (effective_dimension, (values / (values + mu)).sum()),
    ):
        found = [estimate(op, mu, probes=4, steps=20, seed=seed) for seed in range(100)]
        held = sum(one.interval[0] <= float(exact) <= one.interval[1] for one in found)
        assert 0.90 <= held / 100 <= 1.0
        square = sum((one.value - float(exact)) ** 2 for one in found)
        said = sum(one.standard_error**2 for one in found)
        assert 0.5 < square / said < 1.6  # 4 standard errors of a variance of 100


def test_known_pairs_are_used():
    values = like_a_network()
    op = diagonal_operator(values)
    pairs = eigenpairs(op, 5, tol=1e-8)
    exact = float((values + 0.1).log().sum())
    found = log_determinant(op, 0.1, probes=1, steps=10, pairs=pairs)
    assert found.interval[0] <= exact <= found.interval[1]
    assert found.matvecs == 11
    assert effective_dimension(op, 0.1, probes=1, steps=10, locked=3).matvecs > 10


def test_too_few_steps_are_said():
    """A condition number of 1e9 is no matter for five steps."""
    values = torch.logspace(-9, 0, 2000, dtype=torch.float64)
    with pytest.warns(NumericalWarning, match="Raise steps"):
        found = log_determinant(diagonal_operator(values), 0.0, probes=8, steps=5)
    assert found.outcome is Outcome.NOT_CONVERGED
    assert found.value > float(values.log().sum())  # Gauss rules overestimate a log


@pytest.mark.parametrize("estimate", [log_determinant, effective_dimension])
def test_what_is_not_positive_definite_is_refused(estimate):
    op = diagonal_operator(like_a_network())  # smallest -0.01
    with pytest.raises(AssumptionError, match=r"a Ritz value of A is -0\.01"):
        estimate(op, 0.005)
    with pytest.raises(InvalidInputError, match="Pass a finite shift"):
        estimate(op, math.inf)
    assert estimate(op, 0.02).value != 0.0


def test_an_effective_dimension_needs_a_scale():
    with pytest.raises(InvalidInputError, match="finite shift above 0"):
        effective_dimension(diagonal_operator(normal(30).abs()), 0.0)


def test_negative_eigenvalues_count_as_negative_dimensions():
    values = torch.tensor([1.0, -0.25] + [0.0] * 8, dtype=torch.float64)
    found = effective_dimension(turned(values), 0.5, probes=3, steps=4)
    assert found.value == pytest.approx(1 / 1.5 - 0.25 / 0.25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": 0}, "Pass 1 <= probes"),
        ({"steps": 2}, "steps >= 3"),
        ({"level": 1.0}, "Pass 0 < level < 1"),
        ({"locked": -1}, "how many to find"),
    ],
    ids=str,
)
@pytest.mark.parametrize("estimate", [log_determinant, effective_dimension])
def test_what_is_out_of_range_is_refused(estimate, options, message):
    with pytest.raises(InvalidInputError, match=message):
        estimate(diagonal_operator(normal(30).abs()), 1.0, **options)


@pytest.mark.parametrize(
    "function", [torch.log, torch.sum, lambda x: x[:1]], ids=["nan", "sum", "short"]
)
def test_a_function_that_does_not_fit_is_refused(function):
    with pytest.raises(InvalidInputError, match="Pass an elementwise function"):
        spectral_sum(diagonal_operator(normal(50)), function, probes=2, steps=3)


def test_it_survives_a_file(tmp_path):
    found = log_determinant(turned(like_a_network()), 0.1, probes=2, steps=5)
    found.save(tmp_path / "sum.safetensors")
    back = Trace.load(tmp_path / "sum.safetensors")
    assert repr(back) == repr(found)
    assert back.quantity == "log det(A + 0.1 I)"
    assert dict(back.provenance.settings)["mu"] == 0.1
