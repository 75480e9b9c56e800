"""Which channels of a tensor are held, and how to pass from some to others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """Say which of a tensor's channels (dimension 1) are held; the others are zero.

    Args:
        size: Number of channels of the whole tensor.
        places: Which of them are held, increasing.
    """

    size: int
    places: tuple[int, ...]

    @property
    def whole(self) -> bool:
        """Whether all channels are held."""
        return len(self.places) == self.size

    def spread(self, factor: int) -> "Held":
        """Return what is held after each channel became ``factor`` features in a row.

        Args:
            factor: Features per channel, e.g. the pixels of a flattened image.

        Returns:
            The features held.
        """
        return Held(
            size=self.size * factor,
            places=tuple(c * factor + i for c in self.places for i in range(factor)),
        )


@final
class ChannelMap(nn.Module):
    """Pass from a tensor that holds some channels to one that holds others.

    Channels that only the second holds are zero.

    Args:
        before: Places held by the input, increasing.
        after: Places held by the output.
    """

    takes: Tensor
    places: Tensor

    def __init__(self, before: Sequence[int], after: Sequence[int]) -> None:
        nn.Module.__init__(self)
        index = {place: i for i, place in enumerate(before)}
        both = [(index[c], i) for i, c in enumerate(after) if c in index]
        self.size = len(after)
        self.register_buffer("takes", torch.tensor([t for t, _ in both]).long())
        self.register_buffer("places", torch.tensor([p for _, p in both]).long())

    def forward(self, x: Tensor) -> Tensor:
        """Take, place and fill up with zeros.

        Args:
            x: Shape ``(N, len(before), …)``.

        Returns:
            Shape ``(N, len(after), …)``.
        """
        found = x.index_select(1, self.takes)
        if found.shape[1] == self.size:
            return found
        whole = x.new_zeros((x.shape[0], self.size, *x.shape[2:]))
        return whole.index_copy(1, self.places, found)

    def extra_repr(self) -> str:
        """Return the sizes, for ``repr``."""
        return f"{len(self.takes)} of {self.size}"
