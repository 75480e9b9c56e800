"""SNIP: connection sensitivity at initialisation."""

from collections.abc import Mapping

from torch import Tensor

from dynprune.core import Cost
from dynprune.pruning._collapse import Collapse
from dynprune.pruning._from_scores import from_scores, record
from dynprune.pruning._prunable import check_masks
from dynprune.pruning._scored_net import Mode, ScoredNet
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket


def snip_scores(
    system: GradientSystem,
    *,
    masks: Mapping[str, Tensor] | None = None,
    mode: Mode = "eval",
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Score weights by the effect of removing them to first order.

    .. math:: s = |w \odot \nabla_w L|

    with L the mean loss over all the system's data, without its l2 term. (The source
    divides by the sum over all weights, which changes no order.) With masks w is
    the masked weight, whose score is zero where it is pruned.

    Args:
        system: The system.
        masks: Name to boolean tensor, for each of ``system.prunable``; the system's
            own by default.
        mode: ``"eval"`` or ``"train"`` for batch norm and dropout; it matters. Before
            the first step batch norm in eval mode normalises nothing, and what is
            scored is another network than the one in training: pass ``"train"``.
        seed: Of random loaders and dropout.

    Returns:
        Name to scores, for each of ``system.prunable``; zero where pruned.

    Raises:
        InvalidInputError: If a mask is missing, not boolean or of a wrong shape.

    Warns:
        NumericalWarning: If a batch norm has seen no batch, in eval mode.

    Cost:
        One gradient, no further forward passes, no HVPs.

    Source:
        Lee et al., *SNIP: Single-shot Network Pruning based on Connection
        Sensitivity*, ICLR 2019.

    Example:
        >>> import torch
        >>> x, y = torch.eye(2), torch.tensor([[1.0], [0.0]])
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> snip_scores(system.with_state(torch.tensor([3.0, -1.0])))
        {'weight': tensor([[6., 1.]])}
    """  # noqa: DOC502 - raised by check_masks
    if masks is not None:
        check_masks(masks, system)
    net = ScoredNet(system, mode=mode)
    if masks is not None:
        net.restrict_(masks)
    return sensitivities(net, seed=seed)


def sensitivities(net: ScoredNet, *, seed: int) -> dict[str, Tensor]:
    r"""Return :math:`|w \odot \nabla_w L|` at the present weights of a scored network.

    Args:
        net: The network.
        seed: Of random loaders and dropout.

    Returns:
        Name to scores.
    """
    found = zip(net.names, net.weights, net.gradient(seed=seed), strict=True)
    return {name: (weight.detach() * slope).abs() for name, weight, slope in found}


def snip(
    system: GradientSystem,
    *,
    density: float,
    mode: Mode = "eval",
    collapse: Collapse = "error",
    seed: int = 0,
) -> Ticket:
    r"""Keep the weights of largest connection sensitivity, :math:`|w \odot \nabla L|`.

    Args:
        system: What is pruned, on the data it is scored on; the ticket is trained
            from its state.
        density: Fraction to keep, in (0, 1].
        mode: ``"eval"`` or ``"train"`` for batch norm and dropout; it matters. Before
            the first step batch norm in eval mode normalises nothing, and what is
            scored is another network than the one in training: pass ``"train"``.
        collapse: What to do about one; see :func:`from_scores`.
        seed: Of random loaders and dropout.

    Returns:
        The ticket.

    Raises:
        InvalidInputError: See :func:`from_scores`.

    Warns:
        NumericalWarning: If a batch norm has seen no batch, in eval mode.

    Cost:
        One gradient, no further forward passes, no HVPs.

    Source:
        Lee et al., *SNIP: Single-shot Network Pruning based on Connection
        Sensitivity*, ICLR 2019.
    """  # noqa: DOC502 - raised by from_scores
    made = record(
        system, "pruning.snip", seed=seed, settings={"mode": mode}, sources=("snip",)
    )
    return from_scores(
        system,
        snip_scores(system, mode=mode, seed=seed),
        density=density,
        collapse=collapse,
        provenance=made,
        cost=Cost(gradients=1.0),
    )
