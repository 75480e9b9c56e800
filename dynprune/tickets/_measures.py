"""Everything that is measured of one ticket alone."""

import math
from typing import Any, final

from torch import Tensor, nn

from dynprune.core import Cost, InvalidInputError
from dynprune.operators import HessianOperator
from dynprune.spectral import eigenpairs
from dynprune.system import GradientSystem
from dynprune.tickets._chain import chain_effective
from dynprune.tickets._layer_forms import UNKNOWN, LayerForms
from dynprune.tickets._locality import locality
from dynprune.tickets._path_network import PathNetwork, check_example
from dynprune.tickets._ramanujan import ramanujan
from dynprune.tickets._readings import ALL
from dynprune.tickets._relational_graph import (
    average_path_length,
    clustering,
    relational_graph,
)
from dynprune.tickets._ticket import Ticket

Values = dict[tuple[str, str], float]
CHAIN = "chain"
_TOL = 1e-4  # of the eigenvalues, relative: far below their spread over shuffles


@final
class TicketMeasures:
    """Measure tickets of one model, the same way each.

    Args:
        first: A ticket, to find out what can be measured.
        system: For gradient flow and curvature, and for its model.
        model: For paths; ``"chain"`` to read the masks as one; None for the system's.
        example: One example for the model; from the system's data by default.
        groups: Nodes of the relational graph.
        power: Of the path norm.
        eigenvalues: How many eigenvalues of the Hessian.
        seed: Of the iteration that finds them.
    """

    def __init__(
        self,
        first: Ticket,
        *,
        system: GradientSystem | None,
        model: Any,
        example: Any,
        groups: int,
        power: int,
        eigenvalues: int,
        seed: int,
    ) -> None:
        self._notes: list[str] = []
        self._pairs = self._missed = 0
        self.cost = Cost()
        self._system = system
        self._groups, self._power = groups, power
        self._eigenvalues, self._seed = eigenvalues, seed
        self._chain = model == CHAIN
        known = model if isinstance(model, nn.Module) else None
        if known is None and system is not None:
            known = system.module
        if known is None:
            self._notes.append(UNKNOWN)
        self.forms = LayerForms(known)
        self._network = self._network_of(model, example)
        self._reached = self._can_reach(first)
        self._normed = self._can_norm(first)

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be measured so far, and why."""
        if not self._missed:
            return tuple(self._notes)
        return (
            *self._notes,
            f"hessian_eigenvalue: {self._missed} of {self._pairs} did not converge to "
            f"{_TOL:g} and are left out, of tickets and of shuffles; pass fewer "
            "eigenvalues=, or system.double()",
        )

    def of(self, ticket: Ticket) -> Values:
        """Measure one ticket.

        Args:
            ticket: The ticket, or a shuffle of it.

        Returns:
            (measure, layer) to value; NaN where it is not defined.
        """
        state = ticket.masked_state
        return (
            self._graphs(ticket)
            | self._paths(ticket, state)
            | self._locality(ticket, state)
            | self._curvature(ticket)
        )

    def _graphs(self, ticket: Ticket) -> Values:
        found: Values = {}
        masks = {
            name: self.forms.straight(name, mask) for name, mask in ticket.mask_items
        }
        for name, mask in masks.items():
            pair = ramanujan(mask)
            found["ramanujan_s", name], found["ramanujan_r", name] = pair
        graph = relational_graph(masks.values(), groups=self._groups)
        found["clustering", ALL] = clustering(graph)
        found["average_path_length", ALL] = average_path_length(graph)
        return found

    def _paths(self, ticket: Ticket, state: dict[str, Tensor]) -> Values:
        masks = dict(ticket.mask_items)
        if self._chain:
            chain = chain_effective({
                name: self.forms.straight(name, mask) for name, mask in masks.items()
            })
            alive = {name: self.forms.own(name, part) for name, part in chain.items()}
        elif self._network is not None and self._reached:
            alive = self._network.effective(masks)
        else:
            return self._norm(ticket, state)
        kept = {name: int(part.sum()) for name, part in alive.items()}
        found: Values = {
            ("effective_density", ALL): sum(kept.values()) / ticket.prunable_size
        }
        found |= {
            ("effective_density", name): count / masks[name].numel()
            for name, count in kept.items()
        }
        return found | self._norm(ticket, state)

    def _norm(self, ticket: Ticket, state: dict[str, Tensor]) -> Values:
        if not self._normed or self._network is None:
            return {}
        norm = self._network.path_norm(
            state, dict(ticket.buffer_items), power=self._power
        )
        return {("path_norm", ALL): norm}

    def _locality(self, ticket: Ticket, state: dict[str, Tensor]) -> Values:
        name = self.forms.first(dict(ticket.mask_items))
        return {("locality", name): locality(self.forms.straight(name, state[name]))}

    def _curvature(self, ticket: Ticket) -> Values:
        if self._system is None:
            return {}
        masked = self._system.with_ticket(ticket)
        slope = masked.gradient(seed=self._seed)
        found: Values = {("gradient_flow", ALL): float(slope.double().square().sum())}
        self.cost += Cost(gradients=1.0)
        if self._eigenvalues:
            pairs = eigenpairs(
                HessianOperator(masked),
                self._eigenvalues,
                tol=_TOL,
                seed=self._seed,
                throw=False,
            )
            self.cost += Cost(hvps=float(pairs.matvecs))
            self._pairs += len(pairs.values)
            self._missed += int((~pairs.converged).sum())
            marked = zip(pairs.values, pairs.converged, strict=True)
            found |= {
                (f"hessian_eigenvalue_{index + 1}", ALL): float(value)
                if converged
                else math.nan
                for index, (value, converged) in enumerate(marked)
            }
        return found

    def _network_of(self, model: Any, example: Any) -> PathNetwork | None:
        if isinstance(model, nn.Module):
            return PathNetwork(model, check_example(example))
        if self._chain:
            known = self._system is not None
            way = "leave out model='chain'" if known else "pass model= or system="
            self._notes.append(f"path_norm: {way}")
            return None
        if self._system is None:
            self._notes.append(
                "effective_density, path_norm: pass system=, model= or model='chain'"
            )
            return None
        if example is None:
            example = _one_of(self._system)
        if example is None:
            self._notes.append(
                "effective_density, path_norm: the system's batches are no (x, y) of "
                "floating-point x; pass example="
            )
            return None
        return PathNetwork(self._system.module, example)

    def _can_reach(self, ticket: Ticket) -> bool:
        if self._network is None:
            return False
        why = self._network.hidden(dict(ticket.mask_items))
        if why:
            self._notes.append(f"effective_density: {why}")
        return not why

    def _can_norm(self, ticket: Ticket) -> bool:
        if self._network is None:
            return False
        try:  # the whole state, whose paths are those of every ticket
            self._network.path_norm(
                dict(ticket.state_items), dict(ticket.buffer_items), power=self._power
            )
        except InvalidInputError as error:
            self._notes.append(f"path_norm: {error}")
            return False
        return True


def _one_of(system: GradientSystem) -> Tensor | None:
    batch = next(system.batches(), None)
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        return None
    x = batch[0]
    usable = isinstance(x, Tensor) and x.is_floating_point() and x.ndim > 0
    return x[:1] if usable else None
