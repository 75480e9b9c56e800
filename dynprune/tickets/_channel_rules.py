"""What modules of torch do to the channels that pass through them."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from dynprune.tickets._channels import Axis, constant

_POINTWISE = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.Identity,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE_POOLS = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)


def pointwise(module: nn.Module, axis: Axis) -> Axis | None:
    """Pass channels of any dimension through a module that acts on each number.

    Args:
        module: In eval mode.
        axis: The channels before it.

    Returns:
        Those after it; None if it is no such module.
    """
    if type(module) in _DROPOUTS:
        return axis
    if type(module) not in _POINTWISE:
        return None
    plain = copy.deepcopy(module).double()
    if getattr(plain, "inplace", False):
        plain.inplace = False  # type: ignore[assignment]
    return mapped(axis, plain)


def channelwise(module: nn.Module, axis: Axis, shape: tuple[int, ...]) -> Axis | None:
    """Pass channels in dimension 1 through a module that does not mix them.

    Args:
        module: In eval mode.
        axis: The channels before it.
        shape: Of the tensor before it.

    Returns:
        Those after it; None if it mixes them, or is not known.
    """
    kind = type(module)
    if isinstance(module, _BatchNorm):
        return _normed(axis, module)
    if isinstance(module, nn.PReLU):
        slope = module.weight.detach().cpu().double()
        return mapped(axis, lambda v: torch.where(v < 0, slope * v, v))
    if isinstance(module, _ConvNd):
        return _depthwise(axis, module)
    if isinstance(module, nn.Flatten):
        whole = module.start_dim == 1 and module.end_dim == -1
        return flattened(axis, shape) if whole else None
    if kind in (*_MAX_POOLS, *_ADAPTIVE_POOLS):
        return None if getattr(module, "return_indices", False) else axis
    if kind in _AVERAGE_POOLS:
        padding = module.padding
        plain = not any(padding if isinstance(padding, tuple) else (padding,))
        override = getattr(module, "divisor_override", None)
        return axis if plain and override is None else padded(axis)
    return None


def has_channels(module: nn.Module) -> bool:
    """Say whether a channelwise module has numbers for each channel.

    Args:
        module: One that :func:`channelwise` knows.

    Returns:
        True if it must become smaller with its channels.
    """
    shared = isinstance(module, nn.PReLU) and module.num_parameters == 1
    return isinstance(module, _BatchNorm | _ConvNd | nn.PReLU) and not shared


def mapped(axis: Axis, function: Callable[[Tensor], Tensor]) -> Axis:
    """Apply a function of each number to the fixed values.

    Args:
        axis: The channels.
        function: Of float64 values, shape ``(C,)``.

    Returns:
        The same channels with other values.
    """
    with torch.no_grad():
        return replace(axis, values=function(axis.values))


def padded(axis: Axis) -> Axis:
    """Pass channels through windows that average zeros in at the border.

    Args:
        axis: The channels.

    Returns:
        The same, fixed where they are zero.
    """
    return replace(axis, fixed=axis.fixed & (axis.values == 0))


def flattened(axis: Axis, shape: tuple[int, ...]) -> Axis:
    """Flatten all dimensions after the batch, the channels being the first of them.

    Args:
        axis: The channels, in dimension 1.
        shape: Of the tensor before it.

    Returns:
        One position for each number.
    """
    times = math.prod(shape[2:])
    return Axis(
        dim=1,
        ids=axis.ids.repeat_interleave(times),
        fixed=axis.fixed.repeat_interleave(times),
        values=axis.values.repeat_interleave(times),
    )


def _depthwise(axis: Axis, module: _ConvNd) -> Axis | None:
    if module.groups != len(axis.ids) or module.groups != module.out_channels:
        return None
    weight = module.weight.detach().cpu().double().flatten(1)
    bias = 0.0 if module.bias is None else module.bias.detach().cpu().double()
    silent = ~(weight != 0).any(1)
    # a silent one has its bias, whatever its input is
    values = torch.where(silent, 0.0, axis.values * weight.sum(1)) + bias
    return replace(axis, fixed=constant(module, axis) | silent, values=values)


def _normed(axis: Axis, module: _BatchNorm) -> Axis | None:
    if module.running_mean is None or module.running_var is None:
        return None
    one = torch.ones(len(axis.ids), dtype=torch.float64)
    scale, shift = one, torch.zeros_like(one)
    if module.affine:
        scale = module.weight.detach().cpu().double()
        shift = module.bias.detach().cpu().double()
    factor = scale / (module.running_var.cpu().double() + module.eps).sqrt()
    values = (axis.values - module.running_mean.cpu().double()) * factor + shift
    silent = scale == 0
    # a scale of zero leaves the shift, whatever the input is
    return replace(
        axis,
        fixed=axis.fixed | silent,
        values=torch.where(silent, shift, values),
    )
