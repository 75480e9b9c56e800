"""A ticket as a graph: expansion of each layer, clustering and distance in all."""

import math
from dataclasses import dataclass
from typing import Any, final

from torch import nn

from dynprune.core import InvalidInputError, Provenance, whole
from dynprune.tickets._apply import check_masks
from dynprune.tickets._given import check_model, check_tickets
from dynprune.tickets._layer_forms import LayerForms
from dynprune.tickets._ramanujan import ramanujan
from dynprune.tickets._relational_graph import (
    GROUPS,
    average_path_length,
    clustering,
    relational_graph,
)
from dynprune.tickets._ticket import Ticket


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class GraphMeasures:
    r"""Hold the graph measures of a ticket; see :func:`graph_measures`.

    Args:
        layers: Parameter names of the masks.
        ramanujan_s: δ_S for each layer; NaN where a mean degree is below 3.
        ramanujan_r: δ_R for each layer.
        clustering: C of the relational graph.
        average_path_length: L of the relational graph.
        provenance: Where it comes from.
    """

    layers: tuple[str, ...]
    ramanujan_s: tuple[float, ...]
    ramanujan_r: tuple[float, ...]
    clustering: float
    average_path_length: float
    provenance: Provenance

    def summary(self) -> str:
        """Return a few lines a person reads."""
        defined = [part for part in self.ramanujan_s if not math.isnan(part)]
        return "\n".join([
            f"Graph of {len(self.layers)} masks",
            f"δ_S       {sum(part >= 0 for part in defined)} of {len(defined)} layers "
            "with mean degrees of 3 and more are Ramanujan",
            f"C         {self.clustering:.4g} (relational graph)",
            f"L         {self.average_path_length:.4g} steps",
        ])

    def to_frame(self) -> Any:
        """Return a pandas frame: measure, layer, value."""
        import pandas as pd

        rows = [
            {"measure": measure, "layer": layer, "value": value}
            for measure in ("ramanujan_s", "ramanujan_r")
            for layer, value in zip(self.layers, getattr(self, measure), strict=True)
        ]
        rows += [
            {"measure": measure, "layer": "all", "value": getattr(self, measure)}
            for measure in ("clustering", "average_path_length")
        ]
        return pd.DataFrame(rows)

    def plot(self, ax: Any = None) -> Any:
        """Draw δ_S and δ_R of each layer.

        Args:
            ax: Matplotlib axes; a new figure by default.

        Returns:
            The axes.
        """
        if ax is None:
            import matplotlib.pyplot as plt

            height = 1.4 + 0.3 * len(self.layers)
            _, ax = plt.subplots(figsize=(6, height), layout="constrained")
        places = range(len(self.layers))
        ax.plot(self.ramanujan_s, places, "o", color="#0072B2", label=r"$\delta_S$")
        ax.plot(self.ramanujan_r, places, "s", color="#D55E00", label=r"$\delta_R$")
        ax.axvline(0.0, color="0.6", lw=0.8, zorder=0)
        ax.set_yticks(places, [name.replace("$", r"\$") for name in self.layers])
        ax.invert_yaxis()
        ax.set_xlabel("distance to the Ramanujan bound (≥ 0: expander)")
        ax.legend()
        return ax


def graph_measures(
    ticket: Ticket, *, model: nn.Module | None = None, groups: int = GROUPS
) -> GraphMeasures:
    r"""Measure the graphs that the masks of a ticket are.

    Each layer as a bipartite graph, of inputs (channels × kernel positions) and
    outputs:

    .. math:: \delta_S = 2 \sqrt{\lambda_1 - 1} - \lambda_2, \qquad
              \delta_R = \sqrt{d_L - 1} + \sqrt{d_R - 1} - \lambda_2

    with :math:`\lambda_{1, 2}` the largest singular values of its 0/1 matrix and d
    mean degrees, units without a weight left out; at least 0 = Ramanujan. The whole
    network as a relational graph, whose nodes are groups of units with the same index
    in every layer: clustering C and average path length L. (The plain layered graph
    has no triangle: C = 0.)

    Args:
        ticket: The ticket; only its masks count.
        model: The model that it is of; only how its layers store weights counts.
            Without it every mask is read as (out, in, …), **which is another graph**
            for convolutions with groups, transposed ones, Hugging Face ``Conv1D`` and
            embeddings. The gates of a recurrent layer are units of their own (an LSTM
            of H units has 4H outputs), also in the relational graph.
        groups: Number of nodes of the relational graph.

    Returns:
        The measures; NaN where they are not defined.

    Raises:
        InvalidInputError: If there are fewer than 3 groups, or the masks do not fit the
            model.

    Cost:
        Two singular values per layer, one product of groups × groups matrices.

    Source:
        Pal et al., *A Study on the Ramanujan Graph Property of Winning Lottery
        Tickets*, ICML 2022; You et al., *Graph Structure of Neural Networks*, ICML
        2020.

    Example:
        >>> import torch
        >>> full = {"w": torch.ones(4, 9).bool()}
        >>> found = graph_measures(Ticket.make(full, {"w": torch.zeros(4, 9)}))
        >>> round(found.ramanujan_r[0], 5)  # complete: λ₂ = 0
        4.56048
    """
    check_tickets(ticket=ticket)
    if model is not None:
        check_model(model)
    groups = whole(groups, name="groups")
    if groups < 3:
        raise InvalidInputError(
            f"A relational graph of {groups} groups was asked for, which can have no "
            "triangle. Pass 3 or more, e.g. 64."
        )
    if model is not None:
        check_masks(ticket.mask_items, model)
    forms = LayerForms(model)
    masks = [forms.straight(name, mask) for name, mask in ticket.mask_items]
    pairs = [ramanujan(mask) for mask in masks]
    graph = relational_graph(masks, groups=groups)
    return GraphMeasures(
        layers=tuple(name for name, _ in ticket.mask_items),
        ramanujan_s=tuple(pair[0] for pair in pairs),
        ramanujan_r=tuple(pair[1] for pair in pairs),
        clustering=clustering(graph),
        average_path_length=average_path_length(graph),
        provenance=Provenance(
            made_by="tickets.graph_measures",
            settings=(("groups", groups),),
            sources=("ramanujan", "relational_graph"),
        ),
    )
