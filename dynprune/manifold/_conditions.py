"""The gap conditions of inertial-manifold theory, on sampled points."""

import torch
from torch import Tensor

from dynprune.core import InvalidInputError
from dynprune.manifold._results import ConditionCheck, Verdict
from dynprune.manifold._samples import displacements_or_sample
from dynprune.manifold._smooth import difference_quotients, is_smooth
from dynprune.operators import HessianOperator
from dynprune.spectral import Eigenpairs, eigenpairs
from dynprune.system import GradientSystem

_KINK = "the gradient jumps in this ball (ReLU-like), so F is not Lipschitz"
_NORM_TOL, _NORM_MATVECS = 0.02, 24
_CONE_TOL, _CONE_MATVECS = 1e-3, 60


def gap_condition(
    system: GradientSystem,
    state: Tensor,
    pairs: Eigenpairs,
    *,
    n_fast: int,
    radius: float | None = None,
    displacements: Tensor | None = None,
    samples: int = 4,
    smooth: bool | None = None,
    seed: int = 0,
) -> ConditionCheck:
    r"""Test the inertial-manifold theorem's gap condition (C1) on a ball.

    .. math:: \lambda_k - \lambda_{k+1} > 2 L_r, \qquad
              L_r = \sup_{|w| \le r} \|H(\theta_* + w) - H(\theta_*)\|_2

    :math:`L_r` is the Lipschitz constant of the nonlinear part F on the ball; the
    theorem holds for F composed with the radial retraction onto it. It is *sampled*:
    the largest |Ritz value| of :math:`H(\theta_*+w) - H(\theta_*)` over a few w is a
    lower estimate, so the answer is "failed" or "not refuted", never "proved".

    Args:
        system: The system.
        state: :math:`\theta_*`, shape ``(P,)``.
        pairs: Its sharpest eigenpairs, at least ``n_fast + 1``.
        n_fast: k.
        radius: r, in units of a parameter, to sample on.
        displacements: Or the w to use, shape ``(P, s)``, e.g. snapshots − θ_*.
        samples: How many w to sample.
        smooth: Whether ∇L is known to have no kinks; None to look for them.
        seed: Of the samples.

    Returns:
        The condition, ``margin`` = gap − 2 L_r in loss per parameter².

    Raises:
        InvalidInputError: If n_fast has no gap, or radius, displacements or samples do
            not fit.

    Cost:
        At most ``48 samples`` HVPs, and 64 gradients where smoothness is tested.

    Source:
        Zhang et al., *Validating the Lottery Ticket Hypothesis with Inertial Manifold
        Theory*, NeurIPS 2021, for the idea; the local form is ours.
    """  # noqa: DOC502 - raised by displacements_or_sample
    gap = _gap(pairs, n_fast)
    w, radius = displacements_or_sample(
        system, pairs, displacements, radius=radius, samples=samples, seed=seed
    )
    if smooth is None:
        smooth = _smooth_on(system, state, w)
    if not smooth:
        return _not_applicable("C1", n_fast, radius, gap, w.shape[1], _KINK)
    centre = HessianOperator(system, state, route="budget")
    norms, matvecs = [], 0.0
    for i in range(w.shape[1]):
        change = HessianOperator(system, state + w[:, i], route="budget") - centre
        found = eigenpairs(
            change,
            1,
            which="LM",
            tol=_NORM_TOL,
            max_matvecs=_NORM_MATVECS,
            seed=seed,
            throw=False,
        )
        norms.append(float(found.values.abs().max()))
        matvecs += found.matvecs
    margins = tuple(gap - 2.0 * norm for norm in norms)
    return ConditionCheck(
        name="C1",
        n_fast=n_fast,
        radius=radius,
        gap=gap,
        lipschitz=max(norms),
        margin=min(margins),
        margins=margins,
        verdict=_verdict(min(margins)),
        matvecs=matvecs,
        note="Lipschitz constant sampled: a lower estimate",
    )


