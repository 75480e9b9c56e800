"""The spectral density of an operator, by stochastic Lanczos quadrature."""

import math
import warnings

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, NumericalWarning, Outcome, Provenance
from dynprune.operators import AbstractOperator
from dynprune.spectral._density_results import Density
from dynprune.spectral._intervals import check_level, gamma_interval
from dynprune.spectral._quadrature import Quadrature, quadrature, remaining_error
from dynprune.spectral._results import Eigenpairs

_LEAST_WIDTH = 200  # widths in the range of the spectrum, at most
_WIDER, _RUNGS = 1.25, 14
_REACH = 4.0  # widths beyond the outermost node
_FINE = 3.0  # grid points per width
_MOST_POINTS = 20_000
_MOST_NEAR = 16
_CHUNK = 8192
_RESOLVED = 0.1  # share of the quadrature's error in the band


def density(
    op: AbstractOperator,
    *,
    probes: int = 4,
    steps: int = 50,
    pairs: Eigenpairs | None = None,
    locked: int = 0,
    width: float | None = None,
    grid: Tensor | int | None = None,
    level: float = 0.95,
    seed: int = 0,
    progress: bool = False,
) -> Density:
    r"""Estimate the spectral density, with a confidence band.

    .. math:: \phi_\sigma(t) = \frac{1}{P} \operatorname{tr} g_\sigma(t - A)
       = \frac{1}{P} \sum_i g_\sigma(t - \lambda_i),

    :math:`g_\sigma` the Gaussian kernel of standard deviation σ = ``width``. The probes
    build **one** block Krylov space, a product with all of them a step, with full
    reorthogonalisation, so each probe is integrated with the nodes of all. Ritz
    pairs that are isolated and found exactly enough count once each (**locked**);
    the probes sample only the complement of these and of ``pairs``, with the total
    mass P exact. This needs two probes or more; products spent on ``pairs`` or
    ``locked`` beforehand seldom pay.

    **Band.** On the complement a probe is uniform on a sphere and the variance of its
    quadratic form is a trace itself, taken from the nodes; the sum is treated as gamma
    distributed. To that are added the residuals of the locked pairs and the error that
    the quadrature still has, extrapolated from fewer steps. It is pointwise.

    Args:
        op: A, symmetric, of P coordinates.
        probes: b, 1 to P: more of them narrow the band.
        steps: s ≥ 3: more of them resolve a narrower kernel, about
            (range without the locked)·0.8/s.
        pairs: Eigenpairs of A that are known.
        locked: Find that many eigenpairs of largest magnitude first, if no pairs.
        width: σ, in units of A; by default 1/200 of the range, or as much more as the
            quadrature needs to be resolved.
        grid: Where to evaluate: points of any order, or how many; by default three per
            width, with 4 widths beyond the ends.
        level: Coverage of the band at each point.
        seed: Of the probes.
        progress: Draw a bar.

    Returns:
        The density on the grid, its band, nodes and weights.

    Raises:
        InvalidInputError: For probes, steps, width, grid or level out of range, pairs
            of another operator, or products that are not finite.
        AssumptionError: If the operator is not symmetric.

    Cost:
        probes·steps matvecs, in blocks of all probes; one more to check ``pairs``;
        probes·steps + k P-vectors of memory and 4 P (probes·steps)² operations.

    Source:
        Ubaru, Chen and Saad, *Fast estimation of tr(f(A)) via stochastic Lanczos
        quadrature*, 2017; Golub and Meurant, *Matrices, Moments and Quadrature*, 2010,
        for blocks. The locking within the run and the band are derived here.

    Example:
        >>> from dynprune.operators import MatrixOperator
        >>> A = MatrixOperator(torch.diag(torch.arange(4.0)))
        >>> found = density(A, probes=2, steps=4, width=0.1, grid=torch.tensor([3.0]))
        >>> round(float(found.values), 4)  # one eigenvalue of four, / (0.1 sqrt(2 pi))
        0.9974
    """  # noqa: DOC502 - raised by the steps below
    _check(width, grid, level)
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
    sigma = _width(found, level) if width is None else float(width)
    points = _grid(found, sigma, grid)
    values, lower, upper, error = _band(found, points, sigma, level)
    unresolved = 4.0 * float(error.sum()) > float((upper - lower).sum())
    if unresolved:
        warnings.warn(
            f"A kernel of width {sigma:.3g} is narrower than {steps} steps resolve: "
            "the band is mostly the error of the quadrature. Raise steps or width.",
            NumericalWarning,
            stacklevel=2,
        )
    settings = {
        "probes": probes,
        "steps": steps,
        "known": locked if pairs is None else len(pairs),
        "width": sigma,
        "level": level,
    }
    return Density(
        grid=points,
        values=values / op.size,
        lower=lower / op.size,
        upper=upper / op.size,
        quadrature_error=error / op.size,
        locked=found.locked,
        nodes=found.rest.values,
        weights=found.rest.weights,
        width=sigma,
        level=level,
        size=op.size,
        matvecs=float(op.matvecs - before),
        outcome=Outcome.NOT_CONVERGED if unresolved else Outcome.FINISHED,
        provenance=Provenance(
            made_by="spectral.density",
            seed=seed,
            dtype=str(op.dtype).removeprefix("torch."),
            device=str(op.device),
            settings=tuple(sorted(settings.items())),
            sources=("slq",),
        ),
    )


