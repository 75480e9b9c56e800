"""The layers of a network one by one, each a function of its parameters and input."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.core import functional_call
from dynprune.system import GradientSystem


def layers_alone(
    system: GradientSystem, batch: Any
) -> Iterator[tuple[str, Tensor, Callable[[Tensor], Tensor]]]:
    """Go through the types of layers, the first of each, on its input in the network.

    Args:
        system: The system, at a state of its own.
        batch: A small batch.

    Yields:
        Name of the type; θ, the layer's parameters and input in one vector; and θ ↦ its
        output as a vector.
    """
    found: dict[str, tuple[nn.Module, Any]] = {}

    def note(layer: nn.Module, inputs: Any, _: Any) -> None:
        found.setdefault(type(layer).__name__, (layer, inputs))

    leaves = [part for part in system.module.modules() if not list(part.children())]
    handles = [part.register_forward_hook(note) for part in leaves]
    try:
        with torch.no_grad():
            named = system.unflatten(system.state)
            system.batch_mean(named, system.raw_buffers, batch)
    finally:
        for handle in handles:
            handle.remove()
    for name, (layer, inputs) in found.items():
        try:
            state, function = _alone(layer, inputs)
        except RuntimeError:
            continue  # its input lived inside a torch.func transform
        yield name, state, function


def _alone(layer: nn.Module, inputs: Any) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    own = {name: part.detach() for name, part in layer.named_parameters()}
    leaves, spec = pytree.tree_flatten(inputs)
    free = [isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves]
    moving = [leaf for leaf, yes in zip(leaves, free, strict=True) if yes]
    tensors = [*own.values(), *moving]
    sizes = [part.numel() for part in tensors]
    parts = [part.detach().reshape(-1) for part in tensors]

    def function(theta: Tensor) -> Tensor:
        pieces = [
            piece.view(part.shape)
            for piece, part in zip(theta.split(sizes), tensors, strict=True)
        ]
        named = dict(zip(own, pieces, strict=False))
        given = iter(pieces[len(own) :])
        filled = [
            next(given) if yes else leaf for leaf, yes in zip(leaves, free, strict=True)
        ]
        out = functional_call(layer, named, tuple(pytree.tree_unflatten(filled, spec)))
        found = [leaf for leaf in pytree.tree_leaves(out) if isinstance(leaf, Tensor)]
        return torch.cat([leaf.reshape(-1) for leaf in found])

    return torch.cat(parts) if parts else torch.zeros(0), function
