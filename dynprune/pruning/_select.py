"""Which weights to keep, given their scores."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dynprune.core import InvalidInputError
from dynprune.pruning._count_rules import (
    Rule,
    check_rule,
    keep,
    kept_count as kept_count,
)
from dynprune.pruning._prunable import check_any, check_each, check_prunable

Scope = Literal["global", "layer"]
# what there is an order statistic of, in float32 or float64
_KINDS = {
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}
_WHOLE = 2**53
# a density for all tensors, or one for each by name
Density = float | Mapping[str, float]


def check_scores(
    scores: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Check that there is one finite score for every prunable weight.

    Args:
        scores: Parameter name to scores.
        shapes: Name to shape of every prunable weight.

    Raises:
        InvalidInputError: If there is no prunable weight, a name is missing or too
            much, a shape differs, or a score is no real number, NaN, infinite, or an
            integer beyond 2**53.
    """
    check_prunable(shapes)
    check_any(math.prod(shape) for shape in shapes.values())
    check_each("Scores", scores, shapes)
    for name, shape in shapes.items():
        check_kind(name, scores[name])
        if tuple(scores[name].shape) != shape:
            raise InvalidInputError(
                f"The scores of {name!r} have shape {tuple(scores[name].shape)}, the "
                f"weights {shape}. Pass one score for each weight."
            )
        if not _is_finite(scores[name]):
            bad = int((~torch.isfinite(scores[name])).sum())
            raise InvalidInputError(
                f"{bad} of {scores[name].numel()} scores of {name!r} are NaN or "
                "infinite. Look for overflow in the state or the data; larger = keep, "
                "finite."
            )


def check_kind(name: str, scores: Any) -> None:
    """Refuse scores that are no tensor of numbers that floats tell apart.

    Args:
        name: Of the weights.
        scores: As given.

    Raises:
        InvalidInputError: If they are none.
    """
    kind = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
    if kind not in _KINDS:
        raise InvalidInputError(
            f"The scores of {name!r} are of {kind}. Pass a tensor of real numbers for "
            "each, in a floating-point dtype."
        )
    if kind == torch.int64 and scores.numel():
        low, high = (int(end) for end in scores.aminmax())
        if max(-low, high) > _WHOLE:
            raise InvalidInputError(
                f"The scores of {name!r} run from {low} to {high}, beyond 2**53, where "
                "float64 does not tell integers apart. Pass smaller ones, as ranks."
            )


def select(
    scores: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    *,
    density: Density,
    scope: Scope = "global",
    rule: Rule = "exact",
    before: float | None = None,
) -> dict[str, Tensor]:
    """Keep the highest scores; by default exactly so many, ties to the lower index.

    Args:
        scores: Parameter name to finite scores; order counts for ties.
        alive: Name to boolean tensor, True = may be kept.
        density: Kept / all weights, in (0, 1]; or one for each name, which is a choice
            in each tensor for itself, whatever the scope.
        scope: Over all weights together, or in each tensor for itself.
        rule: How many, and who wins ties; see :func:`dynprune.pruning.from_scores`.
        before: In a later round: the density by which the same rule chose ``alive``.
            A rule may have kept fewer then than this density would keep now.

    Returns:
        Name to boolean tensor on the CPU, True = kept.

    Raises:
        InvalidInputError: If more is to be kept than is alive in the first round, in
            some tensor where each has its own choice; if the rule keeps nothing at all;
            or if the scope or the rule is unknown.

    Cost:
        One ``torch.kthvalue``, and one copy of the scores: in their own floating-point
        dtype, at least float32; float64 for integers of more than 16 bits.
    """
    check_scope(scope)
    check_rule(rule)
    flat = dict(zip(scores, _of_one_kind(list(scores.values())), strict=True))
    free = {name: alive[name].reshape(-1).to(flat[name].device) for name in flat}
    if scope == "layer" or isinstance(density, Mapping):
        pools = [([name], name) for name in flat]
    else:
        pools = [(list(flat), "all layers")]
    masks: dict[str, Tensor] = {}
    for names, where in pools:
        own = density[where] if isinstance(density, Mapping) else density
        parts, left = [flat[name] for name in names], [free[name] for name in names]
        if before is None:
            check_room(left, own, where)
        if any(bool(part.any()) for part in left):
            left = keep(parts, left, own, rule, before)
        masks |= zip(names, left, strict=True)
    some = any(len(part) for part in flat.values())
    if some and not any(bool(mask.any()) for mask in masks.values()):
        raise InvalidInputError(
            f"Rule {rule!r} at density {density} keeps no weight at all of "
            f"{', '.join(masks)}: it drops all that tie with its threshold. Pass a "
            "higher density, or rule='exact'."
        )
    return {name: mask.view(scores[name].shape).cpu() for name, mask in masks.items()}


