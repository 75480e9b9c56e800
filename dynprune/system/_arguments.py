"""The door for a model and its settings: what is trained, and where it lies."""

import fnmatch
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dynprune.core import InvalidInputError


def own_masks(mask: Mapping[str, Tensor] | None) -> tuple[tuple[str, Tensor], ...]:
    """Return masks as pairs of a name and a boolean copy.

    Args:
        mask: Parameter name to tensor, or None.

    Returns:
        The pairs, none for None.
    """
    return tuple(
        (name, part.detach().bool().clone()) for name, part in (mask or {}).items()
    )


def check_arguments(
    model: object,
    loss_fn: object,
    batch_loss: object,
    l2: float,
    microbatch: int | None,
) -> None:
    """Refuse what cannot make a system, whatever the data are.

    Args:
        model: As given.
        loss_fn: As given.
        batch_loss: As given.
        l2: As given.
        microbatch: As given.

    Raises:
        InvalidInputError: For no module, no loss, or numbers out of range.
    """
    if not isinstance(model, nn.Module):
        raise InvalidInputError(
            f"The model is a {type(model).__name__}. Pass a torch.nn.Module."
        )
    if loss_fn is None and batch_loss is None:
        raise InvalidInputError(
            "No loss was given. Pass loss_fn(outputs, targets), or batch_loss(model, "
            "batch)."
        )
    if not 0.0 <= l2 < float("inf"):
        raise InvalidInputError(f"l2 is {l2}. Pass a finite number ≥ 0.")
    if microbatch is not None and microbatch < 1:
        raise InvalidInputError(f"microbatch is {microbatch}. Pass at least 1.")


def select(model: nn.Module, parameters: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the trainable parameters that patterns select.

    Args:
        model: The model.
        parameters: Glob pattern(s); all of them if None.

    Returns:
        Names in ``named_parameters`` order.

    Raises:
        InvalidInputError: If there is none.
    """
    trainable = [name for name, part in model.named_parameters() if part.requires_grad]
    if not trainable:
        raise InvalidInputError(
            "The model has no trainable parameter. Set requires_grad on those to be "
            "trained."
        )
    if parameters is None:
        return tuple(trainable)
    patterns = [parameters] if isinstance(parameters, str) else list(parameters)
    chosen = tuple(
        name
        for name in trainable
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    )
    if not chosen:
        raise InvalidInputError(
            f"No trainable parameter matches {patterns}. Found: {', '.join(trainable)}."
        )
    return chosen


def place_of(
    parameters: Mapping[str, Tensor], names: Sequence[str]
) -> tuple[torch.dtype, torch.device]:
    """Return the one dtype and the one device of parameters.

    Args:
        parameters: Name to tensor.
        names: The selected ones.

    Returns:
        The dtype and the device.

    Raises:
        InvalidInputError: If there are several, or the dtype is not a real float.
    """
    dtypes = {parameters[name].dtype for name in names}
    devices = {parameters[name].device for name in names}
    if len(dtypes) > 1 or len(devices) > 1:
        raise InvalidInputError(
            f"The selected parameters are of {sorted(map(str, dtypes))} on "
            f"{sorted(map(str, devices))}. Move them to one dtype and device, or "
            "select some with parameters=."
        )
    dtype = dtypes.pop()
    if not dtype.is_floating_point:
        raise InvalidInputError(
            f"The parameters are {dtype}. Only real floating-point ones are supported."
        )
    return dtype, devices.pop()
