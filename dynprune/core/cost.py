"""What a computation cost, in the field's currency."""

from dataclasses import dataclass
from typing import final


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Count passes over the data set, in units of one full pass.

    One *gradient* is a forward and a backward pass over all N examples of the
    system; a mini-batch step over B examples counts B/N. N is that of the system's own
    data even where other data are read (training on ``data=``), so that the costs of
    all that is done with one system add up in one unit. One *HVP* is a Hessian-vector
    product over all N examples, one *forward* a pass without derivatives.

    Args:
        gradients: Gradient passes, in full-data gradients.
        hvps: Hessian-vector products, in full-data products.
        forwards: Forward passes without derivatives, in full-data passes.
        steps: Optimiser steps.

    Example:
        >>> Cost(gradients=1.5) + Cost(gradients=0.5, hvps=3.0)
        Cost(gradients=2.0, hvps=3.0, forwards=0.0, steps=0)
    """

    gradients: float = 0.0
    hvps: float = 0.0
    forwards: float = 0.0
    steps: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        """Add two costs, entry by entry.

        Args:
            other: The other cost.

        Returns:
            The sum.
        """
        return Cost(
            gradients=self.gradients + other.gradients,
            hvps=self.hvps + other.hvps,
            forwards=self.forwards + other.forwards,
            steps=self.steps + other.steps,
        )
