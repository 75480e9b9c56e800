"""Eigenpairs and gaps, with what is known about them."""

import os
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from dynprune.core import (
    InvalidInputError,
    Outcome,
    Provenance,
)
from dynprune.spectral import _plot
from dynprune.spectral._files import load, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

_CURVATURE = "loss per parameter²"


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Eigenpairs:
    r"""Hold Ritz pairs :math:`(\rho_i, u_i)` of a symmetric operator A.

    The **enclosures** assert: A has k eigenvalues, counted with multiplicity, one in
    each interval (see :func:`dynprune.spectral.eigenpairs`); they include rounding of
    the arithmetic to ``16 eps max|ρ|``, and exclude the sampling error of the data.
    That these k are the *extreme* ones is not proved by them: it was tested if
    ``complete`` is True. For pairs found outside a subspace, A means the operator
    deflated by it, on its complement.

    Args:
        values: :math:`\rho_i = u_i^\top A u_i`, descending, float64, shape ``(k,)``.
        vectors: Orthonormal :math:`u_i`, shape ``(P, k)``, the operator's dtype.
        residual_norms: :math:`\|A u_i - \rho_i u_i\|_2`, float64, shape ``(k,)``: of
            true products, or bounds that one true product verified.
        enclosures: Lower and upper ends, float64, shape ``(k, 2)``.
        complete: Whether no eigenvalue is missing between them: True if tested (or the
            operator was decomposed whole), False if the test still found one when it
            stopped, None if not tested or the test ended early.
        which: Which end was asked for.
        matvecs: Products with A that were spent.
        outcome: How the iteration ended.
        provenance: Where it comes from.
        converged: Whether each pair met the tolerance, bool, shape ``(k,)``; what
            ``outcome`` says of all, if it is left empty.
    """

    values: Tensor
    vectors: Tensor
    residual_norms: Tensor
    enclosures: Tensor
    complete: bool | None
    which: str
    matvecs: float
    outcome: Outcome
    provenance: Provenance
    converged: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))

    def __post_init__(self) -> None:
        """Fill the marks in that were left out."""
        if len(self.converged) != len(self.values):
            marks = torch.full_like(self.values, self.outcome.ok, dtype=torch.bool)
            object.__setattr__(self, "converged", marks)

    @property
    def size(self) -> int:
        """Number P of coordinates."""
        return self.vectors.shape[0]

    def __len__(self) -> int:
        """Return the number k of pairs."""
        return len(self.values)

    def __repr__(self) -> str:
        """Name the pairs in one line, without tensors.

        Returns:
            The line.
        """
        return (
            f"Eigenpairs(k={len(self)}, P={self.size}, {self.which}, "
            f"complete={self.complete}, matvecs={self.matvecs:g}, "
            f"{self.outcome.name})"
        )

    def summary(self) -> str:
        """Return five lines a person reads."""
        shown = ", ".join(f"{value:.4g}" for value in self.values[:6].tolist())
        more = ", …" if len(self) > 6 else ""
        missed = len(self) - int(self.converged.sum())
        marked = f", {missed} not converged" if missed else ""
        tested = {
            True: "tested: none is missing",
            False: "tested: some are missing",
            None: "not tested: multiple eigenvalues may be missing",
        }[self.complete]
        return "\n".join((
            f"{len(self)} eigenpairs ({self.which}) of an operator on "
            f"{self.size} coordinates",
            f"  values {shown}{more}",
            f"  residual norms up to {float(self.residual_norms.max()):.2g}{marked}",
            f"  completeness {tested}",
            f"  {self.matvecs:g} matvecs. {self.outcome.value}",
        ))

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the values with their enclosures.

        Args:
            ax: Where to draw; a new one if None.

        Returns:
            The axes.
        """
        return _plot.plot_values(self, ax)

    def to_frame(self) -> "DataFrame":
        """Return one row per pair: rank, value, residual norm, enclosure, mark."""
        import pandas as pd

        frame = pd.DataFrame({
            "pair": range(1, len(self) + 1),
            "value": self.values.cpu().numpy(),
            "residual_norm": self.residual_norms.cpu().numpy(),
            "lower": self.enclosures[:, 0].cpu().numpy(),
            "upper": self.enclosures[:, 1].cpu().numpy(),
            "converged": self.converged.cpu().numpy(),
        })
        names = ("value", "residual_norm", "lower", "upper")
        frame.attrs["units"] = dict.fromkeys(names, _CURVATURE)
        return frame

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file.

        Args:
            path: Where it shall be.
        """
        save(path, "eigenpairs", self)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Eigenpairs":
        """Read what :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The pairs, on the CPU.

        Raises:
            InvalidInputError: If the file is missing, truncated, or of another kind.
        """  # noqa: DOC502 - raised by load_result
        return load(path, "eigenpairs", Eigenpairs, what="eigenpairs")


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Gaps:
    r"""Hold the gaps between neighbouring eigenvalues, counted from the sharp end.

    Args:
        n_fast: The index k of each gap, int64, shape ``(n,)``.
        spectral_gap: :math:`\rho_k - \rho_{k+1}`, shape ``(n,)``.
        relative_gap: The same divided by :math:`\rho_k`; NaN where :math:`\rho_k` is
            not positive.
        lower_bound: Lower end of the k-th enclosure minus the upper end of the
            next; a bound on :math:`\lambda_k - \lambda_{k+1}` if no eigenvalue is
            missing, negative where the enclosures overlap.
        resolved: Whether the lower bound is positive and completeness was tested.
        provenance: Where it comes from.
    """

    n_fast: Tensor
    spectral_gap: Tensor
    relative_gap: Tensor
    lower_bound: Tensor
    resolved: Tensor
    provenance: Provenance

    def __len__(self) -> int:
        """Return the number of gaps."""
        return len(self.n_fast)

    def __repr__(self) -> str:
        """Name the gaps in one line, without tensors.

        Returns:
            The line.
        """
        count = int(self.resolved.sum())
        return f"Gaps({len(self)}, resolved={count}, largest={self.largest()})"

    def largest(self, *, resolved_only: bool = True) -> int | None:
        r"""Return the n_fast of the largest relative gap.

        Args:
            resolved_only: Leave out gaps that are not resolved.

        Returns:
            k with the largest :math:`(\rho_k - \rho_{k+1})/\rho_k` among
            :math:`\rho_k > 0`, the first of equals; None if there is none.
        """
        allowed = torch.isfinite(self.relative_gap)
        if resolved_only:
            allowed &= self.resolved
        if not bool(allowed.any()):
            return None
        masked = torch.where(allowed, self.relative_gap, -torch.inf)
        return int(self.n_fast[int(masked.argmax())])

    def at(self, n_fast: int) -> dict[str, float | bool]:
        """Return the numbers of one gap.

        Args:
            n_fast: Its index k.

        Returns:
            ``spectral_gap``, ``relative_gap``, ``lower_bound`` and ``resolved``.

        Raises:
            InvalidInputError: If there is no such gap.
        """
        found = torch.nonzero(self.n_fast == n_fast).reshape(-1)
        if len(found) == 0:
            raise InvalidInputError(
                f"There is no gap n_fast={n_fast}. Known: 1 to {len(self)}. Ask for "
                "more eigenpairs."
            )
        i = int(found[0])
        return {
            "spectral_gap": float(self.spectral_gap[i]),
            "relative_gap": float(self.relative_gap[i]),
            "lower_bound": float(self.lower_bound[i]),
            "resolved": bool(self.resolved[i]),
        }

    def summary(self) -> str:
        """Return five lines a person reads."""
        lines = [f"{len(self)} gaps, {int(self.resolved.sum())} of them resolved"]
        order = torch.argsort(self.relative_gap.nan_to_num(nan=-1.0), descending=True)
        for i in order[:4].tolist():
            word = "resolved" if bool(self.resolved[i]) else "not resolved"
            lines.append(
                f"  n_fast = {int(self.n_fast[i])}: gap "
                f"{float(self.spectral_gap[i]):.4g}, relative "
                f"{float(self.relative_gap[i]):.3g}, {word}"
            )
        return "\n".join(lines)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the gaps against n_fast.

        Args:
            ax: Where to draw; a new one if None.

        Returns:
            The axes.
        """
        return _plot.plot_gaps(self, ax)

    def to_frame(self) -> "DataFrame":
        """Return one row per gap."""
        import pandas as pd

        names = [part.name for part in fields(self) if part.name != "provenance"]
        frame = pd.DataFrame({name: getattr(self, name).cpu() for name in names})
        frame.attrs["units"] = dict.fromkeys(
            ("spectral_gap", "lower_bound"), _CURVATURE
        )
        return frame

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file.

        Args:
            path: Where it shall be.
        """
        save(path, "gaps", self)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Gaps":
        """Read what :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The gaps, on the CPU.

        Raises:
            InvalidInputError: If the file is missing, truncated, or of another kind.
        """  # noqa: DOC502 - raised by load_result
        return load(path, "gaps", Gaps, what="gaps")
