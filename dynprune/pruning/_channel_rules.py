"""What an operation does to channels that are zero, and which layers can shrink."""

import operator
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional
from torch.nn.utils import parametrize

# types, not kinds: a subclass may compute anything
LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
# zero in a channel gives zero in that channel, and channels do not mix
_ZERO_TO_ZERO = frozenset({
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.CELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Tanh,
    nn.Softsign,
    nn.Tanhshrink,
    nn.Hardshrink,
    nn.Softshrink,
    nn.Dropout,
    nn.Dropout2d,
})
_ZERO_TO_ZERO_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset({
    torch.relu,
    torch.tanh,
    torch.neg,
    operator.neg,
    functional.relu,
    functional.relu6,
    functional.leaky_relu,
    functional.elu,
    functional.selu,
    functional.gelu,
    functional.silu,
    functional.mish,
    functional.hardswish,
    functional.tanh,
})
_ZERO_TO_ZERO_METHODS = frozenset({"relu", "relu_", "tanh", "contiguous", "clone"})
# the same for inputs of (N, C) and so many more dimensions
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
    functional.max_pool1d: 1,
    functional.max_pool2d: 2,
    functional.avg_pool1d: 1,
    functional.avg_pool2d: 2,
    functional.adaptive_avg_pool1d: 1,
    functional.adaptive_avg_pool2d: 2,
}
SUMS = frozenset({operator.add, operator.iadd, torch.add})
PRODUCTS = frozenset({operator.mul, operator.imul, torch.mul})


def zero_to_zero(node: fx.Node, part: nn.Module | None, ndim: int) -> bool:
    """Say whether an operation maps zero to zero in each channel for itself.

    Args:
        node: The operation.
        part: The module that it calls, if it calls one.
        ndim: Dimensions of its input, batch and channels included.

    Returns:
        True if it is known to.
    """
    kind = type(part) if part is not None else node.target
    if kind in _POOLS and node.op in {"call_module", "call_function"}:
        places = node.kwargs.get("return_indices", False)
        both = bool(places or getattr(part, "return_indices", False))
        return not both and ndim == 2 + _POOLS[kind]
    if node.op == "call_module":
        return kind in _ZERO_TO_ZERO
    if node.op == "call_function":
        return kind in _ZERO_TO_ZERO_FUNCTIONS
    return node.op == "call_method" and kind in _ZERO_TO_ZERO_METHODS


def usable(module: fx.GraphModule, calls: list[fx.Node]) -> set[str]:
    """Return the modules that may be changed: called once, and no more than they seem.

    Args:
        module: The traced network.
        calls: Its nodes that call a module.

    Returns:
        Names of modules without hooks and parametrisation that own their tensors
        alone.
    """
    # modules that are called once, own their tensors alone and are no more than they
    # seem: no hooks, no parametrisation, no second use of a weight
    times = Counter(id(module.get_submodule(str(node.target))) for node in calls)
    owners = Counter(
        id(part)
        for owner in {id(m): m for m in module.modules()}.values()
        for part in owner.parameters(recurse=False)
    )
    read = {
        str(node.target).rpartition(".")[0]
        for node in module.graph.nodes
        if node.op == "get_attr"
    }
    found = set()
    for node in calls:
        name = str(node.target)
        part = module.get_submodule(name)
        plain = not (
            part._forward_hooks
            or part._forward_pre_hooks
            or part._backward_hooks
            or parametrize.is_parametrized(part)
        )
        alone = all(owners[id(own)] == 1 for own in part.parameters(recurse=False))
        if times[id(part)] == 1 and alone and plain and name not in read:
            found.add(name)
    return found


def only_input(node: fx.Node) -> fx.Node | None:
    """Return the one tensor that a node takes, None if it takes anything else.

    Args:
        node: The node.

    Returns:
        The node of its input.
    """
    if len(node.args) != 1 or node.kwargs:
        return None
    return node.args[0] if isinstance(node.args[0], fx.Node) else None


def is_conv(layer: nn.Module) -> bool:
    """Say whether a layer is a convolution of torch, transposed or not.

    Args:
        layer: The layer.

    Returns:
        True if it is.
    """
    return type(layer) in LAYERS and type(layer) is not nn.Linear


def depthwise(layer: nn.Module) -> bool:
    """Say whether each channel is convolved for itself.

    Args:
        layer: The layer.

    Returns:
        True if it is a convolution with as many groups as channels.
    """
    groups = getattr(layer, "groups", 1)
    return groups > 1 and groups == layer.in_channels == layer.out_channels


def splits(layer: nn.Module) -> bool:
    """Say whether channels can be taken out of a layer one by one.

    Args:
        layer: The layer.

    Returns:
        True if it has one group, or as many as channels.
    """
    # whether its channels can be taken out one by one
    return getattr(layer, "groups", 1) == 1 or depthwise(layer)


def calls_one_of(node: fx.Node, function: Callable[..., Any], method: str) -> bool:
    """Say whether a node calls a function, or the method of that name.

    Args:
        node: The node.
        function: The function.
        method: The method's name.

    Returns:
        True if it does.
    """
    if node.op == "call_function":
        return node.target is function
    return node.op == "call_method" and node.target == method


def flattened(node: fx.Node) -> tuple[Any, Any]:
    """Return the first and the last dimension that a node flattens.

    Args:
        node: A call of ``flatten``.

    Returns:
        ``start_dim`` and ``end_dim``.
    """
    given = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False))
    merged = {"start_dim": 0, "end_dim": -1} | given | dict(node.kwargs)
    return merged["start_dim"], merged["end_dim"]
