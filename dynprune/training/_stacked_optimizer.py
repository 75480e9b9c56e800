"""Optimisers that may move many networks as one: those that act entry by entry."""

import inspect
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)

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
    """Refuse an optimiser that may mix the entries of its tensors, or has extras.

    A stack gets a fresh optimiser of the same kind and groups, so nothing that a
    factory attached to the optimiser or its parameters would be on it.

    Args:
        optimizer: What a factory made, with or without a scheduler.

    Raises:
        InvalidInputError: If it is none of torch's element-wise ones, has methods or
            hooks of its own, hooks on its parameters, or a state before its first step.
    """  # noqa: DOC501 - _extra makes one
    names = ", ".join(kind.__name__ for kind in _ELEMENT_WISE)
    if type(optimizer) not in _ELEMENT_WISE:
        raise InvalidInputError(
            f"Stacked training was asked with {type(optimizer).__name__}, which may "
            "mix the entries of a tensor (norms, factors, line searches): on a stack "
            f"it would mix networks. Use one of {names}, or how='processes'."
        )
    replaced = ", ".join(_replaced(optimizer))
    if replaced:
        raise _extra(f"whose {replaced} is its own", "would be lost on a stack")
    hooks = _step_hooks(optimizer)
    if hooks:
        raise _extra(
            f"that has {hooks} step hooks (gradient clipping by norm, for instance)",
            "would see all networks as one",
        )
    moved = [part for group in optimizer.param_groups for part in group["params"]]
    hooked = sum(_is_hooked(part) for part in moved)
    if hooked:
        raise _extra(f"with hooks on {hooked} of its tensors", "would be lost")
    if not all(_is_fresh(optimizer, part) for part in optimizer.state):
        raise _extra(
            "that has a state before the first step (a warm momentum, for instance)",
            "would be lost",
        )


def _extra(found: str, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"Stacked training was asked with an optimiser {found}, which {why}. Leave it "
        "out, or use how='processes' or 'serial'."
    )


def _replaced(optimizer: Optimizer) -> list[str]:
    known, found = dir(type(optimizer)), []
    for name, part in vars(optimizer).items():
        if not callable(part) or name not in known:
            continue
        if getattr(part, "_wrapped_by_lr_sched", False):  # a scheduler counts steps
            part = part.__wrapped__
        if part is not getattr(type(optimizer), name):
            found.append(name)
    return found


def _step_hooks(optimizer: Optimizer) -> int:
    return sum(
        len(hooks)
        for hooks in (
            optimizer._optimizer_step_pre_hooks,
            optimizer._optimizer_step_post_hooks,
            _global_optimizer_pre_hooks,
            _global_optimizer_post_hooks,
        )
    )


def _is_hooked(part: Tensor) -> bool:
    return bool(part._backward_hooks) or bool(part._post_accumulate_grad_hooks)


def _is_fresh(optimizer: Optimizer, part: Tensor) -> bool:
    found = optimizer.state[part]
    if type(optimizer) is not torch.optim.Adagrad or set(found) != {"step", "sum"}:
        return not found
    start = optimizer.defaults["initial_accumulator_value"]
    return float(found["step"]) == 0 and bool((found["sum"] == start).all())


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
