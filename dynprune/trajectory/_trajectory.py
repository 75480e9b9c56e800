"""The states that a run went through, one column per recorded step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from dynprune.core import Coordinates, InvalidInputError, Provenance
from dynprune.trajectory import _files, _plot


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Trajectory:
    r"""Hold the snapshots of a run: column j is the state at step ``steps[j]``.

    .. math:: W = (\theta_{t_0}, \theta_{t_1}, \dots, \theta_{t_{T-1}})
              \in \mathbb{R}^{P \times T}, \qquad t_0 < t_1 < \dots

    Args:
        snapshots: States, shape ``(P, T)``; copied.
        steps: Optimiser steps of the columns, increasing, shape ``(T,)``; copied.
        coordinates: Where each entry lies in the parameters.
        losses: Loss at each snapshot, shape ``(T,)``, or None. In a training run it
            is the loss of the batch that the step starts from; NaN where there was
            none.
        provenance: Where the run comes from.

    Raises:
        InvalidInputError: If shapes disagree, there is no snapshot, or steps do not
            increase.

    Cost:
        One copy of the snapshots, P·T numbers.

    Example:
        >>> path = Trajectory.from_states(torch.eye(2), [0, 5])
        >>> path.dt, path.state_at(5)
        (5.0, tensor([0., 1.]))
    """

    snapshots: Tensor
    steps: Tensor
    coordinates: Coordinates
    losses: Tensor | None = None
    provenance: Provenance = field(
        default_factory=lambda: Provenance(made_by="trajectory.Trajectory")
    )

    def __post_init__(self) -> None:
        """Copy the tensors and check their shapes.

        Raises:
            InvalidInputError: If they do not fit together.
        """
        steps = _files.as_steps(self.steps)
        snapshots = self.snapshots
        if snapshots.ndim != 2 or snapshots.shape[1] != len(steps) or len(steps) == 0:
            raise InvalidInputError(
                f"Snapshots of shape {tuple(snapshots.shape)} were given with "
                f"{len(steps)} steps. Pass one column per step, shape (P, T), T ≥ 1."
            )
        if bool((steps.diff() <= 0).any()):
            raise InvalidInputError(
                f"Steps {_few(steps)} do not increase. Sort the snapshots, one per "
                "step."
            )
        if snapshots.shape[0] != self.coordinates.size:
            raise InvalidInputError(
                f"Snapshots have {snapshots.shape[0]} rows, the coordinates "
                f"{self.coordinates.size}. Pass the coordinates of the same system."
            )
        if self.losses is not None and self.losses.shape != steps.shape:
            raise InvalidInputError(
                f"Losses of shape {tuple(self.losses.shape)} were given for "
                f"{len(steps)} snapshots. Pass one per snapshot, or None."
            )
        object.__setattr__(self, "snapshots", snapshots.detach().clone())
        object.__setattr__(self, "steps", steps)
        if self.losses is not None:
            object.__setattr__(self, "losses", self.losses.detach().clone())

    @property
    def size(self) -> int:
        """Number P of coordinates."""
        return self.snapshots.shape[0]

    @property
    def times(self) -> Tensor:
        """The optimiser steps of the columns, shape ``(T,)``."""
        return self.steps

    @property
    def dt(self) -> float:
        """Optimiser steps between snapshots.

        Raises:
            InvalidInputError: If there is one snapshot or the spacing varies.
        """
        gaps = self.steps.diff()
        if len(gaps) == 0:
            raise InvalidInputError(
                f"One snapshot (step {int(self.steps[0])}) has no spacing. Record at "
                "least two."
            )
        if bool((gaps != gaps[0]).any()):
            raise InvalidInputError(
                f"The steps {_few(self.steps)} are not evenly spaced. Take a window() "
                "or every() of the trajectory that is."
            )
        return float(gaps[0])

    def window(self, start_step: int, stop_step: int) -> "Trajectory":
        """Return the snapshots between two steps, both included.

        Args:
            start_step: First optimiser step.
            stop_step: Last optimiser step.

        Returns:
            A trajectory.

        Raises:
            InvalidInputError: If no snapshot lies between them.
        """
        inside = (self.steps >= start_step) & (self.steps <= stop_step)
        if not bool(inside.any()):
            raise InvalidInputError(
                f"No snapshot lies in steps {start_step} to {stop_step}. Recorded: "
                f"{_few(self.steps)}."
            )
        return self._take(torch.nonzero(inside).reshape(-1))

    def every(self, n: int) -> "Trajectory":
        """Return each n-th snapshot, beginning with the first.

        Args:
            n: At least 1.

        Returns:
            A trajectory.

        Raises:
            InvalidInputError: If ``n`` is less than 1.
        """
        if n < 1:
            raise InvalidInputError(f"every({n}) was asked. Pass at least 1.")
        return self._take(torch.arange(0, len(self.steps), n))

    def state_at(self, step: int) -> Tensor:
        """Return a copy of the state at a recorded step.

        Args:
            step: One of ``steps``.

        Returns:
            Coordinates, shape ``(P,)``.

        Raises:
            InvalidInputError: If that step was not recorded.
        """
        found = torch.nonzero(self.steps == step).reshape(-1)
        if len(found) == 0:
            raise InvalidInputError(
                f"Step {step} was not recorded. Recorded: {_few(self.steps)}."
            )
        return self.snapshots[:, int(found[0])].clone()

    @staticmethod
    def from_states(
        states: Sequence[Tensor | Mapping[str, Tensor]] | Tensor,
        steps: Sequence[int] | Tensor,
        coordinates: Coordinates | None = None,
        *,
        losses: Tensor | None = None,
    ) -> "Trajectory":
        """Make a trajectory of states, flat or by name.

        Args:
            states: Vectors ``(P,)``, or name to tensor with ``coordinates``.
            steps: The optimiser step of each.
            coordinates: Of the states; needed for named ones. By default one tensor
                called ``state``.
            losses: One per state, or None.

        Returns:
            A trajectory.

        Raises:
            InvalidInputError: If there is no state, sizes differ, or named states
                come without coordinates.
        """
        columns = [_column(state, coordinates) for state in states]
        if not columns or len({column.shape for column in columns}) != 1:
            raise InvalidInputError(
                f"States of sizes {sorted({len(column) for column in columns})} were "
                "given. Pass at least one, all of one system."
            )
        return Trajectory(
            snapshots=torch.stack(columns).T,
            steps=_files.as_steps(steps),
            coordinates=coordinates or _plain(len(columns[0])),
            losses=losses,
            provenance=_provenance("trajectory.from_states", columns[0]),
        )

    @staticmethod
    def from_checkpoints(
        paths: Sequence[_files.Path],
        steps: Sequence[int] | Tensor | None = None,
        *,
        coordinates: Coordinates | None = None,
    ) -> "Trajectory":
        """Make a trajectory of dynprune checkpoints or files of named tensors.

        Args:
            paths: Safetensors files: checkpoints of ``dynprune.train``, or any
                others with one tensor per parameter.
            steps: The optimiser step of each file; None if all are checkpoints,
                which know their own.
            coordinates: What the states are laid out in, e.g. ``system.coordinates``.
                By default the checkpoint's own; for other files all floating-point
                tensors, buffers included, sorted by name.

        Returns:
            A trajectory.

        Raises:
            InvalidInputError: If a file is missing, truncated or a pickle, steps are
                unknown, or two files do not hold the same tensors.
        """
        if len(paths) == 0 or (steps is not None and len(steps) != len(paths)):
            raise InvalidInputError(
                f"{len(paths)} files were given with "
                f"{'no' if steps is None else len(steps)} steps. Pass at least one "
                "file, and one step for each."
            )
        columns, found = [], []
        first = coordinates
        for path in paths:
            state, own, step = _files.read_state(path, coordinates)
            first = first or own
            _check_same(path, own, first)
            columns.append(state)
            found.append(step)
        assert first is not None
        if steps is None and None in found:
            raise InvalidInputError(
                f"{paths[found.index(None)]} does not say its step. Pass steps=."
            )
        return Trajectory(
            snapshots=torch.stack(columns).T,
            steps=_files.as_steps(found if steps is None else steps),
            coordinates=first,
            provenance=_provenance("trajectory.from_checkpoints", columns[0]),
        )

    def save(self, path: _files.Path) -> None:
        """Write one safetensors file, atomically.

        Args:
            path: Where it shall be.
        """
        _files.write(
            path,
            snapshots=self.snapshots,
            steps=self.steps,
            losses=self.losses,
            coordinates=self.coordinates,
            provenance=self.provenance,
        )

    @staticmethod
    def load(path: _files.Path) -> "Trajectory":
        """Read what :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The trajectory.
        """
        return Trajectory(**_files.read(path))

    def summary(self) -> str:
        """Return a few lines a person reads."""
        norms = self._distances()
        lines = [
            f"Trajectory of {self.size} coordinates, {len(self.steps)} snapshots",
            f"steps     {_few(self.steps)}",
            f"distance  {float(norms[-1]):.4g} from the first state to the last",
        ]
        if self.losses is not None:
            lines.append(f"loss      first {float(self.losses[0]):.4g}")
        return "\n".join([*lines, f"made by   {self.provenance.made_by}"])

    def to_frame(self) -> Any:
        """Return a pandas frame with columns step, loss and norm, one row each."""
        import pandas as pd

        losses = (
            self.losses
            if self.losses is not None
            else torch.full((len(self.steps),), float("nan"))
        )
        frame = pd.DataFrame({
            "step": self.steps.numpy(),
            "loss": losses.cpu().double().numpy(),
            "norm": self.snapshots.norm(dim=0).cpu().double().numpy(),
        })
        frame.attrs["units"] = {"step": "optimiser steps", "norm": "parameter"}
        return frame

    def to_xarray(self) -> Any:
        """Return an xarray dataset with the axes parameter and step."""
        import xarray as xr

        return xr.Dataset(
            {"state": (("parameter", "step"), self.snapshots.cpu().numpy())},
            coords={"step": self.steps.numpy()},
            attrs={"made_by": self.provenance.made_by},
        )

    def plot(self, ax: Any = None) -> Any:
        """Draw the distance from the first state against the step.

        Args:
            ax: Matplotlib axes; a new figure by default.

        Returns:
            The axes.
        """
        return _plot.plot(ax, steps=self.steps, distances=self._distances())

    def __repr__(self) -> str:
        """Return one line."""
        return (
            f"Trajectory(P={self.size}, T={len(self.steps)}, "
            f"steps={_few(self.steps)}, {self.snapshots.dtype})"
        )

    def _distances(self) -> Tensor:
        first = self.snapshots[:, 0]
        return torch.stack([(column - first).norm() for column in self.snapshots.T])

    def _take(self, columns: Tensor) -> "Trajectory":
        return Trajectory(
            snapshots=self.snapshots[:, columns.to(self.snapshots.device)],
            steps=self.steps[columns],
            coordinates=self.coordinates,
            losses=None
            if self.losses is None
            else self.losses[columns.to(self.losses.device)],
            provenance=self.provenance,
        )


def _few(steps: Tensor) -> str:
    shown = [str(step) for step in steps.tolist()]
    if len(shown) > 6:
        shown = [*shown[:3], "…", *shown[-2:]]
    return ", ".join(shown)


def _plain(size: int) -> Coordinates:
    return Coordinates(names=("state",), shapes=((size,),))


def _column(
    state: Tensor | Mapping[str, Tensor], coordinates: Coordinates | None
) -> Tensor:
    if isinstance(state, Tensor):
        return state.detach()
    if coordinates is None:
        raise InvalidInputError(
            "Named states were given without coordinates. Pass system.coordinates."
        )
    return coordinates.flatten(state).detach()


def _check_same(path: object, own: Coordinates, first: Coordinates) -> None:
    same = own.names == first.names and own.shapes == first.shapes
    if same and own.survivors is not None and first.survivors is not None:
        same = torch.equal(own.survivors.cpu(), first.survivors.cpu())
    elif same:
        same = own.survivors is first.survivors
    if not same:
        raise InvalidInputError(
            f"{path} holds other tensors than the first file: "
            f"{sorted(set(own.names) ^ set(first.names)) or 'shapes or masks differ'}. "
            "Pass files of one run, or coordinates= with the tensors they share."
        )


def _provenance(made_by: str, column: Tensor) -> Provenance:
    return Provenance(
        made_by=made_by, dtype=str(column.dtype)[6:], device=str(column.device)
    )
