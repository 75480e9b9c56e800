"""CIFAR-10 from its python batches, its binary batches, or an .npz of JPEG bytes."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynprune.core import InvalidInputError
from dynprune.tasks._arrays import read_npz
from dynprune.tasks._files import VARIABLE, cache_folder, digest_of
from dynprune.tasks._images import Labelled, classification, scaled
from dynprune.tasks._model_names import MakeModel
from dynprune.tasks._problem import Problem
from dynprune.tasks._python_batches import read_plain
from dynprune.tasks._split import stratified_split

CIFAR10_ADDRESS = "https://www.cs.toronto.edu/~kriz/cifar.html"
_VALIDATION = 5000
_MODEL = "resnet:20:16"
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_SHAPE = (3, 32, 32)
_PIXELS = 3072
_BINARY_RECORDS = 10_000
_PYTHON, _BINARY = "cifar-10-batches-py", "cifar-10-batches-bin"
_JPEG = "cifar10_jpeg75.npz"
_JPEG_SHA256 = "fdef8a4f8ffc8d30250e96c70293706a31eeb1af139bf284db10b42d65dca644"
# MD5 as published with the data set; they detect damage, not malice, and the reader
# executes nothing in any case.
_PYTHON_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}


def cifar10(
    model: str | MakeModel | None = None, *, path: str | os.PathLike[str] | None = None
) -> Problem:
    r"""Classify the 32×32 colour images of CIFAR-10.

    5,000 of the 50,000 training images are the validation split, with the class
    shares of all; the choice and the shuffled order are fixed, whatever the seed.
    Pixels of channel c become :math:`x = (p / 255 - m_c) / s_c`. There is no
    augmentation: give ``dp.train`` a loader of your own for that.

    Read is the first found of ``cifar-10-batches-py``, ``cifar-10-batches-bin`` and
    ``cifar10_jpeg75.npz`` in ``$DYNPRUNE_DATA``, its subfolders ``cifar10`` and
    ``cifar10-jpeg75``, and ``cifar10`` in the user's cache. The .npz holds *lossy*
    copies: arrays ``train_jpeg`` (concatenated files), ``train_offsets`` (n + 1),
    ``train_labels`` and the same for ``test``; the problem is then named
    "CIFAR-10 (JPEG-75 copy)".

    Args:
        model: Name of a model, see ``tasks.model_maker``, or ``seed -> module``; None
            for ResNet-20 of width 16.
        path: One of the two folders, a folder that holds one, or an .npz; None to
            search.

    Returns:
        The problem: x of shape ``(N, 3, 32, 32)`` float32, y of shape ``(N,)`` int64.

    Raises:
        InvalidInputError: If nothing is found, or a file is truncated, damaged, or of
            another checksum.

    Cost:
        About 1 GB of memory; 10 s for the JPEG copy, 2 s otherwise.

    Source:
        Krizhevsky, *Learning multiple layers of features from tiny images*, 2009.
    """  # noqa: DOC502 - raised by the readers
    source = locate_cifar10(path)
    lossy = source.suffix == ".npz"
    train, test = _read_jpeg(source) if lossy else _read_folder(source)
    size = min(_VALIDATION, len(train.labels) // 2)
    held, kept = stratified_split(train.labels, size, salt=4)
    return classification(
        name="CIFAR-10 (JPEG-75 copy)" if lossy else "CIFAR-10",
        task="cifar10",
        splits=[
            scaled(part, white=255.0, mean=_MEAN, std=_STD, flat=False)
            for part in (train.take(kept), train.take(held), test)
        ],
        image=_SHAPE,
        model=model or _MODEL,
        options=() if path is None else (("path", os.fspath(Path(path).resolve())),),
    )


def locate_cifar10(path: str | os.PathLike[str] | None = None) -> Path:
    """Find the CIFAR-10 files.

    Args:
        path: As for :func:`cifar10`.

    Returns:
        A folder of batches, or an .npz.

    Raises:
        InvalidInputError: If there is nothing there; says what to put where.
    """
    data = os.environ.get(VARIABLE, "")
    roots = [Path(path)] if path is not None else []
    if path is None and data:
        roots += [Path(data), Path(data) / "cifar10", Path(data) / "cifar10-jpeg75"]
    if path is None:
        roots.append(cache_folder() / "cifar10")
    for root in roots:
        if root.suffix == ".npz" and root.is_file():
            return root
        if any((root / name).exists() for name in ("test_batch", "test_batch.bin")):
            return root
        for name in (_PYTHON, _BINARY, _JPEG):
            if (root / name).exists():
                return root / name
    note = "" if data or path is not None else f" ({VARIABLE} is not set)"
    raise InvalidInputError(
        f"No CIFAR-10 in {', '.join(map(str, roots))}{note}. Get the python or binary "
        f"version from {CIFAR10_ADDRESS} and unpack it, so that "
        f"{roots[-1] / _PYTHON}/data_batch_1 (to _5) and test_batch exist, or set "
        f"{VARIABLE} to the folder that holds {_PYTHON}, {_BINARY} or {_JPEG}."
    )


def read_python_batch(raw: bytes, *, name: str) -> Labelled:
    """Decode one python batch: ``data`` (n, 3072) and ``labels``.

    Args:
        raw: Content of the file.
        name: What to call it.

    Returns:
        The images.

    Raises:
        InvalidInputError: If it is damaged or holds anything else.
    """
    value = read_plain(raw, name=name)
    found = (
        {
            key.decode("latin-1") if isinstance(key, bytes) else key: item
            for key, item in value.items()
        }
        if isinstance(value, dict)
        else {}
    )
    data, labels = found.get("data"), found.get("labels")
    if (
        not isinstance(data, np.ndarray)
        or data.dtype != np.uint8
        or data.shape[1:] != (_PIXELS,)
        or not isinstance(labels, list)
        or not all(type(label) is int for label in labels)
    ):
        raise InvalidInputError(
            f"{name} is no CIFAR-10 batch: it lacks 'data' (uint8, n × {_PIXELS}) or "
            "'labels' (n integers). Get the official file."
        )
    return Labelled(
        images=data.reshape(-1, *_SHAPE),
        labels=np.asarray(labels, dtype=np.int64),
        name=name,
    )


def read_binary_batch(raw: bytes, *, name: str) -> Labelled:
    """Decode one binary batch: records of a label byte and 3072 pixels.

    Args:
        raw: Content of the file.
        name: What to call it.

    Returns:
        The images.

    Raises:
        InvalidInputError: If it does not hold whole records.
    """
    if not raw or len(raw) % (1 + _PIXELS):
        raise InvalidInputError(
            f"{name} has {len(raw)} bytes, no multiple of {1 + _PIXELS} (a label and "
            f"{_PIXELS} pixels): it is truncated. Get it again."
        )
    records = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 1 + _PIXELS)
    return Labelled(
        images=records[:, 1:].reshape(-1, *_SHAPE),
        labels=records[:, 0].astype(np.int64),
        name=name,
    )


def _read_folder(folder: Path) -> tuple[Labelled, Labelled]:
    python = not (folder / "test_batch.bin").exists()
    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    paths = [folder / (name if python else f"{name}.bin") for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise InvalidInputError(
            f"{folder} lacks {', '.join(missing)}. Unpack the archive from "
            f"{CIFAR10_ADDRESS} again."
        )
    parts = [_read_batch(path, python=python) for path in paths]
    train = Labelled(
        images=np.concatenate([part.images for part in parts[:5]]),
        labels=np.concatenate([part.labels for part in parts[:5]]),
        name=f"{folder}/data_batch_1 to _5",
    )
    return train, parts[5]


def _read_batch(path: Path, *, python: bool) -> Labelled:
    raw = path.read_bytes()
    if python:
        found = hashlib.md5(raw, usedforsecurity=False).hexdigest()
        expected = _PYTHON_MD5[path.name]
        if found != expected:
            raise InvalidInputError(
                f"{path} has a wrong checksum: expected MD5 {expected}, found {found} "
                f"({len(raw)} bytes). Get the archive from {CIFAR10_ADDRESS} again."
            )
        return read_python_batch(raw, name=str(path))
    batch = read_binary_batch(raw, name=str(path))
    if len(batch.labels) != _BINARY_RECORDS:
        raise InvalidInputError(
            f"{path} holds {len(batch.labels)} images, expected {_BINARY_RECORDS}: it "
            "is truncated. Get it again."
        )
    return batch


def _read_jpeg(path: Path) -> tuple[Labelled, Labelled]:
    if path.name == _JPEG:
        found = digest_of(path.read_bytes())
        if found != _JPEG_SHA256:
            raise InvalidInputError(
                f"{path} has a wrong checksum: expected SHA-256 {_JPEG_SHA256}, found "
                f"{found}. Copy it again."
            )
    held = read_npz(path)
    return _decode(held, "train", path), _decode(held, "test", path)


def _decode(arrays: dict[str, NDArray[Any]], split: str, path: Path) -> Labelled:
    names = [f"{split}_{part}" for part in ("jpeg", "offsets", "labels")]
    missing = [name for name in names if name not in arrays]
    if missing:
        raise InvalidInputError(
            f"{path} lacks the arrays {', '.join(missing)}; it holds "
            f"{', '.join(arrays)}. Store the concatenated JPEG files, n + 1 offsets "
            "and n labels of each split."
        )
    jpeg, offsets, labels = (arrays[name] for name in names)
    if (
        len(offsets) != len(labels) + 1
        or offsets[0] != 0
        or offsets[-1] != len(jpeg)
        or (np.diff(offsets) <= 0).any()
    ):
        raise InvalidInputError(
            f"{path}: {names[1]} are not {len(labels) + 1} increasing positions from 0 "
            f"to {len(jpeg)}. Store n + 1 offsets into {names[0]}."
        )
    images = np.empty((len(labels), *_SHAPE), dtype=np.uint8)
    content = jpeg.astype(np.uint8, copy=False).tobytes()
    for index in range(len(labels)):
        raw = content[int(offsets[index]) : int(offsets[index + 1])]
        images[index] = _picture(raw, name=f"image {index} of {split} in {path}")
    return Labelled(
        images=images, labels=labels.astype(np.int64), name=f"{split} of {path}"
    )


def _picture(raw: bytes, *, name: str) -> NDArray[np.uint8]:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(raw), formats=("JPEG",)) as picture:
            pixels = np.asarray(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise InvalidInputError(f"{name} is no JPEG ({error}).") from error
    if pixels.shape != (32, 32, 3):
        raise InvalidInputError(
            f"{name} has shape {pixels.shape}, expected (32, 32, 3). Store 32×32 "
            "images."
        )
    return pixels.transpose(2, 0, 1)
