"""A synthetic study: every number drawn from a generator, none of them measured."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from dynprune.core import Provenance
from dynprune.rgflow._results import RGFlow, make_flow
from dynprune.study._config import METHODS, Config
from dynprune.study._findings import VERDICTS, Findings, LedgerLine

FindingsFactory = Callable[..., Findings]

# points lost at density .02, and the density at which half of that is lost
SHAPES = {
    "imp": (14.0, 0.035),
    "imp-shuffled": (32.0, 0.05),
    "imp-reinitialised": (30.0, 0.05),
    "manifold": (30.0, 0.05),
    "manifold-shuffled": (40.0, 0.06),
    "magnitude-trained": (24.0, 0.045),
    "magnitude-init": (42.0, 0.06),
    "snip": (26.0, 0.045),
    "grasp": (28.0, 0.06),
    "synflow": (24.0, 0.05),
    "random": (55.0, 0.07),
    "dense": (0.0, 0.01),
}
COSTS = {"manifold": (10.0, 30.0), "snip": (1.0, 0.0), "grasp": (2.0, 1.0)}


def lost(method: str, density: float) -> float:
    worst, half = SHAPES.get(method, (35.0, 0.05))
    return worst / 100.0 / (1.0 + (density / half) ** 1.6)


def result_rows(
    config: Config, methods: tuple[str, ...], rng: np.random.Generator
) -> list[dict[str, Any]]:
    rows = []
    training = config.steps * config.batch_size / 1000.0
    for method in ("dense", *methods):
        densities = config.densities if method == "imp" else config.compared
        for density in (1.0,) if method == "dense" else densities:
            for seed in config.seed_values:
                mean = 0.975 - lost(method, density)
                accuracy = float(
                    np.clip(mean + rng.normal(0, 0.004 + 0.06 * (0.975 - mean)), 0.1, 1)
                )
                gradients, hvps = COSTS.get(method, (0.0, 0.0))
                level = config.densities.index(density)
                trainings = level + 1 if method.startswith("imp") else 1
                rows.append({
                    "task": config.task,
                    "model": config.model or "mlp",
                    "method": method,
                    "density": density,
                    "seed": seed,
                    "accuracy": accuracy,
                    "loss": -math.log(accuracy),
                    "validation_accuracy": accuracy,
                    "gradients": gradients + trainings * training + rng.uniform(),
                    "hvps": hvps,
                    "forwards": 1.0,
                    "steps": config.steps * trainings,
                })
    return rows


def layer_rows(
    config: Config,
    methods: tuple[str, ...],
    layers: tuple[str, ...],
    rng: np.random.Generator,
) -> list[dict[str, Any]]:
    tilt = {name: rng.normal(0, 0.5) for name in methods}
    return [
        {
            "method": method,
            "density": density,
            "seed": seed,
            "layer": layer,
            "layer_density": float(
                min(
                    1.0,
                    density ** (1 - 0.25 * tilt[method] * i) * rng.uniform(0.9, 1.1),
                )
            ),
        }
        for method in methods
        for density in config.compared
        for seed in config.seed_values
        for i, layer in enumerate(layers)
    ]


def analysis(config: Config, rng: np.random.Generator) -> dict[str, Any]:
    k = config.k_max
    values = np.sort(
        np.concatenate([rng.uniform(2, 12, 9), rng.uniform(0.2, 0.8, max(1, k - 9))])
    )[::-1][:k]
    widths = values * 0.01
    gaps = [
        {
            "n_fast": i + 1,
            "spectral_gap": float(values[i] - values[i + 1]),
            "lower_bound": float(values[i] - values[i + 1] - widths[i] - widths[i + 1]),
            "resolved": bool(
                values[i] - values[i + 1] > 2 * (widths[i] + widths[i + 1])
            ),
        }
        for i in range(k - 1)
    ]
    chosen = max(gaps, key=lambda gap: gap["spectral_gap"] / values[gap["n_fast"] - 1])
    eta = config.learning_rate
    return {
        "values": values.tolist(),
        "residual_norms": widths.tolist(),
        "enclosures": [[v - w, v + w] for v, w in zip(values, widths, strict=True)],
        "complete": True,
        "n_fast": chosen["n_fast"],
        "spectral_gap": chosen["spectral_gap"],
        "relative_gap": chosen["spectral_gap"] / values[chosen["n_fast"] - 1],
        "resolved": chosen["resolved"],
        "gaps": gaps,
        "learning_rate": eta,
        "sharpness_product": eta * float(values[0]),
        "conditions": [
            {
                "name": name,
                "span": span,
                "radius": 1.0,
                "gap": 1.0,
                "lipschitz": 2.0,
                "margin": float(rng.normal(-2, 1)),
                "verdict": "failed",
            }
            for name in ("C1", "C3")
            for span in ("10", "100", "all")
        ],
        "applicable": True,
        "densities": {"slaving": 0.99, "freezing": 0.001, "participation": 0.3},
        "frozen_share": 0.7,
        "certified_k": 0,
        "size": 8970,
        "gradients": 10.0,
        "hvps": 300.0,
    }


def forecast(config: Config, rng: np.random.Generator) -> dict[str, Any]:
    horizons = list(config.koopman_horizons)
    start, stop = config.koopman_window
    every = config.record_every
    truth = [0.95 + 0.01 * i / len(horizons) for i in range(len(horizons))]
    levels = {
        "dmd-network": 0.5,
        "dmd-layer": 0.6,
        "dmd-node": 0.8,
        "stay": 1.0,
        "linear-extrapolation": 0.7,
        "window-mean": 1.6,
    }
    methods = {}
    for name, level in levels.items():
        noise = 1.0 if name == "stay" else np.exp(rng.normal(0, 0.15, len(horizons)))
        ratio = level * np.linspace(0.8, 1.3, len(horizons)) ** (name != "stay") * noise
        methods[name] = {
            "error2growth": (ratio * np.ones(len(horizons))).tolist(),
            "parameter_error": ratio.tolist()
            if name != "stay"
            else [1.0] * len(horizons),
            "loss": [0.2] * len(horizons),
            "accuracy": [t - 0.01 * level * rng.uniform() for t in truth],
        }
    steps = list(range(start, config.steps + 1, every))
    future = [stop + horizon for horizon in horizons]
    names = [f"0.weight[{17 * i}]" for i in range(3)]
    paths = [
        (0.3 * rng.normal() + 0.1 * np.cumsum(rng.normal(0, 0.05, len(steps)))).tolist()
        for _ in names
    ]
    last = [path[steps.index(stop)] for path in paths]
    return {
        "window": [start, stop],
        "horizons": horizons,
        "methods": methods,
        "truth": {"loss": [0.2] * len(horizons), "accuracy": truth},
        "bound": [float(50.0 * 3**i * rng.uniform(1, 2)) for i in range(len(horizons))],
        "measured": [
            float(0.3 * 1.6**i * rng.uniform(1, 2)) for i in range(len(horizons))
        ],
        "eigenvalues": [[0.99, 0.0], [0.9, 0.1], [0.9, -0.1]],
        "residual_norms": [0.01, 0.1, 0.1],
        "example": {
            "weights": names,
            "steps": steps,
            "truth": paths,
            "future_steps": future,
            "forecast": {
                name: [
                    [value + slope * (step - stop) * 2e-4 for step in future]
                    for value in last
                ]
                for name, slope in zip(levels, rng.normal(0, 1, 6), strict=True)
            },
        },
    }


def flow_of(
    config: Config, layers: tuple[str, ...], rng: np.random.Generator
) -> RGFlow:
    d = torch.tensor(config.densities, dtype=torch.float64)
    G, S = len(layers), config.seeds

    def shares(strength: float) -> torch.Tensor:
        sigma = strength * torch.linspace(-0.4, 0.4, G, dtype=torch.float64)
        sigma = sigma + 0.03 * torch.tensor(rng.normal(size=(S, 1, G)))
        M = torch.linspace(0.8, 0.2, G, dtype=torch.float64) * d[:, None] ** -sigma
        return M / M.sum(-1, keepdim=True)

    return make_flow(
        shares=shares(1.0),
        densities=d,
        groups=layers,
        no_retraining=shares(0.6),
        random=shares(0.0),
        magnitude="L1",
        stage="before",
        normalisation="share",
        provenance=Provenance(made_by="tests"),
    )


def ledger_lines(findings: Findings) -> tuple[LedgerLine, ...]:
    lines = []
    for i, verdict in enumerate((*VERDICTS, "held", "failed")):
        lines.append(
            LedgerLine(
                key=f"claim-{i}",
                theory=("Koopman", "inertial manifold", "RG flow", "lottery ticket")[
                    i % 4
                ],
                claim=f"Claim number {i}: the measured quantity is above 0 points.",
                predicted=math.nan if i % 2 else 1.0 + i,
                measured=findings.config.seed + 0.123 * i,
                interval=(0.1 * i, 0.2 * i) if i else (math.nan, math.nan),
                p_value=0.001 * i if i else math.nan,
                p_holm=0.004 * i if i else math.nan,
                verdict=verdict,
                seeds=findings.config.seeds,
                unit=("points", "share", "log ratio", "density")[i % 4],
                note="resolved in 4 of 5 seeds; sampled, so it cannot be proved"
                * (i % 3),
            )
        )
    return tuple(lines)


@pytest.fixture(scope="session")
def findings_factory() -> FindingsFactory:
    """Return a maker of synthetic findings; equal arguments, equal numbers."""

    def make(
        *,
        seed: int = 0,
        seeds: int = 5,
        methods: tuple[str, ...] = METHODS,
        layers: tuple[str, ...] = ("0.weight", "2.weight", "4.weight"),
        **config_fields: Any,
    ) -> Findings:
        known = tuple(name for name in methods if name in METHODS)
        config = Config(seed=seed, seeds=seeds, methods=known, **config_fields)
        rng = np.random.default_rng((seed, seeds))
        return Findings(
            config=config,
            problem=config.task,
            results=pd.DataFrame(result_rows(config, methods, rng)),
            layers=pd.DataFrame(layer_rows(config, methods, layers, rng)),
            flow=flow_of(config, layers, rng),
            flow_seeds=config.seed_values,
            analyses={s: analysis(config, rng) for s in config.seed_values},
            forecasts={s: forecast(config, rng) for s in config.seed_values},
            multipliers={},
        )

    return make


@pytest.fixture(scope="session")
def lines_factory() -> Callable[[Findings], tuple[LedgerLine, ...]]:
    """Return a maker of one ledger line for each verdict."""
    return ledger_lines
