"""LAMP: layer-adaptive magnitudes, comparable between layers."""

from collections.abc import Mapping

import torch
from torch import Tensor

from dynprune.core import Cost
from dynprune.pruning._collapse import Collapse
from dynprune.pruning._from_scores import from_scores, record
from dynprune.pruning._magnitude import magnitude_scores
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket


def lamp_scores(
    system: GradientSystem, *, state: Tensor | Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    r"""Score weights by their square against what is at least as large in the layer.

    .. math:: s_i = \frac{w_i^2}{\sum_{j : w_j^2 \ge w_i^2} w_j^2}

    with the sum over the layer. Equal weights share a score (the source orders them by
    their index), so that m weights that are the largest of a layer score 1/m each, and
    a layer of zeros scores zero.

    Args:
        system: The system.
        state: Coordinates ``(P,)`` or named tensors; the system's own by default.

    Returns:
        Name to float64 scores in [0, 1], for each of ``system.prunable``; 1 for a
        weight that is larger than all others of its layer.

    Cost:
        No gradients, no forward passes, no HVPs; one sort of each layer.

    Source:
        Lee et al., *Layer-adaptive Sparsity for the Magnitude-based Pruning*, ICLR
        2021.

    Example:
        >>> x, y = torch.eye(3), torch.zeros(3, 1)
        >>> net = torch.nn.Linear(3, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> lamp_scores(system, state=torch.tensor([1.0, -2.0, 1.0]))
        {'weight': tensor([[0.1667, 1.0000, 0.1667]], dtype=torch.float64)}
    """
    sizes = magnitude_scores(system, state=state)
    return {name: _in_layer(size) for name, size in sizes.items()}


def _in_layer(size: Tensor) -> Tensor:
    # descending; the last of equal ones holds the sum over all at least as large
    squares, order = size.reshape(-1).double().square().sort(descending=True)
    sums = squares.cumsum(0)
    if len(squares):
        last = torch.searchsorted(-squares, -squares, right=True) - 1
        sums = sums[last]
    shares = torch.where(squares > 0, squares / sums, squares)
    return torch.empty_like(shares).scatter_(0, order, shares).view(size.shape)


def lamp(
    system: GradientSystem,
    *,
    density: float,
    state: Tensor | Mapping[str, Tensor] | None = None,
    cost: Cost | None = None,
    collapse: Collapse = "error",
    seed: int = 0,
) -> Ticket:
    r"""Keep the weights of largest layer-adaptive magnitude, over all layers together.

    See :func:`lamp_scores` for the score. Where one weight is the largest of its layer
    it scores 1, the most there is: if every layer has one, none collapses before all
    other weights are gone. A layer where m are equally large has 1/m at most, and may
    go first (weights of one size, as signs times a constant). Magnitudes are those of
    ``state``; the ticket is trained from the *system's* state, as for
    :func:`magnitude`.

    Args:
        system: What is pruned.
        density: Fraction to keep, in (0, 1].
        state: Coordinates ``(P,)`` or named tensors whose magnitudes count; the
            system's own by default.
        cost: What it took to get ``state``.
        collapse: What to do about one; see :func:`from_scores`.
        seed: Without effect; recorded.

    Returns:
        The ticket.

    Raises:
        InvalidInputError: See :func:`from_scores`.

    Cost:
        No gradients, no forward passes, no HVPs beyond ``cost``.

    Source:
        Lee et al., *Layer-adaptive Sparsity for the Magnitude-based Pruning*, ICLR
        2021.
    """  # noqa: DOC502 - raised by from_scores
    settings = {"state": "system" if state is None else "given"}
    return from_scores(
        system,
        lamp_scores(system, state=state),
        density=density,
        collapse=collapse,
        provenance=record(
            system, "pruning.lamp", seed=seed, settings=settings, sources=("lamp",)
        ),
        cost=cost,
    )
