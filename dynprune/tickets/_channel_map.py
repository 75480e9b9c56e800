"""From a tensor that holds some channels to one that holds others."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn


@final
class ChannelMap(nn.Module):
    """Pass from a tensor that holds some channels to one that holds others.

    Channels that only the second holds are zero.

    Args:
        before: Places held by the input, increasing.
        after: Places held by the output.
        dim: Which dimension the channels are.
    """

    takes: Tensor
    places: Tensor

    def __init__(
        self, before: Sequence[int], after: Sequence[int], *, dim: int = 1
    ) -> None:
        nn.Module.__init__(self)
        index = {place: i for i, place in enumerate(before)}
        both = [(index[c], i) for i, c in enumerate(after) if c in index]
        self.size, self.dim = len(after), dim
        self.register_buffer("takes", torch.tensor([t for t, _ in both]).long())
        self.register_buffer("places", torch.tensor([p for _, p in both]).long())

    def forward(self, x: Tensor) -> Tensor:
        """Take, place and fill up with zeros.

        Args:
            x: With ``len(before)`` channels, ``(N, len(before), …)`` for ``dim=1``.

        Returns:
            With ``len(after)`` channels.
        """
        found = x.index_select(self.dim, self.takes)
        if found.shape[self.dim] == self.size:
            return found
        shape = list(x.shape)
        shape[self.dim] = self.size
        return x.new_zeros(shape).index_copy(self.dim, self.places, found)

    def extra_repr(self) -> str:
        """Return the sizes, for ``repr``."""
        return f"{len(self.takes)} of {self.size}"
