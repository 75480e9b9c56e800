"""The block Krylov space of a set of probes, and what A is on it."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynprune.core import track
from dynprune.operators import AbstractOperator
from dynprune.spectral._basis import Complement
from dynprune.spectral._recursion import Recursion

_ROUNDING = 10


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class BlockKrylov:
    """Hold the projection of A on a block Krylov space, small, in float64, on the CPU.

    With V an orthonormal basis, F the next block and b the probes, A V = V T + F B E',
    E picking the last block of V, and the probes are V[:, :b₁] C.

    Args:
        projection: T = V'AV, shape ``(n, n)``.
        probes: C, shape ``(b₁, b)``.
        coupling: B, shape ``(b', b_last)``; no rows if the space is invariant.
        ends: Dimension of the space after each step; the last is n.
        noise: What rounding of products does to T: the larger of 10 eps times the
            largest product, and of the asymmetry that was found.
    """

    projection: Tensor
    probes: Tensor
    coupling: Tensor
    ends: tuple[int, ...]
    noise: float


def block_krylov(
    op: AbstractOperator,
    probes: Tensor,
    steps: int,
    *,
    away: Tensor,
    norm: float = 0.0,
    progress: bool = False,
) -> BlockKrylov:
    """Project A on the block Krylov space of the probes, one ``op @ V`` a step.

    Args:
        op: A.
        probes: Shape ``(held, b)``, orthogonal to ``away``.
        steps: Products with a block of b at most; fewer if the space is invariant.
        away: Orthonormal U, shape ``(held, o)``: A means (I − UU')A(I − UU').
        norm: |A|, as far as it is known: the complement of U may hold rounding only.
        progress: Draw a bar.

    Returns:
        The projection.

    Raises:
        InvalidInputError: If a product is not finite.
        AssumptionError: If the operator is not symmetric.

    Cost:
        b matvecs a step, all in one call; b·steps P-vectors of memory; 4 P (b·steps)²
        operations of full reorthogonalisation.
    """  # noqa: DOC502 - raised by the recursion
    rows, width = op.rows, probes.shape[1]
    room = min(steps * width, op.size - away.shape[1])
    outside = Complement(rows, (away.T.contiguous(),))
    run = Recursion(op, room, outside, basis_size=room, width=width, norm=norm)
    run.begin(probes)
    first = rows.inner(run.F.T, probes, dtype=torch.float64).cpu()
    ends: list[int] = []
    for _ in track(range(steps), label="spectral.krylov", show=progress):
        run.extend()
        run.absorb(run.product())
        ends.append(run.used)
        if run.used == room or not run.F.shape[0]:
            break
    used = run.used
    return BlockKrylov(
        projection=torch.from_numpy(run.T[:used, :used].copy()),
        probes=first,
        coupling=torch.from_numpy(run.K[:, used - run.new :].copy()),
        ends=tuple(ends),
        noise=max(_ROUNDING * run.eps * run.norm, run.skew),
    )
