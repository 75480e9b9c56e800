"""The generalised Gauss-Newton matrix of a gradient system."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from dynprune.core import Coordinates, Rows, isolated
from dynprune.operators._jacobian import Function, Jacobian, jacobian, through
from dynprune.operators._on_data import AbstractOnData
from dynprune.operators._outputs import flatten_outputs, refuse_without_outputs
from dynprune.operators._passes import JacobianRoute, Passes, refuse_not_finite
from dynprune.operators._plan import Plan
from dynprune.system import GradientSystem


@final
class GaussNewtonOperator(AbstractOnData):
    r"""Apply the Gauss-Newton matrix G of a gradient system without forming it.

    With outputs f and the loss ℓ of a batch as a function of them,

    .. math:: G = \frac{1}{W} \sum_b w_b J_b^\top \, \nabla_f^2 \ell_b \, J_b
                  + \ell_2 I, \qquad J_b = \partial f_b / \partial\theta.

    The l2 term is a part of G as it is of the Hessian, so that
    ``HessianOperator = GaussNewtonOperator + ResidualOperator`` exactly. G is positive
    semi-definite iff ℓ is convex in f. It depends on what counts as an output: here,
    on what the network returns and the loss function takes, e.g. logits. For the
    cross-entropy of logits, and for squares, it is the Fisher information matrix.

    Args:
        system: The system, made with ``loss_fn``; outputs may be any nest of tensors.
        state: Coordinates, shape ``(P,)``; the system's own by default.
        memory_budget: As for :class:`HessianOperator`.
        route: As for :class:`HessianOperator`, without the listed ones.

    Raises:
        InvalidInputError: If the system was made with ``batch_loss``, or the route is
            not known.
        NotDeterministicError: If two passes give different gradients.

    Cost:
        In operations, with a gradient as the unit and a forward pass as 1/3 of it:
        building the graphs 1/3; a product, J v and J'w of 2/3 each, 4/3 where graphs
        are kept and 5/3 where they are not; less where the first layer is most of the
        network, as its input has no gradient (1.06 for 784-300-100-10). Measured on a
        CPU: kept 1.1 (that network) and 1.0 to 1.5 (ResNet-20), rebuilt 2.1. The
        graphs hold the activations, about half of what the Hessian's hold.

    Source:
        Schraudolph, *Fast curvature matrix-vector products for second-order gradient
        descent*, 2002. There J v is a forward pass of tangents.

    Example:
        >>> x, y = torch.eye(2), torch.zeros(2, 1)
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> GaussNewtonOperator(system) @ torch.tensor([1.0, 2.0])  # (2/N) X'X v
        tensor([1., 2.])
    """

    def __init__(
        self,
        system: GradientSystem,
        state: Tensor | None = None,
        *,
        memory_budget: int | None = None,
        route: JacobianRoute = "auto",
    ) -> None:
        refuse_without_outputs(system, "GaussNewtonOperator")
        AbstractOnData.__init__(self, system, state)
        self._passes = Passes(
            self._system,
            self._graph,
            lambda part: _outputs(self._system, part)[0],
            name="outputs",
            memory_budget=memory_budget,
            route=route,
        )

    @property
    def coordinates(self) -> Coordinates:
        """Which entries of which parameters the rows are."""
        return self._system.coordinates

    @property
    def rows(self) -> Rows:
        """All coordinates; survivors where the system is masked."""
        return Rows.whole(self._system.size)

    @property
    def plan(self) -> Plan:
        """How products are made, and why."""
        return self._passes.plan

    def local_product(self, block: Tensor) -> Tensor:
        """Return this rank's part of G V: that of its examples, weighted by 1/W.

        Args:
            block: V, shape ``(P, k)``.

        Returns:
            Shape ``(P, k)``; the parts of all ranks add up to G V.
        """
        total = self._passes.sum(block)
        if self._system.own_l2:
            total = total + self._system.own_l2 * block
        refuse_not_finite(self._system, total, "the Gauss-Newton matrix")
        return total

    def _product(self, block: Tensor) -> Tensor:
        self._count += block.shape[1]
        return self._system.sum_over_ranks(
            lambda: self.local_product(block), like=block
        )

    def _graph(self, part: Any, substitute: bool) -> "_Curved":  # noqa: FBT001
        function, rebuild = _outputs(self._system, part)
        found = jacobian(function, self._system.state, substitute=substitute)
        point = found.values.detach().requires_grad_()
        slope = torch.zeros_like(point)
        loss_fn = self._system.loss_fn
        assert loss_fn is not None
        with torch.enable_grad(), isolated(0):
            value = loss_fn(rebuild(point), part[1]).reshape(())
            if value.requires_grad:
                (slope,) = torch.autograd.grad(value, point, create_graph=True)
        return _Curved(
            jacobian=found,
            point=point,
            slope=slope,
            share=self._system.weight(part) / self._system.examples,
        )


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Curved:
    """J' (w/W ∇²ℓ) J of one part; ∇²ℓ by double backward through ℓ alone."""

    jacobian: Jacobian
    point: Tensor
    slope: Tensor
    share: float

    def product(self, rows: Tensor) -> Tensor:
        bent = through(self.slope, self.point, self.jacobian.push(rows))
        return self.jacobian.pull(self.share * bent)


def _outputs(
    system: GradientSystem, part: Any
) -> tuple[Function, Callable[[Tensor], Any]]:
    ways: list[Callable[[Tensor], Any]] = []

    def function(theta: Tensor) -> Tensor:
        named = system.unflatten(theta)
        flat = flatten_outputs(system.forward(named, system.raw_buffers, part[0]))
        ways[:] = [flat.rebuild]
        return flat.vector

    return function, lambda vector: ways[0](vector)
