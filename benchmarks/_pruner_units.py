"""One unit = one task, method and seed: planned, computed, kept, resumed."""

import concurrent.futures
import contextlib
import functools
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from _pruner_methods import (
    DENSE,
    IMP,
    LEARNT,
    METHODS,
    Bench,
    Found,
    imp_run,
    noted,
)
from _pruner_settings import Setting

import dynprune as dp
from dynprune.core import DynPruneError, process_pool

CHECKED = (
    "imp",
    "magnitude-trained",
    "snip",
    "grasp",
    "synflow",
    "force",
    "gem-miner",
    "manifold",
)
# these train signed constants, and a new state is one of new signs
SIGNED = ("gem-miner", "edge-popup")
FULL = (
    "imp",
    "imp-layer",  # as in the source
    "magnitude-trained",
    "magnitude-layer",
    "lamp-trained",  # balanced between layers, where |w| alone is not
    "snip",
    "synflow",
    "grasp",
    "random",
)
_MOST_BREAKS = 3


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """Name one independent piece of the comparison.

    Args:
        setting: The comparison.
        kind: "method" or "sanity".
        method: Its name.
        seeds: The seed; of a sanity check all seeds.
    """

    setting: Setting
    kind: str
    method: str
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        """The name of its file."""
        parts = [self.setting.task, self.setting.recipe, self.method]
        parts += [f"s{seed}" for seed in self.seeds] if self.kind == "method" else []
        return "-".join([*parts, *([] if self.kind == "method" else [self.kind])])

    @property
    def densities(self) -> tuple[float, ...]:
        """The densities its rows are of."""
        if self.kind == "sanity":
            return (self.setting.checked,)
        return (1.0,) if self.method == DENSE else self.setting.densities


def plan(
    settings: Iterable[Setting], seeds: int, *, methods: Iterable[str], sanity: bool
) -> list[Unit]:
    """Return all units: seed after seed of each task, then the sanity checks."""
    settings, names = list(settings), list(methods)
    units = [
        Unit(setting=one, kind="method", method=name, seeds=(seed,))
        for one in settings
        for seed in range(seeds)
        for name in names
    ]
    checks = [
        Unit(setting=one, kind="sanity", method=name, seeds=tuple(range(seeds)))
        for one in settings
        for name in CHECKED
        if name in names
    ]
    return units + (checks if sanity else [])


def unit_path(folder: Path, unit: Unit) -> Path:
    """Return where the rows of a unit lie."""
    return folder / "units" / f"{unit.name}.json"


def claim(folder: Path, setting: Setting) -> None:
    """Say of a work folder by which settings its tickets are made.

    Args:
        folder: The work folder.
        setting: A comparison.

    Raises:
        SystemExit: If the folder holds tickets of the comparison by other settings.
    """
    path = folder / "settings" / f"{setting.task}-{setting.recipe}.json"
    if not path.exists():
        replace_text(path, json.dumps(setting.plain(), indent=1))
    elif Setting.of(json.loads(path.read_text())) != setting:
        raise SystemExit(
            f"{folder} holds tickets of {setting.task} that other settings made. Name "
            "another folder with --work."
        )


def kept_rows(folder: Path, unit: Unit) -> list[dict[str, Any]]:
    """Return the rows of a unit that lie in the work folder, made by its setting."""
    path = unit_path(folder, unit)
    if not path.exists():
        return []
    record = json.loads(path.read_text())
    if Setting.of(record["setting"]) != unit.setting:
        return []
    rows: list[dict[str, Any]] = record["rows"]
    return rows


def is_done(unit: Unit, rows: Iterable[Mapping[str, Any]]) -> bool:
    """Say whether rows hold every density of a unit."""
    there = {row["density"] for row in rows}
    return there.issuperset(unit.densities)


def work(folder: Path, unit: Unit) -> float:
    """Compute what is missing of a unit.

    Args:
        folder: The work folder.
        unit: The unit.

    Returns:
        Seconds of this call.
    """
    began = time.perf_counter()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        if unit.kind == "sanity":
            _check(folder, unit)
        else:
            _find(folder, unit)
    finally:
        torch.set_num_threads(threads)
    return time.perf_counter() - began


