"""Linear maps with known spectrum, and the traps of THEORY.md section 4."""

import math
import warnings

import numpy as np
import pytest
import torch

from dynprune.core import Coordinates, InvalidInputError
from dynprune.koopman import _reduce, fit, growth_rates, rates
from dynprune.koopman._reduce import gram_factor, qr_factor, stream
from dynprune.trajectory import Trajectory

MU = [0.99, 0.8, 0.9 + 0.3j, 0.9 - 0.3j, 0.5]


def orthonormal(rows, columns, seed=0):
    gen = torch.Generator().manual_seed(seed)
    raw = torch.randn((rows, columns), generator=gen, dtype=torch.float64)
    return torch.linalg.qr(raw)[0]


def real_blocks(mu):
    """Real block-diagonal matrix with eigenvalues mu (pairs adjacent)."""
    found = torch.zeros((len(mu), len(mu)), dtype=torch.float64)
    i = 0
    while i < len(mu):
        value = complex(mu[i])
        found[i, i] = value.real
        if value.imag:
            found[i : i + 2, i : i + 2] = torch.tensor([
                [value.real, -value.imag],
                [value.imag, value.real],
            ])
            i += 1
        i += 1
    return found


def orbit(matrix, start, snapshots, constant=None):
    columns = [start]
    for _ in range(snapshots - 1):
        columns.append(matrix @ columns[-1] + (0.0 if constant is None else constant))
    return torch.stack(columns, 1)


def recorded(snapshots, *, every=1, start=0, **keys):
    steps = torch.arange(snapshots.shape[1]) * every + start
    return Trajectory.from_states(snapshots.T, steps, **keys)


def linear_run(mu=MU, *, size=40, snapshots=12, constant=None, every=1, dtype=None):
    """Snapshots U B^t z of a map with known mu and modes, and U, B."""
    basis, blocks = orthonormal(size, len(mu)), real_blocks(mu)
    z = orbit(blocks, torch.ones(len(mu), dtype=torch.float64), snapshots)
    weights = basis @ z
    if constant is not None:
        weights = weights + constant[:, None]
    weights = weights if dtype is None else weights.to(dtype)
    return recorded(weights, every=every), basis, blocks


def sorted_by(values):
    return sorted(
        np.asarray(values).tolist(), key=lambda v: (-abs(v), -v.imag, -v.real)
    )


@pytest.mark.parametrize("route", ["gram", "qr"])
def test_recovers_eigenvalues_and_modes_of_a_linear_map(route):
    run, basis, blocks = linear_run(size=40)
    model = fit(run, route=route)
    found = sorted_by(model.eigenvalues.numpy())
    np.testing.assert_allclose(found, sorted_by(np.array(MU, complex)), atol=1e-8)
    modes = model.modes()
    A = (basis @ blocks @ basis.T).to(modes.dtype)
    # the defining equation A phi = mu phi, and unit length
    assert (A @ modes - modes * model.eigenvalues).norm(dim=0).max() < 1e-8
    np.testing.assert_allclose(modes.norm(dim=0).numpy(), 1.0, atol=1e-8)
    np.testing.assert_allclose(model.mode_norms.numpy(), 1.0, atol=1e-8)
    # what is left of the residual is rounding, and the model says how much
    assert bool((model.residual_norms <= model.residual_floors).all())


@pytest.mark.parametrize("centring", ["none", "affine"])
def test_amplitudes_and_modes_rebuild_the_last_snapshot(centring):
    constant = None if centring == "none" else torch.ones(40, dtype=torch.float64)
    run, _, _ = linear_run(constant=constant, snapshots=16)
    model = fit(run, centring=centring, route="qr", rank=5)
    rest = 0.0 if centring == "none" else model.fixed_point()
    rebuilt = rest + model.modes() @ model.amplitudes
    assert (rebuilt - run.snapshots[:, -1]).abs().max() < 1e-9


def test_growth_rates_and_frequencies_are_per_optimiser_step():
    run, _, _ = linear_run(every=5)
    model = fit(run, route="qr")
    order = model.eigenvalues.abs().argsort(descending=True)
    assert order.tolist() == list(range(5))
    angle = math.atan2(0.3, 0.9)
    by_value = {
        complex(np.round(m, 6)): i for i, m in enumerate(model.eigenvalues.tolist())
    }
    i, j = by_value[0.99 + 0j], by_value[0.9 + 0.3j]
    assert model.growth_rate[i].item() == pytest.approx(math.log(0.99) / 5, abs=1e-9)
    assert model.frequency[j].item() == pytest.approx(angle / (10 * math.pi), abs=1e-9)
    with pytest.raises(InvalidInputError, match=r"dt=0\.0 optimiser steps"):
        growth_rates(torch.ones(1), dt=0.0)
    with pytest.raises(InvalidInputError, match="positive"):
        rates(torch.ones(1), dt=math.nan)


