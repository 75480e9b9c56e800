"""Whether two tickets keep the same units, whatever their single weights."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dynprune.tickets._layer_forms import LayerForms
from dynprune.tickets._readings import Reading
from dynprune.tickets._ticket import Ticket

SIDES = ("input", "output")


def degrees(ticket: Ticket, forms: LayerForms) -> dict[tuple[str, str], Tensor]:
    """Count the kept weights of every input and output unit of every layer.

    Args:
        ticket: The ticket; masks of one dimension are left out.
        forms: How its layers store their weights.

    Returns:
        (side, layer) to float64 counts, shape ``(in,)`` or ``(out,)``.
    """
    found = {}
    for name, own in ticket.mask_items:
        mask = forms.straight(name, own)
        if mask.ndim > 1:
            units = mask.flatten(2).sum(2) if mask.ndim > 2 else mask
            found["input", name] = units.sum(0).double()
            found["output", name] = units.sum(1).double()
    return found


def correlations(vectors: Sequence[Tensor]) -> Tensor:
    """Return Pearson's correlation of each pair of vectors.

    Args:
        vectors: T vectors of n numbers.

    Returns:
        Shape ``(T, T)``; NaN for a vector that does not vary.
    """
    block = torch.stack(list(vectors))
    centred = block - block.mean(1, keepdim=True)
    return torch.nn.functional.normalize(centred, dim=1, eps=0.0) @ (
        torch.nn.functional.normalize(centred, dim=1, eps=0.0).T
    )


def degree_readings(
    counts: Sequence[Sequence[dict[tuple[str, str], Tensor]]], labels: Sequence[str]
) -> Iterator[Reading]:
    r"""Correlate the numbers of weights that tickets keep at each unit of a layer.

    .. math:: r = \operatorname{corr}_i(k_i^a, k_i^b)

    over the inputs i of a layer (``input_correlation``) or its outputs
    (``output_correlation``): 1 = the same units are
    thick and thin. Two tickets may share no more weights than chance and still agree
    on the units.

    Args:
        counts: For each ticket :func:`degrees` of itself and of its shuffles.
        labels: Of the tickets.

    Yields:
        One reading per pair, layer and side; against the shuffles k of both.
    """
    for side, layer in counts[0][0]:
        tables = [
            correlations([own[draw][side, layer] for own in counts]).tolist()
            for draw in range(len(counts[0]))
        ]
        for i in range(len(labels)):
            for j in range(i + 1, len(labels)):
                values = [_clean(table[i][j]) for table in tables]
                yield Reading.sampled(
                    f"{side}_correlation",
                    layer,
                    (labels[i], labels[j]),
                    value=values[0],
                    null=values[1:],
                )


def _clean(value: float) -> float:
    return value if math.isfinite(value) else math.nan
