"""What random products say about A, or A², on the range they span."""

import torch
from torch import Tensor

from dynprune.operators import AbstractOperator
from dynprune.spectral._columns import dots
from dynprune.spectral._exchangeable import Sketch, left_out
from dynprune.spectral._orthonormal import orthonormal
from dynprune.spectral._quadrature import isotropic
from dynprune.spectral._recursion import finite, refuse_skew


def sketch(op: AbstractOperator, count: int, *, seed: int, power: int) -> Sketch:
    """Sketch A or A² with vectors that are uniform on a sphere.

    Args:
        op: A.
        count: How many vectors, m.
        seed: Of the vectors.
        power: 1 for B = A, 2 for B = A².

    Returns:
        What they say about B.

    Cost:
        2 m products in two blocks; 3 m P-vectors of memory.
    """
    rows = op.rows
    none = torch.zeros((rows.held, 0), dtype=op.dtype, device=op.device)
    omega = isotropic(op, count, none, seed=seed)
    Y = finite(op @ omega)
    Q = orthonormal(rows, Y)
    R = rows.inner(Q, Y, dtype=torch.float64).cpu()
    vectors = rows.inner(Q, omega, dtype=torch.float64).cpu()
    quadratic = dots(rows, omega if power == 1 else Y, Y)
    del omega, Y
    Z = finite(op @ Q)
    H = symmetric(rows.inner(Q, Z, dtype=torch.float64), op)
    return Sketch(
        projected=H if power == 1 else rows.inner(Z, Z, dtype=torch.float64).cpu(),
        mixed=R if power == 1 else H @ R,
        quadratic=quadratic,
        vectors=vectors,
        squares=torch.full_like(quadratic, op.size),
        left_out=left_out(R),
        size=op.size,
    )


def symmetric(small: Tensor, op: AbstractOperator) -> Tensor:
    """Return the symmetric part of Q'AQ.

    Args:
        small: Q'AQ, shape ``(r, r)``.
        op: A; its dtype says how large rounding is.

    Returns:
        Shape ``(r, r)``, on the CPU.
    """
    small = small.cpu()
    if not small.numel():
        return small
    skew = float((small - small.T).abs().max())
    refuse_skew(skew, float(small.norm()), torch.finfo(op.dtype).eps)
    return 0.5 * (small + small.T)
