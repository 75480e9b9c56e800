"""The outputs of a network, whatever nest of tensors they are, as one vector."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dynprune.core import InvalidInputError
from dynprune.system import GradientSystem


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class FlatOutputs:
    """Outputs as a vector, leaf by leaf, each row-major.

    Args:
        vector: Entries of the leaves that depend on the parameters, shape ``(m,)``.
        rebuild: A vector ↦ outputs with these entries, the other leaves constant.
    """

    vector: Tensor
    rebuild: Callable[[Tensor], Any]


def flatten_outputs(outputs: Any) -> FlatOutputs:
    """Write outputs as a vector.

    Args:
        outputs: A tensor or a nest of tensors.

    Returns:
        The vector, and the way back.

    Raises:
        InvalidInputError: For complex tensors and objects that may hide tensors.
    """  # noqa: DOC502 - raised by _moves
    leaves, spec = pytree.tree_flatten(outputs)
    moving = [_moves(leaf) for leaf in leaves]
    free = [leaf for leaf, yes in zip(leaves, moving, strict=True) if yes]
    shapes = [leaf.shape for leaf in free]
    # no reference to the graph: it would outlive its operator's need
    fixed = [
        None if yes else leaf.detach() if isinstance(leaf, Tensor) else leaf
        for leaf, yes in zip(leaves, moving, strict=True)
    ]

    def rebuild(vector: Tensor) -> Any:
        pieces = iter(vector.split([shape.numel() for shape in shapes]))
        sizes = iter(shapes)
        filled = [
            next(pieces).reshape(next(sizes)) if yes else leaf
            for leaf, yes in zip(fixed, moving, strict=True)
        ]
        return pytree.tree_unflatten(filled, spec)

    if len(free) == 1:
        return FlatOutputs(vector=free[0].reshape(-1), rebuild=rebuild)
    parts = [leaf.reshape(-1) for leaf in free]
    return FlatOutputs(
        vector=torch.cat(parts) if parts else torch.zeros(0), rebuild=rebuild
    )


def _moves(leaf: Any) -> bool:
    if not isinstance(leaf, Tensor):
        if leaf is None or isinstance(leaf, bool | int | float | str):
            return False
        raise InvalidInputError(
            f"The network's outputs hold a {type(leaf).__name__}, which may hide "
            "tensors. Return a tensor, or tuples, lists and dictionaries of them."
        )
    if leaf.is_complex() and leaf.requires_grad:
        raise InvalidInputError(
            "The network's outputs are complex. Return torch.view_as_real of them."
        )
    return leaf.requires_grad


def refuse_without_outputs(system: GradientSystem, what: str) -> None:
    """Refuse a system in which outputs and loss are not apart.

    Args:
        system: The system.
        what: Name of the operator.

    Raises:
        InvalidInputError: If it was made with ``batch_loss``.
    """
    if system.batch_loss is not None or system.loss_fn is None:
        raise InvalidInputError(
            f"{what} needs the network's outputs and the loss apart, but the system "
            "was made with batch_loss. Pass GradientSystem(model, loss_fn, data) with "
            "batches (x, y), where loss_fn(model(x), y) is the mean loss; x and the "
            "outputs may be any nest of tensors, e.g. a dictionary that a wrapping "
            "module hands on."
        )
