"""Write named tensors into a user's model: all of them or none."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from dynprune.core import InvalidInputError

_SHOWN = 4


def differences(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    there: str = "there",
    here: str = "in the ticket",
    *,
    dtypes: bool = True,
) -> list[str]:
    """List how two sets of named tensors differ, a line for each kind of difference.

    Args:
        expected: Those of the ticket.
        found: The others.
        there: Where the others are, as a word of the message.
        here: Where the expected ones are.
        dtypes: Whether dtypes and data count, too.

    Returns:
        The lines; empty if the two sets agree.
    """
    shared = [name for name in expected if name in found]
    kinds = {
        f"missing {there}": [name for name in expected if name not in found],
        f"missing {here}": [name for name in found if name not in expected],
        "of another shape": [
            f"{name} {tuple(found[name].shape)} instead of "
            f"{tuple(expected[name].shape)}"
            for name in shared
            if found[name].shape != expected[name].shape
        ],
        "of another dtype": [
            f"{name} {found[name].dtype} instead of {expected[name].dtype}"
            for name in shared
            if dtypes and found[name].dtype != expected[name].dtype
        ],
        "without data (meta device)": [
            name for name in shared if found[name].device.type == "meta"
        ],
    }
    return [f"{kind}: {listed(names)}" for kind, names in kinds.items() if names]


def check_same(
    what: str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    """Check that two sets of named tensors agree in names, shapes and dtypes.

    Args:
        what: What the tensors are, e.g. ``"parameters"``.
        expected: Those of the ticket.
        found: Those of the model.

    Raises:
        InvalidInputError: If they do not; every kind of difference is listed.
    """
    lines = differences(expected, found)
    if lines:
        raise InvalidInputError(
            f"The ticket's {what} do not fit: {'; '.join(lines)}. Pass the model that "
            "the ticket was made for, in the same dtype; nothing was changed."
        )


def check_masks(masks: Iterable[tuple[str, Tensor]], model: nn.Module) -> None:
    """Check that a model has a parameter of the same shape for every mask.

    Args:
        masks: Name and boolean tensor.
        model: The user's model.

    Raises:
        InvalidInputError: If a name is missing or a shape differs.
    """
    own = dict(model.named_parameters())
    wrong = [
        f"{name} {tuple(mask.shape)}"
        + (f" (it is {tuple(own[name].shape)} there)" if name in own else "")
        for name, mask in masks
        if name not in own or own[name].shape != mask.shape
    ]
    if wrong:
        raise InvalidInputError(
            f"The ticket masks {listed(wrong)}, which the model does not have in this "
            f"shape. It has {listed(list(own))}. Pass the model that the ticket was "
            "made for; nothing was changed."
        )


def write(
    model: nn.Module, state: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> None:
    """Copy parameters and buffers into a model, in place; devices may differ.

    Args:
        model: The user's model.
        state: Parameter name to tensor, all of the model's.
        buffers: Buffer name to tensor, all of the model's.
    """
    parameters, own = dict(model.named_parameters()), dict(model.named_buffers())
    check_same("parameters", state, parameters)
    check_same("buffers", buffers, own)
    with torch.no_grad():
        for name, value in state.items():
            parameters[name].copy_(value)
        for name, value in buffers.items():
            own[name].copy_(value)


def listed(names: list[str]) -> str:
    """Return the first names, and how many more there are.

    Args:
        names: Any number of them.

    Returns:
        A list as prose.
    """
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
