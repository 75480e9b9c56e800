"""Graphs of networks by torch.fx, with shapes."""

from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from dynprune.core import InvalidInputError
from dynprune.tickets._apply import listed

Example = Tensor | tuple[Any, ...]


def traced(model: nn.Module, example: Example) -> fx.GraphModule:
    """Trace a network; inner modules that cannot be traced stay whole.

    Args:
        model: In eval mode, a private copy.
        example: What it is called with; a tuple is several arguments.

    Returns:
        Its graph, with the shape of every tensor.

    Raises:
        InvalidInputError: If it cannot be traced, or has forward hooks.
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
        graph = _graph(model)
        with torch.no_grad():
            ShapeProp(graph).propagate(*inputs)
    except Exception as error:  # whatever a user's forward raises
        raise InvalidInputError(
            f"torch.fx cannot follow {type(model).__name__} with this example "
            f"({type(error).__name__}: {str(error).splitlines()[0][:200]}). Its units "
            "stay; export it with ticket.to_dense or dp.tickets.to_sparse."
        ) from error
    return graph


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


def _graph(model: nn.Module) -> fx.GraphModule:
    whole: set[nn.Module] = set()
    # inner modules first: one that cannot be traced reads all its channels
    for module in reversed(list(model.modules())):
        own = module.__module__.split(".")[:2] != ["torch", "nn"]
        if module is not model and own:
            try:
                _Tracer(whole).trace(module)
            except Exception:  # whatever a user's forward raises
                whole.add(module)
    return fx.GraphModule(model, _Tracer(whole).trace(model))


def shape_of(node: Any) -> tuple[int, ...]:
    """Return the shape of a node's tensor.

    Args:
        node: Of a graph that :func:`traced` made.

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
