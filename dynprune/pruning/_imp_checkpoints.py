"""Where iterative magnitude pruning keeps the checkpoints of its levels."""

import os
from pathlib import Path
from typing import Any

from dynprune.core import InvalidInputError

Folder = str | os.PathLike[str]


def check_checkpoints(folder: Any) -> Path | None:
    """Refuse a folder that can hold no checkpoint.

    Args:
        folder: As given, or None.

    Returns:
        The folder, or None.

    Raises:
        InvalidInputError: If it is no path, or a file.
    """
    if folder is None:
        return None
    if not isinstance(folder, str | os.PathLike):
        raise InvalidInputError(
            f"checkpoints is {folder!r}. Pass a folder, which is made if missing."
        )
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise InvalidInputError(f"{path} is a file. Pass a folder for checkpoints.")
    return path


def kept_at(folder: Path | None, name: str) -> dict[str, Any]:
    """Return what a trainer is told of its checkpoint.

    Args:
        folder: Of all checkpoints, or None.
        name: Of this training.

    Returns:
        Keyword arguments, none without a folder.
    """
    return {} if folder is None else {"checkpoint": folder / f"{name}.safetensors"}
