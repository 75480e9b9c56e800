"""Second moments of what enters the layers of a network, collected by hooks."""

import copy
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from dynprune.core import InvalidInputError, isolated
from dynprune.system import GradientSystem

_NUMBERS = 2**22  # of one slice of rows in float64: 32 MiB
_TRANSPOSED = nn.modules.conv._ConvTransposeNd


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Layer:
    """Name a prunable weight and the modules that apply it to their inputs.

    Args:
        name: Of the parameter.
        modules: Linear, Conv, or the Conv1D of transformers; several if it is tied.
        groups: Of a grouped convolution; each has rows and inputs of its own.
        columns_first: Whether the weight has shape (in, out).
    """

    name: str
    modules: tuple[nn.Module, ...]
    groups: int
    columns_first: bool

    def matrix(self, weight: Tensor) -> Tensor:
        """Return a weight as one row per output, shape ``(out, in per group)``.

        Args:
            weight: Of the parameter's shape.

        Returns:
            A view where torch can make one.
        """
        return weight.T if self.columns_first else weight.flatten(1)

    def weight(self, matrix: Tensor, shape: Sequence[int]) -> Tensor:
        """Undo :meth:`matrix`.

        Args:
            matrix: Shape ``(out, in per group)``.
            shape: Of the parameter.

        Returns:
            A tensor of that shape.
        """
        return (matrix.T if self.columns_first else matrix).reshape(tuple(shape))


def private_copy(system: GradientSystem) -> nn.Module:
    """Return a copy of the network at the system's state, in eval mode.

    Args:
        system: The system.

    Returns:
        The copy; pruned weights are zero.
    """
    net = copy.deepcopy(system.module).eval()
    own: dict[str, Tensor] = dict(net.named_parameters())
    with torch.no_grad():
        for name, value in system.unflatten(system.state).items():
            own[name].copy_(value)
        for name, part in net.named_buffers():
            part.copy_(system.raw_buffers[name])
    return net


def layers_of(net: nn.Module, names: Sequence[str]) -> list[Layer]:
    """Find the modules that apply some weights.

    Args:
        net: The network.
        names: Of the weights.

    Returns:
        One layer per name.

    Raises:
        InvalidInputError: If a weight belongs to none, to a transposed convolution,
            or to modules that lay it out differently.
    """
    own = dict(net.named_parameters())
    found = []
    for name in names:
        modules = tuple(
            part
            for part in net.modules()
            if _is_layer(part) and getattr(part, "weight", None) is own[name]
        )
        kinds = {(_groups(part), _is_conv1d(part)) for part in modules}
        if len(kinds) != 1:
            what = " and ".join(type(part).__name__ for part in modules) or "no layer"
            raise InvalidInputError(
                f"The weight {name!r} is applied by {what}: it is no matrix that acts "
                "on the inputs of a Linear, Conv or Conv1D layer. Leave it out with "
                "GradientSystem(..., parameters=...), or use pruning.obs."
            )
        groups, columns_first = kinds.pop()
        found.append(
            Layer(
                name=name, modules=modules, groups=groups, columns_first=columns_first
            )
        )
    return found


def moments(
    net: nn.Module, system: GradientSystem, layers: Iterable[Layer], *, seed: int
) -> dict[str, Tensor]:
    r"""Return :math:`H = \tfrac{2}{n} X^\top X` of what enters each layer.

    The n rows of X are the vectors (for convolutions, the patches) that the weight is
    multiplied with, over all data.

    Args:
        net: A private copy.
        system: Whose data are read, once.
        layers: Of the copy.
        seed: Of a random loader.

    Returns:
        Name to float64, shape ``(groups, in, in)``.

    Raises:
        InvalidInputError: If a layer is never called, or its inputs are not finite.
    """
    wanted = list(layers)
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    handles = [
        module.register_forward_pre_hook(_adder(layer, sums, counts), with_kwargs=True)
        for layer in wanted
        for module in layer.modules
    ]
    try:
        with torch.no_grad(), isolated(seed):
            for batch in system.batches(seed=seed):
                _evaluate(net, system, batch)
    finally:
        for handle in handles:
            handle.remove()
    for layer in wanted:
        if not counts.get(layer.name):
            raise InvalidInputError(
                f"No input of {layer.name!r} was seen: its module is never called (as "
                "the output projection inside nn.MultiheadAttention is). Leave it out "
                "with GradientSystem(..., parameters=...), or use pruning.obs."
            )
        if not bool(torch.isfinite(sums[layer.name]).all()):
            raise InvalidInputError(
                f"The inputs of {layer.name!r} are not finite, or overflow when "
                "squared. Look for NaN and overflow in the data and the state."
            )
    return {name: part.mul_(2.0 / counts[name]) for name, part in sums.items()}