def _find(folder: Path, unit: Unit) -> None:
    rows = kept_rows(folder, unit)
    bench = Bench(unit.setting, unit.seeds[0], folder)
    method = METHODS[unit.method]

    def keep(density: float, found: Found) -> None:
        found.ticket.save(ticket_path(folder, bench, unit.method, density))
        rows.append(_row(bench, unit, density, found))
        _write(folder, unit, rows)

    for density in unit.densities:
        if density in {row["density"] for row in rows}:
            continue
        try:
            if method is IMP:
                rows.clear()
                imp_run(bench, keep)
                return
            keep(
                density,
                noted(functools.partial(method.find, bench, density)),
            )
        except DynPruneError as error:  # a method that finds nothing is a finding
            there = {row["density"] for row in rows}
            lost = [one for one in unit.densities if one not in there]
            lost = lost if method is IMP else [density]
            rows += [_blank(unit, one, str(error)) for one in lost]
            _write(folder, unit, rows)
            if method is IMP:
                return


def find_masks(
    folder: Path,
    setting: Setting,
    seeds: Iterable[int],
    *,
    methods: Iterable[str],
    every: bool,
    jobs: int,
) -> None:
    """Find the masks that the work folder lacks; they are those that units find.

    Masks of other seeds are what one method leaves in common by chance, and a new work
    folder has none of the tickets whose rows are known.

    Args:
        folder: The work folder.
        setting: The comparison.
        seeds: Whose.
        methods: Names of methods.
        every: Also those of methods that train to find one.
        jobs: Worker processes.
    """
    cheap = {
        name
        for name, method in METHODS.items()
        if method.make is not None and method.group != LEARNT
    }
    names = [name for name in methods if name != DENSE and (every or name in cheap)]
    with process_pool(jobs) as pool:
        found = [
            pool.submit(_masks, folder, setting, name, seed)
            for seed in seeds
            for name in names
        ]
        for future in found:
            future.result()


def _masks(folder: Path, setting: Setting, name: str, seed: int) -> None:
    torch.set_num_threads(1)
    bench = Bench(setting, seed, folder)
    paths = {
        density: ticket_path(folder, bench, name, density) for density in setting.alike
    }
    missing = {density: path for density, path in paths.items() if not path.exists()}
    if not missing:
        return
    say(f"masks of {name}, seed {seed}")
    if METHODS[name] is IMP:
        imp_run(
            bench,
            lambda density, found: (
                density in missing and found.ticket.save(missing[density])
            ),
        )
        return
    for density, path in missing.items():
        with contextlib.suppress(DynPruneError):
            _ticket(bench, name, density).save(path)


def _ticket(bench: Bench, name: str, density: float) -> dp.Ticket:
    method = METHODS[name]
    if method.make is not None:
        return method.make(bench, density)
    return method.find(bench, density).ticket


def ticket_path(folder: Path, bench: Bench, method: str, density: float) -> Path:
    """Return where a ticket lies."""
    name = bench.name(method, None if method == DENSE else density)
    return folder / "tickets" / f"{name}.safetensors"


def _row(bench: Bench, unit: Unit, density: float, found: Found) -> dict[str, Any]:
    state, buffers = dict(found.state), dict(found.buffers)
    test, held = (
        dp.evaluate(state, bench.problem, split, buffers=buffers)
        for split in ("test", "validation")
    )
    ticket, cost = found.ticket, found.cost
    layers = ticket.layer_densities.items()
    return _head(unit, density) | {
        "test_accuracy": test.metric,
        "validation_accuracy": held.metric,
        "test_loss": test.loss if math.isfinite(test.loss) else None,
        "gradients": cost.gradients,
        "forwards": cost.forwards,
        "hvps": cost.hvps,
        "steps": cost.steps,
        "kept": ticket.kept,
        "prunable": ticket.prunable_size,
        "layer_densities": ";".join(f"{name}={value:.6g}" for name, value in layers),
        "note": found.note,
    }


def _head(unit: Unit, density: float) -> dict[str, Any]:
    return {
        "task": unit.setting.task,
        "recipe": unit.setting.recipe,
        "method": unit.method,
        "group": METHODS[unit.method].group,
        "density": density,
        "seed": unit.seeds[0],
    }


def _blank(unit: Unit, density: float, why: str) -> dict[str, Any]:
    return _head(unit, density) | {"note": f"nothing found: {why}"}


