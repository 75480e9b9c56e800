"""A study that dies at any rename goes on to the same bytes."""

import dataclasses
import functools
import os
import shutil
from pathlib import Path

import pytest
import torch
from in_process import Here

from dynprune.core import InvalidInputError, files
from dynprune.study import configure, run
from dynprune.study._config import Config
from dynprune.tickets import Ticket

CONFIG = configure(
    task="digits",
    seeds=1,
    densities=(1.0, 0.3, 0.1),
    compare_densities=(0.1,),
    methods=("imp", "imp-shuffled", "random"),
    analyses=("multipliers",),
    steps=30,
)


def contents(folder: Path) -> dict[str, bytes]:
    """Return what must not depend on crashes."""
    names = [folder / "results.csv", folder / "ledger.csv", folder / "config.toml"]
    names += sorted((folder / "tickets").iterdir())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in names}


@pytest.fixture(autouse=True)
def _plain_report(monkeypatch):
    """Drawing takes most of the time of these small studies, and is not at stake."""
    from dynprune.study import _run

    monkeypatch.setattr(_run, "write_report", lambda *args, **kwargs: "<html></html>")


def in_child(action) -> int:
    """Run ``action`` in a forked process; return its exit code."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            action()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def study(folder: Path, config: Config = CONFIG) -> None:
    run(config, out=folder, executor=Here)


def dying_study(folder: Path, at: int, *, after: bool, config: Config = CONFIG) -> None:
    """Run the study, but die at rename number ``at``, before or after it."""
    count = 0
    rename = files.replace

    def replace(source, target):
        nonlocal count
        count += 1
        if count == at and not after:
            os._exit(9)
        rename(source, target)
        if count == at:
            os._exit(9)

    files.replace = replace
    study(folder, config)


def test_crash_at_every_rename(tmp_path):
    renames = 0
    # after a rename is before the next one, but for the file that is written next; an
    # analysis, which takes long, writes as a method does
    quick = dataclasses.replace(CONFIG, analyses=())
    for config, after, every in ((quick, False, 1), (CONFIG, True, 4)):
        study(tmp_path / f"undisturbed-{after}", config)
        want = contents(tmp_path / f"undisturbed-{after}")
        at = 1 - every
        while True:
            at += every
            folder = tmp_path / f"crash-{at}-{after}"
            code = in_child(
                functools.partial(dying_study, folder, at, after=after, config=config)
            )
            if code == 0:
                break
            assert code == 9, f"the child failed by itself at rename {at}"
            assert in_child(functools.partial(study, folder, config)) == 0
            assert contents(folder) == want, f"rename {at}, after={after}"
            assert not list(folder.rglob(".*.tmp"))
        renames = max(renames, at - every)
    assert renames >= 12  # 4 units with their tickets, 6 files of the study


def test_superseding_survives_a_crash_at_every_rename(tmp_path, monkeypatch):
    from dynprune.study import _store

    study(tmp_path / "undisturbed")
    want = contents(tmp_path / "undisturbed")
    for at in range(1, 9):
        folder = tmp_path / f"old-{at}"
        shutil.copytree(tmp_path / "undisturbed", folder)
        with monkeypatch.context() as patch:
            patch.setattr(_store, "source_hash", lambda: "another source")
            assert in_child(lambda f=folder, a=at: dying_study(f, a, after=True)) == 9
            assert in_child(lambda f=folder: study(f)) == 0
        assert contents(folder) == want
        old = sorted(folder.glob("superseded-*/results.csv"))
        assert [path.read_bytes() for path in old] == [want["results.csv"]]


def test_damaged_files_are_computed_again(tmp_path):
    study(tmp_path / "s")
    want = contents(tmp_path / "s")
    ticket = sorted((tmp_path / "s" / "tickets").iterdir())[0]
    ticket.write_bytes(ticket.read_bytes()[:-7])
    with pytest.raises(InvalidInputError, match="truncated"):
        Ticket.load(ticket)
    done = run(CONFIG, out=tmp_path / "s", executor=Here)
    assert done.computed == 1
    assert contents(tmp_path / "s") == want


def test_full_disk_is_said_and_nothing_is_lost(tmp_path, monkeypatch):
    import errno

    count = 0

    def full(handle):
        nonlocal count
        count += 1
        if count > 7:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(InvalidInputError, match="No space left on device"):
            run(CONFIG, out=tmp_path / "full", executor=Here)
    assert not list((tmp_path / "full").rglob(".*.tmp"))
    study(tmp_path / "full")
    study(tmp_path / "undisturbed")
    assert contents(tmp_path / "full") == contents(tmp_path / "undisturbed")


def test_tickets_are_bit_equal_tensors(tmp_path):
    study(tmp_path / "a")
    study(tmp_path / "b")
    for path in sorted((tmp_path / "a" / "tickets").iterdir()):
        one, two = (
            Ticket.load(path),
            Ticket.load(tmp_path / "b" / "tickets" / path.name),
        )
        for name, mask in one.masks.items():
            assert torch.equal(mask, two.masks[name])
        for name, part in one.state.items():
            assert torch.equal(part, two.state[name])
