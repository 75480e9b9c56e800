"""The mean of a handful of seeds with its Student interval."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from dynprune.core.errors import InvalidInputError

Numbers = Sequence[float] | npt.NDArray[np.float64]
_NAN = float("nan")


def mean_interval(
    values: Numbers, *, confidence: float = 0.95
) -> tuple[float, float, float]:
    r"""Return the mean of independent values with its Student interval.

    .. math:: \bar x \pm t_{n-1,\,(1+c)/2}\; s / \sqrt n

    with s the standard deviation with divisor n - 1. Equal values have an interval
    of no length.

    Args:
        values: One number a seed, finite.
        confidence: Coverage c, in (0, 1).

    Returns:
        Mean, lower and upper end. Fewer than two values have no interval (NaN); no
        value has no mean either.

    Raises:
        InvalidInputError: If a value is not finite or c is not in (0, 1).

    Example:
        >>> [round(x, 3) for x in mean_interval([1.0, 2.0, 3.0])]
        [2.0, -0.484, 4.484]
    """
    if not 0.0 < confidence < 1.0:
        raise InvalidInputError(
            f"confidence is {confidence}. Pass a number between 0 and 1, e.g. 0.95."
        )
    x = finite_values(values)
    if len(x) < 2:
        return (float(x[0]) if len(x) else _NAN), _NAN, _NAN
    from scipy.stats import t

    mean, error = mean_and_error(x)
    reach = float(t.ppf(0.5 + confidence / 2.0, len(x) - 1)) * error
    return mean, mean - reach, mean + reach


def finite_values(values: Numbers) -> npt.NDArray[np.float64]:
    """Return values as a flat float64 array.

    Args:
        values: One number a seed.

    Returns:
        Shape ``(n,)``.

    Raises:
        InvalidInputError: If one is not finite.
    """
    x = np.asarray(values, dtype=np.float64).reshape(-1)
    if not np.isfinite(x).all():
        raise InvalidInputError(
            f"Not all of {x.tolist()} are finite. Leave out the seeds without a value."
        )
    return x


def mean_and_error(x: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the mean and its standard error; equal numbers have no error.

    Args:
        x: At least two finite numbers.

    Returns:
        Mean, and standard deviation (divisor n - 1) over the root of n.
    """
    mean = float(x.mean())
    # the rounding of equal numbers is no spread
    if float(np.ptp(x)) <= 1e-14 * float(np.abs(x).max()):
        return mean, 0.0
    return mean, float(x.std(ddof=1)) / math.sqrt(len(x))
