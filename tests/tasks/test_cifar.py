import hashlib
import io
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from dynprune import tasks
from dynprune.core import InvalidInputError
from dynprune.tasks import _cifar
from dynprune.tasks._cifar import read_binary_batch, read_python_batch
from dynprune.tasks._python_batches import read_plain

NAMES = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]


def short(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def python2_array(pixels: np.ndarray) -> bytes:
    """What Python 2 wrote of a uint8 matrix, opcode by opcode (protocol 2)."""
    raw = pixels.tobytes()
    return (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03"
        b"K\x00\x85q\x04" + short(b"b") + b"\x87Rq\x05"
        b"(K\x01J" + struct.pack("<i", len(pixels)) + b"M\x00\x0c\x86"
        b"cnumpy\ndtype\nq\x06" + short(b"u1") + b"K\x00K\x01\x87Rq\x07"
        b"(K\x03" + short(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )


def python2_batch(pixels: np.ndarray, labels: list[int]) -> bytes:
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    return (
        b"\x80\x02}q\x01("
        + short(b"batch_label")
        + short(b"training batch 1 of 5")
        + short(b"labels")
        + b"]q\x08("
        + numbers
        + b"e"
        + short(b"data")
        + python2_array(pixels)
        + b"u."
    )


def some(n: int, *, first: int = 0) -> tuple[np.ndarray, list[int]]:
    pixels = np.random.default_rng(first).integers(0, 256, (n, 3072), dtype=np.uint8)
    return pixels, [(first + i) % 10 for i in range(n)]


def test_python_batch_of_python_2():
    pixels, labels = some(7)
    batch = read_python_batch(python2_batch(pixels, labels), name="toy")
    assert np.array_equal(batch.images, pixels.reshape(-1, 3, 32, 32))
    assert batch.labels.tolist() == labels


@pytest.mark.parametrize("dtype", ["u1", "<i8", ">f4", "?"], ids=str)
def test_arrays_of_todays_numpy(dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    found = read_plain(array.dumps(), name="toy")
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)
    assert np.array_equal(read_plain(array.T.dumps(), name="toy"), array.T)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"cos\nsystem\n(U\x04true\x85R.", "holds the name 'os.system'"),
        (b"cbuiltins\neval\n.", "holds the name 'builtins.eval'"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "holds the name 'posix.system'"),
        (b"(S'true'\nios\nsystem\n.", "holds the opcode"),
        (b"cnumpy\nndarray\n(K\x01tR.", "holds a call of numpy.ndarray"),
        (b"cnumpy\ndtype\n(U\x01Otq\x01R.", "holds the dtype 'O'"),
        (b"cnumpy\nndarray\n}b.", "holds a state for a _Named"),
        (b"cnumpy\nndarray\n.", "holds the name 'numpy.ndarray'"),
        (b"\x80\x02P1\n.", "holds the opcode PERSID"),
        (b"\x80\x02]}q\x01K\x01K\x02se.", "damaged"),
        (b"\x80\x02K\x01K\x02.", "damaged"),
        (b"", "truncated or damaged"),
        (b"text", "truncated or damaged|holds the opcode"),
    ],
    ids=[
        *("os.system", "eval", "STACK_GLOBAL", "INST", "ndarray()", "objects"),
        *("state of a class", "a class", "persistent id", "list as dict"),
        *("two values", "empty", "text"),
    ],
)
def test_nothing_else_is_built(raw, message):
    with pytest.raises(InvalidInputError, match=message):
        read_plain(raw, name="toy")


@pytest.mark.parametrize("keep", [1, 40, 200, 3000, -1], ids=str)
def test_truncated_python_batch_is_refused(keep):
    raw = python2_batch(*some(2))
    with pytest.raises(InvalidInputError, match="toy is truncated or damaged"):
        read_python_batch(raw[:keep], name="toy")


@pytest.mark.parametrize(
    "raw",
    [
        b"\x80\x02]K\x07a.",
        b"\x80\x02}.",
        python2_batch(some(2)[0].reshape(-1, 3072), []).replace(b"data", b"dada"),
    ],
    ids=["a list", "empty dict", "no data"],
)
def test_other_values_are_no_batch(raw):
    with pytest.raises(InvalidInputError, match="toy is no CIFAR-10 batch"):
        read_python_batch(raw, name="toy")


