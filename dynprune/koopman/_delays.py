"""Snapshot pairs: centring and delay vectors, as constants and as numbers."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

Centring = Literal["none", "affine", "difference"]


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Pairs:
    """Snapshot pairs as constant combinations of the increments Z.

    The j-th block of a delay vector is Z @ past[j], and so on.

    Args:
        past: Of x, shape ``(delay, T, n)``, centred if affine.
        future: Of y = the image of x, likewise.
        mean: Mean of the future (affine) or newest snapshot (difference) or zero, in
            the newest block, shape ``(T,)``: what a forecast is added to.
        mean_past: Mean of the past in the newest block, shape ``(T,)``.
    """

    past: Tensor
    future: Tensor
    mean: Tensor
    mean_past: Tensor


def pairs(snapshots: int, centring: str, delay: int) -> Pairs:
    """Build the pairs of T snapshots.

    Args:
        snapshots: Number T.
        centring: ``none``, ``affine`` or ``difference``.
        delay: Snapshots stacked in one delay vector.

    Returns:
        The constant matrices, float64.
    """
    T = snapshots
    base = torch.ones((T, T), dtype=torch.float64).triu()  # snapshots = Z @ base
    if centring == "difference":
        base = torch.eye(T, dtype=torch.float64)[:, 1:]  # differences, exactly
    elif centring == "affine":
        base[0] = 0.0  # the first snapshot drops out of every deviation
    n = base.shape[1] - delay
    past = torch.stack([base[:, j : j + n] for j in range(delay)])
    future = torch.stack([base[:, j + 1 : j + 1 + n] for j in range(delay)])
    mean = torch.zeros(T, dtype=torch.float64)
    mean_past = mean.clone()
    if centring == "affine":
        before, after = past.mean(-1), future.mean(-1)
        past, future = past - before[..., None], future - after[..., None]
        mean, mean_past = after[-1].clone(), before[-1].clone()
        mean[0] = mean_past[0] = 1.0
    elif centring == "difference":
        mean = mean_past = torch.ones(T, dtype=torch.float64)  # the newest snapshot
    return Pairs(
        past=past,
        future=future,
        mean=mean,
        mean_past=mean_past,
    )


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Delayed:
    """Snapshot pairs of B groups as numbers.

    Args:
        past: X, shape ``(B, delay q, n)``.
        future: Y, the same shape.
        last: The newest delay vector, ``(B, delay q)``.
        drift: Mean of the future minus mean of the past, ``(B, delay q)``.
        size: Largest norm of a snapshot, ``(B,)``.
    """

    past: Tensor
    future: Tensor
    last: Tensor
    drift: Tensor
    size: Tensor


def delayed(factor: Tensor, centring: str, delay: int) -> Delayed:
    """Stack increments to delay vectors; equals the products with :func:`pairs`.

    Args:
        factor: Z or a factor of it, shape ``(B, q, T)``.
        centring: ``none``, ``affine`` or ``difference``.
        delay: Snapshots stacked in one delay vector.

    Returns:
        The pairs, without the T x T products that many small groups could not pay.
    """
    snapshots = factor.cumsum(2)
    size = torch.linalg.vector_norm(snapshots, dim=1).amax(1)
    if centring == "difference":
        base = factor[..., 1:]
    elif centring == "affine":
        base = torch.cat(
            [torch.zeros_like(factor[..., :1]), factor[..., 1:].cumsum(2)], 2
        )
    else:
        base = snapshots
    n = base.shape[2] - delay
    tall = torch.cat([base[..., j : j + n + 1] for j in range(delay)], 1)
    past, future, last = tall[..., :-1], tall[..., 1:], tall[..., -1]
    drift = torch.zeros_like(last)
    if centring == "affine":
        before, after = past.mean(2), future.mean(2)
        past, future = past - before[..., None], future - after[..., None]
        last, drift = last - before, after - before
    return Delayed(past=past, future=future, last=last, drift=drift, size=size)
