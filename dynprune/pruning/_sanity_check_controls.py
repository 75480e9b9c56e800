"""Copies of a ticket that forget which weights it keeps, or their values."""

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn

from dynprune.core import InvalidInputError, derive_seed
from dynprune.pruning._warn import warn
from dynprune.system import GradientSystem
from dynprune.tickets import (
    Ticket,
    invert,
    reinitialise,
    shuffle,
    zeros_where_pruned,
)

MakeModel = Callable[[int], nn.Module]
TICKET = "ticket"
SHUFFLED, REINITIALISED = "shuffled", "reinitialised"
CONTROLS = (SHUFFLED, REINITIALISED, "inverted", "random")
Named = Mapping[str, Tensor]


def make_controls(
    ticket: Ticket,
    system: GradientSystem,
    make_model: MakeModel,
    *,
    scores: Mapping[str, Tensor] | None,
    seed: int,
) -> dict[str, Ticket]:
    """Make the controls of one ticket.

    Args:
        ticket: What is checked.
        system: What it was made of: parameters that it does not train, and buffers of
            modules that have no others, are as in the ticket.
        make_model: Seed to a newly initialised model.
        scores: What the masks were made of, or None.
        seed: Of the permutations and of the new states.

    Returns:
        Control to ticket, in the order of ``CONTROLS``.
    """
    fresh = make_model(derive_seed("pruning.sanity_check", "state", seed) % 2**31)
    fixed, still = _untrained(system)
    state = _renewed(fresh.named_parameters(), dict(ticket.state_items), fixed)
    buffers = _renewed(fresh.named_buffers(), dict(ticket.buffer_items), still)
    draw = derive_seed("pruning.sanity_check", "masks", seed)
    again = derive_seed("pruning.sanity_check", "random", seed)
    return {
        SHUFFLED: shuffle(ticket, seed=draw),
        REINITIALISED: reinitialise(ticket, state, buffers),
        "inverted": invert(ticket, scores, seed=draw),
        "random": reinitialise(shuffle(ticket, seed=again), state, buffers),
    }


def _untrained(system: GradientSystem) -> tuple[set[str], set[str]]:
    # parameters, and buffers that belong to nothing else: a backbone's statistics
    own = dict(system.module.named_parameters())
    moved = {id(own[name]) for name in system.names}
    still: set[str] = set()
    for prefix, module in system.module.named_modules():
        parts = [id(part) for part in module.parameters()]
        if parts and moved.isdisjoint(parts):
            still |= {name for name, _ in module.named_buffers(prefix=prefix)}
    return own.keys() - set(system.names), still


def _renewed(
    fresh: Iterable[tuple[str, Tensor]], own: Named, fixed: set[str]
) -> dict[str, Tensor]:
    found = {}
    for name, part in fresh:
        if name in own and name in fixed:
            found[name] = own[name]
        elif name in own:
            found[name] = part.detach().to(device="cpu", dtype=own[name].dtype)
        else:
            found[name] = part.detach()
    return found


def check_ticket(ticket: Ticket) -> None:
    """Refuse a ticket that keeps all, of which every control would be a copy.

    Args:
        ticket: What is to be checked.

    Raises:
        InvalidInputError: If no weight is pruned.

    Warns:
        NumericalWarning: If its state is zero where it prunes.
    """
    if ticket.kept == ticket.prunable_size:
        raise InvalidInputError(
            f"A sanity check was asked of a ticket that keeps all {ticket.kept} "
            "weights: its mask says nothing. Pass one of a density below 1."
        )
    bare = zeros_where_pruned(ticket)
    if bare:
        warn(
            f"The ticket's state is zero where it prunes, in {', '.join(bare[:4])}: "
            "its shuffled and inverted copies uncover zeros, and are no control of "
            "where the weights are. Pass a ticket of a state that was not trained "
            "under the mask, as dp.tickets.reinitialise(ticket, state) makes."
        )
