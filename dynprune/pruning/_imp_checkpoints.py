"""Where iterative magnitude pruning keeps the checkpoints of its levels."""

import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynprune.core import InvalidInputError

Folder = str | os.PathLike[str]


def check_checkpoints(folder: Any, **trainers: Callable[..., Any]) -> Path | None:
    """Refuse a folder that can hold no checkpoint, or trainers that keep none.

    Args:
        folder: As given, or None.
        **trainers: Argument of ``imp`` to what trains.

    Returns:
        The folder, or None.

    Raises:
        InvalidInputError: If it is no path or a file, or a trainer takes no
            ``checkpoint``.
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
    for name, train in trainers.items():
        taken = inspect.signature(train).parameters
        if "checkpoint" not in taken and not any(
            one.kind is inspect.Parameter.VAR_KEYWORD for one in taken.values()
        ):
            raise InvalidInputError(
                f"{name} takes no checkpoint=. Pass a Recipe, or a Trainer that hands "
                "checkpoint= on to dynprune.train; or leave checkpoints out."
            )
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
