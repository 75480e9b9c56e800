"""Exact counts: which weights to keep, given their scores."""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from dynprune.core import InvalidInputError

Scope = Literal["global", "layer"]


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


def check_scores(
    scores: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Check that there is one finite score for every prunable weight.

    Args:
        scores: Parameter name to scores.
        shapes: Name to shape of every prunable weight.

    Raises:
        InvalidInputError: If there is no prunable weight, a name is missing or too
            much, a shape differs, or a score is NaN or infinite.
    """
    if not shapes:
        raise InvalidInputError(
            "The system has no prunable weight (no trainable Linear or Conv layer "
            "among its parameters). Pass a model that has one, or select others."
        )
    missing = [name for name in shapes if name not in scores]
    extra = [name for name in scores if name not in shapes]
    if missing or extra:
        raise InvalidInputError(
            f"Scores are missing for {missing or 'none'} and too much for "
            f"{extra or 'none'}. Pass one tensor for each of system.prunable: "
            f"{', '.join(shapes)}."
        )
    for name, shape in shapes.items():
        if tuple(scores[name].shape) != shape:
            raise InvalidInputError(
                f"The scores of {name!r} have shape {tuple(scores[name].shape)}, the "
                f"weights {shape}. Pass one score for each weight."
            )
        bad = int((~torch.isfinite(scores[name])).sum())
        if bad:
            raise InvalidInputError(
                f"{bad} of {scores[name].numel()} scores of {name!r} are NaN or "
                "infinite. Look for overflow in the state or the data; larger = keep, "
                "finite."
            )


def select(
    scores: Mapping[str, Tensor],
    alive: Mapping[str, Tensor],
    *,
    density: float,
    scope: Scope = "global",
) -> dict[str, Tensor]:
    """Keep exactly the highest scores; ties go to the lower flat index.

    Args:
        scores: Parameter name to finite scores; order counts for ties.
        alive: Name to boolean tensor, True = may be kept.
        density: Kept / all weights, in (0, 1].
        scope: Over all weights together, or in each tensor for itself.

    Returns:
        Name to boolean tensor on the CPU, True = kept.

    Raises:
        InvalidInputError: If more is to be kept than is alive, or the scope is unknown.
    """
    if scope not in {"global", "layer"}:
        raise InvalidInputError(f"scope is {scope!r}. Pass 'global' or 'layer'.")
    flat = {name: part.detach().reshape(-1) for name, part in scores.items()}
    free = {name: alive[name].reshape(-1).to(flat[name].device) for name in flat}
    if scope == "layer":
        found = {name: _highest(flat[name], free[name], density, name) for name in flat}
        return {name: part.view(scores[name].shape) for name, part in found.items()}
    every = torch.cat(list(flat.values()))
    kept = _highest(every, torch.cat(list(free.values())), density, "all layers")
    parts = kept.split([part.numel() for part in flat.values()])
    return {
        name: part.view(scores[name].shape).clone()
        for name, part in zip(flat, parts, strict=True)
    }


def _highest(scores: Tensor, alive: Tensor, density: float, where: str) -> Tensor:
    count = kept_count(density, len(scores))
    places = torch.nonzero(alive).reshape(-1)
    if count > len(places):
        raise InvalidInputError(
            f"Density {density} keeps {count} of {len(scores)} weights of {where}, but "
            f"only {len(places)} survive the system's mask. Pass a lower density, or "
            "remove the mask with system.with_mask({})."
        )
    values = scores[places]
    if values.dtype in {torch.float16, torch.bfloat16}:
        values = values.float()
    threshold = values.kthvalue(len(values) - count + 1).values
    above, level = values > threshold, torch.nonzero(values == threshold).reshape(-1)
    above[level[: count - int(above.sum())]] = True
    mask = torch.zeros_like(alive)
    mask[places[above]] = True
    return mask.cpu()
