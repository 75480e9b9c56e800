"""The effective dimension of an operator at a scale, with an error bar."""

from dynprune.operators import AbstractOperator
from dynprune.spectral._intervals import check_level
from dynprune.spectral._log_determinant import check_positive, check_shift
from dynprune.spectral._quadrature import quadrature
from dynprune.spectral._results import Eigenpairs
from dynprune.spectral._spectral_sum import summed
from dynprune.spectral._trace_results import Trace


def effective_dimension(
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
    r"""Estimate how many eigenvalues of A stand above μ.

    .. math:: d_\mu = \operatorname{tr} A (A + \mu I)^{-1}
       = \sum_i \frac{\lambda_i}{\lambda_i + \mu}

    by the quadrature of ``density``; see ``spectral_sum`` for the error bar. For A ≥ 0
    it lies between 0 and the rank. A negative eigenvalue, :math:`-\mu < \lambda_i < 0`,
    counts as a **negative** dimension, without bound as it nears −μ: with μ just above
    −λ_min the number means little. It is not cut off at zero, as then it would be no
    smooth function of A; use a Gauss–Newton operator where that matters.

    Args:
        op: A, symmetric, of P coordinates.
        mu: μ > 0 and > −λ_min, in units of A.
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
        MacKay, *Bayesian interpolation*, 1992 (the number of well-determined
        parameters).

    Example:
        >>> import torch
        >>> from dynprune.operators import MatrixOperator
        >>> A = MatrixOperator(torch.diag(torch.tensor([3.0, 1.0, 0.0, 0.0])))
        >>> round(effective_dimension(A, 1.0, probes=2, steps=4).value, 4)  # 3/4 + 1/2
        1.25
    """  # noqa: DOC502 - raised by the steps below
    check_level(level)
    check_shift(mu, least=0.0)
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
        lambda values: values / (values + mu),
        quantity=f"effective dimension at {mu:g}",
        level=level,
        matvecs=float(op.matvecs - before),
        made_by="spectral.effective_dimension",
        settings={"mu": float(mu), "probes": probes, "steps": steps},
        seed=seed,
    )
