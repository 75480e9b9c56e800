"""Spectral density: exact cases, quadrature, locking, the band, refusals."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance
from spectra import Products, diagonal_operator, like_a_network, normal, turned

from dynprune.core import (
    AssumptionError,
    InvalidInputError,
    NumericalWarning,
    Outcome,
)
from dynprune.operators import MatrixOperator
from dynprune.spectral import Density, density, eigenpairs
from dynprune.spectral._krylov import block_krylov
from dynprune.spectral._locking import isolated
from dynprune.spectral._quadrature import isotropic, quadrature


def smoothed(values, points, width):
    z = (points[:, None] - values) / width
    return torch.exp(-0.5 * z.square()).mean(1) / (width * math.sqrt(2 * math.pi))


def nothing(op):
    return torch.zeros((op.size, 0), dtype=op.dtype)


def by_mass(values, width, count=50):
    """Points that halve equal shares of the smoothed density."""
    low, high = float(values.min()) - 4 * width, float(values.max()) + 4 * width
    fine = torch.linspace(low, high, 20_001, dtype=torch.float64)
    mass = smoothed(values, fine, width).cumsum(0)
    shares = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return fine[torch.searchsorted(mass / mass[-1], shares)]


# -- exact ----------------------------------------------------------------------------


def test_a_small_operator_is_found_whole():
    values = normal(20)
    found = density(turned(values), probes=3, steps=7, width=0.1)
    # the estimate convolves the same eigenvalues: rounding only
    exact = smoothed(values, found.grid, 0.1)
    assert torch.allclose(found.values, exact, atol=1e-9)
    assert ((found.lower <= exact) & (exact <= found.upper)).all()
    assert float((found.upper - found.lower).max()) < 1e-8
    assert torch.allclose(found.locked, values.sort(descending=True).values)
    assert found.wasserstein(values) < 1e-12
    assert found.matvecs <= 21
    assert found.outcome is Outcome.FINISHED
    assert float(torch.trapezoid(found.values, found.grid)) == pytest.approx(1.0, 1e-3)


@pytest.mark.parametrize("value", [0.0, -2.0], ids=str)
def test_a_multiple_of_the_identity(value):
    op = Products(50, lambda block: value * block)
    found = density(op, probes=4, steps=5)
    points, shares = found.measure()
    assert points.tolist() == pytest.approx([value] * len(points), abs=1e-12)
    assert float(shares.sum()) == pytest.approx(1.0)
    assert found.wasserstein(torch.full((50,), value)) < 1e-12
    assert found.matvecs == 4  # the first product shows an invariant subspace


def test_the_null_space_keeps_its_mass():
    """A low rank: 3 copies of 4, 12 other values and 985 zeros, seen b times."""
    values = torch.zeros(1000, dtype=torch.float64)
    values[:3], values[3:15] = 4.0, torch.linspace(1, 2, 12, dtype=torch.float64)
    found = density(turned(values), probes=4, steps=10)
    # below b copies are locked, b copies are not: there may be more of them
    assert found.locked.tolist() == pytest.approx(
        [4.0] * 3 + values[3:15].tolist()[::-1]
    )
    share = float(found.cumulative(torch.tensor([0.5])))
    assert share == pytest.approx(0.985, abs=1e-9)
    assert found.wasserstein(values) < 1e-9


def test_as_many_copies_as_probes_are_not_locked():
    values = torch.cat([torch.full((4,), 5.0), torch.linspace(0, 1, 96)]).double()
    assert 5.0 not in density(turned(values), probes=4, steps=8).locked.round().tolist()
    found = density(turned(values), probes=5, steps=8)
    assert found.locked[:4].tolist() == pytest.approx([5.0] * 4)


# -- the quadrature -------------------------------------------------------------------


def test_a_block_quadrature_integrates_polynomials():
    """v'A^p v is exact up to p = 2 s - 1: the defining property."""
    op = turned(normal(80, seed=1))
    probes, steps = isotropic(op, 3, nothing(op), seed=0), 5
    space = block_krylov(op, probes, steps, away=nothing(op))
    nodes, turns = torch.linalg.eigh(space.projection)
    weights = (turns[:3].T @ space.probes).square()
    moment = probes.clone()
    for power in range(2 * steps):
        exact = (probes * moment).sum(0)
        found = nodes.pow(power) @ weights
        assert torch.allclose(found, exact, rtol=1e-9, atol=1e-9 * 80), power
        moment = op @ moment
    assert not torch.allclose(nodes.pow(10) @ weights, (probes * moment).sum(0))


