"""Before a fast way of making products is trusted, one product is compared."""

import warnings
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.core import NumericalWarning, functional_call, generator
from dynprune.operators._arithmetic import Precision
from dynprune.operators._graphs import (
    GradientGraph,
    Push,
    at_once,
    build,
    differentiate,
    one_by_one,
)
from dynprune.operators._plan import head
from dynprune.system import GradientSystem

_EXAMPLES = 4
_VERDICTS: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], bool]] = (
    WeakKeyDictionary()
)


def trust_kernels(
    system: GradientSystem, first: Callable[[], Any], *, precision: Precision
) -> bool:
    """Compare a product through replaced kernels with a plain one, once per module.

    Parameters that the loss does not depend on are looked for on the way.

    Args:
        system: The system, at a state of its own.
        first: Reads its first batch.
        precision: Arithmetic of the products.

    Returns:
        Whether they agree; a warning names the layer type where they do not.

    Cost:
        A graph of four examples (of a whole batch where it cannot be cut), once for
        each module; another one and two products if kernels are replaced.
    """

    def compare() -> bool:
        part = head(first(), _EXAMPLES)
        lean = build(system, part, precision=precision, find_unused=True)
        if lean.unused:
            _warn(
                f"The loss does not depend on {', '.join(lean.unused)}: those rows "
                "and columns of the Hessian are zero. Leave such parameters out with "
                "parameters=, or check the model."
            )
        if not lean.substituted:
            return True
        plain = build(system, part, precision=precision, substitute=False)
        return _verdict(
            system,
            f"replaced kernels ({', '.join(sorted(lean.substituted))})",
            plain,
            lambda: one_by_one(lean),
            substitute=True,
            way=one_by_one,
        )

    return _once(system, ("kernels", precision), compare)


def trust_batched(
    system: GradientSystem,
    first: Callable[[], Any],
    *,
    precision: Precision,
    substitute: bool,
) -> bool:
    """Compare products of vectors pushed together with plain ones, once per module.

    Args:
        system: The system, at a state of its own.
        first: Reads its first batch.
        precision: Arithmetic of the products.
        substitute: Whether kernels are replaced.

    Returns:
        Whether they agree; a warning names the layer type where they do not.

    Cost:
        Four products and a graph on four examples, once for each module.
    """

    def compare() -> bool:
        part = head(first(), _EXAMPLES)
        graph = build(system, part, precision=precision, substitute=substitute)

        def together(graph: GradientGraph) -> Push:
            return at_once(graph, columns=2)

        return _verdict(
            system,
            "products of several vectors at once",
            graph,
            lambda: together(graph),
            substitute=substitute,
            way=together,
        )

    return _once(system, ("batched", precision, substitute), compare)


def trust_trace(system: GradientSystem, graph: GradientGraph, push: Push) -> bool:
    """Compare a product through a list of operations with a plain one.

    Args:
        system: The system, at a state of its own.
        graph: What was traced.
        push: The traced product.

    Returns:
        Whether they agree.

    Cost:
        Two products.
    """
    return _verdict(
        system,
        "products through a list of operations",
        graph,
        lambda: push,
        substitute=bool(graph.substituted),
        way=None,
    )


def _once(
    system: GradientSystem, key: tuple[object, ...], compare: Callable[[], bool]
) -> bool:
    known = _VERDICTS.setdefault(system.module, {})
    full = (*key, system.dtype, system.device)
    if full not in known:
        known[full] = compare()
    return known[full]


def _verdict(
    system: GradientSystem,
    what: str,
    plain: GradientGraph,
    make: Callable[[], Push],
    *,
    substitute: bool,
    way: Callable[[GradientGraph], Push] | None,
) -> bool:
    reference, found, reason = _try(plain, make)
    error = _distance(reference, found)
    if error <= _tolerance(reference):
        return True
    layer = _culprit(system, substitute=substitute, way=way)
    said = reason or f"they differ from a plain product by {error:.1e} (relative)"
    _warn(
        f"For this model {what} are not used: {said}, probably in {layer}. Plain "
        "reverse-over-reverse products are made instead; they are slower and exact."
    )
    return False


def _try(
    plain: GradientGraph, make: Callable[[], Push]
) -> tuple[Tensor, Tensor | None, str]:
    size = plain.theta.shape[0]
    block = torch.randn(size, 2, generator=generator(0), dtype=torch.float64)
    block = block.to(plain.theta)
    reference = one_by_one(plain)(block)
    try:
        return reference, make()(block), ""
    except RuntimeError as error:  # what torch raises where a rule is missing
        return reference, None, f"torch cannot make them ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160]


def _distance(reference: Tensor, found: Tensor | None) -> float:
    if found is None:
        return float("inf")
    scale = float(reference.double().norm()) + torch.finfo(torch.float64).tiny
    error = float((found.double() - reference.double()).norm()) / scale
    return error if error == error else float("inf")


def _tolerance(reference: Tensor) -> float:
    return float(torch.finfo(reference.dtype).eps ** 0.5)


def _culprit(
    system: GradientSystem,
    *,
    substitute: bool,
    way: Callable[[GradientGraph], Push] | None,
) -> str:
    # each type of layer alone, on the input that it gets in the network
    if way is None:
        return "the list of operations"
    for name, (layer, inputs) in _first_of_each_type(system).items():
        try:
            plain = _layer_graph(layer, inputs, substitute=False)
            other = _layer_graph(layer, inputs, substitute=substitute)
        except RuntimeError:
            continue
        reference, found, _ = _try(plain, lambda graph=other: way(graph))  # type: ignore[misc]
        if _distance(reference, found) > _tolerance(reference):
            return name
    return "what connects the layers"


def _first_of_each_type(
    system: GradientSystem,
) -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    found: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {}

    def note(layer: nn.Module, inputs: tuple[Any, ...], _: Any) -> None:
        found.setdefault(type(layer).__name__, (layer, inputs))

    leaves = [part for part in system.module.modules() if not list(part.children())]
    handles = [part.register_forward_hook(note) for part in leaves]
    try:
        with torch.no_grad():
            system.batch_mean(
                system.unflatten(system.state),
                system.raw_buffers,
                head(next(system.batches()), _EXAMPLES),
            )
    finally:
        for handle in handles:
            handle.remove()
    return found


def _layer_graph(
    layer: nn.Module, inputs: tuple[Any, ...], *, substitute: bool
) -> GradientGraph:
    # the coordinates are the layer's parameters and its inputs
    own = {name: part.detach() for name, part in layer.named_parameters()}
    leaves, spec = pytree.tree_flatten(inputs)
    free = [isinstance(leaf, Tensor) and leaf.is_floating_point() for leaf in leaves]
    moving = [leaf for leaf, yes in zip(leaves, free, strict=True) if yes]
    tensors = [*own.values(), *moving]
    sizes = [part.numel() for part in tensors]
    theta = torch.cat([part.detach().reshape(-1) for part in tensors])

    def value(theta: Tensor) -> Tensor:
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
        parts = [part for part in pytree.tree_leaves(out) if isinstance(part, Tensor)]
        return torch.stack([part.cos().sum() for part in parts]).sum()

    return differentiate(value, theta, substitute=substitute)


def _warn(text: str) -> None:
    warnings.warn(text, NumericalWarning, stacklevel=2)
