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

_POINTWISE = frozenset({
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardshrink,
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
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
})
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
# how many dimensions they have beyond batch and channels
_POOLS: dict[object, int] = {
    nn.MaxPool1d: 1,
    nn.MaxPool2d: 2,
    nn.MaxPool3d: 3,
    nn.AvgPool1d: 1,
    nn.AvgPool2d: 2,
    nn.AvgPool3d: 3,
    nn.AdaptiveAvgPool1d: 1,
    nn.AdaptiveAvgPool2d: 2,
    nn.AdaptiveAvgPool3d: 3,
    nn.AdaptiveMaxPool1d: 1,
    nn.AdaptiveMaxPool2d: 2,
    nn.AdaptiveMaxPool3d: 3,
}
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


def pointwise(module: nn.Module, axis: Axis, *, lasting: bool) -> Axis | None:
    """Pass channels of any dimension through a module that acts on each number.

    Args:
        module: In eval mode.
        axis: The channels before it.
        lasting: Whether to know only what is true in training mode, too.

    Returns:
        Those after it; None if it is no such module.
    """
    if type(module) in _DROPOUTS:
        return zeros_only(axis) if lasting else axis
    if type(module) is nn.AlphaDropout:  # it does not drop to zero
        return replace(axis, fixed=axis.fixed & (not lasting))
    if type(module) not in _POINTWISE:
        return None
    plain = copy.deepcopy(module).double()
    if getattr(plain, "inplace", False):
        plain.inplace = False  # type: ignore[assignment]
    return mapped(axis, plain)


def channelwise(
    module: nn.Module, axis: Axis, shape: tuple[int, ...], *, lasting: bool
) -> Axis | None:
    """Pass channels in dimension 1 through a module that does not mix them.

    Args:
        module: In eval mode.
        axis: The channels before it.
        shape: Of the tensor before it.
        lasting: Whether to know only what is true in training mode and whatever
            becomes of the parameters.

    Returns:
        Those after it; None if it mixes them, or is not known.
    """
    kind = type(module)
    if isinstance(module, _BatchNorm):
        none = replace(axis, fixed=torch.zeros_like(axis.fixed))
        return none if lasting else _normed(axis, module)
    if isinstance(module, nn.PReLU):
        if lasting:
            return zeros_only(axis)
        slope = module.weight.detach().cpu().double()
        return mapped(axis, lambda v: torch.where(v < 0, slope * v, v))
    if isinstance(module, _ConvNd):
        return _depthwise(axis, module, lasting=lasting)
    if isinstance(module, nn.Flatten):
        whole = module.start_dim == 1 and module.end_dim in {-1, len(shape) - 1}
        return flattened(axis, shape) if whole else None
    if kind in _POOLS:
        places = getattr(module, "return_indices", False)
        if places or len(shape) != 2 + _POOLS[kind]:
            return None
        if kind not in _AVERAGES:
            return axis
        padding = module.padding
        plain = not any(padding if isinstance(padding, tuple) else (padding,))
        override = getattr(module, "divisor_override", None)
        return axis if plain and override is None else zeros_only(axis)
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


def zeros_only(axis: Axis) -> Axis:
    """Pass channels through what keeps zeros, but no other constant.

    Such as windows that average zeros in at the border.

    Args:
        axis: The channels.

    Returns:
        The same, fixed where they are zero.
    """
    return replace(axis, fixed=~axis.held)


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


def _depthwise(axis: Axis, module: _ConvNd, *, lasting: bool) -> Axis | None:
    if module.groups != len(axis.ids) or module.groups != module.out_channels:
        return None
    if lasting:
        return replace(axis, fixed=~axis.held & (module.bias is None))
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
        if module.bias is not None:  # there is no shift with bias=False
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
