"""Densities that fall geometrically over rounds of scoring."""

from collections.abc import Callable, Mapping

from torch import Tensor

from dynprune.core import derive_seed
from dynprune.pruning._count_rules import Rule, check_rule
from dynprune.pruning._from_scores import survivors
from dynprune.pruning._numbers import as_count, as_density
from dynprune.pruning._select import (
    check_choice,
    check_room,
    check_scores,
    scope_of,
    select,
)
from dynprune.system import GradientSystem

Masks = dict[str, Tensor]


def seed_of(seed: int, t: int) -> int:
    """Return the seed of a round: the first is the method that has one only.

    Args:
        seed: Of all rounds.
        t: The round, from 1.

    Returns:
        ``seed`` itself in round 1, another one in each later round.
    """
    return seed if t == 1 else derive_seed(seed, t)


def in_rounds(
    system: GradientSystem,
    score: Callable[[int, Masks], Mapping[str, Tensor]],
    *,
    density: float,
    rounds: int,
    may_return: bool,
    rule: Rule = "exact",
) -> Masks:
    r"""Score and select in every round.

    Round t of T keeps density :math:`d_t = d_0 (d / d_0)^{t/T}`, :math:`d_0` that of
    the system's mask, 1 without one.

    Args:
        system: The system.
        score: Scores of round t = 1, 2, …, of the network under the masks given.
        density: d.
        rounds: T.
        may_return: Whether a weight pruned in one round may be kept in a later one.
        rule: How many a round keeps.

    Returns:
        The last masks.

    Raises:
        InvalidInputError: If rounds or density are out of range, the rule is unknown
            or keeps nothing, or the scores of a round are not finite or all equal.

    Cost:
        T scores.
    """  # noqa: DOC502 - raised by the parts
    check_rule(rule)
    rounds, density = as_count("rounds", rounds), as_density(density)
    free = survivors(system)
    shapes = {name: tuple(mask.shape) for name, mask in free.items()}
    size = sum(mask.numel() for mask in free.values())
    check_room([m.reshape(-1) for m in free.values()], density, "all layers")
    first = sum(int(mask.count_nonzero()) for mask in free.values()) / size
    masks, before, scope = free, None, scope_of(rule)
    for t in range(1, rounds + 1):
        scores = score(t, masks)
        check_scores(scores, shapes)
        allowed = free if may_return else masks
        own = density if t == rounds else first * (density / first) ** (t / rounds)
        check_choice(scores, allowed, own, scope)
        masks = select(
            scores, allowed, density=own, scope=scope, rule=rule, before=before
        )
        before = None if may_return else own
    return masks