def test_the_projection_is_that_of_an_orthonormal_basis():
    op = turned(like_a_network(120))
    probes = isotropic(op, 4, nothing(op), seed=0)
    space = block_krylov(op, probes, 6, away=nothing(op))
    block, powers = probes, []
    for _ in range(6):
        block = torch.linalg.qr(block).Q
        powers.append(block)
        block = op @ block
    V = torch.linalg.svd(torch.cat(powers, 1), full_matrices=False)[0]
    exact = torch.linalg.eigvalsh(V.T @ (op @ V))
    assert torch.allclose(torch.linalg.eigvalsh(space.projection), exact, atol=1e-8)
    assert space.ends == (4, 8, 12, 16, 20, 24)


def test_residuals_of_locked_values_bound_their_error():
    values = like_a_network()
    found = density(turned(values), probes=4, steps=12)
    assert 5 <= len(found.locked) < 48
    distance = (found.locked[:, None] - values).abs().amin(1)
    assert float(distance.max()) < 1e-8
    assert torch.allclose(
        found.locked[:5], values.sort(descending=True).values[:5], atol=1e-10
    )


def test_what_touches_or_leaks_is_not_locked():
    values = torch.tensor([-1.0, 0.0, 0.1, 2.0, 3.0])
    sharp = torch.full((5,), 1e-9)
    rough = torch.tensor([1e-9, 1e-2, 1e-2, 1e-9, 1e-9])
    ends = [True, False, False, True, True]
    assert isolated(values, rough, free=10_000, probes=2).tolist() == ends
    # sqrt(10000) r / distance must stay below 0.1
    leaky = torch.tensor([1e-2, 1e-2, 1e-2, 1e-4, 1e-2])
    assert not isolated(values, leaky, free=10_000, probes=2).any()
    assert not isolated(values, sharp, free=100, probes=1).any()
    assert isolated(values, sharp, free=5, probes=1).all()
    twins = torch.tensor([-1.0, 0.0, 2.0, 3.0, 3.0])
    vague = torch.tensor([1e-9, 1e-9, 0.1, 1e-9, 1e-9])
    ends = [True, True, False, True, True]
    assert isolated(twins, vague, free=10_000, probes=3).tolist() == ends
    assert not isolated(twins, sharp, free=10_000, probes=2)[3:].any()


def test_the_variance_is_that_of_the_probes():
    """The formula against 4000 probes of the complement of nothing."""
    values = normal(12, seed=4)
    op = diagonal_operator(values)
    heights = torch.exp(values)
    probes = isotropic(op, 4000, nothing(op), seed=0)
    samples = (probes.square() * heights[:, None]).sum(0)
    n = 12
    exact = 2 * n / (n + 2) * (heights.square().sum() - heights.sum() ** 2 / n)
    # the sample variance of 4000 has a standard error of about 3 %
    assert float(samples.var()) == pytest.approx(float(exact), rel=0.12)
    # one probe of 12 steps sees all nodes: the same formula from the quadrature, whose
    # weights are those of this probe
    seen = quadrature(op, probes=2, steps=3, pairs=None, locked=0, seed=0)
    mean, variance = seen.moments(torch.ones_like(seen.rest.values))
    assert float(mean) == pytest.approx(seen.free)
    assert float(variance) == pytest.approx(0.0, abs=1e-9)


def test_mass_is_exact_and_counted():
    op = turned(like_a_network())
    found = density(op, probes=4, steps=10)
    assert found.matvecs == op.matvecs == 40
    columns = found.weights.sum(0)
    assert columns.tolist() == pytest.approx([300 - len(found.locked)] * 4)
    assert (found.weights >= 0).all()
    assert float(found.cumulative(torch.tensor([10.0]))) == pytest.approx(1.0)
    assert float(found.cumulative(torch.tensor([-10.0]))) == 0.0


def test_it_is_closer_than_single_probes_with_as_many_products():
    """Half the distance that plain Lanczos quadrature leaves (median of 5 seeds)."""
    values = like_a_network()
    op, far, plain = diagonal_operator(values), [], []
    for seed in range(5):
        far.append(density(op, probes=4, steps=12, seed=seed).wasserstein(values))
        probes = isotropic(op, 4, nothing(op), seed=seed)
        nodes, weights = [], []
        for probe in probes.split(1, dim=1):
            space = block_krylov(op, probe, 12, away=nothing(op))
            theta, turns = torch.linalg.eigh(space.projection)
            nodes.append(theta)
            weights.append(turns[0].square() / 4)
        measure = (torch.cat(nodes).numpy(), values.numpy(), torch.cat(weights).numpy())
        plain.append(wasserstein_distance(*measure))
    assert np.median(far) < 0.5 * np.median(plain)


