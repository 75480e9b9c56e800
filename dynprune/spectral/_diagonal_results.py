"""An estimate of a diagonal, with a standard error for each entry."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from dynprune.core import (
    Outcome,
    Provenance,
)
from dynprune.spectral import _plot_estimates
from dynprune.spectral._files import load, save
from dynprune.spectral._intervals import check_level, student

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

_CURVATURE = "loss per parameter²"


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Diagonal:
    """Hold estimates of the entries a_jj of a symmetric operator.

    Args:
        values: Unbiased estimates, the operator's dtype, shape ``(P,)``; where vectors
            are sharded, of the rows held here.
        standard_error: Of each over the random vectors, same shape; 0 if exact.
        samples: Number of random vectors that the standard errors come from.
        method: How they were estimated, ``"exact"`` if from all columns.
        matvecs: Products with A that were spent.
        outcome: How it ended.
        provenance: Where it comes from.
    """

    values: Tensor
    standard_error: Tensor
    samples: int
    method: str
    matvecs: float
    outcome: Outcome
    provenance: Provenance

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self.values)

    def __repr__(self) -> str:
        """Name the estimate in one line, without tensors.

        Returns:
            The line.
        """
        return (
            f"Diagonal(P={len(self)}, {self.method}, relative error "
            f"{self.relative_error:.2g}, matvecs={self.matvecs:g})"
        )

    @property
    def relative_error(self) -> float:
        """Root of the summed squared standard errors over the norm of the entries."""
        norm = float(self.values.double().norm())
        error = float(self.standard_error.double().norm())
        return error / norm if norm else 0.0

    def interval(self, level: float = 0.95) -> Tensor:
        """Return an interval for each entry, by Student's t.

        Args:
            level: Coverage of each.

        Returns:
            Lower and upper ends, shape ``(P, 2)``.
        """
        check_level(level)
        reach = self.standard_error
        if self.samples > 1:
            reach = reach * student(self.samples - 1, level)
        return torch.stack([self.values - reach, self.values + reach], 1)

    def summary(self) -> str:
        """Return five lines a person reads."""
        sure = self.values.abs() > 2.0 * self.standard_error
        return "\n".join((
            f"diagonal of an operator on {len(self)} coordinates",
            f"  sum {float(self.values.double().sum()):.4g}, entries from "
            f"{float(self.values.min()):.3g} to {float(self.values.max()):.3g}",
            f"  standard errors up to {float(self.standard_error.max()):.2g}, all "
            f"together {100 * self.relative_error:.2g} % of the entries' norm",
            f"  {int(sure.sum())} entries differ from 0 by 2 standard errors",
            f"  by {self.method}, {self.matvecs:g} matvecs. {self.outcome.value}",
        ))

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the entries by size, with their standard errors.

        Args:
            ax: Where to draw; a new one if None.

        Returns:
            The axes.
        """
        return _plot_estimates.plot_diagonal(self, ax)

    def to_frame(self) -> "DataFrame":
        """Return one row per coordinate."""
        import pandas as pd

        frame = pd.DataFrame({
            "coordinate": range(len(self)),
            "value": self.values.cpu().numpy(),
            "standard_error": self.standard_error.cpu().numpy(),
        })
        names = ("value", "standard_error")
        frame.attrs["units"] = dict.fromkeys(names, _CURVATURE)
        return frame

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file.

        Args:
            path: Where it shall be.
        """
        save(path, "diagonal", self)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Diagonal":
        """Read what :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The estimate, on the CPU.

        Raises:
            InvalidInputError: If the file is missing, truncated, or of another kind.
        """  # noqa: DOC502 - raised by load_result
        return load(path, "diagonal", Diagonal, what="a diagonal")
