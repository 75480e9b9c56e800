"""Eigenpairs along a trajectory: values, overlaps, and what a warm start saves."""

import pytest
import torch
from problems import classes, dense_hessian, small_net
from torch import nn

from dynprune.core import ConvergenceError, InvalidInputError, Outcome
from dynprune.operators import MatrixOperator
from dynprune.spectral import Eigenpairs, SpectrumTrack, track
from dynprune.system import GradientSystem
from dynprune.trajectory import Trajectory

ANGLE = 0.1


def system(size: int = 3) -> GradientSystem:
    x, y = torch.eye(size).double(), torch.zeros(size, 1).double()
    net = nn.Linear(size, 1, bias=False).double()
    return GradientSystem(net, nn.functional.mse_loss, (x, y))


def turning(values):
    """Return what makes Q(t) diag(values) Q(t)', Q turning planes (0, 2) and (1, 3)."""
    values = torch.as_tensor(values, dtype=torch.float64)

    def make(_, state):
        angle = state[0]
        Q = torch.eye(len(values), dtype=torch.float64)
        for i, j in ((0, 2), (1, 3)):
            Q[i, i] = Q[j, j] = torch.cos(angle)
            Q[i, j], Q[j, i] = -torch.sin(angle), torch.sin(angle)
        matrix = (Q * (values + state[1] * (values > 1))) @ Q.T
        return MatrixOperator(0.5 * (matrix + matrix.T))

    return make


def states(count: int) -> Trajectory:
    rows = [
        torch.tensor([ANGLE * t, 0.5 * t, 0.0], dtype=torch.float64)
        for t in range(count)
    ]
    return Trajectory.from_states(rows, [10 * t for t in range(count)])


def test_values_overlaps_and_angles_of_a_turning_matrix():
    values = [6.0, 4.0, *(0.9 * torch.linspace(0, 1, 198)).tolist()]
    found = track(states(4), system(), 2, operator=turning(values), tol=1e-9)
    shift = 0.5 * torch.arange(4.0)[:, None]
    truth = torch.tensor([6.0, 4.0]).double() + shift
    assert found.steps.tolist() == [0, 10, 20, 30]
    assert torch.allclose(found.values, truth, rtol=0.0, atol=1e-8)
    ends = found.enclosures
    assert ((ends[..., 0] <= truth) & (truth <= ends[..., 1])).all()
    # both vectors turn by the angle, out of the span of the two
    wanted = torch.eye(2).double() * torch.cos(torch.tensor(ANGLE).double())
    assert torch.allclose(found.overlaps, wanted.expand(3, 2, 2), atol=1e-7)
    assert torch.allclose(found.angles, torch.full((3, 2), ANGLE).double(), atol=1e-7)
    assert found.converged.all()
    assert found.outcome is Outcome.CONVERGED


def test_a_turn_inside_the_span_has_overlaps_but_no_angles():
    def swapped(_, state):
        diagonal = torch.linspace(0.0, 0.5, 120).double()
        first, second = (6.0, 4.0) if float(state[0]) == 0.0 else (4.0, 6.0)
        diagonal[0], diagonal[1] = first, second
        return MatrixOperator(torch.diag(diagonal))

    found = track(states(2), system(), 2, operator=swapped, tol=1e-9)
    assert torch.allclose(found.overlaps[0], torch.eye(2).double().flip(0), atol=1e-7)
    assert float(found.angles.abs().max()) < 1e-6
    frame = found.to_frame()
    assert frame.from_pair.tolist() == [0, 0, 2, 1]


def descent(*widths: int) -> tuple[Trajectory, GradientSystem]:
    """Return snapshots of gradient descent on a small net, and its system."""
    data = classes(60, 6, 4)
    system = GradientSystem(
        small_net(widths=widths), nn.functional.cross_entropy, data, l2=0.01
    )
    theta, seen = system.state, []
    for step in range(41):
        if step % 10 == 0:
            seen.append((theta.clone(), step))
        theta = theta - 0.2 * system.gradient(theta)
    path, steps = zip(*seen, strict=True)
    return Trajectory.from_states(path, steps), system


