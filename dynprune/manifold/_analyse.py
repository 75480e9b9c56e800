"""Split a gradient system at its spectral gap and test what that allows."""

import math
import warnings
from typing import Any

from torch import Tensor

from dynprune.core import (
    Cost,
    InvalidInputError,
    NumericalWarning,
    Provenance,
    derive_seed,
)
from dynprune.manifold._conditions import (
    cone_condition,
    gap_condition,
    step_condition,
)
from dynprune.manifold._readings import participation_density
from dynprune.manifold._results import ConditionCheck, ManifoldReport
from dynprune.manifold._samples import sample_displacements
from dynprune.manifold._smooth import difference_quotients, is_smooth
from dynprune.operators import HessianOperator
from dynprune.spectral import Eigenpairs, eigenpairs, gaps
from dynprune.system import GradientSystem
from dynprune.training import OptimizerFactory, train

_TOL = 1e-4
_SEGMENTS = 2


def analyse(
    system: GradientSystem,
    *,
    k_max: int = 20,
    radius: float | None = None,
    samples: int = 4,
    learning_rate: float | None = None,
    optimizer: OptimizerFactory | None = None,
    transient: int = 0,
    batch_size: int | None = None,
    state: Tensor | None = None,
    n_fast: int | None = None,
    final_state: Tensor | None = None,
    final_steps: int | None = None,
    hessian_data: Any = None,
    tol: float = _TOL,
    seed: int = 0,
    warn: bool = True,
    progress: bool = False,
) -> ManifoldReport:
    r"""Split a gradient system at a spectral gap and test the theory's conditions.

    With :math:`w = \theta - \theta_*` and :math:`A = H(\theta_*)` the flow is
    :math:`w' = -A w + F(w)`. The k sharpest directions are *fast*: if the gap
    :math:`\lambda_k - \lambda_{k+1}` beats the Lipschitz constant of F, an inertial
    manifold is a graph over the slow ones and slaves them.

    Rules fixed before any result was seen: k is the resolved gap of largest *relative*
    size :math:`(\lambda_k - \lambda_{k+1})/\lambda_k` with :math:`\lambda_k > 0`, among
    k <= k_max; if none is resolved, the same among all, and the report says so. The
    default radius is twice :math:`|U_Q^\top\nabla L|/\lambda_k`, the distance to the
    graph, so that the theorem could mean something; 1 % of :math:`|\theta_*|` at a
    critical point.

    Args:
        system: The system.
        k_max: Largest k considered; one pair more is computed.
        radius: Of the ball of the conditions, in units of a parameter.
        samples: Points of the ball; 0 to skip conditions and the kink test.
        learning_rate: η of plain gradient descent, for C4 and η λ_1.
        optimizer: Makes the optimiser of the transient.
        transient: Optimiser steps to θ_*, 0 for the system's own state.
        batch_size: Of the transient; the trainer's default if None.
        state: θ_* itself, shape ``(P,)``, instead of a transient.
        n_fast: Use this k instead of the rule's.
        final_state: A later state θ_T, shape ``(P,)``, to see how far the flat
            directions moved.
        final_steps: Steps from θ_* to θ_T, or that are planned, for η λ_{k+1} T.
        hessian_data: Take Hessians and gradients over these data instead of the
            system's, e.g. a subset; the transient uses the system's.
        tol: Relative residual of the eigenpairs.
        seed: Of data order, starts and samples.
        warn: Give one warning if a condition failed or does not apply.
        progress: Draw a bar.

    Returns:
        The report; costs count passes over the system's own data.

    Raises:
        InvalidInputError: If k_max, n_fast, a state or the transient do not fit.
        NotDeterministicError: If the loss is not deterministic in eval mode.
        ConvergenceError: If the eigenpairs miss ``tol``, or the transient diverges.

    Cost:
        For k_max = 20 about 350 HVPs for the spectrum, then per sample up to 48 (C1)
        and k + 60 (C3), and 64 gradients for the kink test. Memory: some 80 P-vectors.

    Source:
        Zhang et al., *Validating the Lottery Ticket Hypothesis with Inertial Manifold
        Theory*, NeurIPS 2021. The operator, constants and rules are reconstructed.
    """  # noqa: DOC502 - some are raised by what it calls
    _check(system, k_max, samples, optimizer, transient, state)
    start, cost = system, Cost()
    if transient and optimizer is not None:
        run = train(
            system,
            optimizer,
            steps=transient,
            batch_size=batch_size,
            seed=seed,
            progress=progress,
        )
        start = system.with_state(run.state, buffers=run.buffers)
        cost = run.cost
    elif state is not None:
        start = system.with_state(state)
    seen = start if hessian_data is None else start.with_data(hessian_data)
    share = seen.examples / system.examples
    centre = seen.state
    op = HessianOperator(seen, centre, route="budget")
    pairs = eigenpairs(
        op,
        min(k_max + 1, system.size),
        tol=tol,
        completeness=True,
        seed=derive_seed("manifold.spectrum", seed),
        progress=progress,
    )
    probed = 1.0 + seen.probe_gradients
    mask_cost = cost + _share(share, gradients=probed, hvps=pairs.matvecs)
    k = _choose(pairs, n_fast)
    gradient = seen.gradient(centre)
    distance, radius = _ball(pairs, k, gradient, centre, radius)
    smooth: bool | None = None
    checks: tuple[ConditionCheck, ...] = ()
    spent = _share(share, gradients=1.0)
    if k is not None and samples and radius is not None:
        smooth, checks, more = _conditions(
            seen,
            pairs,
            k,
            gradient,
            radius=radius,
            samples=samples,
            learning_rate=learning_rate,
            seed=seed,
        )
        spent = spent + _share(share, gradients=more.gradients, hvps=more.hvps)
    report = ManifoldReport(
        pairs=pairs,
        n_fast=k,
        conditions=checks,
        smooth=smooth,
        radius=radius,
        graph_distance=distance,
        learning_rate=learning_rate,
        participation=None
        if k is None
        else participation_density(pairs.vectors[:, :k]),
        frozen_share=_frozen_share(pairs, k, centre, final_state),
        freezing_product=_freezing_product(pairs, k, learning_rate, final_steps),
        transient=transient,
        state=centre,
        buffers=tuple(start.buffers.items()),
        coordinates=system.coordinates,
        mask_cost=mask_cost,
        cost=mask_cost + spent,
        outcome=pairs.outcome,
        provenance=Provenance(
            made_by="manifold.analyse",
            seed=seed,
            dtype=str(system.dtype).removeprefix("torch."),
            device=str(system.device),
            examples=round(seen.examples),
            settings=tuple(
                sorted(
                    {
                        "k_max": k_max,
                        "radius": radius,
                        "samples": samples,
                        "learning_rate": learning_rate,
                        "transient": transient,
                        "tol": tol,
                    }.items()
                )
            ),
            sources=("imc", "lanczos"),
        ),
    )
    if warn:
        warn_if_failed(report)
    return report


