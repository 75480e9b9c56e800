"""The overlap of independent masks: what two tickets share by chance."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

_SPREAD = 12.0  # standard deviations kept on either side, and as many counts
_DIRECT = 20_000_000  # products in a convolution that is not done by FFT


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Counts:
    """Count what two masks of one layer keep.

    Args:
        size: Weights n of the layer.
        first: Weights A that the first mask keeps.
        second: Weights B that the second mask keeps.
        shared: Weights X that both keep.
    """

    size: int
    first: int
    second: int
    shared: int


def moments(layers: Iterable[Counts]) -> tuple[float, float]:
    r"""Return mean and variance of the shared weights of independent masks.

    Masks drawn uniformly among those with the same numbers of kept weights per layer
    share :math:`X = \sum_l X_l`, the :math:`X_l` independent and hypergeometric:

    .. math:: E X = \sum_l \frac{A_l B_l}{n_l}, \qquad
              \operatorname{Var} X = \sum_l
              \frac{A_l B_l (n_l - A_l)(n_l - B_l)}{n_l^2 (n_l - 1)}

    Args:
        layers: The counts; ``shared`` is not read.

    Returns:
        Weights, and weights².
    """
    mean, variance = 0.0, 0.0
    for layer in layers:
        n, a, b = layer.size, layer.first, layer.second
        mean += a * b / n
        if n > 1:
            variance += (a / n) * (b / n) * (n - a) * (n - b) / (n - 1)
    return mean, variance


def distribution(layers: Sequence[Counts]) -> tuple[int, Any]:
    r"""Return the probabilities of the number of shared weights.

    The hypergeometric distributions of the layers are convolved; each is cut 12
    standard deviations and 12 counts from its mean, which loses less than 1e-15.

    Args:
        layers: The counts; ``shared`` is not read.

    Returns:
        The smallest count that is listed, and a float64 array of the probabilities
        from there on, of sum 1.
    """
    start, total = 0, np.ones(1)
    done: list[Counts] = []
    for layer in layers:
        first, part = _hypergeometric(layer)
        done.append(layer)
        joined = _convolve(total, part)
        start, total = _cut(start + first, joined, *moments(done))
    return start, total / total.sum()


def two_sided(start: int, probabilities: Any, mean: float, shared: int) -> float:
    r"""Return :math:`P(|X - E X| \ge |x - E X|)`.

    Args:
        start: See :func:`distribution`.
        probabilities: See :func:`distribution`.
        mean: E X.
        shared: x, what was found.

    Returns:
        A probability; below about 1e-15 it reads 0.
    """
    away = np.abs(start + np.arange(len(probabilities)) - mean)
    far = away >= abs(shared - mean) * (1.0 - 1e-12) - 1e-12
    return min(1.0, float(probabilities[far].sum()))


def _hypergeometric(layer: Counts) -> tuple[int, Any]:
    n, a, b = layer.size, layer.first, layer.second
    low, high = max(0, a + b - n), min(a, b)
    mean, variance = moments([layer])
    reach = _SPREAD * (math.sqrt(variance) + 1.0)
    low, high = max(low, math.floor(mean - reach)), min(high, math.ceil(mean + reach))
    x = np.arange(low, high, dtype=np.float64)
    # P(x + 1) / P(x), summed as logarithms: no factorial of a large number
    steps = np.log((a - x) * (b - x)) - np.log((x + 1.0) * (n - a - b + x + 1.0))
    logs = np.concatenate([[0.0], np.cumsum(steps)])
    weights = np.exp(logs - logs.max())
    return low, weights / weights.sum()


def _convolve(a: Any, b: Any) -> Any:
    if len(a) * len(b) <= _DIRECT:
        return np.convolve(a, b)
    size = len(a) + len(b) - 1
    product = np.fft.rfft(a, size) * np.fft.rfft(b, size)
    return np.clip(np.fft.irfft(product, size), 0.0, None)


def _cut(start: int, values: Any, mean: float, variance: float) -> tuple[int, Any]:
    reach = _SPREAD * (math.sqrt(variance) + 1.0)
    low = max(0, math.floor(mean - reach) - start)
    high = min(len(values), math.ceil(mean + reach) - start + 1)
    return start + low, values[low:high]
