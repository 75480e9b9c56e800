"""The log-determinant of a shifted operator, with an error bar."""

import math

from dynprune.core import AssumptionError, InvalidInputError
from dynprune.operators import AbstractOperator
from dynprune.spectral._intervals import check_level
from dynprune.spectral._quadrature import Quadrature, quadrature
from dynprune.spectral._results import Eigenpairs
from dynprune.spectral._spectral_sum import summed
from dynprune.spectral._trace_results import Trace


def log_determinant(
    op: AbstractOperator,
    mu: float,
    *,
    probes: int = 4,
    steps: int = 50,
    pairs: Eigenpairs | None = None,
    locked: int = 0,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = False,
) -> Trace:
    r"""Estimate the log-determinant of A + μI.

    .. math:: \log \det (A + \mu I) = \sum_i \log (\lambda_i + \mu)

    by the quadrature of ``density``; see ``spectral_sum`` for the error bar.

    Args:
        op: A, symmetric, of P coordinates.
        mu: μ > −λ_min, in units of A. A small one, against the range of the bulk,
            needs many steps.
        probes: b, 1 to P.
        steps: s ≥ 3.
        pairs: Eigenpairs of A that are known.
        locked: Find that many eigenpairs of largest magnitude first, if no pairs.
        level: Coverage of the interval.
        seed: Of the probes.
        progress: Draw a bar.

    Returns:
        The estimate.

    Raises:
        InvalidInputError: For mu, probes, steps or level out of range, pairs of
            another operator, or products that are not finite.
        AssumptionError: If a Ritz value proves that A + μI is not positive definite,
            or A is not symmetric. That none is seen proves nothing.

    Cost:
        As ``density``.

    Source:
        Ubaru, Chen and Saad, *Fast estimation of tr(f(A)) via stochastic Lanczos
        quadrature*, 2017.

    Example:
        >>> import torch
        >>> from dynprune.operators import MatrixOperator
        >>> A = MatrixOperator(torch.diag(torch.arange(4.0)))
        >>> round(log_determinant(A, 1.0, probes=2, steps=4).value, 4)  # log 4!
        3.1781
    """  # noqa: DOC502 - raised by the steps below
    check_level(level)
    check_shift(mu)
    before = op.matvecs
    found = quadrature(
        op,
        probes=probes,
        steps=steps,
        pairs=pairs,
        locked=locked,
        seed=seed,
        progress=progress,
    )
    check_positive(found, mu)
    return summed(
        op,
        found,
        lambda values: (values + mu).log(),
        quantity=f"log det(A + {mu:g} I)",
        level=level,
        matvecs=float(op.matvecs - before),
        made_by="spectral.log_determinant",
        settings={"mu": float(mu), "probes": probes, "steps": steps},
        seed=seed,
    )


def check_shift(mu: float, *, least: float = -math.inf) -> None:
    """Refuse a shift that is no number, or too small for any A.

    Args:
        mu: μ.
        least: It must be larger.

    Raises:
        InvalidInputError: If it is not finite, or not larger.
    """
    if not math.isfinite(mu) or mu <= least:
        beyond = f" above {least:g}" if math.isfinite(least) else ""
        raise InvalidInputError(f"mu={mu} was given. Pass a finite shift{beyond}.")


def check_positive(found: Quadrature, mu: float) -> None:
    """Refuse a shift that leaves a Ritz value that is not positive.

    Args:
        found: What is seen of A.
        mu: μ.

    Raises:
        AssumptionError: If there is one.
    """
    if found.low + mu <= 0.0:
        raise AssumptionError(
            f"A + {mu:g} I is not positive definite: a Ritz value of A is "
            f"{found.low:.6g} (residual {found.low_radius:.2g}). Pass mu above "
            f"{max(-found.low, 0.0) + found.low_radius:.3g}."
        )