def scope_of(rule: Rule) -> Scope:
    """Return what a rule is for: each tensor for itself, or all together.

    Args:
        rule: Which.

    Returns:
        The scope.
    """
    return "layer" if rule == "lth2018" else "global"


def check_scope(scope: str) -> None:
    """Refuse a scope that is not known.

    Args:
        scope: As given.

    Raises:
        InvalidInputError: If there is no such scope.
    """
    if scope not in {"global", "layer"}:
        raise InvalidInputError(f"scope is {scope!r}. Pass 'global' or 'layer'.")


def chooses(
    scores: Mapping[str, Tensor], alive: Mapping[str, Tensor], density: float
) -> bool:
    """Say whether scores choose, and not the flat index alone.

    Args:
        scores: Parameter name to finite scores.
        alive: Name to boolean tensor, True = may be kept.
        density: Kept / all weights, in (0, 1].

    Returns:
        False where :func:`check_choice` refuses.
    """
    return not any(_undecided(scores, alive, density, "global"))


def check_choice(
    scores: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    density: Density,
    scope: Scope,
) -> None:
    """Refuse scores that are all equal where some must go.

    Args:
        scores: Parameter name to finite scores.
        alive: Name to boolean tensor, True = may be kept.
        density: As for :func:`select`.
        scope: As for :func:`select`.

    Raises:
        InvalidInputError: If nothing but the flat index would choose, over all tensors
            or in one that has a count of its own.
    """
    for where, left, value, kept in _undecided(scores, alive, density, scope):
        raise InvalidInputError(
            f"The {left} scores {where} are all {value:g}, and {kept} are to be kept: "
            "the flat index would decide. Check the state (equal weights, dead units, "
            "no gradient), or use pruning.random."
        )


def _undecided(
    scores: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    density: Density,
    scope: Scope,
) -> Iterator[tuple[str, int, float, int]]:
    # pools of equal scores where some must go: name, size, score, and how many stay
    by_layer = scope == "layer" or isinstance(density, Mapping)
    pools = [[name] for name in alive] if by_layer else [list(alive)]
    for names in pools:
        d = density[names[0]] if isinstance(density, Mapping) else density
        size = sum(alive[name].numel() for name in names)
        left = sum(int(alive[name].count_nonzero()) for name in names)
        if not size:
            continue
        if kept_count(d, size) >= left:
            continue
        ends = [_ends(scores[name], alive[name]) for name in names if alive[name].any()]
        low, high = min(end[0] for end in ends), max(end[1] for end in ends)
        if low == high:
            where = f"of {names[0]!r}" if by_layer else "of all layers"
            yield where, left, low, kept_count(d, size)


def _ends(scores: Tensor, alive: Tensor) -> tuple[float, float]:
    # equal numbers stay equal in float64, and unequal ones unequal
    own = scores.detach()
    if not bool(alive.all()):
        own = own[alive.to(own.device)]
    low, high = own.aminmax()
    return float(low), float(high)


def check_room(alive: Sequence[Tensor], density: float, where: str) -> None:
    """Refuse a density that what is alive cannot reach.

    Args:
        alive: Flat boolean tensors of one pool.
        density: Kept / all weights, in (0, 1].
        where: What the pool is called.

    Raises:
        InvalidInputError: If more is to be kept than is alive.
    """
    every = torch.cat(list(alive))
    if not len(every):
        return
    count, left = kept_count(density, len(every)), int(every.count_nonzero())
    if count > left:
        raise InvalidInputError(
            f"Density {density} keeps {count} of {len(every)} weights of {where}, but "
            f"only {left} survive the system's mask. Pass a lower density, or "
            "remove the mask with system.with_mask({})."
        )


def _of_one_kind(parts: Sequence[Tensor]) -> list[Tensor]:
    # flat, on one device, in float32 or, where that cannot hold a score, float64: no
    # copy where it fits
    wide = {torch.float64, torch.int64, torch.int32}
    has_wide = any(part.dtype in wide for part in parts)
    dtype = torch.float64 if has_wide else torch.float32
    place = parts[0].device
    return [part.detach().reshape(-1).to(device=place, dtype=dtype) for part in parts]


def _is_finite(scores: Tensor) -> bool:
    # the two ends tell, without a temporary of the scores' size
    return scores.numel() == 0 or all(map(torch.isfinite, scores.aminmax()))