def test_unequal_numbers_of_images_and_labels_are_refused():
    with pytest.raises(InvalidInputError, match="toy holds 2 images and 1 labels"):
        read_python_batch(python2_batch(some(2)[0], [1]), name="toy")


def binary(pixels: np.ndarray, labels: list[int]) -> bytes:
    column = np.asarray(labels, dtype=np.uint8)[:, None]
    return np.concatenate([column, pixels], axis=1).tobytes()


def test_binary_batch():
    pixels, labels = some(5)
    batch = read_binary_batch(binary(pixels, labels), name="toy")
    assert np.array_equal(batch.images, pixels.reshape(-1, 3, 32, 32))
    assert batch.labels.tolist() == labels


@pytest.mark.parametrize("keep", [0, 3072, -1], ids=str)
def test_truncated_binary_batch_is_refused(keep):
    with pytest.raises(InvalidInputError, match="no multiple of 3073"):
        read_binary_batch(binary(*some(2))[:keep], name="toy")


def test_labels_out_of_range_are_refused():
    with pytest.raises(InvalidInputError, match="labels from 3 to 10"):
        read_binary_batch(binary(some(2)[0], [3, 10]), name="toy")


def write_batches(folder, monkeypatch, *, kind: str):
    folder.mkdir(parents=True)
    batches = [some(10, first=10 * n) for n in range(6)]
    for name, (pixels, labels) in zip(NAMES, batches, strict=True):
        if kind == "python":
            raw = python2_batch(pixels, labels)
            digest = hashlib.md5(raw, usedforsecurity=False).hexdigest()
            monkeypatch.setitem(_cifar._PYTHON_MD5, name, digest)
            (folder / name).write_bytes(raw)
        else:
            (folder / f"{name}.bin").write_bytes(binary(pixels, labels))
    monkeypatch.setattr(_cifar, "_BINARY_RECORDS", 10)
    monkeypatch.setattr(_cifar, "_VALIDATION", 10)
    return batches


@pytest.fixture(autouse=True)
def nowhere(tmp_path, monkeypatch):
    monkeypatch.delenv("DYNPRUNE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("kind", ["python", "binary"])
@pytest.mark.parametrize("place", ["path", "its parent", "variable", "cache"])
def test_folders_of_batches(tmp_path, monkeypatch, kind, place):
    folder = "cifar-10-batches-py" if kind == "python" else "cifar-10-batches-bin"
    root = tmp_path / ("cache/dynprune/cifar10" if place == "cache" else "data")
    batches = write_batches(root / folder, monkeypatch, kind=kind)
    if place == "variable":
        monkeypatch.setenv("DYNPRUNE_DATA", str(root))
    path = {"path": root / folder, "its parent": root}.get(place)
    problem = tasks.cifar10("conv:2", path=path)
    assert problem.name == "CIFAR-10"
    x, y = problem.test
    assert [len(problem.split(s)[1]) for s in ("train", "validation")] == [40, 10]
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).reshape(1, 3, 1, 1)
    std = torch.tensor([0.2470, 0.2435, 0.2616]).reshape(1, 3, 1, 1)
    pixels = torch.from_numpy(batches[5][0]).reshape(-1, 3, 32, 32)
    torch.testing.assert_close(x, (pixels / 255 - mean) / std)
    assert y.tolist() == batches[5][1]
    again = tasks.remake(problem.origin)
    assert again.fingerprint() == problem.fingerprint()


def test_wrong_checksum_of_a_python_batch(tmp_path, monkeypatch):
    write_batches(tmp_path / "py", monkeypatch, kind="python")
    with (tmp_path / "py" / "data_batch_3").open("ab") as file:
        file.write(b"!")
    with pytest.raises(InvalidInputError, match="data_batch_3 has a wrong checksum"):
        tasks.cifar10(path=tmp_path / "py")


