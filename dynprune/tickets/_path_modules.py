"""Modules of a private copy, replaced so that sums over paths go through them."""

import functools
from typing import Any, final

from torch import Tensor, nn
from torch.nn import functional

from dynprune.core import InvalidInputError
from dynprune.tickets._path_inputs import InputChanges

_PASSED = (  # on non-negative numbers the identity, or made so
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.RReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Softplus,
    nn.ReLU6,
    nn.Tanh,
    nn.Sigmoid,
    nn.Hardtanh,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Softsign,
    nn.LogSigmoid,
    nn.Softshrink,
    nn.Hardshrink,
    nn.Tanhshrink,
    nn.Threshold,
)
_PER_CHANNEL = (nn.modules.batchnorm._NormBase, nn.GroupNorm)
_NORMS = (*_PER_CHANNEL, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm)
_SOFTMAXES = (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d)
_MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_ADAPTIVE = (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
_ADAPTIVE_AVERAGES: dict[int, Any] = {
    1: functional.adaptive_avg_pool1d,
    2: functional.adaptive_avg_pool2d,
    3: functional.adaptive_avg_pool3d,
}


@final
class PathModules:
    """Replace the modules of a network that are no sums over paths.

    Activation modules and dropout pass their input; norm modules multiply it by their
    scale; max-pooling modules sum their window. Where only connections count, norm
    modules also divide by the mean size of their input, lest values double at every
    addition of a residual stream, and softmax modules add the mean over their
    dimension.

    Args:
        net: A private copy of a model in eval mode; forward methods are replaced on
            the instances, so that names of parameters stay as they are.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        # whether products of weights count, or connections alone
        self.counts = True
        #: Parameters of activation modules, which pass their input.
        self.passed = {
            f"{prefix}.{name}".lstrip(".")
            for prefix, module in net.named_modules()
            if isinstance(module, _PASSED)
            for name, _ in module.named_parameters(recurse=False)
        }
        self._linearise_()
        self.changes = InputChanges(net)

    def scale_norms_(self, *, power: float) -> None:
        """Give norm modules the scale of batch statistics.

        Args:
            power: p, of a path norm; 0 where only connections count, whose norms
                multiply by their own scale alone.

        Raises:
            InvalidInputError: If a norm has no running statistics and ``power`` is
                not 0.
        """
        for name, module in self._net.named_modules():
            if not isinstance(module, _NORMS):
                continue
            factor: Tensor | float = 1.0
            if power:
                variance = getattr(module, "running_var", None)
                if variance is None:
                    raise InvalidInputError(
                        f"A path norm was asked of a network with {name!r}, a "
                        f"{type(module).__name__} without running statistics, whose "
                        "output is no sum over paths. Leave it out."
                    )
                factor = (variance + module.eps) ** (-power / 2.0)
            # an attribute of the private copy, read by _scaled
            module.__dict__["_path_factor"] = factor

    def _linearise_(self) -> None:
        for module in self._net.modules():
            if isinstance(module, _PASSED):
                _replace(module, _same)
            elif isinstance(module, _NORMS):
                _replace(module, functools.partial(self._normed, module))
            elif isinstance(module, _SOFTMAXES):
                _replace(module, functools.partial(self._mixed, module))
            elif isinstance(module, _MAX_POOLS):
                if _number(module.dilation) == 1 and not module.return_indices:
                    _replace(module, functools.partial(_sum_pooled, module))
            elif isinstance(module, _ADAPTIVE) and not module.return_indices:
                _replace(module, functools.partial(_sum_adaptive, module))

    def _normed(self, module: Any, x: Tensor) -> Any:
        size = 0.0 if self.counts else float(x.detach().abs().mean())
        size = self.changes.same(module, size)
        return _scaled(module, x / size if size > 0.0 else x)

    def _mixed(self, module: Any, x: Tensor) -> Any:
        if self.counts:
            return type(module).forward(module, x)
        # positive slopes between all units that a softmax joins, whatever their size
        return x + x.mean(_softmax_dim(module, x), keepdim=True)


def _replace(module: nn.Module, forward: Any) -> None:
    module.__dict__["forward"] = forward


def _same(x: Tensor) -> Tensor:
    return x


def _scaled(module: Any, x: Tensor) -> Any:
    factor = module.__dict__["_path_factor"]
    weight = getattr(module, "weight", None)
    scale = factor if weight is None else weight * factor
    if isinstance(scale, Tensor) and isinstance(module, _PER_CHANNEL) and x.ndim > 1:
        scale = scale.view(1, -1, *(1 for _ in range(x.ndim - 2)))
    return x * scale


def _softmax_dim(module: Any, x: Tensor) -> int:
    if isinstance(module, nn.Softmax2d):
        return -3
    # torch's own choice where none is named
    implicit = 0 if x.ndim in {0, 1, 3} else 1
    return implicit if module.dim is None else int(module.dim)


def _sum_pooled(module: Any, x: Tensor) -> Any:
    dims = _MAX_POOLS.index(type(module)) + 1
    sizes = (module.kernel_size, module.stride, module.padding)
    if dims == 1:  # torch has no sum of one dimension; (1, k) windows are one
        kernel, stride, padding = (_single(size) for size in sizes)
        sizes, x = ((1, kernel), (1, stride), (0, padding)), x.unsqueeze(-2)
    pool = functional.avg_pool3d if dims == 3 else functional.avg_pool2d
    pooled = pool(x, *sizes, module.ceil_mode, divisor_override=1)
    return pooled.squeeze(-2) if dims == 1 else pooled


def _sum_adaptive(module: Any, x: Tensor) -> Any:
    dims = _ADAPTIVE.index(type(module)) + 1
    pooled = _ADAPTIVE_AVERAGES[dims](x, module.output_size)
    for dim in range(-dims, 0):
        old, new = x.shape[dim], pooled.shape[dim]
        edges = [(i * old // new, -(-(i + 1) * old // new)) for i in range(new)]
        counts = x.new_tensor([float(stop - start) for start, stop in edges])
        pooled = pooled * counts.view(-1, *(1 for _ in range(-dim - 1)))
    return pooled


def _single(value: int | tuple[int]) -> int:
    return value[0] if isinstance(value, tuple) else value


def _number(value: int | tuple[int, ...]) -> int:
    return max(value) if isinstance(value, tuple) else value
