"""Layers whose transposed Jacobian is cheap to differentiate in the cotangent."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from dynprune.operators._kernels import twice_differentiable

_CONVOLUTIONS = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_Settings = tuple[list[int], list[int], list[int], int]
_SMALL = 2**22  # multiplications of a linear layer that take torch less than Python


@final
class Stage:
    """Say whether the graph of u ↦ J'u is being built.

    ``pulling`` is True from the end of the forward pass to the end of that build.
    """

    def __init__(self) -> None:
        self.pulling = False


@contextmanager
def linear_in_cotangents(
    *, substitute: bool = True, small: bool = False
) -> Iterator[Stage]:
    """Build graphs of outputs f(θ) whose pull-back J'u is cheap to differentiate in u.

    Of J'u only its graph is wanted, at u = 0 and in u alone. There a layer that is
    bilinear in its input x and weight w need compute nothing (J'u = 0) and hold
    nothing but x and w; pushing a vector through costs the two terms x·ẇ + ẋ·w.
    Plain torch computes J'u, holds its intermediate results, and for a convolution
    pushes by transposing and regrouping: on ResNet-20 a build costs three times and a
    push twice as much. A batch norm in eval mode after such a layer is folded into its
    weights. Attention uses its math kernel, as in :func:`twice_differentiable`.

    Args:
        substitute: Replace linear layers, convolutions and those batch norms.
        small: Replace linear layers of less than 4 million multiplications, too.

    Yields:
        The stage; set ``pulling`` around the build of J'u.
    """
    stage = Stage()
    with twice_differentiable(substitute=False):
        if substitute:
            with _Bilinear(stage, least=0 if small else _SMALL):
                yield stage
        else:
            yield stage


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Layer:
    """A bilinear layer that was made, so that a batch norm after it can be folded in.

    ``settings`` are those of a convolution, None for a linear layer.
    """

    x: Tensor
    w: Tensor
    b: Tensor | None
    settings: _Settings | None
    output: Tensor
    version: int


@final
class _Bilinear(TorchFunctionMode):
    def __init__(self, stage: Stage, *, least: int) -> None:
        TorchFunctionMode.__init__(self)
        self._stage = stage
        self._least = least
        self._last: _Layer | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result: Tensor | None = None
        if func in _CONVOLUTIONS:
            result = self._convolution(_CONVOLUTIONS[func], *args, **kwargs)
        elif func is functional.linear:
            result = self._linear(*args, **kwargs)
        elif func is functional.batch_norm:
            result = self._batch_norm(*args, **kwargs)
        return func(*args, **kwargs) if result is None else result

    def _linear(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
    ) -> Tensor | None:
        if weight.ndim != 2 or input.numel() * len(weight) < self._least:
            return None
        return self._apply(input, weight, bias, None)

    def _convolution(
        self,
        spatial: int,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor | None:
        if isinstance(padding, str) or input.ndim != spatial + 2:
            return None
        sizes = [
            list(part) if isinstance(part, tuple | list) else [part]
            for part in (stride, padding, dilation)
        ]
        wide = [part * spatial if len(part) == 1 else part for part in sizes]
        return self._apply(input, weight, bias, (wide[0], wide[1], wide[2], groups))

    def _apply(
        self, x: Tensor, w: Tensor, b: Tensor | None, settings: _Settings | None
    ) -> Tensor | None:
        tensors = [x, w] if b is None else [x, w, b]
        plain = all(
            type(part) in {Tensor, torch.nn.Parameter}
            and not is_functorch_wrapped_tensor(part)
            for part in tensors
        )
        mixed = len({part.dtype for part in tensors}) > 1
        if not plain or mixed or torch.is_autocast_enabled(x.device.type):
            return None
        y = _forward(x, w, b, settings, None, self._stage)
        self._last = _Layer(
            x=x, w=w, b=b, settings=settings, output=y, version=y._version
        )
        return y

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,  # noqa: FBT001, FBT002 - torch's own signature
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor | None:
        # after y = x·w + b, scale y + shift = x·(scale w) + (scale b + shift)
        last = self._last
        if last is None or last.output is not input or last.version != input._version:
            return None
        if training or running_mean is None or running_var is None:
            return None
        if last.settings is None and input.ndim != 2:
            return None  # channels come second there, features last
        scale = torch.rsqrt(running_var + eps)
        if weight is not None:
            scale = weight * scale
        shift = -running_mean * scale
        if bias is not None:
            shift = bias + shift
        if not input.dtype == scale.dtype == shift.dtype:
            return None
        shape = (1, -1) + (1,) * (input.ndim - 2)
        with torch.no_grad():
            value = torch.addcmul(shift.reshape(shape), input, scale.reshape(shape))
        if last.b is not None:
            shift = shift + scale * last.b
        w = last.w * scale.reshape(-1, *(1,) * (last.w.ndim - 1))
        self._last = None
        return _forward(last.x, w, shift, last.settings, [value], self._stage)


def _forward(
    x: Tensor,
    w: Tensor,
    b: Tensor | None,
    settings: _Settings | None,
    value: list[Tensor] | None,
    stage: Stage,
) -> Tensor:
    apply: Callable[..., Tensor] = _Forward.apply
    return apply(x, w, b, settings, value, stage)


@final
class _Forward(torch.autograd.Function):
    """y = x·w + b; ``value`` holds y in a list where it is known already."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        w: Tensor,
        b: Tensor | None,
        settings: _Settings | None,
        value: list[Tensor] | None,
        stage: Stage,
    ) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.settings, ctx.stage = settings, stage
        return _multiply(x, w, b, settings) if value is None else value.pop()

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        x, w = ctx.saved_tensors
        needs = tuple(ctx.needs_input_grad[:3])
        if not ctx.stage.pulling:  # by torch's own: may be differentiated again
            found = _transposed(dy, x, w, ctx.settings, needs)
        else:
            pull: Callable[..., tuple[Tensor | None, ...]] = _Pull.apply
            found = pull(dy, x.detach(), w.detach(), ctx.settings, needs)
        return (*found, None, None, None)


