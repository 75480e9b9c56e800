"""What training many networks at once returns."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, final

from dynprune.core import Cost, Provenance
from dynprune.training import _plot
from dynprune.training._results import Run

How = Literal["stacked", "processes", "serial"]


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Runs:
    """Hold many training runs, in the order of their systems.

    Args:
        runs: What :func:`train` would have returned, one by one.
        how: How they were trained: in a stack, in processes or one after the other.
        stack: Largest number of networks in one stack; 1 if none was made.
        speedup: Steps per second of the stack over those one by one, by the stopwatch
            of the probe; NaN if it did not run.
        reason: Why they were trained that way.
        provenance: Where they come from.
    """

    runs: tuple[Run, ...]
    how: How
    stack: int = 1
    speedup: float = float("nan")
    reason: str = "asked for"
    provenance: Provenance

    @property
    def cost(self) -> Cost:
        """What all runs cost together."""
        return sum((run.cost for run in self.runs), Cost())

    def __len__(self) -> int:
        """Return the number of runs."""
        return len(self.runs)

    def __iter__(self) -> Iterator[Run]:
        """Return an iterator over the runs."""
        return iter(self.runs)

    def __getitem__(self, place: int) -> Run:
        """Return one run.

        Args:
            place: Of its system.

        Returns:
            The run.
        """
        return self.runs[place]

    def summary(self) -> str:
        """Return a few lines a person reads."""
        last = [float(run.history[1][-1]) for run in self.runs if run.cost.steps]
        loss = f"{min(last):.4g} to {max(last):.4g}" if last else "no step was made"
        ended = ", ".join(
            f"{sum(run.outcome is kind for run in self.runs)} {kind.name}"
            for kind in dict.fromkeys(run.outcome for run in self.runs)
        )
        return "\n".join([
            f"{len(self.runs)} runs, {self.how} ({self.reason})",
            f"loss      {loss} (last batch each)",
            f"cost      {self.cost.gradients:.4g} gradients, {self.cost.steps} steps",
            f"outcome   {ended}",
        ])

    def to_frame(self) -> Any:
        """Return a pandas frame with columns run, seed, step and loss."""
        import pandas as pd

        parts = [
            run.to_frame().assign(run=place, seed=run.provenance.seed)
            for place, run in enumerate(self.runs)
        ]
        columns = ["run", "seed", "step", "loss"]
        frame = pd.concat(parts, ignore_index=True)[columns]
        frame.attrs["units"] = {"step": "optimiser steps", "loss": "loss of the batch"}
        return frame

    def plot(self, ax: Any = None) -> Any:
        """Draw the loss of each batch against the step, a line for each run.

        Args:
            ax: Matplotlib axes; a new figure by default.

        Returns:
            The axes.
        """
        for run in self.runs:
            ax = _plot.plot(ax, steps=run.history[0], losses=run.history[1])
        return ax

    def __repr__(self) -> str:
        """Return one line."""
        return f"Runs({len(self.runs)}, how={self.how!r}, stack={self.stack})"
