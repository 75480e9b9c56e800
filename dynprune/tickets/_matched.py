"""A ticket beside a control of exactly the same layer densities."""

from dataclasses import dataclass, replace
from typing import Any, final

from dynprune.core import Provenance
from dynprune.tickets._shuffle import shuffle
from dynprune.tickets._ticket import Ticket


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Matched:
    """Hold a ticket and a control to be trained beside it.

    Args:
        ticket: The ticket.
        control: The same state under masks of the same layer densities that do not
            know which weights.
        provenance: What made it.
    """

    ticket: Ticket
    control: Ticket
    provenance: Provenance

    @property
    def density(self) -> float:
        """Kept / prunable weights, of both."""
        return self.ticket.density

    @property
    def overlap(self) -> float:
        """Share of the ticket's weights that the control keeps, too."""
        other = dict(self.control.mask_items)
        both = sum(int((m & other[n]).sum()) for n, m in self.ticket.mask_items)
        return both / self.ticket.kept

    def summary(self) -> str:
        """Return five lines that a person reads."""
        made = self.provenance
        return "\n".join([
            f"Matched by {made.made_by}, seed {made.seed}",
            f"ticket    {self.ticket.provenance.made_by}",
            f"control   {self.control.provenance.made_by}",
            f"density   {self.density:.4g}, the same in each of "
            f"{len(self.ticket.mask_items)} layers",
            f"overlap   {self.overlap:.3g} of the ticket's weights",
        ])

    def to_frame(self) -> Any:
        """Return a pandas frame, one row per layer: layer, kept, size, overlap."""
        import pandas as pd

        other = dict(self.control.mask_items)
        frame = pd.DataFrame([
            {
                "layer": name,
                "kept": int(mask.sum()),
                "size": mask.numel(),
                "overlap": int((mask & other[name]).sum()),
            }
            for name, mask in self.ticket.mask_items
        ])
        frame.attrs["units"] = dict.fromkeys(("kept", "size", "overlap"), "weights")
        return frame

    def __repr__(self) -> str:
        """Return one line."""
        return f"Matched({self.ticket!r}, overlap={self.overlap:.3g})"


def matched(ticket: Ticket, *, seed: int = 0) -> Matched:
    r"""Put a control of the same layer densities beside a ticket.

    A transferred ticket has the density that its copies give it, which is not that of
    its source; what it is worth is the difference to masks of exactly that density in
    every layer, drawn at random (:func:`shuffle`), from the same state. Training both
    and comparing them is left to ``dp.train`` and the study.

    Args:
        ticket: The ticket, e.g. of :func:`stretch` or :func:`squeeze`.
        seed: Of the control.

    Returns:
        Both.

    Source:
        Frankle et al., *Pruning Neural Networks at Initialization: Why Are We Missing
        the Mark?*, ICLR 2021.

    Example:
        >>> import torch
        >>> kept = {"w": torch.tensor([True, True, False, False])}
        >>> found = matched(Ticket.make(kept, {"w": torch.ones(4)}))
        >>> found.control.layer_densities == found.ticket.layer_densities
        True
    """
    control = shuffle(ticket, seed=seed)
    made = control.provenance
    return Matched(
        ticket=ticket,
        control=control,
        provenance=replace(made, made_by="tickets.matched"),
    )
