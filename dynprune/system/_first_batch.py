"""The loss of the first batch: it leads back to the coordinates, or it is explained."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.core import DynPruneError, InvalidInputError, as_plain
from dynprune.system._batches import is_pair

PASSED_ON = (DynPruneError, MemoryError, torch.OutOfMemoryError, Warning)
_MOST_NAMED = 8
# what torch says, and what helps, first to last
_ADVICE = (
    (
        r"multi-target not supported",
        "Class indices have shape (N,): try y.squeeze(1).long()",
    ),
    (
        r"expected target dtype|scalar type Long but found",
        "Class indices are whole numbers of shape (N,): try y.long()",
    ),
    (
        r"result type|Found dtype \w+ but expected",
        "Try targets of the dtype: y.float()",
    ),
    (
        r"Target size .* must be the same as input size",
        "Give targets and outputs one shape: try y.unsqueeze(1)",
    ),
    (
        r"out of bounds|device-side assert|index out of range",
        "Number the classes from 0, and give the network one output for each (an "
        "embedding: one row for each index)",
    ),
    (r"'indices'", "An embedding takes whole numbers: try x.long()"),
    (
        r"must have the same dtype|should be the same|not implemented for",
        "Try inputs of the parameters' dtype: x.float()",
    ),
    (
        r"Can't call numpy",
        "Compute the loss by torch's functions: NumPy cuts it off from the parameters",
    ),
)


@contextmanager
def explained(batch: Any, dtype: torch.dtype, *, by_batch: bool) -> Iterator[None]:
    """Compute the loss of a batch in a block whose failure shows the batch.

    Args:
        batch: The first batch, as the network gets it.
        dtype: Of the parameters.
        by_batch: Whether the loss is a ``batch_loss``.

    Yields:
        Nothing.

    Raises:
        InvalidInputError: From what the user's network or loss raised; but errors of
            dynprune, warnings and an exhausted memory are passed on.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, PASSED_ON):
            raise
        said = (str(error).strip().splitlines() or ["no message"])[0].rstrip(". ")
        kind = str(dtype).removeprefix("torch.")
        raise InvalidInputError(
            f"The loss of the first batch could not be computed "
            f"({type(error).__name__}: {said}). The batch: {described(batch)}; the "
            f"parameters are {kind}. {_advice(error, batch, by_batch=by_batch)}."
        ) from error


def is_compiled(module: nn.Module) -> bool:
    """Say whether ``torch.compile`` would compile a pass with gradients anew.

    Args:
        module: The network.

    Returns:
        Whether a part of it is compiled.
    """
    return any(
        "_orig_mod" in part._modules or part._compiled_call_impl is not None
        for part in module.modules()
    )


def check_way_back(loss: Tensor, coordinates: Tensor) -> None:
    """Refuse a loss that is cut off from the coordinates.

    Args:
        loss: Computed of ``coordinates`` with gradients enabled.
        coordinates: A leaf that needs gradients.

    Raises:
        InvalidInputError: If no path of the graph leads from the loss to them.
    """
    if not _leads_to(loss, coordinates):
        raise InvalidInputError(
            "The loss of the first batch does not depend on the parameters that are to "
            "be trained: no gradient would reach them. Look for detach(), item(), "
            "torch.no_grad() or NumPy in the network and the loss; let a batch_loss "
            "use the model that it is given; and see what parameters= selects."
        )


def described(batch: Any) -> str:
    """Return the shapes and dtypes of a batch.

    Args:
        batch: Any nest.

    Returns:
        Part of a sentence; x and y where it is a pair of tensors or arrays.
    """
    if is_pair(batch) and all(isinstance(part, Tensor | np.ndarray) for part in batch):
        return f"x {_one(batch[0])}, y {_one(batch[1])}"
    leaves = pytree.tree_flatten_with_path(as_plain(batch))[0]
    words = [
        f"{pytree.keystr(path)} {_one(leaf)}".strip()
        for path, leaf in leaves[:_MOST_NAMED]
    ]
    more = len(leaves) - len(words)
    return ", ".join([*words, f"{more} more"] if more else words) or "nothing"


def _one(leaf: Any) -> str:
    if not isinstance(leaf, Tensor | np.ndarray):
        return type(leaf).__name__
    kind = "" if isinstance(leaf, Tensor) else "NumPy array "
    return f"{kind}{tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}"


def _advice(error: Exception, batch: Any, *, by_batch: bool) -> str:
    leaves = pytree.tree_leaves(as_plain(batch))
    if any(isinstance(leaf, np.ndarray) for leaf in leaves):
        return "Pass tensors: torch.from_numpy(x)"
    if by_batch:
        return "Try batch_loss(model, batch) on it by itself"
    if is_pair(batch) and isinstance(batch[1], int | float):
        return (
            "It looks like one example: wrap the list of examples in "
            "torch.utils.data.DataLoader(data, batch_size=...)"
        )
    found = (help_ for words, help_ in _ADVICE if re.search(words, str(error)))
    return next(found, "Try loss_fn(model(x), y) on it by itself")


def _leads_to(loss: Tensor, leaf: Tensor) -> bool:
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        if getattr(node, "variable", None) is leaf:
            return True
        seen.add(node)
        waiting += [before for before, _ in node.next_functions]
    return loss is leaf