def warn_if_failed(report: ManifoldReport) -> None:
    """Give one warning if the theorem is not supported by what was tested.

    Args:
        report: The report.
    """
    if report.certified_k or not report.conditions:
        return
    reasons = [
        f"{check.name} {check.verdict}"
        for check in report.conditions
        if check.verdict != "not refuted"
    ]
    if not report.resolved:
        reasons.append("the gap is not resolved")
    if not report.applicable:
        reasons.append("the manifold may lie outside the ball, or the gradient jumps")
    warnings.warn(
        f"certified k = 0 of {report.size}: {'; '.join(reasons)}. What follows uses "
        "the theorem's idea, not the theorem. See report.summary(), or warn=False.",
        NumericalWarning,
        stacklevel=3,
    )


def _check(
    system: GradientSystem,
    k_max: int,
    samples: int,
    optimizer: OptimizerFactory | None,
    transient: int,
    state: Tensor | None,
) -> None:
    if k_max < 1 or system.size < 2 or samples < 0:
        raise InvalidInputError(
            f"k_max={k_max} and samples={samples} were asked of {system.size} "
            "coordinates. Pass k_max >= 1, samples >= 0 and at least 2 coordinates."
        )
    if transient < 0 or (transient > 0 and optimizer is None):
        raise InvalidInputError(
            f"transient={transient} steps with optimizer={optimizer}. Pass a factory, "
            "e.g. lambda params: torch.optim.SGD(params, lr=0.1), or transient=0."
        )
    if transient and state is not None:
        raise InvalidInputError(
            f"Both state= and transient={transient} were given. Pass one of them."
        )


