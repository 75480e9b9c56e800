"""The neural tangent kernel of a network on its data."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, NotDeterministicError, Rows, isolated
from dynprune.operators._jacobian import Function, Jacobian, jacobian
from dynprune.operators._on_data import AbstractOnData
from dynprune.operators._outputs import flatten_outputs, refuse_without_outputs
from dynprune.operators._passes import JacobianRoute, Passes
from dynprune.operators._plan import Plan
from dynprune.system import GradientSystem, is_resident


@final
class NTKOperator(AbstractOnData):
    r"""Apply the (empirical) neural tangent kernel of a network on its data.

    .. math:: K = J J^\top \in \mathbb{R}^{NC \times NC}, \qquad
              J = \partial f / \partial\theta

    with f the outputs of all N examples as one vector: example by example in the order
    of the data, each example's C outputs in order (outputs that are a nest of tensors:
    batch by batch, within a batch leaf by leaf, each row-major). No weights and no l2
    enter. K shares its non-zero eigenvalues with J'J: for the mean of ½|f − y|², where
    G = J'J / N, those of K are N times those of G.

    Args:
        system: The system, made with ``loss_fn``; its loss is not used. Batches must
            come in the same order on every pass.
        state: Coordinates, shape ``(P,)``; the system's own by default.
        memory_budget: As for :class:`HessianOperator`.
        route: As for :class:`HessianOperator`, without the listed ones.

    Raises:
        InvalidInputError: If the system was made with ``batch_loss`` or has a process
            group, or no output depends on the parameters.
        NotDeterministicError: If two passes give other outputs, or others in order.

    Cost:
        A forward pass to count the outputs (two over a loader, to compare). A product:
        J'u and J z, 2/3 of a gradient each; where graphs are not kept, two passes over
        the data with 1/3 more each. Beside graphs, one vector of P numbers a column.

    Source:
        Jacot, Gabriel and Hongler, *Neural tangent kernel*, 2018, arXiv:1806.07572.

    Example:
        >>> x, y = torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.zeros(2, 1)
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> NTKOperator(system).dense()  # XX'
        tensor([[1., 1.],
                [1., 2.]])
    """

    def __init__(
        self,
        system: GradientSystem,
        state: Tensor | None = None,
        *,
        memory_budget: int | None = None,
        route: JacobianRoute = "auto",
    ) -> None:
        refuse_without_outputs(system, "NTKOperator")
        system.check_one_process("NTKOperator")
        AbstractOnData.__init__(self, system, state)
        self._length = _count_outputs(self._system)
        self._passes = Passes(
            self._system,
            self._graph,
            self._function,
            name="outputs",
            memory_budget=memory_budget,
            route=route,
        )

    @property
    def coordinates(self) -> None:
        """None: the rows are outputs, no parameters."""

    @property
    def rows(self) -> Rows:
        """All outputs of all examples."""
        return Rows.whole(self._length)

    @property
    def plan(self) -> Plan:
        """How products are made, and why."""
        return self._passes.plan

    def pull(self, block: Tensor) -> Tensor:
        """Return J'U.

        Args:
            block: U, shape ``(N C, k)``.

        Returns:
            Shape ``(P, k)``: of k = 1 and U = ∂L/∂f, the gradient.

        Raises:
            InvalidInputError: If the shape differs.

        Cost:
            One pass over the data.
        """  # noqa: DOC502 - raised by _check_rows
        _check_rows(block, self._length)
        rows = block.T.contiguous()
        total = rows.new_zeros((len(rows), self._system.size))
        start = 0

        def add(graph: _Outputs) -> None:
            nonlocal start
            mine = rows[:, start : start + graph.length]
            start += graph.length
            wide = self._passes.columns(graph, len(rows))
            for into, part in zip(total.split(wide), mine.split(wide), strict=True):
                into += graph.jacobian.pull(part.to(graph.jacobian.values.dtype))

        self._passes.each(add)
        return total.T

    def push(self, block: Tensor) -> Tensor:
        """Return J V, the first-order change of all outputs along V.

        Args:
            block: V, shape ``(P, k)``.

        Returns:
            Shape ``(N C, k)``.

        Raises:
            InvalidInputError: If the shape differs.

        Cost:
            One pass over the data.
        """  # noqa: DOC502 - raised by _check_rows
        _check_rows(block, self._system.size)
        rows = block.T.contiguous()
        pieces: list[Tensor] = []

        def add(graph: _Outputs) -> None:
            wide = self._passes.columns(graph, len(rows))
            found = [graph.jacobian.push(part) for part in rows.split(wide)]
            pieces.append(torch.cat(found).to(rows.dtype))

        self._passes.each(add)
        return torch.cat(pieces, dim=1).T

    def _product(self, block: Tensor) -> Tensor:
        self._count += block.shape[1]
        total = self.push(self.pull(block))
        if not bool(torch.isfinite(total).all()):
            raise InvalidInputError(
                "A product with the tangent kernel is not finite. Check the vector, "
                "and the state for overflow."
            )
        return total

    def _function(self, part: Any) -> Function:
        return lambda theta: _flat(self._system, self._system.unflatten(theta), part)

    def _graph(self, part: Any, substitute: bool) -> "_Outputs":  # noqa: FBT001
        found = jacobian(
            self._function(part), self._system.state, substitute=substitute
        )
        return _Outputs(jacobian=found, length=len(found.values))


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Outputs:
    """J of one part."""

    jacobian: Jacobian
    length: int

    def product(self, rows: Tensor) -> Tensor:
        return self.jacobian.pull(self.jacobian.push(rows))


def _check_rows(block: Tensor, wanted: int) -> None:
    if block.ndim != 2 or len(block) != wanted:
        raise InvalidInputError(
            f"A block of shape {tuple(block.shape)} was given. Pass ({wanted}, k)."
        )


def _flat(system: GradientSystem, named: dict[str, Tensor], part: Any) -> Tensor:
    outputs = system.forward(named, system.raw_buffers, part[0])
    return flatten_outputs(outputs).vector


def _count_outputs(system: GradientSystem) -> int:
    first = _all_outputs(system, seed=0)
    if not sum(len(part) for part in first):
        raise InvalidInputError(
            "No output of the network depends on the selected parameters. Select "
            "others with parameters=."
        )
    if is_resident(system.data):
        return sum(len(part) for part in first)
    again = _all_outputs(system, seed=1)
    sizes = [len(part) for part in first], [len(part) for part in again]
    scale = max(float(part.abs().max()) for part in first if len(part))
    tolerance = 1e3 * torch.finfo(system.dtype).eps * scale
    if sizes[0] != sizes[1] or any(
        float((one - other).abs().max()) > tolerance
        for one, other in zip(first, again, strict=True)
        if len(one)
    ):
        raise NotDeterministicError(
            "The rows of a tangent kernel are the outputs in the order of the data, "
            "and the loader gives another order on each pass. Pass shuffle=False, or "
            "(x, y) tensors."
        )
    return sum(sizes[0])


def _all_outputs(system: GradientSystem, *, seed: int) -> list[Tensor]:
    # with graphs, freed at once: it is the dependence on θ that makes an output one
    theta = system.state.requires_grad_()
    with torch.enable_grad(), isolated(seed):
        return [
            _flat(system, system.unflatten(theta), batch).detach()
            for batch in system.batches(seed=seed)
        ]
