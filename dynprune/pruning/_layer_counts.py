"""How many weights each layer keeps where a sparse network starts at random."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, derive_seed, generator, unknown
from dynprune.pruning._count_rules import kept_count, rounded_counts
from dynprune.pruning._erk import erk_densities
from dynprune.pruning._numbers import as_density
from dynprune.pruning._prunable import check_any
from dynprune.system import GradientSystem

LayerDensities = Literal["erk", "uniform"]


def layer_counts(
    system: GradientSystem, *, density: float, layers: str
) -> dict[str, int]:
    r"""Return how many weights each layer keeps, K of all N together.

    K is :math:`\max(1, \lfloor d N + \tfrac{1}{2} \rfloor)`. ``"uniform"``
    gives every layer the density d, ``"erk"`` that of
    :func:`dynprune.pruning.erk_densities`, both rounded by
    :func:`~dynprune.pruning._count_rules.rounded_counts`.

    Args:
        system: The system; only the shapes count.
        density: d, in (0, 1].
        layers: ``"erk"`` or ``"uniform"``.

    Returns:
        Name to count, at least 1, for each of ``system.prunable``; 0 for an empty
        tensor.

    Raises:
        InvalidInputError: If the density is not in (0, 1], does not suffice for a
            weight in every layer, or ``layers`` is unknown.
    """  # noqa: DOC501 - unknown() makes it
    if layers not in get_args(LayerDensities):
        raise unknown("layers", layers, get_args(LayerDensities))
    shapes = dict(zip(system.names, system.coordinates.shapes, strict=True))
    sizes = {name: math.prod(shapes[name]) for name in system.prunable}
    check_any(sizes.values())
    density = as_density(density)
    total = kept_count(density, sum(sizes.values()))
    layers_left = sum(1 for size in sizes.values() if size)
    if total < layers_left:
        raise InvalidInputError(
            f"Density {density} keeps {total} weights, and there are {layers_left} "
            "layers to start with at least one each. Pass a higher density."
        )
    if layers == "uniform":
        densities = dict.fromkeys(sizes, density)
    else:
        densities = erk_densities(system, density=density)
    wanted = {name: densities[name] * size for name, size in sizes.items() if size}
    return dict.fromkeys(sizes, 0) | rounded_counts(wanted, total)


def random_masks(
    system: GradientSystem, counts: dict[str, int], *, seed: int
) -> dict[str, Tensor]:
    """Draw which weights each layer keeps, uniformly without replacement.

    Args:
        system: The system; only the shapes count.
        counts: Name to how many.
        seed: Of the draw.

    Returns:
        Name to boolean tensor on the CPU.
    """
    shapes = dict(zip(system.names, system.coordinates.shapes, strict=True))
    found = {}
    for name, count in counts.items():
        draw = generator(derive_seed("pruning.sparse start", seed, name))
        mask = torch.zeros(math.prod(shapes[name]), dtype=torch.bool)
        mask[torch.randperm(len(mask), generator=draw)[:count]] = True
        found[name] = mask.view(shapes[name])
    return found
