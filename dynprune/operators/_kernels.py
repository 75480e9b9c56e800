"""Kernels with cheap second derivatives, put in while a graph is built."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

_CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}


@contextmanager
def twice_differentiable(*, substitute: bool = True) -> Iterator[set[str]]:
    """Build graphs that can be differentiated twice, and cheaply.

    Attention uses its math kernel, the only one with a second derivative; the user's
    setting is restored. Weight norms are written out: the second derivative of torch's
    own function is wrong (by half, torch 2.13, against finite differences).

    With ``substitute``, convolutions and batch norms in eval mode are replaced by the
    same functions with leaner derivatives: torch makes the double backward of a
    convolution by transposing and regrouping (2.7 gradients per product on ResNet-20),
    and that of a batch norm from many small operations. A batch norm right after a
    convolution is folded into its weights, so that neither its input nor the gradient
    there is held (1.6 gradients per product, half the memory).

    Args:
        substitute: Replace convolutions and batch norms.

    Yields:
        Names of the functions that were replaced, filled as the graph is built.
    """
    substitutes = _Substitutes(lean=substitute)
    with sdpa_kernel(SDPBackend.MATH), substitutes:
        yield substitutes.used


_Settings = tuple[list[int], list[int], list[int], int]
_Known = tuple[Tensor, Tensor, Tensor]


@final
class _Substitutes(TorchFunctionMode):
    def __init__(self, *, lean: bool) -> None:
        TorchFunctionMode.__init__(self)
        self._lean = lean
        self.used: set[str] = set()
        self._last: _Convolved | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result: Tensor | None = None
        if func is torch._weight_norm:
            return _weight_norm(*args, **kwargs)
        if not self._lean:
            return func(*args, **kwargs)
        if func in _CONVOLUTIONS:
            self._last = _convolution(_CONVOLUTIONS[func], *args, **kwargs)
            result = None if self._last is None else self._last.output
        elif func is functional.batch_norm:
            result = _batch_norm(self._last, *args, **kwargs)
        if result is None:
            return func(*args, **kwargs)
        self.used.add(func.__name__)
        return result


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    # w = g v / |v|, the norm over all axes but one
    axes = [axis for axis in range(v.ndim) if axis != dim % v.ndim or dim == -1]
    norm = torch.linalg.vector_norm(v, dim=axes, keepdim=True)
    scaled: Tensor = v * (g / norm)
    return scaled


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Convolved:
    """A convolution that was made, so that a batch norm after it can be folded in."""

    x: Tensor
    w: Tensor
    b: Tensor | None
    settings: _Settings
    output: Tensor
    version: int


def _convolution(
    spatial: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> _Convolved | None:
    tensors = [input, weight] if bias is None else [input, weight, bias]
    plain = all(
        type(part) in {Tensor, torch.nn.Parameter}
        and not torch._C._functorch.is_functorch_wrapped_tensor(part)
        for part in tensors
    )
    if not plain or isinstance(padding, str) or input.ndim != spatial + 2:
        return None
    mixed = len({part.dtype for part in tensors}) > 1
    if mixed or torch.is_autocast_enabled(input.device.type):
        return None
    sizes = [
        list(part) if isinstance(part, tuple | list) else [part]
        for part in (stride, padding, dilation)
    ]
    wide = [part * spatial if len(part) == 1 else part for part in sizes]
    settings = (wide[0], wide[1], wide[2], groups)
    output = _convolved(input, weight, bias, settings, None)
    return _Convolved(
        x=input,
        w=weight,
        b=bias,
        settings=settings,
        output=output,
        version=output._version,
    )


def _batch_norm(
    last: _Convolved | None,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,  # noqa: FBT001, FBT002 - torch's own signature
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor | None:
    # y = scale x + shift; after a convolution c = x * w + b the same function is
    # y = x * (scale w) + (scale b + shift), which needs neither c nor its gradient
    if training or running_mean is None or running_var is None or input.ndim < 2:
        return None
    scale = torch.rsqrt(running_var + eps)
    if weight is not None:
        scale = weight * scale
    shift = -running_mean * scale
    if bias is not None:
        shift = bias + shift
    if not input.dtype == scale.dtype == shift.dtype:
        return None
    shape = (1, -1) + (1,) * (input.ndim - 2)
    if last is None or last.output is not input or last.version != input._version:
        return torch.addcmul(shift.reshape(shape), input, scale.reshape(shape))
    known = (
        input.detach(),
        scale.detach().reshape(shape),
        shift.detach().reshape(shape),
    )
    if last.b is not None:
        shift = shift + scale * last.b
    wide = scale.reshape(-1, *(1,) * (last.w.ndim - 1))
    return _convolved(last.x, last.w * wide, shift, last.settings, known)


def _convolved(
    x: Tensor, w: Tensor, b: Tensor | None, settings: _Settings, known: _Known | None
) -> Tensor:
    apply: Callable[..., Tensor] = _Convolution.apply
    return apply(x, w, b, settings, known)


@final
class _Convolution(torch.autograd.Function):
    """y = x * w + b, or scale c + shift if c is known; see :class:`_Backward`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        b: Tensor | None,
        settings: _Settings,
        known: _Known | None,
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.settings = settings
        if known is None:
            return _convolve(x, w, b, settings)
        c, scale, shift = known
        return torch.addcmul(shift, c, scale)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, w = ctx.saved_tensors
        needs = tuple(ctx.needs_input_grad[:2])
        # the plain call serves vmap too, which takes no function without a vmap rule
        step: Callable[..., Any] = (
            _Backward.apply if torch.is_grad_enabled() else _gradients
        )
        dx, dw = step(dy, x, w, ctx.settings, needs)
        db = dy.sum((0, *range(2, dy.ndim))) if ctx.needs_input_grad[2] else None
        return dx, dw, db, None, None