# -- the band -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "probes", "steps"), [("network", 3, 16), ("normal", 8, 12)], ids=str
)
def test_the_band_covers_as_often_as_it_says(kind, probes, steps):
    """200 repetitions, 50 points that carry mass; 95 % nominal."""
    values = like_a_network() if kind == "network" else normal(400)
    width = (0.01 if kind == "network" else 0.06) * float(values.max() - values.min())
    points = by_mass(values, width)
    exact, op = smoothed(values, points, width), diagonal_operator(values)
    held = 0.0
    for seed in range(200):
        found = density(
            op, probes=probes, steps=steps, width=width, grid=points, seed=seed
        )
        inside = (found.lower <= exact) & (exact <= found.upper)
        held += float(inside.double().mean()) / 200
    assert 0.90 <= held <= 0.99


def test_a_kernel_that_is_too_narrow_says_so_and_widens_the_band():
    values = normal(1000)
    op, width = diagonal_operator(values), 0.02
    points = by_mass(values, width)
    exact, held = smoothed(values, points, width), 0.0
    for seed in range(10):
        with pytest.warns(NumericalWarning, match="narrower than 10 steps resolve"):
            found = density(op, probes=4, steps=10, width=width, grid=points, seed=seed)
        assert found.outcome is Outcome.NOT_CONVERGED
        held += float(((found.lower <= exact) & (exact <= found.upper)).double().mean())
    assert held / 10 >= 0.90
    own = density(op, probes=4, steps=10)  # chooses what it resolves
    assert own.width > 0.1
    assert own.outcome is Outcome.FINISHED
    assert float(own.quadrature_error.sum()) < 0.1 * float(
        (own.upper - own.lower).sum()
    )


def test_a_higher_level_is_wider():
    op = diagonal_operator(normal(300))
    one, two = (density(op, level=level, width=0.2) for level in (0.5, 0.99))
    assert ((two.upper - two.lower) >= (one.upper - one.lower)).all()


# -- invariances ----------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "scale"), [(3.0, 1.0), (0.0, 7.0), (-1.0, -0.5)])
def test_it_moves_with_the_operator(shift, scale):
    values = like_a_network(150)
    one = density(turned(values), probes=3, steps=8, width=0.05)
    two = density(
        turned(scale * values + shift),
        probes=3,
        steps=8,
        width=0.05 * abs(scale),
        grid=scale * one.grid + shift,
    )
    assert torch.allclose(two.values * abs(scale), one.values, atol=1e-8, rtol=1e-6)
    for name in ("lower", "upper"):
        a, b = getattr(two, name) * abs(scale), getattr(one, name)
        assert torch.allclose(a, b, atol=1e-5 * float(one.values.max()))


def test_single_precision_agrees():
    values = like_a_network()
    wide = density(diagonal_operator(values), probes=4, steps=10, width=0.05)
    single = diagonal_operator(values.float())
    found = density(single, probes=4, steps=10, width=0.05, grid=wide.grid)
    assert found.grid.dtype == torch.float64
    assert torch.allclose(found.values, wide.values, rtol=1e-3, atol=1e-3)


def test_the_seed_decides_and_nothing_else(untouched):
    op = diagonal_operator(normal(200))
    with untouched():
        one, two = (density(op, probes=2, steps=5, seed=4) for _ in range(2))
    assert torch.equal(one.values, two.values)
    assert not torch.equal(one.nodes, density(op, probes=2, steps=5, seed=5).nodes)


def test_the_distance_is_scipys():
    values = normal(100)
    found = density(diagonal_operator(values), probes=2, steps=5)
    points, shares = found.measure()
    exact = wasserstein_distance(points.numpy(), values.numpy(), shares.numpy())
    assert found.wasserstein(values) == pytest.approx(exact)


# -- known pairs ----------------------------------------------------------------------


def test_pairs_are_locked_and_their_products_counted():
    values = like_a_network()
    op = diagonal_operator(values)
    pairs = eigenpairs(op, 4, tol=1e-8)
    before = op.matvecs
    found = density(op, probes=1, steps=12, pairs=pairs)
    assert found.matvecs == op.matvecs - before == 13  # one to check the pairs
    assert found.locked.tolist() == pytest.approx(pairs.values.tolist())
    searched = density(op, probes=1, steps=12, locked=4)
    assert searched.matvecs > 12
    assert len(searched.locked) == 4
    assert searched.wasserstein(values) == pytest.approx(
        found.wasserstein(values), rel=1e-3
    )


