"""Bounds, intervals, baselines and the faces of the result."""

import warnings

import numpy as np
import pytest
import torch

from dynprune.core import (
    AssumptionError,
    InvalidInputError,
    NumericalWarning,
    Outcome,
    cite,
    load_tensors,
    save_tensors,
)
from dynprune.koopman import (
    BASELINE_FORECASTS,
    KoopmanModel,
    dmd_intervals,
    error2growth,
    fit,
    forecast_bound,
    linear_extrapolation,
    stay,
    window_mean,
)
from dynprune.trajectory import Trajectory

P = 60


def quadratic(seed=0):
    """Hessian, its eigenvalues, minimum and start of a convex quadratic."""
    gen = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(P, P, generator=gen, dtype=torch.float64))[0]
    lam = torch.logspace(-3, 0, P, dtype=torch.float64)
    star = torch.randn(P, generator=gen, dtype=torch.float64)
    start = star + torch.randn(P, generator=gen, dtype=torch.float64)
    return Q, lam, star, start


def closed_form(t, eta=0.5):
    """theta_t = theta* + (I - eta H)^t (theta_0 - theta*)."""
    Q, lam, star, start = quadratic()
    return star + Q @ ((1 - eta * lam) ** t * (Q.T @ (start - star)))


def descent(snapshots, *, every=1, modes=None, eta=0.5, dtype=torch.float64):
    """Snapshots of gradient descent; ``modes`` keeps the start on a few of them."""
    Q, lam, star, start = quadratic()
    if modes is not None:
        start = star + Q[:, modes].sum(1)
    H, theta = (Q * lam) @ Q.T, start
    columns, steps = [], []
    H, theta, star = H.to(dtype), theta.to(dtype), star.to(dtype)
    for t in range((snapshots - 1) * every + 1):
        if t % every == 0:
            columns.append(theta)
            steps.append(t)
        theta = theta - eta * (H @ (theta - star))
    return Trajectory.from_states(torch.stack(columns), steps)


def test_forecast_of_descent_on_a_quadratic_is_the_closed_form():
    few = [0, 30, 45, 55]
    run = descent(30, every=4, modes=few)
    Q, lam, star, _ = quadratic()
    for centring in ("affine", "difference"):
        model = fit(run, centring=centring, route="qr", rank=4)
        expected = ((1 - 0.5 * lam[few]) ** 4).flip(0).numpy()
        np.testing.assert_allclose(
            np.sort(model.eigenvalues.real.numpy()), np.sort(expected), atol=1e-6
        )
        far = star + Q[:, few] @ (1 - 0.5 * lam[few]) ** 200
        assert (model.forecast([200])[:, 0] - far).abs().max() < 1e-6, centring


@pytest.mark.parametrize("centring", ["none", "affine", "difference"])
@pytest.mark.parametrize("method", ["dmd", "self-adjoint"])
@pytest.mark.parametrize("rank", [2, 4, 7], ids=str)
def test_defect_bound_holds_for_a_symmetric_contraction(centring, method, rank):
    run = descent(30)
    if centring == "none":  # a linear map needs its fixed point at the origin
        shifted = run.snapshots - quadratic()[2][:, None]
        run = Trajectory.from_states(shifted.T, run.steps)
    model = fit(run, centring=centring, method=method, rank=rank, route="qr")
    assert model.operator_norm <= 1 + 1e-9
    steps = [29, 30, 34, 49, 129]
    truth = torch.stack([closed_form(t) for t in steps], 1)
    if centring == "none":
        truth = truth - quadratic()[2][:, None]
    measured = (model.forecast(steps) - truth).norm(dim=0)
    bound = forecast_bound(model, steps, rule="defect")
    # rounding: 130 steps of weights of norm 10, amplified by at most 1 / rtol
    assert bool((measured <= bound * (1 + 1e-9) + 1e-8).all()), (measured, bound)
    assert bound[0] == 0
    modes = forecast_bound(model, steps)
    if centring == "none":
        assert bool((bound <= modes + model.outside_norm + 1e-9).all())
        assert bool((measured <= modes + model.outside_norm + 1e-8).all())


