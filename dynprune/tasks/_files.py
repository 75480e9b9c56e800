"""Where data files lie, what is in them, and how to get them on request."""

import hashlib
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from dynprune.core import InvalidInputError, write_atomic

VARIABLE = "DYNPRUNE_DATA"
_TIMEOUT = 60.0


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class KnownFile:
    """Name a published file.

    Args:
        name: Its name.
        sha256: Its checksum, 64 hexadecimal digits.
        size: Its length in bytes.
    """

    name: str
    sha256: str
    size: int


def cache_folder() -> Path:
    """Return the user's cache of dynprune.

    Returns:
        ``$XDG_CACHE_HOME/dynprune`` where that is an absolute path, otherwise
        ``~/.cache/dynprune``; on every platform.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):
        return Path(base) / "dynprune"
    return Path.home() / ".cache" / "dynprune"


def folders(task: str) -> tuple[Path, ...]:
    """Return where the files of a task are looked for, in this order.

    Args:
        task: Name of the task, also of its folder.

    Returns:
        ``$DYNPRUNE_DATA/<task>``, ``$DYNPRUNE_DATA``, and ``<task>`` in the cache.
    """
    data = os.environ.get(VARIABLE, "")
    named = (Path(data) / task, Path(data)) if data else ()
    return (*named, cache_folder() / task)


def read_known(task: str, files: Sequence[KnownFile]) -> dict[str, bytes]:
    """Read the files of a task and verify their checksums.

    A file is taken from the first folder that holds it undamaged.

    Args:
        task: Name of the task.
        files: What it needs.

    Returns:
        File name to content.

    Raises:
        InvalidInputError: If files are missing (says which, and where to put them),
            truncated, or of another checksum (says which was expected and found).
    """  # noqa: DOC501 - missing_error() makes it
    content: dict[str, bytes] = {}
    missing: list[str] = []
    for file in files:
        damage = []
        for folder in folders(task):
            path = folder / file.name
            if not path.is_file():
                continue
            raw = path.read_bytes()
            wrong = _mismatch(raw, file)
            if wrong is None:
                content[file.name] = raw
                break
            damage.append(f"{path} {wrong}")
        else:
            if damage:
                raise InvalidInputError(
                    f"{'; '.join(damage)}. Delete it and put the official file of "
                    f"{task!r} there, or get it with {_command(task)}."
                )
            missing.append(file.name)
    if missing:
        raise missing_error(task, missing)
    return content


def missing_error(task: str, names: Sequence[str]) -> InvalidInputError:
    """Return the error for missing files: which, where they were looked for, and how.

    Args:
        task: Name of the task.
        names: The missing files.

    Returns:
        The error, to be raised by the caller.
    """
    data = os.environ.get(VARIABLE, "")
    searched = ", ".join(str(folder) for folder in folders(task))
    note = f" ({VARIABLE} is not set)" if not data else ""
    if data and not Path(data).is_dir():
        note = f" ({VARIABLE} names {data}, which is no folder)"
    return InvalidInputError(
        f"The task {task!r} lacks {len(names)} file(s): {', '.join(names)}. Looked in "
        f"{searched}{note}. Put them into {folders(task)[0]}, or set {VARIABLE} to the "
        f"folder that holds {task}/, or get them with {_command(task)}."
    )


def fetch(task: str, files: Sequence[KnownFile], mirrors: Sequence[str]) -> Path:
    """Download the files of a task that are not there yet to the user's cache.

    Each is verified before it is written, and written whole or not at all.

    Args:
        task: Name of the task.
        files: What it needs.
        mirrors: Addresses ending in a slash, tried in this order.

    Returns:
        The folder.

    Raises:
        InvalidInputError: If no mirror gives the right file, or it cannot be written.
    """  # noqa: DOC502 - write_atomic() and _download() raise it
    target = cache_folder() / task
    for file in files:
        present = (folder / file.name for folder in folders(task))
        if any(
            path.is_file() and _mismatch(path.read_bytes(), file) is None
            for path in present
        ):
            continue
        write_atomic(target / file.name, _download(file, mirrors, target))
    return target


def digest_of(raw: bytes) -> str:
    """Return a checksum.

    Args:
        raw: Bytes.

    Returns:
        SHA-256, 64 hexadecimal digits.
    """
    return hashlib.sha256(raw).hexdigest()


def _download(file: KnownFile, mirrors: Sequence[str], target: Path) -> bytes:
    failures = []
    for mirror in mirrors:
        try:
            with urllib.request.urlopen(mirror + file.name, timeout=_TIMEOUT) as answer:
                raw: bytes = answer.read(file.size + 1)
        except (OSError, ValueError, urllib.error.URLError) as error:
            failures.append(f"{mirror}: {error}")
            continue
        wrong = _mismatch(raw, file)
        if wrong is None:
            return raw
        failures.append(f"{mirror}: {wrong}")
    raise InvalidInputError(
        f"Cannot download {file.name}: {'; '.join(failures)}. Get it by another way "
        f"and put it into {target}."
    )


def _mismatch(raw: bytes, file: KnownFile) -> str | None:
    if len(raw) < file.size:
        return (
            f"is truncated: {len(raw)} of {file.size} bytes (expected SHA-256 "
            f"{file.sha256}, found {digest_of(raw)})"
        )
    found = digest_of(raw)
    if found != file.sha256:
        return (
            f"has a wrong checksum: expected SHA-256 {file.sha256}, found {found} "
            f"({len(raw)} bytes)"
        )
    return None


def _command(task: str) -> str:
    return f"`dynprune study --task {task} --download` (dp.tasks.download({task!r}))"
