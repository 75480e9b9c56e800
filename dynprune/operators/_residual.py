"""What the Hessian has beyond Gauss-Newton: the curvature of the outputs."""

import glob
from typing import Any, final

import torch
from torch import Tensor, nn

from dynprune.core import Coordinates, Rows
from dynprune.operators._hessian import HessianOperator
from dynprune.operators._operator import AbstractOperator
from dynprune.operators._outputs import flatten_outputs, refuse_without_outputs
from dynprune.operators._plan import Plan, Route
from dynprune.system import BatchLoss, GradientSystem, LossFn


@final
class ResidualOperator(AbstractOperator):
    r"""Apply H − G, the residual part of the Hessian, without forming H or G.

    .. math:: R = \frac{1}{W} \sum_b w_b \sum_c
                  \frac{\partial \ell_b}{\partial f_c} \nabla_\theta^2 f_c

    It is the Hessian of ⟨∂ℓ/∂f, f(θ)⟩ with ∂ℓ/∂f held constant, and is made as such,
    not as a difference. R = 0 iff the outputs are affine in θ wherever ∂ℓ/∂f is not
    zero; a deep linear network is not affine. The l2 term belongs to G.

    Args:
        system: The system, made with ``loss_fn``.
        state: Coordinates, shape ``(P,)``; the system's own by default.
        memory_budget: As for :class:`HessianOperator`.
        route: As for :class:`HessianOperator`.

    Raises:
        InvalidInputError: If the system was made with ``batch_loss``.
        NotDeterministicError: If two passes give different gradients.

    Cost:
        As for the Hessian.

    Example:
        >>> x, y = torch.ones(1, 1), torch.zeros(1, 1)
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False)
        ... )
        >>> system = GradientSystem(net, lambda f, y: 0.5 * f.square().mean(), (x, y))
        >>> R = ResidualOperator(system, torch.tensor([2.0, 3.0]))
        >>> R.dense()  # f = ab, l = f²/2: H − JJ' = f ∇²f
        tensor([[0., 6.],
                [6., 0.]])
    """

    def __init__(
        self,
        system: GradientSystem,
        state: Tensor | None = None,
        *,
        memory_budget: int | None = None,
        route: Route = "auto",
    ) -> None:
        refuse_without_outputs(system, "ResidualOperator")
        self._system = system.with_state(system.state if state is None else state)
        self._hessian = HessianOperator(
            _surrogate(self._system), memory_budget=memory_budget, route=route
        )

    @property
    def system(self) -> GradientSystem:
        """The system, at the operator's own state."""
        return self._system

    @property
    def coordinates(self) -> Coordinates:
        """Which entries of which parameters the rows are."""
        return self._system.coordinates

    @property
    def rows(self) -> Rows:
        """All coordinates; survivors where the system is masked."""
        return self._hessian.rows

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of products."""
        return self._hessian.dtype

    @property
    def device(self) -> torch.device:
        """The device of products."""
        return self._hessian.device

    @property
    def matvecs(self) -> float:
        """Number of products so far."""
        return self._hessian.matvecs

    @property
    def plan(self) -> Plan:
        """How products are made, and why."""
        return self._hessian.plan

    def local_product(self, block: Tensor) -> Tensor:
        """Return this rank's part of R V: that of its examples, weighted by 1/W.

        Args:
            block: V, shape ``(P, k)``.

        Returns:
            Shape ``(P, k)``; the parts of all ranks add up to R V.
        """
        return self._hessian.local_product(block)

    def _product(self, block: Tensor) -> Tensor:
        return self._hessian._product(block)


def _surrogate(system: GradientSystem) -> GradientSystem:
    assert system.loss_fn is not None
    twin = GradientSystem(
        system.module,
        None,
        system.data,
        mask=system.masks or None,
        parameters=[glob.escape(name) for name in system.names],
        batch_loss=_linearised_loss(system.loss_fn),
        batch_weight=system.batch_weight,
        microbatch=system.microbatch,
        process_group=system.ranks.group,
    )
    return twin.with_state(system.state, buffers=system.raw_buffers)


def _linearised_loss(loss_fn: LossFn) -> BatchLoss:
    def surrogate(net: nn.Module, batch: Any) -> Tensor:
        # a mean over examples as loss_fn is: its slopes carry the 1/n
        outputs = flatten_outputs(net(batch[0]))
        with torch.enable_grad():
            point = outputs.vector.detach().requires_grad_()
            value = loss_fn(outputs.rebuild(point), batch[1])
            slope = torch.zeros_like(point)
            if value.requires_grad:
                (slope,) = torch.autograd.grad(value.reshape(()), point)
        return (slope * outputs.vector).sum()

    return surrogate