def test_forecast_follows_the_linear_map_far_beyond_the_window():
    run, basis, blocks = linear_run(every=10)
    model = fit(run, route="qr")
    z = orbit(blocks, torch.ones(5, dtype=torch.float64), 200)
    forecast = model.forecast([150, 110, 1990])
    truth = (basis @ z)[:, [15, 11, 199]]
    assert (forecast - truth).abs().max() < 1e-8
    assert torch.equal(model.forecast([110]), run.snapshots[:, -1:])


# --- centring (section 4.2): true mu (1, .99, .97, .9)

TRAP = (0.99, 0.97, 0.9)


@pytest.fixture
def trap():
    constant = 3.0 * orthonormal(40, 1, seed=7)[:, 0]
    return linear_run(TRAP, constant=constant, snapshots=60, every=1)[0], constant


@pytest.mark.parametrize("centring", ["affine", "difference"])
def test_affine_and_difference_fits_are_exact_and_drop_the_constant(trap, centring):
    run, constant = trap
    model = fit(run, centring=centring, route="qr", rank=3)
    np.testing.assert_allclose(model.eigenvalues.numpy(), TRAP, atol=1e-8)
    assert (model.fixed_point() - constant).abs().max() < 1e-6
    truth = linear_run(TRAP, constant=constant, snapshots=301)[0].snapshots[:, -1]
    assert (model.forecast([300])[:, 0] - truth).abs().max() < 1e-7


def test_uncentred_fit_finds_the_constant_as_eigenvalue_one(trap):
    model = fit(trap[0], route="qr", rank=4)
    np.testing.assert_allclose(model.eigenvalues.numpy(), (1.0, *TRAP), atol=1e-8)


def test_subtracting_one_common_vector_is_wrong_and_is_not_what_we_do():
    run, _, _ = linear_run((1.0, *TRAP), snapshots=61)
    weights = run.snapshots.numpy()
    wrong = weights - weights[:, -1:]
    U, s, Vh = np.linalg.svd(wrong[:, :-1], full_matrices=False)
    K = U[:, :3].T @ wrong[:, 1:] @ Vh[:3].T / s[:3]
    bad = np.linalg.eigvals(K)
    # the numbers of THEORY.md 4.2: 61 snapshots from ones, the last one subtracted
    np.testing.assert_allclose(
        sorted_by(bad), [0.946 + 0.036j, 0.946 - 0.036j, 0.899], atol=1e-3
    )
    right = fit(run, centring="affine", route="qr", rank=3).eigenvalues
    np.testing.assert_allclose(sorted_by(right.numpy()), TRAP, atol=1e-8)


# --- momentum needs a delay (section 4.2)


def heavy_ball(rate_curvature, beta, snapshots):
    """Heavy ball on a diagonal quadratic, roots of mu^2-(1+b-a)mu+b."""
    a = torch.tensor(rate_curvature, dtype=torch.float64)
    theta, before = (
        torch.ones(3, dtype=torch.float64),
        torch.ones(3, dtype=torch.float64),
    )
    columns = [theta]
    for _ in range(snapshots - 1):
        theta, before = theta - a * theta + beta * (theta - before), theta
        columns.append(theta)
    return orthonormal(30, 3) @ torch.stack(columns, 1)


def test_momentum_is_recovered_with_one_delay_and_not_without():
    a, beta = [0.19, 0.05, 0.002], 0.9
    run = recorded(heavy_ball(a, beta, 60))
    roots = np.concatenate([np.roots([1.0, -(1 + beta - x), beta]) for x in a])
    model = fit(run, delay=2, route="qr", rank=6)
    np.testing.assert_allclose(
        sorted_by(model.eigenvalues.numpy().round(12)),
        sorted_by(roots.round(12)),
        atol=1e-7,
    )
    plain = fit(run, route="qr", rank=3)
    assert min(abs(plain.eigenvalues.numpy() - roots[0])) > 1e-2
    truth = heavy_ball(a, beta, 101)[:, -1]
    assert (model.forecast([100])[:, 0] - truth).abs().max() < 1e-7
    assert (plain.forecast([100])[:, 0] - truth).abs().max() > 1e-3


