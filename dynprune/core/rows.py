"""Which rows of tall matrices this process holds, and sums over all of them."""

from dataclasses import dataclass
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor

from dynprune.core.errors import InvalidInputError

_SLICE = 65_536  # rows drawn, or accumulated in another dtype, at once


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
    group: "dist.ProcessGroup | None" = None

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
    def sharded(total: int, group: "dist.ProcessGroup") -> "Rows":
        """Return this rank's share of the rows: ceil(P / ranks), fewer on the last.

        Args:
            total: P.
            group: The ranks.

        Returns:
            The rows of this rank.

        Raises:
            InvalidInputError: If a rank would hold none.
        """
        ranks, rank = dist.get_world_size(group), dist.get_rank(group)
        share = -(-total // ranks)
        if (ranks - 1) * share >= total:
            raise InvalidInputError(
                f"{total} rows in shares of {share} leave a rank of {ranks} without "
                "any. Use fewer ranks, or vectors that are not sharded."
            )
        start = rank * share
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
            for x, y in zip(left.split(_SLICE), right.split(_SLICE), strict=True):
                product += x.to(dtype).T @ y.to(dtype)
        return self.sum(product)

    def sum(self, part: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks.

        Args:
            part: This rank's, changed in place where the rows are sharded.

        Returns:
            The sum.
        """
        if self.group is None or not part.numel():
            return part
        part = part.contiguous()
        dist.all_reduce(part, group=self.group)
        return part

    def gather(self, block: Tensor) -> Tensor:
        """Return all rows of a block, on every rank.

        Args:
            block: The rows held here, shape ``(held, …)``.

        Returns:
            Shape ``(P, …)``; ``block`` itself in one process.

        Cost:
            One all-gather of the block, and memory for all of it.
        """
        if self.group is None or not block.numel():
            return block if self.group is None else self._empty(block)
        ranks = dist.get_world_size(self.group)
        share = -(-self.total // ranks)
        whole = block.new_empty((ranks, share, *block.shape[1:]))
        own = block.contiguous()
        if self.held < share:  # the last rank; what it adds is cut off below
            own = torch.cat([
                block,
                block.new_zeros((share - self.held, *own.shape[1:])),
            ])
        dist.all_gather(list(whole.unbind()), own, group=self.group)
        return whole.flatten(0, 1)[: self.total]

    def own(self, whole: Tensor) -> Tensor:
        """Return the rows held here of a tensor that has all of them.

        Args:
            whole: Shape ``(P, …)``.

        Returns:
            A view of shape ``(held, …)``.
        """
        return whole[self.start : self.stop]

    def scatter_sum(self, part: Tensor) -> Tensor:
        """Return the rows held here of the sum of a block over the ranks.

        Args:
            part: This rank's summand, all rows, shape ``(P, …)``.

        Returns:
            Shape ``(held, …)``; summed in the order of the ranks, so that the bits do
            not depend on how the ranks are connected.

        Cost:
            One all-to-all of the block: each rank sends the rows of the others and
            keeps as many numbers as the block has until they are summed.
        """
        if self.group is None or not part.numel():
            return self.own(part)
        ranks = dist.get_world_size(self.group)
        share = -(-self.total // ranks)
        sent = [min(share, self.total - rank * share) for rank in range(ranks)]
        parts = part.new_empty((ranks * self.held, *part.shape[1:]))
        dist.all_to_all_single(
            parts, part.contiguous(), [self.held] * ranks, sent, group=self.group
        )
        summands = parts.view(ranks, self.held, *part.shape[1:])
        total = summands[0].clone()
        for summand in summands[1:]:
            total += summand
        return total

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
        for first in range(0, self.total, _SLICE):
            count = min(_SLICE, self.total - first)
            part = torch.randn(count, columns, generator=generator, dtype=torch.float64)
            low, high = max(first, self.start), min(first + count, self.stop)
            if low < high:
                block[low - self.start : high - self.start] = part[
                    low - first : high - first
                ].to(dtype)
        return block

    def _empty(self, block: Tensor) -> Tensor:
        return block.new_empty((self.total, *block.shape[1:]))
