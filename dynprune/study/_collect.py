"""From the files of finished units to tables and findings."""

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

from dynprune.pruning import IMPRun
from dynprune.rgflow import RGFlow, controls, fit
from dynprune.study._config import Config
from dynprune.study._findings import Findings
from dynprune.study._scheduler import Unit
from dynprune.study._store import Store
from dynprune.study.units._pruning import run_path
from dynprune.study.units._setup import seed_of, system_of
from dynprune.tasks import Problem

RESULT_COLUMNS = (
    "task",
    "model",
    "method",
    "density",
    "seed",
    "accuracy",
    "loss",
    "validation_accuracy",
    "gradients",
    "hvps",
    "forwards",
    "steps",
)
_NUMBERS = ("accuracy", "loss", "validation_accuracy", "gradients", "hvps", "forwards")
TIMING_COLUMNS = ("unit", "kind", "seed", "seconds", "host")
_LEAST_LEVELS = 3  # a slope and its curvature
LEDGER_COLUMNS = (
    "key",
    "theory",
    "claim",
    "predicted",
    "measured",
    "low",
    "high",
    "p_value",
    "p_holm",
    "verdict",
    "seeds",
    "unit",
    "note",
)


def to_csv(rows: Iterable[Mapping[str, Any]], columns: tuple[str, ...]) -> str:
    """Write rows as CSV; the same rows give the same bytes.

    Args:
        rows: One mapping a row; missing and None become empty.
        columns: Their order.

    Returns:
        The text, numbers in the shortest form that reads back exactly.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow([_cell(row.get(column)) for column in columns])
    return text.getvalue()


def result_rows(store: Store, units: Iterable[Unit]) -> list[dict[str, Any]]:
    """Return the rows of all units, in one fixed order.

    Args:
        store: The study's folder.
        units: Its units, all done.

    Returns:
        Rows by method, falling density, seed.
    """
    rows: list[dict[str, Any]] = []
    for unit in units:
        rows.extend((store.read_unit(unit.name) or {"rows": []})["rows"])
    return sorted(rows, key=lambda row: (row["method"], -row["density"], row["seed"]))


def failures(store: Store, units: Iterable[Unit]) -> dict[str, str]:
    """Return what could not be computed, and why.

    Args:
        store: The study's folder.
        units: Its units, all done.

    Returns:
        Unit name to reason.
    """
    found = {}
    for unit in units:
        facts = (store.read_unit(unit.name) or {}).get("facts", {})
        if "error" in facts:
            found[unit.name] = str(facts["error"])
    return found


def findings_of(
    store: Store, config: Config, units: tuple[Unit, ...], problem: Problem
) -> Findings:
    """Gather everything that the ledger and the report read.

    Args:
        store: The study's folder.
        config: The config.
        units: Its units, all done.
        problem: The problem.

    Returns:
        The findings.
    """
    import pandas as pd

    facts: dict[str, dict[int, dict[str, Any]]] = {}
    layers: list[dict[str, Any]] = []
    for unit in units:
        left = (store.read_unit(unit.name) or {"facts": {}})["facts"]
        layers.extend(left.get("layers", ()))
        if "error" not in left:
            facts.setdefault(unit.kind, {})[unit.seed] = left
    results = pd.DataFrame(result_rows(store, units), columns=list(RESULT_COLUMNS))
    return Findings(
        config=config,
        problem=config.task if problem.name == "user" else problem.name,
        results=results.astype(dict.fromkeys(_NUMBERS, float)),
        layers=pd.DataFrame(
            layers, columns=["method", "density", "seed", "layer", "layer_density"]
        ),
        flow=_flow(store, config, problem),
        flow_seeds=config.seed_values,
        analyses=facts.get("manifold-analysis", {}),
        forecasts=facts.get("forecast", {}),
        multipliers=facts.get("multipliers", {}),
    )


def _flow(store: Store, config: Config, problem: Problem) -> RGFlow | None:
    if len(config.densities) < _LEAST_LEVELS:
        return None
    runs = [IMPRun.load(run_path(store.folder, seed)) for seed in config.seed_values]
    system = system_of(problem, config, config.seed)
    found = controls(system, runs, seed=seed_of(config, "flow", config.seed))
    return fit(runs, controls=found, throw=False)  # a layer may die at some level


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float):
        return repr(value)
    return str(value)
