"""The folder of a study: what is in it, whose it is, what is still missing."""

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import tomli_w
import torch

from dynprune.core import InvalidInputError, files as core_files, write_atomic
from dynprune.study._config import Config, read_config

PROVENANCE = "provenance.json"
_OURS = (
    "config.toml",
    PROVENANCE,
    "results.csv",
    "timings.csv",
    "ledger.csv",
    "report.html",
    "tickets",
    "units",
)


def source_hash() -> str:
    """Return the SHA-256 of the package's Python source, in file order.

    Returns:
        Hexadecimal digest.
    """
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def fingerprint(config: Config, data: str) -> dict[str, str]:
    """Say what the numbers of a study depend on.

    Args:
        config: The config.
        data: The problem's fingerprint: its data and its model.

    Returns:
        Name of the dependency to its digest or version.
    """
    return {
        "config": hashlib.sha256(tomli_w.dumps(config.to_dict()).encode()).hexdigest(),
        "data": data,
        "package source": source_hash(),
        "torch version": torch.__version__,
    }


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """Read and write the files of one study.

    A unit is done when its JSON file, which is renamed into place last, is there and
    every file it lists has the bytes it lists.

    Args:
        folder: The study's folder.
    """

    folder: Path

    def unit_file(self, name: str) -> Path:
        """Return where a unit's JSON lies.

        Args:
            name: The unit.

        Returns:
            Its path.
        """
        return self.folder / "units" / f"{name}.json"

    def read_unit(self, name: str) -> dict[str, Any] | None:
        """Return what a unit left, or None if it is not done.

        Args:
            name: The unit.

        Returns:
            Its rows, facts and seconds.
        """
        path = self.unit_file(name)
        try:
            unit: dict[str, Any] = json.loads(path.read_text())
            whole = all(
                _digest(self.folder / file) == digest
                for file, digest in unit["files"].items()
            )
        except (OSError, ValueError, KeyError):
            return None
        return unit if whole else None

    def write_unit(
        self, name: str, content: Mapping[str, Any], files: tuple[Path, ...]
    ) -> None:
        """Mark a unit done, after its files.

        Args:
            name: The unit.
            content: JSON-serialisable rows, facts and seconds.
            files: Files of this study's folder that belong to it.
        """
        listed = {
            path.relative_to(self.folder).as_posix(): _digest(path) for path in files
        }
        text = json.dumps({**content, "files": listed}, sort_keys=True)
        write_atomic(self.unit_file(name), text)

    def write(self, name: str, text: str) -> Path:
        """Write one of the study's own files, atomically.

        Args:
            name: Its name in the folder.
            text: Its content.

        Returns:
            Its path.
        """
        write_atomic(self.folder / name, text)
        return self.folder / name

    def read_provenance(self) -> dict[str, Any] | None:
        """Return provenance.json, or None if there is none.

        Returns:
            Its content.

        Raises:
            InvalidInputError: If it is damaged.
        """
        path = self.folder / PROVENANCE
        if not path.exists():
            return None
        try:
            content: dict[str, Any] = json.loads(path.read_text())
            content["fingerprint"]["config"]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInputError(
                f"{path} is damaged ({error}). Move the folder away and run again."
            ) from error
        return content


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder, so that no second study writes to it.

    Args:
        folder: The study's folder; made if missing.

    Yields:
        Nothing.

    Raises:
        InvalidInputError: If another process holds it, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / ".lock", "w")  # noqa: SIM115 - held to the end
    except OSError as error:
        raise InvalidInputError(
            f"Cannot write to {folder}: {error.strerror}. Choose another --out."
        ) from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InvalidInputError(
                f"Another dynprune study is writing to {folder}. Wait for it, or "
                "choose another --out."
            ) from error
        yield


def claim(
    store: Store, config: Config, wanted: Mapping[str, str]
) -> tuple[bool, tuple[str, ...]]:
    """Make a folder this study's own, keeping what it holds.

    Args:
        store: The folder.
        config: The study's config.
        wanted: Its fingerprint.

    Returns:
        Whether the study is complete already, and what to tell the user.

    Raises:
        InvalidInputError: If the folder holds another config's study or other files.
    """
    found = store.read_provenance()
    if found is None:
        _refuse_strangers(store.folder)
        _sweep(store.folder)
        _begin(store, config, wanted)
        return False, ()
    changed = [
        key for key, value in wanted.items() if found["fingerprint"][key] != value
    ]
    if "config" in changed:
        apart = difference(store.folder / "config.toml", config)
        raise InvalidInputError(
            f"{store.folder} holds a study of another config ({apart}). Choose another "
            "--out; nothing was changed."
        )
    if changed:
        aside = _set_aside(store.folder)
        _begin(store, config, wanted)
        return False, (
            f"The {' and the '.join(changed)} changed since {store.folder} was "
            f"made: computing it again; the old files are in {aside}.",
        )
    _sweep(store.folder)
    return bool(found.get("complete")), ()


def difference(path: Path, config: Config) -> str:
    """Say in which keys a written config differs.

    Args:
        path: A config.toml.
        config: Another config.

    Returns:
        ``key is value there, value here`` for each, separated by semicolons.
    """
    try:
        other = read_config(path).to_dict()
    except InvalidInputError:
        return "its config.toml cannot be read"
    return "; ".join(
        f"{key} is {other[key]!r} there, {value!r} here"
        for key, value in config.to_dict().items()
        if other[key] != value
    )


def _begin(store: Store, config: Config, wanted: Mapping[str, str]) -> None:
    store.write("config.toml", tomli_w.dumps(config.to_dict()))
    store.write(
        PROVENANCE,
        json.dumps({"fingerprint": dict(wanted), "complete": False}, sort_keys=True),
    )


def _refuse_strangers(folder: Path) -> None:
    strangers = [
        path.name
        for path in folder.iterdir()
        if path.name not in {".lock", "config.toml"}
        and not path.name.startswith("superseded-")
        and not (path.name.startswith(".") and path.name.endswith(".tmp"))
    ]
    if strangers:
        raise InvalidInputError(
            f"{folder} is not empty and holds no study ({', '.join(strangers[:3])}). "
            "Choose another --out; nothing was changed."
        )


def _sweep(folder: Path) -> None:
    for stale in folder.rglob(".*.tmp"):  # left by a run that was killed
        stale.unlink(missing_ok=True)


def _set_aside(folder: Path) -> Path:
    number = 1
    while (folder / f"superseded-{number}").exists():
        number += 1
    aside = folder / f"superseded-{number}"
    aside.mkdir()
    # provenance.json goes last: until then the study is still seen as the old one
    for name in sorted(_OURS, key=lambda name: name == PROVENANCE):
        if (folder / name).exists():
            core_files.replace(folder / name, aside / name)
    return aside


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
