"""What training with changing masks returns."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

from torch import Tensor

from dynprune.core import (
    Cost,
    InvalidInputError,
    Provenance,
    join_parts,
    load_result,
    part_of,
    save_tensors,
)
from dynprune.pruning._collapse import (
    CollapseInTraining,
    check_collapse,
    check_known,
)
from dynprune.pruning._from_scores import full_state, record
from dynprune.pruning._prunable import check_unmasked
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket
from dynprune.training import Move, Mover, Recipe, Run

_KIND = "pruning.SparseTraining"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class MaskUpdate:
    """Say what one change of the masks did.

    Args:
        step: Before which optimiser step it was made.
        kept: Weights kept after it.
        dropped: Weights that were kept before it and are not any more.
        grown: Weights that were not kept before it and are now.
    """

    step: int
    kept: int
    dropped: int
    grown: int


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class SparseTraining:
    """Hold the masks that training ended with, and what it trained.

    Args:
        ticket: The last masks with the state that training *started* from, to train
            again; its cost is that of the whole training.
        trained: The same masks with the trained state and buffers.
        run: The training; its coordinates are all weights, pruned ones zero.
        updates: Each change of the masks, in order.
    """

    ticket: Ticket
    trained: Ticket
    run: Run
    updates: tuple[MaskUpdate, ...]

    @property
    def provenance(self) -> Provenance:
        """What made it."""
        return self.ticket.provenance

    @property
    def cost(self) -> Cost:
        """Training, with every dense gradient that the masks needed."""
        return self.run.cost

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the tickets, the run and the updates to one safetensors file.

        Args:
            path: Where; the file is whole or absent.
        """
        tensors, metadata = join_parts({
            "ticket": self.ticket.pack(),
            "trained": self.trained.pack(),
            "run": self.run.pack(),
        })
        metadata |= {"kind": _KIND, "updates": [asdict(one) for one in self.updates]}
        save_tensors(path, tensors, metadata)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "SparseTraining":
        """Read what :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The training, its tensors on the CPU.

        Raises:
            InvalidInputError: If the file is missing, truncated, or no sparse training.
        """  # noqa: DOC502 - raised by load_result
        return load_result(
            path, _KIND, _unpack, what="a sparse training", writer="SparseTraining.save"
        )

    def summary(self) -> str:
        """Return five lines that a person reads."""
        ends = "none"
        if self.updates:
            first, last = self.updates[0], self.updates[-1]
            ends = f"{len(self.updates)}, steps {first.step} to {last.step}"
        return "\n".join([
            f"{self.provenance.made_by}, seed {self.provenance.seed}",
            f"kept      {self.ticket.kept} of {self.ticket.prunable_size} prunable "
            f"weights (density {self.ticket.density:.4g})",
            f"updates   {ends}; {sum(u.grown for u in self.updates)} weights grown, "
            f"{sum(u.dropped for u in self.updates)} dropped",
            f"cost      {self.cost.gradients:.4g} gradients, {self.cost.steps} steps",
            f"outcome   {self.run.outcome.value}",
        ])

    def to_frame(self) -> Any:
        """Return a pandas frame, one row per update: step, kept, dropped, grown."""
        import pandas as pd

        names = ("step", "kept", "dropped", "grown")
        frame = pd.DataFrame({
            name: [getattr(update, name) for update in self.updates] for name in names
        })
        frame.attrs["units"] = {"step": "optimiser steps"} | dict.fromkeys(
            names[1:], "weights"
        )
        return frame

    def plot(self, ax: Any = None) -> Any:
        """Draw the density, and the share of weights grown, against the step.

        Args:
            ax: Matplotlib axes; a new figure by default.

        Returns:
            The axes.
        """
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(figsize=(6, 4), layout="constrained")
        size = self.ticket.prunable_size
        steps = [update.step for update in self.updates]
        for name in ("kept", "grown"):
            shares = [getattr(update, name) / size for update in self.updates]
            ax.plot(steps, shares, marker=".", label=name)
        ax.set_xlabel("optimiser step")
        ax.set_ylabel("share of the prunable weights")
        ax.legend()
        return ax

    def __repr__(self) -> str:
        """Return one line."""
        return (
            f"SparseTraining({self.provenance.made_by!r}, "
            f"density={self.ticket.density:.4g}, updates={len(self.updates)}, "
            f"gradients={self.cost.gradients:.4g})"
        )


