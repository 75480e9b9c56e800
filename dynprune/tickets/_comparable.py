"""What makes tickets comparable: one model, the same layers, a label each."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from dynprune.core import InvalidInputError, whole
from dynprune.system import GradientSystem
from dynprune.tickets._apply import check_masks, check_same
from dynprune.tickets._measures import CHAIN
from dynprune.tickets._ticket import Ticket
from dynprune.tickets._zeros import zeros_where_pruned

Tickets = Ticket | Sequence[Ticket] | Mapping[str, Ticket]
_DONE = {"shuffle": "shuffled", "reinitialise": "reinitialised"}


def labelled(
    a: Tickets, b: Ticket | None, labels: Sequence[str] | None
) -> tuple[list[Ticket], list[str]]:
    """Return tickets and their labels in whatever way they were given.

    Args:
        a: A ticket, a sequence, or a mapping of labels.
        b: Another ticket.
        labels: One per ticket.

    Returns:
        Tickets and labels.

    Raises:
        InvalidInputError: If there are not two, or labels are not one each.
    """
    if isinstance(a, Ticket):
        tickets = [a] if b is None else [a, b]
    else:
        if isinstance(a, Mapping):
            labels = list(a) if labels is None else labels
            a = list(a.values())
        if not isinstance(a, Iterable):
            a = [a]
        tickets = [*a] if b is None else [*a, b]
    wrong = [type(one).__name__ for one in tickets if not isinstance(one, Ticket)]
    if wrong or len(tickets) < 2:
        found = f"a {wrong[0]}" if wrong else f"{len(tickets)} ticket"
        raise InvalidInputError(
            f"A comparison was asked of {found}. Pass two tickets, a list of them, or "
            "a dictionary of labels to tickets."
        )
    names = _labels(tickets) if labels is None else [str(label) for label in labels]
    if len(names) != len(tickets) or len(set(names)) != len(names):
        raise InvalidInputError(
            f"{len(tickets)} tickets were given {len(names)} labels, "
            f"{len(set(names))} of them different. Pass a different one for each."
        )
    return tickets, names


def _labels(tickets: Sequence[Ticket]) -> list[str]:
    names: list[str] = []
    for ticket in tickets:
        made = ticket.provenance.made_by
        origin = str(dict(ticket.provenance.settings).get("origin", ""))
        words = [word.rpartition(".")[2] for word in (origin, made) if word]
        plain = " ".join([words[0], *(_DONE.get(word, word) for word in words[1:])])
        name = f"{plain} {100.0 * ticket.density:.3g} %"
        count = sum(other.partition(" #")[0] == name for other in names)
        names.append(f"{name} #{count + 1}" if count else name)
    return names


def check_alike(tickets: Sequence[Ticket], labels: Sequence[str]) -> None:
    """Refuse tickets of different models.

    Args:
        tickets: The tickets.
        labels: Their labels.

    Raises:
        InvalidInputError: If names or shapes differ; it says which.
    """
    first = dict(tickets[0].mask_items)
    empty = [name for name, mask in first.items() if not mask.numel()]
    if empty:
        raise InvalidInputError(
            f"Layer {empty[0]} has no weights, so nothing of it can be compared. Make "
            "the tickets without it."
        )
    for ticket, label in zip(tickets[1:], labels[1:], strict=True):
        own = dict(ticket.mask_items)
        for name in dict.fromkeys([*first, *own]):
            shapes = [
                tuple(part[name].shape) if name in part else "no mask"
                for part in (first, own)
            ]
            if shapes[0] != shapes[1]:
                raise InvalidInputError(
                    f"Tickets of different models cannot be compared: {name} is "
                    f"{shapes[0]} in {labels[0]!r} and {shapes[1]} in {label!r}. Pass "
                    "tickets of one model, pruned in the same layers."
                )
        try:
            check_same("parameters", dict(tickets[0].state_items), ticket.state)
        except InvalidInputError as error:
            raise InvalidInputError(
                f"{labels[0]!r} and {label!r} are tickets of different models. {error}"
            ) from error


def check_numbers(
    *, shuffles: int, eigenvalues: int, groups: int, power: int
) -> tuple[int, int, int]:
    """Refuse numbers out of range.

    Args:
        shuffles: 0, or at least 2.
        eigenvalues: At least 0.
        groups: At least 3.
        power: 1 or 2.

    Returns:
        The first three as integers of Python.

    Raises:
        InvalidInputError: If one is out of range, or no integer.
    """
    shuffles = whole(shuffles, name="shuffles")
    eigenvalues = whole(eigenvalues, name="eigenvalues")
    groups = whole(groups, name="groups")
    for name, value, least in (
        ("shuffles", shuffles, 2),
        ("eigenvalues", eigenvalues, 0),
        ("groups", groups, 3),
    ):
        if value < least and not (name == "shuffles" and value == 0):
            raise InvalidInputError(f"{name} is {value}. Pass at least {least}.")
    if power not in {1, 2}:
        raise InvalidInputError(
            f"A path norm of power {power} was asked for. Pass 1 or 2."
        )
    return shuffles, eigenvalues, groups


def check_model(
    ticket: Ticket,
    system: GradientSystem | None,
    model: Any,
    eigenvalues: int,
) -> None:
    """Refuse a model or system that is not the tickets'.

    Args:
        ticket: One of them.
        system: The system.
        model: The model.
        eigenvalues: How many are asked for.

    Raises:
        InvalidInputError: If it is not, or eigenvalues have no system.
    """
    if eigenvalues and system is None:
        raise InvalidInputError(
            f"{eigenvalues} eigenvalues were asked for without a system. Pass system=."
        )
    if model is not None and model != CHAIN and not isinstance(model, nn.Module):
        raise InvalidInputError(
            f"model is a {type(model).__name__}. Pass a module, or 'chain'."
        )
    if isinstance(model, nn.Module):
        check_same(
            "parameters", dict(ticket.state_items), dict(model.named_parameters())
        )
    if system is not None:
        check_masks(ticket.mask_items, system.model)
        own = {name for name, _ in ticket.state_items}
        missing = [n for n, _ in system.model.named_parameters() if n not in own]
        if missing:
            raise InvalidInputError(
                f"The system's model has {missing[0]}, which is not in the tickets' "
                "state. Pass the system that the tickets were made for."
            )
        if system.masks:
            raise InvalidInputError(
                "The system is masked. Pass the dense one; each ticket brings its mask."
            )


def check_runs(tickets: int, runs: Sequence[Any] | None, problem: Any) -> None:
    """Refuse runs that are not one per ticket, or have no problem.

    Args:
        tickets: How many.
        runs: The runs.
        problem: The problem.

    Raises:
        InvalidInputError: If so.
    """
    if runs is None:
        return
    if len(runs) != tickets:
        raise InvalidInputError(
            f"{tickets} tickets were given {len(runs)} runs. Pass a finished run for "
            "each, in their order."
        )
    if problem is None:
        raise InvalidInputError(
            "Barriers between runs were asked for without a problem to evaluate them "
            "on. Pass problem=."
        )


def ordered(ticket: Ticket, *, like: Ticket) -> Ticket:
    """Return a ticket with its masks in the order of another's.

    Args:
        ticket: The ticket.
        like: The other.

    Returns:
        The ticket itself, where the order is the same.
    """
    names = [name for name, _ in like.mask_items]
    if names == [name for name, _ in ticket.mask_items]:
        return ticket
    masks = dict(ticket.mask_items)
    return Ticket.make(
        {name: masks[name] for name in names},
        dict(ticket.state_items),
        dict(ticket.buffer_items),
        provenance=ticket.provenance,
        cost=ticket.cost,
    )


def warnings_of(tickets: Sequence[Ticket], labels: Sequence[str]) -> Iterable[str]:
    """Say what a reader of the comparison should beware of.

    Args:
        tickets: The tickets.
        labels: Their labels.

    Yields:
        Sentences.
    """
    densities = [ticket.density for ticket in tickets]
    if max(densities) > 1.05 * min(densities):
        yield (
            f"densities from {min(densities):.3g} to {max(densities):.3g}: what "
            "depends on density is not compared at one"
        )
    for ticket, label in zip(tickets, labels, strict=True):
        empty = [name for name, mask in ticket.mask_items if not bool(mask.any())]
        if empty:
            yield f"{label} keeps nothing of {', '.join(empty[:4])}"
        bare = zeros_where_pruned(ticket)
        if bare:
            yield (
                f"{label} has a state that is zero where it prunes, in "
                f"{', '.join(bare[:4])}: its shuffles uncover zeros, so that the null "
                "of whatever reads the state is of networks without these weights; "
                "make the ticket of a state that was not trained under its mask"
            )
