"""Which Ritz values of a block Krylov space are eigenvalues to count once each."""

import torch
from torch import Tensor

_LEAK = 0.01


def isolated(values: Tensor, radii: Tensor, *, free: int, probes: int) -> Tensor:
    r"""Say which Ritz values lie apart from the rest, found to the last digit needed.

    The k outermost Ritz vectors of an end span an invariant subspace up to angles of
    :math:`r_i / \delta_i` (Davis and Kahan), :math:`r_i` the residual and
    :math:`\delta_i` the distance to the next Ritz value further in, its own residual
    taken off. A probe of squared length n then leaks :math:`n (r_i/\delta_i)^2` of its
    weight to the i-th; that must stay below 0.01, where an eigenvector has 1. A Krylov
    space of b probes shows at most b copies of an eigenvalue: an end's search stops at
    b Ritz values that cannot be told apart, so one probe locks nothing.

    Args:
        values: Ritz values, ascending, shape ``(n,)``.
        radii: Their residual norms with the rounding of products.
        free: Dimension of the space that was searched.
        probes: b.

    Returns:
        Boolean, shape ``(n,)``; all True if the Krylov space is the whole space.
    """
    found = torch.zeros_like(values, dtype=torch.bool)
    if len(values) == free:
        return ~found
    above = _apart(values.flip(0), radii.flip(0), free=free, probes=probes)
    below = _apart(-values, radii, free=free, probes=probes)
    found[: min(below, len(values) - above)] = True
    found[len(values) - above :] = True
    return found


def _apart(values: Tensor, radii: Tensor, *, free: int, probes: int) -> int:
    # How many of the first of these descending values are isolated.
    best, alike = 0, 1
    for k in range(1, len(values)):
        touching = values[k - 1] - values[k] <= radii[k - 1] + radii[k]
        alike = alike + 1 if touching else 1
        if alike >= probes:
            break
        distances = values[:k] - values[k] - radii[k]
        if not touching and float((radii[:k] / distances).max()) ** 2 * free <= _LEAK:
            best = k
    return best
