r"""Scaling exponents as log-slopes, for any pruning schedule.

With x = ln(1/d) an eigen-direction of the flow is a straight line ln M = a + σ x. The
ratio estimator ln ζ / ln c needs one c for all levels; the slope does not.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynprune.core import InvalidInputError

MINIMUM_LEVELS = 3


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class LogSlopes:
    """Hold the log-slopes of S seeds and G groups, each of shape ``(S, G)``.

    Args:
        exponents: Slope σ of ln M on ln(1/d).
        quadratic: Coefficient q of the term q (ln 1/d)² where one is fitted too; zero
            on a straight line.
        r2: Share of the variance of ln M that the straight line explains; NaN where M
            is constant. A marginal group has a small one whatever the flow is.
        levels_used: Number of levels at which the group has survivors.
    """

    exponents: Tensor
    quadratic: Tensor
    r2: Tensor
    levels_used: Tensor

    def __repr__(self) -> str:
        """Return the size in one line."""
        seeds, groups = self.exponents.shape
        return f"LogSlopes({seeds} seeds, {groups} groups)"


def exponents(observables: Tensor, densities: Tensor) -> LogSlopes:
    r"""Estimate scaling exponents as log-slopes.

    For each seed s and group i, by least squares over the levels n,

    .. math:: \ln M_{si}(n) = a_{si} + \sigma_{si} x_n + \epsilon, \qquad
              x_n = \ln(1/d_n),

    and beside it, with :math:`q_{si} (x_n - \bar x)^2` added, the quadratic
    coefficient. Works for any schedule of densities. A level at which a group has no
    survivors (M = 0) is left out of that group's fit, of that seed only.

    Shares sum to one, so local slopes and curvatures at any density obey
    :math:`\sum_i M_i (\sigma_i^2 + 2 q_i) = 0`: away from a fixed point the exponents
    of shares cannot all be constant, whatever the network does. Sums of magnitudes
    (absolute) are free of that.

    Args:
        observables: Shares or sums, shape ``(S, R, G)`` or ``(R, G)``; not negative.
        densities: Density of each level, shape ``(R,)``, in (0, 1], strictly
            decreasing.

    Returns:
        Slopes, shape ``(S, G)`` each; NaN where fewer than 3 levels have survivors.

    Raises:
        InvalidInputError: For other shapes, fewer than 3 levels, densities out of
            range or order, or observables that are negative or not finite.

    Cost:
        O(S R G).

    Source:
        Own estimator for the exponents of Redman et al., *Universality of Winning
        Tickets: A Renormalization Group Perspective*, ICML 2022.

    Example:
        >>> d = torch.tensor([1.0, 0.5, 0.3, 0.1])
        >>> flow = torch.stack([3 * d**-0.5, d**2], dim=1)
        >>> exponents(flow, d).exponents
        tensor([[ 0.5000, -2.0000]], dtype=torch.float64)
    """  # noqa: DOC502 - raised by the check
    M, d = check_flow(observables, densities)
    x = -d.log()[None, :, None].expand_as(M)
    w = (M > 0).double()
    y = torch.where(M > 0, M, torch.ones_like(M)).log()
    used = w.sum(1)
    x, y = _residual(x, torch.ones_like(x), w), _residual(y, torch.ones_like(y), w)
    slope = _coefficient(y, x, w)
    left = _residual(y, x, w)
    # x² without its projections on 1 and x carries the quadratic term.
    z = _residual(_residual(x.square(), torch.ones_like(x), w), x, w)
    total = (w * y.square()).sum(1)
    eps = torch.finfo(torch.float64).eps
    scale = torch.where(M > 0, M.log().abs(), 0.0).amax(1) + 1.0
    flat = total <= used * (16 * eps * scale).square()
    short = used < MINIMUM_LEVELS
    return LogSlopes(
        exponents=slope.masked_fill(short, torch.nan),
        quadratic=_coefficient(y, z, w).masked_fill(short, torch.nan),
        r2=(1 - (w * left.square()).sum(1) / total).masked_fill(
            short | flat, torch.nan
        ),
        levels_used=used.long(),
    )


def _coefficient(y: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return (w * x * y).sum(1) / (w * x.square()).sum(1)


def _residual(y: Tensor, x: Tensor, w: Tensor) -> Tensor:
    return w * (y - _coefficient(y, x, w)[:, None, :] * x)


def check_flow(observables: Tensor, densities: Tensor) -> tuple[Tensor, Tensor]:
    """Check observables and densities, and return them in float64.

    Args:
        observables: Shape ``(S, R, G)`` or ``(R, G)``.
        densities: Shape ``(R,)``.

    Returns:
        Fresh float64 tensors on the CPU, shapes ``(S, R, G)`` and ``(R,)``.

    Raises:
        InvalidInputError: If they are not what :func:`exponents` needs.
    """
    M = torch.as_tensor(observables).detach().to("cpu", torch.float64).clone()
    d = torch.as_tensor(densities).detach().to("cpu", torch.float64).clone()
    M = M[None] if M.ndim == 2 else M
    if M.ndim != 3 or d.ndim != 1 or M.shape[1] != len(d) or 0 in M.shape:
        raise InvalidInputError(
            f"Observables have shape {tuple(M.shape)}, densities {tuple(d.shape)}. "
            "Pass (seeds, levels, groups) and (levels,)."
        )
    if len(d) < MINIMUM_LEVELS:
        raise InvalidInputError(
            f"The flow has {len(d)} levels; a log-slope and its curvature need at "
            f"least {MINIMUM_LEVELS}. Run IMP at more densities."
        )
    text = ", ".join(f"{float(v):g}" for v in d)
    if not bool(((d > 0) & (d <= 1)).all()) or not bool((d[1:] < d[:-1]).all()):
        raise InvalidInputError(
            f"Densities are {text}. Pass fractions kept, in (0, 1] and strictly "
            "decreasing."
        )
    if not bool(torch.isfinite(M).all()) or bool((M < 0).any()):
        raise InvalidInputError(
            f"Observables lie between {float(M.min())} and {float(M.max())}; sums of "
            "magnitudes are finite and not negative. Pass those."
        )
    return M, d


def eigenvalues(observables: Tensor) -> Tensor:
    r"""Return the growth of each observable over each level.

    .. math:: \zeta_i(n) = M_i(n+1) / M_i(n), \qquad
              \textstyle\sum_i M_i(n)\,\zeta_i(n) = 1 \text{ for shares.}

    Args:
        observables: Shape ``(…, R, G)``.

    Returns:
        Shape ``(…, R − 1, G)``; NaN once a group has no survivors.

    Source:
        Reconstruction of Redman et al., *Universality of Winning Tickets: A
        Renormalization Group Perspective*, ICML 2022.

    Example:
        >>> eigenvalues(torch.tensor([[0.5, 0.5], [0.25, 0.75]]))
        tensor([[0.5000, 1.5000]])
    """
    return observables[..., 1:, :] / observables[..., :-1, :]


def over_seeds(values: Tensor) -> tuple[Tensor, Tensor]:
    r"""Return the mean over seeds and its standard error.

    :math:`\mathrm{se} = \sqrt{\sum_s (v_s - \bar v)^2 / (S (S - 1))}`.

    Args:
        values: One row per seed, shape ``(S, …)``.

    Returns:
        Mean and standard error, shape ``(…)``; the latter NaN for one seed.
    """
    S = len(values)
    mean = values.mean(0)
    if S < 2:
        return mean, torch.full_like(mean, torch.nan)
    return mean, values.std(0, correction=1) / S**0.5


def classify(exponent: Tensor, standard_error: Tensor) -> tuple[str, ...]:
    r"""Name each group relevant, irrelevant or marginal.

    Relevant if :math:`\sigma_i > 2\,\mathrm{se}_i`, irrelevant if
    :math:`\sigma_i < -2\,\mathrm{se}_i`, marginal in between. Two standard errors cover
    95 % only for many seeds (88 % for five, 70 % for two).

    Args:
        exponent: Shape ``(G,)``.
        standard_error: Shape ``(G,)``.

    Returns:
        G words; "not testable" where either is NaN, as with a single seed.

    Source:
        Terms of Redman et al., *Universality of Winning Tickets: A Renormalization
        Group Perspective*, ICML 2022.

    Example:
        >>> classify(torch.tensor([0.5, -0.5, 0.01]), torch.full((3,), 0.1))
        ('relevant', 'irrelevant', 'marginal')
    """
    words = []
    for value, error in zip(exponent.tolist(), standard_error.tolist(), strict=True):
        if value != value or error != error:  # NaN
            words.append("not testable")
        elif abs(value) <= 2 * error:
            words.append("marginal")
        else:
            words.append("relevant" if value > 0 else "irrelevant")
    return tuple(words)


def fixed_point_distance(observables: Tensor, exponent: Tensor) -> Tensor:
    r"""Return how far the flow is from a fixed point.

    .. math:: D = \sqrt{\textstyle\sum_i M_i(0)\,\sigma_i^2}

    with :math:`M(0)` the shares at the first level. Pure power laws would give the sum
    of the shares the second derivative D² there, though it is 1 at every level: so
    shares of *all* groups can have constant exponents only at a fixed point, D = 0.

    Args:
        observables: Shape ``(…, R, G)``; the first level is normalised to shares.
        exponent: Shape ``(…, G)``.

    Returns:
        Shape ``(…)``. Errors of the exponents add their variance to D² on average:
        compare with the random-pruning control, whose true distance is zero.

    Source:
        Own definition, after the distance of flows to fixed points in Redman et al.,
        *Universality of Winning Tickets: A Renormalization Group Perspective*, ICML
        2022.

    Example:
        >>> flow = torch.tensor([[0.5, 0.5], [0.2, 0.8]])
        >>> fixed_point_distance(flow, torch.tensor([-3.0, 3.0]))
        tensor(3.)
    """
    first = observables[..., 0, :]
    weights = first / first.sum(-1, keepdim=True)
    return (weights * exponent.square()).sum(-1).sqrt()
