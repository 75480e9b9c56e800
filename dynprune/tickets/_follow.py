"""How the units of layers flow through a network's graph."""

import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dynprune.core import InvalidInputError
from dynprune.tickets._channel_rules import (
    channelwise,
    flattened,
    has_channels,
    mapped,
    padded,
    pointwise,
)
from dynprune.tickets._channels import Axis, Channels, Layer
from dynprune.tickets._trace import Example, shape_of, traced, word

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
        torch.abs,
        torch.relu,
        torch.sigmoid,
        torch.tanh,
    )
} | {"relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh}
_BINARY: dict[Any, Callable[..., Tensor]] = {
    operator.add: torch.add,
    operator.iadd: torch.add,
    torch.add: torch.add,
    "add": torch.add,
    operator.sub: torch.sub,
    torch.sub: torch.sub,
    operator.mul: torch.mul,
    operator.imul: torch.mul,
    torch.mul: torch.mul,
    "mul": torch.mul,
    operator.truediv: torch.div,
}
_AS_IT_IS = {"contiguous", "detach", "clone"}
_IN_PLACE = (operator.iadd, operator.imul, operator.isub, operator.itruediv)


def follow(model: nn.Module, example: Example) -> Channels:
    """Follow the units of every layer through a network.

    Args:
        model: In eval mode, a private copy.
        example: What it is called with.

    Returns:
        The units, which of them go together and which stay.

    Raises:
        InvalidInputError: If torch.fx cannot trace the network, it has forward hooks,
            or a tensor is read after it was changed in place.
    """  # noqa: DOC502 - raised by traced and the walk
    graph = traced(model, example)
    walk = _Walk(model, graph)
    for node in graph.graph.nodes:
        walk.visit(node)
    return walk.channels


@final
class _Walk:
    """Visit the nodes of a graph in order.

    Args:
        model: The network.
        traced: Its graph, with shapes.
    """

    def __init__(self, model: nn.Module, traced: fx.GraphModule) -> None:
        self.channels = Channels()
        self._modules = dict(model.named_modules())
        self._axes: dict[fx.Node, Axis] = {}
        calls = [n.target for n in traced.graph.nodes if n.op == "call_module"]
        self._calls = Counter(calls)
        self._order = {node: i for i, node in enumerate(traced.graph.nodes)}
        owners = Counter(
            id(part)
            for module in model.modules()
            for part in module.parameters(recurse=False)
        )
        self._tied = {one for one, count in owners.items() if count > 1}

    def visit(self, node: fx.Node) -> None:
        """Find the channels of a node from those of its arguments.

        Args:
            node: The next one.
        """
        self._check_in_place(node)
        found: Axis | None = None
        if node.op == "call_module":
            found = self._module(node)
        elif node.op in {"call_function", "call_method"}:
            found = self._call(node)
        if found is None:
            if not _reads_batch_size(node):
                for part in node.all_input_nodes:
                    self.channels.stay(self._axes.get(part), word(node))
        else:
            self._axes[node] = found

    def _check_in_place(self, node: fx.Node) -> None:
        changed = node.target in _IN_PLACE or bool(node.kwargs.get("inplace"))
        if node.op == "call_module":
            changed = bool(getattr(self._modules[str(node.target)], "inplace", False))
        if node.op == "call_method":
            changed = str(node.target).endswith("_")
        first = node.args[0] if node.args else None
        if changed and isinstance(first, fx.Node):
            later = [n for n in first.users if self._order[n] > self._order[node]]
            if later:
                raise InvalidInputError(
                    f"{word(node)} changes a tensor in place that {word(later[0])} "
                    "reads afterwards, so the graph does not say what it reads. Use "
                    "the form that is not in place, or export with ticket.to_dense."
                )

    def _axis(self, part: Any) -> Axis | None:
        return self._axes.get(part) if isinstance(part, fx.Node) else None

    # -- modules ----------------------------------------------------------------------

    def _module(self, node: fx.Node) -> Axis | None:
        module = self._modules[str(node.target)]
        if len(node.args) != 1 or node.kwargs:
            return None
        held = [*module.parameters(), *module.buffers()]
        if held and self._calls[node.target] > 1:
            return None  # one set of weights would have to fit several inputs
        if any(id(part) in self._tied for part in held):
            return None
        axis, kind = self._axis(node.args[0]), type(module)
        if isinstance(module, nn.Linear) and kind is nn.Linear:
            if axis is not None and axis.dim != len(shape_of(node.args[0])) - 1:
                return None
            return self._layer(node, module, axis, dim=len(shape_of(node)) - 1)
        if isinstance(module, _ConvNd):
            if isinstance(module, _ConvTransposeNd):
                return None
            if len(shape_of(node)) != len(module.kernel_size) + 2:
                return None  # no batch dimension
            if module.groups == 1 and (axis is None or axis.dim == 1):
                return self._layer(node, module, axis, dim=1)
        if axis is None:
            return None
        found = pointwise(module, axis)
        if found is not None or axis.dim != 1:
            return found
        found = channelwise(module, axis, shape_of(node.args[0]))
        if found is not None and has_channels(module):
            self.channels.channelwise[str(node.target)] = (module, axis.ids)
        return found

    def _layer(
        self, node: fx.Node, module: "nn.Linear | _ConvNd", axis: Axis | None, dim: int
    ) -> Axis:
        nonzero = module.weight.detach() != 0
        layer = Layer(
            module=module,
            rows=self.channels.fresh(len(nonzero)),
            inputs=axis,
            links=nonzero.flatten(2).any(2).cpu()
            if nonzero.ndim > 2
            else nonzero.cpu(),
        )
        self.channels.layers[str(node.target)] = layer
        values = layer.fold(layer.constant)
        if module.bias is not None:
            values = values + module.bias.detach().cpu().double()
        return Axis(
            dim=dim,
            ids=layer.rows,
            fixed=~(layer.links & ~layer.constant).any(1),
            values=values,
        )

    # -- functions and methods --------------------------------------------------------

    def _call(self, node: fx.Node) -> Axis | None:
        target = node.target
        axis = self._axis(node.args[0]) if node.args else None
        if target in {torch.cat, torch.concat}:
            return self._cat(node)
        if target in _BINARY and len(node.args) == 2:
            return self._binary(node, _BINARY[target])
        if axis is None:
            return None
        rest = dict(node.kwargs)
        if target in _POINTWISE:
            if any(
                isinstance(part, fx.Node) for part in (*node.args[1:], *rest.values())
            ):
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
            dims = rest.get("dim", node.args[1] if len(node.args) > 1 else None)
            dims = (dims,) if isinstance(dims, int) else dims
            if dims is None or any(d % len(shape) < 2 for d in dims):  # type: ignore
                return None
            return axis
        if target in {
            functional.adaptive_avg_pool1d,
            functional.adaptive_avg_pool2d,
            functional.max_pool2d,
        }:
            return None if rest.get("return_indices") else axis
        if target in {functional.avg_pool1d, functional.avg_pool2d, torch.avg_pool1d}:
            return padded(axis)
        if _is_flatten(node, shape):
            return flattened(axis, shape)
        return None

    def _binary(self, node: fx.Node, function: Callable[..., Tensor]) -> Axis | None:
        a, b = (self._axis(part) for part in node.args)
        others = [part for part in node.args if not isinstance(part, fx.Node)]
        if any(isinstance(part, fx.Node) for part in node.kwargs.values()):
            return None
        if len(others) == 1 and isinstance(others[0], int | float):
            scalar, left = float(others[0]), not isinstance(node.args[0], fx.Node)
            axis = b if left else a
            return axis and mapped(
                axis,
                lambda v: (
                    function(torch.full_like(v, scalar), v, **node.kwargs)
                    if left
                    else function(v, torch.full_like(v, scalar), **node.kwargs)
                ),
            )
        if a is None or b is None or a.dim != b.dim:
            return None
        first, second = (shape_of(part) for part in node.args)
        if len(first) != len(second) or len(a.ids) != len(b.ids):
            return None
        self.channels.unify(a.ids, b.ids)
        return replace(
            a,
            fixed=a.fixed & b.fixed,
            values=function(a.values, b.values, **node.kwargs),
        )

    def _cat(self, node: fx.Node) -> Axis | None:
        parts = node.args[0] if node.args else None
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        if not isinstance(parts, list | tuple) or not isinstance(dim, int):
            return None
        axes = [self._axis(part) for part in parts]
        known = [axis for axis in axes if axis is not None]
        if len(known) < len(axes) or any(
            axis.dim != dim % len(shape_of(part))
            for axis, part in zip(known, parts, strict=True)
        ):
            return None
        return Axis(
            dim=known[0].dim,
            ids=torch.cat([axis.ids for axis in known]),
            fixed=torch.cat([axis.fixed for axis in known]),
            values=torch.cat([axis.values for axis in known]),
        )


def _is_flatten(node: fx.Node, shape: tuple[int, ...]) -> bool:
    if node.target in {torch.flatten, "flatten"}:
        start = node.kwargs.get("start_dim", node.args[1] if len(node.args) > 1 else 0)
        end = node.kwargs.get("end_dim", node.args[2] if len(node.args) > 2 else -1)
        return (start, end) == (1, -1) or (start, end) == (1, len(shape) - 1)
    if node.target in {"view", "reshape"}:
        wanted = node.args[1:]
        flat = len(wanted) == 2 and wanted[1] == -1 and wanted[0] != -1
        return bool(flat) and shape_of(node)[:1] == shape[:1]
    return False


def _reads_batch_size(node: fx.Node) -> bool:
    if node.op == "call_method" and node.target == "size":
        whole = len(node.args) == 1
        return _only_first_is_read(node) if whole else bool(node.args[1] == 0)
    if node.target is getattr and node.args[1:2] == ("shape",):
        return _only_first_is_read(node)
    return False


def _only_first_is_read(node: fx.Node) -> bool:
    return all(n.target is operator.getitem and n.args[1:] == (0,) for n in node.users)
