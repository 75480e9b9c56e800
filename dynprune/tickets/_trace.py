"""Graphs of networks by torch.fx, with shapes."""

from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from dynprune.core import InvalidInputError
from dynprune.tickets._apply import listed

Example = Tensor | tuple[Any, ...]
_MIXING = (nn.Linear, nn.modules.conv._ConvNd)


def graphs(model: nn.Module, example: Example) -> dict[str, fx.GraphModule]:
    """Trace a network, or else its largest modules that can be traced.

    Inner modules that cannot be traced stay whole. If the network itself cannot, the
    modules that are called once, with tensors, are traced each for itself.

    Args:
        model: In eval mode, a private copy.
        example: What it is called with; a tuple is several arguments.

    Returns:
        Module name to its graph, with the shape of every tensor; the name of the
        network itself is empty.

    Raises:
        InvalidInputError: If nothing can be traced, or there are forward hooks.
    """
    hooked = [
        name or "the model itself"
        for name, part in model.named_modules()
        if part._forward_hooks or part._forward_pre_hooks
    ]
    if hooked:
        raise InvalidInputError(
            f"{listed(hooked)} have forward hooks, which may do anything. Remove them "
            "first; ticket.to_dense(model) removes those of torch.nn.utils.prune."
        )
    inputs = example if isinstance(example, tuple) else (example,)
    try:
        return {"": _graph(model, inputs)}
    except Exception as error:  # whatever a user's forward raises
        parts = _parts(model, inputs)
        if parts:
            return parts
        raise InvalidInputError(
            f"torch.fx cannot follow {type(model).__name__} with this example, nor any "
            f"module in it ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
            ". Its units stay; export it with ticket.to_dense or dp.tickets.to_sparse."
        ) from error


def _parts(model: nn.Module, inputs: tuple[Any, ...]) -> dict[str, fx.GraphModule]:
    calls: dict[nn.Module, list[tuple[Any, ...] | None]] = {}

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
        plain = not kwargs and all(isinstance(part, Tensor) for part in args)
        calls.setdefault(module, []).append(args if plain else None)

    handles = [
        part.register_forward_pre_hook(record, with_kwargs=True)
        for part in model.modules()
    ]
    try:
        with torch.no_grad():
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
            graph = _graph(part, seen[0])
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


def _graph(model: nn.Module, inputs: tuple[Any, ...]) -> fx.GraphModule:
    whole: set[nn.Module] = set()
    # inner modules first: one that cannot be traced reads all its channels
    for module in reversed(list(model.modules())):
        own = module.__module__.split(".")[:2] != ["torch", "nn"]
        if module is not model and own:
            try:
                _Tracer(whole).trace(module)
            except Exception:  # whatever a user's forward raises
                whole.add(module)
    graph = fx.GraphModule(model, _Tracer(whole).trace(model))
    with torch.no_grad():
        ShapeProp(graph).propagate(*inputs)
    return graph


def shape_of(node: Any) -> tuple[int, ...]:
    """Return the shape of a node's tensor.

    Args:
        node: Of a graph that :func:`graphs` made.

    Returns:
        The shape; empty if it is no tensor.
    """
    meta = node.meta.get("tensor_meta")
    return tuple(getattr(meta, "shape", ()))


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
