"""Where conditions on a ball are sampled."""

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, generator
from dynprune.spectral import Eigenpairs
from dynprune.system import GradientSystem


def sample_displacements(
    pairs: Eigenpairs,
    *,
    radius: float,
    samples: int,
    gradient: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    r"""Draw displacements w with :math:`|w| = r`.

    In turn: a random direction in the span of the sharp eigenvectors, and one uniform
    on the sphere; the very first is that of the flow, :math:`-\nabla L`, if given. A
    supremum over the ball is sampled where the Hessian is expected to change most: a
    uniform direction in R^P alone is nearly flat.

    Args:
        pairs: Sharp eigenpairs.
        radius: r, in units of a parameter; positive.
        samples: How many.
        gradient: :math:`\nabla L` at the centre, shape ``(P,)``, or None.
        seed: Of the draw.

    Returns:
        Shape ``(P, samples)``.

    Raises:
        InvalidInputError: If the radius is not positive and finite, or ``samples`` is
            negative.
    """
    if not 0.0 < radius < float("inf") or samples < 0:
        raise InvalidInputError(
            f"radius={radius} and samples={samples} were given. Pass a positive, "
            "finite radius and samples >= 0."
        )
    make, U = generator(seed), pairs.vectors
    columns = []
    if gradient is not None and float(gradient.norm()) > 0.0:
        columns.append(-gradient.to(U))
    for turn in range(samples - len(columns)):
        if turn % 2 == 0:
            mixing = torch.randn(U.shape[1], generator=make, dtype=torch.float64)
            columns.append(U @ mixing.to(U))
        else:
            columns.append(torch.randn(len(U), generator=make).to(U))
    if samples == 0:
        return U[:, :0]
    block = torch.stack(columns[:samples], 1)
    scaled: Tensor = radius * block / block.norm(dim=0)
    return scaled


def displacements_or_sample(
    system: GradientSystem,
    pairs: Eigenpairs,
    displacements: Tensor | None,
    *,
    radius: float | None,
    samples: int,
    seed: int,
) -> tuple[Tensor, float]:
    """Return given displacements, or sampled ones, with the largest of their norms.

    Args:
        system: The system.
        pairs: Sharp eigenpairs.
        displacements: Shape ``(P, s)``, or None to sample.
        radius: Norm of sampled displacements; needed without given ones.
        samples: How many to sample.
        seed: Of the draw.

    Returns:
        Displacements ``(P, s)``, s >= 1, and the radius.

    Raises:
        InvalidInputError: If neither or both of displacements and radius are given,
            shapes do not fit, or there is no displacement.
    """
    if (displacements is None) == (radius is None):
        raise InvalidInputError(
            "Pass radius= to sample displacements, or displacements= to give them, "
            f"not both: radius is {radius}."
        )
    if displacements is None:
        assert radius is not None
        if samples < 1:
            raise InvalidInputError(f"samples is {samples}. Pass at least 1.")
        drawn = sample_displacements(pairs, radius=radius, samples=samples, seed=seed)
        return drawn.to(device=system.device, dtype=system.dtype), radius
    given = displacements.detach().to(device=system.device, dtype=system.dtype)
    if given.ndim != 2 or given.shape[0] != system.size or given.shape[1] == 0:
        raise InvalidInputError(
            f"displacements have shape {tuple(given.shape)}. Pass ({system.size}, s) "
            "with s >= 1, e.g. snapshots minus the state."
        )
    return given, float(given.norm(dim=0).max())
