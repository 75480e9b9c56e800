"""Eigenpairs that are known before a spectrum is sampled."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, derive_seed, generator
from dynprune.operators import AbstractOperator
from dynprune.spectral._columns import dots
from dynprune.spectral._eigenpairs import eigenpairs
from dynprune.spectral._recursion import finite
from dynprune.spectral._results import Eigenpairs

_TOL = 1e-4


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Known:
    """Hold eigenpairs to lock.

    Args:
        vectors: Orthonormal, shape ``(held, k)``.
        values: Float64, on the CPU, shape ``(k,)``.
        radii: Residual norms, float64, on the CPU, shape ``(k,)``.
    """

    vectors: Tensor
    values: Tensor
    radii: Tensor

    @property
    def norm(self) -> float:
        """Largest |value|, 0 if there is none: |A| is at least that."""
        return float(self.values.abs().max()) if len(self.values) else 0.0


def known(
    op: AbstractOperator, pairs: Eigenpairs | None, locked: int, *, seed: int
) -> Known:
    """Check eigenpairs that were passed, or find some.

    Args:
        op: A.
        pairs: Pairs of A, or None.
        locked: How many of the largest in magnitude to find if none were passed.
        seed: Of the search, and of the vector that checks.

    Returns:
        The pairs.

    Raises:
        InvalidInputError: If both are asked for, or the pairs are not A's.

    Cost:
        One matvec to check pairs; the search's own otherwise.
    """
    if locked < 0 or (locked and pairs is not None):
        raise InvalidInputError(
            f"locked={locked} was asked for with pairs={pairs!r}. Pass pairs, or how "
            "many to find, or neither."
        )
    if locked:
        seed = derive_seed("spectral.known", seed)
        pairs = eigenpairs(op, locked, which="LM", tol=_TOL, seed=seed)
    elif pairs is not None:
        _check(op, pairs, seed=seed)
    if pairs is None:
        nothing = torch.zeros(0, dtype=torch.float64)
        none = torch.zeros((op.rows.held, 0), dtype=op.dtype, device=op.device)
        return Known(vectors=none, values=nothing, radii=nothing)
    return Known(
        vectors=pairs.vectors.to(device=op.device, dtype=op.dtype),
        values=pairs.values.cpu(),
        radii=pairs.residual_norms.cpu(),
    )


def _check(op: AbstractOperator, pairs: Eigenpairs, *, seed: int) -> None:
    # A U c = U Θ c within the residuals, for random signs c.
    if pairs.vectors.shape[0] != op.rows.held:
        raise InvalidInputError(
            f"pairs have vectors of {pairs.vectors.shape[0]} coordinates, the operator "
            f"has {op.rows.held}. Pass eigenpairs of this operator."
        )
    vectors = pairs.vectors.to(device=op.device, dtype=op.dtype)
    coins = torch.randn(len(pairs), generator=generator(seed), dtype=torch.float64)
    signs = coins.sign()
    turned = (signs * pairs.values.cpu()).to(vectors)
    error = finite(op @ (vectors @ signs.to(vectors))) - vectors @ turned
    found = float(dots(op.rows, error[:, None], error[:, None]).sqrt())
    scale = float(pairs.values.abs().sum())
    allowed = float(pairs.residual_norms.sum())
    allowed += 1e3 * torch.finfo(op.dtype).eps * scale
    if found > 2.0 * allowed:
        raise InvalidInputError(
            f"pairs are not eigenpairs of this operator: |A Uc - U diag(values) c| is "
            f"{found:.2g}, their residual norms allow {allowed:.2g}. Compute them "
            "again at this state."
        )
