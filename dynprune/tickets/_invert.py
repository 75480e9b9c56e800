"""The sanity check that keeps layer densities and the wrong weights."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, derive_seed, generator
from dynprune.tickets._apply import differences
from dynprune.tickets._given import check_tickets
from dynprune.tickets._ticket import Ticket


def invert(
    ticket: Ticket, scores: Mapping[str, Tensor] | None = None, *, seed: int = 0
) -> Ticket:
    r"""Keep, at the same layer densities, the weights that the pruner liked least.

    Layer l with :math:`K_l` kept weights keeps those of the :math:`K_l` lowest scores,
    ties to the lower flat index. Without scores all that is known is that pruned
    weights rank below kept ones: :math:`K_l` are drawn from the pruned weights of the
    layer, and where those are fewer than :math:`K_l`, all of them and the rest from
    the kept ones. State and buffers stay.

    The source inverts the scores of all layers together, which changes layer densities
    as well (``dp.pruning.from_scores`` with negated scores does that); here they stay,
    so that only the choice of weights within a layer is tested.

    Args:
        ticket: The ticket.
        scores: Parameter name to the scores it was made of, larger = keep, finite.
        seed: Of the draw without scores, which also depends on the layer's name.

    Returns:
        A new ticket; its cost is that of the old one.

    Raises:
        InvalidInputError: If scores are missing, too many, of a wrong shape, or not
            finite.

    Source:
        Frankle et al., *Pruning Neural Networks at Initialization: Why Are We Missing
        the Mark?*, ICLR 2021.

    Example:
        >>> kept = {"w": torch.tensor([True, False, False])}
        >>> ticket = Ticket.make(kept, {"w": torch.ones(3)})
        >>> invert(ticket, {"w": torch.tensor([3.0, 1.0, 2.0])}).masks["w"]
        tensor([False,  True, False])
    """  # noqa: DOC502 - raised by _check
    check_tickets(ticket=ticket)
    if scores is not None:
        _check(ticket, scores)
    inverted = []
    for name, mask in ticket.mask_items:
        flat = mask.reshape(-1)
        draw = generator(derive_seed("tickets.invert", seed, name))
        if scores is None:
            order = torch.randperm(len(flat), generator=draw)
            # a stable sort: pruned ones first, each kind in the drawn order
            order = order[torch.argsort(flat[order].long(), stable=True)]
        else:
            order = torch.argsort(scores[name].detach().reshape(-1).cpu(), stable=True)
        lowest = torch.zeros_like(flat)
        lowest[order[: int(flat.sum())]] = True
        inverted.append((name, lowest.view(mask.shape)))
    made = ticket.provenance
    return replace(
        ticket,
        mask_items=tuple(inverted),
        provenance=replace(
            made,
            made_by="tickets.invert",
            seed=seed,
            settings=(
                ("origin", made.made_by),
                ("origin_seed", made.seed),
                ("scores", scores is not None),
            ),
            sources=tuple(dict.fromkeys((*made.sources, "sanity"))),
        ),
    )


def _check(ticket: Ticket, scores: Mapping[str, Tensor]) -> None:
    lines = differences(
        dict(ticket.mask_items), scores, "in the scores", "in the ticket", dtypes=False
    )
    bad = [name for name, part in scores.items() if not torch.isfinite(part).all()]
    if lines or bad:
        lines += [f"NaN or infinite: {', '.join(bad)}"] if bad else []
        raise InvalidInputError(
            f"The scores do not fit the ticket's masks: {'; '.join(lines)}. Pass one "
            "finite score for each weight that the ticket masks."
        )
