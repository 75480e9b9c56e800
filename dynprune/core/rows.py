"""Which rows of tall matrices this process holds, and inner products over all."""

from dataclasses import dataclass
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from dynprune.core.errors import InvalidInputError


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    r"""Say which rows of vectors in R^P lie in this process.

    One process holds all of them. Where vectors are sharded, rank r holds the rows
    ``start`` to ``stop`` of each ``(P, k)`` block, and

    .. math:: X^\top Y = \sum_r X_r^\top Y_r

    is one all-reduce of a small matrix.

    Args:
        total: P.
        start: First row held here.
        stop: One past the last row held here.
        group: Process group over which the rows are sharded; None for one process.

    Example:
        >>> rows = Rows.whole(3)
        >>> rows.held, rows.inner(torch.ones(3, 1), torch.ones(3, 2))
        (3, tensor([[3., 3.]]))
    """

    total: int
    start: int
    stop: int
    group: dist.ProcessGroup | None = None

    @staticmethod
    def whole(total: int) -> "Rows":
        """Return the rows of one process.

        Args:
            total: P.

        Returns:
            All of them.
        """
        return Rows(total=total, start=0, stop=total)

    @staticmethod
    def sharded(total: int, group: dist.ProcessGroup) -> "Rows":
        """Return this rank's share of the rows: ceil(P / ranks), fewer at the end.

        Args:
            total: P.
            group: The ranks.

        Returns:
            The rows of this rank.

        Raises:
            InvalidInputError: If there are fewer rows than ranks.
        """
        ranks = dist.get_world_size(group)
        if total < ranks:
            raise InvalidInputError(
                f"{total} rows cannot be sharded over {ranks} ranks. Use fewer ranks."
            )
        share = -(-total // ranks)
        start = min(dist.get_rank(group) * share, total)
        return Rows(
            total=total, start=start, stop=min(start + share, total), group=group
        )

    @property
    def held(self) -> int:
        """Number of rows held here."""
        return self.stop - self.start

    def inner(
        self, left: Tensor, right: Tensor, *, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Return X'Y over all rows, the same on every rank.

        Args:
            left: X, the rows held here, shape ``(held, a)``.
            right: Y, shape ``(held, b)``.
            dtype: Accumulate in this dtype, a slice of rows at a time; in that of the
                tensors by default.

        Returns:
            Shape ``(a, b)``.

        Cost:
            One all-reduce of a·b numbers where the rows are sharded.
        """
        if dtype is None or dtype == left.dtype:
            product = left.T @ right
        else:
            product = left.new_zeros((left.shape[1], right.shape[1]), dtype=dtype)
            for x, y in zip(left.split(65_536), right.split(65_536), strict=True):
                product += x.to(dtype).T @ y.to(dtype)
        return self.sum(product)

    def sum(self, part: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks.

        Args:
            part: This rank's, changed in place where the rows are sharded.

        Returns:
            The sum.
        """
        if self.group is not None:
            dist.all_reduce(part, group=self.group)
        return part

    def random(
        self, columns: int, *, generator: torch.Generator, dtype: torch.dtype
    ) -> Tensor:
        """Return this rank's rows of a Gaussian block that is the same for any ranks.

        Args:
            columns: How many.
            generator: On the CPU; every rank passes one of the same seed.
            dtype: Of the result.

        Returns:
            Shape ``(held, columns)``, on the CPU.

        Cost:
            All P rows are drawn on each rank, a slice at a time.
        """
        block = torch.empty(self.held, columns, dtype=dtype)
        for first in range(0, self.total, 65_536):
            count = min(65_536, self.total - first)
            part = torch.randn(count, columns, generator=generator, dtype=torch.float64)
            low, high = max(first, self.start), min(first + count, self.stop)
            if low < high:
                block[low - self.start : high - self.start] = part[
                    low - first : high - first
                ].to(dtype)
        return block
