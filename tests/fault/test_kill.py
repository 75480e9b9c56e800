"""kill -9 at random moments: the same command goes on to the same bytes."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STUDY = [
    sys.executable,
    *("-m", "dynprune", "study", "--task", "digits", "--seeds", "2", "--jobs", "2"),
    *("--densities", "1", "0.4", "0.16", "0.064"),
]
SMALL = [
    *("--methods", "imp", "imp-shuffled", "random"),
    *("--analyses", "multipliers", "--steps", "200"),
]
LARGE = [
    *("--methods", "imp", "imp-shuffled", "manifold", "snip", "random"),
    *("--analyses", "forecast", "multipliers", "--steps", "400"),
]


def start(folder: Path, options: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*STUDY, *options, "--out", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def finish(folder: Path, options: list[str]) -> str:
    process = start(folder, options)
    output = process.communicate(timeout=240)[0].decode()
    assert process.returncode == 0, output
    return output


def contents(folder: Path) -> dict[str, bytes]:
    names = [folder / "results.csv", folder / "ledger.csv"]
    names += sorted((folder / "tickets").iterdir())
    return {path.name: path.read_bytes() for path in names}


# every rename is crashed by itself in test_crash.py
@pytest.mark.parametrize(
    ("options", "most"), [(SMALL, 1), pytest.param(LARGE, 8, marks=pytest.mark.slow)]
)
def test_kill_at_random_moments(options, most, tmp_path):
    begin = time.perf_counter()
    finish(tmp_path / "undisturbed", options)
    duration = time.perf_counter() - begin
    want = contents(tmp_path / "undisturbed")
    seed = random.SystemRandom().getrandbits(32)
    draw = random.Random(seed)
    folder, kills, finished = tmp_path / "killed-0", 0, 0
    while kills < most:
        fresh, begin = not folder.exists(), time.perf_counter()
        process = start(folder, options)
        try:
            process.wait(timeout=draw.uniform(0, duration))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.communicate()
        if process.returncode == 0:
            if fresh:  # the machine may have been busier before
                duration = min(duration, time.perf_counter() - begin)
            assert contents(folder) == want, f"seed {seed}, after {kills} kills"
            finished += 1
            folder = tmp_path / f"killed-{finished}"
    finish(folder, options)
    assert contents(folder) == want, f"seed {seed}, last folder"
    assert "Nothing to do" in finish(folder, options)
