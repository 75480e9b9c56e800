"""Optimal brain damage: removal costs from the diagonal of the curvature."""

import warnings
from typing import Literal, get_args

import torch
from torch import Tensor

from dynprune.core import Cost, NumericalWarning, unknown
from dynprune.operators import AbstractOperator, GaussNewtonOperator, HessianOperator
from dynprune.pruning._collapse import Collapse, advice_for, check_known
from dynprune.pruning._from_scores import record, scored
from dynprune.pruning._numbers import as_count, as_density
from dynprune.pruning._prunable import check_prunable, check_start, probe_cost
from dynprune.pruning._select import Scope
from dynprune.spectral import Diagonal, diagonal
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket

Curvature = Literal["hessian", "gauss-newton"]
Negative = Literal["absolute", "zero"]
_MATVECS = 100
_NOISY = 0.5


def obd_diagonal(
    system: GradientSystem,
    *,
    curvature: Curvature = "hessian",
    matvecs: int = _MATVECS,
    method: Literal["xdiag", "bekas"] = "xdiag",
    seed: int = 0,
) -> Diagonal:
    r"""Return the raw diagonal h of the curvature over the prunable weights.

    Exact from N products where ``matvecs`` ≥ N, the prunable weights (survivors where
    the system is masked); otherwise the estimate of
    :func:`dynprune.spectral.diagonal` with a standard error for each entry. Entries
    of the Hessian may be negative; :func:`obd_scores` says what becomes of them.

    Args:
        system: The system; its l2 term is part of the curvature.
        curvature: ``"hessian"`` or ``"gauss-newton"`` (which needs a ``loss_fn``).
        matvecs: Products to spend at most, at least 4.
        method: Of the estimate; see :func:`dynprune.spectral.diagonal`.
        seed: Of the random vectors.

    Returns:
        One value per prunable weight, tensor after tensor.

    Raises:
        InvalidInputError: For an unknown curvature or method, too few matvecs, a
            system without prunable weights, or data in several processes.

    Cost:
        ``matvecs`` HVPs (as many as the weights, if fewer), no forward passes alone,
        and for a new system the gradients of the determinism probe: two, of at most 8
        examples where the data are resident.
        Memory: about 2.2 ``matvecs`` times that of the weights, at the default 10 GB
        for the 11 million of a ResNet-18 in float32; with ``method="bekas"`` less than
        20 times that of the weights, however many matvecs, here 0.9 GB.

    Source:
        LeCun, Denker and Solla, *Optimal Brain Damage*, NeurIPS 1989.

    Example:
        >>> x, y = torch.eye(2), torch.zeros(2, 1)
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> obd_diagonal(system).values
        tensor([1., 1.])
    """  # noqa: DOC501, DOC502 - unknown() makes it; the others from below
    check_start(system, seed)
    matvecs = as_count("matvecs", matvecs)
    system.check_one_process("Scoring weights")
    if curvature not in get_args(Curvature):
        raise unknown("curvature", curvature, get_args(Curvature))
    kind = HessianOperator if curvature == "hessian" else GaussNewtonOperator
    whole: AbstractOperator = kind(system)
    block = whole.restrict(prunable_coordinates(system))
    return diagonal(block, matvecs=matvecs, method=method, seed=seed)