def test_modes_bound_is_the_formula_of_the_issue():
    model = fit(descent(20), centring="affine", rank=3, route="qr")
    h = 7
    expected = sum(
        abs(b) * r * n * sum(abs(m) ** j for j in range(h))
        for b, r, n, m in zip(
            model.amplitudes.tolist(),
            model.residual_norms.tolist(),
            model.mode_norms.tolist(),
            model.eigenvalues.tolist(),
            strict=True,
        )
    )
    assert forecast_bound(model, [19 + h]).item() == pytest.approx(expected, rel=1e-12)


def test_bounds_are_refused_where_they_prove_nothing():
    run = descent(20)
    with pytest.raises(AssumptionError, match="partition='weight'"):
        forecast_bound(fit(run, partition="weight"), [25])
    with pytest.raises(AssumptionError, match="delay=2"):
        forecast_bound(fit(run, delay=2, rank=3), [25])
    with pytest.raises(InvalidInputError, match="Unknown rule 'mode'"):
        forecast_bound(fit(run, rank=3), [25], rule="mode")


@pytest.mark.parametrize("method", ["dmd", "self-adjoint"])
def test_every_interval_contains_a_multiplier_of_descent(method):
    model = fit(descent(40), centring="affine", method=method, rank=6, route="qr")
    intervals = dmd_intervals(model)
    assert intervals.shape == (6, 2)
    multipliers = 1 - 0.5 * quadratic()[1]
    for low, high in intervals.tolist():
        assert bool(((multipliers >= low) & (multipliers <= high)).any()), (low, high)
    # sharp where a mode is alone: the slowest is enclosed to less than 1e-3
    few = fit(descent(40, modes=[5, 40, 58]), centring="affine", method=method, rank=3)
    sizes = dmd_intervals(few).diff(dim=1)
    assert sizes.max() < 1e-4
    truth = multipliers[[5, 40, 58]]
    for value, (low, high) in zip(truth, dmd_intervals(few).tolist(), strict=True):
        assert low <= value <= high


def test_intervals_of_float32_descent_count_its_rounding():
    few = [5, 40, 58]
    run = descent(40, modes=few, dtype=torch.float32)
    model = fit(run, centring="affine", method="self-adjoint", rank=3)
    truth = 1 - 0.5 * quadratic()[1][few]
    with_floors = dmd_intervals(model)
    for value, (low, high) in zip(truth, with_floors.tolist(), strict=True):
        assert low <= value <= high
    assert bool(
        (with_floors.diff(dim=1) > dmd_intervals(model, floors=False).diff(dim=1)).all()
    )


def test_self_adjoint_fit_is_the_best_symmetric_one():
    run = descent(12)
    gen = torch.Generator().manual_seed(0)
    W = run.snapshots + 0.05 * torch.randn(P, 12, generator=gen, dtype=torch.float64)
    model = fit(
        Trajectory.from_states(W.T, run.steps),
        method="self-adjoint",
        rank=4,
        route="qr",
    )
    assert bool((model.eigenvalues.imag == 0).all())
    X, Y = W[:, :-1], W[:, 1:]
    U, s, Vh = torch.linalg.svd(X, full_matrices=False)
    x, y = s[:4, None] * Vh[:4], U[:, :4].T @ Y

    def misfit(K):
        return float(((K @ x - y) ** 2).sum())

    values, V = model.eigenvalues.real, U[:, :4].T @ model.modes().real
    K = V @ torch.diag(values) @ V.T
    base = misfit(K)
    for i in range(4):
        for j in range(i + 1):
            step = torch.zeros(4, 4, dtype=torch.float64)
            step[i, j] = step[j, i] = 1e-3
            assert misfit(K + step) > base
            assert misfit(K - step) > base


