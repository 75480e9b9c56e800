"""Numeric arrays of an .npz file, nothing else."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynprune.core import InvalidInputError


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """Read all arrays of an .npz file; Python objects are refused.

    Args:
        path: The file.

    Returns:
        Name to array.

    Raises:
        InvalidInputError: If it is missing, truncated, no .npz, or holds objects.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(
            f"No file {path} can be read ({error.strerror}). Check the path."
        ) from error
    try:
        # np.load would take the .npy of one array too; the zip archive says no.
        with (
            zipfile.ZipFile(io.BytesIO(raw)),
            np.load(io.BytesIO(raw), allow_pickle=False) as arrays,
        ):
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidInputError(
            f"{path} is truncated, no .npz file, or holds Python objects ({error}). "
            "Save numeric arrays with numpy.savez."
        ) from error
