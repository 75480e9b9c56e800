"""Nested masks from one ranking of the weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from dynprune.rgflow._runs import TicketLike

Scope = Literal["global", "layer"]


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class RankedTicket:
    """Keep the weights of the lowest ranks; makes its masks when they are read.

    Args:
        ranks: Name to rank of each weight, 0 = kept longest.
        kept: Name to the number of weights that the run keeps there.
        scope: ``"global"`` if ranks count over all tensors, ``"layer"`` if in each.
        source: The run's own ticket, with its state and buffers.
    """

    ranks: Mapping[str, Tensor]
    kept: Mapping[str, int]
    scope: Scope
    source: TicketLike

    @property
    def masks(self) -> dict[str, Tensor]:
        """Name to boolean tensor, True = kept."""
        total = sum(self.kept.values())
        return {
            name: rank < (self.kept[name] if self.scope == "layer" else total)
            for name, rank in self.ranks.items()
        }

    @property
    def state(self) -> dict[str, Tensor]:
        """Name to the parameter that the run's ticket is trained from."""
        return self.source.state

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Name to buffer of the run's ticket."""
        return self.source.buffers


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class StateLevel:
    """Hold the weights of one level.

    Args:
        state: Name to weights.
    """

    state: Mapping[str, Tensor]


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class PrunedRun:
    """Hold masks and weights in the form of an IMP run.

    Args:
        tickets: One per level.
        levels: One per level.
    """

    tickets: tuple[RankedTicket, ...]
    levels: tuple[StateLevel, ...]


def magnitude_ranks(weights: Mapping[str, Tensor], scope: Scope) -> dict[str, Tensor]:
    """Rank weights by magnitude, the largest first, ties by flat index.

    Args:
        weights: Name to weights.
        scope: Over all tensors, or in each.

    Returns:
        Name to ranks, int64, of the same shapes.
    """
    if scope == "layer":
        return {
            name: _ranks(value.abs().reshape(-1)).view(value.shape)
            for name, value in weights.items()
        }
    flat = torch.cat([value.abs().reshape(-1) for value in weights.values()])
    return _split(_ranks(flat), weights)


def random_ranks(
    weights: Mapping[str, Tensor], scope: Scope, draw: torch.Generator
) -> dict[str, Tensor]:
    """Rank weights at random, uniformly over all orders.

    Args:
        weights: Name to weights; only shapes count.
        scope: Over all tensors, or in each.
        draw: Where the randomness comes from.

    Returns:
        Name to ranks, int64, of the same shapes.
    """
    if scope == "layer":
        return {
            name: torch.randperm(value.numel(), generator=draw).view(value.shape)
            for name, value in weights.items()
        }
    total = sum(value.numel() for value in weights.values())
    return _split(torch.randperm(total, generator=draw), weights)


def _ranks(scores: Tensor) -> Tensor:
    order = scores.argsort(descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order))
    return ranks


def _split(flat: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    parts = flat.split([value.numel() for value in weights.values()])
    return {
        name: part.view(value.shape)
        for part, (name, value) in zip(parts, weights.items(), strict=True)
    }