def cone_condition(
    system: GradientSystem,
    state: Tensor,
    pairs: Eigenpairs,
    *,
    n_fast: int,
    radius: float | None = None,
    displacements: Tensor | None = None,
    samples: int = 4,
    smooth: bool | None = None,
    seed: int = 0,
) -> ConditionCheck:
    r"""Test that cones around the fast directions stay invariant (C3).

    .. math:: b(\theta) = \lambda_{\min}(U_Q^\top H(\theta) U_Q)
              - \lambda_{\max}(\Pi_P H(\theta) \Pi_P |_{\operatorname{ran} \Pi_P}) > 0

    with :math:`U_Q` the k sharpest eigenvectors at :math:`\theta_*` and
    :math:`\Pi_P = I - U_Q U_Q^\top`. For the difference of two orbits, q its fast
    and p its slow part, :math:`\tfrac12 (|q|^2 - |p|^2)' = -q \cdot \bar H q + p \cdot
    \bar H p` exactly, with the Hessian averaged between them: if b > 0 on a convex
    region, cones are invariant there, the manifold is unique and Lip Φ <= 1. Existence
    is not claimed. The second eigenvalue is found by Lanczos inside the complement; a
    Ritz value bounds it from below, so b is sampled from above: a failure is certain.

    Args:
        system: The system.
        state: :math:`\theta_*`, shape ``(P,)``.
        pairs: Its sharpest eigenpairs, at least ``n_fast + 1``.
        n_fast: k.
        radius: r, in units of a parameter, to sample on.
        displacements: Or the θ − θ_* to use, shape ``(P, s)``, e.g. of snapshots.
        samples: How many to sample.
        smooth: Whether ∇L is known to have no kinks; None to look for them.
        seed: Of the samples.

    Returns:
        The condition, ``margin`` = the smallest b, in loss per parameter².

    Raises:
        InvalidInputError: If n_fast has no gap, or radius, displacements or samples do
            not fit.

    Cost:
        At most ``samples (k + 60)`` HVPs, and 64 gradients where smoothness is tested.
    """  # noqa: DOC502 - raised by displacements_or_sample
    gap = _gap(pairs, n_fast)
    w, radius = displacements_or_sample(
        system, pairs, displacements, radius=radius, samples=samples, seed=seed
    )
    if smooth is None:
        smooth = _smooth_on(system, state, w)
    if not smooth:
        return _not_applicable("C3", n_fast, radius, gap, w.shape[1], _KINK)
    U = pairs.vectors[:, :n_fast].to(w)
    margins, matvecs = [], 0.0
    for i in range(w.shape[1]):
        op = HessianOperator(system, state + w[:, i], route="budget")
        small = U.T @ (op @ U)
        sharp = torch.linalg.eigvalsh(0.5 * (small + small.T).double())[0]
        flat = eigenpairs(
            op,
            1,
            tol=_CONE_TOL,
            max_matvecs=min(_CONE_MATVECS, system.size),
            outside=U,
            start=pairs.vectors[:, n_fast : n_fast + 2],
            seed=seed,
            throw=False,
        )
        margins.append(float(sharp) - float(flat.values[0]))
        matvecs += op.matvecs
    return ConditionCheck(
        name="C3",
        n_fast=n_fast,
        radius=radius,
        gap=gap,
        lipschitz=None,
        margin=min(margins),
        margins=tuple(margins),
        verdict=_verdict(min(margins)),
        matvecs=matvecs,
        note="smallest b over the sampled points",
    )


