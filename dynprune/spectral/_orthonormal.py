"""Orthonormal bases of tall blocks, by Gram matrices."""

import torch
from torch import Tensor

from dynprune.core import Rows

_RESOLVED = 1e-14  # squared ratio of singular values that a float64 Gram resolves


def orthonormal(rows: Rows, block: Tensor, *, floor: float = 0.0) -> Tensor:
    r"""Return an orthonormal basis of the columns of a block.

    .. math:: Q = Y U \Lambda^{-1/2}, \qquad Y^\top Y = U \Lambda U^\top

    twice, with the Gram matrix in float64. Directions whose singular value is below
    ``floor``, or below 1e-7 of the largest (10 eps in single precision), are left
    out: they cannot be told from rounding.

    Args:
        rows: Which rows the block holds.
        block: Y, shape ``(held, m)``.
        floor: Singular value below which a direction is rounding.

    Returns:
        Q, shape ``(held, r)`` with r ≤ m, the strongest directions first.

    Cost:
        Two all-reduces of m² numbers where the rows are sharded; 4 P m² operations.

    Source:
        Stathopoulos and Wu, *A block orthogonalization procedure with constant
        synchronization requirements*, 2002.
    """
    least = max(_RESOLVED, (10 * torch.finfo(block.dtype).eps) ** 2)
    for relative, absolute in ((least, floor**2), (0.25, 0.0)):
        gram = rows.inner(block, block, dtype=torch.float64).cpu()
        values, turns = torch.linalg.eigh(gram)
        largest = float(values[-1]) if len(values) else 0.0
        kept = values > max(relative * largest, absolute)
        turn = (turns[:, kept] * values[kept].rsqrt()).flip(1)  # strongest first
        block = block @ turn.to(block)
    return block
