"""What operators that are sums over the data of a system have in common."""

from typing import final

import torch
from torch import Tensor

from dynprune.operators._operator import AbstractOperator
from dynprune.system import GradientSystem


class AbstractOnData(AbstractOperator):
    """An operator of a system at a state of its own, with products counted.

    Args:
        system: The system.
        state: Coordinates, shape ``(P,)``; the system's own by default.
    """

    def __init__(self, system: GradientSystem, state: Tensor | None) -> None:
        system.check_deterministic(state)
        self._system = system.with_state(system.state if state is None else state)
        self._count = 0.0

    @final
    @property
    def system(self) -> GradientSystem:
        """The system, at the operator's own state."""
        return self._system

    @final
    @property
    def dtype(self) -> torch.dtype:
        """The dtype of products, that of the parameters."""
        return self._system.dtype

    @final
    @property
    def device(self) -> torch.device:
        """The device of products."""
        return self._system.device

    @final
    @property
    def matvecs(self) -> float:
        """Number of products so far."""
        return self._count
