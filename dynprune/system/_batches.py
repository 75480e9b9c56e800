"""The door for data: a resident batch or a re-iterable of batches."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor

from dynprune.core import (
    InvalidInputError,
    derive_seed,
    isolated,
    map_leaves,
    seeded_generators,
    tensors_of,
)

BatchWeight = Callable[[Any], float]
_END = object()


def is_resident(data: object) -> TypeGuard[tuple[Tensor, Tensor]]:
    """Say whether ``data`` is one (x, y) pair of tensors.

    Args:
        data: What the user gave.

    Returns:
        True for a tuple or list of exactly two tensors.
    """
    return is_pair(data) and all(isinstance(part, Tensor) for part in data)


def is_pair(batch: object) -> TypeGuard[tuple[Any, Any]]:
    """Say whether a batch is two things (x, y), whatever they are.

    Args:
        batch: A batch, or data.

    Returns:
        True for a tuple or list of length two.
    """
    return isinstance(batch, tuple | list) and len(batch) == 2


def check_data(data: object) -> None:
    """Refuse what cannot be read several times.

    Args:
        data: A pair of tensors or a re-iterable of batches.

    Raises:
        InvalidInputError: For a generator, something that is no iterable, NumPy
            arrays, or tensors of different or no length.
    """
    if is_resident(data):
        x, y = data
        if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or len(x) == 0:
            raise InvalidInputError(
                f"Data (x, y) have shapes {tuple(x.shape)} and {tuple(y.shape)}. Pass "
                "tensors with the same positive number of examples first."
            )
        return
    if (
        isinstance(data, tuple)
        and len(data) == 2
        and any(isinstance(part, np.ndarray) for part in data)
    ):
        raise InvalidInputError(
            f"Data (x, y) are {' and '.join(type(part).__name__ for part in data)}. "
            "Pass tensors: (torch.from_numpy(x), torch.from_numpy(y))."
        )
    if not isinstance(data, Iterable):
        raise InvalidInputError(
            f"Data of type {type(data).__name__} are no iterable of batches. Pass "
            "(x, y) tensors, a DataLoader, or a list of batches."
        )
    if isinstance(data, Iterator):
        raise InvalidInputError(
            f"Data are a {type(data).__name__}, which can be read only once; dynprune "
            "reads several times. Pass list(data), a DataLoader, or (x, y) tensors."
        )


def place(batch: Any, *, dtype: torch.dtype, device: torch.device) -> Any:
    """Move a batch to a device and its floating-point tensors to a dtype.

    Args:
        batch: Any nest of tensors.
        dtype: Of the parameters.
        device: Of the parameters.

    Returns:
        The same nest; tensors that already fit are not copied.

    Raises:
        InvalidInputError: For a tensor on the meta device.
    """  # noqa: DOC502 - raised for a leaf

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if leaf.is_meta:
            raise InvalidInputError(
                f"The data hold a tensor of shape {tuple(leaf.shape)} on the meta "
                "device, which has no values. Pass data on the CPU or an accelerator."
            )
        if leaf.is_floating_point():
            return leaf.to(device=device, dtype=dtype)
        return leaf.to(device=device)

    return map_leaves(move, batch)


def length(batch: Any) -> int:
    """Return the number of examples of a batch: the length of its last tensor.

    For (x, y) that is the number of targets; for a dictionary, of any of its tensors.

    Args:
        batch: Any nest of tensors.

    Returns:
        The number of examples.

    Raises:
        InvalidInputError: If there is no tensor with a first dimension.
    """
    tensors = tensors_of(batch)
    if is_resident(batch) and tensors[0].ndim > 0 and tensors[1].ndim == 0:
        raise InvalidInputError(
            f"A batch (x, y) has shapes {tuple(tensors[0].shape)} and (): it looks "
            "like one example, not a batch of them. Wrap the list of examples in "
            "torch.utils.data.DataLoader(data, batch_size=...), or pass "
            "batch_weight=lambda batch: ... if it is a batch."
        )
    if not tensors or tensors[-1].ndim == 0:
        raise InvalidInputError(
            f"A batch of type {type(batch).__name__} holds no tensor with a first "
            "dimension to count examples by. Pass batch_weight=lambda batch: ..."
        )
    return len(tensors[-1])


def read(
    data: Any,
    *,
    dtype: torch.dtype,
    device: torch.device,
    microbatch: int | None,
    seed: int = 0,
) -> Iterator[Any]:
    """Iterate over placed batches; a loader sees generators of its own.

    Args:
        data: As checked by :func:`check_data`.
        dtype: Of the parameters.
        device: Of the parameters.
        microbatch: Largest number of examples per batch of resident data.
        seed: What a loader's shuffling and augmentation start from.

    Yields:
        Batches.
    """
    if is_resident(data):
        x, y = data
        step = len(x) if microbatch is None else microbatch
        for start in range(0, len(x), step):
            part = (x[start : start + step], y[start : start + step])
            yield place(part, dtype=dtype, device=device)
        return
    with seeded_generators(data, seed):
        with isolated(seed):
            iterator = iter(data)
        for index in itertools.count():
            with isolated(derive_seed(seed, index)):
                batch = next(iterator, _END)
            if batch is _END:
                return
            yield place(batch, dtype=dtype, device=device)
