"""Random pruning with an exact count."""

from collections.abc import Mapping

import torch
from torch import Tensor

from dynprune.core import generator
from dynprune.pruning._collapse import Collapse, advice_for
from dynprune.pruning._from_scores import record, scored
from dynprune.pruning._prunable import check_start
from dynprune.pruning._select import Scope
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket


def random_scores(system: GradientSystem, *, seed: int = 0) -> dict[str, Tensor]:
    r"""Score weights at random, :math:`s \sim U[0, 1)` independently.

    The same seed gives the same scores at every density, so that masks are nested.

    Args:
        system: The system.
        seed: Of the scores.

    Returns:
        Name to float64 scores on the CPU, for each of ``system.prunable``.

    Example:
        >>> x, y = torch.eye(2), torch.zeros(2, 1)
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> random_scores(system)["weight"].shape
        torch.Size([1, 2])
    """
    check_start(system, seed)
    draw = generator(seed)
    shapes = dict(zip(system.names, system.coordinates.shapes, strict=True))
    return {
        name: torch.rand(shapes[name], generator=draw, dtype=torch.float64)
        for name in system.prunable
    }


def random(
    system: GradientSystem,
    *,
    density: float | None = None,
    layer_densities: Mapping[str, float] | None = None,
    scope: Scope = "global",
    collapse: Collapse = "error",
    seed: int = 0,
) -> Ticket:
    r"""Keep weights drawn uniformly without replacement.

    Every set of K weights is as likely as any other; layer densities differ from the
    target only by sampling noise, not at all with ``scope="layer"``. With layer
    densities :math:`d_l` exactly :math:`\max(1, \lfloor d_l n_l + \tfrac{1}{2}
    \rfloor)` weights of each layer are kept.

    Args:
        system: What is pruned; the ticket is trained from its state.
        density: Fraction to keep, in (0, 1]; or else ``layer_densities``.
        layer_densities: One for each of ``system.prunable``, by name, as those of
            :func:`erk_densities` or ``ticket.layer_densities``.
        scope: ``"global"`` or ``"layer"``.
        collapse: What to do about one; see :func:`from_scores`.
        seed: Of the draw.

    Returns:
        The ticket.

    Raises:
        InvalidInputError: See :func:`from_scores`.

    Cost:
        No gradients, no forward passes, no HVPs.
    """  # noqa: DOC502 - raised by from_scores
    return scored(
        system,
        random_scores(system, seed=seed),
        density=density,
        scope=scope,
        layer_densities=layer_densities,
        collapse=collapse,
        provenance=record(system, "pruning.random", seed=seed),
        advice=advice_for(scope, layer_densities=layer_densities, takes=True),
    )
