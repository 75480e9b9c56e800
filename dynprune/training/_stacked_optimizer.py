"""Optimisers that may move many networks as one: those that act entry by entry."""

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from dynprune.core import InvalidInputError

# Each acts on every entry by itself, given the entry's own gradient and state, and its
# hyperparameters: on stacked tensors it does what it does on their slices.
_ELEMENT_WISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adamax,
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.ASGD,
    torch.optim.RMSprop,
    torch.optim.Rprop,
)


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimiser that may mix the entries of its tensors.

    Args:
        optimizer: What a factory made.

    Raises:
        InvalidInputError: If it is none of torch's element-wise ones, or has hooks.
    """
    names = ", ".join(kind.__name__ for kind in _ELEMENT_WISE)
    if type(optimizer) not in _ELEMENT_WISE:
        raise InvalidInputError(
            f"Stacked training was asked with {type(optimizer).__name__}, which may "
            "mix the entries of a tensor (norms, factors, line searches): on a stack "
            f"it would mix networks. Use one of {names}, or how='processes'."
        )
    hooks = {
        **optimizer._optimizer_step_pre_hooks,
        **optimizer._optimizer_step_post_hooks,
    }
    if hooks:
        raise InvalidInputError(
            f"Stacked training was asked with an optimiser that has {len(hooks)} step "
            "hooks (gradient clipping by norm, for instance), which would see all "
            "networks as one. Remove them, or use how='processes'."
        )


def on_stacks(optimizer: Optimizer, stacks: Mapping[Tensor, Tensor]) -> Optimizer:
    """Return an optimiser of the same kind and groups that moves stacked tensors.

    It is made of the groups and not by the user's factory again: one that treats biases
    by their number of dimensions would find one more.

    Args:
        optimizer: Of one network's parameters, accepted by :func:`check_optimizer`.
        stacks: Each of those parameters to its stack, shape ``(R, …)``.

    Returns:
        A fresh optimiser.

    Raises:
        InvalidInputError: If it moves a tensor that has no stack.
    """
    unknown = [
        part
        for group in optimizer.param_groups
        for part in group["params"]
        if part not in stacks
    ]
    if unknown:
        raise InvalidInputError(
            f"The optimiser moves {len(unknown)} tensors that are no parameters of the "
            "system, which stacked training cannot follow. Use how='processes'."
        )
    kind = type(optimizer)
    taken = inspect.signature(kind).parameters
    return kind(
        [
            {**group, "params": [stacks[part] for part in group["params"]]}
            for group in optimizer.param_groups
        ],
        **{key: part for key, part in optimizer.defaults.items() if key in taken},
    )
