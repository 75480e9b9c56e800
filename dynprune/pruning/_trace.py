"""Trace a network into a graph of modules, with the shapes of one batch."""

import copy
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, fx, nn

from dynprune.core import InvalidInputError, isolated
from dynprune.system import GradientSystem, is_resident

Shapes = Mapping[fx.Node, tuple[int, ...]]


def example_inputs(system: GradientSystem) -> tuple[Any, ...]:
    """Return what the network is called with on the first batch, cut to two examples.

    Args:
        system: The system.

    Returns:
        The positional arguments of the first call of the network.

    Raises:
        InvalidInputError: If it is called with keywords, or not at all.
    """
    net = copy.deepcopy(system.module)
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    net.register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    batch = next(system.batches())
    if is_resident(batch):  # two examples say all there is to know of shapes
        batch = tuple(part[:2] for part in batch)
    with torch.no_grad(), isolated(0):
        if system.batch_loss is not None:
            system.batch_loss(net, batch)
        else:
            net(batch[0])
    if not seen or seen[0][1]:
        found = f"the keywords {sorted(seen[0][1])}" if seen else "no arguments at all"
        raise InvalidInputError(
            f"The loss calls the network with {found}; its graph is followed from "
            "positional arguments. Wrap it so that it takes tensors by position, or "
            "pass unit='weight'."
        )
    return seen[0][0]


def trace(net: nn.Module, inputs: tuple[Any, ...]) -> tuple[fx.GraphModule, Shapes]:
    """Trace a network symbolically and record the shape of every tensor.

    Modules without parameters that cannot be traced become single nodes.

    Args:
        net: The network, in eval mode; not changed.
        inputs: Arguments to run it with.

    Returns:
        A graph of a copy of the network, and the shape at each node that is a tensor.

    Raises:
        InvalidInputError: If it cannot be traced, or its graph depends on the mode.
    """
    code, graphs = [], []
    for training in (True, False):
        twin = copy.deepcopy(net).train(training)
        graph = _symbolic(twin)
        made = fx.GraphModule(twin, graph)
        code.append(made.code)
        graphs.append(made)
    if code[0] != code[1]:
        raise InvalidInputError(
            "The network's graph depends on self.training (functional dropout or batch "
            "norm, most likely). Use modules such as nn.Dropout, or pass "
            "unit='weight'."
        )
    recorder = _Recorder(graphs[1])
    try:
        with torch.no_grad(), isolated(0):
            recorder.run(*inputs)
    except Exception as error:
        raise InvalidInputError(
            f"The traced graph does not run on a batch ({_first_line(error)}). Pass "
            "unit='weight', which needs no graph."
        ) from error
    return graphs[1], recorder.shapes


@final
class _Tracer(fx.Tracer):
    def __init__(self, *, opaque: bool) -> None:
        fx.Tracer.__init__(self)
        self._opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if fx.Tracer.is_leaf_module(self, m, module_qualified_name):
            return True
        own = type(m).__module__.startswith("torch.nn")
        return self._opaque and not own and next(m.parameters(), None) is None


@final
class _Recorder(fx.Interpreter):
    def __init__(self, module: fx.GraphModule) -> None:
        fx.Interpreter.__init__(self, module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = fx.Interpreter.run_node(self, n)
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
        return value


def _symbolic(net: nn.Module) -> fx.Graph:
    try:
        return _Tracer(opaque=False).trace(net)
    except Exception:
        try:
            return _Tracer(opaque=True).trace(net)
        except Exception as error:
            raise InvalidInputError(
                f"The graph of {type(net).__name__} cannot be followed by torch.fx: "
                f"{_first_line(error)}. Move what depends on values or lengths into a "
                "module without parameters, or pass unit='weight', which needs no "
                "graph."
            ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
