"""The block Krylov space of a set of probes, and what A is on it."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynprune.core import AssumptionError, track
from dynprune.operators import AbstractOperator
from dynprune.spectral._columns import dots
from dynprune.spectral._lanczos import finite
from dynprune.spectral._orthonormal import orthonormal

_ROUNDING = 10
_DOUBLE = 1e-10  # eps of float64 is below, of all others above


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
    progress: bool = False,
) -> BlockKrylov:
    """Project A on the block Krylov space of the probes, one ``op @ V`` a step.

    Args:
        op: A.
        probes: Shape ``(held, b)``, orthogonal to ``away``.
        steps: Products with a block of b at most; fewer if the space is invariant.
        away: Orthonormal U, shape ``(held, o)``: A means (I − UU')A(I − UU').
        progress: Draw a bar.

    Returns:
        The projection.

    Raises:
        InvalidInputError: If a product is not finite.
        AssumptionError: If the operator is not symmetric.

    Cost:
        b matvecs a step, all in one call; b·steps P-vectors of memory; 4 P (b·steps)²
        operations of full reorthogonalisation.
    """  # noqa: DOC502 - raised by finite and refuse_skew
    rows, width = op.rows, probes.shape[1]
    eps = torch.finfo(op.dtype).eps
    room = min(steps * width, op.size - away.shape[1])
    V = probes.new_zeros((rows.held, room))
    T = torch.zeros((room, room), dtype=torch.float64)
    F = orthonormal(rows, probes)[:, :room]
    first = rows.inner(F, probes, dtype=torch.float64).cpu()
    B = T.new_zeros((F.shape[1], 0))
    ends, scale, skew = [0], 0.0, 0.0
    for _ in track(range(steps), label="spectral.krylov", show=progress):
        before, used = ends[-1], min(ends[-1] + F.shape[1], room)
        F, B = F[:, : used - before], B[: used - before]
        V[:, before:used] = F
        W = finite(op @ F)
        W = W - away @ rows.inner(away, W)
        scale = max(scale, float(dots(rows, W, W).max().sqrt()))
        C = rows.inner(V[:, :used], W)
        W = W - V[:, :used] @ C
        skew = max(skew, _extend(T, C.double().cpu(), B, before, used))
        refuse_skew(skew, scale, eps)
        ends.append(used)
        G, B = _next_block(op, W, V[:, :used], away, floor=100 * eps * scale)
        if used == room or G.shape[1] == 0:
            break
        F = G
    used = ends[-1]
    return BlockKrylov(
        projection=T[:used, :used],
        probes=first,
        coupling=B,
        ends=tuple(ends[1:]),
        noise=max(_ROUNDING * eps * scale, skew),
    )


def _next_block(
    op: AbstractOperator, W: Tensor, V: Tensor, away: Tensor, *, floor: float
) -> tuple[Tensor, Tensor]:
    # F orthonormal and orthogonal to V, with W ≈ F B; rounding is dropped.
    rows = op.rows

    def outside(X: Tensor) -> Tensor:
        X = X - away @ rows.inner(away, X)
        return X - V @ rows.inner(V, X)

    W = outside(W)
    F = orthonormal(rows, outside(orthonormal(rows, W, floor=floor)))
    return F, rows.inner(F, W, dtype=torch.float64).cpu()


def refuse_skew(skew: float, scale: float, eps: float) -> None:
    """Refuse an operator that is less symmetric than products with rounding are.

    Args:
        skew: Largest |x'Ay - y'Ax| seen of unit vectors.
        scale: Largest |Ax| seen.
        eps: Of the operator's dtype; single precision may hold bfloat16 products.

    Raises:
        AssumptionError: If it is not symmetric.
    """
    slack = eps ** (0.25 if eps > _DOUBLE else 0.5) * scale
    if skew > slack:
        raise AssumptionError(
            f"The operator is not symmetric: |x'Ay - y'Ax| reaches {skew:.2g}, beyond "
            f"rounding ({slack:.2g}). Pass a symmetric operator."
        )


def _extend(T: Tensor, C: Tensor, B: Tensor, before: int, used: int) -> float:
    # T gets the columns C = V'AF; return their asymmetry. Of a symmetric A, F'AV is B
    # on the block before F and zero on older ones.
    expected = torch.zeros_like(C[:before])
    expected[before - B.shape[1] :] = B.T
    corner = C[before:]
    gaps = torch.cat([(C[:before] - expected).flatten(), (corner - corner.T).flatten()])
    T[:before, before:used] = C[:before]
    T[before:used, :before] = C[:before].T
    T[before:used, before:used] = 0.5 * (corner + corner.T)
    return float(gaps.abs().max())
