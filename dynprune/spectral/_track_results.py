"""How the extreme eigenpairs moved along a run."""

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from dynprune.core import (
    Outcome,
    Provenance,
)
from dynprune.spectral import _plot
from dynprune.spectral._files import load, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame
    from xarray import Dataset

_CURVATURE = "loss per parameter²"


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class SpectrumTrack:
    r"""Hold the k extreme eigenpairs of an operator at T snapshots, without vectors.

    .. math:: O^{(t)}_{ij} = |\langle u_i(t), u_j(t+1) \rangle|

    Args:
        steps: Optimiser steps of the snapshots, int64, shape ``(T,)``.
        values: :math:`\rho_i(t)`, descending, float64, shape ``(T, k)``.
        residual_norms: As in :class:`Eigenpairs`, shape ``(T, k)``.
        enclosures: Lower and upper ends, shape ``(T, k, 2)``.
        converged: Whether each pair met the tolerance, shape ``(T, k)``.
        overlaps: O, of neighbouring snapshots, shape ``(T - 1, k, k)``; 1 where a
            vector did not turn. Within a multiple eigenvalue vectors are arbitrary.
        angles: Principal angles between the spans of the k vectors of neighbouring
            snapshots, in radians, ascending, shape ``(T - 1, k)``: blind to turns
            inside the span.
        matvecs: Products spent at each snapshot, float64, shape ``(T,)``.
        complete: As in :class:`Eigenpairs`, for all snapshots together.
        which: Which end.
        outcome: Whether all pairs of all snapshots met the tolerance.
        provenance: Where it comes from.
    """

    steps: Tensor
    values: Tensor
    residual_norms: Tensor
    enclosures: Tensor
    converged: Tensor
    overlaps: Tensor
    angles: Tensor
    matvecs: Tensor
    complete: bool | None
    which: str
    outcome: Outcome
    provenance: Provenance

    def __len__(self) -> int:
        """Return the number T of snapshots."""
        return len(self.steps)

    @property
    def k(self) -> int:
        """Number of pairs at each snapshot."""
        return self.values.shape[1]

    def __repr__(self) -> str:
        """Name the track in one line, without tensors.

        Returns:
            The line.
        """
        return (
            f"SpectrumTrack(T={len(self)}, k={self.k}, {self.which}, "
            f"matvecs={float(self.matvecs.sum()):g}, {self.outcome.name})"
        )

    def summary(self) -> str:
        """Return five lines a person reads."""
        first, last = self.values[0, 0], self.values[-1, 0]
        missed = int((~self.converged).sum())
        lines = [
            f"{self.k} eigenpairs ({self.which}) at {len(self)} snapshots, steps "
            f"{int(self.steps[0])} to {int(self.steps[-1])}",
            f"  largest value {float(first):.4g} at the first, {float(last):.4g} at "
            "the last",
            f"  residual norms up to {float(self.residual_norms.max()):.2g}, "
            f"{missed} pairs not converged",
        ]
        if len(self) > 1:
            turned = self.angles[:, -1].max()
            kept = self.angles.cos().square().mean()
            lines.append(
                f"  the span keeps {float(kept):.3g} of itself between neighbours "
                f"(mean cos² of its angles; the largest is {float(turned):.3g} rad)"
            )
        spent = self.matvecs.sum()
        return "\n".join((*lines, f"  {float(spent):g} matvecs. {self.outcome.value}"))

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the values with their enclosures against the step.

        Args:
            ax: Where to draw; a new one if None.

        Returns:
            The axes.
        """
        return _plot.plot_track(self, ax)

    def to_frame(self) -> "DataFrame":
        """Return one row per snapshot and pair.

        ``overlap`` is the largest overlap with a pair of the snapshot before, which
        is ``from_pair``; NaN and 0 at the first.
        """
        import pandas as pd

        T, k = self.values.shape
        before = torch.full((1, k), torch.nan, dtype=torch.float64)
        best, origin = self.overlaps.cpu().max(dim=1)
        origin = torch.cat([torch.zeros(1, k, dtype=torch.int64), origin + 1])
        pair = torch.arange(1, k + 1).repeat(T)
        numbers = {
            "step": self.steps.cpu().repeat_interleave(k),
            "pair": pair,
            "value": self.values,
            "residual_norm": self.residual_norms,
            "lower": self.enclosures[..., 0],
            "upper": self.enclosures[..., 1],
            "converged": self.converged,
            "overlap": torch.cat([before, best]),
            "from_pair": origin,
        }
        frame = pd.DataFrame({
            name: part.cpu().reshape(-1).numpy() for name, part in numbers.items()
        })
        names = ("value", "residual_norm", "lower", "upper")
        frame.attrs["units"] = dict.fromkeys(names, _CURVATURE) | {
            "step": "optimiser steps"
        }
        return frame

    def to_xarray(self) -> "Dataset":
        """Return an xarray dataset with the axes step, pair and later pair.

        Overlaps and angles lie at the later of the two snapshots.
        """
        import xarray as xr

        def at(part: Tensor) -> Tensor:
            first = part.new_full((1, *part.shape[1:]), torch.nan)
            return torch.cat([first, part]).cpu()

        axes = ("step", "pair")
        ends = self.enclosures.cpu()
        return xr.Dataset(
            {
                "value": (axes, self.values.cpu().numpy()),
                "residual_norm": (axes, self.residual_norms.cpu().numpy()),
                "lower": (axes, ends[..., 0].numpy()),
                "upper": (axes, ends[..., 1].numpy()),
                "converged": (axes, self.converged.cpu().numpy()),
                "overlap": ((*axes, "later_pair"), at(self.overlaps).numpy()),
                "angle": (("step", "angle_index"), at(self.angles).numpy()),
                "matvecs": (("step",), self.matvecs.cpu().numpy()),
            },
            coords={
                "step": self.steps.cpu().numpy(),
                "pair": range(1, self.k + 1),
                "later_pair": range(1, self.k + 1),
            },
            attrs={"which": self.which, "units": _CURVATURE},
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file.

        Args:
            path: Where it shall be.
        """
        save(path, "spectrum track", self)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "SpectrumTrack":
        """Read what :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The track, on the CPU.

        Raises:
            InvalidInputError: If the file is missing, truncated, or of another kind.
        """  # noqa: DOC502 - raised by load_result
        return load(path, "spectrum track", SpectrumTrack, what="a spectrum track")
