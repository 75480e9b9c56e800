"""FORCE: connection sensitivity after pruning, where weights may return."""

from collections.abc import Mapping

from torch import Tensor

from dynprune.core import Cost
from dynprune.pruning._collapse import Collapse
from dynprune.pruning._count_rules import Rule
from dynprune.pruning._from_scores import record, survivors, ticket_of
from dynprune.pruning._numbers import as_count, as_density
from dynprune.pruning._prunable import check_masks
from dynprune.pruning._rounds import in_rounds, seed_of
from dynprune.pruning._scored_net import Mode, ScoredNet
from dynprune.pruning._select import scope_of
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket


def force_scores(
    system: GradientSystem,
    *,
    masks: Mapping[str, Tensor] | None = None,
    mode: Mode = "eval",
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Score weights by the sensitivity they have, or would have, in a pruned network.

    .. math:: s = |w_0 \odot \nabla L(m \odot w_0)|

    with :math:`w_0` the unmasked weights, so that a pruned one has a score, too, and
    the gradient by all weights at the masked ones.

    Args:
        system: The system.
        masks: m, name to boolean tensor, for each of ``system.prunable``; the system's
            own by default.
        mode: ``"eval"`` or ``"train"`` for batch norm and dropout; it matters. Before
            the first step batch norm in eval mode normalises nothing, and what is
            scored is another network than the one in training: pass ``"train"``.
        seed: Of random loaders and dropout.

    Returns:
        Name to scores, for each of ``system.prunable``; zero where the system's own
        mask has pruned.

    Raises:
        InvalidInputError: If a mask is missing, not boolean or of a wrong shape.

    Warns:
        NumericalWarning: If a batch norm has seen no batch, in eval mode.

    Cost:
        One gradient, no further forward passes, no HVPs.

    Source:
        de Jorge et al., *Progressive Skeletonization: Trimming more fat from a network
        at initialization*, ICLR 2021.

    Example:
        >>> import torch
        >>> x, y = torch.eye(2), torch.tensor([[1.0], [0.0]])
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> own = system.with_state(torch.tensor([3.0, -1.0]))
        >>> force_scores(own, masks={"weight": torch.tensor([[False, True]])})
        {'weight': tensor([[3., 1.]])}
    """  # noqa: DOC502 - raised by check_masks
    if masks is None:
        masks = survivors(system)
    check_masks(masks, system)
    return _scores(ScoredNet(system, mode=mode), masks, seed=seed)


def force(
    system: GradientSystem,
    *,
    density: float,
    rounds: int = 10,
    mode: Mode = "eval",
    rule: Rule = "exact",
    collapse: Collapse = "error",
    seed: int = 0,
) -> Ticket:
    r"""Keep the weights of largest sensitivity after pruning, in several rounds.

    Round t of T keeps density :math:`d_t = d_0 (d / d_0)^{t/T}` of **all** weights by
    :math:`|w_0 \odot \nabla L(m_{t-1} \odot w_0)|`, see :func:`force_scores`: what one
    round prunes a later one may take back. :math:`d_0` is 1, or the density of the
    system's mask, which nothing returns from. The authors' code keeps
    :math:`\lfloor N d_t \rfloor` in every round, and all ties: ``rule="force"``.

    Args:
        system: What is pruned, on the data it is scored on; the ticket is trained
            from its state.
        density: Fraction to keep, in (0, 1].
        rounds: Number T of rounds.
        mode: ``"eval"`` or ``"train"`` for batch norm and dropout; it matters. Before
            the first step batch norm in eval mode normalises nothing, and what is
            scored is another network than the one in training: pass ``"train"``.
        rule: How many each round keeps; see :func:`from_scores`, with all weights of
            the system's mask alive in every round.
        collapse: What to do about one; see :func:`from_scores`.
        seed: Of random loaders and dropout, another one in each round.

    Returns:
        The ticket.

    Raises:
        InvalidInputError: See :func:`from_scores`; or if ``rounds`` is not positive,
            the rule is unknown or keeps nothing, or all scores of a round are equal
            (the network came apart).

    Warns:
        NumericalWarning: If a batch norm has seen no batch, in eval mode.

    Cost:
        T gradients, no further forward passes, no HVPs.

    Source:
        de Jorge et al., *Progressive Skeletonization: Trimming more fat from a network
        at initialization*, ICLR 2021.
    """  # noqa: DOC502 - raised by in_rounds and ticket_of
    rounds = as_count("rounds", rounds)
    net = ScoredNet(system, mode=mode)
    masks = in_rounds(
        system,
        lambda t, masks: _scores(net, masks, seed=seed_of(seed, t)),
        density=density,
        rounds=rounds,
        may_return=True,
        rule=rule,
    )
    settings = {"mode": mode, "rounds": rounds}
    return ticket_of(
        system,
        masks,
        density=as_density(density),
        rule=rule,
        scope=scope_of(rule),
        collapse=collapse,
        provenance=record(
            system, "pruning.force", seed=seed, settings=settings, sources=("force",)
        ),
        cost=Cost(gradients=float(rounds)),
    )


def _scores(
    net: ScoredNet, masks: Mapping[str, Tensor], *, seed: int
) -> dict[str, Tensor]:
    net.restrict_(masks)
    found = zip(net.names, net.start(), net.gradient(seed=seed), strict=True)
    return {name: (weight * slope).abs() for name, weight, slope in found}
