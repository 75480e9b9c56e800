"""Files that are whole or absent: temporary file, fsync, rename."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as _encode

from dynprune.core.errors import DynPruneError, InvalidInputError

_KEY = "dynprune"
_Result = TypeVar("_Result")
Packed = tuple[dict[str, torch.Tensor], dict[str, Any]]


def replace(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Rename ``source`` to ``target`` atomically; every rename goes through here.

    Args:
        source: The finished temporary file.
        target: Its final name, on the same file system.
    """
    os.replace(source, target)


def write_atomic(path: str | os.PathLike[str], data: bytes | str) -> None:
    """Write a file so that a reader finds all of it or the old one.

    The bytes go to a temporary file beside ``path``, are synced to disk and renamed.

    Args:
        path: Where the file shall be; its folder is made if missing.
        data: The content; text is encoded as UTF-8.

    Raises:
        InvalidInputError: If the disk is full or the folder cannot be written; no
            half file is left.
    """
    path = Path(path)
    raw = data.encode() if isinstance(data, str) else data
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        with os.fdopen(handle, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        replace(temporary, path)
        temporary = None
        _sync_folder(path.parent)
    except OSError as error:
        raise InvalidInputError(
            f"Cannot write {path}: {error.strerror or error}. Free some space, or "
            "choose another folder; what was there before is unchanged."
        ) from error
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_tensors(
    path: str | os.PathLike[str],
    tensors: dict[str, torch.Tensor],
    metadata: dict[str, Any],
) -> None:
    """Write named tensors and JSON metadata to one safetensors file, atomically.

    The same tensors and metadata give the same bytes. Complex tensors are refused:
    store ``torch.view_as_real`` of them.

    Args:
        path: Where the file shall be.
        tensors: Name to tensor, any device; moved to the CPU and made contiguous.
        metadata: JSON-serialisable; kept under one key, sorted.
    """
    flat = {
        name: tensor.detach().to("cpu").contiguous().clone()
        for name, tensor in tensors.items()
    }
    text = json.dumps(metadata, sort_keys=True)
    write_atomic(path, _encode(flat, metadata={_KEY: text}))


def load_tensors(
    path: str | os.PathLike[str],
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what ``save_tensors`` wrote.

    Args:
        path: The file.

    Returns:
        The tensors by name, on the CPU, and the metadata.

    Raises:
        InvalidInputError: If the file is missing, truncated, damaged or not ours.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            raw = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise InvalidInputError(f"No file {path}. Check the path.") from error
    except (SafetensorError, OSError) as error:
        raise InvalidInputError(
            f"{path} is truncated or not a safetensors file ({error}). Make it again, "
            "or take it from a backup; dynprune never writes half a file."
        ) from error
    if raw is None:
        raise InvalidInputError(
            f"{path} is a safetensors file without dynprune's metadata. Load it with "
            "safetensors itself, or pass a file that dynprune saved."
        )
    try:
        metadata = json.loads(raw)
    except ValueError as error:
        raise InvalidInputError(
            f"{path} has damaged metadata ({error}). Make it again, or take it from a "
            "backup."
        ) from error
    if not isinstance(metadata, dict):
        raise InvalidInputError(
            f"{path} has damaged metadata (a {type(metadata).__name__}, not names and "
            "values). Make it again, or take it from a backup."
        )
    return tensors, metadata


def load_result(
    path: str | os.PathLike[str],
    kind: str,
    unpack: Callable[[dict[str, torch.Tensor], dict[str, Any]], _Result],
    *,
    what: str,
    writer: str,
) -> _Result:
    """Read a result of one kind, whose metadata say ``kind``.

    Args:
        path: The file.
        kind: What it shall be.
        unpack: Makes the result of tensors and metadata.
        what: The result in words, with its article.
        writer: What writes such files.

    Returns:
        The result.

    Raises:
        DynPruneError: What ``unpack`` raises itself.
        InvalidInputError: If the file is missing, truncated, of another kind, or lacks
            a part.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("kind") != kind:
        raise InvalidInputError(
            f"{path} holds {metadata.get('kind', 'something else')!r}, not {what}. "
            f"Pass a file that {writer} wrote."
        )
    try:
        return unpack(tensors, metadata)
    except DynPruneError:  # which says what is wrong
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InvalidInputError(
            f"{path} lacks part of {what} ({error}). Make it again with this version "
            "of dynprune."
        ) from error


def join_parts(parts: Mapping[str, Packed]) -> Packed:
    """Put the tensors and metadata of several results into one file's.

    Args:
        parts: Name to tensors and metadata.

    Returns:
        Tensors and metadata of all; :func:`part_of` takes them apart.
    """
    tensors = {
        f"{name}.{key}": tensor
        for name, (own, _) in parts.items()
        for key, tensor in own.items()
    }
    return tensors, {"parts": {name: own for name, (_, own) in parts.items()}}


def part_of(
    tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, Any], name: str
) -> Packed:
    """Return what :func:`join_parts` was given for one part.

    Args:
        tensors: Of all.
        metadata: Of all.
        name: Of the part.

    Returns:
        Its tensors and metadata.
    """
    start = f"{name}."
    own = {
        key.removeprefix(start): tensor
        for key, tensor in tensors.items()
        if key.startswith(start)
    }
    return own, metadata["parts"][name]
