"""The trace of an operator, with a calibrated error bar."""

from typing import Literal, get_args

import torch
from torch import Tensor

from dynprune.core import (
    InvalidInputError,
    Outcome,
    Provenance,
    derive_seed,
    generator,
    unknown,
)
from dynprune.operators import AbstractOperator
from dynprune.spectral._columns import dots
from dynprune.spectral._exchangeable import exchangeable
from dynprune.spectral._intervals import around, check_level, student
from dynprune.spectral._orthonormal import orthonormal
from dynprune.spectral._quadrature import isotropic
from dynprune.spectral._recursion import finite
from dynprune.spectral._sketch import sketch
from dynprune.spectral._trace_results import Trace
from dynprune.spectral._whole import whole_diagonal

TraceMethod = Literal["xtrace", "hutch++", "hutchinson"]
_LEAST = 4
_UNIT = "loss per parameter²"
_SOURCES: dict[str, tuple[str, ...]] = {
    "exact": (),
    "xtrace": ("xtrace",),
    "hutch++": ("hutch++",),
    "hutchinson": ("hutchinson",),
}


def trace(
    op: AbstractOperator,
    *,
    matvecs: int = 100,
    method: TraceMethod = "xtrace",
    level: float = 0.95,
    seed: int = 0,
) -> Trace:
    r"""Estimate the trace of A from random products.

    .. math:: \operatorname{tr} A = \operatorname{tr} Q^\top A Q
       + \operatorname{tr} (I - QQ^\top) A (I - QQ^\top)

    the first part exactly, the second as the mean of quadratic forms in random vectors:

    * ``"xtrace"``: m = matvecs/2 vectors uniform on a sphere serve both for the range
      Q of AΩ and, each with a Q that does without it, for the second part, where it is
      rescaled to its dimension (the published normalised variant). The standard error
      holds the covariance of these estimates, which their spread leaves out.
    * ``"hutch++"``: a third of the vectors for Q, a third for AQ, the rest for the
      second part; its error bar is that of the rest.
    * ``"hutchinson"``: no Q; random signs.

    All are unbiased for any symmetric A; none needs it to be positive. The interval is
    Student's, with one degree of freedom less than there are samples.

    Args:
        op: A, symmetric, of P coordinates.
        matvecs: Products to spend at most, at least 4; if P or more, the trace is
            taken exactly, from P products.
        method: See above.
        level: Coverage of the interval.
        seed: Of the random vectors.

    Returns:
        The estimate.

    Raises:
        InvalidInputError: For too few matvecs, an unknown method, a level outside
            (0, 1), or products that are not finite.
        AssumptionError: If the operator is not symmetric ("xtrace").

    Cost:
        ``matvecs`` products, in two blocks ("hutch++" three); 1.5 ``matvecs``
        P-vectors of memory and matvecs² P operations.

    Source:
        Epperly, Tropp and Webber, *XTrace: making the most of every sample in
        stochastic trace estimation*, 2024; Meyer, Musco, Musco and Woodruff, *Hutch++:
        optimal stochastic trace estimation*, 2021; Hutchinson, 1989.

    Example:
        >>> import torch
        >>> from dynprune.operators import MatrixOperator
        >>> A = MatrixOperator(torch.diag(torch.tensor([3.0, 2.0] + [0.0] * 98)))
        >>> found = trace(A, matvecs=8)  # rank 2: exact up to rounding
        >>> round(found.value, 4), found.matvecs <= 8
        (5.0, True)
    """  # noqa: DOC501, DOC502 - unknown() makes it; finite() raises
    check_budget(matvecs)
    check_level(level)
    if method not in get_args(TraceMethod):
        raise unknown("method", method, get_args(TraceMethod))
    before = op.matvecs
    if matvecs >= op.size:
        total = op.rows.sum(whole_diagonal(op).double().sum()).cpu()
        used, samples, variance = "exact", total.reshape(1), 0.0
    elif method == "xtrace":
        samples, variance = exchangeable(sketch(op, matvecs // 2, seed=seed, power=1))
        used = method
    elif method == "hutch++":
        used, samples = method, _hutch_plus_plus(op, matvecs, seed=seed)
        variance = float(samples.var()) / len(samples)
    else:
        used, samples = method, _hutchinson(op, matvecs, seed=seed)
        variance = float(samples.var()) / len(samples)
    value, error = float(samples.mean()), variance**0.5
    reach = student(len(samples) - 1, level) * error if error else 0.0
    largest, eps = float(samples.abs().max()), torch.finfo(op.dtype).eps
    return Trace(
        quantity="tr A",
        value=value,
        standard_error=error,
        interval=around(value, reach, largest=largest, eps=eps),
        level=level,
        samples=samples,
        method=used,
        unit=_UNIT,
        matvecs=float(op.matvecs - before),
        outcome=Outcome.FINISHED,
        provenance=_provenance(op, matvecs, used, level, seed),
    )


def check_budget(matvecs: int) -> None:
    """Refuse a budget that gives no error bar.

    Args:
        matvecs: Products to spend.

    Raises:
        InvalidInputError: If it is below 4.
    """
    if matvecs < _LEAST:
        raise InvalidInputError(
            f"matvecs={matvecs} is too few for an error bar. Pass at least {_LEAST}."
        )


def _hutch_plus_plus(op: AbstractOperator, matvecs: int, *, seed: int) -> Tensor:
    third = matvecs // 3
    Q = orthonormal(op.rows, finite(op @ signs(op, third, seed=seed)))
    inside = dots(op.rows, Q, finite(op @ Q)).sum()
    count, seed = matvecs - 2 * third, derive_seed("spectral.trace", seed)
    rest = isotropic(op, count, Q, seed=seed)
    return inside + dots(op.rows, rest, finite(op @ rest))


def _hutchinson(op: AbstractOperator, matvecs: int, *, seed: int) -> Tensor:
    block = signs(op, matvecs, seed=seed)
    return dots(op.rows, block, finite(op @ block))


def signs(op: AbstractOperator, count: int, *, seed: int) -> Tensor:
    """Return vectors of random signs.

    Args:
        op: Gives rows, dtype and device.
        count: How many.
        seed: The seed.

    Returns:
        Shape ``(held, count)``.
    """
    rows, make = op.rows, generator(seed)
    return rows.random(count, generator=make, dtype=op.dtype).sign().to(op.device)


def _provenance(
    op: AbstractOperator, matvecs: int, method: str, level: float, seed: int
) -> Provenance:
    settings = {"matvecs": matvecs, "method": method, "level": level}
    return Provenance(
        made_by="spectral.trace",
        seed=seed,
        dtype=str(op.dtype).removeprefix("torch."),
        device=str(op.device),
        settings=tuple(sorted(settings.items())),
        sources=_SOURCES[method],
    )
