"""How close the bipartite graph of a mask is to an optimal expander."""

import math

import torch
from torch import Tensor

from dynprune.core import generator

_SMALLEST_DEGREE = 3.0
_DENSE = 512  # side up to which the Gram matrix is decomposed


def ramanujan(mask: Tensor) -> tuple[float, float]:
    r"""Return δ_S and δ_R of the bipartite graph of a mask.

    .. math:: \delta_S = 2 \sqrt{\lambda_1 - 1} - \lambda_2, \qquad
              \delta_R = \sqrt{d_L - 1} + \sqrt{d_R - 1} - \lambda_2

    with :math:`\lambda_1 \ge \lambda_2` the largest singular values of the 0/1 matrix
    of shape (out, in · kernel) without its zero rows and columns, and d_L, d_R its
    mean row and column sums. At least 0 = Ramanujan: λ₂ is within what the best
    expander of these degrees reaches.

    Args:
        mask: Boolean, shape ``(out, in, …)``.

    Returns:
        Both; NaN for a mask of one dimension, or where a mean degree is below 3.

    Cost:
        The Gram matrix of the shorter side and its two largest eigenvalues (to about
        1e-7 λ₁); from a side of 512 on by Lanczos, to 1e-6.
    """
    rows = mask.reshape(mask.shape[0], -1) if mask.ndim > 1 else mask.new_zeros(0, 0)
    rows = rows[rows.any(1)]
    rows = rows[:, rows.any(0)]
    edges = int(rows.sum())
    if not edges or min(edges / side for side in rows.shape) < _SMALLEST_DEGREE:
        return math.nan, math.nan
    first, second = _two_largest(rows if rows.shape[0] <= rows.shape[1] else rows.T)
    left, right = (edges / side for side in rows.shape)
    bound_r = math.sqrt(left - 1.0) + math.sqrt(right - 1.0)
    return 2.0 * math.sqrt(first - 1.0) - second, bound_r - second


def _two_largest(wide: Tensor) -> tuple[float, float]:
    side = wide.shape[0]
    if side <= _DENSE:
        from scipy.linalg import eigh

        single = wide.float()  # exact: sums of fewer than 2^24 ones
        gram = (single @ single.T).double().numpy()
        squares = eigh(gram, eigvals_only=True, subset_by_index=[side - 2, side - 1])
    else:
        from scipy.sparse import csr_array
        from scipy.sparse.linalg import svds

        start = torch.rand(side, dtype=torch.float64, generator=generator(0)) + 0.5
        sparse = csr_array(wide.double().numpy())
        values = svds(
            sparse, k=2, tol=1e-6, v0=start.numpy(), return_singular_vectors=False
        )
        squares = sorted(float(part) ** 2 for part in values)
    second, first = (math.sqrt(max(float(part), 0.0)) for part in squares)
    return first, second
