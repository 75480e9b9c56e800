"""How the units of layers flow through a network's graph."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from dynprune.core import InvalidInputError
from dynprune.tickets._changeable import Changeable, plain
from dynprune.tickets._channel_rules import (
    channelwise,
    has_channels,
    mapped,
    pointwise,
)
from dynprune.tickets._channels import Axis, Channels, Layer
from dynprune.tickets._function_rules import called, reads_batch_size
from dynprune.tickets._shrink import weight_of
from dynprune.tickets._trace import (
    Example,
    check_hooks,
    graphs,
    memory_of,
    shape_of,
    word,
)

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
CATS = frozenset({torch.cat, torch.concat})
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
    """  # noqa: DOC502 - raised by graphs and the walk
    check_hooks(model)
    channels = Channels()
    for name, graph in graphs(model, example).items():
        Walk(channels, model, graph, name=name).run()
    return channels


@final
class Walk:
    """Visit the nodes of a graph in order and find the channels of each.

    With ``zeros`` it knows no constants but zeros, and those only that stay zero in
    training mode and whatever becomes of the parameters: what batch norms of scale and
    shift zero put out, and what nothing but such a norm reads.

    Args:
        channels: Where to write what is found.
        model: The network.
        graph: That of the network or of a module in it, with shapes.
        name: The module's name in the network.
        zeros: Batch norm to boolean tensor, True = scale and shift stay as they are,
            not zero.
    """

    def __init__(
        self,
        channels: Channels,
        model: nn.Module,
        graph: fx.GraphModule,
        *,
        name: str,
        zeros: Mapping[str, Tensor] | None = None,
    ) -> None:
        module = model.get_submodule(name)
        self.channels = channels
        self.axes: dict[fx.Node, Axis] = {}
        self.layers: dict[fx.Node, Layer] = {}
        self.reached: set[str] = set()
        self.nodes: list[fx.Node] = list(graph.graph.nodes)
        self._start = f"{name}." if name else ""
        self._zeros = zeros
        self._modules = dict(module.named_modules())
        self._changeable = Changeable.of(model, module, graph)
        self._order = {node: i for i, node in enumerate(self.nodes)}

    def run(self) -> None:
        """Visit every node."""
        for node in self.nodes:
            self._visit(node)

    def name_of(self, node: fx.Node) -> str:
        """Return the name of a module in the network.

        Args:
            node: Its call.

        Returns:
            The name.
        """
        return f"{self._start}{node.target}"

    def _visit(self, node: fx.Node) -> None:
        self._check_in_place(node)
        found: Axis | None = None
        if node.op == "call_module":
            found = self._module(node)
        elif node.op in {"call_function", "call_method"}:
            found = self._call(node)
        if found is not None:
            self.axes[node] = found
        elif not reads_batch_size(node):
            for part in node.all_input_nodes:
                self.channels.stay(self.axes.get(part), word(node))

    def _check_in_place(self, node: fx.Node) -> None:
        changed = node.target in _IN_PLACE or bool(node.kwargs.get("inplace"))
        if node.op == "call_module":
            changed = bool(getattr(self._modules[str(node.target)], "inplace", False))
        if node.op == "call_method":
            changed = str(node.target).endswith("_")
        first = node.args[0] if node.args else None
        if changed and isinstance(first, fx.Node):
            at, changing = self._order[node], memory_of(first)
            # the tensor itself or an alias of it, made before the change
            old = {
                part
                for part in self.nodes[:at]
                if part is first or changing & memory_of(part)
            }
            later = [n for n in self.nodes[at + 1 :] if old & set(n.all_input_nodes)]
            if later:
                raise InvalidInputError(
                    "Taking units out could have changed the network's outputs: "
                    f"{word(node)} changes a tensor in place that {word(later[0])} "
                    "reads afterwards, so the graph does not say what it reads. Use "
                    "the form that is not in place, or export with ticket.to_dense."
                )

    def _axis(self, part: Any) -> Axis | None:
        return self.axes.get(part) if isinstance(part, fx.Node) else None

    def _whole(self, part: Any, dim: int, why: fx.Node) -> Axis | None:
        # channels of a tensor that comes from elsewhere: all of them stay
        shape = shape_of(part)
        if self._axis(part) is not None or dim >= len(shape):
            return None
        axis = _varying(self.channels.fresh(shape[dim]), dim)
        self.channels.stay(axis, word(why))
        return axis

    # -- modules ----------------------------------------------------------------------

    def _module(self, node: fx.Node) -> Axis | None:
        module = self._modules[str(node.target)]
        if len(node.args) != 1 or node.kwargs or not plain(module):
            return None
        if not self._may_change(node, module):
            return None
        axis, shape = self._axis(node.args[0]), shape_of(node.args[0])
        if type(module) is nn.Linear:
            if axis is not None and axis.dim != len(shape) - 1:
                return None
            return self._layer(node, module, axis, dim=len(shape) - 1)
        if isinstance(module, _ConvNd):
            if len(shape) != len(module.kernel_size) + 2:
                return None  # no batch dimension
            if module.groups == 1:
                if axis is not None and axis.dim != 1:
                    return None
                return self._layer(node, module, axis, dim=1)
        if axis is None and has_channels(module):
            axis = self._whole(node.args[0], 1, node)
        if axis is None:
            return None
        lasting = self._zeros is not None
        found = pointwise(module, axis, lasting=lasting)
        if found is not None or axis.dim != 1:
            return found
        found = channelwise(module, axis, shape, lasting=lasting)
        if found is not None and has_channels(module):
            found = self._with_zeros(node, module, found)
            self.channels.channelwise[self.name_of(node)] = (module, axis.ids)
        return found

    def _may_change(self, node: fx.Node, module: nn.Module) -> bool:
        if not [*module.parameters(), *module.buffers()]:
            return True
        # one that is shared would have to fit several inputs
        name = str(node.target)
        read = {slot.rpartition(".")[2] for slot in self._read(name)}
        layer = type(module) is nn.Linear or getattr(module, "groups", 0) == 1
        alone = read <= {"bias"} if layer else not read
        return alone and name in self._changeable.names

    def _read(self, name: str) -> list[str]:
        return [r for r in self._changeable.read if r.rpartition(".")[0] == name]

    def _with_zeros(self, node: fx.Node, module: nn.Module, axis: Axis) -> Axis:
        if self._zeros is None:
            return axis
        mask = self._zeros.get(self.name_of(node))
        if isinstance(module, _BatchNorm):
            if mask is None:
                return axis
            self.reached.add(self.name_of(node))
        else:
            mask = self._read_by_norm(node)
        if mask is None:
            return axis
        zero = torch.zeros_like(axis.values)
        return _some(replace(axis, fixed=~mask | ~axis.held, values=zero))

    def _read_by_norm(self, node: fx.Node) -> Tensor | None:
        # what nothing but a norm reads may be zero where the norm puts zero out
        user = next(iter(node.users), None)
        if user is None or len(node.users) > 1 or user.op != "call_module":
            return None
        module = self._modules[str(user.target)]
        alone = user.args == (node,) and not user.kwargs and plain(module)
        if not alone or not self._may_change(user, module):
            return None
        mask = (self._zeros or {}).get(self.name_of(user))
        return mask if isinstance(module, _BatchNorm) else None

    def _layer(
        self, node: fx.Node, module: "nn.Linear | _ConvNd", axis: Axis | None, dim: int
    ) -> Axis:
        nonzero = weight_of(module) != 0
        layer = Layer(
            module=module,
            rows=self.channels.fresh(len(nonzero)),
            inputs=axis,
            links=nonzero.flatten(2).any(2).cpu()
            if nonzero.ndim > 2
            else nonzero.cpu(),
        )
        self.channels.layers[self.name_of(node)] = layer
        self.layers[node] = layer
        bias_is_read = bool(self._read(str(node.target)))
        if bias_is_read:
            self.channels.stay(_varying(layer.rows, dim), f"{node.target}.bias")
        if self._zeros is not None:
            found, alone = _varying(layer.rows, dim), dim == 1 and not bias_is_read
            return self._with_zeros(node, module, found) if alone else found
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
        if node.target in CATS:
            return self._cat(node)
        if node.target in _BINARY and len(node.args) == 2:
            return self._binary(node, _BINARY[node.target])
        axis = self._axis(node.args[0]) if node.args else None
        return None if axis is None else called(node, axis)

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
        first, second = (shape_of(part) for part in node.args)
        if (a is None and b is None) or len(first) != len(second):
            return None
        a = a or self._whole(node.args[0], b.dim if b else 0, node)
        b = b or self._whole(node.args[1], a.dim if a else 0, node)
        if a is None or b is None or a.dim != b.dim or len(a.ids) != len(b.ids):
            return None
        self.channels.unify(a.ids, b.ids)
        values = function(a.values, b.values, **node.kwargs)
        if function is not torch.mul:
            return replace(a, fixed=a.fixed & b.fixed, values=values)
        zero = ~(a.held & b.held)
        made = replace(
            a,
            fixed=(a.fixed & b.fixed) | zero,
            values=torch.where(zero, 0.0, values),
        )
        return made if self._zeros is None else _some(made)

    def _cat(self, node: fx.Node) -> Axis | None:
        parts = node.args[0] if node.args else None
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        if not isinstance(parts, list | tuple) or not isinstance(dim, int):
            return None
        dim %= max(len(shape_of(node)), 1)
        if all(self._axis(part) is None for part in parts):
            return None
        axes = [self._axis(part) or self._whole(part, dim, node) for part in parts]
        known = [axis for axis in axes if axis is not None]
        if len(known) < len(axes) or any(axis.dim != dim for axis in known):
            return None
        return Axis(
            dim=dim,
            ids=torch.cat([axis.ids for axis in known]),
            fixed=torch.cat([axis.fixed for axis in known]),
            values=torch.cat([axis.values for axis in known]),
        )


def _varying(ids: Tensor, dim: int) -> Axis:
    return Axis(
        dim=dim,
        ids=ids,
        fixed=torch.zeros(len(ids), dtype=torch.bool),
        values=torch.zeros(len(ids), dtype=torch.float64),
    )


def _some(axis: Axis) -> Axis:
    # no tensor is without channels
    if bool(axis.held.any()):
        return axis
    fixed = axis.fixed.clone()
    fixed[0] = False
    return replace(axis, fixed=fixed)
