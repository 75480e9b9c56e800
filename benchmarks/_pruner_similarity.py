"""What masks have in common: pairs of methods, and one method on two seeds."""

import itertools
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from _pruner_methods import DENSE, METHODS, Bench
from _pruner_results import read_csv, write_csv
from _pruner_settings import Setting
from _pruner_units import say, ticket_path

import dynprune as dp

COLUMNS = (
    "task",
    "density",
    "seed",
    "other_seed",
    "method",
    "other",
    "jaccard",
    "jaccard_chance",
    "overlap",
    "overlap_chance",
    "excess_overlap",
    "z",
    "input_correlation",
)
_KEYS = COLUMNS[:6]
Row = dict[str, Any]
Key = tuple[Any, ...]


def similarities(
    settings: Iterable[Setting],
    seeds: int,
    *,
    work: Path,
    folder: Path,
    blank: Collection[Key],
) -> list[Row]:
    """Return every pair that is known or can be measured, and write them.

    Pairs of one seed are of different methods; pairs of two seeds are of one method:
    what two draws of the initial weights and of the data order leave in common.

    Args:
        settings: The comparisons.
        seeds: Of each.
        work: Where the tickets lie.
        folder: Where ``similarity.csv`` lies; its pairs stay where tickets are gone.
        blank: Task, density, seed and method where a method finds nothing.

    Returns:
        One row per pair.
    """
    path = _path(folder)
    known = {tuple(row[key] for key in _KEYS): row for row in read_csv(path)}
    for setting in settings:
        for density in setting.alike:
            known |= _measured(setting, density, seeds, work, known, blank)
    rows = [known[key] for key in sorted(known)]
    if rows:
        write_csv(path, COLUMNS, rows)
    return rows


def seeds_to_compare(
    setting: Setting,
    seeds: int,
    *,
    methods: Iterable[str],
    folder: Path,
    blank: Collection[Key],
) -> list[int]:
    """Return the seeds of which some pair of methods is not known.

    Args:
        setting: The comparison.
        seeds: How many.
        methods: Names of methods.
        folder: Where ``similarity.csv`` lies.
        blank: Task, density, seed and method where a method finds nothing.
    """
    known = {tuple(row[key] for key in _KEYS) for row in read_csv(_path(folder))}
    wanted = [name for name in METHODS if name in set(methods) - {DENSE}]

    def lacks(density: float, seed: int) -> bool:
        head = (setting.task, density, seed)
        names = [name for name in wanted if (*head, name) not in blank]
        pairs = itertools.combinations(names, 2)
        return any((*head, seed, *pair) not in known for pair in pairs)

    return [
        seed
        for seed in range(seeds)
        if any(lacks(density, seed) for density in setting.alike)
    ]


def merge_pairs(folder: Path, other: Path) -> None:
    """Take the pairs of masks in that another machine compared.

    Masks of one seed are those of one machine, as the bits of training differ: of two
    sets of pairs the larger is kept, or the one that is here.
    """
    sets: dict[Key, dict[Key, Row]] = {}
    for place in (folder, other):
        found: dict[Key, dict[Key, Row]] = {}
        for row in read_csv(_path(place)):
            key = tuple(row[name] for name in _KEYS)
            found.setdefault(key[:4], {})[key] = row
        for group, rows in found.items():
            if len(rows) > len(sets.get(group, {})):
                sets[group] = rows
    known = {key: row for rows in sets.values() for key, row in rows.items()}
    if known:
        write_csv(_path(folder), COLUMNS, [known[key] for key in sorted(known)])


def _path(folder: Path) -> Path:
    return folder / "similarity.csv"


def _measured(
    setting: Setting,
    density: float,
    seeds: int,
    work: Path,
    known: Mapping[Key, Row],
    blank: Collection[Key],
) -> dict[Key, Row]:
    head, found, everything = (setting.task, density), {}, {}
    for seed in range(seeds):
        bench = Bench(setting, seed, work)
        paths = {
            name: ticket_path(work, bench, name, density)
            for name in METHODS
            if name != DENSE
        }
        everything[seed] = {name: path for name, path in paths.items() if path.exists()}
    names = set().union(*everything.values())
    for seed, paths in everything.items():
        # means over seeds are of the same methods: a seed that lacks some has to wait
        lacking = names - paths.keys()
        pairs = itertools.combinations(paths, 2)
        if any((*head, seed, name) not in blank for name in lacking) or all(
            (*head, seed, seed, a, b) in known for a, b in pairs
        ):
            continue
        say(f"masks of {setting.task}, density {density}, seed {seed}")
        found |= {
            (*head, seed, seed, a, b): row for (a, b), row in _compared(paths).items()
        }
    for one, other in itertools.combinations(everything, 2):
        for name in everything[one].keys() & everything[other].keys():
            key = (*head, one, other, name, name)
            if key not in known:
                two = {"a": everything[one][name], "b": everything[other][name]}
                found[key] = _compared(two)["a", "b"]
    return {key: dict(zip(_KEYS, key, strict=True)) | row for key, row in found.items()}


def _compared(paths: Mapping[str, Path]) -> dict[tuple[str, str], Row]:
    tickets = {name: dp.Ticket.load(path) for name, path in paths.items()}
    frame = dp.tickets.compare(tickets, shuffles=0).to_frame()
    first = next(iter(tickets.values())).mask_items[0][0]
    found: dict[tuple[str, str], Row] = {}
    for row in frame[frame.other != ""].itertuples():
        own = found.setdefault((row.ticket, row.other), {})
        if row.layer == "all" and row.measure == "jaccard":
            own |= {"jaccard": row.value, "jaccard_chance": row.null_mean}
        elif row.layer == "all" and row.measure == "overlap_coefficient":
            own |= {"overlap": row.value, "overlap_chance": row.null_mean}
        elif row.layer == "all" and row.measure == "excess_overlap":
            own |= {"excess_overlap": row.value, "z": row.z}
        elif row.layer == first and row.measure == "input_correlation":
            own["input_correlation"] = row.value
    return found
