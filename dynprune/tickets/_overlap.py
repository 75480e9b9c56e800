"""How much of two masks is the same, and how much of that is chance."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynprune.tickets._chance import Counts, distribution, moments, two_sided
from dynprune.tickets._readings import ALL, Reading

_AT_ONCE = 1 << 20  # weights of a layer that are multiplied at once

PAIR_MEASURES = ("hamming", "jaccard", "overlap_coefficient", "excess_overlap")


def shared_weights(masks: Sequence[Tensor]) -> Tensor:
    """Count the weights that each pair of masks of one layer keeps.

    Args:
        masks: T boolean tensors of one shape.

    Returns:
        Counts, int64, shape ``(T, T)``; the diagonal is what each keeps.

    Example:
        >>> shared_weights([torch.tensor([True, True]), torch.tensor([True, False])])
        tensor([[2, 1],
                [1, 1]])
    """
    flat = [mask.reshape(-1) for mask in masks]
    total = torch.zeros(len(flat), len(flat), dtype=torch.float64)
    for start in range(0, flat[0].numel(), _AT_ONCE):
        # exact: sums of at most 2^20 ones
        block = torch.stack([part[start : start + _AT_ONCE] for part in flat]).float()
        total += (block @ block.T).double()
    return total.round().long()


def overlap_readings(
    layers: Sequence[Counts], *, layer: str, pair: tuple[str, str]
) -> Iterator[Reading]:
    r"""Measure the overlap of two masks over some layers, each with its chance level.

    With X weights kept by both, A and B by either, N in all, and
    :math:`M = \sum_l \min(A_l, B_l)` the most they could share,

    ====================== ===========================================
    ``hamming``            :math:`(A + B - 2X) / N`
    ``jaccard``            :math:`X / (A + B - X)`
    ``overlap_coefficient`` :math:`X / \min(A, B)`
    ``excess_overlap``     :math:`(X - E X) / (M - E X)`: 0 = chance, 1 = nested
    ====================== ===========================================

    The chance level is that of independent masks with the same number of kept weights
    in every layer: exact moments, linear in X but for Jaccard's, whose moments are
    sums over the distribution of X. All four move with X, so z differs between them
    but p, :math:`P(|X - E X| \ge |x - E X|)`, does not.

    Args:
        layers: Counts of the layers that are pooled.
        layer: What to call them.
        pair: Labels of the two tickets.

    Yields:
        One reading per measure; NaN where a denominator is zero.
    """
    size = sum(part.size for part in layers)
    a, b = sum(part.first for part in layers), sum(part.second for part in layers)
    x = sum(part.shared for part in layers)
    most = sum(min(part.first, part.second) for part in layers)
    mean, variance = moments(layers)
    sd = math.sqrt(variance)
    start, probabilities = distribution(layers)
    p = two_sided(start, probabilities, mean, x)
    j_mean, j_sd = _jaccard_chance(start, probabilities, a + b)
    low = min(a, b)
    # exactly as much room as rounding of E X leaves is none: a dense or empty mask
    room = most - mean if most - mean > 1e-9 * max(most, 1) else 0.0
    found = {
        "hamming": (
            _ratio(a + b - 2 * x, size),
            _ratio(a + b - 2 * mean, size),
            2 * sd,
            size,
        ),
        "jaccard": (_ratio(x, a + b - x), j_mean, j_sd, 1.0),
        "overlap_coefficient": (_ratio(x, low), _ratio(mean, low), sd, low),
        "excess_overlap": (_ratio(x - mean, room), _ratio(0.0, room), sd, room),
    }
    for measure, (value, expected, spread, scale) in found.items():
        yield Reading.against(
            measure,
            layer,
            pair,
            value=value,
            null_mean=expected,
            null_sd=_ratio(spread, scale),
            p=p,
        )


def pair_overlaps(
    masks: Sequence[Sequence[tuple[str, Tensor]]], labels: Sequence[str]
) -> Iterator[Reading]:
    """Measure all pairs of tickets, layer by layer and in all.

    Args:
        masks: For each ticket its names and masks, the same names in one order.
        labels: Of the tickets.

    Yields:
        The readings of :func:`overlap_readings`.

    Cost:
        T² N multiplications, and one distribution of a few thousand numbers per pair
        and layer.
    """
    names = [name for name, _ in masks[0]]
    sizes = [part.numel() for _, part in masks[0]]
    shared = [
        shared_weights([own[index][1] for own in masks]) for index in range(len(names))
    ]
    for i in range(len(masks)):
        for j in range(i + 1, len(masks)):
            layers = [
                Counts(
                    size=size,
                    first=int(table[i, i]),
                    second=int(table[j, j]),
                    shared=int(table[i, j]),
                )
                for size, table in zip(sizes, shared, strict=True)
            ]
            pair = (labels[i], labels[j])
            yield from overlap_readings(layers, layer=ALL, pair=pair)
            for name, part in zip(names, layers, strict=True):
                yield from overlap_readings([part], layer=name, pair=pair)


def _ratio(above: float, below: float) -> float:
    return above / below if below else math.nan


def _jaccard_chance(start: int, probabilities: Any, total: int) -> tuple[float, float]:
    if total == 0:
        return math.nan, math.nan
    x = start + np.arange(len(probabilities))
    values = x / (total - x)
    mean = float(probabilities @ values)
    return mean, math.sqrt(float(probabilities @ (values - mean) ** 2))
