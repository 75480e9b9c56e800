import errno
import json

import pytest
import torch

from dynprune.core import (
    InvalidInputError,
    files,
    join_parts,
    load_result,
    load_tensors,
    part_of,
    save_tensors,
)


def test_round_trip_is_bit_exact_and_bytes_repeat(tmp_path):
    tensors = {"b": torch.randn(3, 2).double(), "a": torch.tensor([True, False])}
    save_tensors(tmp_path / "x", tensors, {"k": [1, 2.5]})
    first = (tmp_path / "x").read_bytes()
    save_tensors(tmp_path / "x", tensors, {"k": [1, 2.5]})
    assert (tmp_path / "x").read_bytes() == first
    back, metadata = load_tensors(tmp_path / "x")
    assert metadata == {"k": [1, 2.5]}
    assert all(torch.equal(back[name], part) for name, part in tensors.items())


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_truncated_file_is_refused(tmp_path, keep):
    save_tensors(tmp_path / "x", {"a": torch.ones(9)}, {})
    data = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(data[:keep])
    with pytest.raises(InvalidInputError, match="truncated or not"):
        load_tensors(tmp_path / "x")


def test_missing_and_foreign_files_are_refused(tmp_path):
    from safetensors.torch import save_file

    with pytest.raises(InvalidInputError, match="No file"):
        load_tensors(tmp_path / "none")
    save_file({"a": torch.ones(2)}, tmp_path / "foreign")
    with pytest.raises(InvalidInputError, match="without dynprune's metadata"):
        load_tensors(tmp_path / "foreign")


def test_full_disk_keeps_the_old_file_and_leaves_no_half_one(tmp_path, monkeypatch):
    files.write_atomic(tmp_path / "x", "old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(InvalidInputError, match="No space left"):
        files.write_atomic(tmp_path / "x", "new")
    monkeypatch.undo()
    assert (tmp_path / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_metadata_is_sorted_json(tmp_path):
    save_tensors(tmp_path / "x", {"a": torch.ones(1)}, {"b": 1, "a": 2})
    text = (tmp_path / "x").read_bytes().split(b"}}")[0]
    assert json.dumps({"a": 2, "b": 1}).replace('"', '\\"').encode() in text + b"}}"


def test_parts_are_taken_apart_as_they_were_joined(tmp_path):
    parts = {
        str(i): ({"a.b": torch.full((2,), float(i)), "1.a": torch.eye(i)}, {"i": i})
        for i in range(12)  # "1" and "11" begin alike
    }
    tensors, metadata = join_parts(parts)
    save_tensors(tmp_path / "x", tensors, metadata | {"kind": "parts"})
    found = load_result(
        tmp_path / "x",
        "parts",
        lambda *packed: {name: part_of(*packed, name) for name in parts},
        what="parts",
        writer="this test",
    )
    for name, (own, plain) in parts.items():
        assert found[name][1] == plain
        assert found[name][0].keys() == own.keys()
        assert all(torch.equal(found[name][0][key], part) for key, part in own.items())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "damaged metadata"),
        ("[1]", "damaged metadata.*a list"),
        ("null", "damaged metadata.*NoneType"),
        ('{"kind": "other"}', "holds 'other'"),
        ('{"kind": "thing"}', "lacks part of a thing"),
        ('{"kind": "thing", "names": null}', "lacks part of a thing"),
        ('{"kind": "thing", "names": [1]}', "lacks part of a thing"),
        ('{"kind": "thing", "names": {"a": [2]}}', "lacks part of a thing"),
    ],
)
def test_damaged_metadata_are_refused(tmp_path, text, says):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "x", metadata={"dynprune": text})

    def unpack(tensors, metadata):
        found = [(name, own[0]) for name, own in metadata["names"].items()]
        return [(tensors[name], [1, 2][index]) for name, index in found]

    with pytest.raises(InvalidInputError, match=says):
        load_result(tmp_path / "x", "thing", unpack, what="a thing", writer="a test")


def test_what_a_reader_refuses_is_said_in_its_words(tmp_path):
    save_tensors(tmp_path / "x", {}, {"kind": "thing"})

    def unpack(tensors, metadata):
        raise InvalidInputError("Of another model. Pass that.")

    with pytest.raises(InvalidInputError, match=r"^Of another model"):
        load_result(tmp_path / "x", "thing", unpack, what="a thing", writer="a test")
