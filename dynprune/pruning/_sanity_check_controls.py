"""Copies of a ticket that forget which weights it keeps, or their values."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from dynprune.core import InvalidInputError, derive_seed, generator
from dynprune.pruning._select import check_scores
from dynprune.pruning._warn import warn
from dynprune.tickets import Ticket, reinitialise, shuffle, zeros_where_pruned

MakeModel = Callable[[int], nn.Module]
TICKET = "ticket"
SHUFFLED, REINITIALISED = "shuffled", "reinitialised"
CONTROLS = (SHUFFLED, REINITIALISED, "inverted", "random")


def make_controls(
    ticket: Ticket,
    make_model: MakeModel,
    *,
    scores: Mapping[str, Tensor] | None,
    seed: int,
) -> dict[str, Ticket]:
    """Make the controls of one ticket.

    Args:
        ticket: What is checked.
        make_model: Seed to a newly initialised model.
        scores: What the masks were made of, or None.
        seed: Of the permutations and of the new states.

    Returns:
        Control to ticket, in the order of ``CONTROLS``.
    """
    fresh = make_model(derive_seed("pruning.sanity_check", "state", seed) % 2**31)
    own = dict(ticket.state_items)
    state = {
        name: part.detach().to(device="cpu", dtype=own[name].dtype)
        if name in own
        else part.detach()
        for name, part in fresh.named_parameters()
    }
    held = dict(ticket.buffer_items)
    buffers = {
        name: part.detach().to(device="cpu", dtype=held[name].dtype)
        if name in held
        else part.detach()
        for name, part in fresh.named_buffers()
    }
    draw = derive_seed("pruning.sanity_check", "masks", seed)
    again = derive_seed("pruning.sanity_check", "random", seed)
    return {
        SHUFFLED: shuffle(ticket, seed=draw),
        REINITIALISED: reinitialise(ticket, state, buffers),
        "inverted": inverted(ticket, scores, seed=draw),
        "random": reinitialise(shuffle(ticket, seed=again), state, buffers),
    }


def inverted(
    ticket: Ticket, scores: Mapping[str, Tensor] | None, *, seed: int
) -> Ticket:
    """Keep in each layer as many weights as the ticket, those it would keep last.

    Args:
        ticket: What is inverted.
        scores: Of its masks: the lowest are kept, ties to the lower flat index. None
            keeps weights that the ticket removes, drawn at random; where a layer
            removes fewer than it keeps, all of them and some of the others.
        seed: Of the draw.

    Returns:
        A ticket of the same layer densities and state.
    """
    if scores is not None:
        check_scores(
            scores, {name: tuple(mask.shape) for name, mask in ticket.mask_items}
        )
    masks = {}
    for name, mask in ticket.mask_items:
        flat = mask.reshape(-1)
        if scores is None:
            draw = generator(
                derive_seed("pruning.sanity_check", "inverted", seed, name)
            )
            rank = flat.double() + torch.rand(
                flat.shape, generator=draw, dtype=torch.float64
            )
        else:
            rank = scores[name].detach().reshape(-1).cpu().double()
        kept = torch.zeros_like(flat)
        kept[rank.argsort(stable=True)[: int(flat.sum())]] = True
        masks[name] = kept.view(mask.shape)
    return Ticket.make(
        masks,
        dict(ticket.state_items),
        dict(ticket.buffer_items),
        provenance=ticket.provenance,
        cost=ticket.cost,
    )


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