def test_intervals_are_refused_for_rotations_and_other_operators():
    angle = torch.tensor(0.3, dtype=torch.float64)
    turn = torch.stack([
        torch.stack([angle.cos(), -angle.sin()]),
        torch.stack([angle.sin(), angle.cos()]),
    ])
    columns = [torch.ones(2, dtype=torch.float64)]
    for _ in range(8):
        columns.append(turn @ columns[-1])
    run = Trajectory.from_states(torch.stack(columns), list(range(9)))
    with pytest.raises(AssumptionError, match="no symmetric operator"):
        dmd_intervals(fit(run, route="qr"))
    with pytest.raises(InvalidInputError, match="partition='weight'"):
        dmd_intervals(fit(run, partition="weight"))


def test_fixed_point_is_refused_without_one():
    run = descent(20)
    with pytest.raises(AssumptionError, match="fixed point is 0"):
        fit(run, rank=3).fixed_point()
    drift = torch.arange(8.0, dtype=torch.float64)[:, None] * torch.ones(3)
    with pytest.raises(AssumptionError, match="from 1: its direction drifts"):
        fit(
            Trajectory.from_states(drift, list(range(8))), centring="affine"
        ).fixed_point()


def test_steps_off_the_grid_are_refused():
    model = fit(descent(10, every=4), rank=2)
    for step in (35, 38, 40.5):
        with pytest.raises(InvalidInputError, match=f"step {step} was asked"):
            model.forecast([step])
    with pytest.raises(InvalidInputError, match="No steps"):
        model.forecast([])


def test_modes_are_refused_where_they_are_not_kept():
    run = descent(10)
    with pytest.raises(InvalidInputError, match="60 groups"):
        fit(run, partition="weight").modes()
    with pytest.raises(InvalidInputError, match="there are 2"):
        fit(run, rank=2).modes([2])


def test_a_forecast_that_overflows_warns_and_counts_as_infinitely_wrong():
    growing = (3.0 ** torch.arange(6.0))[:, None] * torch.ones(4)
    run = Trajectory.from_states(growing, list(range(6)))
    model = fit(run, partition="weight")
    with pytest.warns(NumericalWarning, match="4 of 4 weights left the finite"):
        found = model.forecast([2000])
    truth, last = torch.zeros(4), run.snapshots[:, -1]
    assert error2growth(found[:, 0], truth, last) == torch.inf


# --- baselines


def test_staying_has_error2growth_exactly_one():
    run = descent(10)
    steps = [15, 20]
    truth = torch.stack([closed_form(t) for t in steps], 1)
    ratio = error2growth(stay(run, steps), truth, run.snapshots[:, -1])
    assert ratio.tolist() == [1.0, 1.0]
    model = fit(run, centring="affine", rank=4, route="qr")
    assert bool(
        (error2growth(model.forecast(steps), truth, run.snapshots[:, -1]) < 1).all()
    )


def test_a_perfect_forecast_has_error2growth_zero_and_medians_are_of_the_middle_two():
    last = torch.zeros(4)
    truth = torch.tensor([1.0, 2.0, 4.0, 8.0])
    assert error2growth(truth, truth, last) == 0.0
    assert error2growth(truth + 1.5, truth, last) == 0.5


def test_linear_extrapolation_is_exact_on_a_line_and_window_mean_is_the_mean():
    line = torch.tensor([1.0, -2.0], dtype=torch.float64)
    run = Trajectory.from_states([line * t for t in (0, 10, 20)], [0, 10, 20])
    found = linear_extrapolation(run, [20, 25, 120])
    assert torch.equal(found, torch.stack([line * t for t in (20, 25, 120)], 1))
    assert torch.equal(window_mean(run, [30, 40]), (10 * line)[:, None].repeat(1, 2))
    assert torch.equal(stay(run, [20, 99]), (20 * line)[:, None].repeat(1, 2))
    assert [f.__name__ for f in BASELINE_FORECASTS] == [
        "stay",
        "linear_extrapolation",
        "window_mean",
    ]


