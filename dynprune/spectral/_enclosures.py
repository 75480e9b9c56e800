"""Ritz values of true products, their residuals, and intervals for eigenvalues."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

_ROWS = 65_536


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Ritz:
    """Ritz pairs with their products.

    Args:
        values: Descending, float64, shape ``(k,)``.
        vectors: Orthonormal, shape ``(P, k)``.
        products: A times the vectors, shape ``(P, k)``.
        gram: RᵀR of the residuals R = AV − VΘ, float64, shape ``(k, k)``.
    """

    values: Tensor
    vectors: Tensor
    products: Tensor
    gram: Tensor


def rayleigh_ritz(vectors: Tensor, products: Tensor, outside: Tensor) -> Ritz:
    """Return the Ritz pairs of a subspace from true products.

    Inner products and residuals are accumulated in float64 whatever the dtype is.

    Args:
        vectors: V, nearly orthonormal, shape ``(P, k)``.
        products: A V.
        outside: Orthonormal columns that A is deflated by, shape ``(P, o)``.

    Returns:
        Ritz pairs of A, or of the deflated A on the complement.
    """
    products = products - outside @ (outside.T @ products)
    overlap, small = _gram(vectors, vectors), _gram(vectors, products)
    inverse = torch.linalg.inv(torch.linalg.cholesky(overlap))
    theta, Y = torch.linalg.eigh(inverse @ (0.5 * (small + small.T)) @ inverse.T)
    mixing = (inverse.T @ Y).flip(1)
    theta = theta.flip(0)
    turned, moved = vectors @ mixing.to(vectors), products @ mixing.to(products)
    gram = torch.zeros_like(overlap)
    for v, w in zip(turned.split(_ROWS), moved.split(_ROWS), strict=True):
        residual = w.double() - v.double() * theta
        gram += residual.T @ residual
    return Ritz(values=theta, vectors=turned, products=moved, gram=gram)


def _gram(left: Tensor, right: Tensor) -> Tensor:
    total = torch.zeros(
        (left.shape[1], right.shape[1]), dtype=torch.float64, device=left.device
    )
    for a, b in zip(left.split(_ROWS), right.split(_ROWS), strict=True):
        total += a.double().T @ b.double()
    return total


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
