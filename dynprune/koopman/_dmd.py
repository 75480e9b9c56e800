"""The least-squares operator on snapshot pairs, for a batch of groups at once.

With X = U S V' (rank r) and C = V / S, the operator in the basis U is K = U'Y C. For a
right eigenvector v of K the projected mode is phi = U v, and because Y C = A U
whenever Y = A X, its residual ||Y C v - mu U v|| / ||v|| is
||A phi - mu phi|| / ||phi||, truncated or not. Everything here is small: q x T per
group, or T x T for streamed data.
"""

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from dynprune.koopman._delays import Pairs, delayed

Method = Literal["dmd", "self-adjoint"]


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Fitted:
    """A batch of B fits in reduced coordinates.

    Args:
        operator: K, shape ``(B, r, r)``.
        start: U'x of the newest delay vector, shape ``(B, r)``.
        drift: What each application of the map adds, shape ``(B, r)``.
        weights: C, shape ``(B, n, r)``.
        basis: Newest block of U = X C, in the factor's rows, ``(B, q, r)``.
        image: Newest block of Y C, likewise.
        eigenvalues: mu, complex, shape ``(B, r)``, largest modulus first.
        vectors: Right eigenvectors v, shape ``(B, r, r)``.
        kept: False where an entry only pads a group of smaller rank, ``(B, r)``.
        residual_norms: Shape ``(B, r)``.
        residual_floors: What rounding alone can put into them, ``(B, r)``.
        standard_errors: Of the eigenvalues, ``(B, r)``.
        amplitudes: b, complex, ``(B, r)``.
        mode_norms: ||U v||, ``(B, r)``.
        norms: ||Y C||_2, shape ``(B,)``.
        defect: R with ||R [s; 1]|| = ||drift outside U + (Y C - U K) s||, shape
            ``(B, r + 1, r + 1)`` at most, where asked for.
        outside: Norm of the newest delay vector outside U, ``(B,)``.
        singular_values: Of X, all of them, ``(B, min(q, n))``.
    """

    operator: Tensor
    start: Tensor
    drift: Tensor
    weights: Tensor
    basis: Tensor
    image: Tensor
    eigenvalues: Tensor
    vectors: Tensor
    kept: Tensor
    residual_norms: Tensor
    residual_floors: Tensor
    standard_errors: Tensor
    amplitudes: Tensor
    mode_norms: Tensor
    norms: Tensor
    defect: Tensor
    outside: Tensor
    singular_values: Tensor


