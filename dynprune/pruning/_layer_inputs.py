"""Second moments of what enters the layers of a network, collected by hooks."""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.core import InvalidInputError, isolated
from dynprune.pruning._layer_matrices import Layer, Source, evaluate_batch
from dynprune.system import GradientSystem

Seen = Callable[[Layer, Source, tuple[Any, ...], dict[str, Any]], None]


def in_call_order(
    net: nn.Module, system: GradientSystem, layers: Iterable[Layer]
) -> list[Layer]:
    """Sort layers by when the first batch enters them; those it never enters last.

    Args:
        net: A private copy.
        system: Whose first batch is read.
        layers: Of the copy.

    Returns:
        The same layers.
    """
    left = {layer.name: layer for layer in layers}
    found: list[Layer] = []

    def note(layer: Layer, *_: Any) -> None:
        if left.pop(layer.name, None) is not None:
            found.append(layer)

    with _hooked(list(left.values()), note), torch.no_grad(), isolated(0):
        evaluate_batch(net, system, next(iter(system.batches())))
    return [*found, *left.values()]


def moments(
    net: nn.Module, system: GradientSystem, layers: Iterable[Layer], *, seed: int
) -> dict[str, Tensor]:
    r"""Return :math:`H = \tfrac{2}{n} X^\top X` of what enters each layer.

    The n rows of X are the vectors (for convolutions, the patches) that the weight is
    multiplied with, over all data.

    Args:
        net: A private copy.
        system: Whose data are read, once.
        layers: Of the copy.
        seed: Of a random loader.

    Returns:
        Name to float64, shape ``(groups, in, in)``.

    Raises:
        InvalidInputError: If a layer is never called, or its inputs are not finite.
    """
    wanted = list(layers)
    sums: dict[str, list[Tensor]] = {}
    counts: dict[str, int] = {}

    def add(
        layer: Layer, source: Source, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        for rows in source.slices(args, kwargs):
            squares = [part.T @ part for part in rows]
            if layer.name not in sums:
                sums[layer.name] = squares
            else:
                for total, part in zip(sums[layer.name], squares, strict=True):
                    total += part
            counts[layer.name] = counts.get(layer.name, 0) + len(rows[0])

    with _hooked(wanted, add), torch.no_grad(), isolated(seed):
        for batch in system.batches(seed=seed):
            evaluate_batch(net, system, batch)
    for layer in wanted:
        if not counts.get(layer.name):
            raise InvalidInputError(
                f"No input of {layer.name!r} was seen: its module is never called. "
                "Leave it out with GradientSystem(..., prunable=...), or use "
                "pruning.obs."
            )
        if not all(bool(torch.isfinite(part).all()) for part in sums[layer.name]):
            raise InvalidInputError(
                f"The inputs of {layer.name!r} are not finite, or overflow when "
                "squared. Look for NaN and overflow in the data and the state."
            )
    return {
        name: torch.stack(parts).mul_(2.0 / counts[name])
        for name, parts in sums.items()
    }


@contextmanager
def _hooked(layers: Iterable[Layer], seen: Seen) -> Iterator[None]:
    # an attention layer is called again to see its heads: not to be seen, too
    busy: list[bool] = []

    def hook(layer: Layer, source: Source) -> Callable[..., None]:
        def call(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if busy:
                return
            busy.append(True)
            try:
                seen(layer, source, args, kwargs)
            finally:
                busy.pop()

        return call

    handles = [
        source.module.register_forward_pre_hook(hook(layer, source), with_kwargs=True)
        for layer in layers
        for source in layer.sources
    ]
    try:
        with _as_written():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _as_written() -> AbstractContextManager[Any]:
    # what was compiled runs no hook that came later; before torch's compiler is
    # imported, which takes seconds, nothing was
    if "torch._dynamo" not in sys.modules:
        return nullcontext()
    plain: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return plain