def test_missing_and_short_batches(tmp_path, monkeypatch):
    write_batches(tmp_path / "bin", monkeypatch, kind="binary")
    (tmp_path / "bin" / "test_batch.bin").write_bytes(binary(*some(9)))
    with pytest.raises(InvalidInputError, match=r"bin holds 9 .*expected 10"):
        tasks.cifar10(path=tmp_path / "bin")
    (tmp_path / "bin" / "data_batch_2.bin").unlink()
    with pytest.raises(InvalidInputError, match=r"lacks data_batch_2\.bin"):
        tasks.cifar10(path=tmp_path / "bin")


def test_absent_data_say_what_to_put_where(tmp_path):
    with pytest.raises(InvalidInputError, match=r"kriz/cifar\.html.*DYNPRUNE") as e:
        tasks.cifar10()
    assert str(tmp_path / "cache/dynprune/cifar10/cifar-10-batches-py") in str(e.value)
    with pytest.raises(InvalidInputError, match="not downloaded by dynprune"):
        tasks.download("cifar10")
    with pytest.raises(InvalidInputError, match="No CIFAR-10 in"):
        tasks.check_files("cifar10")


def jpeg(colour: int, *, size: int = 32) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (colour, 0, 255)).save(buffer, "JPEG", quality=75)
    return buffer.getvalue()


def archive(**changes) -> dict[str, np.ndarray]:
    arrays = {}
    for split, n in (("train", 20), ("test", 10)):
        files = [jpeg(10 * i) for i in range(n)]
        arrays |= {
            f"{split}_jpeg": np.frombuffer(b"".join(files), dtype=np.uint8),
            f"{split}_offsets": np.cumsum([0, *map(len, files)]),
            f"{split}_labels": np.sort(np.arange(n) % 10).astype(np.uint8),
        }
    return {k: v for k, v in (arrays | changes).items() if v is not None}


def test_archive_of_jpegs(tmp_path):
    np.savez(tmp_path / "copy.npz", **archive())
    problem = tasks.cifar10("conv:2", path=tmp_path / "copy.npz")
    assert problem.name == "CIFAR-10 (JPEG-75 copy)"
    x, y = problem.test
    assert y.tolist() == list(range(10))
    red = (x[:, 0].mean((1, 2)) * 0.2470 + 0.4914) * 255
    blue = (x[:, 2].mean((1, 2)) * 0.2616 + 0.4465) * 255
    # Flat colours survive quality 75 within a few grey levels.
    assert (red - 10 * torch.arange(10)).abs().max() < 4
    assert (blue - 255).abs().max() < 4
    assert problem.origin[-1] == ("path", str(tmp_path / "copy.npz"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test_labels": None}, "lacks the arrays test_labels"),
        ({"test_offsets": np.arange(5)}, "test_offsets are not 11 increasing"),
        ({"test_jpeg": np.zeros(3, np.uint8)}, "test_offsets are not 11 increasing"),
        (
            {
                "test_jpeg": np.frombuffer(jpeg(1, size=16), np.uint8),
                "test_offsets": np.array([0, len(jpeg(1, size=16))]),
                "test_labels": np.array([1]),
            },
            r"image 0 of test in .* has shape \(16, 16, 3\)",
        ),
        (
            {
                "test_jpeg": np.zeros(9, np.uint8),
                "test_offsets": np.array([0, 9]),
                "test_labels": np.array([1]),
            },
            "image 0 of test in .* is no JPEG",
        ),
        ({"test_labels": np.array([{}] * 10)}, "truncated, no .npz file"),
    ],
    ids=["missing", "offsets", "bytes", "size", "no JPEG", "objects"],
)
def test_damaged_archives_are_refused(tmp_path, changes, message):
    np.savez(tmp_path / "copy.npz", **archive(**changes))
    with pytest.raises(InvalidInputError, match=message):
        tasks.cifar10(path=tmp_path / "copy.npz")


def test_truncated_archive_and_wrong_checksum(tmp_path):
    np.savez(tmp_path / "copy.npz", **archive())
    raw = (tmp_path / "copy.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InvalidInputError, match=r"truncated, no \.npz file"):
        tasks.cifar10(path=tmp_path / "cut.npz")
    (tmp_path / "cifar10_jpeg75.npz").write_bytes(raw)
    with pytest.raises(InvalidInputError, match=r"wrong checksum: expected SHA-256 fd"):
        tasks.cifar10(path=tmp_path)