@pytest.fixture(scope="module")
def run():
    return descent(6, 24, 24, 4)


def test_the_hessian_along_a_run_agrees_with_the_dense_one():
    path, system = descent(6, 12, 4)
    found = track(path, system, 5, tol=1e-8)
    for t, state in enumerate(path.snapshots.T):
        truth = torch.linalg.eigvalsh(dense_hessian(system, state)).flip(0)[:5]
        assert (found.enclosures[t, :, 0] <= truth).all()
        assert (truth <= found.enclosures[t, :, 1]).all()
    assert found.provenance.examples == 60


def test_a_warm_start_saves_products(run):
    path, system = run
    warm = track(path, system, 5)
    cold = track(path, system, 5, warm=False)
    assert warm.matvecs[0] == cold.matvecs[0]
    assert float(warm.matvecs[1:].sum()) < 0.95 * float(cold.matvecs[1:].sum())
    assert torch.allclose(warm.values, cold.values, rtol=0.0, atol=1e-4 * 5)


def test_what_did_not_converge_is_marked_or_raised(run):
    path, system = run
    with pytest.raises(ConvergenceError, match="missed tol") as caught:
        track(path, system, 5, tol=1e-8, max_matvecs=9)
    assert isinstance(caught.value.partial, Eigenpairs)
    found = track(path, system, 5, tol=1e-8, max_matvecs=9, throw=False)
    assert not found.converged.all()
    assert found.outcome is Outcome.NOT_CONVERGED
    assert "not converged" in found.summary()
    assert (found.matvecs <= 9).all()


def test_a_system_of_another_size_is_refused(run):
    with pytest.raises(InvalidInputError, match="3 coordinates was given for a system"):
        track(states(2), run[1], 1)


def test_a_track_survives_a_file_and_shows_itself(tmp_path, run):
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    path, system = run
    found = track(path, system, 3, completeness=True)
    found.save(tmp_path / "t.safetensors")
    back = SpectrumTrack.load(tmp_path / "t.safetensors")
    for name in ("values", "overlaps", "angles", "converged", "matvecs", "steps"):
        assert torch.equal(getattr(back, name), getattr(found, name))
    assert (back.complete, back.provenance) == (True, found.provenance)
    assert repr(found).startswith("SpectrumTrack(T=5, k=3, LA, matvecs=")
    assert len(found.summary().splitlines()) == 5
    frame, axes = found.to_frame(), found.to_xarray()
    assert len(frame) == 15
    assert frame.overlap[:3].isna().all()
    assert frame.attrs["units"]["value"] == "loss per parameter²"
    assert axes["value"].dims == ("step", "pair")
    later = axes["overlap"].sel(step=10).to_numpy()
    assert torch.equal(torch.from_numpy(later.copy()), found.overlaps[0])
    ax = found.plot()
    assert ax.get_xlabel() == "optimiser step"
    assert "eigenvalue" in ax.get_ylabel()
    plt.close(ax.figure)
    with pytest.raises(InvalidInputError, match="not eigenpairs"):
        Eigenpairs.load(tmp_path / "t.safetensors")
    one = track(path.window(0, 0), system, 2)
    assert (one.overlaps.shape, one.angles.shape) == ((0, 2, 2), (0, 2))
    one.summary()
    one.to_frame()
    one.to_xarray()


def test_a_span_that_stays_has_no_angle_in_single_precision():
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    net = nn.Linear(6, 1, bias=False)
    own = GradientSystem(net, nn.functional.mse_loss, (x, torch.zeros(40, 1)))
    path = Trajectory.from_states([torch.zeros(6), torch.ones(6)], [0, 1])
    assert float(track(path, own, 6).angles.max()) < 1e-6
