"""Any score becomes a ticket by the same rule."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from dynprune.core import Cost, InvalidInputError, Provenance
from dynprune.pruning._select import Scope, check_scores, select
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket

Rule = Literal["exact"]


def from_scores(
    system: GradientSystem,
    scores: Mapping[str, Tensor],
    *,
    density: float,
    rule: Rule = "exact",
    scope: Scope = "global",
    provenance: Provenance | None = None,
    cost: Cost | None = None,
) -> Ticket:
    r"""Keep the weights with the highest scores.

    Exactly :math:`K = \max(1, \lfloor d N + \tfrac{1}{2} \rfloor)` of the N prunable
    weights are kept; ties go to the lower flat index, tensors one after the other in
    the order of ``system.prunable``. Weights that the system's own mask has pruned
    stay pruned, and d still counts all N weights.

    Args:
        system: What is pruned; the ticket is to be trained from its state.
        scores: Name to scores for each of ``system.prunable``; larger = keep, finite.
        density: Fraction d to keep, in (0, 1].
        rule: ``"exact"``, as above.
        scope: ``"global"``, or ``"layer"`` for the same rule in each tensor.
        provenance: What made the scores.
        cost: What they cost.

    Returns:
        The ticket.

    Raises:
        InvalidInputError: If the density is not in (0, 1] or exceeds what survives the
            system's mask, or scores are missing, too many, of a wrong shape or not
            finite.

    Cost:
        One selection over N scores, no gradients.

    Example:
        >>> x, y = torch.eye(3), torch.zeros(3, 1)
        >>> net = torch.nn.Linear(3, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> scores = {"weight": torch.tensor([[1.0, 3.0, 3.0]])}
        >>> from_scores(system, scores, density=0.4).masks
        {'weight': tensor([[False,  True, False]])}
    """
    if rule != "exact":
        raise InvalidInputError(f"rule is {rule!r}. Pass 'exact'.")
    alive = survivors(system)
    check_scores(scores, {name: tuple(part.shape) for name, part in alive.items()})
    ordered = {name: scores[name] for name in alive}
    masks = select(ordered, alive, density=density, scope=scope)
    made = provenance or record(system, "pruning.from_scores")
    settings = {"density": density, "rule": rule, "scope": scope} | dict(made.settings)
    made = record(
        system, made.made_by, seed=made.seed, settings=settings, sources=made.sources
    )
    return Ticket.make(
        masks,
        full_state(system, system.state),
        system.buffers,
        provenance=made,
        cost=cost,
    )


def survivors(system: GradientSystem) -> dict[str, Tensor]:
    """Return which prunable weights the system's own mask keeps.

    Args:
        system: The system.

    Returns:
        Name to boolean tensor, for each of ``system.prunable``.
    """
    masks = system.masks
    shapes = dict(zip(system.names, system.coordinates.shapes, strict=True))
    return {
        name: masks[name].cpu()
        if name in masks
        else torch.ones(shapes[name], dtype=torch.bool)
        for name in system.prunable
    }


def full_state(system: GradientSystem, vector: Tensor) -> dict[str, Tensor]:
    """Return all parameters of the model, frozen ones included.

    Args:
        system: The system.
        vector: Its coordinates, shape ``(P,)``.

    Returns:
        Name to tensor in ``named_parameters`` order; pruned weights are zero.
    """
    frozen = {name: part.detach() for name, part in system.module.named_parameters()}
    return frozen | system.unflatten(vector)


def record(
    system: GradientSystem,
    made_by: str,
    *,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    sources: tuple[str, ...] = (),
) -> Provenance:
    """Return the provenance of something made from a system.

    Args:
        system: The system.
        made_by: The public function.
        seed: Its seed.
        settings: Its knobs, JSON-serialisable.
        sources: Keys of the citations.

    Returns:
        The record.
    """
    return Provenance(
        made_by=made_by,
        seed=seed,
        dtype=str(system.dtype).removeprefix("torch."),
        device=str(system.device),
        examples=round(system.examples),
        settings=tuple(sorted((settings or {}).items())),
        sources=sources,
    )
