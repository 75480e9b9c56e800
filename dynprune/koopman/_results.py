"""A fitted evolution of the weights, and how far to trust it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from dynprune.core import (
    AssumptionError,
    Coordinates,
    InvalidInputError,
    NumericalWarning,
    Outcome,
    Provenance,
    load_result,
    save_tensors,
)
from dynprune.koopman import _files
from dynprune.koopman._evolve import Piece, combine, resting, spread, states
from dynprune.koopman._groups import group_name
from dynprune.koopman._rates import rates

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

_UNITS = {
    "growth_rate": "1 / step",
    "frequency": "cycles / step",
    "amplitude": "parameter",
}


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class KoopmanModel:
    r"""Hold the linear evolution that snapshots obey in the least-squares sense.

    A forecast h snapshots beyond the window is, on each group of coordinates,

    .. math:: \hat w_h = w_* + \sum_i b_i \mu_i^h \phi_i ,

    with :math:`w_* = 0` for ``centring="none"``, the fitted map's fixed point for
    ``"affine"``; for ``"difference"`` the increments :math:`w_{t+1} - w_t` evolve so.
    The map is applied by matrix powers, so defective operators are no exception.
    Modes are sorted by group, then by :math:`|\mu|` descending.

    Args:
        eigenvalues: Discrete :math:`\mu`, complex, shape ``(k,)``, per snapshot
            interval ``dt``.
        residual_norms: DDMD residuals :math:`r_i = \|Y C v_i - \mu_i U v_i\| /
            \|U v_i\|`, which equal :math:`\sqrt{v^*\mathcal L v / v^*v - |\mu|^2}` of
            the plain fit, shape ``(k,)``.
        residual_floors: The part of them that rounding of the snapshots to their
            dtype, and of the Gram matrix, may make up, shape ``(k,)``.
        standard_errors: Of the eigenvalues, :math:`\sqrt{E|\delta\mu|^2}`, shape
            ``(k,)``: a jackknife over snapshot pairs, exact for the operator, first
            order for its eigenvalues. Pairs count as exchangeable, so correlated noise
            is not covered. Infinite where no pair is left to spare.
        amplitudes: :math:`b_i` at the last snapshot, complex, shape ``(k,)``, in units
            of the parameters; of the deviation from the fixed point (affine) or of the
            last increment (difference).
        mode_norms: :math:`\|\phi_i\|` of the projected modes, shape ``(k,)``.
        groups: The group of each mode, shape ``(k,)``.
        singular_values: Of the (centred) past snapshots, shape ``(n,)``; only for the
            network partition, else empty.
        operator_norm: :math:`\|Y C\|_2 = \|A U\|_2`, a lower bound on the norm of the
            true operator; the largest over groups.
        outside_norm: Norm of the part of the last snapshot outside the span of the
            modes, over all groups.
        defect: Private factor for ``forecast_bound``.
        pieces: Private: what a forecast needs of each group.
        snapshots: The window, shape ``(P, T)``; the trajectory's own tensor.
        steps: Its optimiser steps, shape ``(T,)``.
        coordinates: What each coordinate is.
        partition: Which coordinates evolve together.
        centring: How the constant is treated.
        method: ``dmd`` or ``self-adjoint``.
        delay: Snapshots stacked in one delay vector.
        outcome: How the fit ended.
        provenance: Where it comes from.
    """

    eigenvalues: Tensor
    residual_norms: Tensor
    residual_floors: Tensor
    standard_errors: Tensor
    amplitudes: Tensor
    mode_norms: Tensor
    groups: Tensor
    singular_values: Tensor
    operator_norm: float
    outside_norm: float
    defect: Tensor
    pieces: tuple[Piece, ...]
    snapshots: Tensor
    steps: Tensor
    coordinates: Coordinates
    partition: str
    centring: str
    method: str
    delay: int
    outcome: Outcome
    provenance: Provenance

    def __repr__(self) -> str:
        """Name the fit in one line, without tensors.

        Returns:
            The line.
        """
        return (
            f"KoopmanModel({self.partition}, {self.method}, {self.centring}, "
            f"{len(self.eigenvalues)} modes of {len(self.group_names)} groups, "
            f"steps {int(self.steps[0])}..{int(self.steps[-1])})"
        )

    @property
    def dt(self) -> float:
        """Optimiser steps between two snapshots."""
        return float(self.steps[1] - self.steps[0])

    @property
    def last_step(self) -> int:
        """Optimiser step of the last snapshot of the window."""
        return int(self.steps[-1])

    @property
    def rank(self) -> int:
        """Largest number of modes of one group."""
        return int(torch.bincount(self.groups).max()) if len(self.groups) else 0

    @property
    def rates(self) -> Tensor:
        r"""Complex :math:`\omega = \log\mu / dt`, per optimiser step."""
        return rates(self.eigenvalues, dt=self.dt)

    @property
    def growth_rate(self) -> Tensor:
        """Re of the rates, per optimiser step; negative means decay."""
        return self.rates.real

    @property
    def frequency(self) -> Tensor:
        """Absolute imaginary part of the rates over 2 pi, cycles per optimiser step."""
        return self.rates.imag.abs() / (2.0 * torch.pi)

    @property
    def group_names(self) -> tuple[str, ...]:
        """What each group is: ``"network"``, ``"net.0"``, ``"net.0[3]"``, ..."""
        return tuple(
            group_name(part.label, row, column)
            for part in self.pieces
            for row, column in zip(
                part.rows.tolist(), part.columns.tolist(), strict=True
            )
        )

    def horizons(self, steps: Sequence[int]) -> list[int]:
        """Convert absolute optimiser steps to snapshots beyond the window.

        Args:
            steps: Absolute optimiser steps, at or beyond ``last_step`` by a multiple
                of ``dt``.

        Returns:
            The numbers h of applications of the map.

        Raises:
            InvalidInputError: If a step lies before the end or between snapshots.
        """
        dt, found = int(self.dt), []
        for step in steps:
            ahead = int(step) - self.last_step
            if ahead < 0 or ahead % dt or ahead != step - self.last_step:
                raise InvalidInputError(
                    f"A forecast at step {step} was asked for, the window ends at "
                    f"{self.last_step} and has a snapshot every {dt} steps. Ask for "
                    f"{self.last_step} plus multiples of {dt}."
                )
            found.append(ahead // dt)
        if not found:
            raise InvalidInputError("No steps to forecast. Pass at least one.")
        return found

    def forecast(self, steps: Sequence[int]) -> Tensor:
        r"""Apply the fitted map beyond the window.

        For ``method="dmd"`` and no centring this is :math:`K^h w_T` with
        :math:`K = Y X^+` and a matrix power, as in the source.

        Args:
            steps: Absolute optimiser steps, see :meth:`horizons`.

        Returns:
            Weights, shape ``(P, len(steps))``, dtype and device of the snapshots. A
            group that grows past the largest number is infinite or NaN there, with
            one :class:`NumericalWarning`.

        Raises:
            InvalidInputError: If a step lies before the end or between snapshots.

        Cost:
            One pass over the snapshots, 2 P T operations per step.

        Source:
            Dogra and Redman, *Optimizing Neural Networks via Koopman Operator Theory*,
            NeurIPS 2020.
        """  # noqa: DOC502 - raised by horizons
        asked = self.horizons(steps)
        ahead = sorted({h for h in asked if h > 0})
        found = torch.empty(
            (self.snapshots.shape[0], len(ahead)),
            dtype=self.snapshots.dtype,
            device=self.snapshots.device,
        )
        if ahead:
            for part in self.pieces:
                combine(part, states(part, ahead), self.snapshots, found)
        _warn_if_infinite(found, self.last_step)
        columns = [
            found[:, ahead.index(h)] if h else self.snapshots[:, -1] for h in asked
        ]
        return torch.stack(columns, 1)

    def fixed_point(self) -> Tensor:
        r"""Return the state that the fitted map leaves where it is.

        Affine: :math:`w_* = \bar y + A(w_* - \bar x)`; difference:
        :math:`w_* = w_T + (I - A)^{-1} A (w_T - w_{T-1})` on the span of the modes. It
        attracts only if every :math:`|\mu| < 1`.

        Returns:
            Weights, shape ``(P,)``, dtype of the snapshots.

        Raises:
            AssumptionError: If the fit has no constant, or an eigenvalue is 1 within
                1e-8, so that there is no single fixed point.
        """
        if self.centring == "none":
            raise AssumptionError(
                'A fit with centring="none" is linear: its fixed point is 0, whatever '
                'the data. Fit with centring="affine" or "difference".'
            )
        if len(self.eigenvalues):
            nearest = float((self.eigenvalues - 1.0).abs().min())
            if nearest < 1e-8:
                raise AssumptionError(
                    f"An eigenvalue lies {nearest:.1e} from 1: its direction drifts "
                    "without end and there is no single fixed point. Lower the rank, "
                    "or use a window with fewer modes."
                )
        found = self.snapshots.new_empty((self.snapshots.shape[0], 1))
        for part in self.pieces:
            combine(part, resting(part), self.snapshots, found)
        return found[:, 0]

    def modes(self, indices: Sequence[int] | None = None) -> Tensor:
        r"""Return projected modes :math:`\phi_i = U v_i` as vectors of weights.

        With a delay they are the newest block of the delay vector.

        Args:
            indices: Which modes, in the order of ``eigenvalues``; None for all.

        Returns:
            Complex, shape ``(P, len(indices))``, zero outside the mode's group.

        Raises:
            InvalidInputError: If the partition is finer than layers, or there is no
                such mode.
        """
        if self.partition not in {"network", "layer"}:
            raise InvalidInputError(
                f"Modes of partition={self.partition!r} are not kept: there are "
                f"{len(self.group_names)} groups. Fit with partition='network' or "
                "'layer'."
            )
        chosen = list(range(len(self.eigenvalues)) if indices is None else indices)
        if any(not 0 <= i < len(self.eigenvalues) for i in chosen):
            raise InvalidInputError(
                f"Modes {chosen} were asked for, there are {len(self.eigenvalues)}, "
                "counted from 0."
            )
        offsets = torch.cumsum(torch.bincount(self.groups), 0)
        found = torch.zeros(
            (self.snapshots.shape[0], len(chosen)),
            dtype=torch.complex128,
            device=self.snapshots.device,
        )
        for column, i in enumerate(chosen):
            group = int(self.groups[i])
            part = self.pieces[group]
            local = i - (int(offsets[group - 1]) if group else 0)
            mixed = torch.view_as_real(part.modes[0, :, local])
            halves = torch.zeros(
                (len(found), 2), dtype=torch.float64, device=found.device
            )
            spread(part.index, mixed, self.snapshots, halves)
            found[:, column] = torch.view_as_complex(halves)
        return found

    def summary(self) -> str:
        """Return five lines a person reads."""
        mu = self.eigenvalues
        slowest = ", ".join(_number(value) for value in mu[:4].tolist())
        growing = int((mu.abs() > 1.0).sum())
        return "\n".join((
            f"Koopman fit ({self.method}) of steps {int(self.steps[0])} to "
            f"{self.last_step}, a snapshot every {self.dt:g} steps",
            f"  {self.partition} partition, centring {self.centring}, delay "
            f"{self.delay}: {len(mu)} modes of {len(self.group_names)} groups",
            f"  first eigenvalues {slowest}; {growing} outside the unit circle",
            f"  residual norms: median {_median(self.residual_norms):.2g}, largest "
            f"{_largest(self.residual_norms):.2g}; standard errors: median "
            f"{_median(self.standard_errors):.2g}",
            f"  operator norm at least {self.operator_norm:.6g}; last snapshot "
            f"outside the span {self.outside_norm:.2g}",
        ))

    def to_frame(self) -> "DataFrame":
        """Return one row per mode; units in ``frame.attrs["units"]``."""
        import pandas as pd

        names = self.group_names
        rate = self.rates
        frame = pd.DataFrame({
            "group": [names[group] for group in self.groups.tolist()],
            "eigenvalue_real": self.eigenvalues.real.numpy(),
            "eigenvalue_imag": self.eigenvalues.imag.numpy(),
            "modulus": self.eigenvalues.abs().numpy(),
            "growth_rate": rate.real.numpy(),
            "frequency": self.frequency.numpy(),
            "residual_norm": self.residual_norms.numpy(),
            "residual_floor": self.residual_floors.numpy(),
            "standard_error": self.standard_errors.numpy(),
            "amplitude": self.amplitudes.abs().numpy(),
            "mode_norm": self.mode_norms.numpy(),
        })
        frame.attrs["units"] = dict(_UNITS)
        return frame

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Draw the eigenvalues in the complex plane with their residual discs.

        Args:
            ax: Where to draw; a new one if None.

        Returns:
            The axes.
        """
        from dynprune.koopman._plot import plot_eigenvalues

        return plot_eigenvalues(self, ax)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model, its window included, to one safetensors file.

        Args:
            path: Where the file shall be.
        """
        tensors, metadata = _files.packed(self)
        save_tensors(path, tensors, metadata)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "KoopmanModel":
        """Read a model that :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The model; its forecasts are those of the original, bit for bit.

        Raises:
            InvalidInputError: If the file is missing, truncated, something else, or
                lacks a part.
        """  # noqa: DOC502 - raised by load_result
        return load_result(
            path,
            _files.KIND,
            lambda tensors, plain: KoopmanModel(**_files.unpacked(tensors, plain)),
            what="a Koopman model",
            writer="KoopmanModel.save",
        )


def _number(value: complex) -> str:
    if value.imag == 0.0:
        return f"{value.real:.6g}"
    return f"{value.real:.6g}{value.imag:+.2g}i"


def _median(values: Tensor) -> float:
    return float(values.median()) if len(values) else 0.0


def _largest(values: Tensor) -> float:
    return float(values.max()) if len(values) else 0.0


def _warn_if_infinite(found: Tensor, last: int) -> None:
    import warnings

    bad = int((~torch.isfinite(found)).any(1).sum()) if found.numel() else 0
    if bad:
        warnings.warn(
            f"The forecast of {bad} of {len(found)} weights left the finite numbers "
            f"after step {last}. Ask for a shorter horizon, or fit with a lower rank.",
            NumericalWarning,
            stacklevel=3,
        )
