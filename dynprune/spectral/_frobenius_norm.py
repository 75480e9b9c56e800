"""The Frobenius norm of an operator, with a calibrated error bar."""

import math

import torch

from dynprune.core import Outcome, Provenance
from dynprune.operators import AbstractOperator
from dynprune.spectral._exchangeable import exchangeable
from dynprune.spectral._intervals import around, check_level, student
from dynprune.spectral._sketch import sketch
from dynprune.spectral._trace import check_budget
from dynprune.spectral._trace_results import Trace
from dynprune.spectral._whole import whole_square

_LARGE = 700.0  # exp of more overflows
_UNIT = "loss per parameter²"


def frobenius_norm(
    op: AbstractOperator,
    *,
    matvecs: int = 100,
    level: float = 0.95,
    seed: int = 0,
) -> Trace:
    r"""Estimate the Frobenius norm of A from random products.

    .. math:: \|A\|_F^2 = \operatorname{tr} A^2 = \|A Q\|_F^2
       + \operatorname{tr} (I - QQ^\top) A^2 (I - QQ^\top)

    as ``trace(method="xtrace")`` does, with A² in the place of A but no product more:
    :math:`\omega^\top A^2 \omega = \|A\omega\|^2`. That estimate of :math:`\|A\|_F^2`
    is unbiased; its root, the value, is not quite. ``samples`` are of
    :math:`\|A\|_F^2`; the interval is symmetric about the value's logarithm,
    of Student's t with half the usual degrees of freedom, as squares are skew.

    Args:
        op: A, symmetric, of P coordinates.
        matvecs: Products to spend at most, at least 4; if P or more, the norm is
            taken exactly, from P products.
        level: Coverage of the interval.
        seed: Of the random vectors.

    Returns:
        The estimate.

    Raises:
        InvalidInputError: For too few matvecs, a level outside (0, 1), or products
            that are not finite.
        AssumptionError: If the operator is not symmetric.

    Cost:
        ``matvecs`` products, in two blocks; 1.5 ``matvecs`` P-vectors of memory.

    Source:
        Epperly, Tropp and Webber, *XTrace: making the most of every sample in
        stochastic trace estimation*, 2024, for the trace; this use is derived.

    Example:
        >>> import torch
        >>> from dynprune.operators import MatrixOperator
        >>> A = MatrixOperator(torch.diag(torch.tensor([4.0, 3.0] + [0.0] * 98)))
        >>> round(frobenius_norm(A, matvecs=8).value, 4)  # rank 2: exact
        5.0
    """  # noqa: DOC502 - raised by the steps below
    check_budget(matvecs)
    check_level(level)
    before = op.matvecs
    if matvecs >= op.size:
        samples, variance, used = whole_square(op).reshape(1), 0.0, "exact"
    else:
        found = sketch(op, matvecs // 2, seed=seed, power=2)
        (samples, variance), used = exchangeable(found), "xtrace"
    square, error = float(samples.mean()), variance**0.5
    # samples of squares are skew: half the degrees of freedom cover as they should
    degrees = 0.5 * (len(samples) - 1)
    reach = student(degrees, level) * error if error else 0.0
    value = max(square, 0.0) ** 0.5
    # symmetric in the logarithm: squares are positive and skew
    relative = reach / square if value else 0.0
    eps = torch.finfo(op.dtype).eps
    low, high = around(0.0, 0.5 * relative, largest=1.0, eps=eps)
    settings = {"matvecs": matvecs, "method": used, "level": level}
    return Trace(
        quantity="|A|_F",
        value=value,
        standard_error=error / (2.0 * value) if value else 0.0,
        interval=(value * math.exp(low), value * math.exp(min(high, _LARGE))),
        level=level,
        samples=samples,
        method=used,
        unit=_UNIT,
        matvecs=float(op.matvecs - before),
        outcome=Outcome.FINISHED,
        provenance=Provenance(
            made_by="spectral.frobenius_norm",
            seed=seed,
            dtype=str(op.dtype).removeprefix("torch."),
            device=str(op.device),
            settings=tuple(sorted(settings.items())),
            sources=("xtrace",) if used == "xtrace" else (),
        ),
    )
