"""The exact Hessian of a gradient system, by reverse-over-reverse products."""

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, Rows, isolated
from dynprune.operators._operator import AbstractOperator
from dynprune.system import GradientSystem, is_resident


@final
class HessianOperator(AbstractOperator):
    r"""Apply the Hessian ∇²L(θ) of a gradient system without forming it.

    .. math:: H v = \nabla_\theta \, \langle \nabla L(\theta), v \rangle

    exactly, by a second reverse pass; l2 adds ``l2 * v``. The state and the buffers
    are cloned: later training of the model does not change the operator. On a
    masked system it is the block of the survivors at m⊙θ.

    Resident data whose graphs fit ``memory_budget`` keep them: the graph of the
    gradient is built once and each product is one reverse pass. Otherwise every
    ``@`` makes one pass over the data, and a block of k vectors shares it.

    Args:
        system: The system.
        state: Coordinates, shape ``(P,)``; the system's own by default.
        memory_budget: Bytes that kept graphs may hold.

    Raises:
        NotDeterministicError: If two passes give different gradients.

    Cost:
        Two gradients for the probe of a new system. A product costs one reverse pass
        through the gradient's graph (1–2 gradients), plus building it (about 2) where
        it is not kept. Memory: the graph of one batch, or ``memory_budget``.

    Source:
        Pearlmutter, *Fast exact multiplication by the Hessian*, 1994.

    Example:
        >>> x, y = torch.eye(2), torch.zeros(2, 1)
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> HessianOperator(system) @ torch.tensor([1.0, 2.0])  # (2/N) X'X v
        tensor([1., 2.])
    """

    def __init__(
        self,
        system: GradientSystem,
        state: Tensor | None = None,
        *,
        memory_budget: int = 2**30,
    ) -> None:
        system.check_deterministic()
        own = system.state if state is None else state
        self._system = system.with_state(own)
        self._theta = self._system.state
        self._buffers = self._system.raw_buffers
        self._memory_budget = memory_budget
        self._graphs: list[tuple[Tensor, Tensor, float]] | None = None
        self._may_keep = is_resident(system.data)
        self._count = 0.0

    @property
    def system(self) -> GradientSystem:
        """The system, at the operator's own state."""
        return self._system

    @property
    def rows(self) -> Rows:
        """All coordinates."""
        return Rows.whole(self._system.size)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of products."""
        return self._system.dtype

    @property
    def device(self) -> torch.device:
        """The device of products."""
        return self._system.device

    @property
    def matvecs(self) -> float:
        """Number of Hessian-vector products so far."""
        return self._count

    def gradient(self) -> Tensor:
        """Return ∇L at the operator's state, shape ``(P,)``.

        Returns:
            Loss per parameter.

        Cost:
            One gradient.
        """
        return self._system.gradient()

    def _product(self, block: Tensor) -> Tensor:
        self._count += block.shape[1]
        total = self._system.l2 * block
        for theta, gradient, share in self._gradients():
            total = total + share * _second(gradient, theta, block)
        return total

    def _gradients(self) -> Iterator[tuple[Tensor, Tensor, float]]:
        """Yield (θ, ∇L_b with its graph, w_b / W) of each batch."""
        if self._graphs is not None:
            yield from self._graphs
            return
        kept: list[tuple[Tensor, Tensor, float]] | None = [] if self._may_keep else None
        used = 0
        for batch in self._system.batches():
            entry, held = self._build(batch)
            used += held
            if kept is not None and used <= self._memory_budget:
                kept.append(entry)
            else:
                kept = None
            yield entry
        self._graphs = kept
        self._may_keep = kept is not None

    def _build(self, batch: object) -> tuple[tuple[Tensor, Tensor, float], int]:
        held: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            held[storage.data_ptr()] = storage.nbytes()
            return tensor

        theta = self._theta.clone().requires_grad_()
        named = self._system.unflatten(theta)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept)
        with isolated(0), hooks:
            value = self._system.batch_mean(named, self._buffers, batch)
            if value.requires_grad:
                (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
            else:
                gradient = torch.zeros_like(theta)
        if not bool(torch.isfinite(gradient.detach()).all()):
            raise InvalidInputError(
                f"The gradient is not finite at this state (loss "
                f"{float(value.detach())}). Check the state; a diverged run has no "
                "Hessian."
            )
        share = self._system.weight(batch) / self._system.examples
        return (theta, gradient, share), sum(held.values())


def _second(gradient: Tensor, theta: Tensor, block: Tensor) -> Tensor:
    if not gradient.requires_grad:
        return torch.zeros_like(block)
    columns = []
    for vector in block.unbind(1):
        (column,) = torch.autograd.grad(
            gradient, theta, vector, retain_graph=True, allow_unused=True
        )
        columns.append(torch.zeros_like(vector) if column is None else column)
    return torch.stack(columns, dim=1)
