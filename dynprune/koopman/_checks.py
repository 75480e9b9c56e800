"""What a Koopman fit refuses, and where it cuts singular values off."""

import torch

from dynprune.core import InvalidInputError, unknown
from dynprune.koopman._dmd import Fitted
from dynprune.koopman._reduce import check_finite
from dynprune.trajectory import Trajectory

EPS = torch.finfo(torch.float64).eps
_KNOBS = {
    "centring": ("none", "affine", "difference"),
    "method": ("dmd", "self-adjoint"),
    "route": ("gram", "qr"),
}


def check(
    trajectory: Trajectory,
    rank: int | str | None,
    centring: str,
    method: str,
    route: str,
    delay: int,
    rtol: float | None,
) -> None:
    """Refuse wrong knobs and windows that are too short, uneven or not finite.

    Args:
        trajectory: The window.
        rank: As given to ``fit``, like the others.
        centring: Centring.
        method: Method.
        route: Route.
        delay: Delay.
        rtol: Cut-off, or None.

    Raises:
        InvalidInputError: Naming the knob, its value and the remedy.
    """  # noqa: DOC501 - unknown() makes one
    for what, name in (("centring", centring), ("method", method), ("route", route)):
        if name not in _KNOBS[what]:
            raise unknown(what, name, _KNOBS[what])
    if delay < 1:
        raise InvalidInputError(f"delay={delay}. Pass 1 for plain DMD, or more.")
    if method == "self-adjoint" and delay > 1:
        raise InvalidInputError(
            f"method='self-adjoint' with delay={delay}: the map of a delay vector is "
            "never symmetric. Use delay=1 or method='dmd'."
        )
    if rtol is not None and not 0.0 <= rtol < 1.0:
        raise InvalidInputError(f"rtol={rtol}. Pass a number in [0, 1).")
    T = trajectory.snapshots.shape[1]
    least = 2 + delay + (centring == "difference")
    if least > T:
        raise InvalidInputError(
            f"{T} snapshots, at least {least} are needed for centring={centring!r} "
            f"and delay={delay}. Record more often, or a longer window."
        )
    _ = trajectory.dt  # refuses unequal spacing
    pairs_there = T - delay - (centring == "difference")
    if isinstance(rank, str) and rank != "holdout":
        raise InvalidInputError(f'rank={rank!r}. Pass a number, None or "holdout".')
    if isinstance(rank, int) and not 1 <= rank <= pairs_there:
        raise InvalidInputError(
            f"rank={rank} of {pairs_there} snapshot pairs. Pass 1 to {pairs_there}, or "
            "record more snapshots."
        )
    check_finite(trajectory.snapshots, trajectory.steps)


def check_rank(rank: int | None, small: Fitted, label: str) -> None:
    """Refuse a rank that the snapshots do not support.

    Args:
        rank: The rank asked for, or None.
        small: The fit of one group.
        label: Its name.

    Raises:
        InvalidInputError: If fewer singular values were kept.
    """
    kept = int(small.kept.sum())
    if rank is not None and kept < rank:
        raise InvalidInputError(
            f"rank={rank} was asked for, the snapshots of {label!r} support {kept} "
            "singular values above rtol. Ask for fewer, pass a smaller rtol, or use "
            'route="qr".'
        )


def cutoff(rtol: float | None, route: str, pairs_there: int, size: int) -> float:
    """Return the relative cut-off of singular values.

    Args:
        rtol: As asked, or None.
        route: ``gram`` or ``qr``.
        pairs_there: Columns.
        size: Rows of the snapshots themselves.

    Returns:
        ``rtol``, or ``max(shape) * eps``, or its Gram counterpart ``sqrt(T * eps)``.
    """
    if rtol is not None:
        return rtol
    if route == "gram":
        return float((pairs_there * EPS) ** 0.5)
    return max(pairs_there, size) * EPS
