"""The unit that forecasts weights and holds the forecasts to the truth."""

from typing import Any

import torch
from torch import Tensor

from dynprune import koopman
from dynprune.study._config import Config
from dynprune.study.units._setup import (
    finite,
    named_state,
    recipe_of,
    seed_of,
    system_of,
)
from dynprune.system import GradientSystem
from dynprune.tasks import Problem
from dynprune.training import Run, evaluate
from dynprune.trajectory import Trajectory

BASELINES = {
    "stay": koopman.stay,
    "linear-extrapolation": koopman.linear_extrapolation,
    "window-mean": koopman.window_mean,
}


def forecast_unit(problem: Problem, config: Config, seed: int) -> dict[str, Any]:
    """Fit a window of the dense run, forecast beyond it, compare with the run itself.

    Network and layer fits are affine with the rank chosen on held-out snapshots of
    the window; the node fit is the source's: no centring, no truncation.

    Args:
        problem: The problem.
        config: The config.
        seed: The study's seed.

    Returns:
        The facts.
    """
    system = system_of(problem, config, seed)
    run = recipe_of(config)(
        system, seed=seed_of(config, "order", seed), record=config.record_every
    )
    assert run.trajectory is not None
    start, stop = config.koopman_window
    window = run.trajectory.window(start, stop)
    steps = [stop + horizon for horizon in config.koopman_horizons]
    truth = torch.stack([run.trajectory.state_at(step) for step in steps], 1)
    models = {
        "dmd-network": koopman.fit(window, rank="holdout", centring="affine"),
        "dmd-layer": koopman.fit(
            window, rank="holdout", centring="affine", partition="layer"
        ),
        "dmd-node": koopman.fit(window, partition="node"),
    }
    forecasts = {name: model.forecast(steps) for name, model in models.items()}
    forecasts |= {name: make(window, steps) for name, make in BASELINES.items()}
    last = window.state_at(stop)
    network = models["dmd-network"]
    return {
        "window": [start, stop],
        "horizons": list(config.koopman_horizons),
        "methods": {
            name: {
                "error2growth": _numbers(koopman.error2growth(states, truth, last)),
                "parameter_error": _numbers((states - truth).norm(dim=0)),
            }
            | _measures(problem, system, run, states)
            for name, states in forecasts.items()
        },
        "truth": _measures(problem, system, run, truth),
        "bound": _numbers(koopman.forecast_bound(network, steps)),
        "measured": _numbers((forecasts["dmd-network"] - truth).norm(dim=0)),
        "eigenvalues": torch.view_as_real(network.eigenvalues).tolist(),
        "residual_norms": _numbers(network.residual_norms),
        "example": _example(run.trajectory, window, forecasts, steps),
        "gradients": run.cost.gradients,
    }


def _measures(
    problem: Problem, system: GradientSystem, run: Run, states: Tensor
) -> dict[str, list[float | None]]:
    found = [
        evaluate(named_state(system, state), problem, "test", buffers=run.buffers)
        for state in states.T
    ]
    return {
        "loss": [finite(value.loss) for value in found],
        "accuracy": [finite(value.metric) for value in found],
    }


def _example(
    whole: Trajectory,
    window: Trajectory,
    forecasts: dict[str, Tensor],
    steps: list[int],
) -> dict[str, Any]:
    # three weights: those whose travel in the window has rank 0, 10 % and 50 %
    travel = (window.snapshots[:, -1] - window.snapshots[:, 0]).abs()
    order = torch.sort(travel, descending=True, stable=True).indices
    rows = order[[0, len(order) // 10, len(order) // 2]]
    shown = whole.window(int(window.steps[0]), steps[-1])
    names = []
    for row in rows.tolist():
        for name, part in whole.coordinates.slices.items():
            if part.start <= row < part.stop:
                names.append(f"{name}[{row - part.start}]")
    return {
        "weights": names,
        "steps": shown.steps.tolist(),
        "truth": [_numbers(shown.snapshots[row]) for row in rows],
        "future_steps": steps,
        "forecast": {
            name: [_numbers(states[row]) for row in rows]
            for name, states in forecasts.items()
        },
    }


def _numbers(values: Tensor) -> list[float | None]:
    return [finite(value) for value in values.double().tolist()]
