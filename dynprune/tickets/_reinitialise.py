"""The sanity check that keeps the masks and forgets the initial weights."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from dynprune.tickets._apply import check_same
from dynprune.tickets._given import check_tickets
from dynprune.tickets._ticket import Ticket


def reinitialise(
    ticket: Ticket,
    state: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor] | None = None,
) -> Ticket:
    r"""Return the same masks with another state to train from.

    The network becomes :math:`m \odot \theta'` with θ' another initialisation.

    Args:
        ticket: The ticket.
        state: Parameter name to tensor, the same names, shapes and dtypes.
        buffers: Buffer name to tensor; the ticket's own by default.

    Returns:
        A new ticket; its cost is that of the old one.

    Raises:
        InvalidInputError: If names, shapes or dtypes differ; it says which.

    Source:
        Frankle and Carbin, *The Lottery Ticket Hypothesis*, ICLR 2019.

    Example:
        >>> import torch
        >>> kept = {"w": torch.tensor([True, False])}
        >>> ticket = Ticket.make(kept, {"w": torch.zeros(2)})
        >>> reinitialise(ticket, {"w": torch.ones(2)}).masked_state
        {'w': tensor([1., 0.])}
    """  # noqa: DOC502 - raised by check_same
    check_tickets(ticket=ticket)
    check_same("parameters", dict(ticket.state_items), state)
    own = dict(ticket.buffer_items)
    if buffers is not None:
        check_same("buffers", own, buffers)
    others = own if buffers is None else buffers
    return replace(
        ticket,
        state_items=tuple((name, state[name]) for name, _ in ticket.state_items),
        buffer_items=tuple((name, others[name]) for name in own),
        provenance=replace(
            ticket.provenance,
            made_by="tickets.reinitialise",
            settings=(
                ("origin", ticket.provenance.made_by),
                ("origin_seed", ticket.provenance.seed),
            ),
            sources=tuple(dict.fromkeys((*ticket.provenance.sources, "imp"))),
        ),
    )
