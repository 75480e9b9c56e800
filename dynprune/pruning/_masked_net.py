"""A network behind masks that are functions of trainable scores."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn

from dynprune.core import functional_call, map_leaves

Rule = Callable[[Sequence[Tensor], Sequence[Tensor]], list[Tensor]]


@final
class MaskedNet(nn.Module):
    r"""Evaluate the loss of a network at :math:`w \odot m(p)`, a function of p only.

    Args:
        loss: Wraps the network; its ``forward(batch)`` is the mean loss.
        weights: Name to frozen weights w, of one dtype, that of the network.
        scores: Name to scores p, which become the parameters; of one dtype, at least as
            wide. Masks are cast, not scores.
        alive: Name to boolean tensor: what may be kept.
        rule: Makes masks of scores and of what is alive, differentiable in the scores.
    """

    def __init__(
        self,
        loss: nn.Module,
        weights: Mapping[str, Tensor],
        scores: Mapping[str, Tensor],
        alive: Mapping[str, Tensor],
        rule: Rule,
    ) -> None:
        nn.Module.__init__(self)
        self.loss = loss.requires_grad_(False)
        self.names = tuple(weights)
        self.scores = nn.ParameterList([nn.Parameter(scores[n]) for n in self.names])
        for index, name in enumerate(self.names):
            self.register_buffer(f"weight_{index}", weights[name].clone())
            self.register_buffer(f"alive_{index}", alive[name].to(scores[name]))
        self._rule = rule
        self._dtype = {part.dtype for part in weights.values()}.pop()
        self._casts = {part.dtype for part in scores.values()} != {self._dtype}

    @property
    def alive(self) -> list[Tensor]:
        """What may be kept, 0 or 1, the tensors themselves."""
        return [self.get_buffer(f"alive_{i}") for i in range(len(self.names))]

    def masks(self) -> list[Tensor]:
        """Return the masks of the present scores, 0 or 1."""
        return self._rule(list(self.scores), self.alive)

    def forward(self, batch: Any) -> Tensor:
        """Return the mean loss of a batch at the masked weights.

        Args:
            batch: One of the system's data.

        Returns:
            A 0-d tensor, differentiable in the scores.
        """
        values = {
            f"net.{name}": self.get_buffer(f"weight_{index}") * mask.to(self._dtype)
            for index, (name, mask) in enumerate(
                zip(self.names, self.masks(), strict=True)
            )
        }
        if self._casts:  # whoever reads data for scores has them in the scores' dtype
            batch = map_leaves(self._cast, batch)
        result: Tensor = functional_call(self.loss, values, (batch,))
        return result

    def _cast(self, leaf: Any) -> Any:
        floats = isinstance(leaf, Tensor) and leaf.is_floating_point()
        return leaf.to(self._dtype) if floats else leaf


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    r"""Return ``hard``, with the derivative of ``soft``.

    Args:
        hard: The value, without graph.
        soft: Of the same shape.

    Returns:
        ``hard`` to the bit: :math:`h + (s - s)` with the second s held fixed.
    """
    return hard + (soft - soft.detach())
