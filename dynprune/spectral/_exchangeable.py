"""Exchangeable estimates of the trace of B, by a sketch that leaves each vector out."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

_PARALLEL = 1e-12


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Sketch:
    r"""Hold what m vectors Ω and a basis Q of AΩ say about a symmetric B.

    All are small, float64 and on the CPU.

    Args:
        projected: :math:`Q^\top B Q`, shape ``(r, r)``.
        mixed: :math:`Q^\top B \Omega`, shape ``(r, m)``.
        quadratic: :math:`\omega_i^\top B \omega_i`, shape ``(m,)``.
        vectors: :math:`Q^\top \Omega`, shape ``(r, m)``.
        squares: :math:`\|\omega_i\|^2`, shape ``(m,)``.
        left_out: Unit :math:`s_i` with :math:`Q_i Q_i^\top = Q (I - s_i s_i^\top)
            Q^\top` the projector on the sketch without i, shape ``(r, m)``.
        size: P.
    """

    projected: Tensor
    mixed: Tensor
    quadratic: Tensor
    vectors: Tensor
    squares: Tensor
    left_out: Tensor
    size: int


def left_out(coordinates: Tensor) -> Tensor:
    r"""Return the directions that each column alone adds to the range of all.

    :math:`s_i` is orthogonal to the other columns of R: column i of :math:`R^{-\top}`,
    normalised. If R has fewer rows than columns, none adds any.

    Args:
        coordinates: R with Y = Q R, shape ``(r, m)``.

    Returns:
        Unit columns, or zeros, shape ``(r, m)``.
    """
    rank, count = coordinates.shape
    if rank < count:
        return torch.zeros_like(coordinates)
    S = torch.linalg.inv(coordinates).T
    return torch.nn.functional.normalize(S, dim=0)


def exchangeable(sketch: Sketch) -> tuple[Tensor, float]:
    r"""Estimate tr B once for each vector, and the variance of the mean.

    .. math:: t_i = \operatorname{tr} Q_i^\top B Q_i + \frac{P - r_i}{\|\pi_i
       \omega_i\|^2} \, \omega_i^\top \pi_i B \pi_i \omega_i, \qquad
       \pi_i = I - Q_i Q_i^\top

    with :math:`r_i` the rank of :math:`Q_i`; :math:`\omega_i` is uniform on a sphere.
    Each is unbiased, but they share vectors, so their spread says too little. With
    :math:`t_i^{(j)}` the same without j in the sketch,

    .. math:: \operatorname{Cov}(t_i, t_j)
       = E \, (t_i - t_i^{(j)}) (t_j - t_j^{(i)})

    because given all the rest :math:`t_i^{(j)}` and :math:`t_j^{(i)}` are independent,
    and each of :math:`t_i, t_i^{(j)}` has mean tr B whatever :math:`\omega_j` is. So

    .. math:: \operatorname{Var} \bar t = E \Bigl[ \frac{s^2}{m} + \frac{1}{m (m - 1)}
       \sum_{i \ne j} (t_i - t_i^{(j)}) (t_j - t_j^{(i)}) \Bigr]

    with s² the sample variance. Where AΩ has no full rank in the arithmetic, what is
    left is near rounding and the samples count as one.

    Args:
        sketch: What is known.

    Returns:
        :math:`t_i`, shape ``(m,)``, and the variance, where a negative covariance
        counts as none.

    Cost:
        About 10 m³ operations.

    Source:
        Epperly, Tropp and Webber, *XTrace: making the most of every sample in
        stochastic trace estimation*, 2024, for :math:`t_i`; the variance is derived
        here.
    """
    B, S, W = sketch.projected, sketch.left_out, sketch.vectors
    count = W.shape[1]
    BS, overlaps = B @ S, S.T @ S
    inside = torch.trace(B) - (S * BS).sum(0)
    M = W - S * (S * W).sum(0)
    BM = B @ M
    rank = int(B.shape[0]) - (1 if bool(S.any()) else 0)

    def outside(i: Tensor, m: Tensor, Bm: Tensor, dimension: int) -> Tensor:
        # (P − r)/|π ω|² ω'π B π ω of vectors i, with m the coordinates of QQ'ω
        left = sketch.squares[i] - m.square().sum(0)
        form = sketch.quadratic[i] - 2.0 * (m * sketch.mixed[:, i]).sum(0)
        form = form + (m * Bm).sum(0)
        alive = left > torch.finfo(left.dtype).eps * sketch.squares[i]
        return torch.where(alive, form * dimension / left, torch.zeros_like(form))

    every = torch.arange(count, device=W.device)
    estimates = inside + outside(every, M, BM, sketch.size - rank)
    if not bool(S.any()):
        return estimates, float(estimates.var())
    moves = torch.zeros((count, count), dtype=W.dtype, device=W.device)
    for i in range(count):
        T, BT = S - S[:, [i]] * overlaps[i], BS - BS[:, [i]] * overlaps[i]
        norms = T.norm(dim=0)
        unit = torch.where(norms > _PARALLEL, 1.0 / norms, torch.zeros_like(norms))
        T, BT = T * unit, BT * unit
        along = (T * W[:, [i]]).sum(0)
        trace = inside[i] - (T * BT).sum(0)
        without = trace + outside(
            every * 0 + i,
            M[:, [i]] - T * along,
            BM[:, [i]] - BT * along,
            sketch.size - rank + 1,
        )
        moves[i] = estimates[i] - without
        moves[i, i] = 0.0
    shared = float((moves * moves.T).sum()) / (count * (count - 1))
    return estimates, float(estimates.var()) / count + max(shared, 0.0)
