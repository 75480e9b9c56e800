"""Inner products of two blocks, column by column."""

import torch
from torch import Tensor

from dynprune.core import Rows

_SLICE = 65_536


def dots(rows: Rows, left: Tensor, right: Tensor) -> Tensor:
    """Return x_i'y_i over all rows, accumulated in float64.

    Args:
        rows: Which rows the blocks hold.
        left: X, shape ``(held, m)``.
        right: Y, shape ``(held, m)``.

    Returns:
        Float64, shape ``(m,)``, on the CPU.
    """
    total = torch.zeros(left.shape[1], dtype=torch.float64, device=left.device)
    for x, y in zip(left.split(_SLICE), right.split(_SLICE), strict=True):
        total += (x.double() * y).sum(0)
    return rows.sum(total).cpu()
