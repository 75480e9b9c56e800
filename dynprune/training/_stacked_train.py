"""The optimiser loop of a stack of networks."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from dynprune.core import (
    ConvergenceError,
    derive_seed,
    isolated,
    seeded_generators,
    track,
)
from dynprune.system import GradientSystem, is_resident
from dynprune.training._mover import Mover
from dynprune.training._order import AbstractOrder, stream
from dynprune.training._progress import Progress
from dynprune.training._recipe import Recipe
from dynprune.training._results import Run
from dynprune.training._stacked_mover import StackedMover
from dynprune.training._stacked_order import StackedOrder
from dynprune.training._train import _LOOK_EVERY, _finish, _order, _span, _where

Weigh = Callable[[Any], list[float]]


def train_stacked(
    systems: Sequence[GradientSystem],
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    start_step: int,
    stop_step: int | None,
    record: int | None,
    progress: bool,
    throw: bool,
) -> list[Run]:
    """Train R alike systems as one stack, each as :func:`train` would alone.

    Args:
        systems: Checked to be alike.
        recipe: How to train.
        seeds: One for each.
        start_step: Where data order and schedule begin.
        stop_step: Stop before this step; the end by default.
        record: Steps between snapshots, or None.
        progress: Draw a bar.
        throw: Raise at the first loss that is not finite.

    Returns:
        One run for each system.

    Raises:
        ConvergenceError: If a loss is NaN or infinite; carries that run so far.
    """  # noqa: DOC502 - raised by the loop
    data = systems[0].data if recipe.data is None else recipe.data
    with ExitStack() as held:
        for source in (systems[0].data, data):
            held.enter_context(seeded_generators(source, seeds[0]))
        held.enter_context(isolated(derive_seed("noise", tuple(seeds), start_step)))
        order, weigh, own = batches_of(systems[0], recipe, seeds)
        total, stop = _span(order, recipe.steps, None, start_step, stop_step)
        mover = StackedMover(
            systems,
            recipe.optimizer,
            schedule=recipe.schedule,
            training=recipe.mode == "train",
            step=start_step,
            own=own,
            noise="same" if len(set(seeds)) == 1 else "different",
            capture=recipe.capture,
        )
        settings = {
            "steps": total,
            "start_step": start_step,
            "mode": recipe.mode,
            "batch_size": order.batch_size,
            "record": record,
            "how": "stacked",
            "stack": len(systems),
        }
        if recipe.capture:
            settings["capture"] = True
        loop = _Loop(systems, recipe, seeds, mover, settings, record=record)
        loop.move(order, weigh, start=start_step, stop=stop, show=progress, throw=throw)
        return loop.runs()


def batches_of(
    system: GradientSystem, recipe: Recipe, seeds: Sequence[int]
) -> tuple[AbstractOrder, Weigh, bool]:
    """Return the order of the batches of all runs.

    Args:
        system: Any of the runs.
        recipe: How they train.
        seeds: One for each run.

    Returns:
        The order; the weight of each run's batch; whether each has one of its own.
    """
    source = system if recipe.data is None else system.with_data(recipe.data)
    data = source.data
    resident = is_resident(data)
    if len(set(seeds)) == 1 or (resident and recipe.batch_size >= len(data[1])):
        size = recipe.batch_size if resident else None
        order = _order(source, size, seeds[0])
        return order, lambda batch: [order.weight(batch)] * len(seeds), False
    own = StackedOrder(source, data, batch_size=recipe.batch_size, seeds=seeds)
    return own, own.weights, True


@final
class _Loop:
    """Move a stack and gather what each run is to return.

    Args:
        systems: Where the runs start from.
        recipe: How they train.
        seeds: One for each.
        mover: The stack.
        settings: Of the runs, for their provenance.
        record: Steps between snapshots, or None.
    """

    def __init__(
        self,
        systems: Sequence[GradientSystem],
        recipe: Recipe,
        seeds: Sequence[int],
        mover: StackedMover,
        settings: dict[str, Any],
        *,
        record: int | None,
    ) -> None:
        self._systems, self._recipe, self._seeds = systems, recipe, seeds
        self._mover, self._settings, self._record = mover, settings, record
        self._start = self._step = settings["start_step"]
        self._seen = [0.0] * len(systems)
        self._pending: list[Tensor] = []
        self._checked: list[Tensor] = []
        self._snapshots: list[list[Tensor]] = [[] for _ in systems]
        self._snapshot_steps: list[int] = []
        self._done: dict[int, Run] = {}

    def move(
        self,
        order: AbstractOrder,
        weigh: Weigh,
        *,
        start: int,
        stop: int,
        show: bool,
        throw: bool,
    ) -> None:
        """Make the steps from start to stop.

        Args:
            order: Of the batches.
            weigh: Weight of each run's batch.
            start: First step.
            stop: One after the last step.
            show: Draw a bar.
            throw: Raise at the first loss that is not finite.
        """
        self._snapshot()
        batches = stream(order, start=start, stop=stop)
        shown = track(
            batches, label="training.train_many", show=show, total=stop - start
        )
        with closing(batches):
            for batch in shown:
                self._pending.append(self._mover.step(batch))
                for run, weight in enumerate(weigh(batch)):
                    self._seen[run] += weight
                self._step += 1
                self._snapshot()
                if self._step == stop or self._step % _LOOK_EVERY == 0:
                    self._look(order, throw=throw)
                    if len(self._done) == len(self._systems):
                        return

    def runs(self) -> list[Run]:
        """Return the runs, in the order of the systems."""
        return [
            self._done[run] if run in self._done else self._finished(run, None)
            for run in range(len(self._systems))
        ]

    def _snapshot(self) -> None:
        if self._record is None or (self._step - self._start) % self._record:
            return
        self._snapshot_steps.append(self._step)
        for run, kept in enumerate(self._snapshots):
            if run not in self._done:
                kept.append(self._mover.state(run))

    def _look(self, order: AbstractOrder, *, throw: bool) -> None:
        losses = torch.stack(self._pending)
        first = self._step - len(self._pending)
        self._checked.append(losses)
        self._pending.clear()
        bad, whole = ~torch.isfinite(losses), self._mover.finite()
        if not bool(bad.any()) and bool(whole.all()):
            return
        for run in range(len(self._systems)):
            if run in self._done:
                continue
            steps = torch.nonzero(bad[:, run]).reshape(-1)
            failed = first + int(steps[0]) if len(steps) else self._step
            if len(steps) or not bool(whole[run]):
                self._done[run] = self._finished(run, failed)
                if throw:
                    where = _where(order, failed, self._done[run])
                    raise ConvergenceError(
                        f"Run {run} (seed {self._seeds[run]}): {where}", self._done[run]
                    )

    def _finished(self, run: int, failed: int | None) -> Run:
        system, seed = self._systems[run], self._seeds[run]
        # the network alone where it ended, so that a run is made as train makes it
        one = Mover(
            system,
            self._recipe.optimizer,
            schedule=self._recipe.schedule,
            training=self._recipe.mode == "train",
            step=0,
        )
        one.load(self._mover.state(run), self._mover.buffers(run))
        gathered = Progress(start=self._start, record=self._record)
        losses = [part[:, run] for part in self._checked]
        gathered.restore(
            step=self._step,
            seen=self._seen[run],
            losses=torch.cat(losses) if losses else torch.zeros(0),
            snapshots=self._snapshots[run],
            snapshot_steps=list(self._snapshot_steps),
        )
        made = _finish(system, one, gathered, seed, self._settings, failed)
        record = replace(made.provenance, made_by="training.train_many")
        return replace(made, provenance=record)
