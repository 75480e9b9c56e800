"""Call a module with other tensors in place of its own."""

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_PLACES: WeakKeyDictionary[nn.Module, dict[str, tuple[str, ...]]] = WeakKeyDictionary()


def functional_call(
    module: nn.Module, values: Mapping[str, Tensor], arguments: tuple[Any, ...]
) -> Any:
    """Call a module with other parameters and buffers, which it forgets afterwards.

    ``torch.func.functional_call`` puts a tied tensor back wrongly where a module that
    holds it is used under two names: the module keeps the tensors of that call, and
    later calls mix them with new ones, silently. Here each place is filled once.

    Args:
        module: Not changed; which of its tensors are tied is looked up once.
        values: Name to tensor, as ``named_parameters`` and ``named_buffers`` say, tied
            ones by their first name; what is left out stays the module's own.
        arguments: Of its ``forward``.

    Returns:
        What it returns.

    Example:
        >>> net = nn.Linear(1, 1, bias=False)
        >>> functional_call(net, {"weight": torch.ones(1, 1)}, (torch.ones(1),))
        tensor([1.])
    """
    places = _PLACES.get(module)
    if places is None:
        places = _PLACES.setdefault(module, _places(module))
    filled = {
        place: value
        for name, value in values.items()
        for place in places.get(name, (name,))
    }
    return torch.func.functional_call(module, filled, arguments, tie_weights=False)


def _places(module: nn.Module) -> dict[str, tuple[str, ...]]:
    # first name of each tensor -> a name of every module attribute that holds it
    found: dict[int, list[str]] = {}
    for prefix, part in module.named_modules():
        start = f"{prefix}." if prefix else ""
        for own in (part._parameters, part._buffers):
            for name, tensor in own.items():
                if tensor is not None:
                    found.setdefault(id(tensor), []).append(start + name)
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tuple(found[id(tensor)]) for name, tensor in named.items()}
