"""The Jacobian of a function of the parameters on one batch, held by its graphs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar, final

import torch
from torch import Tensor

from dynprune.core import isolated
from dynprune.operators._arithmetic import arithmetic
from dynprune.operators._cotangents import linear_in_cotangents

Function = Callable[[Tensor], Tensor]
T = TypeVar("T")


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Jacobian:
    r"""Multiply by J = ∂f/∂θ and its transpose through graphs that are kept.

    J'w is a backward pass through f. J'u is linear in u, so that

    .. math:: J v = \nabla_u \langle J^\top u, v \rangle

    is a backward pass through the graph of J'u.

    Args:
        theta: The leaf θ, shape ``(P,)``.
        values: f(θ), shape ``(m,)``, differentiable in ``theta``.
        cotangent: The leaf u = 0, shape ``(m,)``.
        pulled: J'u, shape ``(P,)``, differentiable in ``cotangent``.
        nbytes: What the graphs hold, θ included.
        substituted: Functions whose kernels were replaced.
    """

    theta: Tensor
    values: Tensor
    cotangent: Tensor
    pulled: Tensor
    nbytes: int
    substituted: frozenset[str]

    def push(self, rows: Tensor) -> Tensor:
        """Return J v for each row v.

        Args:
            rows: Shape ``(k, P)``; together (vmap) if k > 1.

        Returns:
            Shape ``(k, m)``.
        """
        return through(self.pulled, self.cotangent, rows)

    def pull(self, rows: Tensor) -> Tensor:
        """Return J'w for each row w.

        Args:
            rows: Shape ``(k, m)``; together (vmap) if k > 1.

        Returns:
            Shape ``(k, P)``.
        """
        return through(self.values, self.theta, rows)


def jacobian(
    function: Function,
    state: Tensor,
    *,
    substitute: bool,
    small: bool = False,
) -> Jacobian:
    """Build the graphs of a function's Jacobian.

    Args:
        function: θ ↦ a vector.
        state: θ, shape ``(P,)``.
        substitute: Replace kernels by those that cost less.
        small: Replace those of small layers, too.

    Returns:
        The Jacobian.

    Cost:
        A forward pass, where all layers are replaced; at most 1.3 gradients.
    """
    theta = state.detach().clone().requires_grad_()

    def build() -> tuple[Tensor, Tensor, Tensor, frozenset[str]]:
        with linear_in_cotangents(substitute=substitute, small=small) as stage:
            values = function(theta)
            u = torch.zeros_like(values).requires_grad_()
            pulled = torch.zeros_like(theta)
            stage.pulling = True
            if values.requires_grad:
                (pulled,) = torch.autograd.grad(values, theta, u, create_graph=True)
            stage.pulling = False
        return values, u, pulled, frozenset(stage.substituted)

    with isolated(0), torch.enable_grad(), arithmetic(theta.device, "native"):
        (values, u, pulled, substituted), nbytes = measured(build)
    return Jacobian(
        theta=theta,
        values=values,
        cotangent=u,
        pulled=pulled,
        nbytes=nbytes,
        substituted=substituted,
    )


def through(outputs: Tensor, inputs: Tensor, rows: Tensor) -> Tensor:
    """Push each row as a cotangent from outputs to inputs; the graph is kept.

    Args:
        outputs: A vector with its graph.
        inputs: A leaf.
        rows: Shape ``(k, len(outputs))``; together (vmap) if k > 1.

    Returns:
        Shape ``(k, len(inputs))``; zeros where the outputs do not depend on them.
    """
    found = None
    if outputs.requires_grad:
        together = len(rows) > 1
        (found,) = torch.autograd.grad(
            outputs,
            inputs,
            rows if together else rows[0],
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=together,
        )
    if found is None:
        return inputs.new_zeros((len(rows), len(inputs)))
    return found.reshape(len(rows), len(inputs))


def measured(build: Callable[[], T]) -> tuple[T, int]:
    """Build a graph and count what it holds.

    Args:
        build: Builds it; called again where torch cannot count, as in networks that
            call ``torch.func.grad``.

    Returns:
        What it returns, and the bytes; 0 where they are not known.
    """  # noqa: DOC501 - whatever the build raises
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        try:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
        except (NotImplementedError, RuntimeError):  # of a torch.func transform
            held[id(tensor)] = tensor.numel() * tensor.itemsize
        return tensor.detach()  # an output itself would hold its graph for ever

    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
            return build(), sum(held.values())
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):
            raise
    return build(), 0
