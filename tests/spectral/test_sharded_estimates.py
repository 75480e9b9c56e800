"""Estimates with sharded vectors have the numbers of one process."""

import pytest
import torch
import torch.distributed as dist
from ranks import run
from spectra import Products, diagonal_operator, like_a_network

from dynprune.core import Rows
from dynprune.spectral import (
    density,
    diagonal,
    effective_dimension,
    frobenius_norm,
    log_determinant,
    trace,
)

SIZE = 101  # in unequal shares


def estimates(op) -> dict[str, list[float]]:
    smooth = density(op, probes=3, steps=6, width=0.05, locked=2)
    entries = diagonal(op, matvecs=12)
    exact = diagonal(op, matvecs=SIZE)
    scalars = (
        trace(op, matvecs=12),
        trace(op, matvecs=12, method="hutch++"),
        trace(op, matvecs=12, method="hutchinson"),
        trace(op, matvecs=SIZE),
        frobenius_norm(op, matvecs=12),
        frobenius_norm(op, matvecs=SIZE),
        log_determinant(op, 0.1, probes=2, steps=5),
        effective_dimension(op, 0.1, probes=2, steps=5),
    )
    return {
        "density": (smooth.upper - smooth.lower + smooth.values).tolist(),
        "scalars": [one.value for one in scalars],
        "errors": [one.standard_error for one in scalars],
        "entries": entries.values.tolist(),
        "entry errors": entries.standard_error.tolist(),
        "exact": exact.values.tolist(),
    }


def job(rank: int, count: int) -> dict[str, list[float]]:
    rows = Rows.sharded(SIZE, dist.group.WORLD)
    own = rows.own(like_a_network(SIZE))
    return estimates(Products(SIZE, lambda block: own[:, None] * block, rows=rows))


def test_shards_change_nothing_but_rounding(tmp_path):
    alone = estimates(diagonal_operator(like_a_network(SIZE)))
    (ranks,) = run(tmp_path, (job, 2))
    for name in ("density", "scalars", "errors"):
        assert ranks[0][name] == ranks[1][name]
        assert ranks[0][name] == pytest.approx(alone[name], rel=1e-6, abs=1e-9), name
    for name in ("entries", "entry errors", "exact"):
        joined = ranks[0][name] + ranks[1][name]
        assert joined == pytest.approx(alone[name], rel=1e-6, abs=1e-9), name
    assert torch.allclose(
        torch.tensor(alone["exact"]).double(), like_a_network(SIZE), atol=1e-7
    )
