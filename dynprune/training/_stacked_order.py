"""Batches of many runs at once, each run in the order of its own seed."""

from collections.abc import Generator, Sequence
from typing import final

import torch
from torch import Tensor

from dynprune.system import GradientSystem, read
from dynprune.training._order import AbstractOrder, permutation

Pair = tuple[Tensor, Tensor]


@final
class StackedOrder(AbstractOrder):
    """Seeded permutations of two resident tensors, one for each of R runs.

    Run r reads the batches of a :class:`ResidentOrder` of its seed; the batches of a
    step are gathered together, shape ``(R, B, …)``.

    Args:
        system: Whose dtype, device and batch weight are used.
        data: The pair ``(x, y)``.
        batch_size: Examples per batch and run; the last one may be smaller.
        seeds: Of the permutations, one for each run.
    """

    def __init__(
        self,
        system: GradientSystem,
        data: Pair,
        *,
        batch_size: int,
        seeds: Sequence[int],
    ) -> None:
        self._x, self._y = next(
            read(data, dtype=system.dtype, device=system.device, microbatch=None)
        )
        self._system = system
        self._seeds = tuple(seeds)
        self.batch_size: int = batch_size
        self.per_epoch = -(-len(self._y) // batch_size)
        self.starts = []

    def epoch(self, number: int) -> Generator[Pair, None, None]:
        """Iterate over the batches of one epoch.

        Args:
            number: The epoch, from 0.

        Yields:
            Pairs of tensors, each of shape ``(R, B, …)``.
        """
        count = len(self._y)
        orders = torch.stack([
            permutation(count, seed=seed, epoch=number) for seed in self._seeds
        ]).to(self._x.device)
        for part in orders.split(self.batch_size, dim=1):
            index, shape = part.reshape(-1), part.shape
            yield (
                self._x.index_select(0, index).unflatten(0, shape),
                self._y.index_select(0, index).unflatten(0, shape),
            )

    def weight(self, batch: Pair) -> float:
        """Return the weight of the batches of all runs together.

        Args:
            batch: A pair of this order.

        Returns:
            Their number of examples by default.
        """
        return sum(self.weights(batch))

    def weights(self, batch: Pair) -> list[float]:
        """Return the weight of each run's batch.

        Args:
            batch: A pair of this order.

        Returns:
            R numbers; the number of examples by default.
        """
        if self._system.batch_weight is None:
            return [float(batch[1].shape[1])] * len(self._seeds)
        return [self._system.weight(one) for one in zip(*batch, strict=True)]
