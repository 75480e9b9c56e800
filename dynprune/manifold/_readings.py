"""What a split says about coordinates: leverages, scores, densities."""

from typing import Literal, get_args

from torch import Tensor

from dynprune.core import InvalidInputError, unknown
from dynprune.spectral import Eigenpairs

Score = Literal["leverage+", "leverage-", "sharpness", "curvature"]
SCORES: tuple[str, ...] = get_args(Score)


def leverage(vectors: Tensor) -> Tensor:
    r"""Return how much of a subspace lies on each coordinate.

    .. math:: \ell_j = \sum_{i \in Q} U_{ji}^2 \in [0, 1], \qquad \sum_j \ell_j = k

    Args:
        vectors: Orthonormal U, shape ``(P, k)``.

    Returns:
        Leverages, shape ``(P,)``.

    Example:
        >>> import torch
        >>> leverage(torch.tensor([[1.0], [0.0]]))
        tensor([1., 0.])
    """
    return vectors.square().sum(1)


def participation_density(vectors: Tensor) -> float:
    r"""Return the share of coordinates that a subspace takes part in.

    .. math:: d_{PR} = \frac{1}{P} \frac{(\sum_j \ell_j)^2}{\sum_j \ell_j^2}
              \in [k/P, 1]

    the participation ratio of the leverages over P: k/P for k coordinate axes, 1 for a
    subspace that lies on all coordinates alike.

    Args:
        vectors: Orthonormal U, shape ``(P, k)``, k >= 1.

    Returns:
        A fraction of all P coordinates, biases included.

    Example:
        >>> import torch
        >>> participation_density(torch.eye(4)[:, :2])
        0.5
    """
    found = leverage(vectors.double())
    return float(found.sum() ** 2 / found.square().sum() / len(found))


def leverage_scores(
    pairs: Eigenpairs, *, n_fast: int, state: Tensor, score: Score
) -> Tensor:
    r"""Score coordinates by the fast subspace; larger = keep.

    With U, λ the k sharpest eigenpairs:

    - ``"leverage+"``: :math:`\ell_j = \sum_i U_{ji}^2`, protect the sharp directions.
      The K coordinates of largest :math:`\ell` maximise :math:`\|S U\|_F^2`, the part
      of the fast subspace that a mask S can still move in.
    - ``"leverage-"``: :math:`-\ell_j`, slave the sharp directions, the theorem's own
      reading: the k fast directions are the ones that go.
    - ``"sharpness"``: :math:`\sum_i \lambda_i U_{ji}^2`, the diagonal of the sharp part
      of the Hessian.
    - ``"curvature"``: :math:`\tfrac12 \sum_i \lambda_i (U_{ji} \theta_j)^2`, the loss
      that setting weight j to zero adds to second order in the sharp directions.

    Args:
        pairs: The sharpest eigenpairs, at least k.
        n_fast: k.
        state: θ, shape ``(P,)``; used by ``"curvature"``.
        score: Which.

    Returns:
        Scores, shape ``(P,)``.

    Raises:
        InvalidInputError: If the score is unknown or there are fewer than k pairs.
    """  # noqa: DOC501 - unknown() makes one
    if score not in SCORES:
        raise unknown("score", score, SCORES)
    if not 1 <= n_fast <= len(pairs):
        raise InvalidInputError(
            f"n_fast={n_fast} was asked of {len(pairs)} eigenpairs. Pass 1 to "
            f"{len(pairs)}."
        )
    # pairs of a file lie in another order in memory, and sums would round otherwise
    U = pairs.vectors[:, :n_fast].contiguous()
    if score == "leverage+":
        return leverage(U)
    if score == "leverage-":
        return -leverage(U)
    sharpness = U.square() @ pairs.values[:n_fast].to(U)
    return sharpness if score == "sharpness" else 0.5 * sharpness * state.square()
