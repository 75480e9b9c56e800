"""Eigenpairs whose vectors are divided over ranks are those of one process."""

import os
import shutil
import tempfile

import torch
import torch.distributed as dist
from ranks import run
from spectra import Products

from dynprune.core import InvalidInputError, Rows
from dynprune.spectral import eigenpairs

SIZE = 211  # shares of 106 and 105, or 71, 71 and 69
CASES = {
    "one vector": {"k": 5, "basis_size": 18},
    "block": {"k": 5, "block": 3, "which": "BE", "basis_size": 24},
    "complete": {"k": 4, "completeness": True},
    "every residual": {"k": 4, "verify": "all", "which": "SA"},
    "exact": {"k": 211},
}


def matrix() -> torch.Tensor:
    values = torch.cat([
        torch.tensor([5.0, 5.0]),
        4.0 * 0.85 ** torch.arange(100.0),
        -3.0 * 0.8 ** torch.arange(SIZE - 102.0),
    ]).double()
    make = torch.Generator().manual_seed(3)
    square = torch.randn(SIZE, SIZE, generator=make, dtype=torch.float64)
    Q = torch.linalg.qr(square).Q
    full = (Q * values) @ Q.T
    return 0.5 * (full + full.T)


def whole() -> Products:
    A = matrix()
    return Products(SIZE, lambda block: A @ block)


def divided(dies_at: float = float("inf")) -> Products:
    A, rows = matrix(), Rows.sharded(SIZE, dist.group.WORLD)
    op = Products(SIZE, None, rows=rows)

    def product(block):
        if op.count > dies_at:
            raise KeyboardInterrupt
        return rows.own(A) @ rows.gather(block)

    op.product = product
    return op


def numbers(pairs, rows):
    vectors = rows.gather(pairs.vectors)
    return {
        "values": pairs.values.tolist(),
        "vectors": vectors.tolist(),
        "residual_norms": pairs.residual_norms.tolist(),
        "matvecs": pairs.matvecs,
        "complete": pairs.complete,
    }


def killed(folder, rank, *, late):
    """Kill a run after some products, and if ``late`` lose the last state of rank 1."""
    path = f"{folder}/state"
    options = {"tol": 1e-8, "checkpoint": path, "checkpoint_every": 4}
    op = divided(dies_at=15)
    try:
        eigenpairs(op, 5, **options)
    except KeyboardInterrupt:
        stopped = True
    dist.barrier()
    if late and rank == 1:
        files = [f"{path}.{op.rows.start}.{turn}" for turn in (0, 1)]
        os.unlink(max(files, key=os.path.getmtime))
    dist.barrier()
    op = divided()
    found = eigenpairs(op, 5, **options)
    refused = ""
    try:
        eigenpairs(divided(), 5 + rank, **options)
    except InvalidInputError as error:
        refused = str(error)
    return numbers(found, op.rows) | {
        "stopped": stopped,
        "products": op.matvecs,
        "refused": refused,
    }


def job(rank, count):
    op, found = divided(), {}
    for name, options in CASES.items():
        pairs = eigenpairs(op, **{"tol": 1e-8} | options)
        found[name] = numbers(pairs, op.rows)
    U = torch.linalg.eigh(matrix()).eigenvectors[:, -2:]
    pairs = eigenpairs(op, 3, tol=1e-8, outside=op.rows.own(U))
    found["outside"] = numbers(pairs, op.rows)
    if count == 2:
        found["whole run"] = numbers(eigenpairs(op, 5, tol=1e-8), op.rows)
        for late in (False, True):
            names = [tempfile.mkdtemp() if rank == 0 else ""]
            dist.broadcast_object_list(names)
            found[f"killed, late {late}"] = killed(names[0], rank, late=late)
            dist.barrier()
            if rank == 0:
                shutil.rmtree(names[0])
    return found


def test_ranks_find_what_one_process_finds(tmp_path):
    A, op = matrix(), whole()
    alone = {
        name: eigenpairs(op, **{"tol": 1e-8} | options)
        for name, options in CASES.items()
    }
    U = torch.linalg.eigh(A).eigenvectors[:, -2:]
    alone["outside"] = eigenpairs(op, 3, tol=1e-8, outside=U)
    for ranks in run(tmp_path, (job, 2), (job, 3)):
        for name, pairs in alone.items():
            found = ranks[0][name]
            assert all(other[name] == found for other in ranks), name
            values = torch.tensor(found["values"], dtype=torch.float64)
            vectors = torch.tensor(found["vectors"], dtype=torch.float64)
            residuals = (A @ vectors - vectors * values).norm(dim=0)
            assert float(residuals.max()) <= 1e-8 * 5.0 + 1e-13, name
            # both are within their residuals of eigenvalues of the same rank
            assert torch.allclose(values, pairs.values, rtol=0.0, atol=2e-7), name
            assert found["complete"] == pairs.complete, name
            # rounding moves the last steps at most
            assert abs(found["matvecs"] - pairs.matvecs) <= 3, name
        if len(ranks) == 2:
            _check_killed(ranks)


def _check_killed(ranks):
    for rank in ranks:
        once = rank["whole run"]
        for late in (False, True):
            found = rank[f"killed, late {late}"]
            assert found["stopped"]
            assert {key: found[key] for key in once} == once  # to the bit
        lost = rank["killed, late True"]["products"]
        assert lost == rank["killed, late False"]["products"] + 4
    assert "other ranks cannot be used" in ranks[0]["killed, late True"]["refused"]
    assert "k=5 there, 6 here" in ranks[1]["killed, late True"]["refused"]
