"""What the flow reads: the levels of an IMP run, ours or anyone's."""

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

from torch import Tensor

from dynprune.core import InvalidInputError

Magnitude = Literal["L1", "L2"]
Stage = Literal["before", "after"]
Normalisation = Literal["share", "absolute"]


class TicketLike(Protocol):
    """A ticket; only retraining reads more of it than the masks."""

    @property
    def masks(self) -> dict[str, Tensor]:
        """Name to boolean tensor, True = kept."""
        ...

    @property
    def state(self) -> dict[str, Tensor]:
        """Name to the parameter that it is trained from."""
        ...

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Name to buffer."""
        ...


class LevelLike(Protocol):
    """What was trained at one level, before the next pruning."""

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Name to trained parameter."""
        ...


class RunLike(Protocol):
    """An IMP run: ticket n is what level n was trained with; level 0 is dense."""

    @property
    def tickets(self) -> Sequence[TicketLike]:
        """One ticket per level."""
        ...

    @property
    def levels(self) -> Sequence[LevelLike]:
        """One trained state per level."""
        ...


def check_choice(what: str, chosen: str, known: tuple[str, ...]) -> None:
    """Refuse a choice that is none of the known ones.

    Args:
        what: The name of the argument.
        chosen: Its value.
        known: What it may be.

    Raises:
        InvalidInputError: If it is none of them.
    """
    if chosen not in known:
        raise InvalidInputError(
            f"{what}={chosen!r} was asked for. Use one of {', '.join(known)}."
        )


def check_run(run: RunLike) -> tuple[str, ...]:
    """Check that the levels of a run fit together.

    Args:
        run: The run.

    Returns:
        Names of its masked tensors.

    Raises:
        InvalidInputError: If it has no level, tickets and levels differ in number, or
            a level lacks a masked tensor or has it in another shape.
    """
    tickets, levels = run.tickets, run.levels
    if not levels or len(tickets) != len(levels):
        raise InvalidInputError(
            f"The run has {len(tickets)} tickets and {len(levels)} levels. Pass a "
            "finished IMP run: one ticket for every level, the dense one first."
        )
    names = tuple(tickets[0].masks)
    for n, (ticket, level) in enumerate(zip(tickets, levels, strict=True)):
        masks, state = ticket.masks, level.state
        if not masks or tuple(masks) != names:
            raise InvalidInputError(
                f"Level {n} masks {', '.join(masks) or 'nothing'}, level 0 "
                f"{', '.join(names) or 'nothing'}. Pass the levels of one network."
            )
        for name in names:
            if name not in state or state[name].shape != masks[name].shape:
                found = tuple(state[name].shape) if name in state else "no tensor"
                raise InvalidInputError(
                    f"Level {n} has {found} for {name!r}, its mask "
                    f"{tuple(masks[name].shape)}. Pass the trained state of the "
                    "network that the ticket masks."
                )
    return names


def check_runs(runs: Sequence[RunLike]) -> tuple[str, ...]:
    """Check that several runs are of one network.

    Args:
        runs: One per seed.

    Returns:
        Names of their masked tensors.

    Raises:
        InvalidInputError: If there is none, or they differ in tensors or levels.
    """
    if not runs:
        raise InvalidInputError(
            "No IMP run was given. Pass a list with one run per seed."
        )
    names = check_run(runs[0])
    for place, run in enumerate(runs[1:], start=1):
        if check_run(run) != names or len(run.levels) != len(runs[0].levels):
            raise InvalidInputError(
                f"Run {place} has {len(run.levels)} levels of "
                f"{', '.join(run.tickets[0].masks)}; run 0 has "
                f"{len(runs[0].levels)} of {', '.join(names)}. Pass runs of one "
                "network at the same densities."
            )
    return names
