"""What drawing an early-bird ticket returns."""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from dynprune.core import (
    Cost,
    InvalidInputError,
    Outcome,
    Provenance,
    join_parts,
    load_result,
    part_of,
    save_tensors,
)
from dynprune.tickets import Ticket, pack_network, unpack_network

Unit = Literal["channel", "weight"]
_KIND = "pruning.EarlyBird"
_PLAIN = ("unit", "drawn_epoch", "drawn_step", "tolerance")


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class EarlyBird:
    """Hold an early-bird ticket with how it was drawn.

    Args:
        unit: ``"channel"`` or ``"weight"``.
        mask_items: Parameter name and boolean tensor of the last look, True = kept:
            scales of batch norms, or prunable weights.
        ticket: The ticket, None if none was drawn. Of channels, it masks the scale and
            shift of each pruned channel, and the rows and columns of weights that fall
            with it: the parameters of ``network``, at their places in the whole one.
        network: The network without the pruned channels, at the ticket's state, to be
            trained; None for weights, or if no ticket was drawn.
        parameters: Numbers of parameters of the whole and of the smaller network.
        flops: Floating-point operations of one forward pass of one example in both.
        drawn_epoch: Before which epoch, from 0, it was drawn; None if it was not.
        drawn_step: After how many optimiser steps.
        look_steps: The steps of all looks.
        distances: Share of the entries in which the mask of each look differs from
            the one 1, 2, … looks before, shape ``(looks, window - 1)``; NaN where
            there was none.
        tolerance: Largest share that counts as the same.
        outcome: ``CONVERGED`` if it was drawn.
        cost: What it took.
        provenance: What made it.
    """

    unit: Unit
    mask_items: tuple[tuple[str, Tensor], ...]
    ticket: Ticket | None
    network: nn.Module | None
    parameters: tuple[int, int]
    flops: tuple[float, float]
    drawn_epoch: int | None
    drawn_step: int | None
    look_steps: tuple[int, ...]
    distances: Tensor
    tolerance: float
    outcome: Outcome
    cost: Cost = field(default_factory=Cost)
    provenance: Provenance = field(
        default_factory=lambda: Provenance(made_by="pruning.early_bird")
    )

    def __post_init__(self) -> None:
        """Copy the tensors."""
        copies = tuple((n, m.detach().to("cpu", copy=True)) for n, m in self.mask_items)
        object.__setattr__(self, "mask_items", copies)
        object.__setattr__(self, "distances", self.distances.detach().clone())

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter name to boolean tensor of the last look, fresh copies."""
        return {name: part.clone() for name, part in self.mask_items}

    @property
    def density(self) -> float:
        """Kept / all channels or weights at the last look."""
        kept = sum(int(part.sum()) for _, part in self.mask_items)
        return kept / sum(part.numel() for _, part in self.mask_items)

    @property
    def farthest(self) -> Tensor:
        """The largest of the distances of each look, NaN if there are too few."""
        return self.distances.max(1).values  # NaN where any is

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write masks, ticket and the network's tensors to one safetensors file.

        Code is not stored: :meth:`load` needs the whole model for the network.

        Args:
            path: Where; the file is whole or absent.
        """
        parts = {"masks": (dict(self.mask_items), dict[str, Any]())}
        if self.ticket is not None:
            parts["ticket"] = self.ticket.pack()
        if self.network is not None:
            parts["network"] = pack_network(self.network)
        tensors, metadata = join_parts(parts)
        tensors["distances"] = self.distances
        tensors["flops"] = torch.tensor(self.flops, dtype=torch.float64)
        metadata |= {name: getattr(self, name) for name in _PLAIN} | {
            "kind": _KIND,
            "masks": [name for name, _ in self.mask_items],
            "parameters": list(self.parameters),
            "look_steps": list(self.look_steps),
            "outcome": self.outcome.name,
            "cost": asdict(self.cost),
            "provenance": self.provenance.to_dict(),
        }
        save_tensors(path, tensors, metadata)

    @staticmethod
    def load(
        path: str | os.PathLike[str], model: nn.Module | None = None
    ) -> "EarlyBird":
        """Read what :meth:`save` wrote.

        Args:
            path: The file.
            model: The whole model, with any weights, if the file holds a network: its
                code, and where the tensors are to be. Not changed.

        Returns:
            The ticket with how it was drawn, and the network in the mode and with the
            weights that it had.

        Raises:
            InvalidInputError: If the file is missing, truncated, or no early-bird
                ticket, or holds a network and there is no model, or another one.
        """  # noqa: DOC502 - raised by load_result
        return load_result(
            path,
            _KIND,
            lambda tensors, metadata: _unpack(tensors, metadata, model),
            what="an early-bird ticket",
            writer="EarlyBird.save",
        )

    def summary(self) -> str:
        """Return five lines that a person reads."""
        drawn = (
            f"before epoch {self.drawn_epoch} (step {self.drawn_step})"
            if self.drawn_step is not None
            else f"not within {self.look_steps[-1]} steps"
        )
        last = float(self.farthest[-1])
        before, after = self.parameters
        network = f"{after} of {before} parameters"
        if self.network is not None:
            network += f", {self.flops[1]:.4g} of {self.flops[0]:.4g} FLOPs"
        return "\n".join([
            f"Early-bird ticket of {self.unit}s, seed {self.provenance.seed}",
            f"drawn     {drawn}; farthest of {self.distances.shape[1]} masks {last:.4g}"
            f" (tolerance {self.tolerance:g})",
            f"kept      {self.density:.4g} of the {self.unit}s",
            f"network   {network}",
            f"cost      {self.cost.gradients:.4g} gradients, {self.cost.steps} steps",
        ])

    def to_frame(self) -> Any:
        """Return a pandas frame, one row per look: look, step, farthest."""
        import pandas as pd

        frame = pd.DataFrame({
            "look": range(len(self.look_steps)),
            "step": list(self.look_steps),
            "farthest": self.farthest.tolist(),
        })
        frame.attrs["units"] = {
            "step": "optimiser steps",
            "farthest": f"share of the {self.unit}s",
        }
        return frame

    def plot(self, ax: Any = None) -> Any:
        """Draw the largest distance of each look, and the tolerance.

        Args:
            ax: Matplotlib axes; a new figure by default.

        Returns:
            The axes.
        """
        import matplotlib.pyplot as plt

        axes = plt.subplots()[1] if ax is None else ax
        axes.plot(list(self.look_steps), self.farthest.tolist(), marker="o")
        axes.axhline(self.tolerance, linestyle="--")
        axes.set_xlabel("optimiser steps")
        axes.set_ylabel(f"mask distance (share of the {self.unit}s)")
        return axes

    def __repr__(self) -> str:
        """Return one line."""
        return (
            f"EarlyBird({self.unit}s, density={self.density:.4g}, "
            f"drawn_step={self.drawn_step}, {self.outcome.name})"
        )


