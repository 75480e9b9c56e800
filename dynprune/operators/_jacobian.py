"""The Jacobian of a function of the parameters on one batch, held by its graphs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynprune.core import isolated
from dynprune.operators._arithmetic import arithmetic
from dynprune.operators._cotangents import linear_in_cotangents

Function = Callable[[Tensor], Tensor]


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
    """

    theta: Tensor
    values: Tensor
    cotangent: Tensor
    pulled: Tensor

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
    with (
        isolated(0),
        torch.enable_grad(),
        arithmetic(theta.device, "native"),
        linear_in_cotangents(substitute=substitute, small=small) as stage,
    ):
        values = function(theta)
        u = torch.zeros_like(values).requires_grad_()
        pulled = torch.zeros_like(theta)
        stage.pulling = True
        if values.requires_grad:
            (pulled,) = torch.autograd.grad(values, theta, u, create_graph=True)
        stage.pulling = False
    return Jacobian(theta=theta, values=values, cotangent=u, pulled=pulled)


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
    if outputs.requires_grad and len(rows):
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
