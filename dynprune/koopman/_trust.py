"""What a fit can promise, and under which hypothesis."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dynprune.core import AssumptionError, InvalidInputError, unknown
from dynprune.koopman._results import KoopmanModel

_RULES = ("modes", "defect")


def forecast_bound(
    model: KoopmanModel,
    steps: Sequence[int],
    *,
    rule: Literal["modes", "defect"] = "modes",
) -> Tensor:
    r"""Bound the Euclidean error of a network forecast from its residuals.

    Rule ``"modes"`` is

    .. math:: B_h = \sum_i |b_i|\, r_i\, \|\phi_i\| \sum_{j<h} |\mu_i|^j .

    Derivation. Let the weights obey :math:`w_{t+1} = A w_t + c`, with one constant A,
    on the window and beyond it. Because :math:`X C = U` exactly, :math:`Y C = A U`,
    truncated or not, so :math:`\|A\phi_i - \mu_i\phi_i\| = r_i\|\phi_i\|` is a
    measurement and no estimate. Telescoping,
    :math:`A^h\phi_i - \mu_i^h\phi_i = \sum_{j<h} A^{h-1-j}(A\phi_i -
    \mu_i\phi_i)\mu_i^j`. If the last deviation is :math:`\sum_i b_i\phi_i`, the
    triangle inequality gives :math:`B_h` whenever :math:`\|A\|_2 \le 1`.

    So :math:`B_h` is a theorem if (1) A is constant: no curvature of the loss beyond
    second order, no mini-batch noise, no momentum in the weights alone, no schedule;
    (2) :math:`\|A\|_2\le 1`: gradient descent with :math:`0 \le \eta\lambda \le 2` for
    every Hessian eigenvalue (``model.operator_norm > 1`` refutes it, beyond rounding);
    (3) the last snapshot, and for ``"affine"`` the fixed point, lie in the span of the
    modes; where they do not, the part outside, ``model.outside_norm``, is to be added
    (once per step for ``"difference"``). Rule ``"defect"`` needs (1) and (2) only. With
    :math:`s_j` the state of the small recursion it is the exact sum of the one-step
    defects,

    .. math:: \|x_\perp\| + \sum_{j<h} \|(I-UU^*)\Delta + (YC - UK)s_j\| ,

    :math:`x_\perp` the part of the last snapshot outside the span (``outside_norm``)
    and :math:`\Delta` the drift of the means; uncentred, it is at most :math:`B_h` plus
    ``outside_norm``. For ``"difference"`` both bound the errors of increments and sum
    them. Neither covers rounding: below ``residual_floors`` they mean nothing.

    Args:
        model: A fit of the network partition, without delay.
        steps: Absolute optimiser steps, as for ``forecast``.
        rule: Which of the two.

    Returns:
        Bounds on :math:`\|\hat w - w\|_2`, shape ``(len(steps),)``, float64.

    Raises:
        InvalidInputError: If the rule is unknown, or a step is not one of a forecast.
        AssumptionError: For other partitions, whose groups do not evolve on their own,
            and for a delay, whose map has norm above 1.

    Cost:
        Small algebra; the weights are not read.

    Source:
        Derived here; no paper states it in this form.
    """  # noqa: DOC501, DOC502 - unknown() and horizons make them
    if rule not in _RULES:
        raise unknown("rule", rule, _RULES)
    if model.partition != "network" or model.delay > 1:
        raise AssumptionError(
            f"A bound was asked for partition={model.partition!r}, delay="
            f"{model.delay}. It needs one contraction for all weights: fit with "
            "partition='network' and delay=1."
        )
    asked = model.horizons(steps)
    far = max(asked)
    ones = _mode_sums(model, far) if rule == "modes" else _defect_sums(model, far)
    total = ones.cumsum(0) if model.centring == "difference" else ones
    total = torch.cat([torch.zeros(1, dtype=torch.float64), total])
    return total[torch.tensor(asked)]


def _mode_sums(model: KoopmanModel, far: int) -> Tensor:
    weight = model.amplitudes.abs() * model.residual_norms * model.mode_norms
    powers = model.eigenvalues.abs()[:, None] ** torch.arange(far, dtype=torch.float64)
    # a mode without amplitude adds nothing however fast it grows
    return (
        torch
        .where(weight[:, None] == 0, 0.0, weight[:, None] * powers)
        .sum(0)
        .cumsum(0)
    )


def _defect_sums(model: KoopmanModel, far: int) -> Tensor:
    part, found = model.pieces[0], []
    moving = part.drift[0] if model.centring == "affine" else None
    state, one = part.start[0], torch.ones(1, dtype=torch.float64)
    for _ in range(far):
        found.append(torch.linalg.vector_norm(model.defect @ torch.cat([state, one])))
        state = part.operator[0] @ state
        if moving is not None:
            state = state + moving
    if not found:
        return torch.zeros(0, dtype=torch.float64)
    return model.outside_norm + torch.stack(found).cumsum(0)


def dmd_intervals(model: KoopmanModel, *, floors: bool = True) -> Tensor:
    r"""Enclose the multipliers of gradient descent.

    Near a minimum, gradient descent at a constant step size has the symmetric operator
    :math:`I - \eta H`. For a symmetric A and any complex :math:`\mu` and
    :math:`\phi`, some eigenvalue :math:`1 - \eta\lambda` of A satisfies

    .. math:: |1 - \eta\lambda - \mu| \le
              \frac{\|A\phi - \mu\phi\|}{\|\phi\|} = r ,

    so it lies in :math:`\operatorname{Re}\mu \pm \sqrt{r^2 -
    (\operatorname{Im}\mu)^2}`. The equality holds where the snapshots obey one affine
    map; rounding and the curvature of the loss along the window are not in r, the
    former is added from ``residual_floors``.

    Args:
        model: A fit; snapshots every s steps enclose :math:`(1 - \eta\lambda)^s`.
        floors: Add ``residual_floors`` to the residuals.

    Returns:
        Lower and upper ends, shape ``(k, 2)``, float64, in the order of the modes.

    Raises:
        InvalidInputError: If the model has a delay or a partition finer than the
            network: its operator is not that of gradient descent.
        AssumptionError: If some mu is farther from the real axis than its residual
            norm: then no symmetric operator made these snapshots.

    Source:
        Parlett, *The Symmetric Eigenvalue Problem*, SIAM 1998.
    """
    if model.partition != "network" or model.delay > 1:
        raise InvalidInputError(
            f"Intervals were asked for partition={model.partition!r}, delay="
            f"{model.delay}. Fit with partition='network' and delay=1."
        )
    r = model.residual_norms + (model.residual_floors if floors else 0.0)
    imag = model.eigenvalues.imag.abs()
    if bool((imag > r).any()):
        i = int((imag - r).argmax())
        raise AssumptionError(
            f"Mode {i} has |Im mu| = {float(imag[i]):.3g} and residual norm "
            f"{float(r[i]):.3g}: no symmetric operator made these snapshots. Fit plain "
            "gradient descent near a minimum, or use method='self-adjoint'."
        )
    half = (r**2 - imag**2).clamp(min=0.0).sqrt()
    centre = model.eigenvalues.real
    return torch.stack([centre - half, centre + half], 1)