def obd_scores(
    system: GradientSystem,
    *,
    curvature: Curvature = "hessian",
    negative: Negative = "absolute",
    matvecs: int = _MATVECS,
    method: Literal["xdiag", "bekas"] = "xdiag",
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Score weights by what their removal costs to second order at a minimum.

    .. math:: s_j = \tfrac{1}{2} h_j w_j^2

    with h from the diagonal of the curvature. At a minimum h ≥ 0; away from one the
    Hessian's diagonal has negative entries, which as they are would rank a strongly
    curved direction below a flat one. So h is never raw and negative: it is
    :math:`|\operatorname{diag} H|` by default, or :math:`\max(h, 0)` with
    ``negative="zero"``. The diagonal of the Gauss-Newton matrix, non-negative for a
    loss convex in the outputs, is the source's "Levenberg-Marquardt" choice; there
    only estimates are ever negative.

    Args:
        system: The system, at the state that is pruned; its l2 term counts.
        curvature: ``"hessian"`` or ``"gauss-newton"``.
        negative: What h < 0 becomes: ``"absolute"`` or ``"zero"``.
        matvecs: Products to spend at most; exact if they are as many as the weights.
        method: Of the estimate: ``"xdiag"``, or ``"bekas"``, less exact and with far
            less memory.
        seed: Of the random vectors.

    Returns:
        Name to scores, for each of ``system.prunable``; zero where pruned.

    Raises:
        InvalidInputError: See :func:`obd_diagonal`; or for an unknown ``negative``.

    Warns:
        NumericalWarning: If the standard errors are more than half of the diagonal.

    Cost:
        ``matvecs`` HVPs (as many as the weights, if fewer), no forward passes alone,
        and for a new system the gradients of the determinism probe: two, of at most 8
        examples where the data are resident.
        Memory: about 2.2 ``matvecs`` times that of the weights, at the default 10 GB
        for the 11 million of a ResNet-18 in float32; with ``method="bekas"`` less than
        20 times that of the weights, however many matvecs, here 0.9 GB.

    Source:
        LeCun, Denker and Solla, *Optimal Brain Damage*, NeurIPS 1989.

    Example:
        >>> x, y = torch.eye(2), torch.zeros(2, 1)
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> obd_scores(system.with_state(torch.tensor([2.0, -1.0])))
        {'weight': tensor([[2.0000, 0.5000]])}
    """  # noqa: DOC502 - raised by obd_diagonal and _scores
    _check_negative(negative)
    found = obd_diagonal(
        system, curvature=curvature, matvecs=matvecs, method=method, seed=seed
    )
    return _scores(system, found, negative)


def obd(
    system: GradientSystem,
    *,
    density: float,
    curvature: Curvature = "hessian",
    negative: Negative = "absolute",
    matvecs: int = _MATVECS,
    method: Literal["xdiag", "bekas"] = "xdiag",
    scope: Scope = "global",
    collapse: Collapse = "error",
    seed: int = 0,
) -> Ticket:
    r"""Keep the weights whose removal costs most, :math:`\tfrac{1}{2} h w^2`.

    See :func:`obd_scores` for h. The ticket's settings say how exact the diagonal was
    (``relative_error``, 0 if exact) and how many entries were negative.

    Args:
        system: What is pruned, usually ``system.with_state(run.state)`` of a trained
            run; the ticket is trained from its state.
        density: Fraction to keep, in (0, 1].
        curvature: ``"hessian"`` or ``"gauss-newton"``.
        negative: What h < 0 becomes: ``"absolute"`` or ``"zero"``.
        matvecs: Products to spend at most; exact if they are as many as the weights.
        method: Of the estimate: ``"xdiag"``, or ``"bekas"``, less exact and with far
            less memory.
        scope: ``"global"`` count, or ``"layer"``.
        collapse: What to do about one; see :func:`from_scores`.
        seed: Of the random vectors.

    Returns:
        The ticket.

    Raises:
        InvalidInputError: See :func:`from_scores` and :func:`obd_diagonal`.

    Cost:
        ``matvecs`` HVPs (as many as the weights, if fewer), no forward passes alone,
        and for a new system the gradients of the determinism probe: two, of at most 8
        examples where the data are resident.
        Memory: about 2.2 ``matvecs`` times that of the weights, at the default 10 GB
        for the 11 million of a ResNet-18 in float32; with ``method="bekas"`` less than
        20 times that of the weights, however many matvecs, here 0.9 GB.

    Source:
        LeCun, Denker and Solla, *Optimal Brain Damage*, NeurIPS 1989.
    """  # noqa: DOC502 - raised by the parts
    density = as_density(density)
    check_known(collapse)
    _check_negative(negative)
    probe = probe_cost(system)
    found = obd_diagonal(
        system, curvature=curvature, matvecs=matvecs, method=method, seed=seed
    )
    settings = {
        "curvature": curvature,
        "negative": negative,
        "method": found.method,
        "matvecs": found.matvecs,
        "relative_error": found.relative_error,
        "negative_entries": int((found.values < 0).sum()),
    }
    sources = tuple(dict.fromkeys(("obd", *found.provenance.sources)))
    return scored(
        system,
        _scores(system, found, negative),
        density=density,
        scope=scope,
        collapse=collapse,
        provenance=record(
            system, "pruning.obd", seed=seed, settings=settings, sources=sources
        ),
        cost=Cost(gradients=probe, hvps=found.matvecs),
        advice=advice_for(scope),
    )


def prunable_coordinates(system: GradientSystem) -> Tensor:
    """Return which coordinates of a system are prunable weights.

    Args:
        system: The system.

    Returns:
        Boolean, shape ``(P,)``, on the CPU.

    Raises:
        InvalidInputError: If none is.
    """  # noqa: DOC502 - raised by check_prunable
    check_prunable(system.prunable)
    shapes = dict(zip(system.names, system.coordinates.shapes, strict=True))
    return system.flatten({
        name: torch.full(shape, name in system.prunable)
        for name, shape in shapes.items()
    })


def _check_negative(negative: str) -> None:
    if negative not in get_args(Negative):
        raise unknown("negative", negative, get_args(Negative))


def _scores(
    system: GradientSystem, found: Diagonal, negative: Negative
) -> dict[str, Tensor]:
    if found.relative_error > _NOISY:
        warnings.warn(
            f"The diagonal from {found.matvecs:g} products has a relative standard "
            f"error of {found.relative_error:.2g}: OBD ranks much noise. Pass more "
            f"matvecs; {len(found)} would make it exact.",
            NumericalWarning,
            stacklevel=3,
        )
    h = found.values.abs() if negative == "absolute" else found.values.clamp(min=0.0)
    state = system.state
    half = torch.zeros_like(state)
    half[prunable_coordinates(system).to(state.device)] = 0.5 * h
    named = system.unflatten(half * state.square())
    return {name: named[name] for name in system.prunable}
