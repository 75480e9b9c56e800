"""The sanity check that keeps layer densities and forgets which weights."""

from dataclasses import replace

import torch

from dynprune.core import derive_seed, generator
from dynprune.tickets._given import check_tickets
from dynprune.tickets._ticket import Ticket


def shuffle(ticket: Ticket, *, seed: int = 0) -> Ticket:
    r"""Permute the mask of each layer, uniformly over all orders.

    With :math:`\pi_l` a random permutation of the weights of layer l, the new mask is
    :math:`m'_l = m_l \circ \pi_l`: layer densities stay exactly as they are, only
    which weights are kept is forgotten. State and buffers stay.

    Args:
        ticket: The ticket.
        seed: Of the permutations, which also depend on the layer's name.

    Returns:
        A new ticket; its cost is that of the old one.

    Source:
        Frankle et al., *Pruning Neural Networks at Initialization: Why Are We Missing
        the Mark?*, ICLR 2021.

    Example:
        >>> kept = {"w": torch.tensor([True, True, False, False])}
        >>> ticket = Ticket.make(kept, {"w": torch.ones(4)})
        >>> shuffle(ticket, seed=1).kept
        2
    """
    check_tickets(ticket=ticket)
    shuffled = []
    for name, mask in ticket.mask_items:
        draw = generator(derive_seed("tickets.shuffle", seed, name))
        order = torch.randperm(mask.numel(), generator=draw)
        shuffled.append((name, mask.reshape(-1)[order].view(mask.shape)))
    return replace(
        ticket,
        mask_items=tuple(shuffled),
        provenance=replace(
            ticket.provenance,
            made_by="tickets.shuffle",
            seed=seed,
            settings=(
                ("origin", ticket.provenance.made_by),
                ("origin_seed", ticket.provenance.seed),
            ),
            sources=tuple(dict.fromkeys((*ticket.provenance.sources, "sanity"))),
        ),
    )
