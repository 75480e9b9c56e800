"""What iterative magnitude pruning returns."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from dynprune.core import (
    Cost,
    InvalidInputError,
    Provenance,
    load_result,
    save_tensors,
)
from dynprune.pruning import _plot
from dynprune.tickets import Ticket

Items = tuple[tuple[str, Tensor], ...]
_KIND = "pruning.IMPRun"


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class IMPLevel:
    """Hold what was trained at one level, before the next pruning, on the CPU.

    Args:
        level: n; level 0 is dense.
        density: Kept / prunable weights while it was trained.
        state_items: Parameter name and trained tensor; pruned weights are zero.
        buffer_items: Buffer name and tensor after training.
        cost: What training this level took, from the rewind step on.
    """

    level: int
    density: float
    state_items: Items
    buffer_items: Items = ()
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        """Copy the tensors."""
        for slot in ("state_items", "buffer_items"):
            copies = tuple(
                (name, part.detach().to("cpu", copy=True))
                for name, part in getattr(self, slot)
            )
            object.__setattr__(self, slot, copies)

    @staticmethod
    def make(
        state: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        *,
        level: int,
        density: float,
        cost: Cost,
    ) -> "IMPLevel":
        """Make a level of dictionaries.

        Args:
            state: Parameter name to trained tensor.
            buffers: Buffer name to tensor.
            level: n.
            density: Kept / prunable weights.
            cost: What its training took.

        Returns:
            The level.
        """
        return IMPLevel(
            level=level,
            density=density,
            state_items=tuple(state.items()),
            buffer_items=tuple(buffers.items()),
            cost=cost,
        )

    @property
    def state(self) -> dict[str, Tensor]:
        """Parameter name to trained tensor, fresh copies; pruned weights are zero."""
        return {name: part.clone() for name, part in self.state_items}

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Buffer name to tensor after training, fresh copies."""
        return {name: part.clone() for name, part in self.buffer_items}

    def __repr__(self) -> str:
        """Return one line."""
        return f"IMPLevel({self.level}, density={self.density:.4g}, {self.cost})"


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class IMPRun:
    """Hold tickets and trained levels of iterative magnitude pruning.

    ``levels[n]`` was trained from ``tickets[n]``; ``tickets[n].cost`` is what it took
    to find that ticket (pre-run and all levels before it), ``levels[n].cost`` what its
    own training took.

    Args:
        tickets: One per density, the dense one first; with weight rewinding all with
            the same state, otherwise each with that of the level before (weights that
            went earlier as they were when they were last trained).
        levels: One per ticket.
        provenance: What made them.

    Raises:
        InvalidInputError: If there is none, or their numbers differ.
    """

    tickets: tuple[Ticket, ...]
    levels: tuple[IMPLevel, ...]
    provenance: Provenance

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InvalidInputError: If there is no level, or tickets and levels differ.
        """
        if not self.levels or len(self.tickets) != len(self.levels):
            raise InvalidInputError(
                f"The run has {len(self.tickets)} tickets and {len(self.levels)} "
                "levels. Pass one level for each ticket, at least one."
            )

    @property
    def densities(self) -> tuple[float, ...]:
        """Kept / prunable weights of each ticket."""
        return tuple(level.density for level in self.levels)

    @property
    def cost(self) -> Cost:
        """What the whole run took."""
        return self.tickets[-1].cost + self.levels[-1].cost

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the run to one safetensors file; a shared state is stored once.

        Args:
            path: Where; the file is whole or absent.
        """
        first = self.tickets[0]
        tensors = {f"state.{name}": part for name, part in first.state_items}
        tensors |= {f"buffer.{name}": part for name, part in first.buffer_items}
        own: list[int] = []
        for n, (ticket, level) in enumerate(
            zip(self.tickets, self.levels, strict=True)
        ):
            start = f"level.{n}"
            tensors |= {f"{start}.mask.{k}": part for k, part in ticket.mask_items}
            if not _same_start(first, ticket):
                own.append(n)
                tensors |= {f"{start}.from.state.{k}": t for k, t in ticket.state_items}
                tensors |= {
                    f"{start}.from.buffer.{k}": t for k, t in ticket.buffer_items
                }
            tensors |= {f"{start}.state.{k}": part for k, part in level.state_items}
            tensors |= {f"{start}.buffer.{k}": part for k, part in level.buffer_items}
        metadata = {
            "kind": _KIND,
            "names": {
                "mask": [name for name, _ in first.mask_items],
                "state": [name for name, _ in first.state_items],
                "buffer": [name for name, _ in first.buffer_items],
            },
            "own_state": own,
            "densities": list(self.densities),
            "found": [asdict(ticket.cost) for ticket in self.tickets],
            "trained": [asdict(level.cost) for level in self.levels],
            "tickets": [ticket.provenance.to_dict() for ticket in self.tickets],
            "provenance": self.provenance.to_dict(),
        }
        save_tensors(path, tensors, metadata)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "IMPRun":
        """Read a run that :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The run, its tensors on the CPU.

        Raises:
            InvalidInputError: If the file is missing, truncated, or no IMP run.
        """  # noqa: DOC502 - raised by load_result
        return load_result(
            path, _KIND, _unpack, what="an IMP run", writer="IMPRun.save"
        )

    def summary(self) -> str:
        """Return five lines that a person reads."""
        settings = dict(self.provenance.settings)
        return "\n".join([
            f"IMP run over {len(self.levels)} levels, seed {self.provenance.seed}",
            f"density   {self.densities[0]:.4g} to {self.densities[-1]:.4g} "
            f"({self.tickets[-1].kept} of {self.tickets[-1].prunable_size} weights)",
            f"rewind    {settings.get('rewind', 'weights')}, to step "
            f"{settings.get('rewind_step', 0)}",
            f"scope     {settings.get('scope', 'global')}",
            f"cost      {self.cost.gradients:.4g} gradients, {self.cost.steps} steps",
        ])

    def to_frame(self) -> Any:
        """Return a pandas frame, one row per level.

        Columns: level, density, kept, and the gradients and steps that it took to find
        the ticket (``found_…``) and to train it (``trained_…``).
        """
        import pandas as pd

        rows = [
            {
                "level": level.level,
                "density": level.density,
                "kept": ticket.kept,
                "found_gradients": ticket.cost.gradients,
                "found_steps": ticket.cost.steps,
                "trained_gradients": level.cost.gradients,
                "trained_steps": level.cost.steps,
            }
            for ticket, level in zip(self.tickets, self.levels, strict=True)
        ]
        frame = pd.DataFrame(rows)
        frame.attrs["units"] = {
            "density": "kept / prunable",
            "kept": "weights",
            "found_gradients": "full-data gradients",
            "found_steps": "optimiser steps",
            "trained_gradients": "full-data gradients",
            "trained_steps": "optimiser steps",
        }
        return frame

    def plot(self, ax: Any = None) -> Any:
        """Draw the density of each layer against the level.

        Args:
            ax: Matplotlib axes; a new figure by default.

        Returns:
            The axes.
        """
        rows = [ticket.layer_densities for ticket in self.tickets]
        return _plot.plot(rows, self.densities, ax)

    def __repr__(self) -> str:
        """Return one line."""
        return (
            f"IMPRun({len(self.levels)} levels, density {self.densities[0]:.4g} to "
            f"{self.densities[-1]:.4g}, gradients={self.cost.gradients:.4g})"
        )


