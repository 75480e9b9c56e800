"""An estimate of a trace, or of a number made from one."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from torch import Tensor

from dynprune.core import (
    Outcome,
    Provenance,
)
from dynprune.spectral import _plot_estimates
from dynprune.spectral._files import load, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Trace:
    """Hold an estimate of tr f(A), or of a number made from it.

    Args:
        quantity: What it is, e.g. ``"tr A"``.
        value: The estimate.
        standard_error: Of the value, over the random vectors; 0 if it is exact.
        interval: Lower and upper end at ``level``.
        level: Coverage of the interval.
        samples: What each random vector says, float64, shape ``(m,)``; their mean is
            tr f(A). They need not be independent.
        method: How it was estimated, ``"exact"`` if from all of A.
        unit: Of the value.
        matvecs: Products with A that were spent.
        outcome: NOT_CONVERGED if a quadrature's error exceeds the standard error.
        provenance: Where it comes from.
    """

    quantity: str
    value: float
    standard_error: float
    interval: tuple[float, float]
    level: float
    samples: Tensor
    method: str
    unit: str
    matvecs: float
    outcome: Outcome
    provenance: Provenance

    def __float__(self) -> float:
        """Return the value."""
        return self.value

    def __repr__(self) -> str:
        """Name the estimate in one line, without tensors.

        Returns:
            The line.
        """
        return (
            f"Trace({self.quantity} = {self.value:.6g} ± {self.standard_error:.2g}, "
            f"{self.method}, matvecs={self.matvecs:g})"
        )

    def summary(self) -> str:
        """Return five lines a person reads."""
        low, high = self.interval
        relative = abs(self.standard_error / self.value) if self.value else float("nan")
        return "\n".join((
            f"{self.quantity} = {self.value:.6g}" + (f" {self.unit}" * bool(self.unit)),
            f"  standard error {self.standard_error:.2g} ({100 * relative:.2g} %)",
            f"  {100 * self.level:g} % interval [{low:.6g}, {high:.6g}]",
            f"  by {self.method}, {len(self.samples)} samples",
            f"  {self.matvecs:g} matvecs. {self.outcome.value}",
        ))

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the value with its interval.

        Args:
            ax: Where to draw; a new one if None.

        Returns:
            The axes.
        """
        return _plot_estimates.plot_trace(self, ax)

    def to_frame(self) -> "DataFrame":
        """Return one row."""
        import pandas as pd

        frame = pd.DataFrame({
            "quantity": [self.quantity],
            "value": [self.value],
            "standard_error": [self.standard_error],
            "lower": [self.interval[0]],
            "upper": [self.interval[1]],
            "method": [self.method],
            "matvecs": [self.matvecs],
        })
        names = ("value", "standard_error", "lower", "upper")
        frame.attrs["units"] = dict.fromkeys(names, self.unit)
        return frame

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file.

        Args:
            path: Where it shall be.
        """
        save(path, "trace", self)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Trace":
        """Read what :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The estimate, its samples on the CPU.

        Raises:
            InvalidInputError: If the file is missing, truncated, or of another kind.
        """  # noqa: DOC502 - raised by load_result
        return load(path, "trace", Trace, what="a trace")