def _check(folder: Path, unit: Unit) -> None:
    density = unit.setting.checked
    tickets, benches = [], [Bench(unit.setting, seed, folder) for seed in unit.seeds]
    for bench in benches:
        path = ticket_path(folder, bench, unit.method, density)
        if not path.exists():  # the work folder is new: the same ticket again
            _ticket(bench, unit.method, density).save(path)
        tickets.append(dp.Ticket.load(path))
    rewound = unit.method in {"imp", "magnitude-trained"}
    problem = benches[0].problem
    if unit.method in SIGNED:
        make = functools.partial(_signed, problem, tickets[0])
        problem = replace(problem, make_model=make)
    found = dp.pruning.sanity_check(
        tickets,
        benches[0].system,
        train=benches[0].recipe,
        problem=problem,
        split="test",
        seeds=[bench.order for bench in benches],
        start_step=unit.setting.rewind_step if rewound else 0,
        how="serial",
    )
    frame = found.to_frame()
    places = {bench.order: bench.seed for bench in benches}
    rows = [
        {
            "task": unit.setting.task,
            "recipe": unit.setting.recipe,
            "method": unit.method,
            "density": density,
            "control": row.control,
            "seed": places[row.seed],
            "test_accuracy": row.metric,
            "drop": row.drop,
        }
        for row in frame.itertuples()
    ]
    _write(folder, unit, rows)


def _signed(problem: dp.Problem, ticket: dp.Ticket, seed: int) -> torch.nn.Module:
    # new signs at the ticket's own magnitudes
    net = problem.model(seed)
    with torch.no_grad():
        for name, part in net.named_parameters():
            sizes = ticket.state[name].abs()
            part.copy_(torch.where(part < 0, -sizes, sizes))
    return net


def _write(folder: Path, unit: Unit, rows: list[dict[str, Any]]) -> None:
    path = unit_path(folder, unit)
    record = {"setting": unit.setting.plain(), "rows": rows}
    replace_text(path, json.dumps(record, indent=1))


def replace_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def run_units(
    units: list[Unit],
    folder: Path,
    *,
    jobs: int,
    until: float,
    after: Callable[[Unit, float], None],
) -> list[str]:
    """Compute units in order, until none is left or the time is over.

    One that fails does not stop the others.

    Args:
        units: What to compute.
        folder: The work folder.
        jobs: Worker processes; 1 computes in this one.
        until: No unit starts after this reading of ``time.monotonic``.
        after: Called with each unit and its seconds.

    Returns:
        The names of units that failed.
    """
    say(f"{len(units)} units to compute")
    failed: list[str] = []
    if jobs == 1:
        for unit in units:
            if time.monotonic() >= until:
                break
            try:
                after(unit, work(folder, unit))
            except Exception as error:
                failed.append(_failed(unit, error))
        return failed
    waiting, breaks = list(units), 0
    while waiting and time.monotonic() < until:
        pool = process_pool(jobs)
        try:
            _drain(pool, waiting, folder, jobs, until, after, failed)
        except concurrent.futures.BrokenExecutor:
            breaks += 1
            if breaks > _MOST_BREAKS:
                raise
            say("a worker process died; going on with new ones")
        finally:
            pool.shutdown(wait=True)
    return failed


def _failed(unit: Unit, error: Exception) -> str:
    say(f"{unit.name} FAILED: {''.join(traceback.format_exception(error))}")
    return unit.name


def _drain(
    pool: Executor,
    waiting: list[Unit],
    folder: Path,
    jobs: int,
    until: float,
    after: Callable[[Unit, float], None],
    failed: list[str],
) -> None:
    running: dict[Future[float], Unit] = {}
    try:
        while running or (waiting and time.monotonic() < until):
            while waiting and len(running) < jobs and time.monotonic() < until:
                future = pool.submit(work, folder, waiting[0])
                running[future] = waiting.pop(0)
            settled, _ = concurrent.futures.wait(
                running, return_when=concurrent.futures.FIRST_COMPLETED
            )
            for future in settled:
                unit, error = running.pop(future), future.exception()
                if isinstance(error, concurrent.futures.BrokenExecutor):
                    waiting.insert(0, unit)
                    raise error
                if isinstance(error, Exception):
                    failed.append(_failed(unit, error))
                else:
                    after(unit, future.result())
    except concurrent.futures.BrokenExecutor:
        waiting[:0] = running.values()
        raise


def say(text: str) -> None:
    """Write a line of progress to the standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
