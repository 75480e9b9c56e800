"""Whether eigenvalues are missing between Ritz pairs: a second random start."""

import torch
from torch import Tensor

from dynprune.core import derive_seed
from dynprune.operators import AbstractOperator
from dynprune.spectral._basis import Complement
from dynprune.spectral._checkpoint import Checkpoint
from dynprune.spectral._enclosures import Ritz, rayleigh_ritz
from dynprune.spectral._lanczos import Krylov, lanczos, wanted
from dynprune.spectral._recursion import random_block
from dynprune.spectral._search import Search

_COARSE = 1e-4


def complete(
    op: AbstractOperator,
    ritz: Ritz,
    search: Search,
    outside: Complement,
    scale: float,
    norm: float,
    checkpoint: Checkpoint,
) -> tuple[Ritz, bool | None]:
    """Look for missing pairs on the complement of those found, and put them in.

    A Ritz value there beyond the last pair proves that one is missing.

    Args:
        op: A.
        ritz: What was found.
        search: What was asked.
        outside: Where it was looked for.
        scale: Largest |Ritz value| so far.
        norm: |A|, as far as it is known.
        checkpoint: Counts the products.

    Returns:
        The pairs, and whether they are complete; None if the budget ended the test.
    """
    ends = 2 if search.which == "BE" else 1
    slack = max(search.tol, 32 * torch.finfo(op.dtype).eps) * scale
    for turn in range(search.k + 1):
        away = outside.joined(ritz.vectors)
        room = op.size - away.codimension
        if room == 0:
            return ritz, True
        seed = derive_seed("spectral.completeness", search.seed, turn)

        def look(
            tol: float,
            start: Tensor,
            away: Complement = away,
            count: int = min(ends, room),
            seed: int = seed,
        ) -> Krylov | None:
            left = search.budget - checkpoint.spent
            if left < count + 1:
                return None
            return lanczos(
                op,
                count,
                which=search.which,
                tol=tol,
                max_matvecs=left,
                start=start,
                outside=away,
                basis_size=_basis_size(op, search, away, count),
                seed=seed,
                scale=scale,
                norm=norm,
                checkpoint=checkpoint,
            )

        found = look(max(_COARSE, search.tol), random_block(op, 1, seed=seed))
        if found is None:
            return ritz, None
        if not _beyond(found, ritz, search, slack):
            return ritz, True if found.converged else None
        found = look(0.5 * search.tol, found.vectors[:, :1])
        if found is None or search.budget - checkpoint.spent < search.k + ends:
            return ritz, False
        vectors = torch.cat([ritz.vectors.T, found.vectors.T]).T
        ritz = _take(rayleigh_ritz(vectors, op @ vectors, outside), search)
    return ritz, False


def _basis_size(
    op: AbstractOperator, search: Search, away: Complement, count: int
) -> int:
    room = op.size - away.codimension
    least = min(max(24, 2 * count + 8), room)
    return room if search.basis_size >= room else least


def _beyond(found: Krylov, ritz: Ritz, search: Search, slack: float) -> bool:
    values = ritz.values.cpu()
    more = torch.cat([values, found.values]).sort().values
    chosen = wanted(more, search.which)[: search.k].sort(descending=True).values
    return bool(((more[chosen] - values).abs() > slack).any())


def _take(ritz: Ritz, search: Search) -> Ritz:
    order = wanted(ritz.values.flip(0), search.which)[: search.k]
    chosen = (len(ritz.values) - 1 - order).sort().values
    return Ritz(
        values=ritz.values[chosen],
        vectors=ritz.vectors.T[chosen].T,
        gram=ritz.gram[chosen][:, chosen],
        error=ritz.error,
        skew=ritz.skew,
    )
