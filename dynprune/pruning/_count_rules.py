"""How many weights are kept, and who wins ties: ours, and those of other codes."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, unknown
from dynprune.pruning._numbers import as_density

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
    """  # noqa: DOC502 - raised by as_density
    return max(1, math.floor(as_density(density) * size + 0.5))


def rounded_counts(wanted: Mapping[str, float], total: int) -> dict[str, int]:
    """Return whole counts near real ones, of a given sum.

    Down, then up by one where the remainder is largest, the first ones where they tie.
    Each is at least 1; where that is more than the total, the largest of count - wanted
    falls by one until it is not, and only a total below the number of counts is
    exceeded.

    Args:
        wanted: Name to a positive number; together within ½ of the total.
        total: What the counts add up to.

    Returns:
        Name to count.

    Example:
        >>> rounded_counts({"a": 2.5, "b": 0.2, "c": 1.3}, 4)
        {'a': 2, 'b': 1, 'c': 1}
        >>> rounded_counts({"a": 2.5, "b": 0.2, "c": 1.3}, 5)
        {'a': 3, 'b': 1, 'c': 1}
    """
    counts = {name: max(1, math.floor(value)) for name, value in wanted.items()}
    left = total - sum(counts.values())
    by_remainder = sorted(wanted, key=lambda name: counts[name] - wanted[name])
    for name in by_remainder[: max(left, 0)]:
        counts[name] += 1
    for _ in range(left, 0):
        more = [name for name, count in counts.items() if count > 1]
        if more:
            counts[max(more, key=lambda name: counts[name] - wanted[name])] -= 1
    return counts


def check_rule(rule: str) -> None:
    """Refuse a rule that is not known.

    Args:
        rule: As given.

    Raises:
        InvalidInputError: If there is no such rule.
    """  # noqa: DOC501, DOC502 - made by unknown
    if rule not in get_args(Rule):
        raise unknown("rule", rule, get_args(Rule))


def keep(
    scores: Parts,
    alive: Parts,
    density: float,
    rule: Rule,
    before: float | None = None,
) -> list[Tensor]:
    r"""Return which of one pool of scores a rule keeps.

    With N scores, R of them alive, :math:`s_{(i)}` the i-th lowest alive score (for
    ``synflow``, ``grasp`` and ``force`` of all N, where a pruned weight scores no more
    than 0 and no more than any other) and :math:`p = 1 - d N / R`, or
    :math:`1 - d / d_{\text{before}}` in a later round:

    - ``exact``: the K = max(1, ⌊dN + ½⌋) highest, ties to the lower flat index;
    - ``open_lth``: :math:`s > s_{(\lceil p R \rceil + 1)}`;
    - ``lth2018``: :math:`s > s_{(\mathrm{round}(p R) + 1)}`, halves to even;
    - ``gem_miner``: :math:`s > s_{(\lceil p R \rceil)}`, all if that is 0;
    - ``synflow``: :math:`s > s_{(\lfloor (1 - d) N \rfloor)}`, all if that is 0;
    - ``grasp``: :math:`s \ge s_{(\lfloor N (1 - d) \rfloor)}`, all if that is 0;
    - ``force``: at least the ⌊N d⌋-th highest.

    Args:
        scores: Flat finite scores, of one dtype (float32 or float64) on one device.
        alive: Flat booleans, True = may be kept; some is.
        density: d, in (0, 1]; at most R/N in the first round.
        rule: Which.
        before: The density of the round that chose ``alive`` by the same rule.

    Returns:
        Flat booleans.

    Raises:
        InvalidInputError: If the rule has no such order statistic, as ``force`` where
            it keeps none and ``open_lth`` where it removes more than there are.
    """
    free = alive[0] if len(alive) == 1 else torch.cat(list(alive))
    size, left = len(free), int(free.count_nonzero())
    share = density * size / left if before is None else density / before
    p = round(1.0 - share, _DIGITS)
    match rule:
        case "exact":
            cut = left + 1 - kept_count(density, size)
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
    among = size if by_all else left
    if cut > among:
        raise InvalidInputError(
            f"Rule {rule!r} at density {density} looks for the {cut}-th lowest of "
            f"{among} scores. Pass a higher density, or rule='exact'."
        )
    pool = _pool(scores, free, left, by_all=by_all)
    level = pool.kthvalue(cut + size - among).values
    above: Callable[[Tensor, Tensor], Tensor] = torch.gt
    if rule in {"grasp", "force"}:
        above = torch.ge
    masks = [above(part, level) & own for part, own in zip(scores, alive, strict=True)]
    if rule == "exact":
        missing = kept_count(density, size) - int((pool > level).count_nonzero())
        _add_ties_(masks, scores, alive, level, missing)
    return masks


def _pool(scores: Parts, free: Tensor, left: int, *, by_all: bool) -> Tensor:
    # what is pruned lies below all others, or (for some rules) at zero or the lowest
    if left == len(free) and len(scores) == 1:
        return scores[0]
    pool = torch.cat(list(scores))
    if left < len(free):
        gone, floor = ~free, -torch.inf
        if by_all:
            floor = float(pool.masked_fill_(gone, torch.inf).min().clamp_max(0.0))
        pool.masked_fill_(gone, floor)
    return pool


def _add_ties_(
    masks: Parts, scores: Parts, alive: Parts, level: Tensor, missing: int
) -> None:
    for mask, part, free in zip(masks, scores, alive, strict=True):
        if missing == 0:
            return
        ties = (part == level) & free
        found = int(ties.count_nonzero())
        if found > missing:
            mask[torch.nonzero(ties).reshape(-1)[:missing]] = True
        else:
            mask.logical_or_(ties)
        missing -= min(found, missing)
