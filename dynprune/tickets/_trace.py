"""Graphs of networks by torch.fx, with shapes."""

from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from dynprune.core import InvalidInputError, isolated
from dynprune.tickets._apply import listed

Example = Tensor | tuple[Any, ...]
_MEMORY = "memory"
_MIXING = (nn.Linear, nn.modules.conv._ConvNd)


def graphs(
    model: nn.Module, example: Example, *, lasting: bool = False
) -> dict[str, fx.GraphModule]:
    """Trace a network, or else its largest modules that can be traced.

    Inner modules that cannot be traced stay whole. If the network itself cannot, the
    modules that are called once, with tensors, are traced each for itself.

    Args:
        model: In eval mode, a private copy.
        example: What it is called with; a tuple is several arguments.
        lasting: Whether the graphs are to be trained: what depends on the mode is then
            refused.

    Returns:
        Module name to its graph, with the shape of every tensor; the name of the
        network itself is empty.

    Raises:
        InvalidInputError: If nothing can be traced.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    try:
        return {"": _graph(model, inputs, lasting=lasting)}
    except Exception as error:  # whatever a user's forward raises
        parts = _parts(model, inputs, lasting=lasting)
        if parts:
            return parts
        name, why = type(model).__name__, _first_line(error)
        if lasting:
            raise InvalidInputError(
                f"The graph of {name} cannot be followed by torch.fx: {why}, nor that "
                "of any module in it. Move what depends on values, lengths or the mode "
                "into modules of their own, such as nn.Dropout."
            ) from error
        raise InvalidInputError(
            f"torch.fx cannot follow {name} with this example, nor any module in it "
            f"({why}). Its units stay; export it with ticket.to_dense or "
            "dp.tickets.to_sparse."
        ) from error


def check_hooks(model: nn.Module) -> None:
    """Refuse a network with forward hooks.

    Args:
        model: The network.

    Raises:
        InvalidInputError: If any module has one.
    """
    hooked = [
        repr(name) if name else "the model itself"
        for name, part in model.named_modules()
        if has_hooks(part)
    ]
    if hooked:
        raise InvalidInputError(
            f"Modules with forward hooks: {listed(hooked)}. A hook may do anything. "
            "Remove them first; ticket.to_dense(model) removes those of "
            "torch.nn.utils.prune."
        )


def has_hooks(module: nn.Module) -> bool:
    """Say whether something is called before or after a module.

    Args:
        module: The module; not those in it.

    Returns:
        Whether it has forward hooks or forward pre-hooks.
    """
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _first_line(error: Exception) -> str:
    said = (str(error).splitlines() or [""])[0][:200].rstrip(".")
    return f"{type(error).__name__}: {said}"


def _parts(
    model: nn.Module, inputs: tuple[Any, ...], *, lasting: bool
) -> dict[str, fx.GraphModule]:
    calls: dict[nn.Module, list[tuple[Any, ...] | None]] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        plain = not kwargs and all(isinstance(part, Tensor) for part in args)
        calls.setdefault(module, []).append(args if plain else None)

    handles = [
        part.register_forward_pre_hook(record, with_kwargs=True)
        for part in model.modules()
    ]
    try:
        with torch.no_grad(), isolated(0):
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, fx.GraphModule] = {}
    for name, part in model.named_modules():
        seen = calls.get(part, [])
        done = any(name.startswith(f"{other}.") for other in found)
        if done or len(seen) != 1 or seen[0] is None or part is model:
            continue
        try:
            graph = _graph(part, seen[0], lasting=lasting)
        except Exception:  # whatever a user's forward raises: try the modules in it
            continue
        layers = (n for n in graph.graph.nodes if n.op == "call_module")
        if any(isinstance(part.get_submodule(n.target), _MIXING) for n in layers):
            found[name] = graph
    return found


@final
class _Tracer(fx.Tracer):
    """Trace into modules, except into those that cannot be traced.

    Args:
        leaves: The modules that stay whole, besides torch's own.
    """

    def __init__(self, leaves: set[nn.Module]) -> None:
        fx.Tracer.__init__(self)
        self._whole = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module stays whole.

        Args:
            m: The module.
            module_qualified_name: Its name.

        Returns:
            True if it does.
        """
        return m in self._whole or fx.Tracer.is_leaf_module(
            self, m, module_qualified_name
        )