def _choose(pairs: Eigenpairs, n_fast: int | None) -> int | None:
    found = gaps(pairs)
    if n_fast is not None:
        value = found.at(n_fast)["relative_gap"]
        if math.isnan(value):
            raise InvalidInputError(
                f"n_fast={n_fast} was asked, but λ_{n_fast} is "
                f"{float(pairs.values[n_fast - 1]):.3g}: fast directions need positive "
                "curvature. Pass a smaller n_fast."
            )
        return n_fast
    resolved = found.largest()
    return found.largest(resolved_only=False) if resolved is None else resolved


def _ball(
    pairs: Eigenpairs,
    k: int | None,
    gradient: Tensor,
    centre: Tensor,
    radius: float | None,
) -> tuple[float | None, float | None]:
    if k is None:
        return None, radius
    fast = float((pairs.vectors[:, :k].T @ gradient).norm())
    distance = fast / float(pairs.values[k - 1])
    if radius is None:
        radius = 2.0 * distance
        if not radius > 1e-6 * float(centre.norm()):
            radius = 0.01 * float(centre.norm()) or 1.0
    return distance, radius


def _conditions(
    system: GradientSystem,
    pairs: Eigenpairs,
    k: int,
    gradient: Tensor,
    *,
    radius: float,
    samples: int,
    learning_rate: float | None,
    seed: int,
) -> tuple[bool, tuple[ConditionCheck, ...], Cost]:
    centre = system.state
    w = sample_displacements(
        pairs,
        radius=radius,
        samples=samples,
        gradient=gradient,
        seed=derive_seed("manifold.samples", seed),
    )
    smooth, gradients = True, 0.0
    for i in range(min(_SEGMENTS, samples)):
        quotients = difference_quotients(system, centre, w[:, i])
        gradients += len(quotients) + 3.0
        smooth = smooth and is_smooth(quotients)
    kernel: dict[str, Any] = {
        "n_fast": k,
        "displacements": w,
        "smooth": smooth,
        "seed": seed,
    }
    c1 = gap_condition(system, centre, pairs, **kernel)
    checks = [c1, cone_condition(system, centre, pairs, **kernel)]
    if learning_rate is not None:
        checks.append(
            step_condition(
                pairs,
                n_fast=k,
                learning_rate=learning_rate,
                lipschitz=c1.lipschitz,
                radius=radius,
                smooth=smooth,
            )
        )
    hvps = sum(check.matvecs for check in checks) + min(_SEGMENTS, samples)
    graphs = 0 if not smooth else 2 * samples + 1
    return smooth, tuple(checks), Cost(gradients=gradients + graphs, hvps=hvps)


def _share(share: float, *, gradients: float = 0.0, hvps: float = 0.0) -> Cost:
    return Cost(gradients=share * gradients, hvps=share * hvps)


def _frozen_share(
    pairs: Eigenpairs, k: int | None, centre: Tensor, final: Tensor | None
) -> float | None:
    if final is None or k is None:
        return None
    if final.shape != centre.shape:
        raise InvalidInputError(
            f"final_state has shape {tuple(final.shape)}, the state "
            f"{tuple(centre.shape)}. Pass a state of the same system."
        )
    travel = (final.to(centre) - centre).double()
    U = pairs.vectors[:, :k].double()
    flat = travel - U @ (U.T @ travel)
    norm = float(travel.norm())
    return float(flat.norm()) / norm if norm > 0.0 else None


def _freezing_product(
    pairs: Eigenpairs, k: int | None, rate: float | None, steps: int | None
) -> float | None:
    if k is None or rate is None or steps is None:
        return None
    return rate * float(pairs.values[k]) * steps
