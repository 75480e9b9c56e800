"""Batches as nests of tensors: tuples, lists, dictionaries and any other mapping."""

import copy
from collections import UserDict
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree


def map_leaves(function: Callable[[Any], Any], batch: Any) -> Any:
    """Apply a function to every leaf of a nest, in order.

    A mapping that torch does not know as a nest (a ``BatchEncoding``, a subclass of
    ``dict``) is one, too. Its copy is of the same type where that can be made of a
    dictionary, and a dictionary otherwise.

    Args:
        function: Of a leaf.
        batch: Any nest of tensors; it is not changed.

    Returns:
        The same nest of what the function returns.
    """

    def of(leaf: Any) -> Any:
        if not isinstance(leaf, Mapping):
            return function(leaf)
        return _rebuilt(
            leaf, {key: map_leaves(function, part) for key, part in leaf.items()}
        )

    return pytree.tree_map(of, batch)


def flatten_batch(batch: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """Write a nest as a list of leaves.

    Args:
        batch: Any nest of tensors.

    Returns:
        The leaves, and what makes the same nest of as many others.
    """
    leaves: list[Any] = []
    map_leaves(leaves.append, batch)

    def rebuild(others: list[Any]) -> Any:
        left = iter(others)
        return map_leaves(lambda _: next(left), batch)

    return leaves, rebuild


def tensors_of(batch: Any) -> list[Tensor]:
    """Return the tensors of a nest, in order.

    Args:
        batch: Any nest of tensors.

    Returns:
        The tensors themselves.
    """
    return [leaf for leaf in flatten_batch(batch)[0] if isinstance(leaf, Tensor)]


def as_plain(batch: Any) -> Any:
    """Return a nest with dictionaries for the mappings that torch does not know.

    Args:
        batch: Any nest of tensors.

    Returns:
        A nest of the same leaves.
    """

    def of(leaf: Any) -> Any:
        if not isinstance(leaf, Mapping):
            return leaf
        return {key: as_plain(part) for key, part in leaf.items()}

    return pytree.tree_map(of, batch)


def _rebuilt(found: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    try:
        if isinstance(found, dict | UserDict):
            made: Any = copy.copy(found)  # with items of its own, the same attributes
            for key, part in items.items():
                made[key] = part
        else:
            made = type(found)(items)  # type: ignore[call-arg]
        if all(made[key] is part for key, part in items.items()):
            return made
    except Exception:  # a type that is made in another way may raise anything
        return items
    return items
