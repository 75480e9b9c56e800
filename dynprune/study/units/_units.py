"""The units of a study, and how a worker computes one."""

import contextlib
import platform
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from dynprune.core import (
    AssumptionError,
    ConvergenceError,
    DynPruneWarning,
    InvalidInputError,
    NotDeterministicError,
)
from dynprune.study._config import Config
from dynprune.study._scheduler import Unit
from dynprune.study._store import Store
from dynprune.study.units._door import explained
from dynprune.study.units._pruning import imp_unit, method_unit
from dynprune.study.units._setup import problem_of
from dynprune.study.units._theory import analysis_unit
from dynprune.tasks import Problem


def units_of(config: Config) -> tuple[Unit, ...]:
    """List the units of a study.

    Args:
        config: The config.

    Returns:
        Units, those that others wait for first.
    """
    units = []
    for seed in config.seed_values:
        for kind in (*config.methods, *config.analyses):
            units.append(
                Unit(
                    name=f"{kind}-s{seed}",
                    kind=kind,
                    seed=seed,
                    after=tuple(f"{other}-s{seed}" for other in _after(kind)),
                    weight=_weight(kind, config),
                )
            )
    return tuple(units)


def compute(
    unit: Unit, *, config: Config, folder: Path, problem: Problem | None
) -> None:
    """Compute one unit in this process, with one thread, and leave its files.

    Args:
        unit: The unit.
        config: The config.
        folder: The study's folder.
        problem: The user's problem, or None for the config's.

    Raises:
        InvalidInputError: If the unit gives other studies nothing to go on (IMP), or
            its files cannot be written.
    """  # noqa: DOC502 - raised by what it calls
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    start = time.perf_counter()
    try:
        with warnings.catch_warnings(), contextlib.ExitStack() as scope:
            warnings.simplefilter("ignore", DynPruneWarning)  # the ledger says it
            if problem is not None or config.data or config.loss:
                scope.enter_context(explained(f"Unit {unit.name}"))
            rows, facts, files = _left(unit, config, folder, problem)
    finally:
        torch.set_num_threads(threads)
    timing = {"seconds": time.perf_counter() - start, "host": platform.node()}
    Store(folder=folder).write_unit(
        unit.name, {"rows": rows, "facts": facts, "timing": timing}, tuple(files)
    )


def _left(
    unit: Unit, config: Config, folder: Path, problem: Problem | None
) -> tuple[list[dict[str, Any]], dict[str, Any], list[Path]]:
    for other in unit.after:
        if "error" in (Store(folder=folder).read_unit(other) or {}).get("facts", {}):
            return [], {"error": f"It starts from {other}, which was not computed."}, []
    made = problem or problem_of(config)
    if unit.kind == "imp":
        try:
            return imp_unit(made, config, unit.seed, folder)
        except ConvergenceError as error:
            raise ConvergenceError(f"Unit {unit.name}: {error}") from error
    try:
        if unit.kind in config.methods:
            return method_unit(made, config, unit.kind, unit.seed, folder)
        return [], analysis_unit(made, config, unit.kind, unit.seed), []
    except (
        AssumptionError,
        ConvergenceError,
        InvalidInputError,
        NotDeterministicError,
    ) as error:
        if "Cannot write" in str(error):
            raise
        return [], {"error": str(error)}, []


def _after(kind: str) -> tuple[str, ...]:
    if kind in {"imp-shuffled", "imp-reinitialised", "magnitude-trained"}:
        return ("imp",)
    if kind == "manifold-shuffled":
        return ("manifold",)
    return ()


def _weight(kind: str, config: Config) -> float:
    if kind == "imp":
        return float(config.steps * len(config.densities))
    if kind in config.methods:
        return float(config.steps * len(config.compared))
    return 4.0 * config.steps
