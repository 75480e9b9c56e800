"""Traces and Frobenius norms: exact cases, the published formula, error bars."""

import math

import pytest
import torch
from spectra import Products, diagonal_operator, like_a_network, normal, turned

from dynprune.core import AssumptionError, InvalidInputError, Outcome
from dynprune.spectral import Trace, frobenius_norm, trace
from dynprune.spectral._exchangeable import exchangeable
from dynprune.spectral._quadrature import isotropic
from dynprune.spectral._sketch import sketch

METHODS = ("xtrace", "hutch++", "hutchinson")


def nothing(op):
    return torch.zeros((op.size, 0), dtype=op.dtype)


# -- exact ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_of_all_columns_gives_the_trace(method):
    values = normal(130)
    op = turned(values)
    found = trace(op, matvecs=130, method=method)
    assert found.value == pytest.approx(float(values.sum()), rel=1e-12)
    assert (found.method, found.standard_error) == ("exact", 0.0)
    assert found.interval[0] <= float(values.sum()) <= found.interval[1]
    assert found.matvecs == op.matvecs == 130
    norm = frobenius_norm(op, matvecs=500)
    assert norm.value == pytest.approx(float(values.norm()), rel=1e-12)
    assert norm.matvecs == 130


@pytest.mark.parametrize("method", ["xtrace", "hutch++"])
def test_a_low_rank_is_found_exactly(method):
    values = torch.zeros(200, dtype=torch.float64)
    values[:6] = torch.tensor([5.0, -4.0, 3.0, -2.0, 1.0, 0.5])
    op = turned(values)
    found = trace(op, matvecs=30, method=method)
    assert found.value == pytest.approx(3.5, abs=1e-9)
    assert found.standard_error < 1e-9
    assert frobenius_norm(op, matvecs=30).value == pytest.approx(float(values.norm()))


@pytest.mark.parametrize("method", METHODS)
def test_multiples_of_the_identity_are_exact(method):
    op = Products(60, lambda block: -3.0 * block)
    found = trace(op, matvecs=20, method=method)
    assert found.value == pytest.approx(-180.0)
    assert found.standard_error < 1e-9
    assert frobenius_norm(op, matvecs=20).value == pytest.approx(3 * 60**0.5)


def test_zero():
    op = Products(50, lambda block: 0.0 * block)
    assert trace(op, matvecs=10).value == 0.0
    assert frobenius_norm(op, matvecs=10).interval == (0.0, 0.0)


# -- the formula ----------------------------------------------------------------------


@pytest.mark.parametrize("power", [1, 2], ids=str)
def test_samples_and_their_covariance_are_the_definition(power):
    """Each t_i, and t_i without j, from a QR of the columns that are left."""
    size, m = 40, 5
    op = turned(normal(size, seed=2))
    A = op.dense()
    B = A if power == 1 else A @ A
    omega = isotropic(op, m, nothing(op), seed=7)

    def sample(i, left_out):
        kept = [j for j in range(m) if j not in left_out]
        Q = torch.linalg.qr(A @ omega[:, kept]).Q
        w = omega[:, i] - Q @ (Q.T @ omega[:, i])
        w = w * math.sqrt((size - len(kept)) / float(w @ w))
        return float(torch.trace(Q.T @ B @ Q) + w @ B @ w)

    exact = [sample(i, {i}) for i in range(m)]
    pairs = [
        (exact[i] - sample(i, {i, j})) * (exact[j] - sample(j, {i, j}))
        for i in range(m)
        for j in range(m)
        if i != j
    ]
    estimates, variance = exchangeable(sketch(op, m, seed=7, power=power))
    assert estimates.tolist() == pytest.approx(exact)
    spread = float(torch.tensor(exact, dtype=torch.float64).var()) / m
    shared = sum(pairs) / (m * (m - 1))
    assert variance == pytest.approx(spread + max(shared, 0.0))


def test_hutch_plus_plus_splits_into_thirds():
    """The part on Q is common to all samples; the rest is on its complement."""
    op = turned(normal(80, seed=1))
    found = trace(op, matvecs=32, method="hutch++")
    assert len(found.samples) == 12
    assert found.matvecs == op.matvecs - 0 == 32


def test_an_odd_product_is_left_over():
    op = diagonal_operator(normal(200))
    assert trace(op, matvecs=99).matvecs == 98
    assert frobenius_norm(op, matvecs=99).matvecs == 98


# -- error bars -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "matvecs"), [("network", 12), ("network", 40), ("normal", 20)], ids=str
)
def test_error_bars_are_calibrated(kind, matvecs):
    """200 seeds; 95 % nominal; errors as large as they say, on the average."""
    values = like_a_network() if kind == "network" else normal(300, seed=8)
    op = diagonal_operator(values)
    true, norm = float(values.sum()), float(values.norm())
    for name, estimate, exact in (
        ("xtrace", lambda seed: trace(op, matvecs=matvecs, seed=seed), true),
        (
            "hutch++",
            lambda seed: trace(op, matvecs=matvecs, method="hutch++", seed=seed),
            true,
        ),
        ("norm", lambda seed: frobenius_norm(op, matvecs=matvecs, seed=seed), norm),
    ):
        found = [estimate(seed) for seed in range(200)]
        held = sum(one.interval[0] <= exact <= one.interval[1] for one in found) / 200
        assert 0.90 <= held <= 0.99, name
        square = sum((one.value - exact) ** 2 for one in found)
        said = sum(one.standard_error**2 for one in found)
        # 4 standard errors of a variance: .4; squares of few vectors are cautious
        assert (0.0 if name == "norm" else 0.7) < square / said < 1.4, name


