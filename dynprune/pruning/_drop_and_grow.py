"""Move kept weights from where they are small to where they are wanted."""

import torch
from torch import Tensor


def drop_and_grow(
    weight: Tensor, mask: Tensor, wanted: Tensor, *, count: int
) -> Tensor:
    """Drop the smallest kept weights and grow as many where they are wanted most.

    What was just dropped may grow again, as in the source; its weight then stays.

    Args:
        weight: Any shape.
        mask: Boolean, same shape, True = kept.
        wanted: Scores of growth, same shape; larger = grown first.
        count: How many to drop, at most those kept.

    Returns:
        A mask with the same number of kept weights; ties go to the lower flat index.
    """
    kept = int(mask.sum())
    rest = highest(weight.abs(), mask, kept - count)
    return rest | highest(wanted, ~rest, count)


def highest(scores: Tensor, among: Tensor, count: int) -> Tensor:
    """Mark the highest scores among some entries; ties go to the lower flat index.

    Args:
        scores: Any shape.
        among: Boolean, same shape.
        count: How many, at most those in ``among``.

    Returns:
        Boolean, same shape.
    """
    free = torch.nonzero(among.reshape(-1)).reshape(-1)
    best = scores.reshape(-1)[free].argsort(descending=True, stable=True)
    chosen = torch.zeros(among.numel(), dtype=torch.bool, device=among.device)
    chosen[free[best[:count]]] = True
    return chosen.view(among.shape)
