"""Nodes and weights that turn traces of functions of A into sums."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, generator
from dynprune.operators import AbstractOperator
from dynprune.spectral._columns import dots
from dynprune.spectral._known import known
from dynprune.spectral._krylov import BlockKrylov, block_krylov
from dynprune.spectral._locking import isolated
from dynprune.spectral._results import Eigenpairs

_WORST_RATE = 0.9


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Nodes:
    """Hold a discrete measure.

    Args:
        values: Ascending, float64, shape ``(n,)``.
        weights: Shape ``(n, b)``, a column for each probe.
    """

    values: Tensor
    weights: Tensor


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Quadrature:
    r"""Hold a quadrature of tr f(A), exact on what is locked.

    .. math:: \operatorname{tr} f(A) \approx \sum_i f(\theta_i)
       + \frac{1}{b} \sum_j \sum_l w_{lj} f(\nu_l)

    Args:
        locked: :math:`\theta_i`, eigenvalues that count once each, shape ``(k,)``.
        radii: Of intervals around them that hold eigenvalues, shape ``(k,)``.
        rest: :math:`\nu` and w; each column of w sums to P − k.
        whole: What probes saw before anything was locked in it, scaled as ``rest``
            is, after all steps, four fifths and three fifths of them; empty if the
            quadrature is exact.
        free: P − k, the dimension that probes sample.
        steps: Steps that were made.
        low: Smallest Ritz value.
        low_radius: Its residual norm.
    """

    locked: Tensor
    radii: Tensor
    rest: Nodes
    whole: tuple[Nodes, ...]
    free: int
    steps: int
    low: float
    low_radius: float

    def moments(self, heights: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return the mean over probes of the rest's sum, and the mean's variance.

        Probes are uniform on a sphere in n dimensions, where

        .. math:: \operatorname{Var} n \frac{v^\top f(A) v}{v^\top v} = \frac{2n}{n+2}
           \Bigl(\operatorname{tr} f^2 - \frac{(\operatorname{tr} f)^2}{n}\Bigr)

        exactly. These traces are taken from the same nodes and all probes, which is
        far more certain than the spread of a few probes.

        Args:
            heights: f at the nodes of the rest, shape ``(…, n)``.

        Returns:
            Two tensors of shape ``(…)``.
        """
        free, probes = self.free, self.rest.weights.shape[1]
        if free == 0:
            nothing = heights.new_zeros(heights.shape[:-1])
            return nothing, nothing
        weights = self.rest.weights.mean(1)
        first, second = heights @ weights, heights.square() @ weights
        spread = (second - first.square() / free).clamp_min(0.0)
        return first, 2.0 * free / (free + 2.0) * spread / probes


def quadrature(
    op: AbstractOperator,
    *,
    probes: int,
    steps: int,
    pairs: Eigenpairs | None,
    locked: int,
    seed: int,
    progress: bool = False,
) -> Quadrature:
    """Make a quadrature from the block Krylov space of random probes.

    Args:
        op: A.
        probes: How many, b.
        steps: Products with a block of b.
        pairs: Eigenpairs of A that are known, or None.
        locked: How many to find otherwise.
        seed: Of the probes.
        progress: Draw a bar.

    Returns:
        The quadrature.

    Raises:
        InvalidInputError: For probes or steps out of range.
    """
    before_search = op.size - (locked if pairs is None else len(pairs))
    if not 1 <= probes <= before_search or steps < 3:
        raise InvalidInputError(
            f"probes={probes} and steps={steps} were given for {before_search} "
            "dimensions beside the known pairs. Pass 1 <= probes <= "
            f"{before_search} and steps >= 3."
        )
    away = known(op, pairs, locked, seed=seed)
    start = isotropic(op, probes, away.vectors, seed=seed)
    space = block_krylov(
        op, start, steps, away=away.vectors, norm=away.norm, progress=progress
    )
    free = op.size - len(away.values)
    values, turns = torch.linalg.eigh(space.projection)
    residuals = _residuals(space, turns)
    alone = isolated(values, residuals, free=free, probes=probes)
    squares = _squares(space, turns)
    left = free - int(alone.sum())
    seen = squares[~alone].sum(0)
    if left and bool((seen <= torch.finfo(op.dtype).eps * squares.sum(0)).any()):
        alone, left, seen = alone & False, free, squares.sum(0)  # nothing to scale
    scale = left / seen if left else torch.zeros_like(seen)
    sure = torch.cat([away.values, values[alone]])
    order = sure.argsort(descending=True)
    return Quadrature(
        locked=sure[order],
        radii=torch.cat([away.radii, residuals[alone]])[order],
        rest=Nodes(values=values[~alone], weights=squares[~alone] * scale),
        whole=_refinements(space, scale),
        free=left,
        steps=len(space.ends),
        low=float(torch.cat([sure, values]).min()),
        low_radius=float(residuals[0]) if len(values) else 0.0,
    )


def isotropic(op: AbstractOperator, count: int, away: Tensor, *, seed: int) -> Tensor:
    """Return vectors that are uniform on a sphere orthogonal to some others.

    Args:
        op: Gives rows, dtype and device.
        count: How many.
        away: Orthonormal, shape ``(held, o)``.
        seed: The seed.

    Returns:
        Shape ``(held, count)``, of squared length P − o.
    """
    rows = op.rows
    block = rows.random(count, generator=generator(seed), dtype=op.dtype).to(op.device)
    for _ in range(2):
        block = block - away @ rows.inner(away, block)
    squares = dots(rows, block, block)
    return block * ((op.size - away.shape[1]) / squares).sqrt().to(block)


def remaining_error(fine: Tensor, middle: Tensor, coarse: Tensor) -> Tensor:
    """Extrapolate the error of a quadrature from three that converge geometrically.

    Args:
        fine: Values after s steps, shape ``(n,)``.
        middle: After s − l steps.
        coarse: After s − 2 l steps.

    Returns:
        |fine − middle| ρ/(1 − ρ), shape ``(n,)``, with one rate ρ per lag for all
        values, from their total changes; ρ is cut at 0.9, and ρ/(1 − ρ) at 0.1 from
        below.
    """
    last, before = (fine - middle).abs(), (middle - coarse).abs()
    total = float(before.sum())
    rate = min(float(last.sum()) / total, _WORST_RATE) if total > 0.0 else 0.0
    return last * max(rate / (1.0 - rate), 0.1)


def _residuals(space: BlockKrylov, turns: Tensor) -> Tensor:
    ends = turns[len(turns) - space.coupling.shape[1] :]
    squares: Tensor = (space.coupling @ ends).square().sum(0)
    return (squares + space.noise**2).sqrt()


def _squares(space: BlockKrylov, turns: Tensor) -> Tensor:
    # (v_j' y_l)² of each probe with each Ritz vector
    overlaps: Tensor = turns[: len(space.probes)].T @ space.probes
    return overlaps.square()


def _refinements(space: BlockKrylov, scale: Tensor) -> tuple[Nodes, ...]:
    if len(space.coupling) == 0 or len(space.ends) < 3:
        return ()
    lag = max(1, len(space.ends) // 5)
    found = []
    for back in (0, lag, 2 * lag):
        size = space.ends[len(space.ends) - 1 - back]
        values, turns = torch.linalg.eigh(space.projection[:size, :size])
        found.append(Nodes(values=values, weights=_squares(space, turns) * scale))
    return tuple(found)
