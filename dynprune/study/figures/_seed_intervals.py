"""Averages over seeds that leave out what is missing."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dynprune.core import mean_interval

if TYPE_CHECKING:
    import pandas as pd


def interval(values: Iterable[Any]) -> tuple[float, float, float, int]:
    """Average the numbers of some seeds, missing ones left out.

    Args:
        values: Numbers, None or NaN where a seed has none.

    Returns:
        Mean, lower and upper end of the 95 % t-interval, number of seeds.
    """
    there = _finite(values)
    return (*mean_interval(there), len(there))


def log_interval(values: Iterable[Any]) -> tuple[float, float, float, int]:
    """Average on a log scale: geometric mean with the t-interval of the logarithm.

    Args:
        values: Positive numbers; others are left out.

    Returns:
        Geometric mean, lower and upper end of its interval, number of seeds.
    """
    there = [math.log(value) for value in _finite(values) if value > 0.0]
    mean, low, high = (math.exp(min(x, 700.0)) for x in mean_interval(there))
    return mean, low, high, len(there)


def number(value: Any) -> float:
    """Read a fact that may be missing.

    Args:
        value: A number or None.

    Returns:
        The number; NaN where it is missing.
    """
    return math.nan if value is None else float(value)


def frame_of(rows: list[Any], columns: tuple[str, ...]) -> "pd.DataFrame":
    """Make a frame.

    Args:
        rows: Rows, perhaps none.
        columns: Names.

    Returns:
        The frame.
    """
    import pandas as pd

    return pd.DataFrame(rows, columns=list(columns))


def _finite(values: Iterable[Any]) -> list[float]:
    return [x for x in (number(value) for value in values) if math.isfinite(x)]