def svd(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin singular value decomposition of a batch; one row is exact.

    Args:
        X: Shape ``(B, q, n)``.

    Returns:
        U, the singular values descending, and V'.
    """
    if X.shape[1] > 1:
        U, values, Vh = torch.linalg.svd(X, full_matrices=False)
        return U, values, Vh
    norms = torch.linalg.vector_norm(X, dim=2)
    safe = torch.where(norms > 0, norms, torch.ones_like(norms))
    return torch.ones_like(X[..., :1]), norms, X / safe[..., None]


def solve_pairs(
    factor: Tensor,
    built: Pairs,
    *,
    centring: str,
    method: str,
    rank: int | None,
    rtol: float,
    dtype_eps: float,
    gram_eps: float,
) -> Fitted:
    """Fit a batch of groups.

    Args:
        factor: Z or a factor of it, shape ``(B, q, T)``, float64, CPU.
        built: The pairs.
        centring: As the pairs'.
        method: ``dmd`` or ``self-adjoint``.
        rank: Most singular values kept, or None.
        rtol: Singular values below this times the largest are dropped.
        dtype_eps: Relative rounding of the stored snapshots.
        gram_eps: Relative error of norms in the factor; 0 for an exact one.

    Returns:
        The fits.
    """
    data = delayed(factor, centring, built.past.shape[0])
    X, Y, newest, moved = data.past, data.future, data.last, data.drift
    U, values, Vh = svd(X)
    keep = (values > rtol * values[:, :1]) & (values > 0)
    if rank is not None:
        keep[:, rank:] = False
    r = max(1, int(keep.sum(1).max()))
    keep, U, sigma, V = keep[:, :r], U[..., :r], values[:, :r], Vh[:, :r].mT
    inverse = torch.where(keep, 1.0 / torch.where(keep, sigma, 1.0), 0.0)
    U, V = U * keep[:, None], V * keep[:, None]
    C = V * inverse[:, None]
    YC = Y @ C
    K = U.mT @ YC
    if method == "self-adjoint":
        K = _symmetric(U.mT @ Y @ V, torch.where(keep, sigma, 0.0))
    start, moving = _apply(U.mT, newest), _apply(U.mT, moved)
    mu, v, kept = _eigen(K, keep, method)
    gap = YC.to(v.dtype) @ v - mu[:, None] * (U.to(v.dtype) @ v)
    norms = torch.linalg.vector_norm(U.to(v.dtype) @ v, dim=1)
    residuals = torch.linalg.vector_norm(gap, dim=1) / norms.clamp(min=1e-300)
    left = _inverse(v)
    drift = start if centring == "difference" else moving
    spread = C.to(v.dtype) @ v
    floors = _floors(factor, built, data.size, spread, mu, dtype_eps, gram_eps)
    b = _apply(left, start.to(v.dtype))
    if centring == "affine":
        b = b - _apply(left, moving.to(v.dtype)) / (1.0 - mu)
    single = factor.shape[0] == 1
    return Fitted(
        operator=K,
        start=start,
        drift=drift,
        weights=C,
        basis=U[:, -factor.shape[1] :],
        image=YC[:, -factor.shape[1] :],
        eigenvalues=mu,
        vectors=v,
        kept=kept,
        residual_norms=residuals,
        residual_floors=floors,
        standard_errors=_jackknife(
            U.mT @ Y, K, V, torch.where(keep, sigma, 0.0), C, v, left, centring, method
        ),
        amplitudes=b,
        mode_norms=norms,
        norms=_norm(YC),
        defect=_defect(YC - U @ K, moved - _apply(U, moving))
        if single
        else torch.zeros((factor.shape[0], 0, 0), dtype=K.dtype),
        outside=torch.linalg.vector_norm(newest - _apply(U, start), dim=1),
        singular_values=values,
    )


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    product: Tensor = matrix @ vector[..., None]
    return product[..., 0]


def _norm(matrix: Tensor) -> Tensor:
    if matrix.shape[2] == 1:
        matrix = matrix.mT  # one column: its length, without a decomposition
        norms: Tensor = torch.linalg.vector_norm(matrix[:, 0], dim=1)
        return norms
    values: Tensor = torch.linalg.svdvals(matrix)
    return values[:, 0]


def _symmetric(B: Tensor, sigma: Tensor) -> Tensor:
    # Least squares over symmetric K of ||K S - B||_F, B = U'YV: stationarity is
    # K S^2 + S^2 K = B S + S B', solved entry by entry.
    squares = sigma[:, :, None] ** 2 + sigma[:, None] ** 2
    right = B * sigma[:, None] + B.mT * sigma[:, :, None]
    return torch.where(squares > 0, right / squares.clamp(min=1e-300), 0.0)


def _eigen(K: Tensor, keep: Tensor, method: str) -> tuple[Tensor, Tensor, Tensor]:
    # Eigenvalues by modulus, padding last; right vectors of unit length.
    if K.shape[-1] == 1:
        mu, v = K[..., 0].to(torch.complex128), torch.ones_like(K).to(torch.complex128)
    elif method == "self-adjoint":
        real, vectors = torch.linalg.eigh(K)
        mu, v = real.to(torch.complex128), vectors.to(torch.complex128)
    else:
        mu, v = torch.linalg.eig(K)
    # Padding is a block of zeros beside K, so its vectors lie in the padded axes.
    kept = (v.abs() ** 2 * keep[..., None]).sum(1) > 0.5
    key = torch.where(kept, -mu.abs(), torch.inf)
    order = torch.argsort(key, dim=1, stable=True)
    mu, kept = mu.gather(1, order), kept.gather(1, order)
    v = v.gather(2, order[:, None].expand_as(v))
    return mu, v, kept


def _inverse(v: Tensor) -> Tensor:
    if v.shape[-1] == 1:
        return torch.ones_like(v)  # vectors of one entry are 1
    inverse = torch.linalg.inv_ex(v)
    found: Tensor = inverse[0]
    bad: Tensor = inverse[1] != 0
    if bad.any():  # a defective operator has no eigenbasis; amplitudes say so
        found[bad] = torch.nan
    return found


def _floors(
    factor: Tensor,
    built: Pairs,
    size: Tensor,
    spread: Tensor,
    mu: Tensor,
    dtype_eps: float,
    gram_eps: float,
) -> Tensor:
    # A stored y carries a rounding of at most eps ||w|| that A x has not; the mode's
    # residual is Y spread - ..., so it may gain eps ||w|| sqrt(n delay) ||spread||.
    delay, _, n = built.past.shape
    rounding = dtype_eps * (n * delay) ** 0.5 * size[:, None]
    floors: Tensor = rounding * torch.linalg.vector_norm(spread, dim=1)
    if gram_eps:
        lengths = torch.linalg.vector_norm(factor, dim=1)
        for before, after in zip(built.past, built.future, strict=True):
            mixed = after.to(mu.dtype) @ spread
            mixed = mixed - mu[:, None] * (before.to(mu.dtype) @ spread)
            floors = floors + gram_eps * (lengths[..., None] * mixed.abs()).sum(1)
    return floors


def _jackknife(
    Y: Tensor,
    K: Tensor,
    V: Tensor,
    sigma: Tensor,
    C: Tensor,
    v: Tensor,
    left: Tensor,
    centring: str,
    method: str,
) -> Tensor:
    # Delete one pair at a time. Without pair j the operator in the basis U is exactly
    # K - e_j x_j'S^-2 / (1 - h_j), with e_j = y_j - K x_j and the leverage h_j; to
    # first order mu_i moves by left_i' (.) v_i.
    n = V.shape[1]
    x = sigma[..., None] * V.mT
    errors = Y - K @ x
    leverage = (V**2).sum(2) + (1.0 / n if centring == "affine" else 0.0)
    room = (1.0 - leverage).clamp(min=1e-12)
    if method == "self-adjoint":
        squares = (sigma[:, :, None] ** 2 + sigma[:, None] ** 2).clamp(min=1e-300)
        moves = torch.stack(
            [
                2.0 * (errors * ((u[:, :, None] * u[:, None] / squares) @ x)).sum(1)
                for u in v.real.unbind(2)
            ],
            1,
        ).to(v.dtype)
    else:
        moves = (left @ errors.to(v.dtype)) * (C.to(v.dtype) @ v).mT
    moves = moves / room[:, None]
    centred = moves - moves.mean(2, keepdim=True)
    found = ((n - 1) / n * (centred.abs() ** 2).sum(2)).sqrt()
    kept = (sigma > 0).sum(1) + (1 if centring == "affine" else 0)
    return torch.where((n - kept < 1)[:, None], torch.inf, found)


def _defect(outer: Tensor, constant: Tensor) -> Tensor:
    both = torch.cat([outer, constant[..., None]], 2)
    factor: Tensor = torch.linalg.qr(both, mode="r")[1]
    return factor
