"""The iteration: its recurrence, its restarts, what it costs, and its verification."""

import collections
import weakref

import numpy as np
import pytest
import torch
from spectra import Products, diagonal_operator
from torch.utils._python_dispatch import TorchDispatchMode

from dynprune.core import AssumptionError, Rows
from dynprune.operators import MatrixOperator
from dynprune.spectral import eigenpairs
from dynprune.spectral._basis import Complement, directions, project
from dynprune.spectral._lanczos import lanczos
from dynprune.spectral._recursion import random_block

ROWS = Rows.whole(500)


def eps(dtype) -> float:
    return torch.finfo(dtype).eps


def rotated(values, *, dtype=torch.float64, seed: int = 0) -> MatrixOperator:
    values = torch.as_tensor(values, dtype=torch.float64)
    make = torch.Generator().manual_seed(seed)
    square = torch.randn(len(values), len(values), generator=make, dtype=torch.float64)
    Q = torch.linalg.qr(square).Q
    matrix = ((Q * values) @ Q.T).to(dtype)
    return MatrixOperator(0.5 * (matrix + matrix.T))


def spread(size: int = 300) -> torch.Tensor:
    up = 5.0 * 0.8 ** torch.arange(size // 2, dtype=torch.float64)
    return torch.cat([up, -0.7 * up])


def ran(op, k, *, block=1, basis_size, tol=1e-8, which="LA", outside=()):
    return lanczos(
        op,
        k,
        which=which,
        tol=tol,
        max_matvecs=1000,
        start=random_block(op, block, seed=0),
        outside=Complement(op.rows, outside),
        basis_size=basis_size,
        seed=1,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("block", [1, 3])
@pytest.mark.parametrize("basis_size", [14, 150], ids=["restarts", "none"])
@pytest.mark.parametrize("which", ["LA", "BE"])
def test_the_recurrence_holds_to_rounding(dtype, block, basis_size, which):
    op = rotated(spread(200), dtype=dtype)
    tol = 1e-8 if dtype == torch.float64 else 1e-4
    found = ran(op, 4, block=block, basis_size=basis_size, tol=tol, which=which)
    U, F = found.vectors.double(), found.beyond.double()
    A = op.dense().double()
    off = A @ U - U * found.values - F @ found.coupling
    both = torch.cat([U, F], 1)
    skew = both.T @ both - torch.eye(both.shape[1], dtype=torch.float64)
    # each of at most 60 steps rounds a product of norm 5 with a few eps
    assert float(off.norm()) < 60 * 5.0 * eps(dtype)
    assert float(skew.norm()) < 60 * eps(dtype)
    assert found.converged
    assert float(found.coupling.norm(dim=0).max()) <= tol * found.scale


@pytest.mark.parametrize("block", [1, 2])
def test_restarts_agree_with_one_long_run(block):
    op = rotated(spread(200))
    one, two = (
        ran(op, 4, block=block, basis_size=size, tol=1e-10).vectors
        for size in (12, 150)
    )
    assert (1 - torch.linalg.svdvals(one.T @ two)).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_weak_directions_of_a_block_are_kept_and_rounding_is_not(dtype):
    make = torch.Generator().manual_seed(2)
    Q = torch.linalg.qr(torch.randn(500, 8, generator=make, dtype=torch.float64)).Q
    sizes = torch.tensor([1.0, 1e-2, 1e4 * eps(dtype), 0.0], dtype=torch.float64)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=make, dtype=torch.float64)).Q
    V, W = Q[:, :4].T.to(dtype), ((Q[:, 4:] * sizes) @ turn.T).T.to(dtype)
    W, _, gram = project(ROWS, (V,), W.contiguous())
    F, B = directions(ROWS, (V,), W, gram, floor=100 * eps(dtype))
    assert F.shape[0] == B.shape[0] == 3
    both = torch.cat([V, F]).double()
    assert (both @ both.T - torch.eye(7)).abs().max() < 20 * eps(dtype)
    lost = W.double() - torch.from_numpy(B).T @ F.double()
    assert float(lost.norm()) < 100 * eps(dtype)


class Peak(TorchDispatchMode):
    """Most numbers that live tensors made under it held at one time."""

    def __init__(self):
        TorchDispatchMode.__init__(self)
        self.held = self.peak = 0
        self.users = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.numel():
                storage = tensor.untyped_storage()
                key, size = storage.data_ptr(), storage.nbytes()
                self.held += size if not self.users[key] else 0
                self.users[key] += 1
                self.peak = max(self.peak, self.held)
                weakref.finalize(tensor, self._gone, key, size)
        return result

    def _gone(self, key, size):
        self.users[key] -= 1
        self.held -= size if not self.users[key] else 0


@pytest.mark.parametrize(
    ("dtype", "k", "most", "products"),
    [(torch.float32, 50, 110, 150), (torch.float64, 10, 34, 40)],
    ids=["50", "10"],
)
def test_many_pairs_fit_into_their_memory_and_products(dtype, k, most, products):
    size = 100_000
    values = 30 / torch.arange(1, size + 1, dtype=dtype)
    op = diagonal_operator(values)
    with Peak() as peak:
        pairs = eigenpairs(op, k, tol=1e-4)
    vectors = peak.peak / (size * values.element_size())
    assert k < vectors < most
    assert pairs.matvecs == op.matvecs <= products
    truth = values[:k].double()
    assert (pairs.enclosures[:, 0] <= truth).all()
    assert (truth <= pairs.enclosures[:, 1]).all()


