"""From IMP runs, or stored numbers, to a flow."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, Provenance
from dynprune.rgflow._controls import Controls
from dynprune.rgflow._exponents import MINIMUM_LEVELS, LogSlopes, check_flow
from dynprune.rgflow._observables import Groups, common_densities, observables
from dynprune.rgflow._results import RGFlow, make_flow
from dynprune.rgflow._runs import (
    Magnitude,
    Normalisation,
    RunLike,
    Stage,
    check_choice,
    check_runs,
)


def fit(
    runs: Sequence[RunLike],
    *,
    controls: Controls | None = None,
    groups: Groups = "tensor",
    magnitude: Magnitude = "L1",
    stage: Stage = "before",
    normalisation: Normalisation = "share",
    throw: bool = True,
) -> RGFlow:
    r"""Read IMP runs as a renormalization-group flow.

    Measures the observables of every run, see :func:`dynprune.rgflow.observables`, and
    fits :math:`\ln M_i(n) = a_i + \sigma_i \ln(1/d_n)` to each run and group, see
    :func:`dynprune.rgflow.exponents`. A group is relevant if :math:`\sigma_i > 2` se
    over seeds, irrelevant if :math:`\sigma_i < -2` se, marginal in between. The excess
    is :math:`\sigma_i` minus that of the no-retraining control, paired by run.

    Args:
        runs: One IMP run per seed, of one network at the same densities.
        controls: Of the same runs in the same order, from
            :func:`dynprune.rgflow.controls`; None leaves the excess out.
        groups: ``"tensor"``, or name of each masked tensor to its group.
        magnitude: ``"L1"`` or ``"L2"``.
        stage: ``"before"`` or ``"after"`` pruning.
        normalisation: ``"share"`` or ``"absolute"``.
        throw: Refuse a group with survivors at fewer than 3 levels; otherwise its
            numbers are NaN and its class is "not testable".

    Returns:
        The flow. With one run, standard errors are NaN and no class is testable.

    Raises:
        InvalidInputError: For runs that do not fit together or to the controls, fewer
            than 3 levels, or a group without enough survivors.

    Cost:
        One pass over the weights per run and level.

    Source:
        Reconstruction of Redman et al., *Universality of Winning Tickets: A
        Renormalization Group Perspective*, ICML 2022; estimator and controls are ours.
    """  # noqa: DOC502 - raised by the checks
    names = check_runs(runs)
    found = [
        observables(
            run,
            groups=groups,
            magnitude=magnitude,
            stage=stage,
            normalisation=normalisation,
        )
        for run in runs
    ]
    densities = common_densities(runs)
    if controls is None:
        no_retraining, random = None, None
    else:
        _check_controls(controls, names, densities, seeds=len(runs))
        no_retraining, random = (
            controls.observables(
                control,
                groups=groups,
                magnitude=magnitude,
                stage=stage,
                normalisation=normalisation,
            )
            for control in ("no-retraining", "random")
        )
    return fit_shares(
        torch.stack([part.values for part in found]),
        found[0].densities,
        groups=found[0].groups,
        no_retraining=no_retraining,
        random=random,
        magnitude=magnitude,
        stage=stage,
        normalisation=normalisation,
        throw=throw,
    )


def fit_shares(
    shares: Tensor,
    densities: Tensor | Sequence[float],
    *,
    groups: Sequence[str],
    no_retraining: Tensor | None = None,
    random: Tensor | None = None,
    magnitude: Magnitude = "L1",
    stage: Stage = "before",
    normalisation: Normalisation = "share",
    throw: bool = True,
) -> RGFlow:
    r"""Fit a flow to stored observables.

    As :func:`fit`, from numbers that :func:`dynprune.rgflow.observables` and
    :meth:`Controls.observables` gave.

    Args:
        shares: Observables of the runs, shape ``(S, R, G)``.
        densities: Density of each level, shape ``(R,)``, strictly decreasing.
        groups: G names.
        no_retraining: Observables of that control, ``(S, R, G)``, or None.
        random: Of random pruning, ``(S, R, G)``, or None.
        magnitude: What the numbers are: ``"L1"`` or ``"L2"``.
        stage: Likewise, ``"before"`` or ``"after"`` pruning.
        normalisation: ``"share"``: the groups of a level must sum to one; or
            ``"absolute"``.
        throw: Refuse a group with survivors at fewer than 3 levels.

    Returns:
        The flow; it owns copies of the numbers, in float64.

    Raises:
        InvalidInputError: For other shapes or names, fewer than 3 levels, densities
            out of order, shares that do not sum to one, or a group without enough
            survivors.

    Cost:
        O(S R G).

    Source:
        See :func:`fit`.

    Example:
        >>> d = torch.tensor([1.0, 0.5, 0.25]).double()
        >>> flow = torch.stack([0.5 * d, 1 - 0.5 * d], dim=1)
        >>> fit_shares(flow.expand(2, 3, 2), d, groups=("a", "b")).classes
        ('irrelevant', 'relevant')
    """
    check_choice("magnitude", magnitude, ("L1", "L2"))
    check_choice("stage", stage, ("before", "after"))
    check_choice("normalisation", normalisation, ("share", "absolute"))
    d = torch.as_tensor(densities)
    M, d = check_flow(torch.as_tensor(shares), d)
    if len(groups) != M.shape[2] or len(set(groups)) != len(groups):
        raise InvalidInputError(
            f"{M.shape[2]} groups have the names {', '.join(groups)}. Pass one name "
            "for each, all different."
        )
    tables = {"IMP": M}
    for name, values in (("no retraining", no_retraining), ("random", random)):
        if values is None:
            continue
        tables[name], _ = check_flow(values, d)
        if tables[name].shape != M.shape:
            raise InvalidInputError(
                f"The control {name!r} has shape {tuple(tables[name].shape)}, the runs "
                f"{tuple(M.shape)}. Make it from the same runs."
            )
    if normalisation == "share":
        for name, values in tables.items():
            _check_sum(name, values)
    flow = make_flow(
        shares=M,
        densities=d,
        groups=tuple(groups),
        no_retraining=tables.get("no retraining"),
        random=tables.get("random"),
        magnitude=magnitude,
        stage=stage,
        normalisation=normalisation,
        provenance=Provenance(
            made_by="rgflow.fit",
            dtype="float64",
            settings=(
                ("controls", no_retraining is not None),
                ("magnitude", magnitude),
                ("normalisation", normalisation),
                ("stage", stage),
            ),
            sources=("rg", "imp"),
        ),
    )
    if throw:
        _check_survivors("IMP", flow.slopes, flow.groups)
        _check_survivors("no retraining", flow.no_retraining_slopes, flow.groups)
        _check_survivors("random", flow.random_slopes, flow.groups)
    return flow


def _check_controls(
    controls: Controls, names: tuple[str, ...], densities: Tensor, *, seeds: int
) -> None:
    others = len(controls.sums[0][1])
    same = controls.densities.shape == densities.shape and bool(
        (controls.densities == densities).all()
    )
    if others != seeds or controls.names != names or not same:
        raise InvalidInputError(
            f"The controls are of {others} runs of {', '.join(controls.names)} at "
            f"{len(controls.densities)} densities; {seeds} runs of {', '.join(names)} "
            f"at {len(densities)} were given"
            f"{'' if same else ', not the same ones'}. Make them from the same runs."
        )


def _check_sum(name: str, values: Tensor) -> None:
    worst = float((values.sum(-1) - 1).abs().max())
    if worst > 1e-4:  # numbers that were stored with five digits pass
        raise InvalidInputError(
            f"The shares of {name!r} miss a sum of one by {worst:.3g} at some level. "
            "Pass shares of all groups, or normalisation='absolute'."
        )


def _check_survivors(
    name: str, slopes: LogSlopes | None, groups: tuple[str, ...]
) -> None:
    if slopes is None:
        return
    used = slopes.levels_used.amin(0)
    short = [
        f"{group} ({int(n)})"
        for group, n in zip(groups, used, strict=True)
        if int(n) < MINIMUM_LEVELS
    ]
    if short:
        raise InvalidInputError(
            f"{name}: too few levels with survivors in {', '.join(short)}; an exponent "
            f"needs {MINIMUM_LEVELS}. Merge small groups, stop at a higher density, or "
            "pass throw=False to leave them NaN."
        )
