"""Coordinates by the names of parameters, and products with named tensors."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dynprune.core import Coordinates, InvalidInputError, unknown
from dynprune.system import GradientSystem

if TYPE_CHECKING:
    from dynprune.operators._operator import AbstractOperator


def select(system: GradientSystem, patterns: str | Sequence[str]) -> Tensor:
    """Return the mask of the coordinates that belong to some parameters.

    Args:
        system: The system.
        patterns: Glob pattern(s) of parameter names, e.g. ``"layers.0.*"``.

    Returns:
        Boolean, shape ``(P,)``, on the CPU, True for entries of a parameter whose name
        matches; for ``operator.restrict``.

    Raises:
        InvalidInputError: If a pattern matches no parameter, or no survivor is left.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> data = torch.eye(2), torch.zeros(2, 1)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, data)
        >>> select(system, "*bias")
        tensor([False, False,  True])
    """  # noqa: DOC501 - unknown() makes it
    own = system.coordinates
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    full = torch.zeros(own.full_size, dtype=torch.bool)
    for pattern in wanted:
        names = fnmatch.filter(own.names, pattern)
        if not names:
            raise unknown("parameter", pattern, own.names)
        for name in names:
            full[own.slices[name]] = True
    mask = full if own.survivors is None else full[own.survivors.cpu()]
    if not bool(mask.any()):
        raise InvalidInputError(
            f"No coordinate of {wanted} is left: the system's mask pruned them all. "
            "Select others."
        )
    return mask


def named_product(
    operator: "AbstractOperator",
    coordinates: Coordinates | None,
    tensors: Mapping[str, Tensor] | Sequence[Tensor],
) -> dict[str, Tensor] | list[Tensor]:
    """Multiply an operator with tensors shaped like the parameters.

    Args:
        operator: A, whose rows are ``coordinates``.
        coordinates: Which entries of which parameters the rows are; None refuses.
        tensors: Name to tensor, or tensors in the order of the parameters; each of its
            parameter's shape, or all with one more axis of k columns at the end.
            Entries that are no coordinate (pruned, or outside a restriction) are
            ignored, and may be left out by name if a parameter has no other.

    Returns:
        The product in the same form: a dictionary in the order of the parameters, or
        a list; zeros where there is no coordinate.

    Raises:
        InvalidInputError: If the operator's rows are no parameters, a tensor is missing
            or unknown, or shapes differ.
    """  # noqa: DOC501 - unknown() makes it
    if coordinates is None:
        raise InvalidInputError(
            f"A product with named tensors was asked of {type(operator).__name__}, "
            "whose rows are no parameters of a system. Pass a tensor."
        )
    if isinstance(tensors, Mapping):
        given = dict(tensors)
    else:
        if len(tensors) != len(coordinates.names):
            raise InvalidInputError(
                f"{len(tensors)} tensors were given for {len(coordinates.names)} "
                f"parameters: {', '.join(coordinates.names)}. Pass one for each."
            )
        given = dict(zip(coordinates.names, tensors, strict=True))
    for name in given:
        if name not in coordinates.names:
            raise unknown("parameter", name, coordinates.names)
    block = _flatten(coordinates, given, operator)
    found = _unflatten(coordinates, operator @ block)
    return found if isinstance(tensors, Mapping) else list(found.values())


def _flatten(
    own: Coordinates, given: dict[str, Tensor], operator: "AbstractOperator"
) -> Tensor:
    extra = {
        tuple(given[name].shape[len(shape) :])
        for name, shape in zip(own.names, own.shapes, strict=True)
        if name in given and tuple(given[name].shape[: len(shape)]) == tuple(shape)
    }
    wide = extra.pop() if len(extra) == 1 else ()
    survive = torch.ones(own.full_size, dtype=torch.bool)
    if own.survivors is not None:
        survive = torch.zeros_like(survive)
        survive[own.survivors.cpu()] = True
    parts = []
    for name, shape in zip(own.names, own.shapes, strict=True):
        count = torch.Size(shape).numel()
        if name in given:
            if tuple(given[name].shape) != (*shape, *wide) or len(wide) > 1:
                raise InvalidInputError(
                    f"Tensor {name!r} has shape {tuple(given[name].shape)}; its "
                    f"parameter has {tuple(shape)}. Pass all tensors of their "
                    "parameters' shapes, or all with one axis of columns at the end."
                )
            parts.append(given[name].detach().reshape(count, *wide))
        elif bool(survive[own.slices[name]].any()):
            raise InvalidInputError(
                f"Tensor {name!r} is missing. Found: {', '.join(given)}. Pass one for "
                "each parameter that has coordinates here."
            )
        else:
            parts.append(
                torch.zeros(count, *wide, dtype=operator.dtype, device=operator.device)
            )
    full = torch.cat(parts)
    return full if own.survivors is None else full[own.survivors.to(full.device)]


def _unflatten(own: Coordinates, block: Tensor) -> dict[str, Tensor]:
    full = own.expand(block)
    return {
        name: full[place].reshape(*shape, *block.shape[1:])
        for (name, place), shape in zip(own.slices.items(), own.shapes, strict=True)
    }