@final
class _Recorder(fx.Interpreter):
    """Run a graph; note the shape and the memory of every tensor at its node."""

    def run_node(self, n: fx.Node) -> Any:
        """Run a node.

        Args:
            n: The node.

        Returns:
            Its value.
        """
        value = fx.Interpreter.run_node(self, n)
        if isinstance(value, Tensor):
            n.meta["shape"] = tuple(value.shape)
        # of inputs alone: the memory of other tensors may be free and in use again
        known: dict[int, str] = {}
        for part in n.all_input_nodes:
            known |= part.meta.get(_MEMORY, {})
        n.meta[_MEMORY] = {place: known.get(place, n.name) for place in _places(value)}
        return value


def _graph(
    model: nn.Module, inputs: tuple[Any, ...], *, lasting: bool
) -> fx.GraphModule:
    graph = symbolic(model)
    if lasting:
        modes = {part: part.training for part in model.modules()}
        trained = symbolic(model.train()).code
        for part, mode in modes.items():
            part.training = mode
        if trained != graph.code:
            raise InvalidInputError(
                "it depends on self.training (functional dropout or batch norm, most "
                "likely)"
            )
    with torch.no_grad(), isolated(0):
        _Recorder(graph).run(*inputs)
    return graph


def symbolic(model: nn.Module) -> fx.GraphModule:
    """Trace a network without calling it: no shapes.

    Args:
        model: In the mode that is to be traced; modules in it that cannot be traced
            stay whole.

    Returns:
        Its graph, of the same modules.
    """
    whole: set[nn.Module] = set()
    # numbers drawn here become constants, which the comparison, of seed 0, must see
    with isolated(1):
        # inner modules first: one that cannot be traced reads all its channels
        for module in reversed(list(model.modules())):
            own = module.__module__.split(".")[:2] != ["torch", "nn"]
            if module is not model and own:
                try:
                    _traced(module, whole)
                except Exception:  # whatever a user's forward raises
                    whole.add(module)
        return _traced(model, whole)


def _traced(module: nn.Module, whole: set[nn.Module]) -> fx.GraphModule:
    before = set(vars(module))
    try:
        return fx.GraphModule(module, _Tracer(whole).trace(module))
    finally:
        for name in set(vars(module)) - before:  # the tracer's constants
            delattr(module, name)


def _places(value: Any) -> set[int]:
    parts = [part for part in pytree.tree_leaves(value) if isinstance(part, Tensor)]
    found = {
        part.untyped_storage().data_ptr()
        for part in parts
        if part.layout == torch.strided
    }
    return found - {0}  # none


def memory_of(node: fx.Node) -> frozenset[str]:
    """Return where a node's tensors lie; two nodes that share some are aliases.

    Args:
        node: Of a graph that :func:`graphs` made.

    Returns:
        Names of the nodes that the memory is from; empty if there is no tensor.
    """
    return frozenset(node.meta.get(_MEMORY, {}).values())


def shape_of(node: Any) -> tuple[int, ...]:
    """Return the shape of a node's tensor.

    Args:
        node: Of a graph that :func:`graphs` made.

    Returns:
        The shape; empty if it is no tensor.
    """
    return tuple(node.meta.get("shape", ())) if isinstance(node, fx.Node) else ()


def word(node: fx.Node) -> str:
    """Return what messages call a node.

    Args:
        node: Any.

    Returns:
        The name of what it calls.
    """
    if node.op == "output":
        return "the output"
    name = getattr(node.target, "__name__", None) or str(node.target)
    return f"{name!r}"
