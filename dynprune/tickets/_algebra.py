"""Set algebra on the weights that tickets keep."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from dynprune.core import InvalidInputError
from dynprune.tickets._apply import differences, listed
from dynprune.tickets._given import check_tickets
from dynprune.tickets._ticket import Ticket

Choice = Literal["same", "first", "second"]


def union(a: Ticket, b: Ticket, *, state: Choice = "same") -> Ticket:
    r"""Keep what either ticket keeps, :math:`m = m_a \lor m_b`.

    Args:
        a: The first ticket.
        b: The second, of the same network.
        state: ``"same"`` asks that both are trained from the same parameters and
            buffers; ``"first"`` or ``"second"`` says whose to take.

    Returns:
        A new ticket; its cost is the sum of the two.

    Raises:
        InvalidInputError: If names, shapes or dtypes differ, or with
            ``state="same"`` the states; it says which.

    Example:
        >>> a, b = (
        ...     Ticket.make({"w": torch.tensor(kept)}, {"w": torch.ones(3)})
        ...     for kept in ([True, True, False], [False, True, False])
        ... )
        >>> union(a, b).masks["w"]
        tensor([ True,  True, False])
    """  # noqa: DOC502 - raised by _combined
    masks = {name: own | other for name, own, other in _pairs(a, b)}
    return _combined("union", a, b, masks, state)


def intersection(a: Ticket, b: Ticket, *, state: Choice = "same") -> Ticket:
    r"""Keep what both tickets keep, :math:`m = m_a \land m_b`.

    Args:
        a: The first ticket.
        b: The second, of the same network.
        state: See :func:`union`.

    Returns:
        A new ticket; its cost is the sum of the two.

    Raises:
        InvalidInputError: See :func:`union`; or if nothing is left.

    Example:
        >>> a, b = (
        ...     Ticket.make({"w": torch.tensor(kept)}, {"w": torch.ones(3)})
        ...     for kept in ([True, True, False], [False, True, False])
        ... )
        >>> intersection(a, b).masks["w"]
        tensor([False,  True, False])
    """  # noqa: DOC502 - raised by _combined
    masks = {name: own & other for name, own, other in _pairs(a, b)}
    return _combined("intersection", a, b, masks, state)


def difference(a: Ticket, b: Ticket, *, state: Choice = "same") -> Ticket:
    r"""Keep what the first ticket keeps and the second does not, :math:`m_a \neg m_b`.

    Args:
        a: The first ticket.
        b: The second, of the same network.
        state: See :func:`union`.

    Returns:
        A new ticket; its cost is the sum of the two.

    Raises:
        InvalidInputError: See :func:`union`; or if nothing is left.

    Example:
        >>> a, b = (
        ...     Ticket.make({"w": torch.tensor(kept)}, {"w": torch.ones(3)})
        ...     for kept in ([True, True, False], [False, True, False])
        ... )
        >>> difference(a, b).masks["w"]
        tensor([ True, False, False])
    """  # noqa: DOC502 - raised by _combined
    masks = {name: own & ~other for name, own, other in _pairs(a, b)}
    return _combined("difference", a, b, masks, state)


def complement(ticket: Ticket) -> Ticket:
    r"""Keep exactly what a ticket prunes, :math:`m = \neg m_a`; state and buffers stay.

    Its density is one minus the ticket's. For a control at the ticket's own layer
    densities see :func:`invert`.

    Args:
        ticket: The ticket.

    Returns:
        A new ticket; its cost is that of the old one.

    Raises:
        InvalidInputError: If the ticket prunes nothing.

    Example:
        >>> kept = {"w": torch.tensor([True, False])}
        >>> complement(Ticket.make(kept, {"w": torch.ones(2)})).masks
        {'w': tensor([False,  True])}
    """  # noqa: DOC502 - raised by _check_kept
    check_tickets(ticket=ticket)
    masks = {name: ~mask for name, mask in ticket.mask_items}
    _check_kept("complement of a ticket", masks)
    made = ticket.provenance
    settings = (("origin", made.made_by), ("origin_seed", made.seed))
    return replace(
        ticket,
        mask_items=tuple(masks.items()),
        provenance=replace(made, made_by="tickets.complement", settings=settings),
    )


def _pairs(a: Ticket, b: Ticket) -> list[tuple[str, Tensor, Tensor]]:
    check_tickets(a=a, b=b)
    own, other = dict(a.mask_items), dict(b.mask_items)
    for what, first, second in (
        ("masks", own, other),
        ("parameters", dict(a.state_items), dict(b.state_items)),
        ("buffers", dict(a.buffer_items), dict(b.buffer_items)),
    ):
        lines = differences(first, second, "in the second", "in the first")
        if lines:
            raise InvalidInputError(
                f"The two tickets' {what} do not fit each other: {'; '.join(lines)}. "
                "Pass tickets of the same network, in the same dtype."
            )
    return [(name, mask, other[name]) for name, mask in own.items()]


def _combined(
    verb: str, a: Ticket, b: Ticket, masks: Mapping[str, Tensor], state: Choice
) -> Ticket:
    if state not in {"same", "first", "second"}:
        raise InvalidInputError(
            f"state is {state!r}. Pass 'same', 'first' or 'second'."
        )
    if state == "same":
        _check_same_state(a, b)
    _check_kept(f"{verb} of the two tickets", masks)
    origin = b if state == "second" else a
    return replace(
        origin,
        mask_items=tuple(masks.items()),
        cost=a.cost + b.cost,
        provenance=replace(
            origin.provenance,
            made_by=f"tickets.{verb}",
            settings=(
                ("first", a.provenance.made_by),
                ("first_seed", a.provenance.seed),
                ("second", b.provenance.made_by),
                ("second_seed", b.provenance.seed),
                ("state", state),
            ),
            sources=tuple(
                dict.fromkeys((*a.provenance.sources, *b.provenance.sources))
            ),
        ),
    )


def _check_same_state(a: Ticket, b: Ticket) -> None:
    other = dict((*b.state_items, *b.buffer_items))
    differing = [
        name
        for name, part in (*a.state_items, *a.buffer_items)
        if not _equal(part, other[name])
    ]
    if differing:
        raise InvalidInputError(
            f"The two tickets are trained from different states: {listed(differing)} "
            "differ. Pass state='first' or state='second' to say whose to take."
        )


def _equal(a: Tensor, b: Tensor) -> bool:
    # NaN is not equal to itself; of parameters none is, of buffers some may be
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def _check_kept(what: str, masks: Mapping[str, Tensor]) -> None:
    if not any(bool(mask.any()) for mask in masks.values()):
        size = sum(mask.numel() for mask in masks.values())
        raise InvalidInputError(
            f"The {what} keeps 0 of {size} weights, which is no network. Pass tickets "
            "that leave at least one weight."
        )
