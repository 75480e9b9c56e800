"""Iterative SNIP: connection sensitivity, measured again as weights go."""

from torch import Tensor

from dynprune.core import Cost
from dynprune.pruning._collapse import Collapse
from dynprune.pruning._count_rules import Rule
from dynprune.pruning._from_scores import record, ticket_of
from dynprune.pruning._numbers import as_count, as_density
from dynprune.pruning._rounds import in_rounds, seed_of
from dynprune.pruning._scored_net import Mode, ScoredNet
from dynprune.pruning._select import scope_of
from dynprune.pruning._snip import sensitivities
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket


def iterative_snip(
    system: GradientSystem,
    *,
    density: float,
    rounds: int = 10,
    mode: Mode = "eval",
    rule: Rule = "exact",
    collapse: Collapse = "error",
    seed: int = 0,
) -> Ticket:
    r"""Keep the weights of largest connection sensitivity, in several rounds.

    Round t of T keeps density :math:`d_t = d_0 (d / d_0)^{t/T}` by the scores

    .. math:: s = |m w \odot \nabla L(m w)|

    of the network as pruned so far; pruned stays pruned. :math:`d_0` is 1, or the
    density of the system's mask. One round is :func:`snip`; weights that may return
    are :func:`force`, whose authors' code does both and keeps
    :math:`\lfloor N d_t \rfloor` and all ties in every round: ``rule="force"``.

    Args:
        system: What is pruned, on the data it is scored on; the ticket is trained
            from its state.
        density: Fraction to keep, in (0, 1].
        rounds: Number T of rounds.
        mode: ``"eval"`` or ``"train"`` for batch norm and dropout; it matters. Before
            the first step batch norm in eval mode normalises nothing, and what is
            scored is another network than the one in training: pass ``"train"``.
        rule: How many each round keeps; see :func:`from_scores`. Those that count
            among the R weights alive remove the share :math:`1 - d_t / d_{t-1}` of
            them, as their codes do; what they remove beyond it adds up.
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
        Verdenius et al., *Pruning via Iterative Ranking of Sensitivity Statistics*,
        2020; de Jorge et al., *Progressive Skeletonization: Trimming more fat from a
        network at initialization*, ICLR 2021.
    """  # noqa: DOC502 - raised by in_rounds and ticket_of
    rounds = as_count("rounds", rounds)
    net = ScoredNet(system, mode=mode)

    def score(t: int, masks: dict[str, Tensor]) -> dict[str, Tensor]:
        net.restrict_(masks)
        return sensitivities(net, seed=seed_of(seed, t))

    masks = in_rounds(
        system, score, density=density, rounds=rounds, may_return=False, rule=rule
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
            system,
            "pruning.iterative_snip",
            seed=seed,
            settings=settings,
            sources=("snip", "iterative-snip", "force"),
        ),
        cost=Cost(gradients=float(rounds)),
    )
