"""Record the user's own loop."""

from types import TracebackType
from typing import final

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, Provenance
from dynprune.system import GradientSystem
from dynprune.training import _files
from dynprune.trajectory import Trajectory

_WRITE_EVERY = 50


@final
class Recorder:
    """Take snapshots of the user's live model inside her own loop.

    Snapshots are kept as flat copies in the system's coordinates. With ``path`` the
    trajectory is written on leaving the block, exception or not, and after every 50
    snapshots, atomically.

    Args:
        system: A system of the model that the loop moves.
        every: Keep the steps that are this many after the first one, and multiples.
        path: A safetensors file for the trajectory, or None.

    Raises:
        InvalidInputError: If ``every`` is less than 1.

    Example:
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> data = torch.ones(1, 1), torch.ones(1, 1)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, data)
        >>> with Recorder(system, every=2) as rec:
        ...     for step in range(5):
        ...         rec.snapshot(step)
        ...         _ = torch.nn.init.constant_(net.weight, step)
        >>> rec.trajectory.steps, rec.trajectory.snapshots[:, 1:]
        (tensor([0, 2, 4]), tensor([[1., 3.]]))
    """

    def __init__(
        self,
        system: GradientSystem,
        every: int = 10,
        path: _files.Path | None = None,
    ) -> None:
        if every < 1:
            raise InvalidInputError(f"every is {every}. Pass at least 1.")
        self._system = system
        self._every = every
        self._path = path
        self._first: int | None = None
        self._last: int | None = None
        self._states: list[Tensor] = []
        self._steps: list[int] = []
        self._losses: list[float] = []

    def __enter__(self) -> "Recorder":
        """Return the recorder."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write the file, if there is one, whatever ended the block.

        Args:
            kind: Of the exception, or None.
            error: The exception, or None.
            trace: Its traceback, or None.
        """
        if self._path is not None and self._steps:
            self.trajectory.save(self._path)

    def snapshot(self, step: int, loss: float | Tensor | None = None) -> None:
        """Keep the model's present state if the step is due.

        Args:
            step: The optimiser step that the loop has reached.
            loss: The loss there, if it is to be kept.

        Raises:
            InvalidInputError: If steps do not increase, or the model's parameters
                are no longer those of the system.
        """
        if self._last is not None and step <= self._last:
            raise InvalidInputError(
                f"Step {step} came after step {self._last}. Pass increasing steps; "
                "use a new Recorder for a new run."
            )
        self._last = step
        self._first = step if self._first is None else self._first
        if (step - self._first) % self._every:
            return
        live = {
            name: part.detach() for name, part in self._system.model.named_parameters()
        }
        self._states.append(self._system.flatten(live))
        self._steps.append(step)
        value = loss.detach() if isinstance(loss, Tensor) else loss
        self._losses.append(float("nan") if value is None else float(value))
        if self._path is not None and len(self._steps) % _WRITE_EVERY == 0:
            self.trajectory.save(self._path)

    @property
    def trajectory(self) -> Trajectory:
        """The snapshots so far.

        Raises:
            InvalidInputError: If there is none.
        """
        if not self._steps:
            raise InvalidInputError(
                "Nothing was recorded. Call snapshot(step) inside the loop."
            )
        losses = torch.tensor(self._losses, dtype=torch.float64)
        system = self._system
        return Trajectory(
            snapshots=torch.stack(self._states).T,
            steps=torch.tensor(self._steps),
            coordinates=system.coordinates,
            losses=None if bool(losses.isnan().all()) else losses,
            provenance=Provenance(
                made_by="training.Recorder",
                dtype=str(system.dtype).removeprefix("torch."),
                device=str(system.device),
                examples=round(system.examples),
                settings=(("every", self._every),),
            ),
        )
