"""Ritz values, their residuals, and intervals for eigenvalues."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynprune.spectral._basis import Complement, overlap

_ROWS = 8192


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Recurrence:
    """Products that are known without making them: A V = V Θ + F S + D.

    Args:
        values: Θ, descending, float64, on the CPU, shape ``(k,)``.
        beyond: F, orthonormal and orthogonal to V, shape ``(held, f)``.
        coupling: S, float64, on the CPU, shape ``(f, k)``.
        discrepancy: Bound on the Frobenius norm of D.
    """

    values: Tensor
    beyond: Tensor
    coupling: Tensor
    discrepancy: float


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Ritz:
    """Ritz pairs with their residuals.

    Args:
        values: Descending, float64, shape ``(k,)``.
        vectors: Orthonormal, shape ``(held, k)``.
        gram: R'R of the residuals R = AV − VΘ, as far as they are known, float64,
            shape ``(k, k)``.
        error: Bound on the norm of what ``gram`` lacks.
        skew: Norm of V'V − I.
    """

    values: Tensor
    vectors: Tensor
    gram: Tensor
    error: float
    skew: float

    @property
    def residual_norms(self) -> Tensor:
        """Norms of the residuals, or bounds on them, shape ``(k,)``."""
        return self.gram.diagonal().clamp_min(0.0).sqrt() + self.error


def rayleigh_ritz(
    vectors: Tensor, products: Tensor | Recurrence, outside: Complement
) -> Ritz:
    """Return the Ritz pairs of a subspace from its products, made or known.

    Inner products and residuals of products that were made are accumulated in float64
    whatever the dtype is.

    Args:
        vectors: V, nearly orthonormal, shape ``(held, k)``.
        products: A V.
        outside: Where A is looked at.

    Returns:
        Ritz pairs of A on the complement.

    Cost:
        Four blocks of k P-vectors in all for products that were made, none for a
        recurrence.
    """
    rows = outside.rows
    square = overlap(rows, vectors, vectors)
    if isinstance(products, Recurrence):
        S = products.coupling
        return Ritz(
            values=products.values.to(square.device),
            vectors=vectors,
            gram=(S.T @ S).to(square.device),
            error=products.discrepancy,
            skew=_skew(square),
        )
    products = outside.without(products)
    small = overlap(rows, vectors, products)
    inverse = torch.linalg.inv(torch.linalg.cholesky(square))
    theta, Y = torch.linalg.eigh(inverse @ (0.5 * (small + small.T)) @ inverse.T)
    mixing = (inverse.T @ Y).flip(1)
    theta = theta.flip(0)
    turned = (mixing.to(vectors).T @ vectors.T).T
    moved = (mixing.to(products).T @ products.T).T
    gram = torch.zeros_like(square)
    for v, w in zip(turned.split(_ROWS), moved.split(_ROWS), strict=True):
        residual = w.double() - v.double() * theta
        gram += residual.T @ residual
    skew = _skew(overlap(rows, turned, turned))
    return Ritz(values=theta, vectors=turned, gram=rows.sum(gram), error=0.0, skew=skew)


def _skew(square: Tensor) -> float:
    eye = torch.eye(len(square), dtype=square.dtype, device=square.device)
    return float((square - eye).norm())


def enclose(values: Tensor, gram: Tensor, *, slack: float) -> Tensor:
    r"""Enclose k eigenvalues around k Ritz values.

    For orthonormal V and R = AV − VΘ, k eigenvalues of A, counted with multiplicity,
    match the Ritz values in order within :math:`\|R\|_2`. This is used for one vector
    at a time; where the intervals of neighbours overlap, they could mean the same
    eigenvalue, so their group is enclosed together, with its own :math:`\|R\|_2`, until
    no two groups overlap. Intervals of different groups hold different eigenvalues.

    Args:
        values: Ritz values, descending, shape ``(k,)``.
        gram: RᵀR, shape ``(k, k)``.
        slack: Added to every radius, for rounding.

    Returns:
        Lower and upper ends, shape ``(k, 2)``.

    Source:
        Kahan, *Inclusion theorems for clusters of eigenvalues of Hermitian matrices*,
        1967; as in Parlett, *The Symmetric Eigenvalue Problem*, 1998.
    """
    groups: list[tuple[int, int, float]] = []
    for i in range(len(values)):
        groups.append((i, i + 1, _radius(gram, i, i + 1, slack)))
        while len(groups) > 1 and _overlap(values, groups[-2], groups[-1]):
            _, stop, _ = groups.pop()
            first, _, _ = groups.pop()
            groups.append((first, stop, _radius(gram, first, stop, slack)))
    ends = values.new_empty((len(values), 2))
    for first, stop, radius in groups:
        ends[first:stop, 0] = values[first:stop] - radius
        ends[first:stop, 1] = values[first:stop] + radius
    return ends


def _radius(gram: Tensor, first: int, stop: int, slack: float) -> float:
    largest = float(torch.linalg.eigvalsh(gram[first:stop, first:stop])[-1])
    return float(max(largest, 0.0) ** 0.5) + slack


def _overlap(
    values: Tensor, above: tuple[int, int, float], below: tuple[int, int, float]
) -> bool:
    low = float(values[above[1] - 1]) - above[2]
    return low <= float(values[below[0]]) + below[2]
