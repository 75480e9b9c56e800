"""A killed iteration goes on from its file to the same bits."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from spectra import Products

from dynprune.core import InvalidInputError
from dynprune.spectral import Eigenpairs, eigenpairs

SIZE = 400


class KilledError(Exception):
    """The process is gone."""


def matrix(seed: int = 0) -> torch.Tensor:
    """A spectrum of both signs with a triple eigenvalue, turned."""
    values = torch.cat([
        torch.tensor([5.0, 5.0, 5.0]),
        4.0 * 0.9 ** torch.arange(200.0),
        -3.0 * 0.85 ** torch.arange(SIZE - 203.0),
    ]).double()
    make = torch.Generator().manual_seed(seed)
    square = torch.randn(SIZE, SIZE, generator=make, dtype=torch.float64)
    Q = torch.linalg.qr(square).Q
    full = (Q * values) @ Q.T
    return 0.5 * (full + full.T)


def operator(A: torch.Tensor, *, dies_at: float = float("inf")) -> Products:
    op = Products(SIZE, None, A.dtype)

    def product(block):
        if op.count > dies_at:
            raise KilledError
        return A @ block

    op.product = product
    return op


def same(one: Eigenpairs, two: Eigenpairs) -> bool:
    names = ("values", "vectors", "residual_norms", "enclosures", "converged")
    tensors = all(torch.equal(getattr(one, n), getattr(two, n)) for n in names)
    return tensors and (one.complete, one.matvecs) == (two.complete, two.matvecs)


CASES = {
    "plain": {"k": 6},
    "restarts": {"k": 6, "basis_size": 20},
    "block": {"k": 6, "block": 3, "basis_size": 25, "which": "BE"},
    "single": {"k": 4, "tol": 1e-4, "dtype": torch.float32, "basis_size": 16},
    "complete": {"k": 5, "completeness": True, "basis_size": 24},
    "outside": {"k": 3, "which": "SA", "outside": True, "start": True},
}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_with_the_same_bits(case, tmp_path):
    options = {"tol": 1e-8, "checkpoint_every": 7} | CASES[case]
    k, A = options.pop("k"), matrix().to(options.pop("dtype", torch.float64))
    if options.pop("outside", False):
        options["outside"] = torch.eye(SIZE, dtype=A.dtype)[:, :2]
        options["start"] = torch.eye(SIZE, dtype=A.dtype)[:, 5:8]
    whole = eigenpairs(operator(A), k, **options)
    path = tmp_path / "state.safetensors"
    spent = 0.0
    found, lives = None, 0
    while found is None and lives < 50:
        op = operator(A, dies_at=12)
        with contextlib.suppress(KilledError):
            found = eigenpairs(op, k, checkpoint=path, **options)
        spent, lives = spent + op.matvecs, lives + 1
    assert lives > 2
    assert path.exists()
    assert same(found, whole)
    # of 13 to 15 products a life got 7 written or more
    assert spent <= 15 / 7 * whole.matvecs + 15


def test_a_finished_run_is_known(tmp_path):
    A, path = matrix(), tmp_path / "state.safetensors"
    first = eigenpairs(operator(A), 5, checkpoint=path)
    op = operator(A)
    assert same(eigenpairs(op, 5, checkpoint=path), first)
    assert op.matvecs == 2  # the check of the operator, the verification


def test_more_products_may_be_allowed_later(tmp_path):
    A, path = matrix(), tmp_path / "state.safetensors"
    options = {"tol": 1e-8, "checkpoint": path, "checkpoint_every": 1}
    whole = eigenpairs(operator(A), 6, tol=1e-8)
    with pytest.raises(KilledError):
        eigenpairs(operator(A, dies_at=20), 6, max_matvecs=30, **options)
    found = eigenpairs(operator(A), 6, max_matvecs=500, **options)
    assert torch.equal(found.vectors, whole.vectors)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 4}, "k=5 there, 4 here"),
        ({"seed": 3}, "seed=0 there, 3 here"),
        ({"start": torch.ones(SIZE, 1)}, "start=None there"),
        ({"op": matrix(1)}, "checkpoint of another operator: .* off"),
        ({"op": 1.001 * matrix()}, "checkpoint of another operator"),
        ({"op": matrix().float()}, "dtype='float64' there, 'float32' here"),
    ],
    ids=["k", "seed", "start", "operator", "near", "dtype"],
)
def test_the_checkpoint_of_another_run_is_refused(change, message, tmp_path):
    path = tmp_path / "state.safetensors"
    options = {"k": 5, "checkpoint": path, "checkpoint_every": 5}
    with pytest.raises(KilledError):
        eigenpairs(operator(matrix(), dies_at=12), **options)
    A = change.pop("op", matrix())
    with pytest.raises(InvalidInputError, match=message):
        eigenpairs(operator(A), **options | change)


def test_another_file_is_refused(tmp_path):
    path = tmp_path / "pairs.safetensors"
    eigenpairs(operator(matrix()), 2).save(path)
    with pytest.raises(InvalidInputError, match="holds eigenpairs, not an eigenpairs"):
        eigenpairs(operator(matrix()), 2, checkpoint=path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InvalidInputError, match="truncated"):
        eigenpairs(operator(matrix()), 2, checkpoint=path)


SCRIPT = """
    import os, signal, sys
    import torch
    sys.path[:0] = sys.argv[3].split(os.pathsep)
    from test_checkpoint import matrix, operator
    from dynprune.spectral import eigenpairs

    torch.set_num_threads(1)
    op = operator(matrix())
    product = op.product

    def dies(block):
        if op.count > 25:
            os.kill(os.getpid(), signal.SIGKILL)
        return product(block)

    if sys.argv[2] == "dies":
        op.product = dies
    found = eigenpairs(
        op, 6, tol=1e-8, basis_size=20, checkpoint=sys.argv[1], checkpoint_every=4
    )
    found.save(sys.argv[1] + ".pairs")
"""


def test_a_killed_process_is_taken_up_by_another(tmp_path):
    here = os.path.dirname(os.path.abspath(__file__))
    paths = os.pathsep.join([here, os.path.dirname(here)])
    path = tmp_path / "state.safetensors"
    codes = []
    for fate in ("dies", "lives"):
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(SCRIPT), str(path), fate, paths],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=False,
            capture_output=True,
            text=True,
        )
        codes.append(done.returncode)
    assert codes == [-signal.SIGKILL, 0], done.stderr
    whole = eigenpairs(operator(matrix()), 6, tol=1e-8, basis_size=20)
    assert same(Eigenpairs.load(f"{path}.pairs"), whole)
