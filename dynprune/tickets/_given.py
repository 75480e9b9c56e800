"""The types of what a user gives: tickets and models."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from dynprune.core import InvalidInputError


def check_model(model: Any, *, name: str = "model") -> None:
    """Refuse what is no module.

    Args:
        model: As given.
        name: Of the argument.

    Raises:
        InvalidInputError: If it is something else; a system's or problem's own model
            is named.
    """
    if isinstance(model, nn.Module):
        return
    inside = getattr(model, "model", None)
    own = ""
    if isinstance(inside, nn.Module):
        own = f": {name}.model of what you passed"
    elif callable(inside):
        own = f": {name}.model(seed) of what you passed"
    raise InvalidInputError(
        f"{name} is a {type(model).__name__}. Pass a torch.nn.Module{own}."
    )


def check_tickets(**tickets: Any) -> None:
    """Refuse what is no ticket.

    Args:
        **tickets: As given, by the name of the argument.

    Raises:
        InvalidInputError: If one is something else; it says which.
    """
    for name, ticket in tickets.items():
        # not by class: that of tickets checks models here
        if not isinstance(getattr(ticket, "mask_items", None), tuple):
            raise InvalidInputError(
                f"{name} is a {type(ticket).__name__}. Pass a dynprune.Ticket, as "
                "pruners return it and Ticket.make makes it."
            )


def check_keep(keep: Any) -> None:
    """Refuse what does not say by name what to keep.

    Args:
        keep: As given.

    Raises:
        InvalidInputError: If it is no mapping.
    """
    if not isinstance(keep, Mapping):
        raise InvalidInputError(
            f"keep is a {type(keep).__name__}. Pass a mapping of layer names to "
            "boolean tensors, True = kept."
        )
