"""Gaps of a spectrum, resolved or not."""

import torch

from dynprune.core import InvalidInputError
from dynprune.spectral._results import Eigenpairs, Gaps


def gaps(pairs: Eigenpairs) -> Gaps:
    r"""Measure the gaps between neighbouring eigenvalues.

    .. math:: g_k = \lambda_k - \lambda_{k+1}, \qquad k = 1, \dots, K - 1

    of K pairs, :math:`\lambda` descending; k is the index ``n_fast``. A gap is
    *resolved* only if the enclosures on its two sides are disjoint **and** the pairs
    are complete: a missed copy of :math:`\lambda_{k+1}` would not show otherwise.

    Args:
        pairs: The K largest eigenpairs (``which="LA"``), made with
            ``completeness=True`` if any gap shall be resolved.

    Returns:
        K − 1 gaps.

    Raises:
        InvalidInputError: If the pairs are not the largest ones, or fewer than two.

    Example:
        >>> from dynprune.operators import MatrixOperator
        >>> from dynprune.spectral import eigenpairs
        >>> op = MatrixOperator(torch.diag(torch.tensor([5.0, 4.0, 4.0, 1.0, 0.5])))
        >>> found = gaps(eigenpairs(op, 4))
        >>> found.largest(), [round(gap, 4) for gap in found.spectral_gap.tolist()]
        (3, [1.0, 0.0, 3.0])
    """
    if pairs.which != "LA" and len(pairs) < pairs.size:
        raise InvalidInputError(
            f"Gaps were asked of pairs made with which={pairs.which!r}: they are "
            "counted from the sharp end. Pass pairs made with which='LA'."
        )
    if len(pairs) < 2:
        raise InvalidInputError(
            f"A gap needs two eigenvalues, found {len(pairs)}. Ask for k + 1 pairs to "
            "see the gap k."
        )
    values, ends = pairs.values, pairs.enclosures
    gap = values[:-1] - values[1:]
    low = torch.cummin(ends[:, 0], 0).values[:-1]
    high = torch.cummax(ends[:, 1].flip(0), 0).values.flip(0)[1:]
    bound = low - high
    positive = torch.where(values[:-1] > 0, values[:-1], torch.nan)
    complete = torch.full_like(bound, bool(pairs.complete), dtype=torch.bool)
    return Gaps(
        n_fast=torch.arange(1, len(values), device=values.device),
        spectral_gap=gap,
        relative_gap=gap / positive,
        lower_bound=bound,
        resolved=(bound > 0) & complete,
        provenance=pairs.provenance,
    )
