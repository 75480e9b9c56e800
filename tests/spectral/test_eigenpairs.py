"""Eigenpairs against closed forms, dense decompositions and SciPy."""

import numpy as np
import problems
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from dynprune.core import (
    AssumptionError,
    ConvergenceError,
    InvalidInputError,
    Outcome,
)
from dynprune.operators import HessianOperator, MatrixOperator
from dynprune.spectral import Eigenpairs, eigenpairs
from dynprune.spectral._enclosures import enclose
from dynprune.system import GradientSystem

EPS = torch.finfo(torch.float64).eps


def diagonal(values) -> MatrixOperator:
    return MatrixOperator(torch.diag(torch.as_tensor(values, dtype=torch.float64)))


def rotated(values, *, seed: int = 0) -> MatrixOperator:
    """Return Q diag(values) Q' with a random rotation."""
    values = torch.as_tensor(values, dtype=torch.float64)
    make = torch.Generator().manual_seed(seed)
    square = torch.randn(len(values), len(values), generator=make, dtype=torch.float64)
    Q = torch.linalg.qr(square).Q
    matrix = (Q * values) @ Q.T
    return MatrixOperator(0.5 * (matrix + matrix.T))


def spread(size: int = 300) -> torch.Tensor:
    """Return a spectrum of both signs, geometric at both ends."""
    up = 5.0 * 0.8 ** torch.arange(size // 2, dtype=torch.float64)
    return torch.cat([up, -0.7 * up])


def digits_system() -> GradientSystem:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = torch.as_tensor(x[:200, 18:46] / 16.0)
    make = torch.Generator().manual_seed(1)
    net = nn.Sequential(
        nn.Linear(28, 14), nn.Tanh(), nn.Linear(14, 12), nn.Tanh(), nn.Linear(12, 10)
    ).double()
    with torch.no_grad():
        for part in net.parameters():
            part.copy_(0.3 * torch.randn(part.shape, generator=make).double())
    return GradientSystem(
        net, nn.functional.cross_entropy, (x, torch.as_tensor(y[:200]))
    )


def chosen(values, k, which):
    values = np.sort(np.asarray(values))[::-1]
    if which == "LA":
        return values[:k]
    if which == "SA":
        return values[-k:]
    if which == "BE":
        return np.concatenate([values[: (k + 1) // 2], values[len(values) - k // 2 :]])
    return np.sort(values[np.argsort(-np.abs(values))[:k]])[::-1]


@pytest.mark.parametrize("which", ["LA", "SA", "BE", "LM"])
@pytest.mark.parametrize("size", [12, 300], ids=["exact", "Krylov"])
@pytest.mark.parametrize("block", [1, 3])
def test_it_finds_the_wanted_end(which, size, block):
    values = spread(size)
    pairs = eigenpairs(rotated(values), 5, which=which, block=block, tol=1e-9)
    truth = torch.as_tensor(chosen(values, 5, which).copy())
    scale = values.abs().max()
    assert (pairs.values - truth).abs().max() <= (
        pairs.residual_norms.max() + 300 * EPS * scale
    )
    assert pairs.matvecs <= (size if size == 12 else 250)


def test_the_defining_equation_holds_with_true_products():
    op = rotated(spread())
    pairs = eigenpairs(op, 6, tol=1e-4)
    residual = op.dense() @ pairs.vectors - pairs.vectors * pairs.values
    rounding = 300 * EPS * 5.0
    assert torch.allclose(
        residual.norm(dim=0), pairs.residual_norms, rtol=0.0, atol=rounding
    )
    eye = torch.eye(6, dtype=torch.float64)
    assert (pairs.vectors.T @ pairs.vectors - eye).abs().max() < 100 * EPS
    assert pairs.residual_norms.max() <= 1e-4 * 5.0
    assert pairs.outcome is Outcome.CONVERGED


def test_digits_hessian_agrees_with_the_dense_one_and_enclosures_hold_the_truth():
    op = HessianOperator(digits_system())
    assert op.size == 28 * 14 + 14 + 14 * 12 + 12 + 12 * 10 + 10
    truth = torch.linalg.eigvalsh(op.dense()).flip(0)[:10]
    before = op.matvecs
    pairs = eigenpairs(op, 10, tol=1e-10, completeness=True)
    assert pairs.matvecs == op.matvecs - before < 300
    assert pairs.complete is True
    assert ((pairs.values - truth).abs() / truth).max() < 1e-8
    assert (pairs.enclosures[:, 0] <= truth).all()
    assert (truth <= pairs.enclosures[:, 1]).all()


def test_a_single_vector_misses_a_multiplicity_that_the_second_start_reports():
    op = rotated([5.0, 4.0, 4.0, 1.0, *(0.5 * torch.linspace(0, 1, 196)).tolist()])
    alone = eigenpairs(op, 3)
    assert torch.allclose(alone.values, torch.tensor([5.0, 4.0, 1.0]).double())
    assert alone.complete is None
    tested = eigenpairs(op, 3, completeness=True)
    assert torch.allclose(tested.values, torch.tensor([5.0, 4.0, 4.0]).double())
    assert tested.complete is True


def test_the_second_start_repairs_more_copies_than_the_block_sees():
    values = [5.0] * 9 + [3.0, 2.0] + torch.linspace(0, 1, 189).tolist()
    pairs = eigenpairs(rotated(values), 10, completeness=True, tol=1e-8)
    truth = torch.tensor([5.0] * 9 + [3.0]).double()
    assert pairs.complete is True
    assert (pairs.values - truth).abs().max() < 1e-8 * 5
    assert (pairs.residual_norms <= 1e-8 * 5).all()
    assert (pairs.enclosures[:, 0] <= truth).all()
    assert (truth <= pairs.enclosures[:, 1]).all()


def test_a_small_operator_is_decomposed_exactly():
    pairs = eigenpairs(diagonal([5.0, 4.0, 4.0, 1.0, 0.5]), 4)
    assert torch.allclose(pairs.values, torch.tensor([5.0, 4.0, 4.0, 1.0]).double())
    assert pairs.complete is True
    assert pairs.matvecs == 5


@pytest.mark.parametrize("rank", [0, 2])
def test_an_invariant_subspace_does_not_stop_the_iteration(rank):
    values = torch.zeros(400, dtype=torch.float64)
    values[:rank] = torch.tensor([3.0, 2.0])[:rank]
    pairs = eigenpairs(rotated(values), 5, completeness=True)
    assert (pairs.values - values[:5]).abs().max() < 400 * EPS * 3
    assert pairs.outcome is Outcome.CONVERGED


def test_the_complement_is_seen_without_the_zeros_of_the_projection():
    values = torch.cat([torch.tensor([5.0, 4.0]), -torch.linspace(1.0, 2.0, 198)])
    op = diagonal(values)
    U = torch.eye(200, dtype=torch.float64)[:, :2]
    pairs = eigenpairs(op, 2, outside=U, tol=1e-7)
    assert float(pairs.values[0]) == pytest.approx(-1.0, abs=1e-6)
    assert (U.T @ pairs.vectors).abs().max() < 100 * EPS
    small = eigenpairs(
        diagonal([5.0, -1.0, -2.0]), 1, outside=torch.eye(3).double()[:, :1]
    )
    assert small.values.tolist() == pytest.approx([-1.0])


def test_a_good_start_saves_products():
    op = rotated(spread())
    cold = eigenpairs(op, 3, tol=1e-6)
    warm = eigenpairs(op, 3, tol=1e-6, start=cold.vectors)
    assert torch.allclose(warm.values, cold.values, atol=1e-5)
    assert warm.matvecs < 0.85 * cold.matvecs  # 17 and 22


def test_a_start_in_an_invariant_subspace_is_not_believed():
    op = diagonal(torch.linspace(0.0, 1.0, 200))
    start = torch.eye(200, dtype=torch.float64)[:, :1]  # eigenvector of 0
    pairs = eigenpairs(op, 1, start=start, tol=1e-4)
    assert float(pairs.values[0]) == pytest.approx(1.0, abs=1e-3)


@given(
    seed=st.integers(0, 10**6),
    copies=st.integers(1, 4),
    shift=st.floats(-3, 3),
    steps=st.integers(20, 60),
    single=st.booleans(),
    basis_size=st.sampled_from([None, 14, 20]),
    verify=st.sampled_from(["one", "all"]),
    which=st.sampled_from(["LA", "SA", "BE", "LM"]),
)
def test_enclosures_match_eigenvalues_one_to_one(
    seed, copies, shift, steps, single, basis_size, verify, which
):
    make = torch.Generator().manual_seed(seed)
    values = torch.randn(120, generator=make, dtype=torch.float64) + shift
    values[:copies] = values.max() + 0.5
    matrix = rotated(values, seed=seed).dense()
    if single:
        matrix = matrix.float()
    pairs = eigenpairs(
        MatrixOperator(matrix),
        6,
        block=2,
        which=which,
        verify=verify,
        basis_size=basis_size,
        max_matvecs=steps,
        tol=1e-4,
        throw=False,
        seed=seed,
    )
    left = torch.linalg.eigvalsh(matrix.double()).tolist()
    lapack = 120 * EPS * float(values.abs().max())
    for low, high in sorted(pairs.enclosures.tolist(), key=lambda ends: ends[1]):
        inside = [value for value in left if low - lapack <= value <= high + lapack]
        assert inside, "an enclosure holds no eigenvalue of its own"
        left.remove(inside[0])
    residuals = matrix.double() @ pairs.vectors.double()
    residuals = (residuals - pairs.vectors.double() * pairs.values).norm(dim=0)
    rounding = 16 * torch.finfo(matrix.dtype).eps * float(values.abs().max())
    assert (residuals <= pairs.residual_norms + rounding).all()


def test_groups_of_close_values_are_enclosed_together():
    values = torch.tensor([1.0, 0.9999, 0.0], dtype=torch.float64)
    R = torch.tensor([[1e-3, 1e-3, 0.0], [0.0, 0.0, 1e-3]], dtype=torch.float64)
    ends = enclose(values, R.T @ R, slack=0.0)
    together = float(torch.linalg.matrix_norm(R[:, :2], 2))
    radius = (ends[:, 1] - ends[:, 0]) / 2
    assert radius.tolist() == pytest.approx([together, together, 1e-3])


def test_float32_converges_to_what_float32_can_give():
    values = spread().float()
    pairs = eigenpairs(MatrixOperator(torch.diag(values)), 5, completeness=True)
    truth = values.double().sort(descending=True).values[:5]
    assert pairs.vectors.dtype == torch.float32
    assert pairs.values.dtype == torch.float64
    assert pairs.outcome is Outcome.CONVERGED
    assert (pairs.enclosures[:, 0] <= truth).all()
    assert (truth <= pairs.enclosures[:, 1]).all()


def test_the_seed_decides_and_nothing_else(untouched):
    op = rotated(spread())
    with untouched():
        first = eigenpairs(op, 3, seed=7)
    again, other = eigenpairs(op, 3, seed=7), eigenpairs(op, 3, seed=8)
    assert torch.equal(first.vectors, again.vectors)
    assert not torch.equal(first.vectors, other.vectors)


def test_it_agrees_with_scipy():
    from scipy.sparse.linalg import eigsh

    op = HessianOperator(digits_system())
    rival = np.sort(eigsh(op.to_scipy(), 5, which="LA", tol=1e-10)[0])[::-1]
    ours = eigenpairs(op, 5, tol=1e-10)
    assert np.abs(ours.values.numpy() - rival).max() < 1e-9 * rival[0]


def test_the_budget_is_kept_and_the_partial_result_carried():
    op = rotated(spread())
    with pytest.raises(
        ConvergenceError, match=r"of 5 pairs missed tol=1e-10"
    ) as caught:
        eigenpairs(op, 5, tol=1e-10, max_matvecs=15)
    partial = caught.value.partial
    assert isinstance(partial, Eigenpairs)
    assert partial.converged.shape == (5,)
    assert not bool(partial.converged.all())
    marked = partial.residual_norms <= 1e-10 * float(partial.values.abs().max())
    assert torch.equal(partial.converged, marked)
    assert partial.outcome is Outcome.MAX_MATVECS
    assert partial.matvecs <= 15
    quiet = eigenpairs(op, 5, tol=1e-10, max_matvecs=15, throw=False, completeness=True)
    assert quiet.complete is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "0 eigenpairs were asked of 300 dimensions"),
        ({"k": 301}, "Pass 1 <= k <= 300"),
        ({"which": "LR"}, r"Unknown end of the spectrum 'LR'\. Did you mean"),
        ({"block": 0}, "block=0"),
        ({"tol": 0.0}, "tol > 0"),
        ({"max_matvecs": 3}, "max_matvecs=3 is too few"),
        ({"outside": torch.ones(300, 2).double()}, "not orthonormal"),
        ({"outside": torch.ones(3, 2).double()}, r"outside has shape \(3, 2\)"),
        ({"start": torch.ones(3, 2).double()}, r"start has shape \(3, 2\)"),
        ({"start": torch.full((300, 1), torch.nan).double()}, "start holds NaN"),
        ({"verify": "none"}, r"Unknown way to verify 'none'\. Did you mean"),
        ({"basis_size": 6}, "A basis of 6 vectors was asked for 5 pairs"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(change, message):
    arguments = {"k": 5} | change
    with pytest.raises(InvalidInputError, match=message):
        eigenpairs(rotated(spread()), arguments.pop("k"), **arguments)


@pytest.mark.parametrize("size", [5, 200])
def test_products_that_are_not_finite_are_refused(size):
    op = diagonal([1.0] * size)
    op._matrix[0, 0] = float("nan")
    with pytest.raises(InvalidInputError, match="not finite"):
        eigenpairs(op, 2)


@pytest.mark.parametrize("block", [1, 2])
def test_an_operator_that_is_not_symmetric_is_refused(block):
    op = diagonal([1.0] * 200)
    op._matrix += torch.triu(torch.ones(200, 200), 1).double()
    with pytest.raises(AssumptionError, match="not symmetric"):
        eigenpairs(op, 2, block=block)


def test_pairs_survive_a_file_and_show_themselves(tmp_path):
    pairs = eigenpairs(rotated(spread()), 4, completeness=True)
    pairs.save(tmp_path / "p.safetensors")
    back = Eigenpairs.load(tmp_path / "p.safetensors")
    assert torch.equal(back.vectors, pairs.vectors)
    assert back.complete is True
    assert back.provenance == pairs.provenance
    assert "none is missing" in back.summary()
    assert repr(pairs).startswith("Eigenpairs(k=4, P=300, LA, complete=True")
    frame = pairs.to_frame()
    assert list(frame.columns) == [
        *("pair", "value", "residual_norm", "lower", "upper", "converged")
    ]
    assert ((frame.lower <= frame.value) & (frame.value <= frame.upper)).all()


def test_the_figure_has_labels():
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    ax = eigenpairs(rotated(spread()), 4).plot()
    assert "eigenvalue" in ax.get_ylabel()
    plt.close(ax.figure)


def test_the_hessian_of_linear_regression_is_found_in_full():
    model, data, hessian = problems.linear_regression()
    system = GradientSystem(model, problems.half_squares, data)
    pairs = eigenpairs(HessianOperator(system), 3)
    truth = torch.linalg.eigvalsh(hessian).flip(0)
    assert (pairs.values - truth).abs().max() < 100 * EPS * truth[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_gives_the_same_pairs():
    op = rotated(spread())
    there = MatrixOperator(op.dense().cuda())
    here = eigenpairs(op, 5, tol=1e-9, completeness=True)
    found = eigenpairs(there, 5, tol=1e-9, completeness=True)
    assert found.vectors.is_cuda
    assert found.complete is True
    assert torch.allclose(found.values.cpu(), here.values, rtol=0.0, atol=1e-8)
    found.summary()
    found.to_frame()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_start_that_is_zero_is_no_start(dtype):
    op = MatrixOperator(torch.diag(torch.linspace(1.0, 9.0, 200, dtype=dtype)))
    start = torch.zeros(200, 1, dtype=dtype)
    found = eigenpairs(op, 1, start=start, tol=1e-4)
    assert float(found.values[0]) == pytest.approx(9.0, abs=1e-3)
