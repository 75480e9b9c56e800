"""ERK: layer densities from the shapes of the layers."""

import math

import torch

from dynprune.pruning._collapse import Collapse
from dynprune.pruning._count_rules import kept_count, rounded_counts
from dynprune.pruning._from_scores import from_scores, record
from dynprune.pruning._numbers import as_density
from dynprune.pruning._prunable import check_start
from dynprune.pruning._random import random_scores
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket


def erk_densities(system: GradientSystem, *, density: float) -> dict[str, float]:
    r"""Return the Erdős–Rényi-kernel density of each layer.

    .. math:: d_l = \varepsilon p_l, \qquad
              p_l = \frac{\sum \mathrm{shape}_l}{\prod \mathrm{shape}_l}, \qquad
              \varepsilon \sum_{l \notin D} p_l n_l
              = d \sum_{l \notin D} n_l - (1 - d) \sum_{l \in D} n_l

    over the layers' numbers of weights :math:`n_l`. D, the dense layers, is empty at
    first; a layer of largest :math:`\varepsilon p_l > 1` joins it, and ε is solved
    again until none exceeds 1. Then :math:`\sum_l d_l n_l = d N`.

    Args:
        system: The system; only the shapes count.
        density: Fraction d to keep, in (0, 1].

    Returns:
        Name to density in (0, 1], for each of ``system.prunable``; 1 for a tensor
        without entries, which does not count.

    Raises:
        InvalidInputError: If the density is not in (0, 1].

    Cost:
        No gradients, no forward passes, no HVPs.

    Source:
        Evci et al., *Rigging the Lottery: Making All Tickets Winners*, ICML 2020.

    Example:
        >>> x, y = torch.eye(2), torch.zeros(2, 4)
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 4))
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> found = erk_densities(system, density=0.5)
        >>> {name: round(value, 6) for name, value in found.items()}
        {'0.weight': 0.6, '1.weight': 0.45}
    """  # noqa: DOC502 - raised by kept_count
    check_start(system)
    shapes = dict(zip(system.names, system.coordinates.shapes, strict=True))
    every = {name: shapes[name] for name in system.prunable}
    own = {name: shape for name, shape in every.items() if math.prod(shape)}
    density = as_density(density)
    sizes = {name: math.prod(shape) for name, shape in own.items()}
    raw = {name: sum(shape) / math.prod(shape) for name, shape in own.items()}
    dense: set[str] = set()
    scale = 0.0
    while len(dense) < len(own):
        rest = [name for name in own if name not in dense]
        asked = density * sum(sizes[name] for name in rest)
        asked -= (1.0 - density) * sum(sizes[name] for name in dense)
        scale = asked / sum(raw[name] * sizes[name] for name in rest)
        most = max(raw[name] for name in rest)
        if scale * most <= 1.0:
            break
        dense |= {name for name in rest if raw[name] == most}
    dense |= every.keys() - own.keys()  # an empty tensor has nothing to remove
    return {name: 1.0 if name in dense else scale * raw[name] for name in every}


def erk(
    system: GradientSystem,
    *,
    density: float,
    collapse: Collapse = "error",
    seed: int = 0,
) -> Ticket:
    r"""Keep weights at random, at Erdős–Rényi-kernel densities of the layers.

    The counts :math:`d_l n_l` of :func:`erk_densities` are rounded so that exactly
    :math:`K = \max(1, \lfloor d N + \tfrac{1}{2} \rfloor)` weights are kept: down, then
    up by one in the layers of largest remainder, the first ones where they tie. Every
    layer keeps at least one weight; where that is more than K together, the largest of
    :math:`k_l - d_l n_l` falls by one until it is K, and only a K below the number of
    layers is exceeded.
    For other scores pass ``layer_densities=erk_densities(...)`` to :func:`magnitude`
    or :func:`from_scores`.

    Args:
        system: What is pruned; the ticket is trained from its state.
        density: Fraction to keep, in (0, 1].
        collapse: What to do about one; see :func:`from_scores`.
        seed: Of the draw.

    Returns:
        The ticket.

    Raises:
        InvalidInputError: See :func:`from_scores`.

    Cost:
        No gradients, no forward passes, no HVPs.

    Source:
        Evci et al., *Rigging the Lottery: Making All Tickets Winners*, ICML 2020; the
        rounding is ours.
    """  # noqa: DOC502 - raised by from_scores
    density = as_density(density)
    densities = erk_densities(system, density=density)
    shapes = dict(zip(system.names, system.coordinates.shapes, strict=True))
    sizes = {name: torch.Size(shapes[name]).numel() for name in densities}
    wanted = {name: densities[name] * size for name, size in sizes.items() if size}
    total = kept_count(density, max(sum(sizes.values()), 1))
    counts = rounded_counts(wanted, total)
    settings = {"density": density}
    return from_scores(
        system,
        random_scores(system, seed=seed),
        layer_densities=densities | {n: counts[n] / sizes[n] for n in counts},
        collapse=collapse,
        provenance=record(
            system, "pruning.erk", seed=seed, settings=settings, sources=("erk",)
        ),
    )