@final
class _Backward(torch.autograd.Function):
    """(dy, x, w) → (dx, dw), with convolutions of the same shapes as derivative.

    Both are bilinear. With cotangents (u, s) of (dx, dw): dy gets u * w + x * s, x
    gets the dx of (dy, s), and w the dw of (dy, u).
    """

    @staticmethod
    def forward(
        ctx: Any,
        dy: Tensor,
        x: Tensor,
        w: Tensor,
        settings: _Settings,
        needs: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        ctx.save_for_backward(dy, x, w)
        ctx.settings = settings
        ctx.set_materialize_grads(False)
        return _gradients(dy, x, w, settings, needs)

    @staticmethod
    def backward(ctx: Any, u: Tensor | None, s: Tensor | None) -> Any:
        dy, x, w = ctx.saved_tensors
        settings = ctx.settings
        to_dy: Tensor | None = None
        to_x: Tensor | None = None
        to_w: Tensor | None = None
        if ctx.needs_input_grad[0]:
            if u is not None:
                to_dy = _convolve(u, w, None, settings)
            if s is not None:
                part = _convolve(x, s, None, settings)
                to_dy = part if to_dy is None else to_dy + part
        if ctx.needs_input_grad[1] and s is not None:
            to_x = _gradients(dy, x, s, settings, (True, False))[0]
        if ctx.needs_input_grad[2] and u is not None:
            to_w = _gradients(dy, u, w, settings, (False, True))[1]
        return to_dy, to_x, to_w, None, None


def _convolve(x: Tensor, w: Tensor, b: Tensor | None, settings: _Settings) -> Tensor:
    stride, padding, dilation, groups = settings
    nothing = [0] * len(stride)
    result: Tensor = torch.ops.aten.convolution(
        x, w, b, stride, padding, dilation, False, nothing, groups
    )
    return result


def _gradients(
    dy: Tensor, x: Tensor, w: Tensor, settings: _Settings, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    stride, padding, dilation, groups = settings
    nothing = [0] * len(stride)
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy,
        x,
        w,
        None,
        stride,
        padding,
        dilation,
        False,
        nothing,
        groups,
        [*needs, False],
    )
    return dx if needs[0] else None, dw if needs[1] else None
