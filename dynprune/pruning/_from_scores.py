"""Any score becomes a ticket by the same rule."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dynprune.core import Cost, InvalidInputError, Provenance
from dynprune.pruning._collapse import OF_SCORES, Collapse, check_collapse
from dynprune.pruning._count_rules import Rule, check_rule
from dynprune.pruning._numbers import as_density, as_number
from dynprune.pruning._prunable import check_each, check_others, check_start
from dynprune.pruning._select import (
    Density,
    Scope,
    check_choice,
    check_scores,
    scope_of,
    select,
)
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket


def from_scores(
    system: GradientSystem,
    scores: Mapping[str, Tensor],
    *,
    density: float | None = None,
    rule: Rule = "exact",
    scope: Scope | None = None,
    layer_densities: Mapping[str, float] | None = None,
    collapse: Collapse = "error",
    provenance: Provenance | None = None,
    cost: Cost | None = None,
) -> Ticket:
    r"""Keep the weights with the highest scores.

    Exactly :math:`K = \max(1, \lfloor d N + \tfrac{1}{2} \rfloor)` of the N prunable
    weights are kept; ties go to the lower flat index, tensors one after the other in
    the order of ``system.prunable``. Weights that the system's own mask has pruned
    stay pruned, and d still counts all N weights.

    The other rules are those of published codes, to compare masks bit for bit. With R
    weights alive, :math:`s_{(i)}` the i-th lowest score alive, and :math:`p = 1 - dN/R`
    rounded to 12 digits (so that d = 0.8 removes p = 0.2), these are kept:

    - ``"open_lth"``: :math:`s > s_{(\lceil pR \rceil + 1)}`, one less than asked and
      without any tie;
    - ``"lth2018"``: :math:`s > s_{(\mathrm{round}(pR) + 1)}` in each layer, halves to
      even;
    - ``"gem_miner"``: :math:`s > s_{(\lceil pR \rceil)}` (all for p = 0, where that
      code reads the highest score);
    - ``"synflow"``: :math:`s > s_{(k)}`, :math:`k = \lfloor (1 - d) N \rfloor` among
      all N scores, those of pruned weights 0 (no more than any other); all for k = 0;
    - ``"grasp"``: the same with :math:`s \ge s_{(k)}`, one more than asked. That code
      ranks the negative of our score;
    - ``"force"``: at least the :math:`\lfloor N d \rfloor`-th highest of all N.

    Args:
        system: What is pruned; the ticket is to be trained from its state.
        scores: Name to scores for each of ``system.prunable``; larger = keep, finite.
        density: Fraction d to keep, in (0, 1]; or else ``layer_densities``.
        rule: ``"exact"``, or one of the above.
        scope: ``"global"``, or ``"layer"`` for the same rule in each tensor; what the
            rule is for by default: ``"layer"`` for ``"lth2018"``, else ``"global"``.
        layer_densities: A density for each of ``system.prunable``, by name.
        collapse: What to do about layers that keep nothing and about an output that no
            longer depends on the input: ``"error"`` warns of the former and refuses
            the latter, ``"warn"`` warns of both, ``"ignore"`` does not look. Seen by
            the derivative of the output, or of ``batch_loss``, by what enters the
            network: floating-point inputs, or the embeddings of token ids. What
            cannot be seen so (ids that enter without an ``nn.Embedding``, a network
            under ``no_grad``, several ranks) is let pass; the provenance says
            "untestable". All pruners that return a ticket have this knob; those that
            return trainings (``imp``, ``gradual_magnitude``, ``rigl``,
            ``sparse_evolution``) warn at most.
        provenance: What made the scores.
        cost: What they cost.

    Returns:
        The ticket. Its provenance says what was found of a collapse, and what that
        took in gradients, which its cost leaves out: the mask does not need it.

    Raises:
        InvalidInputError: If the density is not in (0, 1] or exceeds what survives the
            system's mask, in any layer that has a count of its own; if scores are
            missing, too many, of a wrong shape, no real numbers, not finite, integers
            beyond 2**53, or all equal where some must go; if the rule keeps nothing;
            or if no path of kept weights leads from the input to the output (see
            ``collapse``).

    Warns:
        NumericalWarning: If a layer keeps nothing.

    Cost:
        No gradients, no forward passes, no HVPs beyond ``cost``: one selection over N
        scores. The test for a collapse takes a gradient of at most 8 examples, up to
        five where the first is zero.

    Source:
        Rules: the authors' published code for each paper, as described in words; none
        is copied.

    Example:
        >>> x, y = torch.eye(3), torch.zeros(3, 1)
        >>> net = torch.nn.Linear(3, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> scores = {"weight": torch.tensor([[1.0, 3.0, 3.0]])}
        >>> from_scores(system, scores, density=0.4).masks
        {'weight': tensor([[False,  True, False]])}
        >>> from_scores(system, scores, density=0.4, rule="grasp").masks
        {'weight': tensor([[True, True, True]])}
    """  # noqa: DOC502 - raised by the parts
    return scored(
        system,
        scores,
        density=density,
        rule=rule,
        scope=scope,
        layer_densities=layer_densities,
        collapse=collapse,
        provenance=provenance or record(system, "pruning.from_scores"),
        cost=cost,
    )


def scored(
    system: GradientSystem,
    scores: Mapping[str, Tensor],
    *,
    density: float | None = None,
    rule: Rule = "exact",
    scope: Scope | None = None,
    layer_densities: Mapping[str, float] | None = None,
    collapse: Collapse,
    provenance: Provenance,
    cost: Cost | None = None,
    advice: str = OF_SCORES,
) -> Ticket:
    """Do what :func:`from_scores` does, for a pruner with advice of its own.

    Args:
        system: As there.
        scores: As there.
        density: As there.
        rule: As there.
        scope: As there.
        layer_densities: As there.
        collapse: As there.
        provenance: As there.
        cost: As there.
        advice: What to try against a collapse, by arguments that the pruner has.

    Returns:
        The ticket.

    Raises:
        InvalidInputError: As there.
    """  # noqa: DOC502 - raised by the parts
    check_rule(rule)
    scope = scope or scope_of(rule)
    alive = survivors(system)
    check_scores(scores, {name: tuple(part.shape) for name, part in alive.items()})
    wanted = _density(density, layer_densities, alive)
    ordered = {name: scores[name] for name in alive}
    masks = select(ordered, alive, density=wanted, scope=scope, rule=rule)
    check_choice(ordered, alive, wanted, scope)
    return ticket_of(
        system,
        masks,
        density=wanted,
        rule=rule,
        scope=scope,
        collapse=collapse,
        provenance=provenance,
        cost=cost,
        advice=advice,
    )


def ticket_of(
    system: GradientSystem,
    masks: Mapping[str, Tensor],
    *,
    density: Density,
    rule: Rule,
    scope: Scope,
    collapse: Collapse,
    provenance: Provenance,
    cost: Cost | None,
    advice: str = OF_SCORES,
) -> Ticket:
    """Return the ticket of masks that a rule chose, after a look at a collapse.

    Args:
        system: What is pruned.
        masks: Name to boolean tensor, for each of ``system.prunable``.
        density: That of all weights, or one for each tensor by name.
        rule: As for :func:`from_scores`.
        scope: As for :func:`from_scores`.
        collapse: As for :func:`from_scores`.
        provenance: What made the masks; its settings come to those named here.
        cost: What they cost.
        advice: What to try against a collapse.

    Returns:
        The ticket.

    Raises:
        InvalidInputError: As :func:`from_scores`, of a collapse.
    """  # noqa: DOC502 - raised by check_collapse
    found = check_collapse(
        system, masks, density=density, collapse=collapse, advice=advice
    )
    settings: dict[str, Any] = {"rule": rule, "scope": scope, "collapse": found}
    settings |= dict(provenance.settings)
    if isinstance(density, Mapping):
        settings |= {"layer_densities": density}
    else:
        settings = {"density": density} | settings
    made = record(
        system,
        provenance.made_by,
        seed=provenance.seed,
        settings=settings,
        sources=provenance.sources,
    )
    return Ticket.make(
        masks,
        full_state(system, system.state),
        system.buffers,
        provenance=made,
        cost=cost,
    )


def _density(
    density: float | None,
    layer_densities: Mapping[str, float] | None,
    alive: Mapping[str, Tensor],
) -> Density:
    if (density is None) == (layer_densities is None):
        raise InvalidInputError(
            f"density is {density} and layer_densities is "
            f"{'None' if layer_densities is None else 'given'}. Pass one of the two."
        )
    if layer_densities is None:
        return as_density(density)
    check_each("Layer densities", layer_densities, alive)
    found = {name: as_number(layer_densities[name]) for name in alive}
    for name, own in found.items():
        if not 0.0 < own <= 1.0:
            raise InvalidInputError(
                f"The layer density of {name!r} is {layer_densities[name]}. Pass the "
                "fraction of its weights to keep, in (0, 1]."
            )
    return found


def survivors(system: GradientSystem) -> dict[str, Tensor]:
    """Return which prunable weights the system's own mask keeps.

    Args:
        system: The system.

    Returns:
        Name to boolean tensor, for each of ``system.prunable``.

    Raises:
        InvalidInputError: If it is no system, or prunes anything else.
    """  # noqa: DOC502 - raised by the parts
    check_start(system)
    check_others(system)
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

    Raises:
        InvalidInputError: If the seed is no integer.
    """  # noqa: DOC502 - raised by check_start
    check_start(system, seed)
    return Provenance(
        made_by=made_by,
        seed=seed,
        dtype=str(system.dtype).removeprefix("torch."),
        device=str(system.device),
        examples=round(system.examples),
        settings=tuple(sorted((settings or {}).items())),
        sources=sources,
    )