@pytest.mark.parametrize("baseline", BASELINE_FORECASTS, ids=lambda f: f.__name__)
def test_baselines_have_the_face_of_a_forecast(baseline):
    run = descent(10)
    assert baseline(run, [9, 12]).shape == (P, 2)
    assert baseline(run, [12]).dtype == run.snapshots.dtype
    with pytest.raises(InvalidInputError, match="ends at step 9"):
        baseline(run, [8])


def test_baseline_and_measure_refusals():
    one = Trajectory.from_states(torch.ones(1, 3), [0])
    with pytest.raises(InvalidInputError, match="two snapshots"):
        linear_extrapolation(one, [1])
    with pytest.raises(InvalidInputError, match="did not move"):
        error2growth(torch.ones(3), torch.tensor([0.0, 0.0, 1.0]), torch.zeros(3))
    with pytest.raises(InvalidInputError, match="Shapes"):
        error2growth(torch.ones(2), torch.ones(3), torch.ones(3))


# --- faces of the result


@pytest.mark.parametrize("partition", ["network", "layer", "weight"])
def test_saved_models_forecast_bit_for_bit(tmp_path, partition):
    model = fit(descent(12), partition=partition, centring="affine", rank=1)
    model.save(tmp_path / "model.safetensors")
    again = KoopmanModel.load(tmp_path / "model.safetensors")
    assert torch.equal(again.forecast([20, 30]), model.forecast([20, 30]))
    assert torch.equal(again.eigenvalues, model.eigenvalues)
    assert torch.equal(again.fixed_point(), model.fixed_point())
    assert again.group_names == model.group_names
    assert again.provenance.to_dict() == model.provenance.to_dict()
    assert again.outcome is Outcome.FINISHED
    if partition == "network":
        assert torch.equal(forecast_bound(again, [20]), forecast_bound(model, [20]))
        assert torch.equal(again.modes(), model.modes())


def test_files_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_tensors(path, {"a": torch.ones(1)}, {"kind": "Ticket"})
    with pytest.raises(InvalidInputError, match="holds 'Ticket', not a Koopman model"):
        KoopmanModel.load(path)
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InvalidInputError, match="truncated"):
        KoopmanModel.load(path)
    fit(descent(12), rank=1).save(path)
    save_tensors(path, {}, load_tensors(path)[1])
    with pytest.raises(InvalidInputError, match="lacks part of a Koopman model"):
        KoopmanModel.load(path)


def test_summary_frame_figure_and_citation():
    model = fit(descent(12, every=10), rank=3)
    assert len(model.summary().splitlines()) == 5
    assert "\n" not in repr(model)
    assert "tensor" not in repr(model)
    frame = model.to_frame()
    assert len(frame) == 3
    assert frame.attrs["units"]["growth_rate"] == "1 / step"
    expected = np.log(frame["modulus"]) / 10
    np.testing.assert_allclose(frame["growth_rate"], expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import matplotlib as mpl
    mpl.use("agg")
    import matplotlib.pyplot as plt

    ax = model.plot()
    assert "per 10 steps" in ax.get_xlabel()
    plt.close(ax.figure)
    assert "dogra2020koopman" in cite(model)
    assert model.provenance.made_by == "koopman.fit"


def test_fitting_changes_no_random_state_and_no_snapshot():
    run = descent(12)
    before, state = run.snapshots.clone(), torch.get_rng_state()
    fit(run, partition="node").forecast([20])
    fit(run, rank="holdout").forecast([20])
    assert torch.equal(run.snapshots, before)
    assert torch.equal(torch.get_rng_state(), state)


def test_dead_groups_stay_dead():
    W = descent(12).snapshots.clone()
    W[::2] = 0.0
    run = Trajectory.from_states(W.T, list(range(12)))
    model = fit(run, partition="weight")
    assert len(model.eigenvalues) == P // 2
    assert model.forecast([20])[::2].abs().max() == 0
    still = Trajectory.from_states(torch.ones(5, 3), list(range(5)))
    frozen = fit(still, centring="affine")
    assert len(frozen.eigenvalues) == 0
    assert torch.equal(frozen.forecast([9])[:, 0], torch.ones(3))
    assert len(frozen.summary().splitlines()) == 5