# --- trust (section 4.3)


def test_residuals_tell_true_modes_from_spurious_ones():
    mu = [0.99, 0.95, 0.9 + 0.3j, 0.9 - 0.3j, 0.8]
    run, _, _ = linear_run(mu, size=200, snapshots=60)
    gen = torch.Generator().manual_seed(1)
    noise = 1e-3 * torch.randn(run.snapshots.shape, generator=gen, dtype=torch.float64)
    model = fit(recorded(run.snapshots + noise), rank=12, route="qr")
    near = [(model.eigenvalues - m).abs().argmin().item() for m in mu]
    assert len(set(near)) == 5
    spurious = sorted(set(range(12)) - set(near))
    assert model.residual_norms[near].max() < 0.2
    assert model.residual_norms[spurious].min() > 0.5


def test_residual_is_the_formula_of_the_dual_residual():
    run, _, _ = linear_run(size=30, snapshots=20)
    gen = torch.Generator().manual_seed(3)
    W = run.snapshots + 0.01 * torch.randn(30, 20, generator=gen, dtype=torch.float64)
    model = fit(recorded(W), rank=7, route="qr")
    X, Y = W[:, :-1].numpy(), W[:, 1:].numpy()
    _, s, Vh = np.linalg.svd(X, full_matrices=False)
    C = Vh[:7].T / s[:7]
    K, L = C.T @ X.T @ Y @ C, C.T @ Y.T @ Y @ C
    mu, v = np.linalg.eig(K)
    squares = np.einsum("ik,ij,jk->k", v.conj(), L, v).real - abs(mu) ** 2
    expected = np.sqrt(np.clip(squares, 0, None))[np.argsort(-abs(mu), kind="stable")]
    np.testing.assert_allclose(model.residual_norms.numpy(), expected, rtol=1e-9)


def noisy_orbit(seed, snapshots=40):
    gen = torch.Generator().manual_seed(seed)
    blocks = real_blocks([0.95, 0.7])
    state, columns = torch.tensor([3.0, 3.0], dtype=torch.float64), []
    for _ in range(snapshots):
        columns.append(state)
        state = blocks @ state + 0.1 * torch.randn(
            2, generator=gen, dtype=torch.float64
        )
    return recorded(torch.stack(columns, 1))


@pytest.mark.parametrize("method", ["dmd", "self-adjoint"])
def test_standard_errors_match_the_spread_over_seeds(method):
    fits = [fit(noisy_orbit(seed), route="qr", method=method) for seed in range(150)]
    values = np.array([np.sort(model.eigenvalues.real.numpy()) for model in fits])
    errors = np.array([
        model.standard_errors[model.eigenvalues.real.argsort()].numpy()
        for model in fits
    ])
    spread = values.std(0, ddof=1)
    # 150 seeds give the spread to 6 %; a jackknife is right on average, not each time
    np.testing.assert_allclose(np.sqrt((errors**2).mean(0)), spread, rtol=0.35)


@pytest.mark.parametrize("centring", ["none", "affine"])
def test_standard_errors_are_those_of_refitting_without_each_pair(centring):
    run = noisy_orbit(3)
    model = fit(run, centring=centring, route="qr")
    W = run.snapshots.numpy()
    X, Y, n = W[:, :-1], W[:, 1:], W.shape[1] - 1
    X = np.vstack([X, np.ones(n)]) if centring == "affine" else X
    refits = []
    for j in range(n):
        kept = np.arange(n) != j
        A = (Y[:, kept] @ np.linalg.pinv(X[:, kept]))[:, :2]
        refits.append(sorted_by(np.linalg.eigvals(A)))
    spread = np.sqrt(
        (n - 1) / n * (abs(np.array(refits) - np.mean(refits, 0)) ** 2).sum(0)
    )
    # eigenvalues move to first order only: 3 % here
    np.testing.assert_allclose(model.standard_errors.numpy(), spread, rtol=0.05)


def test_standard_errors_are_infinite_where_no_pair_is_left():
    gen = torch.Generator().manual_seed(0)
    W = torch.randn(20, 6, generator=gen, dtype=torch.float64)
    assert bool(torch.isinf(fit(recorded(W), route="qr").standard_errors).all())
    assert bool(torch.isfinite(fit(recorded(W), rank=2).standard_errors).all())


