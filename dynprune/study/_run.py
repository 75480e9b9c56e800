"""Run a study: units, tables, ledger, report, and what to tell the user."""

import functools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch

from dynprune._version import __version__
from dynprune.core import InvalidInputError, process_pool
from dynprune.study._collect import (
    LEDGER_COLUMNS,
    RESULT_COLUMNS,
    TIMING_COLUMNS,
    failures,
    findings_of,
    result_rows,
    to_csv,
)
from dynprune.study._config import Config, read_config
from dynprune.study._findings import Findings, LedgerLine
from dynprune.study._ledger import ledger, summary
from dynprune.study._report import write_report
from dynprune.study._report_text import what_was_found
from dynprune.study._scheduler import Unit, run_units
from dynprune.study._store import (
    PROVENANCE,
    Store,
    claim,
    difference,
    fingerprint,
    locked,
)
from dynprune.study.units._door import check_problem
from dynprune.study.units._setup import problem_of
from dynprune.study.units._units import compute, units_of
from dynprune.tasks import Problem

if TYPE_CHECKING:
    import pandas as pd

Say = Callable[[str], None]


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Study:
    """A finished study.

    Args:
        folder: Where its files are.
        findings: What was measured.
        ledger: Each claim next to what was measured.
        failures: Units that could not be computed, with the reason.
        computed: Number of units that this call computed; 0 if nothing was to do.
    """

    folder: Path
    findings: Findings
    ledger: tuple[LedgerLine, ...]
    failures: Mapping[str, str]
    computed: int

    @property
    def config(self) -> Config:
        """The study's config."""
        return self.findings.config

    def to_frame(self) -> "pd.DataFrame":
        """Return the tidy results, one row per method, density and seed."""
        return self.findings.results.copy()

    def summary(self) -> str:
        """Return what was found and where the files are, as a person reads it."""
        lines = ["", "What was found"]
        lines += [f"- {line}" for line in what_was_found(self.findings, self.ledger)]
        lines += ["", "Ledger (verdict, claim, measured [95 %])", summary(self.ledger)]
        lines += [f"not computed: {name}: {why}" for name, why in self.failures.items()]
        lines += ["", f"report   {self.folder / 'report.html'}"]
        lines += [f"results  {self.folder / 'results.csv'}"]
        lines += [f"tickets  {self.folder / 'tickets'}"]
        return "\n".join(lines)


def run(
    config: Config | None = None,
    problem: Problem | None = None,
    *,
    out: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    executor: Callable[[], Executor] | None = None,
    progress: bool = False,
    say: Say | None = None,
) -> Study:
    """Run every theory and pruner of a config on one problem, and keep the ledger.

    The study is a set of independent units, each with seeds of its own and one
    thread. A unit's files are written atomically: a study that was killed goes on
    where it was, to the same bytes, when the same call is made again.

    Args:
        config: What to run; the default study if None.
        problem: A problem of one's own; the config's task if None.
        out: The study's folder; ``dynprune-studies/<task>-<digest of config>`` if
            None.
        jobs: Number of processes; all cores if None. No number depends on it.
        executor: Makes a ``concurrent.futures`` executor to use instead.
        progress: Draw one progress bar with the time left.
        say: Called with what a user should know; silent if None.

    Returns:
        The finished study.

    Raises:
        InvalidInputError: If the folder belongs to another study, the task's files
            are missing, or the disk is full.

    Cost:
        One training for each (method, density, seed), the analyses aside.
    """
    config = config or Config()
    _check_device(config)
    if jobs is not None and jobs < 1:
        raise InvalidInputError(f"jobs is {jobs}; use at least 1.")
    problem_made = problem or problem_of(config)
    check_problem(problem_made, config)
    wanted = fingerprint(config, problem_made.fingerprint())
    store = Store(folder=Path(out) if out else default_folder(config))
    say = say or _silent
    if out is None and not store.folder.exists():
        _say_what_changed(store.folder, config, say)
    with locked(store.folder):
        complete, news = claim(store, config, wanted)
        for line in news:
            say(line)
        units = units_of(config)
        done = {unit.name for unit in units if store.read_unit(unit.name) is not None}
        missing = [unit for unit in units if unit.name not in done]
        settled = complete and not missing and _all_files(store)
        if settled:
            say(f"Nothing to do: {store.folder} holds this study, complete.")
        else:
            if done:
                say(f"{len(done)} of {len(units)} units are done already.")
            _compute(
                config, problem, store, units, done, jobs, executor, progress=progress
            )
        findings = findings_of(store, config, units, problem_made)
        lines = ledger(findings)
        if not settled:
            finish(store, findings, lines, units, wanted)
    return Study(
        folder=store.folder,
        findings=findings,
        ledger=lines,
        failures=failures(store, units),
        computed=len(missing),
    )


