"""What every way to train checks of its arguments, once, at the door."""

from typing import Any

from dynprune.core import InvalidInputError, whole


def check_mode(mode: str) -> None:
    """Refuse a mode that there is not.

    Args:
        mode: What was asked.

    Raises:
        InvalidInputError: If it is neither ``"train"`` nor ``"eval"``.
    """
    if mode not in {"train", "eval"}:
        raise InvalidInputError(f"mode is {mode!r}. Pass 'train' or 'eval'.")


def whole_or_none(name: str, value: Any) -> int | None:
    """Return an integer of any library as Python's; None stays None.

    Args:
        name: What the caller calls it.
        value: The integer, or None.

    Returns:
        The integer, or None.

    Raises:
        InvalidInputError: If it is neither.
    """  # noqa: DOC502 - raised by whole
    return None if value is None else whole(value, name=name)


def positive_or_none(name: str, value: Any) -> int | None:
    """Return an integer of at least 1 as Python's; None stays None.

    Args:
        name: What the caller calls it.
        value: The integer, or None.

    Returns:
        The integer, or None.

    Raises:
        InvalidInputError: If it is neither, or less than 1.
    """
    found = whole_or_none(name, value)
    if found is not None and found < 1:
        raise InvalidInputError(f"{name} is {found}. Pass at least 1, or None.")
    return found


def check_fits(steps: int, start: int, stop: int | None) -> int:
    """Refuse a part of a run that lies outside it.

    Args:
        steps: Of the whole run.
        start: First step.
        stop: One after the last step; ``steps`` by default.

    Returns:
        One after the last step.

    Raises:
        InvalidInputError: If they are not in order.
    """
    stop = steps if stop is None else stop
    if not 0 <= start <= stop <= steps:
        raise InvalidInputError(
            f"start_step={start}, stop_step={stop} and {steps} steps do not fit. Pass "
            "0 ≤ start_step ≤ stop_step ≤ steps."
        )
    return stop
