"""Flat coordinates of named tensors, all of them or the survivors of a mask."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynprune.core.errors import InvalidInputError


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Coordinates:
    """Map named tensors to one flat vector and back.

    Coordinate j is the j-th survivor of the tensors laid out one after the other in
    the order of ``names``, each row-major. Without survivors every entry is one.

    Args:
        names: Parameter names, in ``named_parameters`` order.
        shapes: Their shapes.
        survivors: Sorted flat positions that are kept, shape ``(size,)``, or None for
            all ``full_size`` of them.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    survivors: Tensor | None = None

    @property
    def full_size(self) -> int:
        """Number of entries of all tensors, pruned ones included."""
        return sum(torch.Size(shape).numel() for shape in self.shapes)

    @property
    def size(self) -> int:
        """Number P of coordinates."""
        return self.full_size if self.survivors is None else len(self.survivors)

    @property
    def slices(self) -> dict[str, slice]:
        """Where each tensor lies in the full vector, pruned entries included."""
        found, start = {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            stop = start + torch.Size(shape).numel()
            found[name] = slice(start, stop)
            start = stop
        return found

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Lay named tensors out as one vector of coordinates.

        Args:
            tensors: One tensor for each of ``names``; others are ignored.

        Returns:
            A new vector, shape ``(P,)``.

        Raises:
            InvalidInputError: If a name is missing or a shape differs.
        """
        for name, shape in zip(self.names, self.shapes, strict=True):
            if name not in tensors:
                raise InvalidInputError(
                    f"Tensor {name!r} is missing. Found: {', '.join(tensors)}. Pass "
                    "one tensor for each parameter name."
                )
            if tuple(tensors[name].shape) != tuple(shape):
                raise InvalidInputError(
                    f"Tensor {name!r} has shape {tuple(tensors[name].shape)}, "
                    f"expected {tuple(shape)}. Pass tensors of the same model."
                )
        full = torch.cat([tensors[name].reshape(-1) for name in self.names])
        return full if self.survivors is None else full[self.survivors.to(full.device)]

    def expand(self, vector: Tensor) -> Tensor:
        """Place coordinates in the full vector, zeros where weights are pruned.

        Args:
            vector: Shape ``(P,)`` or ``(P, k)``.

        Returns:
            Shape ``(full_size,)`` or ``(full_size, k)``; differentiable.

        Raises:
            InvalidInputError: If the first size is not P.
        """
        if vector.shape[0] != self.size:
            raise InvalidInputError(
                f"A vector of {vector.shape[0]} coordinates was given, the system has "
                f"{self.size}. Use flatten() of the same system."
            )
        if self.survivors is None:
            return vector
        full = vector.new_zeros((self.full_size, *vector.shape[1:]))
        return full.index_copy(0, self.survivors.to(vector.device), vector)

    def unflatten(self, vector: Tensor) -> dict[str, Tensor]:
        """Return named tensors for a vector of coordinates.

        Args:
            vector: Shape ``(P,)``.

        Returns:
            Name to tensor; pruned entries are exactly zero. Without survivors the
            tensors are views of ``vector``; clone them to keep them.

        Raises:
            InvalidInputError: If the length is not P.
        """  # noqa: DOC502 - raised by expand
        full = self.expand(vector)
        parts = full.split([torch.Size(shape).numel() for shape in self.shapes])
        return {
            name: part.view(shape)
            for name, shape, part in zip(self.names, self.shapes, parts, strict=True)
        }

    def restrict(self, masks: Mapping[str, Tensor]) -> "Coordinates":
        """Keep only the survivors of masks; tensors without a mask stay whole.

        Args:
            masks: Parameter name to boolean tensor of its shape, True = kept.

        Returns:
            The coordinates of the survivors.

        Raises:
            InvalidInputError: If a mask's name or shape is not one of ours.
        """
        for name, mask in masks.items():
            if name not in self.names:
                raise InvalidInputError(
                    f"There is a mask for {name!r}, which is no parameter here. "
                    f"Parameters: {', '.join(self.names)}."
                )
            shape = self.shapes[self.names.index(name)]
            if tuple(mask.shape) != tuple(shape):
                raise InvalidInputError(
                    f"The mask of {name!r} has shape {tuple(mask.shape)}, the "
                    f"parameter {tuple(shape)}. Use a ticket of the same model."
                )
        kept = torch.cat([
            masks[name].detach().to("cpu", torch.bool).reshape(-1)
            if name in masks
            else torch.ones(torch.Size(shape).numel(), dtype=torch.bool)
            for name, shape in zip(self.names, self.shapes, strict=True)
        ])
        if self.survivors is not None:
            before = torch.zeros(self.full_size, dtype=torch.bool)
            before[self.survivors] = True
            kept &= before
        return Coordinates(
            names=self.names,
            shapes=self.shapes,
            survivors=torch.nonzero(kept).reshape(-1),
        )
