"""What a run has gathered so far."""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor


@final
class Progress:
    """Gather losses and snapshots of a run as it goes.

    Losses stay on the device until they are asked for: no step waits for one.

    Args:
        start: First step.
        record: Steps between snapshots, or None.
    """

    def __init__(self, *, start: int, record: int | None) -> None:
        self.start = start
        self._record = record
        self._checked: list[Tensor] = []
        self.step = start
        self.seen = 0.0
        self.pending: list[Tensor] = []
        self.snapshots: list[Tensor] = []
        self.snapshot_steps: list[int] = []

    def next_snapshot(self) -> int | None:
        """Return the next step at which a snapshot is due, or None."""
        if self._record is None:
            return None
        done = (self.step - self.start) // self._record
        return self.start + (done + 1) * self._record

    def snapshot(self, state: Callable[[], Tensor]) -> None:
        """Take a snapshot if one is due at this step and not yet taken.

        Args:
            state: Gives the coordinates.
        """
        if self._record is None or (self.step - self.start) % self._record:
            return
        if not self.snapshot_steps or self.snapshot_steps[-1] < self.step:
            self.snapshots.append(state())
            self.snapshot_steps.append(self.step)

    def check(self) -> int | None:
        """Look at the losses since the last look.

        Returns:
            The first step whose loss was not finite, or None.
        """
        if not self.pending:
            return None
        losses = torch.stack(self.pending)
        first = self.step - len(self.pending)
        self._checked.append(losses)
        self.pending.clear()
        bad = torch.nonzero(~torch.isfinite(losses)).reshape(-1)
        return first + int(bad[0]) if len(bad) else None

    def losses(self) -> Tensor:
        """Return the losses of all steps that :meth:`check` has seen."""
        return torch.cat(self._checked) if self._checked else torch.zeros(0)

    def restore(
        self,
        *,
        step: int,
        seen: float,
        losses: Tensor,
        snapshots: list[Tensor],
        snapshot_steps: list[int],
    ) -> None:
        """Take over what a checkpoint holds.

        Args:
            step: Next step.
            seen: Weight of the batches of all gradients so far.
            losses: Of the steps so far.
            snapshots: So far.
            snapshot_steps: Their steps.
        """
        self.step, self.seen = step, seen
        self._checked = [losses] if len(losses) else []
        self.snapshots, self.snapshot_steps = snapshots, snapshot_steps