# --- partitions


def layered(snapshots=14, dtype=torch.float64):
    gen = torch.Generator().manual_seed(5)
    shapes = {"net.0.weight": (4, 6), "net.0.bias": (4,), "net.2.weight": (3, 4)}
    shapes["net.2.bias"] = (3,)
    coordinates = Coordinates(names=tuple(shapes), shapes=tuple(shapes.values()))
    P = coordinates.size
    rate = torch.rand(P, generator=gen, dtype=torch.float64) * 0.2 + 0.8
    W = torch.randn(P, generator=gen, dtype=torch.float64)[:, None] * rate[
        :, None
    ] ** torch.arange(snapshots)
    W = W + 0.01 * torch.randn(W.shape, generator=gen, dtype=torch.float64)
    return recorded(W.to(dtype), coordinates=coordinates)


def source_forecast(D, h):
    """Dogra and Redman's released lines, transcribed: D is (q, T)."""
    D = np.asarray(D, dtype=np.float64)
    F, F_prime = D[:, :-1], D[:, 1:]
    K = F_prime @ np.linalg.pinv(F, rcond=max(F.shape) * np.finfo(np.float64).eps)
    return np.linalg.matrix_power(K, h) @ F_prime[:, -1], np.linalg.eigvals(K)


@pytest.mark.parametrize("snapshots", [14, 6], ids=["wide", "tall"])
def test_node_partition_is_the_source_row_by_row(snapshots):
    run = layered(snapshots)
    model = fit(run, partition="node")
    last = int(run.steps[-1])
    forecast = run.coordinates.unflatten(model.forecast([last + 3])[:, 0])
    states = [run.coordinates.unflatten(column) for column in run.snapshots.T]
    assert len(model.group_names) == 7
    group = 0
    for layer, rows in (("net.0", 4), ("net.2", 3)):
        for row in range(rows):
            D = torch.stack(
                [
                    torch.cat([
                        s[f"{layer}.weight"][row],
                        s[f"{layer}.bias"][row : row + 1],
                    ])
                    for s in states
                ],
                1,
            )
            expected, mu = source_forecast(D, 3)
            ours = torch.cat([
                forecast[f"{layer}.weight"][row],
                forecast[f"{layer}.bias"][row : row + 1],
            ])
            np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-8, atol=1e-10)
            mine = model.eigenvalues[model.groups == group].numpy()
            largest = sorted_by(mu)[: len(mine)]
            np.testing.assert_allclose(
                abs(np.array(sorted_by(mine))), abs(np.array(largest)), atol=1e-8
            )
            assert model.group_names[group] == f"{layer}[{row}]"
            group += 1


def test_layer_partition_is_the_source_with_all_rows_together():
    run = layered(9)
    model = fit(run, partition="layer", route="qr")
    forecast = model.forecast([int(run.steps[-1]) + 2])[:, 0]
    for part in (slice(0, 28), slice(28, 43)):
        expected, _ = source_forecast(run.snapshots[part], 2)
        np.testing.assert_allclose(
            forecast[part].numpy(), expected, rtol=1e-7, atol=1e-9
        )
    assert model.group_names == ("net.0", "net.2")
    # a mode of one layer is zero in the other
    assert model.modes([0])[28:].abs().max() == 0


def test_single_weights_follow_their_own_scalar_map():
    run = layered(14)
    model = fit(run, partition="weight")
    W = run.snapshots
    mu = (W[:, :-1] * W[:, 1:]).sum(1) / (W[:, :-1] ** 2).sum(1)
    expected = W[:, -1] * mu**4
    assert (
        model.forecast([int(run.steps[-1]) + 4])[:, 0] - expected
    ).abs().max() < 1e-12
    assert len(model.eigenvalues) == run.size


def test_quasi_nodes_cut_rows_and_leave_a_smaller_rest():
    run = layered(14)
    model = fit(run, partition="quasi-node", columns=3)
    # rows of 7 = 3 + 3 + 1 and of 5 = 3 + 2
    assert len(model.group_names) == 4 * 3 + 3 * 2
    assert "net.0[1, 3]" in model.group_names
    assert "net.0[1, 6]" in model.group_names
    W = run.snapshots
    expected, _ = source_forecast(W[[9, 10, 11]], 2)  # row 1, columns 3..5 of net.0
    ours = model.forecast([int(run.steps[-1]) + 2])[[9, 10, 11], 0]
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-8, atol=1e-10)
    whole = fit(run, partition="quasi-node", columns=99).forecast([20])
    assert torch.equal(whole, fit(run, partition="node").forecast([20]))


