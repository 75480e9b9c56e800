"""How few inputs the units of the first layer look at."""

import math

import torch
from torch import Tensor

from dynprune.core import derive_seed, generator
from dynprune.tickets._layer_forms import LayerForms
from dynprune.tickets._readings import Reading


def locality(weights: Tensor) -> float:
    r"""Return the mean inverse participation ratio of the units of a layer.

    .. math:: \operatorname{IPR}(w) = \frac{\sum_i w_i^4}{(\sum_i w_i^2)^2}

    1/n for n weights of one size, 1 for a single weight. It says how concentrated a
    receptive field is, not whether its inputs are neighbours.

    Args:
        weights: Masked, shape ``(out, in, …)``.

    Returns:
        The mean over units with a weight other than 0; NaN if there are none.

    Source:
        Ingrosso and Goldt, *Data-driven emergence of convolutional structure in neural
        networks*, PNAS 2022.

    Example:
        >>> import torch
        >>> locality(torch.tensor([[2.0, -2.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
        0.75
    """
    if weights.ndim < 2:
        return math.nan
    rows = weights.double().flatten(1)
    # by its largest weight, lest a fourth power underflows
    largest = rows.abs().amax(1)
    rows = rows[largest > 0] / largest[largest > 0][:, None]
    if not len(rows):
        return math.nan
    squares = rows.square()
    return float((squares.square().sum(1) / squares.sum(1).square()).mean())


def trained_locality(
    weights: Tensor,
    *,
    layer: str,
    label: str,
    shuffles: int,
    seed: int,
    forms: LayerForms,
) -> Reading:
    """Measure the locality of trained weights against the same weights, shuffled.

    Args:
        weights: Trained and masked, in the shape that the layer stores.
        layer: Its name.
        label: Of the ticket.
        shuffles: How many permutations of all weights of the layer.
        seed: Of the permutations.
        forms: How layers store their weights.

    Returns:
        The reading.
    """
    flat, null = weights.reshape(-1), []
    for draw in range(shuffles):
        mixer = generator(derive_seed("tickets.locality", seed, label, draw))
        order = torch.randperm(flat.numel(), generator=mixer).to(flat.device)
        mixed = flat[order].view(weights.shape)
        null.append(locality(forms.straight(layer, mixed)))
    return Reading.sampled(
        "locality_trained",
        layer,
        (label,),
        value=locality(forms.straight(layer, weights)),
        null=null,
    )
