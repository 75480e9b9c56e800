"""The door for a model and its settings: what is trained, and where it lies."""

import fnmatch
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

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
        InvalidInputError: For no module, one that has no shapes yet or cannot be
            copied, no loss, or numbers out of range.
    """
    if not isinstance(model, nn.Module):
        raise InvalidInputError(
            f"The model is a {type(model).__name__}. Pass a torch.nn.Module."
        )
    _check_shapes(model)
    _check_copies(model)
    if loss_fn is None and batch_loss is None:
        raise InvalidInputError(
            "No loss was given. Pass loss_fn(outputs, targets), or batch_loss(model, "
            "batch)."
        )
    if not 0.0 <= l2 < float("inf"):
        raise InvalidInputError(f"l2 is {l2}. Pass a finite number ≥ 0.")
    if microbatch is not None and microbatch < 1:
        raise InvalidInputError(f"microbatch is {microbatch}. Pass at least 1.")


def _check_shapes(model: nn.Module) -> None:
    every = [*model.named_parameters(), *model.named_buffers()]
    lazy = [name for name, part in every if is_lazy(part)]
    if lazy:
        raise InvalidInputError(
            f"Without a shape yet: {', '.join(lazy)} (lazy layers that have not run). "
            "Make one forward pass of the model first: model(x)."
        )


def _check_copies(model: nn.Module) -> None:
    # torch copies no tensor that has a history, and a hook gives it one at each pass
    computed, held = [], []
    for prefix, module in model.named_modules():
        if getattr(module, "__deepcopy__", None):  # as Ticket.to_torch_prune leaves it
            continue
        start = f"{prefix}." if prefix else ""
        names = [
            hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name
            for hook in module._forward_pre_hooks.values()
            if isinstance(hook, BasePruningMethod | WeightNorm | SpectralNorm)
        ]
        computed += [f"{start}{name}" for name in names]
        held += [
            f"{start}{name}"
            for name, part in vars(module).items()
            if isinstance(part, Tensor) and not part.is_leaf and name not in names
        ]
    if computed:
        raise InvalidInputError(
            f"Hooks compute {', '.join(computed)} at each pass, and no model that has "
            "them can be copied. Of one pruned by torch.nn.utils.prune, keep "
            "Ticket.from_torch_prune(model).masks for mask=, and call prune.remove on "
            "its modules; for weight_norm and spectral_norm, use those of "
            "torch.nn.utils.parametrizations."
        )
    if held:
        raise InvalidInputError(
            f"The model holds tensors with a history ({', '.join(held)}), and cannot "
            "be copied. Keep them by detach(), or take them off."
        )


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
