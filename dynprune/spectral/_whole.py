"""What all columns of an operator say, for budgets that reach P."""

from collections.abc import Iterator

import torch
from torch import Tensor

from dynprune.operators import AbstractOperator
from dynprune.spectral._columns import dots
from dynprune.spectral._recursion import finite

_COLUMNS = 64


def whole_diagonal(op: AbstractOperator) -> Tensor:
    """Return the exact diagonal.

    Args:
        op: A.

    Returns:
        The entries of the rows held here, the operator's dtype.

    Cost:
        P matvecs, 64 at a time.
    """
    found = torch.empty(op.rows.held, dtype=op.dtype, device=op.device)
    for own, columns, product in _columns(op):
        found[own] = product[own, columns]
    return found


def whole_square(op: AbstractOperator) -> Tensor:
    """Return the exact sum of squared entries.

    Args:
        op: A.

    Returns:
        Float64, without dimensions, on the CPU.

    Cost:
        P matvecs, 64 at a time.
    """
    total = torch.zeros((), dtype=torch.float64)
    for _, _, product in _columns(op):
        total += dots(op.rows, product, product).sum()
    return total


def _columns(op: AbstractOperator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    # Held rows on the diagonal, their columns, and the columns of A.
    rows = op.rows
    for first in range(0, op.size, _COLUMNS):
        count = min(_COLUMNS, op.size - first)
        block = torch.zeros((rows.held, count), dtype=op.dtype, device=op.device)
        low, high = max(first, rows.start), min(first + count, rows.stop)
        ours = torch.arange(low, max(low, high), device=op.device)
        block[ours - rows.start, ours - first] = 1.0
        yield ours - rows.start, ours - first, finite(op @ block)
