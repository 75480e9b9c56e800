"""Traces of functions of an operator, with error bars."""

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, NumericalWarning, Outcome, Provenance
from dynprune.operators import AbstractOperator
from dynprune.spectral._intervals import around, check_level, student
from dynprune.spectral._quadrature import Quadrature, quadrature, remaining_error
from dynprune.spectral._results import Eigenpairs
from dynprune.spectral._trace_results import Trace

SpectralFunction = Callable[[Tensor], Tensor]


def spectral_sum(
    op: AbstractOperator,
    function: SpectralFunction,
    *,
    probes: int = 4,
    steps: int = 50,
    pairs: Eigenpairs | None = None,
    locked: int = 0,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = False,
) -> Trace:
    r"""Estimate the trace of a function of A.

    .. math:: \operatorname{tr} f(A) = \sum_i f(\lambda_i)

    by the quadrature of ``density``: eigenvalues that are locked count exactly, probes
    sample the rest. The standard error is that of the probes, from the trace of f²
    that the same nodes give. The interval is that of a normal distribution, wider by
    the error that the quadrature still has (extrapolated from fewer steps) and by the
    residuals of the locked pairs. If that error exceeds the standard error, a warning
    says so and ``outcome`` is NOT_CONVERGED: it is then no more than a guess, too small
    where convergence is slower than geometric (log det of a singular A).

    Args:
        op: A, symmetric, of P coordinates.
        function: f, elementwise on a float64 tensor; smooth over the spectrum.
        probes: b, 1 to P: more of them lower the standard error.
        steps: s ≥ 3: more of them integrate a rougher f.
        pairs: Eigenpairs of A that are known.
        locked: Find that many eigenpairs of largest magnitude first, if no pairs.
        level: Coverage of the interval.
        seed: Of the probes.
        progress: Draw a bar.

    Returns:
        The estimate.

    Raises:
        InvalidInputError: For probes, steps or level out of range, pairs of another
            operator, an f that is not finite on the spectrum, or products that are
            not finite.
        AssumptionError: If the operator is not symmetric.

    Cost:
        As ``density``.

    Source:
        Ubaru, Chen and Saad, *Fast estimation of tr(f(A)) via stochastic Lanczos
        quadrature*, 2017.

    Example:
        >>> from dynprune.operators import MatrixOperator
        >>> A = MatrixOperator(torch.diag(torch.arange(4.0)))
        >>> found = spectral_sum(A, torch.exp, probes=2, steps=4)
        >>> round(found.value, 3)  # 1 + e + e² + e³
        31.193
    """  # noqa: DOC502 - raised by the steps below
    before = op.matvecs
    check_level(level)
    found = quadrature(
        op,
        probes=probes,
        steps=steps,
        pairs=pairs,
        locked=locked,
        seed=seed,
        progress=progress,
    )
    return summed(
        op,
        found,
        function,
        quantity="tr f(A)",
        level=level,
        matvecs=float(op.matvecs - before),
        made_by="spectral.spectral_sum",
        settings={"probes": probes, "steps": steps},
        seed=seed,
    )


def summed(
    op: AbstractOperator,
    found: Quadrature,
    function: SpectralFunction,
    *,
    quantity: str,
    level: float,
    matvecs: float,
    made_by: str,
    settings: dict[str, object],
    seed: int,
) -> Trace:
    """Sum a function over a quadrature.

    Args:
        op: A.
        found: Its quadrature.
        function: f.
        quantity: What the sum is.
        level: Coverage of the interval.
        matvecs: Products that were spent.
        made_by: The public function.
        settings: Its knobs.
        seed: Its seed.

    Returns:
        The estimate.
    """
    heights = _heights(function, found.rest.values)
    mean, variance = found.moments(heights)
    sure = _heights(function, found.locked)
    slack = (_heights(function, found.locked + found.radii) - sure).abs().sum()
    samples = sure.sum() + heights @ found.rest.weights
    value, error = float(sure.sum() + mean), float(variance) ** 0.5
    left = 0.0
    if found.whole:
        sums = [
            _heights(function, part.values)[None] @ part.weights.mean(1)
            for part in found.whole
        ]
        left = float(remaining_error(*sums))
    unresolved = left > error
    if unresolved:
        warnings.warn(
            f"The quadrature of {quantity} still moves by about {left:.2g}, more than "
            f"the standard error {error:.2g}. Raise steps.",
            NumericalWarning,
            stacklevel=3,
        )
    reach = student(math.inf, level) * error + left + float(slack)
    largest = float(sure.abs().sum() + heights.abs() @ found.rest.weights.mean(1))
    return Trace(
        quantity=quantity,
        value=value,
        standard_error=error,
        interval=around(
            value, reach, largest=largest, eps=torch.finfo(torch.float64).eps
        ),
        level=level,
        samples=samples,
        method="lanczos quadrature",
        unit="",
        matvecs=matvecs,
        outcome=Outcome.NOT_CONVERGED if unresolved else Outcome.FINISHED,
        provenance=Provenance(
            made_by=made_by,
            seed=seed,
            dtype=str(op.dtype).removeprefix("torch."),
            device=str(op.device),
            settings=tuple(sorted(settings.items())),
            sources=("slq",),
        ),
    )


def _heights(function: SpectralFunction, values: Tensor) -> Tensor:
    heights = function(values)
    if heights.shape != values.shape or not bool(torch.isfinite(heights).all()):
        raise InvalidInputError(
            f"function gave shape {tuple(heights.shape)} for {tuple(values.shape)}, or "
            f"values that are not finite between {float(values.min()):.3g} and "
            f"{float(values.max()):.3g}. Pass an elementwise function that is smooth "
            "over the whole spectrum."
        )
    return heights.double()
