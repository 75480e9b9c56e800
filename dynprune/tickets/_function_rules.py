"""What functions of torch do to the channels of the one tensor that they take."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from dynprune.tickets._channel_rules import flattened, mapped, zeros_only
from dynprune.tickets._channels import Axis
from dynprune.tickets._trace import shape_of

_POINTWISE: dict[Any, Callable[..., Tensor]] = {
    function: function
    for function in (
        functional.celu,
        functional.elu,
        functional.gelu,
        functional.hardsigmoid,
        functional.hardswish,
        functional.hardtanh,
        functional.leaky_relu,
        functional.logsigmoid,
        functional.mish,
        functional.relu,
        functional.relu6,
        functional.selu,
        functional.sigmoid,
        functional.silu,
        functional.softplus,
        functional.softsign,
        functional.tanh,
        operator.neg,
        torch.abs,
        torch.neg,
        torch.relu,
        torch.sigmoid,
        torch.tanh,
    )
} | {
    "neg": torch.neg,
    "relu": torch.relu,
    "relu_": torch.relu,
    "sigmoid": torch.sigmoid,
    "sigmoid_": torch.sigmoid,
    "tanh": torch.tanh,
    "tanh_": torch.tanh,
}
_AS_IT_IS = frozenset({"contiguous", "detach", "clone"})
_AVERAGES: dict[Any, int] = {
    functional.avg_pool1d: 1,
    functional.avg_pool2d: 2,
    functional.avg_pool3d: 3,
}
# how many dimensions they have beyond batch and channels
_POOLS = _AVERAGES | {
    functional.adaptive_avg_pool1d: 1,
    functional.adaptive_avg_pool2d: 2,
    functional.adaptive_avg_pool3d: 3,
    functional.adaptive_max_pool1d: 1,
    functional.adaptive_max_pool2d: 2,
    functional.adaptive_max_pool3d: 3,
    functional.max_pool1d: 1,
    functional.max_pool2d: 2,
    functional.max_pool3d: 3,
}


def called(node: fx.Node, axis: Axis) -> Axis | None:
    """Pass channels through a function or method that does not mix them.

    Args:
        node: The call; the channels are those of its first argument.
        axis: The channels before it.

    Returns:
        Those after it; None if it mixes them, or is not known.
    """
    target, rest = node.target, dict(node.kwargs)
    if target in _POINTWISE:
        if len(node.all_input_nodes) > 1:
            return None
        rest.pop("inplace", None)
        function = _POINTWISE[target]
        return mapped(axis, lambda v: function(v, *node.args[1:], **rest))
    if target is functional.dropout:
        off = rest.get("training", node.args[2] if len(node.args) > 2 else True)
        return None if off is not False else axis
    if target in _AS_IT_IS:
        return axis
    if axis.dim != 1:
        return None
    shape = shape_of(node.args[0])
    if target in {torch.mean, "mean", torch.amax, "amax"}:
        return axis if _keeps_channels(node, len(shape)) else None
    if target in _POOLS:
        if len(shape) != 2 + _POOLS[target] or rest.get("return_indices"):
            return None
        return zeros_only(axis) if target in _AVERAGES else axis
    return flattened(axis, shape) if _is_flatten(node, shape) else None


def _keeps_channels(node: fx.Node, ndim: int) -> bool:
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    dims = (dims,) if isinstance(dims, int) else dims
    if not isinstance(dims, tuple | list) or not dims:
        return False
    return all(isinstance(d, int) and d % ndim >= 2 for d in dims)


def _is_flatten(node: fx.Node, shape: tuple[int, ...]) -> bool:
    if node.target in {torch.flatten, "flatten"}:
        start = node.kwargs.get("start_dim", node.args[1] if len(node.args) > 1 else 0)
        end = node.kwargs.get("end_dim", node.args[2] if len(node.args) > 2 else -1)
        return (start, end) in {(1, -1), (1, len(shape) - 1)}
    if node.target in {"view", "reshape"}:
        wanted = node.args[1:]
        if len(wanted) == 1 and isinstance(wanted[0], tuple | list):
            wanted = tuple(wanted[0])
        flat = len(wanted) == 2 and wanted[1] == -1 and wanted[0] != -1
        return bool(flat) and shape_of(node)[:1] == shape[:1]
    return False


def reads_batch_size(node: fx.Node) -> bool:
    """Say whether a node reads no more of a tensor than its first dimension.

    Args:
        node: The call.

    Returns:
        True if so.
    """
    if node.op == "call_method" and node.target == "size":
        whole = len(node.args) == 1
        return _only_first_is_read(node) if whole else bool(node.args[1] == 0)
    if node.target is getattr and node.args[1:2] == ("shape",):
        return _only_first_is_read(node)
    return False


def _only_first_is_read(node: fx.Node) -> bool:
    return all(n.target is operator.getitem and n.args[1:] == (0,) for n in node.users)
