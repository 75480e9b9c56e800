"""The idx format of the MNIST family, gzip-compressed."""

import gzip
import math
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from dynprune.core import InvalidInputError

_UNSIGNED_BYTE = 8


def read_idx(raw: bytes, *, name: str, ndim: int) -> NDArray[np.uint8]:
    """Decode a gzip-compressed idx file of unsigned bytes.

    Two zero bytes, a byte for the type (8: unsigned byte), a byte for the number of
    dimensions, the sizes as big-endian 32-bit integers, then the entries row-major.

    Args:
        raw: Content of the .gz file.
        name: What to call it.
        ndim: Number of dimensions it must have.

    Returns:
        The array, read-only.

    Raises:
        InvalidInputError: If it is no gzip or idx file, of another type or number of
            dimensions, or shorter or longer than its header says.

    Source:
        LeCun, Cortes and Burges, *The MNIST database of handwritten digits*.

    Example:
        >>> header = bytes([0, 0, 8, 1, 0, 0, 0, 2])
        >>> read_idx(gzip.compress(header + bytes([7, 9])), name="toy", ndim=1).tolist()
        [7, 9]
    """
    try:
        plain = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidInputError(
            f"{name} is truncated or no gzip file ({error}). Get it again."
        ) from error
    start = 4 + 4 * ndim
    if plain[:4] != bytes([0, 0, _UNSIGNED_BYTE, ndim]) or len(plain) < start:
        raise InvalidInputError(
            f"{name} starts with the bytes {plain[:4].hex(' ') or 'none'}, expected "
            f"00 00 08 {ndim:02x} (idx, unsigned bytes, {ndim} dimensions). Get it "
            "again."
        )
    shape = struct.unpack(f">{ndim}I", plain[4:start])
    if len(plain) - start != math.prod(shape):
        raise InvalidInputError(
            f"{name} holds {len(plain) - start} entries, its header says {shape}, "
            f"which are {math.prod(shape)}. Get it again."
        )
    return np.frombuffer(plain, dtype=np.uint8, offset=start).reshape(shape)
