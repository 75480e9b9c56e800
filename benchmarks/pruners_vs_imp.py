"""Compare pruners with IMP: accuracy, cost, and what their masks have in common.

    DYNPRUNE_DATA=../shared/data python benchmarks/pruners_vs_imp.py \
        benchmarks/results/pruners_vs_imp --tasks mnist fashion-mnist mnist-conv \
        --jobs 2 --minutes 60
    python benchmarks/pruners_vs_imp.py folder --quick

Every method of every group finds tickets of the same networks (three seeds) at the same
densities, and all tickets are trained by one recipe. What a unit (task, method, seed)
found lies in the work folder, so that a run may be killed and called again; rows that
the results folder already holds count as done. ``--minutes`` is the time after which no
unit starts (0 writes the report of what is there), and partial tables say what is
missing. ``--full mnist`` adds the recipe of the source, 50,000 steps, at 3 %;
``--sanity`` the sanity checks; ``--masks all`` finds the masks again whose tickets are
gone with an older work folder (``cheap``: of methods that do not train for them;
``missing``: of seeds that lack pairs in ``similarity.csv``).
``--tasks cifar10 --device cuda`` compares on ResNet-20.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from _pruner_methods import METHODS
from _pruner_report import write_report
from _pruner_results import Results
from _pruner_settings import SETTINGS, Setting, full, quick
from _pruner_similarity import merge_pairs, seeds_to_compare
from _pruner_units import (
    FULL,
    Unit,
    claim,
    find_masks,
    is_done,
    kept_rows,
    plan,
    run_units,
    say,
)
from _timing import environment

_WORK = Path("dynprune-benchmarks/pruners_vs_imp")


def described(device: str) -> str:
    """Say in words what computes."""
    place = environment(torch.device(device))
    return (
        f"{place['chip']}, {place['device']}, torch {place['torch']}, "
        f"Python {place['python']}"
    )


def settings_of(given: argparse.Namespace) -> list[Setting]:
    """Return the comparisons that were asked for."""
    found = [replace(SETTINGS[task], device=given.device) for task in given.tasks]
    return [quick(one) for one in found] if given.quick else found


def methods_of(given: argparse.Namespace) -> list[str]:
    """Return the methods that were asked for, without those of the full recipe only."""
    return [name for name in given.methods if not METHODS[name].full]


def units_of(given: argparse.Namespace) -> list[Unit]:
    """Return all units that were asked for, in order."""
    settings = settings_of(given)
    units = plan(settings, given.seeds, methods=methods_of(given), sanity=given.sanity)
    if given.full:
        names = [name for name in FULL if name in given.methods]
        long = [full(one) for one in settings if one.adam and one.task in given.full]
        units += plan(long, given.seeds, methods=names, sanity=False)
    return units


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, help="folder of the tables")
    parser.add_argument("--tasks", nargs="+", choices=SETTINGS, default=["mnist"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sanity", action="store_true", help="and sanity checks")
    parser.add_argument(
        "--full",
        nargs="+",
        choices=SETTINGS,
        default=[],
        metavar="TASK",
        help="tasks to train for 50,000 steps at 3 %% as well",
    )
    parser.add_argument(
        "--masks",
        choices=("cheap", "missing", "all"),
        help="and masks that the work folder lacks, untrained where that is enough",
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="worker processes; they share a GPU"
    )
    parser.add_argument(
        "--merge", type=Path, help="results folder of another machine to take in"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--work", type=Path, default=_WORK, help="folder of tickets")
    parser.add_argument("--quick", action="store_true", help="digits, seconds")
    given = parser.parse_args(arguments)
    if given.merge is not None and not (given.merge / "units.csv").exists():
        parser.error(f"--merge {given.merge}: there is no units.csv")
    return given


def main(arguments: list[str] | None = None) -> None:
    """Compute what is missing, and write the tables of all that is there."""
    given = parsed(arguments)
    until = time.monotonic() + 60.0 * given.minutes
    units = units_of(given)
    results = Results.read(given.target)
    if given.merge is not None:
        results.merge(Results.read(given.merge))
        merge_pairs(given.target, given.merge)
    for unit in units:
        claim(given.work, unit.setting)
        results.add(unit, kept_rows(given.work, unit))
    missing = [unit for unit in units if not is_done(unit, results.rows_of(unit))]

    words = [str(word) for word in (arguments or sys.argv[1:])]
    for name in ("--minutes", "--merge", "--work"):  # no part of what was found
        if name in words:
            place = words.index(name)
            words = words[:place] + words[place + 2 :]
    command = " ".join(["python", "benchmarks/pruners_vs_imp.py", *words])
    machine = described(given.device)

    def after(unit: Unit, seconds: float) -> None:
        results.made_on(unit.setting, machine=machine, command=command)
        results.add(unit, kept_rows(given.work, unit), seconds=seconds)
        results.write()
        left = sum(not is_done(one, results.rows_of(one)) for one in units)
        say(f"{unit.name} in {seconds:.0f} s; {left} units to go")

    failed = run_units(missing, given.work, jobs=given.jobs, until=until, after=after)
    if given.masks:
        for setting in settings_of(given):
            seeds = range(given.seeds)
            if given.masks == "missing":
                seeds = seeds_to_compare(
                    setting,
                    given.seeds,
                    methods=methods_of(given),
                    folder=results.folder,
                    blank=results.blank,
                )
            find_masks(
                given.work,
                setting,
                seeds,
                methods=methods_of(given),
                every=given.masks != "cheap",
                jobs=given.jobs,
            )
    say("similarity and tables")
    write_report(results, units, work=given.work, command=command)
    if failed:
        raise SystemExit(f"Failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
