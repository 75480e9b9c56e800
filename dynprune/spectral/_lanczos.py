"""Block Lanczos with thick restart and full reorthogonalisation."""

import itertools
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from dynprune.core import AssumptionError, InvalidInputError, generator, track
from dynprune.operators import AbstractOperator

Which = Literal["LA", "SA", "BE", "LM"]


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Krylov:
    """Ritz vectors of a Krylov space, and whether their estimates met the tolerance.

    Args:
        vectors: Orthonormal, shape ``(P, k)``, the best first.
        scale: Largest |Ritz value| seen.
        converged: Whether all k residual estimates met the tolerance.
    """

    vectors: Tensor
    scale: float
    converged: bool


def wanted(values: Tensor, which: Which) -> Tensor:
    """Return the order of Ritz values, the most wanted first.

    Args:
        values: Shape ``(n,)``, ascending.
        which: Largest, smallest, both ends (largest first), or largest in magnitude.

    Returns:
        A permutation of the indices.
    """
    up = torch.arange(len(values), device=values.device)
    if which == "LA":
        return up.flip(0)
    if which == "SA":
        return up
    if which == "LM":
        return torch.argsort(values.abs(), descending=True, stable=True)
    half = (len(values) + 1) // 2
    mixed = torch.empty_like(up)
    mixed[0::2] = up.flip(0)[:half]
    mixed[1::2] = up[: len(values) - half]
    return mixed


def random_block(op: AbstractOperator, columns: int, *, seed: int) -> Tensor:
    """Return a Gaussian block that depends on the seed only.

    Args:
        op: Gives size, dtype and device.
        columns: How many.
        seed: The seed.

    Returns:
        Shape ``(P, columns)``.
    """
    make = generator(seed)
    block = torch.randn(op.size, columns, generator=make, dtype=torch.float64)
    return block.to(device=op.device, dtype=op.dtype)


def lanczos(
    op: AbstractOperator,
    k: int,
    *,
    which: Which,
    tol: float,
    max_matvecs: float,
    start: Tensor,
    outside: Tensor,
    basis_size: int,
    seed: int,
    progress: bool = False,
) -> Krylov:
    """Find extreme Ritz vectors of A on the complement of ``outside``.

    With V orthonormal, T = V'AV and F the next block, A V = V T + F B E' holds, E
    picking the last block of V, so that the residual of a Ritz pair (ρ, V y) is
    ‖B E'y‖. A full basis is restarted with its most wanted Ritz vectors; converged
    ones are among them, so they stay in the basis and are locked.

    Args:
        op: A.
        k: How many pairs.
        which: Which end.
        tol: Stop when every residual is below ``tol`` times the largest |Ritz value|.
        max_matvecs: Stop before this number of products.
        start: First block, shape ``(P, b)``; made orthonormal here.
        outside: Orthonormal columns to stay orthogonal to, shape ``(P, o)``.
        basis_size: Vectors at a restart, more than ``k`` plus two blocks.
        seed: Of blocks that are drawn when an invariant subspace is exhausted.
        progress: Draw a bar.

    Returns:
        The most wanted k Ritz vectors.

    Raises:
        InvalidInputError: If a product is not finite.
        AssumptionError: If the operator is not symmetric.
    """  # noqa: DOC502 - raised by the steps below
    block, room = start.shape[1], op.size - outside.shape[1]
    eps = torch.finfo(op.dtype).eps
    V = start.new_zeros((op.size, basis_size + block))
    T = torch.zeros((V.shape[1],) * 2, dtype=torch.float64, device=op.device)
    F, _ = _new_directions(start, V[:, :0], outside, floor=_floor(start))
    used, scale, count = 0, 0.0, 0
    for turn in track(itertools.count(), label="spectral.lanczos", show=progress):
        if F.shape[1] == 0:  # an invariant subspace: go on from a random block
            fresh = random_block(op, min(block, room - used), seed=seed + turn)
            F, _ = _new_directions(fresh, V[:, :used], outside, floor=_floor(fresh))
        before, used = used, used + F.shape[1]
        V[:, before:used] = F
        W = finite(op @ F)
        count += F.shape[1]
        W = W - outside @ (outside.T @ W)
        scale = max(scale, float(W.norm(dim=0).max()))
        C = V[:, :used].T @ W
        _extend(T, C.double(), before, used, floor=eps**0.5 * scale)
        W = W - V[:, :used] @ C
        F, B = _new_directions(W, V[:, :used], outside, floor=100 * eps * scale)
        theta, Y = torch.linalg.eigh(T[:used, :used])
        order = wanted(theta, which)
        scale = max(scale, float(theta.abs().max()))
        estimates = (B.double() @ Y[before:used]).norm(dim=0)[order[:k]]
        done = used >= k and bool((estimates <= tol * scale).all())
        done = done or used == room
        if done or count + min(block, room - used) > max_matvecs:
            break
        if used + block > basis_size:
            used = min(k + (basis_size - k) // 2, basis_size - 2 * block)
            kept = order[:used]
            V[:, :used] = V[:, : len(theta)] @ Y[:, kept].to(op.dtype)
            T.zero_()
            T[:used, :used] = torch.diag(theta[kept])
    best = V[:, :used] @ Y[:, order[:k]].to(op.dtype)
    return Krylov(vectors=best, scale=scale, converged=done)


def _extend(T: Tensor, C: Tensor, before: int, used: int, *, floor: float) -> None:
    # T gets the columns C = V'AF; its new corner must be symmetric to rounding.
    corner = C[before:]
    skew = float((corner - corner.T).abs().max())
    if skew > floor:
        raise AssumptionError(
            f"The operator is not symmetric: |x'Ay - y'Ax| reaches {skew:.2g}, beyond "
            f"rounding ({floor:.2g}). Pass a symmetric operator."
        )
    T[:before, before:used] = C[:before]
    T[before:used, :before] = C[:before].T
    T[before:used, before:used] = 0.5 * (corner + corner.T)


def _new_directions(
    W: Tensor, V: Tensor, outside: Tensor, *, floor: float
) -> tuple[Tensor, Tensor]:
    """Return F orthonormal and orthogonal to V and ``outside``, and B: W ≈ F B.

    Directions that carry less than ``floor`` are dropped: they are rounding.
    """
    W = _project(W, V, outside)
    Q, R = torch.linalg.qr(W)
    X, sigma, _ = torch.linalg.svd(R)
    kept = sigma > floor
    if not bool(kept.any()):
        return W[:, :0], R[:0]
    F = _project(Q @ X[:, kept], V, outside)
    F, _ = torch.linalg.qr(_project(F, V, outside))
    return F, F.T @ W


def _project(W: Tensor, V: Tensor, outside: Tensor) -> Tensor:
    W = W - outside @ (outside.T @ W)
    return W - V @ (V.T @ W)


def _floor(block: Tensor) -> float:
    return 100 * torch.finfo(block.dtype).eps * float(block.norm(dim=0).max())


def finite(W: Tensor) -> Tensor:
    """Return products as they are.

    Args:
        W: Any tensor.

    Returns:
        The same.

    Raises:
        InvalidInputError: If an entry is NaN or infinite.
    """
    if not bool(torch.isfinite(W).all()):
        raise InvalidInputError(
            "A product with the operator is not finite. Check the state it was made "
            "at, e.g. that the loss is finite there."
        )
    return W