@pytest.mark.parametrize("size", [40, 500])
@pytest.mark.parametrize("which", ["LA", "BE"])
def test_a_dense_spectrum_costs_p_products_at_most(size, which):
    op = rotated(torch.linspace(0.0, 1.0, size))
    pairs = eigenpairs(op, 8, tol=1e-13, which=which)
    assert pairs.matvecs <= size + 1
    assert pairs.complete is True or pairs.matvecs < size


def test_both_ends_in_one_run_are_cheaper_than_in_two():
    op = rotated(spread())
    one = eigenpairs(op, 8, which="BE", tol=1e-6)
    two = [eigenpairs(op, 4, which=which, tol=1e-6) for which in ("LA", "SA")]
    assert one.matvecs < two[0].matvecs + two[1].matvecs
    values = torch.cat([pairs.values for pairs in two])
    assert torch.allclose(one.values, values, rtol=0.0, atol=2e-6 * 5)


@pytest.mark.parametrize(("k", "basis"), [(10, 26), (20, 45)], ids=str)
def test_it_needs_no_more_products_than_arpack_in_equal_memory(k, basis):
    from scipy.sparse.linalg import eigsh

    noise = 0.3 * torch.randn(570, generator=torch.Generator().manual_seed(1))
    values = torch.cat([8 * 0.8 ** torch.arange(30.0), noise]).double()
    ours = theirs = 0.0
    for seed in range(3):
        op = rotated(values)
        start = random_block(op, 1, seed=seed)[:, 0].numpy()
        # ARPACK's tolerance is relative to each value: ours is to the largest
        kth = float(values.sort(descending=True).values[k - 1])
        eigsh(op.to_scipy(), k, which="LA", tol=1e-4 * 8 / kth, ncv=basis, v0=start)
        theirs += op.matvecs
        pairs = eigenpairs(op, k, tol=1e-4, basis_size=basis, seed=seed)
        ours += pairs.matvecs
    assert ours <= theirs + 3  # a verification each


def test_the_verification_sees_an_operator_that_errs_once():
    A = rotated(spread(400), dtype=torch.float32).dense()
    make = torch.Generator().manual_seed(0)
    fault = torch.randn(400, 1, generator=make) / 20.0  # of norm 1
    kinds = set()
    for when in range(3, 20):
        op = Products(400, None, torch.float32)

        def product(block, op=op, when=when):
            return A @ block + (0.01 * fault if op.count == when else 0.0)

        op.product = product
        pairs = eigenpairs(op, 5, tol=1e-4, throw=False)
        true = (A @ pairs.vectors).double() - pairs.vectors.double() * pairs.values
        sizes = true.norm(dim=0)
        rounding = 30 * eps(torch.float32) * 5.0
        assert (sizes <= pairs.residual_norms + rounding).all()
        # marks are of true residuals once the verification has failed
        assert (sizes[pairs.converged] <= 1e-4 * 5.0 + rounding).all()
        kinds.add(bool(pairs.converged.all()))
    assert False in kinds


def test_in_double_precision_an_error_is_a_lack_of_symmetry():
    A = rotated(spread(400)).dense()
    op = Products(400, None)
    bad = torch.ones(400, 1, dtype=torch.float64)
    op.product = lambda block: A @ block + (1e-3 * bad if op.count == 9 else 0.0)
    with pytest.raises(AssumptionError, match="not symmetric"):
        eigenpairs(op, 5, tol=1e-4)


def test_one_product_verifies_what_k_products_do():
    op = rotated(spread())
    one = eigenpairs(op, 6, tol=1e-5)
    every = eigenpairs(op, 6, tol=1e-5, verify="all")
    assert every.matvecs == one.matvecs + 5
    assert torch.allclose(one.values, every.values, rtol=0.0, atol=1e-13)
    assert torch.allclose(
        one.residual_norms, every.residual_norms, rtol=0.0, atol=300 * 2.3e-16 * 5
    )


def test_large_eigenproblems_of_t_are_solved_at_few_steps(monkeypatch):
    sizes = []
    true = np.linalg.eigh
    monkeypatch.setattr(np.linalg, "eigh", lambda T: sizes.append(len(T)) or true(T))
    pairs = eigenpairs(rotated(torch.linspace(0.0, 1.0, 900) ** 4), 4, tol=1e-8)
    assert pairs.matvecs > 100
    assert sum(size > 64 for size in sizes) < 0.4 * (pairs.matvecs - 64)
    assert max(sizes) < pairs.matvecs


@pytest.mark.parametrize("seed", range(20))
def test_a_low_rank_hessian_in_single_precision_converges(seed):
    """What the recursion drops as rounding must be less than what tol allows."""
    make = torch.Generator().manual_seed(seed)
    X = torch.randn(3, 50, generator=make)
    found = eigenpairs(MatrixOperator(X.T @ X), 3)
    assert found.converged.all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("rank", [1, 3, 10])
@pytest.mark.parametrize("which", ["LA", "LM", "BE"])
def test_a_complement_that_holds_rounding_only_is_symmetric(dtype, rank, which):
    make = torch.Generator().manual_seed(rank)
    b = torch.randn(200, rank, generator=make, dtype=torch.float64).to(dtype)
    op = MatrixOperator(b @ b.T)
    found = eigenpairs(op, 2, outside=torch.linalg.qr(b).Q, which=which)
    assert float(found.values.abs().max()) < 300 * eps(dtype) * float(b.norm()) ** 2


@pytest.mark.parametrize(("size", "block"), [(60, 8), (100, 7), (64, 8)], ids=str)
def test_a_block_that_does_not_divide_the_dimension_takes_no_restart(size, block):
    make = torch.Generator().manual_seed(0)
    square = torch.randn(size, size, generator=make, dtype=torch.float64)
    found = eigenpairs(MatrixOperator(square + square.T), size // 3, block=block)
    assert found.matvecs <= size + 1
