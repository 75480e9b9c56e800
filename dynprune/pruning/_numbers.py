"""Densities and counts as plain numbers, whatever library they come from."""

from typing import Any

from dynprune.core import InvalidInputError, whole


def as_number(given: Any) -> float:
    """Return a number as a plain one.

    Args:
        given: A number, or an array or tensor of one.

    Returns:
        The same number; NaN for anything else, which no range holds.
    """
    if isinstance(given, str):
        return float("nan")
    try:
        return float(given)
    except (TypeError, ValueError, RuntimeError):
        return float("nan")


def as_density(density: Any) -> float:
    """Return a density as a plain number.

    Args:
        density: Fraction to keep; a number, or an array or tensor of one.

    Returns:
        The same number.

    Raises:
        InvalidInputError: If it is no number in (0, 1].

    Example:
        >>> import torch
        >>> as_density(torch.tensor(0.5))
        0.5
    """
    found = as_number(density)
    if not 0.0 < found <= 1.0:
        raise InvalidInputError(
            f"A density of {density!r} was asked for. Pass the fraction of weights to "
            "keep, in (0, 1]."
        )
    return found


def as_count(what: str, given: Any, *, least: int = 1) -> int:
    """Return a count as a plain integer.

    Args:
        what: The argument's name.
        given: Its value.
        least: The smallest one allowed.

    Returns:
        The same number.

    Raises:
        InvalidInputError: If it is no whole number, or too small.

    Example:
        >>> as_count("rounds", 3)
        3
    """
    found = whole(given, name=what)
    if found < least:
        raise InvalidInputError(f"{what} is {found}. Pass at least {least}.")
    return found