def _unpack(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], model: nn.Module | None
) -> EarlyBird:
    parts = metadata["parts"]
    if "network" in parts and model is None:
        raise InvalidInputError(
            "The file holds the tensors of a network without the pruned channels, not "
            "its code. Pass model=, the whole model, with any weights."
        )
    masks = part_of(tensors, metadata, "masks")[0]
    ticket = network = None
    if "ticket" in parts:
        ticket = Ticket.unpack(*part_of(tensors, metadata, "ticket"))
    if "network" in parts and model is not None:
        network = unpack_network(*part_of(tensors, metadata, "network"), model)
    whole, small = metadata["parameters"]
    before, after = tensors["flops"].tolist()
    return EarlyBird(
        mask_items=tuple((name, masks[name]) for name in metadata["masks"]),
        ticket=ticket,
        network=network,
        parameters=(whole, small),
        flops=(before, after),
        look_steps=tuple(metadata["look_steps"]),
        distances=tensors["distances"],
        outcome=Outcome[metadata["outcome"]],
        cost=Cost(**metadata["cost"]),
        provenance=Provenance.from_dict(metadata["provenance"]),
        **{name: metadata[name] for name in _PLAIN},
    )


def distances(new: Tensor, earlier: list[Tensor], window: int) -> Tensor:
    """Return the share of entries in which a mask differs from earlier ones.

    Args:
        new: A flat mask.
        earlier: The masks before it, the newest first.
        window: Number of masks that are compared, the new one included.

    Returns:
        Shape ``(window - 1,)``; NaN where there was no earlier mask.
    """
    found = torch.full((window - 1,), float("nan"), dtype=torch.float64)
    for index, mask in enumerate(earlier[: window - 1]):
        found[index] = float((new != mask).sum()) / len(new)
    return found
