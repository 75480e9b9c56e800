"""Snapshots in reduced coordinates: one streaming pass, never P x P.

The data of every fit are the increments Z = [w_0, w_1 - w_0, w_2 - w_1, ...], because
they lose nothing of late, small steps, and every centring is a product Z @ B with a
small constant B. A T x T factor R with R'R = Z'Z replaces Z: Z = QR with orthonormal Q,
so norms, eigenvalues and residuals of anything built from R are those of the weights.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from dynprune.core import InvalidInputError

_ENTRIES = 1 << 22  # float64 entries held at once, 32 MiB


def chunk_rows(snapshots: int, *, entries: int = _ENTRIES) -> int:
    """Return how many rows of ``snapshots`` columns are held at once.

    Args:
        snapshots: Number T.
        entries: Most float64 entries held.

    Returns:
        At least one row.
    """
    return max(1, entries // max(1, snapshots))


def increments(rows: Tensor) -> Tensor:
    """Return [w_0, w_1 - w_0, w_2 - w_1, ...] along the last axis, in float64.

    Args:
        rows: Snapshots, shape ``(..., T)``.

    Returns:
        The same shape, float64.

    Example:
        >>> increments(torch.tensor([[2.0, 3.0, 7.0]]))
        tensor([[2., 1., 4.]], dtype=torch.float64)
    """
    exact = rows.double()
    return torch.cat([exact[..., :1], exact[..., 1:] - exact[..., :-1]], -1)


def gather(snapshots: Tensor, index: Tensor) -> Tensor:
    """Return increments of the groups in ``index``, zeros for pruned members.

    Args:
        snapshots: Shape ``(P, T)``.
        index: Coordinates, any shape; P stands for a pruned entry.

    Returns:
        Shape ``(*index.shape, T)``, float64.
    """
    size = snapshots.shape[0]
    index = index.to(snapshots.device)
    found = increments(snapshots[index.clamp(max=size - 1)])
    gone = index >= size
    if gone.any():
        found[gone] = 0.0
    return found


def stream(snapshots: Tensor, index: Tensor | None, rows: int) -> Iterator[Tensor]:
    """Yield increments of at most ``rows`` coordinates at a time.

    Args:
        snapshots: Shape ``(P, T)``.
        index: Coordinates to read, shape ``(q,)``, or None for all.
        rows: Rows at once.

    Yields:
        Float64 blocks, shape ``(<= rows, T)``, in order.
    """
    size = snapshots.shape[0] if index is None else len(index)
    for start in range(0, size, rows):
        stop = min(size, start + rows)
        if index is None:
            yield increments(snapshots[start:stop])
        else:
            yield gather(snapshots, index[start:stop])


def gram_factor(parts: Iterator[Tensor]) -> Tensor:
    """Accumulate Z'Z and return its square root R.

    The Gram matrix is scaled to unit diagonal before its eigen-decomposition, so the
    loss is relative to each increment and not to the largest: inner products are
    accurate to eps, norms to about sqrt(T eps).

    Args:
        parts: Rows of Z, block by block, float64.

    Returns:
        R, shape ``(T, T)``, on the CPU, with R'R = Z'Z up to rounding.

    Cost:
        One pass; 2 P T^2 operations; one T x T matrix.
    """
    total: Tensor | None = None
    for part in parts:
        product = part.T @ part
        total = product if total is None else total + product
    assert total is not None
    gram = total.cpu()
    scale = torch.diagonal(gram).sqrt()
    safe = torch.where(scale > 0, scale, torch.ones_like(scale))
    values, vectors = torch.linalg.eigh(gram / safe[:, None] / safe[None, :])
    root: Tensor = values.clamp(min=0.0).sqrt()[:, None] * vectors.T * safe
    return root


def qr_factor(parts: Iterator[Tensor]) -> Tensor:
    """Return R of Z = QR by a sequence of small QR factorisations.

    Args:
        parts: Rows of Z, block by block, float64.

    Returns:
        R, shape ``(min(P, T), T)``, on the CPU; norms are accurate to about eps.

    Cost:
        One pass; about 4 P T^2 operations; one T x T matrix.

    Source:
        Demmel et al., *Communication-avoiding parallel and sequential QR*, 2008,
        arXiv:0808.2664.
    """
    factor: Tensor | None = None
    for part in parts:
        stacked = part if factor is None else torch.cat([factor, part])
        factor = torch.linalg.qr(stacked, mode="r")[1]
    assert factor is not None
    return factor.cpu()


def check_finite(snapshots: Tensor, steps: Tensor) -> None:
    """Refuse snapshots with a number that is not finite.

    Args:
        snapshots: Shape ``(P, T)``.
        steps: Their optimiser steps, shape ``(T,)``.

    Raises:
        InvalidInputError: Naming the first bad step.
    """
    sums = torch.zeros(snapshots.shape[1], dtype=torch.float64, device=snapshots.device)
    rows = chunk_rows(snapshots.shape[1])
    for start in range(0, snapshots.shape[0], rows):
        sums += snapshots[start : start + rows].sum(0, dtype=torch.float64)
    bad = torch.nonzero(~torch.isfinite(sums)).reshape(-1)
    if len(bad):
        step = int(steps[int(bad[0])])
        raise InvalidInputError(
            f"{len(bad)} of {len(sums)} snapshots are not finite, the first at step "
            f"{step}. Fit a window that ends before step {step}, or train with a "
            "smaller learning rate."
        )
