"""Suggest the name a user may have meant."""

import difflib
from collections.abc import Iterable

from dynprune.core.errors import InvalidInputError


def unknown(what: str, name: str, options: Iterable[str]) -> InvalidInputError:
    """Return the error for an unknown name, with the nearest known one.

    Args:
        what: The kind of thing that was named.
        name: What was asked.
        options: What there is.

    Returns:
        The error, to be raised by the caller.

    Example:
        >>> print(unknown("task", "digts", ["digits", "mnist"]))
        Unknown task 'digts'. Did you mean 'digits'? Known: digits, mnist.
    """
    known = list(options)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return InvalidInputError(
        f"Unknown {what} {name!r}.{hint} Known: {', '.join(known)}."
    )
