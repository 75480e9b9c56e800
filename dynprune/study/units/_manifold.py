"""The unit that looks for a spectral gap after the transient and tests it."""

from typing import Any

import torch
from torch import Tensor

from dynprune import manifold
from dynprune.core import Cost
from dynprune.manifold import ConditionCheck, ManifoldReport
from dynprune.study._config import Config
from dynprune.study.units._setup import (
    finite,
    hessian_data,
    recipe_of,
    seed_of,
    system_of,
)
from dynprune.system import GradientSystem
from dynprune.tasks import Problem
from dynprune.training import Run

SPANS = {"10": 10, "100": 100, "all": 0}


def manifold_unit(problem: Problem, config: Config, seed: int) -> dict[str, Any]:
    """Split the dense system after the transient; test it at the radii travelled.

    The radius of a span is the distance that the run really travels in it; the state
    at its end is one of the sampled points.

    Args:
        problem: The problem.
        config: The config.
        seed: The study's seed.

    Returns:
        The facts.
    """
    system = system_of(problem, config, seed)
    rate = config.learning_rate if _is_gradient_descent(config) else None
    early = _run_to(system, config, seed, config.transient)
    start = system.with_state(early.state, buffers=early.buffers)
    ends = {
        name: _run_to(
            system, config, seed, config.transient + span if span else config.steps
        ).state
        for name, span in SPANS.items()
        if config.transient + span <= config.steps
    }
    data = hessian_data(system, config)
    report = manifold.analyse(
        start,
        k_max=config.k_max,
        samples=config.samples,
        learning_rate=rate,
        final_state=ends["all"],
        final_steps=config.steps - config.transient,
        hessian_data=data,
        seed=seed_of(config, "manifold-analysis", seed),
        warn=False,
    )
    seen = start if data is None else start.with_data(data)
    checks: list[dict[str, Any]] = []
    if report.n_fast is not None:
        for name, end in ends.items():
            travelled = end - early.state
            for check in _checks(seen, report, config, seed, travelled, rate):
                checks.append({**check.to_dict(), "span": name})
    share = seen.examples / system.examples
    spent = early.cost + report.cost
    spent += Cost(hvps=share * sum(check["matvecs"] for check in checks))
    return _facts(report, checks, rate, spent)


def _checks(
    system: GradientSystem,
    report: ManifoldReport,
    config: Config,
    seed: int,
    travelled: Tensor,
    rate: float | None,
) -> list[ConditionCheck]:
    # C1, C3 and C4 where the run went, and around it within the same radius
    assert report.n_fast is not None
    drawn = manifold.sample_displacements(
        report.pairs,
        radius=float(travelled.norm()),
        samples=config.samples,
        seed=seed_of(config, "manifold-samples", seed),
    )
    points = torch.cat([travelled[:, None], drawn.to(travelled)], dim=1)
    centre = system.state
    smooth = manifold.is_smooth(
        manifold.difference_quotients(system, centre, travelled)
    )
    choices: dict[str, Any] = {
        "n_fast": report.n_fast,
        "displacements": points,
        "smooth": smooth,
        "seed": seed_of(config, "manifold-checks", seed),
    }
    c1 = manifold.gap_condition(system, centre, report.pairs, **choices)
    found = [c1, manifold.cone_condition(system, centre, report.pairs, **choices)]
    if rate is not None:
        found.append(
            manifold.step_condition(
                report.pairs,
                n_fast=report.n_fast,
                learning_rate=rate,
                lipschitz=c1.lipschitz,
                radius=c1.radius,
                smooth=smooth,
            )
        )
    return found


def _facts(
    report: ManifoldReport,
    checks: list[dict[str, Any]],
    rate: float | None,
    spent: Cost,
) -> dict[str, Any]:
    found = report.gaps
    return {
        "values": report.pairs.values.tolist(),
        "residual_norms": report.pairs.residual_norms.tolist(),
        "enclosures": report.pairs.enclosures.tolist(),
        "complete": report.pairs.complete,
        "n_fast": report.n_fast,
        "spectral_gap": finite(report.spectral_gap),
        "relative_gap": finite(report.relative_gap),
        "resolved": report.resolved,
        "gaps": [
            {
                "n_fast": int(k),
                "spectral_gap": finite(float(gap)),
                "lower_bound": finite(float(low)),
                "resolved": bool(resolved),
            }
            for k, gap, low, resolved in zip(
                found.n_fast,
                found.spectral_gap,
                found.lower_bound,
                found.resolved,
                strict=True,
            )
        ],
        "learning_rate": rate,
        "sharpness_product": finite(report.sharpness_product),
        "conditions": [
            {key: value for key, value in check.items() if key != "margins"}
            for check in checks
        ],
        "applicable": report.applicable,
        "densities": report.densities,
        "frozen_share": finite(report.frozen_share),
        "freezing_product": finite(report.freezing_product),
        "certified_k": report.certified_k,
        "size": report.size,
        "gradients": spent.gradients,
        "hvps": spent.hvps,
    }


def _run_to(system: GradientSystem, config: Config, seed: int, step: int) -> Run:
    return recipe_of(config)(
        system, seed=seed_of(config, "order", seed), stop_step=step
    )


def _is_gradient_descent(config: Config) -> bool:
    # weight decay would make the multipliers 1 - η(λ + wd), with λ of the bare Hessian
    plain = config.momentum == config.weight_decay == 0.0
    return config.optimizer == "sgd" and plain