def step_condition(
    pairs: Eigenpairs,
    *,
    n_fast: int,
    learning_rate: float,
    lipschitz: float | None,
    radius: float,
    smooth: bool = True,
) -> ConditionCheck:
    r"""Test the gap condition of gradient descent's multipliers (C4).

    .. math:: \min_{\text{slow}} |1 - \eta\lambda|
              - \max_{\text{fast}} |1 - \eta\lambda| > 2 \eta L_r

    with the k directions of *smallest* :math:`|1 - \eta\lambda|` fast and all others
    slow: beyond :math:`\eta\lambda = 1` sharp directions become slow, and at
    :math:`\eta\lambda_1 \approx 2` the sharpest is the slowest. Directions beyond the
    known pairs have :math:`|1 - \eta\lambda| \ge 1 - \eta\lambda_K` if
    :math:`\eta\lambda_K \le 1`; otherwise, or if the K-th direction is itself one of
    the fast ones, the split is unknown and the answer is "not applicable".

    Args:
        pairs: The K sharpest eigenpairs, K > k.
        n_fast: k.
        learning_rate: η of plain gradient descent.
        lipschitz: :math:`L_r` from :func:`gap_condition`; None where F has none.
        radius: Its r.
        smooth: Whether ∇L has no kinks.

    Returns:
        The condition, gap and margin per step, without unit.

    Raises:
        InvalidInputError: If n_fast has no gap, or the learning rate is not positive.

    Cost:
        None.

    Example:
        >>> from dynprune.operators import MatrixOperator
        >>> from dynprune.spectral import eigenpairs
        >>> op = MatrixOperator(torch.diag(torch.tensor([5.0, 4.0, 1.0, 0.5])))
        >>> rule = {"learning_rate": 0.2, "lipschitz": 0.0, "radius": 1.0}
        >>> found = step_condition(eigenpairs(op, 4), n_fast=2, **rule)
        >>> round(found.margin, 6), found.verdict
        (0.6, 'not refuted')
    """
    _gap(pairs, n_fast)
    if not 0.0 < learning_rate < float("inf"):
        raise InvalidInputError(
            f"learning_rate is {learning_rate}. Pass a positive, finite one."
        )
    sizes = (1.0 - learning_rate * pairs.values).abs().sort().values
    gap = float(sizes[n_fast] - sizes[n_fast - 1])
    if not smooth or lipschitz is None:
        return _not_applicable("C4", n_fast, radius, gap, 0, _KINK)
    last = learning_rate * float(pairs.values[-1])
    if last > 1.0 and len(pairs) < pairs.size:
        note = f"η λ_{len(pairs)} = {last:.3g} > 1: multipliers beyond it are unknown"
        return _not_applicable("C4", n_fast, radius, gap, 0, note)
    if 1.0 - last <= float(sizes[n_fast - 1]) and len(pairs) < pairs.size:
        note = f"the pair {len(pairs)} is fast: slower ones beyond it are unknown"
        return _not_applicable("C4", n_fast, radius, gap, 0, note)
    margin = gap - 2.0 * learning_rate * lipschitz
    return ConditionCheck(
        name="C4",
        n_fast=n_fast,
        radius=radius,
        gap=gap,
        lipschitz=lipschitz,
        margin=margin,
        margins=(margin,),
        verdict=_verdict(margin),
        matvecs=0.0,
        note=f"η λ_1 = {learning_rate * float(pairs.values[0]):.3g}",
    )


def _verdict(margin: float) -> Verdict:
    return "not refuted" if margin > 0.0 else "failed"


def _not_applicable(
    name: str, n_fast: int, radius: float, gap: float, samples: int, note: str
) -> ConditionCheck:
    return ConditionCheck(
        name=name,
        n_fast=n_fast,
        radius=radius,
        gap=gap,
        lipschitz=None,
        margin=None,
        margins=(float("nan"),) * samples,
        verdict="not applicable",
        matvecs=0.0,
        note=note,
    )


def _gap(pairs: Eigenpairs, n_fast: int) -> float:
    if not 1 <= n_fast < len(pairs) or pairs.which != "LA":
        raise InvalidInputError(
            f"n_fast={n_fast} was asked of {len(pairs)} eigenpairs ({pairs.which}). "
            "Pass the n_fast + 1 largest pairs or more."
        )
    return float(pairs.values[n_fast - 1] - pairs.values[n_fast])


def _smooth_on(system: GradientSystem, state: Tensor, w: Tensor) -> bool:
    return all(
        is_smooth(difference_quotients(system, state, w[:, i]))
        for i in range(min(2, w.shape[1]))
        if float(w[:, i].norm()) > 0.0
    )