def report(folder: str | os.PathLike[str], problem: Problem | None = None) -> Path:
    """Build the ledger and the report of a finished study again.

    Args:
        folder: The study's folder.
        problem: The problem, where it was one's own.

    Returns:
        The report's path.

    Raises:
        InvalidInputError: If the folder holds no study, or units are missing.
    """
    store = Store(folder=Path(folder))
    if not store.folder.is_dir() or store.read_provenance() is None:
        raise InvalidInputError(
            f"{folder} holds no dynprune study. Pass the folder that `dynprune study` "
            "printed."
        )
    config = read_config(store.folder / "config.toml")
    units = units_of(config)
    missing = [unit.name for unit in units if store.read_unit(unit.name) is None]
    if missing:
        raise InvalidInputError(
            f"{len(missing)} of {len(units)} units of {folder} are missing or damaged "
            f"({', '.join(missing[:3])} …). Run `dynprune study` with its config first."
        )
    with locked(store.folder):
        before = store.read_provenance() or {}
        findings = findings_of(store, config, units, problem or problem_of(config))
        finish(store, findings, ledger(findings), units, before["fingerprint"])
    return store.folder / "report.html"


def default_folder(config: Config) -> Path:
    """Return the folder of a config, under the current one.

    Args:
        config: The config.

    Returns:
        ``dynprune-studies/<task>-<8 digits of the config's digest>``.
    """
    digest = fingerprint(config, "")["config"][:8]
    return Path("dynprune-studies") / f"{config.task}-{digest}"


def finish(
    store: Store,
    findings: Findings,
    lines: tuple[LedgerLine, ...],
    units: tuple[Unit, ...],
    wanted: Mapping[str, str],
) -> None:
    """Write tables, ledger and report from finished units.

    Args:
        store: The study's folder.
        findings: What was measured.
        lines: Its ledger.
        units: The study's units, all done.
        wanted: The study's fingerprint.
    """
    timings = [
        {"unit": unit.name, "kind": unit.kind, "seed": unit.seed}
        | (store.read_unit(unit.name) or {}).get("timing", {})
        for unit in units
    ]
    store.write("results.csv", to_csv(result_rows(store, units), RESULT_COLUMNS))
    store.write("timings.csv", to_csv(timings, TIMING_COLUMNS))
    rows = [
        {column: getattr(line, column, None) for column in LEDGER_COLUMNS}
        | {"low": line.interval[0], "high": line.interval[1]}
        for line in lines
    ]
    store.write("ledger.csv", to_csv(rows, LEDGER_COLUMNS))
    provenance = _provenance(findings.config, wanted)
    store.write(
        "report.html",
        write_report(findings, lines, timings=timings, provenance=provenance),
    )
    store.write(PROVENANCE, json.dumps(provenance, sort_keys=True, indent=1))


def _compute(
    config: Config,
    problem: Problem | None,
    store: Store,
    units: tuple[Unit, ...],
    done: set[str],
    jobs: int | None,
    executor: Callable[[], Executor] | None,
    *,
    progress: bool,
) -> None:
    import loky
    from tqdm import tqdm

    jobs = jobs or int(loky.cpu_count())
    wanted = [unit for unit in units if unit.name not in done]
    with tqdm(
        total=round(sum(unit.weight for unit in wanted)),
        desc=f"study of {config.task}",
        unit="step",
        unit_scale=True,
        disable=not progress,
        file=sys.stderr,
        smoothing=0.05,
    ) as bar:
        run_units(
            units,
            functools.partial(
                compute, config=config, folder=store.folder.resolve(), problem=problem
            ),
            done=done,
            make_executor=executor
            or functools.partial(process_pool, min(jobs, max(1, len(wanted)))),
            on_done=lambda unit: _advance(bar, unit),
        )


def _advance(bar: Any, unit: Unit) -> None:
    bar.update(round(unit.weight))


def _all_files(store: Store) -> bool:
    names = ("results.csv", "timings.csv", "ledger.csv", "report.html", "config.toml")
    return all((store.folder / name).exists() for name in names)


def _provenance(config: Config, wanted: Mapping[str, str]) -> dict[str, Any]:
    return {
        "fingerprint": dict(wanted),
        "complete": True,
        "versions": {
            "dynprune": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "device": config.device,
        "host": platform.machine(),
        "system": platform.system(),
        "threads_per_unit": 1,
        "finished": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _check_device(config: Config) -> None:
    kind, _, index = config.device.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError(
            f"Device {config.device!r} was asked for, but torch sees no CUDA device. "
            "Use --device cpu, or install a CUDA build of torch."
        )
    if kind == "cuda" and index and int(index) >= torch.cuda.device_count():
        raise InvalidInputError(
            f"Device {config.device!r} was asked for, but torch sees "
            f"{torch.cuda.device_count()} CUDA device(s), counted from 0. Use one of "
            "those."
        )


def _say_what_changed(folder: Path, config: Config, say: Say) -> None:
    """Name what differs from the newest study of the task in the default place."""
    others = sorted(
        folder.parent.glob(f"{config.task}-*/config.toml"),
        key=lambda path: path.stat().st_mtime,
    )
    if others:
        say(
            f"The config differs from that of {others[-1].parent} "
            f"({difference(others[-1], config)}): computing in {folder}."
        )


def _silent(line: str) -> None:
    del line
