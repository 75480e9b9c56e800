"""A dense symmetric matrix as an operator."""

from typing import final

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, Rows
from dynprune.operators._operator import AbstractOperator


@final
class MatrixOperator(AbstractOperator):
    """A dense symmetric matrix as an operator.

    Args:
        matrix: Shape ``(P, P)``, symmetric to rounding.

    Raises:
        InvalidInputError: If it is not square or not symmetric.

    Example:
        >>> MatrixOperator(torch.diag(torch.tensor([3.0, 1.0]))) @ torch.ones(2)
        tensor([3., 1.])
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise InvalidInputError(
                f"A matrix of shape {tuple(matrix.shape)} is not square."
            )
        scale = float(matrix.abs().max()) if matrix.numel() else 0.0
        skew = float((matrix - matrix.T).abs().max()) if matrix.numel() else 0.0
        if skew > 100 * torch.finfo(matrix.dtype).eps * scale:
            raise InvalidInputError(
                f"The matrix is not symmetric: |A - A'| reaches {skew:.2g}. Pass "
                "0.5 * (A + A.T)."
            )
        self._matrix = matrix.detach().clone()
        self._count = 0.0

    @property
    def rows(self) -> Rows:
        """All coordinates."""
        return Rows.whole(len(self._matrix))

    @property
    def coordinates(self) -> None:
        """None: the rows are no parameters."""
        return

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of products."""
        return self._matrix.dtype

    @property
    def device(self) -> torch.device:
        """The device of products."""
        return self._matrix.device

    @property
    def matvecs(self) -> float:
        """Number of products so far."""
        return self._count

    def _product(self, block: Tensor) -> Tensor:
        self._count += block.shape[1]
        return self._matrix @ block