@pytest.mark.parametrize("partition", ["network", "layer", "node", "weight"])
def test_masked_coordinates_give_the_same_as_dropping_the_entries(partition):
    run = layered(14)
    mask = torch.ones((4, 6), dtype=torch.bool)
    mask[0] = False
    mask[1, ::2] = False
    smaller = run.coordinates.restrict({"net.0.weight": mask})
    kept = run.snapshots[smaller.survivors]
    model = fit(recorded(kept, coordinates=smaller), partition=partition)
    forecast = model.forecast([20])
    assert forecast.shape == (smaller.size, 1)
    zeroed = run.snapshots.clone()
    gone = torch.ones(run.size, dtype=torch.bool)
    gone[smaller.survivors] = False
    zeroed[gone] = 0.0
    full = fit(recorded(zeroed, coordinates=run.coordinates), partition=partition)
    expected = full.forecast([20])[smaller.survivors]
    # Gram noise below sqrt(T eps) is dropped alike; pinv cut-offs differ in q
    np.testing.assert_allclose(forecast.numpy(), expected.numpy(), rtol=1e-6, atol=1e-8)


def test_every_coordinate_is_forecast_once_with_any_partition():
    run = layered(14)
    for partition in ("network", "layer", "node", "weight"):
        model = fit(run, partition=partition, centring="affine", rank=1)
        assert torch.isfinite(model.forecast([20])).all(), partition
        assert int(model.groups.max()) + 1 == len(model.group_names), partition


# --- routes and streaming


def test_gram_and_qr_routes_agree_with_a_plain_svd():
    run, _, _ = linear_run(size=64, snapshots=10)
    X, Y = run.snapshots[:, :-1].numpy(), run.snapshots[:, 1:].numpy()
    U, s, Vh = np.linalg.svd(X, full_matrices=False)
    dense = np.linalg.eigvals(U[:, :5].T @ Y @ Vh[:5].T / s[:5])
    # Gram squares the condition number of X
    floor = 20 * np.finfo(float).eps * (s[0] / s[4]) ** 2
    for route, tolerance in (("gram", floor), ("qr", 1e-11)):
        found = fit(run, rank=5, route=route, rtol=0.0).eigenvalues.numpy()
        np.testing.assert_allclose(sorted_by(found), sorted_by(dense), atol=tolerance)


@pytest.mark.parametrize("factor", [gram_factor, qr_factor], ids=["gram", "qr"])
def test_factor_does_not_depend_on_the_chunks(factor):
    gen = torch.Generator().manual_seed(0)
    W = torch.randn(50, 8, generator=gen, dtype=torch.float64)
    whole, parts = factor(stream(W, None, 50)), factor(stream(W, None, 7))
    Z = _reduce.increments(W)
    for found in (whole, parts):
        assert (found.T @ found - Z.T @ Z).abs().max() < 1e-12 * (Z.T @ Z).abs().max()


@pytest.mark.parametrize("factor", [gram_factor, qr_factor], ids=["gram", "qr"])
def test_factor_is_accurate_relative_to_each_increment(factor):
    gen = torch.Generator().manual_seed(4)
    Z = torch.randn(50, 6, generator=gen, dtype=torch.float64)
    Z = Z * torch.logspace(-10, 0, 6, dtype=torch.float64)
    found, lengths = factor(iter([Z])), Z.norm(dim=0)
    error = (found.T @ found - Z.T @ Z).abs() / (lengths[:, None] * lengths)
    assert error.max() < 1e-13


def test_late_small_steps_survive_a_large_offset():
    # differences of 1e-8 on weights of size 1: an uncentred Gram would see noise
    run, _, _ = linear_run([0.9, 0.6], constant=torch.ones(40, dtype=torch.float64))
    small = recorded(1.0 + 1e-8 * (run.snapshots - 1.0))
    found = fit(small, centring="affine", rank=2).eigenvalues.numpy()
    # the snapshots themselves are rounded to eps / 1e-8 of a difference
    np.testing.assert_allclose(found, [0.9, 0.6], atol=1e-6)


def test_float32_snapshots_stay_float32_and_are_fitted_in_float64():
    run, _, _ = linear_run([0.9, 0.6], dtype=torch.float32)
    model = fit(run, rank=2)
    assert model.eigenvalues.dtype == torch.complex128
    assert model.forecast([20]).dtype == torch.float32
    assert bool((model.residual_norms <= model.residual_floors).all())


