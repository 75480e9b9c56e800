"""Units of layers as they flow through a traced network, and their removal."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from dynprune.core import InvalidInputError
from dynprune.tickets._apply import listed


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Axis:
    """Hold what is known of the channels of one tensor in the graph.

    Args:
        dim: Which dimension they are; 1, or the last one.
        ids: Number of the unit behind each position; ``(C,)``.
        fixed: Whether the position has one value for all inputs; ``(C,)``.
        values: That value, in float64; anything where it is not fixed; ``(C,)``.
    """

    dim: int
    ids: Tensor
    fixed: Tensor
    values: Tensor

    def __repr__(self) -> str:
        """Return one line."""
        return f"Axis({len(self.ids)} channels, {int(self.fixed.sum())} fixed)"


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Layer:
    """Hold a layer that mixes channels: a Linear or an ungrouped Conv.

    Args:
        module: The layer.
        rows: Ids of its output units.
        inputs: The channels it reads; None if they cannot be followed.
        links: Which output reads which input, ``(out, in)``, True = not all zero.
    """

    module: "nn.Linear | _ConvNd"
    rows: Tensor
    inputs: Axis | None
    links: Tensor

    def __repr__(self) -> str:
        """Return one line."""
        return f"Layer({self.module})"

    @property
    def constant(self) -> Tensor:
        """Input positions whose contribution is a constant, ``(in,)``."""
        if self.inputs is None:
            return torch.zeros(self.links.shape[1], dtype=torch.bool)
        return constant(self.module, self.inputs)

    def fold(self, positions: Tensor) -> Tensor:
        """Return what constant inputs add to every output.

        Args:
            positions: Which inputs, ``(in,)``, all of them constant.

        Returns:
            Float64, shape ``(out,)``.
        """
        if self.inputs is None or not bool(positions.any()):
            return torch.zeros(len(self.links), dtype=torch.float64)
        weight = self.module.weight.detach()[:, positions.to(self.module.weight.device)]
        sums = weight.cpu().double().flatten(2).sum(2) if weight.ndim > 2 else weight
        return sums.cpu().double() @ self.inputs.values[positions]


@final
class Channels:
    """Record which units exist, which are the same one, and which must stay."""

    def __init__(self) -> None:
        self.layers: dict[str, Layer] = {}
        self.channelwise: dict[str, tuple[nn.Module, Tensor]] = {}
        self.reasons: dict[str, str] = {}
        self._parents: list[int] = []
        self._stay: set[int] = set()

    def fresh(self, count: int) -> Tensor:
        """Return ids of new units.

        Args:
            count: How many.

        Returns:
            Shape ``(count,)``.
        """
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def unify(self, a: Tensor, b: Tensor) -> None:
        """Say that units are added or multiplied with each other: all go or none.

        Args:
            a: Ids.
            b: As many.
        """
        for one, other in zip(a.tolist(), b.tolist(), strict=True):
            self._parents[self._root(one)] = self._root(other)

    def stay(self, axis: Axis | None, why: str) -> None:
        """Say that a tensor is read in a way that asks for all of its channels.

        Args:
            axis: Its channels, if they are followed.
            why: What reads it.
        """
        if axis is not None:
            self._stay.update(axis.ids.tolist())
            self.reasons.setdefault(why, why)

    def roots(self, ids: Tensor) -> Tensor:
        """Return one id for all units that go together.

        Args:
            ids: Any ids.

        Returns:
            The same shape.
        """
        return torch.tensor([self._root(one) for one in ids.tolist()], dtype=torch.long)

    def _root(self, one: int) -> int:
        while self._parents[one] != one:
            self._parents[one] = self._parents[self._parents[one]]
            one = self._parents[one]
        return one

    @property
    def staying(self) -> Tensor:
        """Whether a unit must stay whatever its weights are, by id."""
        found = torch.zeros(len(self._parents), dtype=torch.bool)
        if self._stay:
            found[self.roots(torch.tensor(sorted(self._stay)))] = True
        return self._spread(found)

    def _spread(self, marked: Tensor) -> Tensor:
        return marked[self.roots(torch.arange(len(self._parents)))]

    def needed(self) -> Tensor:
        """Find the units that the output depends on; every layer has at least one.

        Returns:
            By id, True = needed.
        """
        rows = {name: self.roots(layer.rows) for name, layer in self.layers.items()}
        found = self._closure(self.staying, rows)
        for ids in rows.values():
            # without influence, so that nothing it reads is needed for it
            if not found[ids].any():
                found[ids[0]] = True
        return self._spread(found)

    def _closure(self, found: Tensor, rows: Mapping[str, Tensor]) -> Tensor:
        found, before = found.clone(), -1
        while int(found.sum()) != before:
            before = int(found.sum())
            for name, layer in reversed(self.layers.items()):
                if layer.inputs is not None:
                    read = layer.links[found[rows[name]]].any(0) & ~layer.constant
                    found[self.roots(layer.inputs.ids[read])] = True
        return found

    def remove_(self, needed: Tensor) -> None:
        """Take the other units out of the layers, constants into biases, in place.

        Args:
            needed: By id, True = it stays.
        """
        for layer in self.layers.values():
            rows = needed[layer.rows]
            columns = torch.ones(layer.links.shape[1], dtype=torch.bool)
            if layer.inputs is not None:
                columns = needed[layer.inputs.ids]
            added = layer.fold(layer.constant & ~columns)
            _shrink_(layer.module, rows, columns, added)
        for module, ids in self.channelwise.values():
            _shrink_channelwise_(module, needed[ids])

    def without(self, keep: Mapping[str, Tensor]) -> Tensor:
        """Read which units a user wants to keep.

        Args:
            keep: Layer to boolean tensor over its output units.

        Returns:
            By id, True = it stays.

        Raises:
            InvalidInputError: If a layer is not followed, a tensor is not one boolean
                for each unit or keeps none, or a unit has to stay.
        """
        gone = torch.zeros(len(self._parents), dtype=torch.bool)
        kept = torch.zeros_like(gone)
        for name, part in keep.items():
            if name not in self.layers:
                raise InvalidInputError(
                    f"{name!r} is no Linear or ungrouped Conv layer whose units can be "
                    f"followed. There are {listed(list(self.layers))}."
                )
            rows = self.roots(self.layers[name].rows)
            if part.dtype != torch.bool or part.shape != rows.shape:
                raise InvalidInputError(
                    f"{name!r} has {len(rows)} units, found {tuple(part.shape)} "
                    f"{part.dtype}. Pass one boolean for each, True = kept."
                )
            if not part.any():
                raise InvalidInputError(f"{name!r} would keep no unit. Keep one.")
            gone[rows[~part.cpu()]] = True
            kept[rows[part.cpu()]] = True
        for name, layer in self.layers.items():
            rows = self.roots(layer.rows)
            stays = gone[rows] & (self.staying[rows] | kept[rows])
            if name not in keep:
                stays = gone[rows]
            if stays.any():
                raise InvalidInputError(
                    f"{int(stays.sum())} units to be removed are also units of "
                    f"{name!r} that stay: they are added to each other, or all "
                    f"channels are read by {listed(list(self.reasons))}. Keep them, or "
                    "name the same ones for every layer that is added."
                )
        return self._spread(~gone)


def constant(module: "nn.Linear | _ConvNd", inputs: Axis) -> Tensor:
    """Find the inputs of a layer whose contribution to its outputs is a constant.

    A fixed value is one, except a value that is not zero beside zero padding.

    Args:
        module: The layer.
        inputs: The channels it reads.

    Returns:
        Shape ``(in,)``.
    """
    if _pads_zeros(module):
        return inputs.fixed & (inputs.values == 0)
    return inputs.fixed


def _pads_zeros(module: "nn.Linear | _ConvNd") -> bool:
    if isinstance(module, nn.Linear) or module.padding_mode != "zeros":
        return False
    if isinstance(module.padding, str):
        return module.padding != "valid" and any(k > 1 for k in module.kernel_size)
    return any(module.padding)


def _shrink_(
    module: "nn.Linear | _ConvNd", rows: Tensor, columns: Tensor, added: Tensor
) -> None:
    place = module.weight.device
    rows, columns = rows.to(place), columns.to(place)
    weight = module.weight.detach()[rows][:, columns].contiguous()
    old = module.bias
    if old is not None or bool(added[rows.cpu()].any()):
        bias = added[rows.cpu()].to(place)
        if old is not None:
            bias = bias + old.detach()[rows].double()
        learned = old.requires_grad if old is not None else module.weight.requires_grad
        module.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=learned)
    module.weight = nn.Parameter(weight, requires_grad=module.weight.requires_grad)
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = weight.shape
    else:
        module.out_channels, module.in_channels = weight.shape[:2]


def _shrink_channelwise_(module: nn.Module, kept: Tensor) -> None:
    count = int(kept.sum())
    for store in (module._parameters, module._buffers):
        for name, part in store.items():
            if part is None or part.shape[:1] != kept.shape:
                continue
            small: Tensor = part.detach()[kept.to(part.device)].clone()
            if isinstance(part, nn.Parameter):
                small = nn.Parameter(small, requires_grad=part.requires_grad)
            setattr(module, name, small)
    if isinstance(module, _BatchNorm):
        module.num_features = count
    elif isinstance(module, nn.PReLU):
        module.num_parameters = count
    elif isinstance(module, _ConvNd):
        module.in_channels = module.out_channels = module.groups = count
