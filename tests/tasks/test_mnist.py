import gzip
import hashlib
import os
import struct
import urllib.request

import numpy as np
import pytest
import torch

from dynprune import tasks
from dynprune.core import InvalidInputError
from dynprune.tasks import _make, _mnist
from dynprune.tasks._files import KnownFile, cache_folder
from dynprune.tasks._idx import read_idx

NAMES = _mnist._NAMES


def idx(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


def tiny() -> dict[str, bytes]:
    """Forty training and ten test images of 2 x 3 pixels; pixel 0 tells the number."""
    content = {}
    for (images, labels), n in ((NAMES[:2], 40), (NAMES[2:], 10)):
        pixels = np.zeros((n, 2, 3))
        pixels[:, 0, 0] = np.arange(n)
        content[images] = idx(pixels)
        content[labels] = idx(np.arange(n) % 10)
    return content


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A data folder and a cache, both empty, and a tiny MNIST as the official one."""
    content = tiny()
    files = tuple(
        KnownFile(name=name, sha256=hashlib.sha256(raw).hexdigest(), size=len(raw))
        for name, raw in content.items()
    )
    monkeypatch.setattr(_mnist, "MNIST_FILES", files)
    monkeypatch.setattr(_mnist, "_VALIDATION", 10)
    monkeypatch.setitem(_make._KNOWN, "mnist", (files, ()))
    monkeypatch.setenv("DYNPRUNE_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for folder in ("data/mnist", "cache/dynprune/mnist"):
        (tmp_path / folder).mkdir(parents=True)
    return tmp_path


def put(folder, content=None):
    for name, raw in (content or tiny()).items():
        (folder / name).write_bytes(raw)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 5), (0, 2, 2)], ids=str)
def test_idx_round_trip(shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    assert np.array_equal(read_idx(idx(array), name="x", ndim=len(shape)), array)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "truncated or no gzip|starts with the bytes none"),
        (b"no gzip at all", "toy is truncated or no gzip file"),
        (idx(np.ones(9))[:-1], "toy is truncated or no gzip file"),
        (idx(np.ones(9))[:15], "toy is truncated or no gzip file"),
        (gzip.compress(bytes([0, 0, 8, 1, 0, 0])), "toy starts with the bytes 00 00"),
        (idx(np.ones((3, 3))), "expected 00 00 08 01"),
        (gzip.compress(bytes([0, 0, 13, 1, 0, 0, 0, 0])), "00 00 0d 01, expected"),
        (
            gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 9, 1, 2])),
            r"holds 2 entries, its header says \(9,\)",
        ),
        (
            gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 1, 1, 2])),
            r"holds 2 entries, its header says \(1,\)",
        ),
    ],
    ids=[
        *("empty", "other bytes", "last byte gone", "half", "half a header"),
        *("two dimensions", "floats", "too short", "too long"),
    ],
)
def test_damaged_idx_is_refused(raw, message):
    with pytest.raises(InvalidInputError, match=message):
        read_idx(raw, name="toy", ndim=1)


@pytest.mark.parametrize(
    "folder", ["data/mnist", "data", "cache/dynprune/mnist"], ids=str
)
def test_reads_from_each_place(home, folder):
    put(home / folder)
    problem = tasks.mnist("mlp:3")
    x, y = problem.test
    assert x.shape == (10, 6)
    assert y.tolist() == list(range(10))
    # (p / 255 - mean) / std of pixel 0, which counts the images, and of a black one.
    expected = (torch.arange(10) / 255 - 0.1307) / 0.3081
    torch.testing.assert_close(x[:, 0], expected, rtol=1e-6, atol=1e-6)
    assert x[:, 1].unique().numel() == 1


def test_validation_is_fixed_disjoint_and_stratified(home):
    put(home / "data/mnist")
    problem = tasks.mnist("mlp:3")
    assert torch.equal(problem.validation[0], tasks.mnist("mlp:5").validation[0])
    numbers = {
        name: (problem.split(name)[0][:, 0] * 0.3081 + 0.1307).mul(255).round().tolist()
        for name in ("train", "validation")
    }
    assert sorted(numbers["train"] + numbers["validation"]) == list(range(40))
    assert sorted(problem.validation[1].tolist()) == list(range(10))
    for name, found in numbers.items():
        assert [int(n) % 10 for n in found] == problem.split(name)[1].tolist()


def test_missing_files_are_listed_with_where_to_put_them(home):
    content = tiny()
    del content[NAMES[1]], content[NAMES[2]]
    put(home / "data/mnist", content)
    with pytest.raises(InvalidInputError) as caught:
        tasks.mnist()
    message = str(caught.value)
    assert f"lacks 2 file(s): {NAMES[1]}, {NAMES[2]}." in message
    for place in ("data/mnist", "data", "cache/dynprune/mnist"):
        assert str(home / place) in message
    assert f"Put them into {home / 'data/mnist'}" in message
    assert "--download" in message


def test_message_says_when_the_variable_is_wrong(home, monkeypatch):
    monkeypatch.delenv("DYNPRUNE_DATA")
    with pytest.raises(InvalidInputError, match="DYNPRUNE_DATA is not set"):
        tasks.mnist()
    monkeypatch.setenv("DYNPRUNE_DATA", str(home / "none"))
    with pytest.raises(InvalidInputError, match="none, which is no folder"):
        tasks.mnist()


def test_truncated_file_names_expected_and_found(home):
    put(home / "data/mnist")
    path = home / "data/mnist" / NAMES[0]
    raw = path.read_bytes()
    path.write_bytes(raw[:-5])
    found = hashlib.sha256(raw[:-5]).hexdigest()
    with pytest.raises(InvalidInputError) as caught:
        tasks.mnist()
    message = str(caught.value)
    assert f"{path} is truncated: {len(raw) - 5} of {len(raw)} bytes" in message
    assert hashlib.sha256(raw).hexdigest() in message
    assert found in message


def test_wrong_checksum_names_expected_and_found(home):
    put(home / "data/mnist")
    path = home / "data/mnist" / NAMES[3]
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    found = hashlib.sha256(raw).hexdigest()
    with pytest.raises(InvalidInputError, match=f"wrong checksum.*found {found}"):
        tasks.mnist()


def test_a_damaged_copy_is_passed_over_for_a_good_one(home):
    put(home / "data/mnist", dict.fromkeys(NAMES, b"damaged"))
    put(home / "cache/dynprune/mnist")
    assert len(tasks.mnist("mlp:3").train[1]) == 30


def test_nothing_is_downloaded_unless_asked(home, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(InvalidInputError, match="lacks 4 file"):
        tasks.mnist()


def mirror(home, monkeypatch, content) -> None:
    (home / "mirror").mkdir()
    put(home / "mirror", content)
    addresses = ((home / "none").as_uri() + "/", (home / "mirror").as_uri() + "/")
    monkeypatch.setattr(_mnist, "MNIST_MIRRORS", addresses)
    monkeypatch.setitem(_make._KNOWN, "mnist", (_mnist.MNIST_FILES, addresses))


def test_download_goes_on_to_the_next_mirror_and_fills_the_cache(home, monkeypatch):
    mirror(home, monkeypatch, tiny())
    assert len(tasks.mnist("mlp:3", download=True).train[1]) == 30
    assert sorted(os.listdir(cache_folder() / "mnist")) == sorted(NAMES)
    assert os.listdir(home / "data/mnist") == []


def test_download_by_name_and_only_of_what_is_missing(home, monkeypatch):
    content = tiny()
    put(home / "data/mnist", {NAMES[0]: content.pop(NAMES[0])})
    mirror(home, monkeypatch, content)
    assert tasks.download("mnist") == cache_folder() / "mnist"
    assert NAMES[0] not in os.listdir(cache_folder() / "mnist")
    tasks.check_files("mnist")


def test_a_wrong_download_is_never_written(home, monkeypatch):
    mirror(home, monkeypatch, dict.fromkeys(NAMES, b"<html>gone</html>"))
    with pytest.raises(InvalidInputError, match=r"Cannot download .*truncated"):
        tasks.mnist(download=True)
    assert os.listdir(cache_folder() / "mnist") == []


def test_cache_is_at_home_by_default(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert cache_folder() == cache_folder().home() / ".cache" / "dynprune"


REAL = os.environ.get("DYNPRUNE_DATA", "")


@pytest.mark.skipif(
    not os.path.isdir(os.path.join(REAL, "mnist")),
    reason="set DYNPRUNE_DATA to the folder that holds mnist/ with the idx .gz files",
)
def test_real_mnist():
    problem = tasks.mnist()
    splits = [problem.split(name) for name in ("train", "validation", "test")]
    assert [x.shape for x, _ in splits] == [(55_000, 784), (5_000, 784), (10_000, 784)]
    # Class counts of the 60,000 and of the 10,000, as published everywhere.
    train = splits[0][1].bincount() + splits[1][1].bincount()
    assert train.tolist() == [
        *(5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    ]
    assert splits[2][1].bincount().tolist() == [
        *(980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009)
    ]
    everything = torch.cat([splits[0][0], splits[1][0]])
    # The constants have four decimals: half a unit of the last, over the deviation.
    assert abs(float(everything.mean(dtype=torch.float64))) < 5e-5 / 0.3081
    assert abs(float(everything.double().std()) - 1) < 5e-5 / 0.3081
    assert sum(p.numel() for p in problem.model(0).parameters()) == 266_610


@pytest.mark.skipif(
    not os.path.isdir(os.path.join(REAL, "fashion-mnist")),
    reason="set DYNPRUNE_DATA to the folder that holds fashion-mnist/",
)
def test_real_fashion_mnist():
    problem = tasks.fashion_mnist()
    assert problem.test[1].bincount().tolist() == [1000] * 10
    assert problem.validation[1].bincount().tolist() == [500] * 10