def test_pairs_of_another_operator_are_refused():
    values = like_a_network()
    pairs = eigenpairs(diagonal_operator(values), 3)
    for other in (values + 0.1, values.flip(0)):
        with pytest.raises(InvalidInputError, match="not eigenpairs of this operator"):
            density(diagonal_operator(other), pairs=pairs)
    with pytest.raises(InvalidInputError, match="pairs have vectors of 300"):
        density(diagonal_operator(values[:200]), pairs=pairs)
    with pytest.raises(InvalidInputError, match="Pass pairs, or how many to find"):
        density(diagonal_operator(values), pairs=pairs, locked=2)


# -- refusals -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": 0}, "Pass 1 <= probes <= 30"),
        ({"probes": 31}, "Pass 1 <= probes <= 30"),
        ({"steps": 2}, "steps >= 3"),
        ({"width": 0.0}, "Pass a positive width"),
        ({"width": math.nan}, "Pass a positive width"),
        ({"grid": 1}, "Pass at least 2"),
        ({"grid": torch.tensor([math.nan])}, "Pass finite points"),
        ({"grid": torch.zeros(2, 2)}, "Pass finite points"),
        ({"level": 1.0}, "Pass 0 < level < 1"),
        ({"locked": -1}, "Pass pairs, or how many to find"),
    ],
    ids=str,
)
def test_what_is_out_of_range_is_refused(options, message):
    with pytest.raises(InvalidInputError, match=message):
        density(diagonal_operator(normal(30)), **options)


@pytest.mark.parametrize("probes", [1, 3], ids=str)
def test_an_operator_that_is_not_symmetric_is_refused(probes):
    square = normal(40 * 40).view(40, 40)
    op = Products(40, lambda block: square @ block)
    with pytest.raises(AssumptionError, match="not symmetric"):
        density(op, probes=probes, steps=4)


def test_products_that_are_not_finite_are_refused():
    op = Products(40, lambda block: block / 0.0)
    with pytest.raises(InvalidInputError, match="not finite"):
        density(op, probes=2, steps=4)


def test_the_distance_needs_the_whole_spectrum():
    found = density(diagonal_operator(normal(30)), probes=2, steps=3)
    for wrong in (torch.zeros(29), torch.full((30,), math.inf)):
        with pytest.raises(InvalidInputError, match="Pass all 30"):
            found.wasserstein(wrong)


# -- showing --------------------------------------------------------------------------


def test_it_shows_itself_and_survives_a_file(tmp_path):
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    found = density(turned(like_a_network()), probes=3, steps=8)
    path = tmp_path / "density.safetensors"
    found.save(path)
    back = Density.load(path)
    for name in ("grid", "values", "lower", "upper", "nodes", "weights", "locked"):
        assert torch.equal(getattr(back, name), getattr(found, name))
    assert (back.width, back.size, back.matvecs) == (found.width, 300, 24.0)
    assert back.provenance == found.provenance
    assert repr(back) == repr(found)
    assert "300 coordinates" in found.summary()
    assert len(found.summary().split("\n")) == 5
    frame = found.to_frame()
    assert list(frame) == ["eigenvalue", "density", "lower", "upper", "cumulative"]
    assert "1 /" in frame.attrs["units"]["density"]
    assert found.to_xarray()["weight"].dims == ("node", "probe")
    ax = found.plot()
    assert "eigenvalue" in ax.get_xlabel()
    assert ax.get_yscale() == "log"
    plt.close(ax.figure)
    with pytest.raises(InvalidInputError, match="not a density"):
        Density.load(_other(tmp_path))


def _other(folder):
    from dynprune.spectral import trace

    path = folder / "trace.safetensors"
    trace(diagonal_operator(normal(30)), matvecs=10).save(path)
    return path


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rank", [1, 5])
def test_all_that_is_not_zero_may_be_locked(dtype, rank):
    make = torch.Generator().manual_seed(rank)
    b = torch.randn(200, rank, generator=make, dtype=torch.float64).to(dtype)
    found = density(MatrixOperator(b @ b.T), probes=2, steps=10, locked=rank)
    exact = torch.linalg.eigvalsh((b.T @ b).double()).flip(0)
    assert torch.allclose(found.locked[:rank], exact, rtol=1e-4)
