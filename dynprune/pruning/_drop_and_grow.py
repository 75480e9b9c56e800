"""Move kept weights from where they are small to where they are wanted."""

import math

import torch
from torch import Tensor

from dynprune.core import InvalidInputError
from dynprune.pruning._numbers import as_count


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


def cosine_share(step: int, *, drop: float, stop: int) -> float:
    r"""Return the share of kept weights that an update moves.

    .. math:: f(t) = \frac{\alpha}{2} \left( 1 + \cos \frac{\pi t}{T} \right)

    Args:
        step: t.
        drop: α.
        stop: T, where it is zero.

    Returns:
        A number in [0, α].
    """
    return 0.5 * drop * (1.0 + math.cos(math.pi * step / stop))


def exchange_steps(
    total: int, *, every: int, stop: int | None, drop: float
) -> tuple[int, frozenset[int]]:
    """Return where updates end, and the steps before which there is one.

    Args:
        total: Steps of training.
        every: Steps between updates.
        stop: No update from here on; three quarters of training by default.
        drop: α, checked only.

    Returns:
        The end, and every, 2 every, … below it.

    Raises:
        InvalidInputError: If a knob is out of its range, or there is no update.
    """
    every = as_count("update_every", every)
    if not 0.0 < drop < 1.0:
        raise InvalidInputError(f"drop is {drop}. Pass a number in (0, 1).")
    end = 3 * total // 4 if stop is None else as_count("stop_step", stop, least=0)
    if end > total:
        raise InvalidInputError(
            f"stop_step is {end}, beyond training of {total} steps. Pass {total} or "
            "less."
        )
    steps = frozenset(range(every, end, every))
    if not steps:
        raise InvalidInputError(
            f"An update every {every} steps below step {end} leaves none (of {total}; "
            "three quarters are the default). Pass a smaller update_every, a later "
            "stop_step, or train longer."
        )
    return end, steps