def test_the_spread_alone_says_too_little():
    """Why the covariance is there: without it the error bar is a third too short."""
    values = like_a_network()
    op, true = diagonal_operator(values), float(values.sum())
    square = spread = whole = 0.0
    for seed in range(200):
        samples, variance = exchangeable(sketch(op, 10, seed=seed, power=1))
        square += (float(samples.mean()) - true) ** 2
        spread += float(samples.var()) / 10
        whole += variance
    assert spread < 0.8 * square
    assert whole == pytest.approx(square, rel=0.3)


def test_random_signs_are_calibrated_off_the_diagonal():
    values = like_a_network()
    op, true = turned(values), float(values.sum())
    found = [trace(op, matvecs=20, method="hutchinson", seed=s) for s in range(200)]
    held = sum(one.interval[0] <= true <= one.interval[1] for one in found) / 200
    assert 0.90 <= held <= 0.99


def test_the_sketch_pays():
    values = like_a_network()
    op, true = diagonal_operator(values), float(values.sum())

    def errors(method):
        found = [trace(op, matvecs=60, method=method, seed=seed) for seed in range(20)]
        return sorted(abs(one.value - true) for one in found)[10]

    assert errors("xtrace") < errors("hutch++") < 0.02 * true


# -- invariances ----------------------------------------------------------------------


def test_it_scales_and_single_precision_agrees(untouched):
    values = like_a_network()
    with untouched():
        one = trace(diagonal_operator(values), matvecs=40)
    four = trace(diagonal_operator(-4.0 * values), matvecs=40)
    assert four.value == pytest.approx(-4.0 * one.value)
    assert four.standard_error == pytest.approx(4.0 * one.standard_error)
    single = trace(diagonal_operator(values.float()), matvecs=40)
    assert single.value == pytest.approx(one.value, rel=1e-4)
    assert single.standard_error == pytest.approx(one.standard_error, rel=1e-2)
    assert single.samples.dtype == torch.float64


def test_a_spectrum_beyond_single_precision_still_has_an_error_bar():
    """AΩ loses its rank to rounding; the samples then count as one."""
    values = 0.3 ** torch.arange(200, dtype=torch.float64)
    for kind in (torch.float32, torch.float64):
        true = float(values.to(kind).double().sum())
        op = diagonal_operator(values.to(kind))
        found = [trace(op, matvecs=60, seed=seed) for seed in range(40)]
        assert all(one.interval[0] <= true <= one.interval[1] for one in found)
        assert max(one.standard_error for one in found) < 1e-5


# -- refusals -------------------------------------------------------------------------


@pytest.mark.parametrize("estimate", [trace, frobenius_norm])
def test_what_is_out_of_range_is_refused(estimate):
    op = diagonal_operator(normal(30))
    with pytest.raises(InvalidInputError, match="Pass at least 4"):
        estimate(op, matvecs=3)
    with pytest.raises(InvalidInputError, match="Pass 0 < level < 1"):
        estimate(op, level=0.0)
    bad = Products(30, lambda block: block / 0.0)
    for matvecs in (10, 30):
        with pytest.raises(InvalidInputError, match="not finite"):
            estimate(bad, matvecs=matvecs)
    square = normal(900).view(30, 30)
    with pytest.raises(AssumptionError, match="not symmetric"):
        estimate(Products(30, lambda block: square @ block), matvecs=10)


def test_an_unknown_method_is_refused():
    with pytest.raises(InvalidInputError, match=r"xtrace.*hutch\+\+"):
        trace(diagonal_operator(normal(30)), method="xtrase")


# -- showing --------------------------------------------------------------------------


def test_it_shows_itself_and_survives_a_file(tmp_path):
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    found = trace(turned(like_a_network()), matvecs=20)
    path = tmp_path / "trace.safetensors"
    found.save(path)
    back = Trace.load(path)
    assert torch.equal(back.samples, found.samples)
    assert repr(back) == repr(found)
    assert (back.interval, back.provenance) == (found.interval, found.provenance)
    assert back.outcome is Outcome.FINISHED
    assert float(found) == found.value
    assert "tr A = " in found.summary()
    assert len(found.summary().split("\n")) == 5
    assert len(found.to_frame()) == 1
    assert found.to_frame().attrs["units"]["value"] == "loss per parameter²"
    ax = found.plot()
    assert "tr A" in ax.get_xlabel()
    plt.close(ax.figure)
    from dynprune.spectral import Density

    with pytest.raises(InvalidInputError, match="not a density"):
        Density.load(path)
