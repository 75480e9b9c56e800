"""Intervals for means of few samples."""

import torch
from torch import Tensor

from dynprune.core import InvalidInputError

_ROUNDING = 16


def check_level(level: float) -> None:
    """Refuse a level that is no coverage.

    Args:
        level: Of an interval.

    Raises:
        InvalidInputError: If it is not between 0 and 1.
    """
    if not 0.0 < level < 1.0:
        raise InvalidInputError(f"level={level} was given. Pass 0 < level < 1.")


def student(degrees: float, level: float) -> float:
    """Return the two-sided quantile of Student's t.

    Args:
        degrees: Of freedom; infinitely many are the normal distribution.
        level: Coverage, e.g. 0.95.

    Returns:
        q with P(|t| ≤ q) = level.
    """
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.5 + 0.5 * level))


def around(
    value: float, reach: float, *, largest: float, eps: float
) -> tuple[float, float]:
    """Return an interval that is no narrower than rounding allows.

    Args:
        value: Its middle.
        reach: Half its width in exact arithmetic.
        largest: What was added up, or the largest part of it.
        eps: Of the arithmetic.

    Returns:
        Lower and upper end.
    """
    reach += _ROUNDING * eps * largest
    return value - reach, value + reach


def gamma_interval(
    mean: Tensor, variance: Tensor, level: float
) -> tuple[Tensor, Tensor]:
    r"""Enclose positive expectations whose estimates are nearly :math:`\chi^2`.

    A mean over b probes of :math:`v^\top f(A) v`, f ≥ 0, is about
    :math:`\mu \chi^2_\nu / \nu` with :math:`\nu = 2\mu^2/\operatorname{Var}` (exactly,
    for Gaussian probes and f(A) a projection), so that

    .. math:: [\nu m / \chi^2_{\nu, 1-\alpha/2}, \; \nu m / \chi^2_{\nu, \alpha/2}]

    Args:
        mean: m ≥ 0.
        variance: Of m, same shape.
        level: 1 − α.

    Returns:
        Lower and upper ends. ν counts as 1 where it is less.

    Source:
        Satterthwaite, *An approximate distribution of estimates of variance
        components*, 1946.
    """
    from scipy.special import gammaincinv

    tiny = torch.finfo(mean.dtype).tiny
    half = (mean.square() / variance.clamp_min(tiny)).clamp(0.5, 1e12)
    tail = 0.5 - 0.5 * level
    low, high = (
        (half / torch.as_tensor(gammaincinv(half.numpy(), share))).to(mean)
        for share in (1.0 - tail, tail)
    )
    certain = variance <= tiny
    return (
        torch.where(certain, mean, low * mean),
        torch.where(certain, mean, high * mean),
    )