def _same_start(a: Ticket, b: Ticket) -> bool:
    ours, theirs = (
        {f"{kind}.{name}": part for kind, items in groups for name, part in items}
        for groups in (
            (("state", ticket.state_items), ("buffer", ticket.buffer_items))
            for ticket in (a, b)
        )
    )
    return all(torch.equal(part, theirs[name]) for name, part in ours.items())


def _unpack(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> IMPRun:
    names = metadata["names"]

    def items(kind: str, start: str = "") -> dict[str, Tensor]:
        return {name: tensors[f"{start}{kind}.{name}"] for name in names[kind]}

    own = metadata.get("own_state", [])  # older files have none
    tickets: list[Ticket] = []
    levels = []
    for n, density in enumerate(metadata["densities"]):
        start = f"level.{n}."
        origin = f"{start}from." if n in own else ""
        shared = tickets[0] if tickets and not origin else None
        tickets.append(
            Ticket(
                mask_items=tuple(items("mask", start).items()),
                state_items=shared.state_items
                if shared
                else tuple(items("state", origin).items()),
                buffer_items=shared.buffer_items
                if shared
                else tuple(items("buffer", origin).items()),
                provenance=Provenance.from_dict(metadata["tickets"][n]),
                cost=Cost(**metadata["found"][n]),
            )
        )
        levels.append(
            IMPLevel.make(
                items("state", start),
                items("buffer", start),
                level=n,
                density=density,
                cost=Cost(**metadata["trained"][n]),
            )
        )
    return IMPRun(
        tickets=tuple(tickets),
        levels=tuple(levels),
        provenance=Provenance.from_dict(metadata["provenance"]),
    )