@final
class _Pull(torch.autograd.Function):
    """dy ↦ (dx, dw, db) at dy = 0, where they are zero, as a linear function of dy."""

    @staticmethod
    def forward(
        ctx: Any,
        dy: Tensor,
        x: Tensor,
        w: Tensor,
        settings: _Settings | None,
        needs: tuple[bool, bool, bool],
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(x, w)
        ctx.settings, ctx.shape = settings, dy.shape
        ctx.set_materialize_grads(False)
        zero = dy.new_zeros(())
        shapes = (x.shape, w.shape, w.shape[:1])
        return tuple(
            zero.expand(shape) if need else None
            for shape, need in zip(shapes, needs, strict=True)
        )

    @staticmethod
    def backward(
        ctx: Any, x_dot: Tensor | None, w_dot: Tensor | None, b_dot: Tensor | None
    ) -> Any:
        x, w = ctx.saved_tensors
        y_dot: Tensor | None = None
        if w_dot is not None:
            y_dot, b_dot = _multiply(x, w_dot, b_dot, ctx.settings), None
        if x_dot is not None:
            part, b_dot = _multiply(x_dot, w, b_dot, ctx.settings), None
            y_dot = part if y_dot is None else y_dot + part
        if b_dot is not None:
            wide = 0 if ctx.settings is None else len(ctx.shape) - 2
            y_dot = b_dot.reshape(b_dot.shape + (1,) * wide).expand(ctx.shape)
        return y_dot, None, None, None, None


def _multiply(
    x: Tensor, w: Tensor, b: Tensor | None, settings: _Settings | None
) -> Tensor:
    if settings is None:
        return functional.linear(x, w, b)
    stride, padding, dilation, groups = settings
    nothing = [0] * len(stride)
    y: Tensor = torch.ops.aten.convolution(
        x, w, b, stride, padding, dilation, False, nothing, groups
    )
    return y


def _transposed(
    dy: Tensor,
    x: Tensor,
    w: Tensor,
    settings: _Settings | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, ...]:
    to_x, to_w, to_b = needs
    if settings is None:
        rows = dy.reshape(-1, dy.shape[-1])
        dx = dy @ w if to_x else None
        dw = rows.T @ x.reshape(-1, x.shape[-1]) if to_w else None
        return dx, dw, rows.sum(0) if to_b else None
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
        [to_x, to_w, False],
    )
    db = dy.sum((0, *range(2, dy.ndim))) if to_b else None
    return dx if to_x else None, dw if to_w else None, db