def test_holdout_keeps_few_modes_and_forecasts_better_than_all():
    mu = [0.99, 0.9, 0.7]
    run, _, _ = linear_run(mu, size=300, snapshots=40)
    gen = torch.Generator().manual_seed(2)
    noise = 1e-4 * torch.randn(run.snapshots.shape, generator=gen, dtype=torch.float64)
    model = fit(recorded(run.snapshots + noise), rank="holdout")
    assert model.rank <= 8
    full = fit(recorded(run.snapshots + noise))
    truth = linear_run(mu, size=300, snapshots=81)[0].snapshots[:, -1]
    error = (model.forecast([80])[:, 0] - truth).norm()
    assert error < (full.forecast([80])[:, 0] - truth).norm()


def test_peak_tensor_is_never_p_by_p():
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                self.seen = max(self.seen, result.numel())
            return result

    P, T = 3000, 10
    run, _, _ = linear_run([0.9, 0.6], size=P, snapshots=T)
    with Largest() as spy:
        fit(run, rank=2).forecast([30])
    assert P <= spy.seen <= T * P


# --- refusals


def test_too_few_snapshots_are_refused():
    W = torch.ones(4, 2, dtype=torch.float64)
    with pytest.raises(InvalidInputError, match="2 snapshots, at least 3"):
        fit(recorded(W))
    W = torch.ones(4, 3, dtype=torch.float64)
    with pytest.raises(InvalidInputError, match="3 snapshots, at least 4"):
        fit(recorded(W), centring="difference")
    with pytest.raises(InvalidInputError, match=r"at least 4 .* delay=2"):
        fit(recorded(W), delay=2)


def test_unequal_spacing_is_refused():
    run = Trajectory.from_states(torch.randn(5, 3), [0, 1, 2, 3, 5])
    with pytest.raises(InvalidInputError, match="not evenly spaced"):
        fit(run)


@pytest.mark.parametrize("rank", [0, 12], ids=str)
def test_rank_beyond_the_pairs_is_refused(rank):
    with pytest.raises(InvalidInputError, match=f"rank={rank} of 11 snapshot pairs"):
        fit(linear_run()[0], rank=rank)


def test_rank_beyond_the_data_is_refused():
    with pytest.raises(InvalidInputError, match="support 5 singular values"):
        fit(linear_run()[0], rank=8)


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_snapshots_that_are_not_finite_are_refused(value):
    run = linear_run(every=10)[0]
    W = run.snapshots.clone()
    W[3, 4] = value
    with pytest.raises(InvalidInputError, match="first at step 40"):
        fit(recorded(W, every=10))


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"centring": "mean"}, "Unknown centring 'mean'"),
        ({"method": "dmf"}, "Did you mean 'dmd'"),
        ({"route": "svd"}, "Unknown route"),
        ({"partition": "nodes"}, "Did you mean 'node'"),
        ({"partition": "quasi-node"}, "columns=q"),
        ({"columns": 3}, "columns=3"),
        ({"partition": "quasi-node", "columns": 0}, "columns=0 weights"),
        ({"delay": 0}, "delay=0"),
        ({"method": "self-adjoint", "delay": 2}, "never symmetric"),
        ({"rtol": 1.5}, r"rtol=1\.5"),
        ({"rank": "best"}, "rank='best'"),
        ({"rank": "holdout", "partition": "node"}, "made for"),
        ({"rank": "holdout", "holdout": 0.95}, "leaves 1 to fit"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_knobs_are_refused(keys, match):
    with pytest.raises(InvalidInputError, match=match):
        fit(linear_run()[0], **keys)


# --- a rival


def test_exact_dmd_of_pydmd_finds_the_same_eigenvalues_in_reduced_coordinates():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pydmd = pytest.importorskip("pydmd")
    run, _, _ = linear_run(size=200, snapshots=30)
    gen = torch.Generator().manual_seed(0)
    W = run.snapshots + 1e-3 * torch.randn(200, 30, generator=gen, dtype=torch.float64)
    reduced = qr_factor(stream(W, None, 64)).cumsum(1).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rival = pydmd.DMD(svd_rank=6, exact=True).fit(reduced)
    ours = fit(recorded(W), rank=6, route="qr").eigenvalues.numpy()
    np.testing.assert_allclose(sorted_by(ours), sorted_by(rival.eigs), atol=1e-10)
