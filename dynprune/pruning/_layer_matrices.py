"""Layers as matrices: how a weight is laid out, and the rows it is multiplied with."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from dynprune.core import InvalidInputError
from dynprune.system import GradientSystem, is_conv1d

Layout = Literal["rows", "columns", "transposed"]
Role = Literal["vectors", "patches", "stacked", "query", "key", "value", "heads"]
_NUMBERS = 2**22  # of one slice of rows in float64: 32 MiB
_ATTENTION: dict[str, Role] = {
    "in_proj_weight": "stacked",
    "q_proj_weight": "query",
    "k_proj_weight": "key",
    "v_proj_weight": "value",
}


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Source:
    """Name a module whose calls show what a weight is multiplied with.

    Args:
        module: The module.
        role: What of its arguments that is: vectors along their last axis, patches,
            what an attention layer projects, or the heads that it projects back.
    """

    module: nn.Module
    role: Role

    def slices(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Iterator[list[Tensor]]:
        """Cut what one call multiplies into slices of bounded size.

        Args:
            args: Of the call.
            kwargs: Of the call.

        Yields:
            Float64 matrices of shape ``(rows, in per group)``, one per group.

        Raises:
            InvalidInputError: If a transposed convolution is given its output's size.
        """
        if isinstance(self.module, nn.MultiheadAttention):
            yield [_vectors(part) for part in self._attended(args, kwargs)]
            return
        x: Tensor = [*args, *kwargs.values()][0].detach()
        if self.role == "vectors":
            for part in _vectors(x).split(max(1, _NUMBERS // x.shape[-1])):
                yield [part]
            return
        conv = self.module
        assert isinstance(conv, nn.modules.conv._ConvNd)
        if isinstance(conv, nn.modules.conv._ConvTransposeNd) and (
            len(args) > 1 or kwargs.get("output_size") is not None
        ):
            raise InvalidInputError(
                f"A {type(conv).__name__} is called with output_size, which SparseGPT "
                "cannot read. Set output_padding, or leave its weight out with "
                "GradientSystem(..., prunable=...)."
            )
        x = x.reshape(-1, *x.shape[-len(conv.kernel_size) - 1 :])
        width = x[:1].numel() * math.prod(conv.kernel_size)
        # an upper bound is enough: a transposed one has more rows, by its strides
        strides = math.prod(conv.stride)
        width = width * strides if conv.transposed else max(1, width // strides)
        for part in x.split(max(1, _NUMBERS // width)):
            yield list(_patches(conv, part).double())

    @torch.no_grad()
    def _attended(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> list[Tensor]:
        own = self.module
        assert isinstance(own, nn.MultiheadAttention)
        names = ("query", "key", "value")
        given = dict(zip(names, args, strict=False)) | dict(kwargs)
        if self.role == "stacked":
            return [given[name] for name in names]
        if self.role != "heads":
            return [given[self.role]]
        # what the output projection sees is what the layer gives without it
        weight = own.out_proj.weight
        plain = {"out_proj.weight": torch.eye(len(weight)).to(weight)}
        if own.out_proj.bias is not None:
            plain["out_proj.bias"] = torch.zeros_like(own.out_proj.bias)
        heads: Tensor = torch.func.functional_call(
            own, plain, args, dict(kwargs), tie_weights=False
        )[0]
        return [heads]


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Layer:
    """See a prunable weight as a matrix that acts on rows.

    Args:
        name: Of the parameter.
        sources: What shows its inputs; several if it is tied.
        groups: Equal blocks of its rows, each with inputs of its own.
        layout: Whether the parameter has outputs first, as Linear and Conv have,
            outputs last, or outputs second, as transposed convolutions have.
    """

    name: str
    sources: tuple[Source, ...]
    groups: int
    layout: Layout

    def matrix(self, weight: Tensor) -> Tensor:
        """Return a weight as one row per output, shape ``(out, in per group)``.

        Args:
            weight: Of the parameter's shape.

        Returns:
            A view where torch can make one.
        """
        if self.layout == "columns":
            return weight.T
        if self.layout == "rows":
            return weight.flatten(1)
        inside = (len(weight) // self.groups, *weight.shape[1:])
        parts = weight.reshape(self.groups, *inside).transpose(1, 2)
        return parts.flatten(2).flatten(0, 1)

    def weight(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """Undo :meth:`matrix`.

        Args:
            matrix: Shape ``(out, in per group)``.
            shape: Of the parameter.

        Returns:
            A tensor of that shape.
        """
        if self.layout == "columns":
            return matrix.T
        if self.layout == "rows":
            return matrix.reshape(tuple(shape))
        inside = (shape[0] // self.groups, *shape[2:])
        parts = matrix.reshape(self.groups, shape[1], *inside).transpose(1, 2)
        return parts.reshape(tuple(shape))


def layers_of(net: nn.Module, names: Sequence[str]) -> list[Layer]:
    """Find the modules that apply some weights.

    Args:
        net: The network.
        names: Of the weights.

    Returns:
        One layer per name.

    Raises:
        InvalidInputError: If a weight belongs to no known layer, or to several that lay
            it out differently.
    """
    own = dict(net.named_parameters())
    found = []
    for name in names:
        seen = [
            (Source(module=module, role=role), groups, layout)
            for module in net.modules()
            for weight, role, groups, layout in applied(module)
            if weight is own[name]
        ]
        kinds = {(groups, layout) for _, groups, layout in seen}
        if len(kinds) != 1:
            what = " and ".join(type(s.module).__name__ for s, _, _ in seen)
            raise InvalidInputError(
                f"The weight {name!r} is applied by {what or 'no layer'}: it is not "
                "one matrix on the inputs of a Linear, Conv, Conv1D or attention "
                "layer. Leave it out with GradientSystem(..., prunable=...), or use "
                "pruning.obs."
            )
        groups, layout = kinds.pop()
        sources = tuple(source for source, _, _ in seen)
        found.append(Layer(name=name, sources=sources, groups=groups, layout=layout))
    return found


def inputs_per_output(weight: Tensor, groups: int, layout: Layout) -> int:
    """Return the number of columns that :meth:`Layer.matrix` makes of a weight.

    Args:
        weight: Of the parameter's shape.
        groups: Equal blocks of its rows.
        layout: How it is laid out.

    Returns:
        How many inputs one output sums over; 0 for an empty weight.
    """
    if not weight.numel():
        return 0
    outputs = weight.shape[0 if layout == "rows" else 1]
    return weight.numel() // (outputs * (groups if layout == "transposed" else 1))


def evaluate_batch(net: nn.Module, system: GradientSystem, batch: Any) -> None:
    """Run a batch through a network, as the system would.

    Args:
        net: The network.
        system: How batches are evaluated.
        batch: One of its data.
    """
    if system.batch_loss is not None:
        system.batch_loss(net, batch)
    else:
        net(batch[0])


def applied(module: nn.Module) -> Iterator[tuple[Tensor, Role, int, Layout]]:
    """Iterate over the weights that a module applies as matrices.

    Args:
        module: Any module; of an attention layer, its output projection counts, too,
            which it applies without calling it.

    Yields:
        The weight, what it is multiplied with, its groups, and how it is laid out.
    """
    own = dict(module.named_parameters(recurse=False))
    if isinstance(module, nn.MultiheadAttention):
        for name, role in _ATTENTION.items():
            if name in own:
                yield own[name], role, 3 if role == "stacked" else 1, "rows"
        yield module.out_proj.weight, "heads", 1, "rows"
    elif "weight" not in own:
        return
    elif isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear):
        return  # the output projection of an attention layer, which never calls it
    elif isinstance(module, nn.Linear):
        yield own["weight"], "vectors", 1, "rows"
    elif isinstance(module, nn.modules.conv._ConvTransposeNd):
        yield own["weight"], "patches", module.groups, "transposed"
    elif isinstance(module, nn.modules.conv._ConvNd):
        yield own["weight"], "patches", module.groups, "rows"
    elif is_conv1d(module):
        yield own["weight"], "vectors", 1, "columns"


def _vectors(x: Tensor) -> Tensor:
    return x.detach().reshape(-1, x.shape[-1]).double()


def _patches(conv: nn.modules.conv._ConvNd, x: Tensor) -> Tensor:
    # what a convolution multiplies, (groups, rows, in per group)
    axes = len(conv.kernel_size)
    if conv.transposed:
        # a convolution of the input spread out by the strides, with the kernel flipped
        sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], conv.stride, strict=True)]
        spread = x.new_zeros((*x.shape[:2], *sizes))
        places: list[Any] = [slice(None, None, step) for step in conv.stride]
        spread[(..., *places)] = x
        x = nn.functional.pad(spread, _transposed_padding(conv))
        x = _windows(conv, x, (1,) * axes).flip(list(range(-axes, 0)))
    else:
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = nn.functional.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
        x = _windows(conv, x, conv.stride)
    # (N, C, positions…, kernel…) → (N, positions…, C, kernel…)
    order = [0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes)]
    rows = x.permute(order).flatten(0, axes).flatten(1)
    return rows.view(len(rows), conv.groups, -1).transpose(0, 1)


def _windows(conv: nn.modules.conv._ConvNd, x: Tensor, stride: Sequence[int]) -> Tensor:
    for axis, size in enumerate(conv.kernel_size):
        reach = conv.dilation[axis] * (size - 1) + 1
        x = x.unfold(2 + axis, reach, stride[axis])[..., :: conv.dilation[axis]]
    return x


def _transposed_padding(conv: nn.modules.conv._ConvNd) -> list[int]:
    found: list[int] = []
    for axis in reversed(range(len(conv.kernel_size))):
        left = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        left -= int(conv.padding[axis])
        found += [left, left + conv.output_padding[axis]]
    return found
