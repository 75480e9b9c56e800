"""Take masked channels out of a network: fewer parameters, the same function."""

import copy
import operator
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

from dynprune.core import InvalidInputError, isolated
from dynprune.pruning._channel_map import ChannelMap, Held
from dynprune.pruning._trace import Shapes, trace

# types, not kinds: a subclass may compute anything
_LAYERS = (
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
_SUMS = frozenset({operator.add, operator.iadd, torch.add})
_PRODUCTS = frozenset({operator.mul, operator.imul, torch.mul})


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Reduced:
    """Hold a network without its masked channels.

    Args:
        network: The smaller network, in eval mode.
        kept_items: Weight name and boolean tensor of the shape that the weight had,
            True = still there; weights that lost nothing are left out.
        unreached: Norms whose masked channels could not be taken out.
    """

    network: fx.GraphModule
    kept_items: tuple[tuple[str, Tensor], ...]
    unreached: tuple[str, ...]

    def __repr__(self) -> str:
        """Return one line."""
        return f"Reduced({len(self.kept_items)} weights became smaller)"


def remove_channels(
    net: nn.Module, masks: Mapping[str, Tensor], inputs: tuple[Any, ...]
) -> Reduced:
    r"""Take out the channels whose norm has scale and shift zero.

    With :math:`\gamma_c = \beta_c = 0` channel c of a batch norm is zero whatever
    comes in. So are its images under ReLU, pooling and the like, and nothing is lost
    if the row of the layer before it, c itself, and the columns of every layer that
    reads it go: the network has the same function, in train and in eval mode. Where
    branches are added, the sum holds the channels that any branch holds, and branches
    are filled up with zeros; before an operation that is not known to map zero to
    zero in each channel, the whole tensor is restored.

    A norm that would lose all channels keeps its first, at scale and shift zero.

    Args:
        net: The network, masked: γ = β = 0 where pruned. Not changed.
        masks: Name of a batch-norm module to boolean tensor, True = kept.
        inputs: Arguments to run it with, to know the shapes.

    Returns:
        The smaller network, and what is left of each weight.

    Raises:
        InvalidInputError: If the graph cannot be followed, or the smaller network
            does not give the same outputs on ``inputs``.

    Cost:
        Three forward passes of ``inputs``.
    """  # noqa: DOC502 - raised by trace and _check_same
    graph, shapes = trace(net, inputs)
    reduced = _Removal(graph, shapes, masks).run()
    _check_same(net, reduced.network, inputs)
    return reduced


def _check_same(net: nn.Module, smaller: nn.Module, inputs: tuple[Any, ...]) -> None:
    twin = copy.deepcopy(net).eval()
    with torch.no_grad(), isolated(0):
        a, b = (pytree.tree_leaves(part(*inputs)) for part in (twin, smaller))
    for x, y in zip(a, b, strict=True):
        if not isinstance(x, Tensor) or not x.is_floating_point():
            continue
        scale = float(x.abs().max()) if x.numel() else 0.0
        # sums of fewer terms, in another order: some thousand roundings at most
        near = 1e4 * torch.finfo(x.dtype).eps * max(scale, 1.0)
        if x.shape != y.shape or not float((x - y).abs().max() if len(x) else 0) < near:
            raise InvalidInputError(
                "Taking channels out changed the network's outputs: its graph does "
                "something that cannot be followed (an operation in place on a tensor "
                "that is read again, most likely). Pass unit='weight'."
            )


@final
class _Removal:
    def __init__(
        self, module: fx.GraphModule, shapes: Shapes, masks: Mapping[str, Tensor]
    ) -> None:
        self._module, self._shapes = module, shapes
        self._held: dict[fx.Node, Held] = {}
        self._kept: dict[str, Tensor] = {}
        self._maps = 0
        calls = [n for n in module.graph.nodes if n.op == "call_module"]
        self._usable = _usable(module, calls)
        self._keeps = {name: _places(mask) for name, mask in masks.items()}
        self._rows = self._find_rows(calls)
        self._reached: set[str] = set()

    def run(self) -> Reduced:
        for node in list(self._module.graph.nodes):
            self._visit(node)
        self._module.graph.lint()
        self._module.recompile()
        unreached = [
            name
            for name, places in self._keeps.items()
            if name not in self._reached and len(places) < self._channels(name)
        ]
        return Reduced(
            network=self._module.eval(),
            kept_items=tuple(self._kept.items()),
            unreached=tuple(unreached),
        )

    def _part(self, node: fx.Node) -> nn.Module:
        return self._module.get_submodule(str(node.target))

    def _channels(self, name: str) -> int:
        norm = self._module.get_submodule(name)
        assert isinstance(norm, _BatchNorm)
        return norm.num_features

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        return self._shapes.get(node, ())

    def _find_rows(self, calls: list[fx.Node]) -> dict[fx.Node, Held]:
        # layers that only a masked norm reads make only the rows that it keeps
        found: dict[fx.Node, Held] = {}
        for node in calls:
            name, source = str(node.target), _only_input(node)
            if name not in self._keeps or name not in self._usable or source is None:
                continue
            if source.op != "call_module" or _only_input(source) is None:
                continue
            if len(source.users) > 1 or str(source.target) not in self._usable:
                continue
            layer = self._part(source)
            flat = type(layer) is nn.Linear and len(self._shape(source)) == 2
            if flat or (_is_conv(layer) and _splits(layer)):
                found[source] = Held(
                    size=self._channels(name), places=self._keeps[name]
                )
        return found

    def _visit(self, node: fx.Node) -> None:
        source = node.args[0] if node.args else None
        part = self._part(node) if node.op == "call_module" else None
        usable = part is not None and str(node.target) in self._usable
        if part is not None and usable and _only_input(node) is not None:
            if type(part) in _LAYERS:
                return self._layer(node, str(node.target), part)
            if type(part) in BATCH_NORMS and str(node.target) in self._keeps:
                assert isinstance(part, _BatchNorm)
                return self._norm(node, str(node.target), part)
        if node.op == "call_function" and node.target is torch.cat:
            return self._cat(node)
        if not isinstance(source, fx.Node):
            return self._restore(node)
        if node.op == "call_function" and node.target in _SUMS:
            return self._sum(node)
        if node.op == "call_function" and node.target in _PRODUCTS:
            return self._product(node)
        if self._zero_to_zero(node, source, part):
            return self._pass(node, source)
        if type(part) is nn.Flatten and part.start_dim == 1:
            return self._flatten(node, source, part.end_dim)
        if _is(node, torch.flatten, "flatten") and _range(node)[0] == 1:
            return self._flatten(node, source, _range(node)[1])
        if _is(node, torch.mean, "mean"):
            return self._mean(node, source)
        if node.op == "call_method" and node.target in {"view", "reshape"}:
            return self._view(node, source)
        if node.op == "call_method" and (node.target, *node.args[1:]) == ("size", 0):
            return None
        return self._restore(node)

    def _zero_to_zero(
        self, node: fx.Node, source: fx.Node, part: nn.Module | None
    ) -> bool:
        kind = type(part) if part is not None else node.target
        if kind in _POOLS and node.op in {"call_module", "call_function"}:
            places = node.kwargs.get("return_indices", False)
            both = bool(places or getattr(part, "return_indices", False))
            return not both and len(self._shape(source)) == 2 + _POOLS[kind]
        if node.op == "call_module":
            return kind in _ZERO_TO_ZERO
        if node.op == "call_function":
            return kind in _ZERO_TO_ZERO_FUNCTIONS
        return node.op == "call_method" and kind in _ZERO_TO_ZERO_METHODS

    def _layer(self, node: fx.Node, name: str, layer: nn.Module) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        held, rows = self._held.get(source), self._rows.get(node)
        groups = getattr(layer, "groups", 1)
        if type(layer) is nn.Linear and len(self._shape(source)) != 2:
            return self._restore(node)
        if groups > 1:
            if not _splits(layer):
                return self._restore(node)
            if rows is None and held is not None:
                if layer.bias is not None:
                    return self._restore(node)
                self._held[node] = rows = held
            if rows is not None:
                self._bring(node, source, held, rows.places)
                self._shrink(name, layer, rows.places, None)
            return None
        columns = None if held is None else held.places
        if rows is not None or columns is not None:
            self._shrink(name, layer, None if rows is None else rows.places, columns)
        return None

    def _norm(self, node: fx.Node, name: str, norm: _BatchNorm) -> None:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        held = Held(size=norm.num_features, places=self._keeps[name])
        self._reached.add(name)
        if source not in self._rows:
            self._bring(node, source, self._held.get(source), held.places)
        if held.whole:
            return
        for slot in ("weight", "bias"):
            self._cut(norm, slot, held.places)
        for slot in ("running_mean", "running_var"):
            value = getattr(norm, slot)
            if value is not None:
                setattr(norm, slot, value[_index(held.places, value)].clone())
        norm.num_features = len(held.places)
        self._held[node] = held

    def _pass(self, node: fx.Node, source: fx.Node) -> None:
        if len(node.all_input_nodes) > 1:
            return self._restore(node)
        if source in self._held:
            self._held[node] = self._held[source]
        return None

    def _flatten(self, node: fx.Node, source: fx.Node, end: int) -> None:
        before, after = self._shape(source), self._shape(node)
        held = self._held.get(source)
        if held is None:
            return None
        if len(after) != 2 or end not in {-1, len(before) - 1}:
            return self._restore(node)
        self._held[node] = held.spread(after[1] // before[1])
        return None

    def _view(self, node: fx.Node, source: fx.Node) -> None:
        sizes = node.args[1:]
        if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
            sizes = tuple(sizes[0])
        before, after = self._shape(source), self._shape(node)
        rows = len(before) > 1 and len(after) == 2 and after[0] == before[0]
        if source in self._held and rows and sizes[-1] == -1:
            self._held[node] = self._held[source].spread(after[1] // before[1])
            return None
        return self._restore(node)

    def _mean(self, node: fx.Node, source: fx.Node) -> None:
        shape = self._shape(source)
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        listed = [dims] if isinstance(dims, int) else dims
        if source in self._held and isinstance(listed, tuple | list) and len(shape) > 2:
            places = {int(d) % len(shape) for d in listed if isinstance(d, int)}
            if len(places) == len(listed) and not places & {0, 1}:
                self._held[node] = self._held[source]
                return None
        return self._restore(node)

    def _sum(self, node: fx.Node) -> None:
        parts = list(node.args)
        shapes = [self._shape(p) for p in parts if isinstance(p, fx.Node)]
        held = [self._held.get(p) for p in parts if isinstance(p, fx.Node)]
        if node.kwargs or len(held) != 2 or shapes[0] != shapes[1] or None in held:
            return self._restore(node)
        known = [part for part in held if part is not None]
        places = tuple(sorted(set(known[0].places) | set(known[1].places)))
        for source, part in zip(parts, known, strict=True):
            assert isinstance(source, fx.Node)
            self._bring(node, source, part, places)
        self._held[node] = Held(size=known[0].size, places=places)
        return None

    def _product(self, node: fx.Node) -> None:
        parts = [part for part in node.args if isinstance(part, fx.Node)]
        held = [self._held.get(part) for part in parts]
        shapes = [self._shape(part) for part in parts]
        if not any(held) or node.kwargs:
            return self._restore(node)
        if len(parts) == 1:  # a tensor times a number
            only = held[0]
            assert only is not None
            self._held[node] = only
            return None
        if len(shapes[0]) != len(shapes[1]) or shapes[0][:2] != shapes[1][:2]:
            return self._restore(node)
        size = shapes[0][1]
        known = [set(range(size) if part is None else part.places) for part in held]
        places = tuple(sorted(known[0] & known[1]))
        if not places:
            return self._restore(node)
        for source, part in zip(parts, held, strict=True):
            self._bring(node, source, part, places)
        self._held[node] = Held(size=size, places=places)
        return None

    def _cat(self, node: fx.Node) -> None:
        parts = node.args[0] if node.args else None
        dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
        if not isinstance(parts, tuple | list) or dim != 1:
            return self._restore(node)
        places: list[int] = []
        start = 0
        for part in parts:
            assert isinstance(part, fx.Node)
            size, held = self._shape(part)[1], self._held.get(part)
            own = range(size) if held is None else held.places
            places += [start + place for place in own]
            start += size
        if len(places) < start:
            self._held[node] = Held(size=start, places=tuple(places))
        return None

    def _restore(self, node: fx.Node) -> None:
        for source in node.all_input_nodes:
            held = self._held.get(source)
            if held is not None:
                self._bring(node, source, held, tuple(range(held.size)))

    def _bring(
        self, node: fx.Node, source: fx.Node, held: Held | None, places: tuple[int, ...]
    ) -> None:
        # make node read the channels at these places of source
        size = self._shape(source)[1] if held is None else held.size
        before = tuple(range(size)) if held is None else held.places
        if before == places:
            return
        name = f"channel_map_{self._maps}"
        self._maps += 1
        made = ChannelMap(before, places).to(next(self._module.parameters()).device)
        self._module.add_submodule(name, made)
        with self._module.graph.inserting_before(node):
            mapped = self._module.graph.call_module(name, (source,))
        node.replace_input_with(source, mapped)

    def _shrink(
        self,
        name: str,
        layer: nn.Module,
        rows: tuple[int, ...] | None,
        columns: tuple[int, ...] | None,
    ) -> None:
        weight = layer.get_parameter("weight")
        apart = _depthwise(layer)
        turned = isinstance(layer, nn.modules.conv._ConvTransposeNd) and not apart
        row_dim, column_dim = (1, 0) if turned else (0, 1)
        kept = torch.ones(weight.shape, dtype=torch.bool)
        for dim, places in ((row_dim, rows), (column_dim, columns)):
            if places is not None:
                gone = torch.ones(weight.shape[dim], dtype=torch.bool)
                gone[list(places)] = False
                kept.movedim(dim, 0)[gone] = False
                self._cut(layer, "weight", places, dim=dim)
        self._kept[f"{name}.weight"] = kept
        if rows is not None and layer.bias is not None:
            gone = torch.zeros(kept.shape[row_dim], dtype=torch.bool)
            gone[list(rows)] = True
            self._kept[f"{name}.bias"] = gone
            self._cut(layer, "bias", rows)
        if rows is not None:
            _set(layer, ("out_features", "out_channels"), len(rows))
            if apart:
                _set(layer, ("in_channels", "groups"), len(rows))
        if columns is not None:
            _set(layer, ("in_features", "in_channels"), len(columns))

    def _cut(
        self, part: nn.Module, slot: str, places: tuple[int, ...], *, dim: int = 0
    ) -> None:
        old = getattr(part, slot)
        if old is None:
            return
        value = old.detach().index_select(dim, _index(places, old)).clone()
        setattr(part, slot, nn.Parameter(value, requires_grad=old.requires_grad))


def _usable(module: fx.GraphModule, calls: list[fx.Node]) -> set[str]:
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


def _places(mask: Tensor) -> tuple[int, ...]:
    found = torch.nonzero(mask.reshape(-1)).reshape(-1).tolist()
    return tuple(found) or (0,)


def _index(places: tuple[int, ...], like: Tensor) -> Tensor:
    return torch.tensor(places, device=like.device, dtype=torch.long)


def _only_input(node: fx.Node) -> fx.Node | None:
    if len(node.args) != 1 or node.kwargs:
        return None
    return node.args[0] if isinstance(node.args[0], fx.Node) else None


def _is_conv(layer: nn.Module) -> bool:
    return type(layer) in _LAYERS and type(layer) is not nn.Linear


def _depthwise(layer: nn.Module) -> bool:
    groups = getattr(layer, "groups", 1)
    return groups > 1 and groups == layer.in_channels == layer.out_channels


def _splits(layer: nn.Module) -> bool:
    # whether its channels can be taken out one by one
    return getattr(layer, "groups", 1) == 1 or _depthwise(layer)


def _set(layer: nn.Module, names: tuple[str, ...], value: int) -> None:
    for name in names:
        if name in vars(layer):
            setattr(layer, name, value)


def _is(node: fx.Node, function: Callable[..., Any], method: str) -> bool:
    if node.op == "call_function":
        return node.target is function
    return node.op == "call_method" and node.target == method


def _range(node: fx.Node) -> tuple[Any, Any]:
    given = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False))
    merged = {"start_dim": 0, "end_dim": -1} | given | dict(node.kwargs)
    return merged["start_dim"], merged["end_dim"]
