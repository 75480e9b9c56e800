"""The graph of one batch's gradient, and the ways to push vectors through it."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from dynprune.core import InvalidInputError, isolated
from dynprune.operators._arithmetic import Precision, arithmetic
from dynprune.operators._kernels import twice_differentiable
from dynprune.system import GradientSystem

Push = Callable[[Tensor], Tensor]


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class GradientGraph:
    """Hold ∇L_b(θ) of one batch with the graph that made it.

    Args:
        theta: The leaf θ, shape ``(P,)``.
        gradient: ∇L_b, shape ``(P,)``, differentiable in ``theta``.
        nbytes: What the graph holds, θ included, if it was asked.
        substituted: Functions whose kernels were replaced.
        unused: Parameters that the loss does not depend on, if it was asked.
    """

    theta: Tensor
    gradient: Tensor
    nbytes: int | None
    substituted: frozenset[str]
    unused: tuple[str, ...] = ()


def build(
    system: GradientSystem,
    batch: Any,
    *,
    precision: Precision = "native",
    substitute: bool = True,
    find_unused: bool = False,
    weigh: bool = False,
) -> GradientGraph:
    """Build the graph of a batch's gradient at the system's state.

    Args:
        system: The system, at a state of its own.
        batch: One of its batches, or a part of one.
        precision: Arithmetic of the products.
        substitute: Replace kernels by those with cheaper second derivatives.
        find_unused: Ask which parameters the loss does not depend on.
        weigh: Ask how many bytes the graph holds.

    Returns:
        The graph.

    Raises:
        InvalidInputError: If the gradient is not finite.

    Cost:
        About 1.3 gradients of the batch.
    """

    def value(theta: Tensor) -> Tensor:
        named = system.unflatten(theta)
        loss = system.batch_mean(named, system.raw_buffers, batch)
        if find_unused and loss.requires_grad:
            unused.extend(_unused(loss, named))
        return loss

    unused: list[str] = []
    with isolated(0), arithmetic(system.device, precision):
        graph = differentiate(value, system.state, substitute=substitute, weigh=weigh)
    gradient = graph.gradient.detach()
    # one reduction; large finite numbers may overflow in it
    summed = bool(torch.isfinite(gradient.sum()))
    if not summed and not bool(torch.isfinite(gradient).all()):
        raise InvalidInputError(
            f"The gradient is not finite at this state (first in "
            f"{first_bad(system, gradient)}). Check the state; a "
            "diverged run has no Hessian."
        )
    return replace(graph, unused=tuple(unused))


def differentiate(
    value: Callable[[Tensor], Tensor],
    state: Tensor,
    *,
    substitute: bool,
    weigh: bool = False,
) -> GradientGraph:
    """Build the graph of the gradient of a function.

    Args:
        value: θ ↦ a 0-d tensor.
        state: θ, shape ``(P,)``.
        substitute: Replace kernels by those with cheaper second derivatives.
        weigh: Ask how many bytes the graph holds.

    Returns:
        The graph.
    """
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an output that its own node holds is a cycle

    theta = state.detach().clone().requires_grad_()
    hooks = saved_tensors_hooks(pack, lambda kept: kept) if weigh else nullcontext()
    with (
        torch.enable_grad(),
        twice_differentiable(substitute=substitute) as substituted,
        hooks,
    ):
        loss = value(theta)
        if loss.requires_grad:
            (gradient,) = torch.autograd.grad(loss, theta, create_graph=True)
        else:
            gradient = torch.zeros_like(theta)
    return GradientGraph(
        theta=theta,
        gradient=gradient,
        nbytes=sum(held.values()) if weigh else None,
        substituted=frozenset(substituted),
    )


def _unused(value: Tensor, named: dict[str, Tensor]) -> tuple[str, ...]:
    parts = torch.autograd.grad(
        value, list(named.values()), retain_graph=True, allow_unused=True
    )
    return tuple(name for name, part in zip(named, parts, strict=True) if part is None)


def first_bad(system: GradientSystem, vector: Tensor) -> str:
    """Return the name of the first parameter with an entry that is not finite.

    Args:
        system: Knows the names.
        vector: Coordinates, shape ``(P,)``.

    Returns:
        The name, quoted.
    """
    for name, part in system.unflatten(vector).items():
        if not bool(torch.isfinite(part).all()):
            return repr(name)
    return "none"


def one_by_one(graph: GradientGraph) -> Push:
    """Push the columns of a block through the graph one after the other.

    Args:
        graph: The graph.

    Returns:
        V ↦ ∇²L_b V, shapes ``(P, k)``.
    """

    def push(block: Tensor) -> Tensor:
        if not graph.gradient.requires_grad:
            return torch.zeros_like(block)
        columns = [_reverse(graph, vector) for vector in block.T.contiguous()]
        return _side_by_side(columns)

    return push


def _side_by_side(columns: list[Tensor]) -> Tensor:
    # one after the other in memory, where they are written fastest (8 % of a product
    # on an MLP); one column is not copied
    return columns[0][:, None] if len(columns) == 1 else torch.stack(columns).T


def at_once(graph: GradientGraph, *, columns: int) -> Push:
    """Push the columns of a block through the graph together (vmap).

    Args:
        graph: The graph.
        columns: How many at a time at most.

    Returns:
        V ↦ ∇²L_b V, shapes ``(P, k)``.
    """

    def push(block: Tensor) -> Tensor:
        if not graph.gradient.requires_grad:
            return torch.zeros_like(block)
        parts = []
        for rows in block.T.contiguous().split(columns):
            (part,) = torch.autograd.grad(
                graph.gradient,
                graph.theta,
                rows,
                retain_graph=True,
                allow_unused=True,
                is_grads_batched=True,
            )
            parts.append(torch.zeros_like(rows) if part is None else part)
        return torch.cat(parts).T

    return push


def traced(graph: GradientGraph, *, compiled: bool) -> Push:
    """Write the product down once as a list of tensor operations.

    The product is linear in v: whatever does not depend on v (the primal pass, the
    first backward pass, masks of rectifiers) is computed once here and held as
    constants. The autograd graph is not needed afterwards.

    Args:
        graph: The graph.
        compiled: Compile the operations (``torch.compile``: needs a compiler, and
            a minute for a deep network).

    Returns:
        V ↦ ∇²L_b V, shapes ``(P, k)``, column by column.

    Cost:
        One product, and seconds of tracing for a deep network.
    """
    from torch.fx.experimental.proxy_tensor import make_fx

    if not graph.gradient.requires_grad:
        return torch.zeros_like
    module = make_fx(lambda vector: _reverse(graph, vector))(
        torch.zeros_like(graph.gradient).detach()
    )
    module.graph.eliminate_dead_code()
    module.recompile()
    for name, constant in list(module.named_buffers()):
        module.register_buffer(name, constant.detach())  # without its graph
    run: Push = torch.compile(module, dynamic=False) if compiled else module

    def push(block: Tensor) -> Tensor:
        with torch.no_grad():
            columns = [run(vector) for vector in block.T.contiguous()]
        return _side_by_side(columns)

    return push


def _reverse(graph: GradientGraph, vector: Tensor) -> Tensor:
    (product,) = torch.autograd.grad(
        graph.gradient, graph.theta, vector, retain_graph=True, allow_unused=True
    )
    return torch.zeros_like(vector) if product is None else product
