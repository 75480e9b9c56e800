"""The order in which training visits its batches: a function of seed and epoch."""

import bisect
from abc import ABC, abstractmethod
from collections.abc import Generator, Sized
from contextlib import closing
from typing import Any, final

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, derive_seed, generator, seeded_generators
from dynprune.system import GradientSystem

_GATHERED_BYTES = 2**28


class AbstractOrder(ABC):
    """Batches epoch by epoch, the same for the same seed and epoch."""

    batch_size: int | None
    per_epoch: int | None
    starts: list[int]

    @abstractmethod
    def epoch(self, number: int) -> Generator[Any, None, None]:
        """Iterate over the batches of one epoch.

        Args:
            number: The epoch, from 0.

        Returns:
            An iterator, to be closed if it is left early.
        """

    @abstractmethod
    def weight(self, batch: Any) -> float:
        """Return the weight of a batch.

        Args:
            batch: One of this order.

        Returns:
            Its number of examples by default.
        """


@final
class ResidentOrder(AbstractOrder):
    """Seeded permutations of two resident tensors.

    The permutation of an epoch is gathered once and its batches are views, unless
    that copy would exceed 256 MB. One batch that holds all the data is not permuted.

    Args:
        system: Whose dtype, device and batch weight are used.
        data: The pair ``(x, y)``.
        batch_size: Examples per batch; the last one may be smaller.
        seed: Of the permutations.
    """

    def __init__(
        self,
        system: GradientSystem,
        data: tuple[Tensor, Tensor],
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self._x, self._y = (_placed(part, system) for part in data)
        self._count = len(self._y)
        self.batch_size: int = batch_size
        self._seed = seed
        self._system = system
        self._whole = batch_size >= self._count
        held = self._x.numel() * self._x.element_size()
        self._gathers = held <= _GATHERED_BYTES
        self.per_epoch = -(-self._count // batch_size)
        self.starts = []

    def epoch(self, number: int) -> Generator[Any, None, None]:
        """Iterate over the batches of one epoch.

        Args:
            number: The epoch, from 0.

        Yields:
            Pairs of tensors.
        """
        if self._whole:
            yield self._x, self._y
            return
        order = permutation(self._count, seed=self._seed, epoch=number)
        order = order.to(self._x.device)
        if self._gathers:
            xs = self._x.index_select(0, order).split(self.batch_size)
            ys = self._y.index_select(0, order).split(self.batch_size)
            yield from zip(xs, ys, strict=True)
            return
        for part in order.split(self.batch_size):
            yield self._x.index_select(0, part), self._y.index_select(0, part)

    def weight(self, batch: Any) -> float:
        """Return the weight of a batch.

        Args:
            batch: A pair of tensors.

        Returns:
            Its number of examples by default.
        """
        if self._system.batch_weight is None:
            return float(len(batch[1]))
        return self._system.weight(batch)


@final
class LoaderOrder(AbstractOrder):
    """Passes over a user's loader, each under generators of its own.

    Args:
        system: A system on the loader's data.
        seed: Of its shuffling and augmentation.
    """

    def __init__(self, system: GradientSystem, *, seed: int) -> None:
        self._system = system
        self._seed = seed
        self.batch_size = None
        data = system.data
        self.per_epoch = len(data) if isinstance(data, Sized) else None
        self.starts = []

    def epoch(self, number: int) -> Generator[Any, None, None]:
        """Iterate over the batches of one epoch.

        Args:
            number: The epoch, from 0.

        Yields:
            Batches, on the system's device.

        Raises:
            InvalidInputError: If the pass is shorter or longer than the loader says.
        """
        seed, found = derive_seed(self._seed, number), 0
        with seeded_generators(self._system.data, seed):
            for batch in self._system.batches(seed=seed):
                found += 1
                yield batch
        if self.per_epoch not in {None, found}:
            raise InvalidInputError(
                f"The loader says {self.per_epoch} batches, epoch {number} had "
                f"{found}. Correct its __len__, or give it none."
            )

    def weight(self, batch: Any) -> float:
        """Return the weight of a batch.

        Args:
            batch: One of the loader.

        Returns:
            Its number of examples by default.
        """
        return self._system.weight(batch)


def permutation(count: int, *, seed: int, epoch: int) -> Tensor:
    """Return the order in which an epoch visits resident examples.

    Args:
        count: Number of examples.
        seed: Of the run.
        epoch: From 0.

    Returns:
        A permutation of ``range(count)``, int64 on the CPU.
    """
    return torch.randperm(count, generator=generator(derive_seed(seed, epoch)))


def stream(
    order: AbstractOrder, *, start: int, stop: int
) -> Generator[Any, None, None]:
    """Iterate over the batches of steps start, start + 1, …, stop − 1.

    Args:
        order: Which batches; ``order.starts`` receives the first step of each epoch.
        start: First step.
        stop: One after the last step.

    Yields:
        Batches.

    Raises:
        InvalidInputError: If an epoch holds no batch.
    """
    known = order.per_epoch
    number = start // known if known else 0
    step = number * (known or 0)
    order.starts[:] = [0] * number
    while step < stop:
        order.starts.append(step)
        with closing(order.epoch(number)) as batches:
            for batch in batches:
                step += 1
                if step > start:
                    yield batch
                if step == stop:
                    return
        if step == order.starts[-1]:
            raise InvalidInputError(
                f"Epoch {number} of the training data holds no batch. Pass a loader "
                "that yields some in every pass."
            )
        number += 1


def locate(order: AbstractOrder, step: int) -> tuple[int, int]:
    """Say in which epoch a visited step lies, and which batch it read.

    Args:
        order: What :func:`stream` has read.
        step: The step.

    Returns:
        Epoch and batch, from 0.
    """
    number = bisect.bisect_right(order.starts, step) - 1
    if order.per_epoch:
        return divmod(step, order.per_epoch)
    return number, step - order.starts[number]


def _placed(part: Tensor, system: GradientSystem) -> Tensor:
    if part.is_floating_point():
        return part.to(device=system.device, dtype=system.dtype)
    return part.to(device=system.device)
