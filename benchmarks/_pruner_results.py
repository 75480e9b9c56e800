"""The committed tables of the comparison: read, merged, written."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from _pruner_settings import Setting
from _pruner_units import Unit, replace_text

from dynprune.study._store import source_hash

_KEYS = ("task", "recipe", "method", "density", "seed")
COLUMNS = (
    "task",
    "recipe",
    "method",
    "group",
    "density",
    "seed",
    "test_accuracy",
    "validation_accuracy",
    "test_loss",
    "gradients",
    "forwards",
    "hvps",
    "steps",
    "kept",
    "prunable",
    "layer_densities",
    "note",
)
_CHECKS = (*_KEYS, "control", "test_accuracy", "drop")
_TEXT = {
    "task",
    "recipe",
    "method",
    "other",
    "group",
    "layer_densities",
    "note",
    "control",
}
_WHOLE = {"seed", "other_seed", "steps", "kept", "prunable"}


@final
@dataclass(kw_only=True, eq=False, slots=True)
class Results:
    """Hold the rows of the results folder; new ones take the place of old ones.

    Args:
        folder: Where they lie.
        rows: Of tickets, by task, recipe, method, density and seed.
        checks: Of sanity checks, by the same and the control.
        provenance: Settings and machines by task and recipe, seconds by unit, and the
            digests of the package source that computed them.
    """

    folder: Path
    rows: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)
    checks: dict[tuple[Any, ...], dict[str, Any]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def blank(self) -> set[tuple[Any, ...]]:
        """Task, density, seed and method where a method found nothing."""
        return {
            (row["task"], row["density"], row["seed"], row["method"])
            for row in self.rows.values()
            if row["recipe"] != "full" and "kept" not in row
        }

    @staticmethod
    def read(folder: Path) -> "Results":
        """Read what a folder holds; nothing of one that is not there."""
        found = Results(folder=folder)
        found.rows = _keyed(read_csv(folder / "units.csv"), _KEYS)
        found.checks = _keyed(read_csv(folder / "sanity.csv"), (*_KEYS, "control"))
        path = folder / "provenance.json"
        found.provenance = json.loads(path.read_text()) if path.exists() else {}
        found.provenance.setdefault("settings", {})
        found.provenance.setdefault("seconds", {})
        found.provenance.setdefault("machines", {})
        found.provenance.setdefault("package_source", [])
        return found

    def add(
        self,
        unit: Unit,
        rows: Iterable[dict[str, Any]],
        *,
        seconds: float | None = None,
    ) -> None:
        """Take rows of a unit in, and its seconds to those it already took.

        Raises:
            SystemExit: If the folder holds rows that other settings made.
        """
        name = f"{unit.setting.task}-{unit.setting.recipe}"
        known = self.provenance["settings"].setdefault(name, unit.setting.plain())
        if Setting.of(known) != unit.setting:
            raise SystemExit(
                f"{self.folder} holds rows of {name} that other settings made. Name "
                "another folder."
            )
        if unit.kind == "sanity":
            self.checks |= _keyed(rows, (*_KEYS, "control"))
        else:
            self.rows |= _keyed(rows, _KEYS)
        if seconds is not None:
            sources = {*self.provenance["package_source"], source_hash()}
            self.provenance["package_source"] = sorted(sources)
            spent = self.provenance["seconds"].get(unit.name, 0.0)
            self.provenance["seconds"][unit.name] = round(spent + seconds, 1)

    def made_on(self, setting: Setting, *, machine: str, command: str) -> None:
        """Note where rows of a setting come from, and what command made them."""
        name = f"{setting.task}-{setting.recipe}"
        self.provenance["machines"].setdefault(name, {})[machine] = command

    def merge(self, other: "Results") -> None:
        """Take in what another machine found; not its pairs of masks.

        Raises:
            SystemExit: If it was made by other settings.
        """
        for name, plain in other.provenance["settings"].items():
            known = self.provenance["settings"].setdefault(name, plain)
            if Setting.of(known) != Setting.of(plain):
                raise SystemExit(f"{other.folder} holds {name} by other settings.")
        self.rows |= other.rows
        self.checks |= other.checks
        self.provenance["seconds"] |= other.provenance["seconds"]
        for name, found in other.provenance["machines"].items():
            self.provenance["machines"].setdefault(name, {}).update(found)
        sources = {
            *self.provenance["package_source"],
            *other.provenance["package_source"],
        }
        self.provenance["package_source"] = sorted(sources)

    def rows_of(self, unit: Unit) -> list[dict[str, Any]]:
        """Return the rows of a unit."""
        own = (unit.setting.task, unit.setting.recipe, unit.method)
        source = self.checks if unit.kind == "sanity" else self.rows
        rows = [row for key, row in source.items() if key[:3] == own]
        rows = [row for row in rows if row["seed"] in unit.seeds]
        whole = {row["seed"] for row in rows} == set(unit.seeds)
        return rows if whole else []

    def write(self) -> None:
        """Write the tables."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name, columns, source in (
            ("units.csv", COLUMNS, self.rows),
            ("sanity.csv", _CHECKS, self.checks),
        ):
            if source:
                write_csv(self.folder / name, columns, source.values())
        text = json.dumps(self.provenance, indent=1, sort_keys=True)
        replace_text(self.folder / "provenance.json", text + "\n")


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Read rows; numbers are numbers, and empty cells are not there."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            {key: _cell(key, value) for key, value in row.items() if value != ""}
            for row in csv.DictReader(file)
        ]


def write_csv(
    path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]
) -> None:
    """Write rows; floats with nine digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({
            key: f"{value:.9g}" if isinstance(value, float) else value
            for key, value in row.items()
        })
    replace_text(path, text.getvalue())


def _keyed(
    rows: Iterable[dict[str, Any]], keys: Iterable[str]
) -> dict[tuple[Any, ...], dict[str, Any]]:
    return {tuple(row[key] for key in keys): dict(row) for row in rows}


def _cell(key: str, value: str) -> Any:
    if key in _TEXT:
        return value
    return int(value) if key in _WHOLE else float(value)
