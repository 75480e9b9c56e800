"""The empirical Fisher matrix of a gradient system."""

from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from dynprune.core import Coordinates, Rows
from dynprune.operators._example_losses import ExampleLosses
from dynprune.operators._jacobian import Function, Jacobian, jacobian
from dynprune.operators._on_data import AbstractOnData
from dynprune.operators._passes import JacobianRoute, Passes, refuse_not_finite
from dynprune.operators._plan import Plan
from dynprune.system import GradientSystem


@final
class EmpiricalFisherOperator(AbstractOnData):
    r"""Apply the second moment of the gradients of single examples.

    .. math:: F = \frac{1}{W} \sum_i w_i g_i g_i^\top, \qquad
              g_i = \nabla_\theta \ell_i(\theta)

    with :math:`\ell_i` the loss of example i (never of a batch), at the labels of the
    data, not centred; :math:`\operatorname{tr} F` is the mean of :math:`|g_i|^2`. The
    l2 term of the system is no loss of an example and is left out. F is neither the
    Fisher information (labels drawn from the model; see
    :class:`GaussNewtonOperator`) nor close to the Hessian away from a good fit.

    The products are :math:`J^\top (w \odot J v) / W` with J the Jacobian of the vector
    of losses. These come from one forward pass of the batch and a vmap of the loss
    over its outputs; with ``batch_loss`` from a vmap of the network; where torch
    cannot, from a forward pass per example, with a warning that names the layer type.

    ``batch_weight`` must add over examples, and so must weight times loss: the number
    of examples, of their tokens (an example is then a sequence), or class weights
    with the weighted mean. Anything else is refused.

    Args:
        system: The system.
        state: Coordinates, shape ``(P,)``; the system's own by default.
        memory_budget: As for :class:`HessianOperator`.
        route: As for :class:`HessianOperator`, without the listed ones.

    Raises:
        InvalidInputError: For batches that cannot be cut into examples and weights
            that do not add up.
        NotDeterministicError: If two passes give different gradients.

    Cost:
        As for :class:`GaussNewtonOperator`; the first product also checks the weights
        of each batch by a forward pass.

    Source:
        Kunstner, Hennig and Balles, *Limitations of the empirical Fisher
        approximation for natural gradient descent*, 2019, arXiv:1905.12558.

    Example:
        >>> import torch
        >>> x, y = torch.eye(2), torch.tensor([[1.0], [0.0]])
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> F = EmpiricalFisherOperator(system, torch.zeros(2))
        >>> F @ torch.ones(2)  # g = (−2, 0) and (0, 0)
        tensor([2., 0.])
    """

    def __init__(
        self,
        system: GradientSystem,
        state: Tensor | None = None,
        *,
        memory_budget: int | None = None,
        route: JacobianRoute = "auto",
    ) -> None:
        AbstractOnData.__init__(self, system, state)
        self._losses = ExampleLosses(self._system)
        self._checked = False
        self._passes = Passes(
            self._system,
            self._graph,
            self._function,
            name="losses",
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
        """Return this rank's part of F V: that of its examples, weighted by 1/W.

        Args:
            block: V, shape ``(P, k)``.

        Returns:
            Shape ``(P, k)``; the parts of all ranks add up to F V.
        """
        total = self._passes.sum(block)
        self._checked = True
        refuse_not_finite(self._system, total, "the empirical Fisher matrix")
        return total

    def _product(self, block: Tensor) -> Tensor:
        self._count += block.shape[1]
        return self._system.sum_over_ranks(
            lambda: self.local_product(block), like=block
        )

    def _function(self, part: Any) -> Function:
        return lambda theta: self._losses(self._system.unflatten(theta), part)

    def _graph(self, part: Any, substitute: bool) -> "_Scored":  # noqa: FBT001
        found = jacobian(
            self._function(part), self._system.state, substitute=substitute
        )
        if not self._checked:
            self._losses.check(part, found.values)
        weights = self._losses.weights(part).to(found.values)
        return _Scored(
            jacobian=found,
            shares=(weights / self._system.examples).detach(),
        )


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Scored:
    """J' (w/W) J of one part, J the Jacobian of its losses."""

    jacobian: Jacobian
    shares: Tensor

    def product(self, rows: Tensor) -> Tensor:
        return self.jacobian.pull(self.shares * self.jacobian.push(rows))