def _unpack(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> SparseTraining:
    return SparseTraining(
        ticket=Ticket.unpack(*part_of(tensors, metadata, "ticket")),
        trained=Ticket.unpack(*part_of(tensors, metadata, "trained")),
        run=Run.unpack(*part_of(tensors, metadata, "run")),
        updates=tuple(MaskUpdate(**one) for one in metadata["updates"]),
    )


@final
class Masks:
    """Keep the masks of a mover and note each change of them.

    Args:
        masks: Name to boolean tensor, in force from the first step on.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self.now = dict(masks)
        self.updates: list[MaskUpdate] = []
        self._started = False

    def start(self, mover: Mover) -> None:
        """Put the first masks in force; does nothing from the second call on.

        Args:
            mover: What is trained.

        Raises:
            InvalidInputError: If its optimiser evaluates the loss itself.
        """
        if self._started:
            return
        if mover.takes_closure:
            raise InvalidInputError(
                f"{type(mover.optimizer).__name__} evaluates the loss several times a "
                "step, with a memory over all weights: masks cannot change under it. "
                "Use SGD, Adam or another optimiser that steps along a gradient."
            )
        mover.set_masks(self.now)
        self._started = True

    def change(self, mover: Mover, step: int, masks: Mapping[str, Tensor]) -> None:
        """Put other masks in force.

        Args:
            mover: What is trained.
            step: Before which step.
            masks: Name to boolean tensor.
        """
        before, after = self.now, dict(masks)
        gone = sum(int((before[n] & ~after[n]).sum()) for n in after)
        new = sum(int((after[n] & ~before[n]).sum()) for n in after)
        kept = sum(int(mask.sum()) for mask in after.values())
        self.updates.append(MaskUpdate(step=step, kept=kept, dropped=gone, grown=new))
        self.now = after
        mover.set_masks(after)


def check_dense(system: GradientSystem, train: Recipe, collapse: str) -> None:
    """Check that a system can be trained with changing masks.

    Args:
        system: What is to be trained.
        train: How.
        collapse: What to do about one; ``"warn"`` or ``"ignore"``.

    Raises:
        InvalidInputError: If ``collapse`` is unknown, ``train`` is no Recipe, or the
            system is masked or has no prunable weight.
    """
    check_known(collapse, in_training=True)
    if not isinstance(train, Recipe):
        raise InvalidInputError(
            f"train is a {type(train).__name__}. Pass a dynprune.training.Recipe: "
            "masks change between its steps."
        )
    check_unmasked(system, "masks are chosen here")


def trained_with(
    system: GradientSystem,
    train: Recipe,
    masks: Masks,
    move: Move,
    *,
    made_by: str,
    settings: Mapping[str, Any],
    sources: tuple[str, ...],
    seed: int,
    record_every: int | None,
    collapse: CollapseInTraining,
    advice: str,
) -> SparseTraining:
    """Train with masks that ``move`` changes.

    Args:
        system: The dense system.
        train: How it is trained.
        masks: The first masks; ``move`` changes them.
        move: Makes each step.
        made_by: The public function.
        settings: Its knobs.
        sources: Keys of the citations.
        seed: Of data order and dropout.
        record_every: Steps between snapshots, or None.
        collapse: What to do about one, of the last masks.
        advice: What to try against it.

    Returns:
        What training ended with.
    """
    start = full_state(system, system.state)
    sparse = {
        name: part.masked_fill(~masks.now[name].to(part.device), 0.0)
        if name in masks.now
        else part
        for name, part in start.items()
    }
    buffers = system.buffers
    run = train(system.with_state(sparse), seed=seed, record=record_every, move=move)
    found = check_collapse(
        system,
        masks.now,
        density=settings["density"],
        collapse=collapse,
        advice=advice,
    )
    made = record(
        system,
        made_by,
        seed=seed,
        settings={**settings, "collapse": found},
        sources=sources,
    )
    return SparseTraining(
        ticket=Ticket.make(masks.now, start, buffers, provenance=made, cost=run.cost),
        trained=Ticket.make(
            masks.now,
            full_state(system, run.state),
            run.buffers,
            provenance=made,
            cost=run.cost,
        ),
        run=run,
        updates=tuple(masks.updates),
    )