def in_call_order(
    net: nn.Module, system: GradientSystem, layers: Iterable[Layer]
) -> list[Layer]:
    """Sort layers by when the first batch enters them; those it never enters last.

    Args:
        net: A private copy.
        system: Whose first batch is read.
        layers: Of the copy.

    Returns:
        The same layers.
    """
    left = {layer.name: layer for layer in layers}
    found: list[Layer] = []

    def note(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            if name in left:
                found.append(left.pop(name))

        return hook

    handles = [
        module.register_forward_pre_hook(note(layer.name))
        for layer in list(left.values())
        for module in layer.modules
    ]
    try:
        with torch.no_grad(), isolated(0):
            _evaluate(net, system, next(iter(system.batches())))
    finally:
        for handle in handles:
            handle.remove()
    return [*found, *left.values()]


def _evaluate(net: nn.Module, system: GradientSystem, batch: Any) -> None:
    if system.batch_loss is not None:
        system.batch_loss(net, batch)
    else:
        net(batch[0])


def _adder(layer: Layer, sums: dict[str, Tensor], counts: dict[str, int]) -> Any:
    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x: Tensor = [*args, *kwargs.values()][0].detach()
        if isinstance(module, nn.modules.conv._ConvNd):
            x = x.reshape(-1, *x.shape[-len(module.kernel_size) - 1 :])
            repeats = math.prod(module.kernel_size) / math.prod(module.stride)
            step = int(_NUMBERS / max(1.0, x[:1].numel() * repeats))
        else:
            x = x.reshape(-1, x.shape[-1])
            step = _NUMBERS // max(1, x.shape[-1])
        for part in x.split(max(1, step)):
            rows = (_patches(module, part) if part.ndim > 2 else part[None]).double()
            own = rows.mT @ rows
            total = sums.get(layer.name)
            sums[layer.name] = own if total is None else total.add_(own)
            counts[layer.name] = counts.get(layer.name, 0) + rows.shape[1]

    return add


def _patches(module: nn.Module, x: Tensor) -> Tensor:
    # rows of the matrix that a convolution multiplies, (groups, rows, in per group)
    assert isinstance(module, nn.modules.conv._ConvNd)
    axes = len(module.kernel_size)
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = nn.functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    for axis in range(axes):
        reach = module.dilation[axis] * (module.kernel_size[axis] - 1) + 1
        x = x.unfold(2 + axis, reach, module.stride[axis])
        x = x[..., :: module.dilation[axis]]
    # (N, C, positions…, kernel…) → (N, positions…, C, kernel…)
    order = [0, *range(2, 2 + axes), 1, *range(2 + axes, 2 + 2 * axes)]
    rows = x.permute(order).flatten(0, axes).flatten(1)
    return rows.view(len(rows), module.groups, -1).transpose(0, 1)


def _is_layer(module: nn.Module) -> bool:
    if isinstance(module, _TRANSPOSED):
        return False
    return isinstance(module, nn.Linear | nn.modules.conv._ConvNd) or _is_conv1d(module)


def _is_conv1d(module: nn.Module) -> bool:
    # who has such a layer has imported it; others need not have transformers
    kind = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return isinstance(kind, type) and isinstance(module, kind)


def _groups(module: nn.Module) -> int:
    return module.groups if isinstance(module, nn.modules.conv._ConvNd) else 1