def _check(width: float | None, grid: Tensor | int | None, level: float) -> None:
    check_level(level)
    if width is not None and not 0.0 < width < math.inf:
        raise InvalidInputError(
            f"width={width} was given. Pass a positive width in units of the operator."
        )
    if isinstance(grid, Tensor):
        if grid.ndim != 1 or len(grid) == 0 or not bool(torch.isfinite(grid).all()):
            raise InvalidInputError(
                f"grid has shape {tuple(grid.shape)}, or points that are not finite. "
                "Pass finite points of shape (g,)."
            )
    elif grid is not None and grid < 2:
        raise InvalidInputError(f"grid={grid} points were asked for. Pass at least 2.")


def _kernel(points: Tensor, nodes: Tensor, sigma: float) -> Tensor:
    z = (points[:, None] - nodes) / sigma
    return torch.exp(-0.5 * z.square()) / (sigma * math.sqrt(2.0 * math.pi))


def _band(
    found: Quadrature, points: Tensor, sigma: float, level: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # Eigenvalues per unit: estimate, lower, upper, and the quadrature's error in them.
    sure = _kernel(points, found.locked, sigma)
    z = (points[:, None] - found.locked).abs() / sigma
    r = found.radii / sigma  # the kernel moves by |g'| r + sup |g''| r² / 2
    top = 1.0 / (sigma * math.sqrt(2.0 * math.pi))
    slack = (sure * z * r + 0.5 * top * r.square()).sum(1)
    mean, variance = found.moments(_kernel(points, found.rest.values, sigma))
    low, high = gamma_interval(mean, variance, level)
    known_part = sure.sum(1)
    estimate = known_part + mean
    slack = slack + 100 * torch.finfo(torch.float64).eps * estimate
    error = _error(found, points, sigma)
    lower = (known_part + low - slack - error).clamp_min(0.0)
    return estimate, lower, known_part + high + slack + error, error


def _error(found: Quadrature, points: Tensor, sigma: float) -> Tensor:
    # Where the difference of two quadratures changes sign it says nothing: take the
    # largest within a width, or within half the distance of a probe's own nodes.
    if not found.whole:
        return torch.zeros_like(points)
    reach = max(sigma, 0.5 * float(found.rest.values.diff().sum()) / found.steps)
    count = 2 * min(math.ceil(2.0 * reach / sigma), _MOST_NEAR) + 1
    offsets = reach * torch.linspace(-1, 1, count).to(points)
    near = (points + offsets[:, None]).flatten()
    fine, middle, coarse = (
        torch.cat([
            _kernel(chunk, part.values, sigma) @ part.weights.mean(1)
            for chunk in near.split(_CHUNK)
        ])
        for part in found.whole
    )
    return remaining_error(fine, middle, coarse).view(count, -1).amax(0)


def _range(found: Quadrature) -> tuple[float, float]:
    values = torch.cat([found.locked, found.rest.values])
    return float(values.min()), float(values.max())


def _width(found: Quadrature, level: float) -> float:
    low, high = _range(found)
    sigma = (high - low) / _LEAST_WIDTH or max(abs(high), 1.0) / _LEAST_WIDTH
    for _ in range(_RUNGS):
        points = _grid(found, sigma, None)
        _, lower, upper, error = _band(found, points, sigma, level)
        if 2.0 * float(error.sum()) <= _RESOLVED * float((upper - lower).sum()):
            break
        sigma *= _WIDER
    return sigma


def _grid(found: Quadrature, sigma: float, grid: Tensor | int | None) -> Tensor:
    if isinstance(grid, Tensor):
        return grid.detach().to(found.locked)
    low, high = _range(found)
    low, high = low - _REACH * sigma, high + _REACH * sigma
    count = grid or min(math.ceil(_FINE * (high - low) / sigma) + 1, _MOST_POINTS)
    return torch.linspace(low, high, count).to(found.locked)
