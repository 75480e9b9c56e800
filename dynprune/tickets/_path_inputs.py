"""What of the inputs of linear layers changes with the input of the network."""

import functools
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

from dynprune.system import is_conv1d

_RELUS = (torch.relu, nn.functional.relu, Tensor.relu)
_RELUS_IN_PLACE = (torch.relu_, Tensor.relu_)


@final
class InputChanges:
    r"""Let the slope of a weight be that by the changing part of its input alone.

    A unit that is cut from the input of the network may still have a value, such as
    :math:`\sigma(0) = 1/2` or a learned shift, but starts no path. With the inputs
    :math:`h, h'` of a linear layer on two inputs of the network, the layer returns
    :math:`W h'` and the slope :math:`\partial R / \partial W_{oi} = g_o (h'_i - h_i)`
    instead of :math:`g_o h'_i`.

    Args:
        net: A private copy of a model; forward methods of its Linear, Conv and Hugging
            Face Conv1D modules are replaced on the instances.
    """

    def __init__(self, net: nn.Module) -> None:
        self._held: dict[nn.Module, list[Any]] = defaultdict(list)
        self._is_first = self._replays = False
        for module in net.modules():
            own = module._parameters.get("weight") is not None
            known = isinstance(module, nn.Linear | _ConvNd) or is_conv1d(module)
            if own and known and "forward" not in module.__dict__:
                forward = functools.partial(self._forward, module)
                module.__dict__["forward"] = forward

    @contextmanager
    def between(self) -> Iterator[None]:
        """Hold inputs while :meth:`first` is open, and use them after it."""
        self._held.clear()
        self._replays = True
        try:
            yield
        finally:
            self._held.clear()
            self._replays = False

    @contextmanager
    def first(self) -> Iterator[None]:
        """Say that this is the pass to compare with."""
        self._is_first = True
        try:
            with torch.no_grad():
                yield
        finally:
            self._is_first = False

    def same(self, module: nn.Module, size: float) -> float:
        """Return what the first pass had of a number, here of this one.

        Args:
            module: Where.
            size: Of this pass.

        Returns:
            The number of the first pass, by which values of both can be compared.
        """
        known = self._before(module, size)
        return size if known is None else float(known)

    def _before(self, module: nn.Module, value: Any) -> Any:
        if not self._replays:
            return value
        held = self._held[module]
        if self._is_first:
            held.append(value)
            return value
        return held.pop(0) if held else None

    def _forward(self, module: nn.Module, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        run = functools.partial(type(module).forward, module)
        before = self._before(module, x.detach().clone() if self._replays else x)
        if not self._replays or self._is_first or before is None:
            return run(x, *args, **kwargs)
        changed = run(x.detach() - before, *args, **kwargs)
        own: dict[str, Any] = module._parameters
        weight = own["weight"]
        own["weight"] = weight.detach()
        try:
            plain = run(x, *args, **kwargs)
        finally:
            own["weight"] = weight
        return plain + changed - changed.detach()


@final
class PassedRelu(TorchFunctionMode):
    """Let ``torch.relu`` pass its input, as the module ``nn.ReLU`` does."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call one function of torch.

        Args:
            func: The function.
            types: Of its arguments.
            args: Its arguments.
            kwargs: Those by name.

        Returns:
            Its result, or the argument of a relu.
        """
        named = kwargs or {}
        if func in _RELUS:
            return (args[0] if args else named["input"]).clone()
        if func in _RELUS_IN_PLACE:
            return args[0] if args else named["input"]
        return func(*args, **named)
