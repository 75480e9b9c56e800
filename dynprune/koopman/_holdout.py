"""Choose the rank by the forecast of a held-out tail."""

import torch
from torch import Tensor

from dynprune.core import InvalidInputError
from dynprune.koopman._delays import pairs
from dynprune.koopman._dmd import solve_pairs
from dynprune.koopman._evolve import piece, states


def held_out_rank(
    factor: Tensor,
    centring: str,
    delay: int,
    method: str,
    holdout: float,
    rtol: float,
) -> int:
    """Return the rank whose forecast of the tail is best in the mean square.

    Everything happens in reduced coordinates, so the weights are not read.

    Args:
        factor: Factor R of the increments Z, shape ``(q, T)``.
        centring: Of the fits.
        delay: Of the fits.
        method: Of the fits.
        holdout: Share of the window held out, in (0, 1).
        rtol: Singular values below this times the largest are never kept.

    Returns:
        The rank; the smaller of two equally good ones.

    Raises:
        InvalidInputError: If too little is left to fit.

    Cost:
        T singular value problems of size T x T.
    """
    T = factor.shape[1]
    tail = max(1, round(holdout * T))
    head, least = T - tail, 2 + delay + (centring == "difference")
    if not 0.0 < holdout < 1.0 or head < least:
        raise InvalidInputError(
            f"holdout={holdout} of {T} snapshots leaves {head} to fit, at least "
            f"{least} are needed. Hold out less, or record more often."
        )
    known, built = factor[:, :head], pairs(head, centring, delay)
    truth = (factor @ torch.ones((T, T), dtype=factor.dtype).triu())[:, head:]
    none = torch.zeros(1, dtype=torch.long)
    best, best_error = 1, torch.inf
    for rank in range(1, built.past.shape[2] + 1):
        small = solve_pairs(
            known[None],
            built,
            centring=centring,
            method=method,
            rank=rank,
            rtol=rtol,
            dtype_eps=0.0,
            gram_eps=0.0,
        )
        if int(small.kept.sum()) < rank:
            break
        part = piece(
            small,
            built,
            method=method,
            centring=centring,
            label="",
            index=none[None],
            rows=none,
            columns=none,
            increments=None,
        )
        mixed = part.lift @ states(part, range(1, tail + 1)) + part.offset[..., None]
        error = float(torch.linalg.matrix_norm(known @ mixed[0] - truth))
        if error < best_error:
            best, best_error = rank, error
    return best
