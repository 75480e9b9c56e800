"""Intervals and tests over a handful of seeds; pure functions of numbers."""

import math
from typing import Literal

import numpy as np

from dynprune.core import InvalidInputError, mean_interval, unknown
from dynprune.core.intervals import Numbers, finite_values, mean_and_error

Alternative = Literal["two-sided", "greater", "less"]
_NAN = float("nan")


def paired_interval(
    differences: Numbers, *, confidence: float = 0.95
) -> tuple[float, float, float]:
    """Return the mean of paired differences with its Student interval over seeds.

    Args:
        differences: One difference a seed: the same seed, two methods.
        confidence: Coverage, in (0, 1).

    Returns:
        Mean, lower and upper end, as :func:`mean_interval`.

    Example:
        >>> paired_interval([0.5])
        (0.5, nan, nan)
    """
    return mean_interval(differences, confidence=confidence)


def paired_p(
    differences: Numbers,
    *,
    null: float = 0.0,
    alternative: Alternative = "two-sided",
) -> float:
    r"""Return the p-value of the paired t-test of a mean difference.

    .. math:: t = (\bar x - \mu_0) \sqrt n / s

    against Student's distribution with n - 1 degrees of freedom.

    Args:
        differences: One difference a seed, finite.
        null: Mean under the null hypothesis.
        alternative: What the mean is otherwise: not ``null``, greater, or less.

    Returns:
        The p-value; NaN for fewer than two values. Equal values have p = 0 where
        they agree with the alternative, otherwise 1.

    Raises:
        InvalidInputError: If a value is not finite or the alternative is unknown.

    Example:
        >>> round(paired_p([1.0, 2.0, 3.0], alternative="greater"), 4)
        0.0371
    """  # noqa: DOC501, DOC502 - unknown() makes it
    kinds = ("two-sided", "greater", "less")
    if alternative not in kinds:
        raise unknown("alternative", alternative, kinds)
    x = finite_values(differences)
    if len(x) < 2:
        return _NAN
    from scipy.stats import t

    mean, error = mean_and_error(x)
    away = mean - null
    if error == 0.0:
        agrees = {"two-sided": away != 0.0, "greater": away > 0.0, "less": away < 0.0}
        return 0.0 if agrees[alternative] else 1.0
    if alternative == "two-sided":
        return float(2.0 * t.sf(abs(away) / error, len(x) - 1))
    sign = 1.0 if alternative == "greater" else -1.0
    return float(t.sf(sign * away / error, len(x) - 1))


def holm(p_values: Numbers) -> tuple[float, ...]:
    r"""Correct p-values for their number, Holm's step-down rule.

    With :math:`p_{(1)} \le \dots \le p_{(m)}`,

    .. math:: \tilde p_{(k)} = \max_{j \le k} \min(1, (m - j + 1)\, p_{(j)}),

    so that rejecting where :math:`\tilde p \le \alpha` makes any false rejection with
    probability at most :math:`\alpha`, however the tests depend on each other.

    Args:
        p_values: In [0, 1], or NaN for "no test", which does not count in m.

    Returns:
        Corrected p-values in the same order, NaN where there was none.

    Raises:
        InvalidInputError: If a value is not in [0, 1].

    Source:
        Holm, *A simple sequentially rejective multiple test procedure*, 1979.

    Example:
        >>> holm([0.01, 0.04, float("nan"), 0.03])
        (0.03, 0.06, nan, 0.06)
    """
    p = np.asarray(p_values, dtype=np.float64).reshape(-1)
    there = ~np.isnan(p)
    if np.any((p[there] < 0.0) | (p[there] > 1.0)):
        raise InvalidInputError(f"Not all of {p.tolist()} are p-values in [0, 1].")
    found = np.full(len(p), np.nan)
    kept = np.flatnonzero(there)
    order = kept[np.argsort(p[kept], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    found[order] = np.maximum.accumulate(np.minimum(1.0, factors * p[order]))
    return tuple(float(value) for value in found)


def ratio_interval(
    numerators: Numbers, denominators: Numbers, *, confidence: float = 0.95
) -> tuple[float, float, float]:
    r"""Return the ratio of two paired means with Fieller's interval over seeds.

    The interval is the set of :math:`\rho` that the paired t-test of
    :math:`x_s - \rho\, y_s` does not reject,
    :math:`(\bar x - \rho\bar y)^2 \le t^2 (s_{xx} - 2\rho s_{xy} + \rho^2 s_{yy})/n`:
    a bounded interval where the mean of the denominators differs from 0 at that
    confidence. It is exact for normal pairs; a bootstrap over five seeds is far too
    short.

    Args:
        numerators: One x a seed, finite.
        denominators: One y a seed, finite.
        confidence: Coverage, in (0, 1).

    Returns:
        Ratio of means, lower and upper end. The ends are NaN where the set is
        unbounded or there are fewer than two seeds; the ratio is NaN if the mean
        denominator is 0.

    Raises:
        InvalidInputError: If the lengths differ or a number is not finite.

    Source:
        Fieller, *Some problems in interval estimation*, 1954.

    Example:
        >>> ratio_interval([5.0, 5.5, 6.0], [10.0, 11.0, 12.0])
        (0.5, 0.5, 0.5)
    """
    x, y = finite_values(numerators), finite_values(denominators)
    if len(x) != len(y):
        raise InvalidInputError(
            f"{len(x)} numerators and {len(y)} denominators. Pass one pair a seed."
        )
    n = len(x)
    if n == 0 or y.mean() == 0.0:
        return _NAN, _NAN, _NAN
    ratio = float(x.mean() / y.mean())
    if n < 2:
        return ratio, _NAN, _NAN
    from scipy.stats import t

    size = float(t.ppf(0.5 + confidence / 2.0, n - 1)) ** 2 / n
    sxx, syy = float(x.var(ddof=1)), float(y.var(ddof=1))
    sxy = float(((x - x.mean()) * (y - y.mean())).sum() / (n - 1))
    a = float(y.mean()) ** 2 - size * syy
    if a <= 0.0:
        return ratio, _NAN, _NAN
    half = float(x.mean() * y.mean()) - size * sxy
    c = float(x.mean()) ** 2 - size * sxx
    root = math.sqrt(max(0.0, half * half - a * c))
    return ratio, (half - root) / a, (half + root) / a
