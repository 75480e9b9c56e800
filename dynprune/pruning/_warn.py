"""Warnings that point at the user's line, however deep they are found."""

import sys
import warnings

from dynprune.core import NumericalWarning


def warn(message: str) -> None:
    """Warn at the innermost line outside the package.

    Args:
        message: What was asked, what was found, what to try.

    Warns:
        NumericalWarning: Always.
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").startswith("dynprune."):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, NumericalWarning, stacklevel=level)
