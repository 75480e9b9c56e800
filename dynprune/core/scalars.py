"""Numbers of NumPy and torch as the plain ones that they equal."""

import operator
from typing import Any

import numpy as np
from torch import Tensor

from dynprune.core.errors import InvalidInputError


def whole(value: Any, *, name: str) -> int:
    """Return an integer of any library as Python's.

    Args:
        value: Of Python, NumPy or torch.
        name: What the caller calls it.

    Returns:
        The integer.

    Raises:
        InvalidInputError: If it is none; a float is none, even 1.0.

    Example:
        >>> whole(np.int64(3), name="seed")
        3
    """
    try:
        return operator.index(value)
    except (TypeError, RuntimeError):
        raise InvalidInputError(f"{name} is {value!r}. Pass an integer.") from None


def plain_numbers(value: Any) -> Any:
    """Replace the numbers of NumPy and torch in a nest by the plain ones they equal.

    Args:
        value: A scalar, array or tensor, or tuples, lists and dictionaries of them;
            anything else is returned as it is.

    Returns:
        The same nest with plain numbers, arrays and tensors as lists.

    Example:
        >>> plain_numbers((np.int64(3), {"lr": np.float32(0.5)}, "a"))
        (3, {'lr': 0.5}, 'a')
    """
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray | Tensor):
        return value.tolist()
    if type(value) in {tuple, list}:
        return type(value)(plain_numbers(part) for part in value)
    if type(value) is dict:
        return {plain_numbers(key): plain_numbers(part) for key, part in value.items()}
    return value
