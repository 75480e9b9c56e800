"""How many weights are kept, and who wins ties: ours, and those of other codes."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, unknown
from dynprune.pruning._order_statistic import kth_lowest

Rule = Literal["exact", "open_lth", "lth2018", "synflow", "grasp", "force", "gem_miner"]
Parts = Sequence[Tensor]
# a share that is meant as a short decimal: 1 - 0.8 is 0.2, not 0.19999999999999996
_DIGITS = 12


def kept_count(density: float, size: int) -> int:
    r"""Return how many of ``size`` weights a density keeps.

    .. math:: K = \max(1, \lfloor d N + \tfrac{1}{2} \rfloor)

    Args:
        density: Fraction d to keep, in (0, 1].
        size: Number N of prunable weights, at least 1.

    Returns:
        The count, between 1 and ``size``.

    Raises:
        InvalidInputError: If the density is not in (0, 1].

    Example:
        >>> kept_count(0.25, 10), kept_count(1e-9, 10), kept_count(1.0, 10)
        (3, 1, 10)
    """
    if not 0.0 < density <= 1.0:
        raise InvalidInputError(
            f"A density of {density} was asked for. Pass the fraction of weights to "
            "keep, in (0, 1]."
        )
    return max(1, math.floor(density * size + 0.5))


def check_rule(rule: str) -> None:
    """Refuse a rule that is not known.

    Args:
        rule: As given.

    Raises:
        InvalidInputError: If there is no such rule.
    """  # noqa: DOC501, DOC502 - made by unknown
    if rule not in get_args(Rule):
        raise unknown("rule", rule, get_args(Rule))


def keep(scores: Parts, alive: Parts, density: float, rule: Rule) -> list[Tensor]:
    r"""Return which of one pool of scores a rule keeps.

    With N scores, R of them alive, :math:`s_{(i)}` the i-th lowest alive score (for
    ``synflow``, ``grasp`` and ``force`` of all N, where a pruned weight scores no more
    than 0 and no more than any other) and :math:`p = 1 - d N / R`:

    - ``exact``: the K = max(1, ⌊dN + ½⌋) highest, ties to the lower flat index;
    - ``open_lth``: :math:`s > s_{(\lceil p R \rceil + 1)}`;
    - ``lth2018``: :math:`s > s_{(\mathrm{round}(p R) + 1)}`, halves to even;
    - ``gem_miner``: :math:`s > s_{(\lceil p R \rceil)}`, all if that is 0;
    - ``synflow``: :math:`s > s_{(\lfloor (1 - d) N \rfloor)}`, all if that is 0;
    - ``grasp``: :math:`s \ge s_{(\lfloor N (1 - d) \rfloor)}`, all if that is 0;
    - ``force``: at least the ⌊N d⌋-th highest.

    Args:
        scores: Flat finite scores, of one dtype (float32 or float64) on one device.
        alive: Flat booleans, True = may be kept.
        density: d, in (0, 1]; at most R/N.
        rule: Which.

    Returns:
        Flat booleans.

    Raises:
        InvalidInputError: If the rule has no such order statistic, as ``force`` where
            it keeps none and ``open_lth`` where it removes more than there are.
    """
    size, left = _numel(scores), sum(int(part.sum()) for part in alive)
    p = round(1.0 - density * size / left, _DIGITS)
    match rule:
        case "exact":
            return _exactly(scores, alive, kept_count(density, size), left)
        case "open_lth":
            cut = math.ceil(p * left) + 1
        case "lth2018":
            cut = round(p * left) + 1
        case "gem_miner":
            cut = math.ceil(p * left)
        case "synflow" | "grasp":
            cut = int((1.0 - density) * size)
        case "force":
            # the ⌊Nd⌋-th highest is the (N + 1 − ⌊Nd⌋)-th lowest
            cut = size + 1 - int(size * density)
    if cut == 0:
        return [part.clone() for part in alive]
    by_all = rule in {"synflow", "grasp", "force"}
    pool = _of_all(scores, alive) if by_all else _of_alive(scores, alive)
    if cut > len(pool):
        raise InvalidInputError(
            f"Rule {rule!r} at density {density} looks for the {cut}-th lowest of "
            f"{len(pool)} scores. Pass a higher density, or rule='exact'."
        )
    level = kth_lowest(pool, cut)
    above: Callable[[Tensor, Tensor], Tensor] = torch.gt
    if rule in {"grasp", "force"}:
        above = torch.ge
    return [above(part, level) & free for part, free in zip(scores, alive, strict=True)]


def _exactly(scores: Parts, alive: Parts, count: int, left: int) -> list[Tensor]:
    level = kth_lowest(_of_alive(scores, alive), left - count + 1)
    pairs = list(zip(scores, alive, strict=True))
    masks = [(part > level) & free for part, free in pairs]
    need = count - sum(int(mask.sum()) for mask in masks)
    for mask, (part, free) in zip(masks, pairs, strict=True):
        if need == 0:
            break
        ties = (part == level) & free
        found = int(ties.sum())
        if found > need:
            mask[torch.nonzero(ties).reshape(-1)[:need]] = True
        else:
            mask |= ties
        need -= min(found, need)
    return masks


def _of_alive(scores: Parts, alive: Parts) -> Tensor:
    # one new tensor, whose order is free
    return torch.cat([
        part if bool(free.all()) else part[free]
        for part, free in zip(scores, alive, strict=True)
    ])


def _of_all(scores: Parts, alive: Parts) -> Tensor:
    lowest = [
        part[free].min() for part, free in zip(scores, alive, strict=True) if free.any()
    ]
    floor = torch.stack(lowest).min().clamp_max(0.0)
    return torch.cat([
        torch.where(free, part, floor) for part, free in zip(scores, alive, strict=True)
    ])


def _numel(parts: Parts) -> int:
    return sum(part.numel() for part in parts)
