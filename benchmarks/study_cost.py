"""Measure what the commands cost a user: start-up, the default study, --quick.

    python benchmarks/study_cost.py benchmarks/results/study_cost.json

Each command runs in fresh processes, alternating with its baseline; peak memory is the
sum over the process tree, sampled every 50 ms.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

PYTHON = sys.executable
ROUNDS = 5


def tree_memory(root: int) -> int:
    """Resident bytes of a process and all below it, shared pages counted once each."""
    children: dict[int, list[int]] = {}
    sizes: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            rollup = (entry / "smaps_rollup").read_text().splitlines()
        except (OSError, ValueError, IndexError):
            continue
        pss = [line for line in rollup if line.startswith("Pss:")]
        children.setdefault(parent, []).append(int(entry.name))
        sizes[int(entry.name)] = int(pss[0].split()[1]) * 1024 if pss else 0
    total, todo = 0, [root]
    while todo:
        pid = todo.pop()
        total += sizes.get(pid, 0)
        todo += children.get(pid, [])
    return total


def measure(command: list[str], cwd: str | None = None) -> dict[str, float]:
    """Wall seconds and peak memory of one run."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    peak, over = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.05):
            peak = max(peak, tree_memory(process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    seconds = time.perf_counter() - start
    over.set()
    watcher.join()
    if code:
        raise SystemExit(f"{command} ended with {code}")
    return {"seconds": seconds, "peak_gib": peak / 2**30}


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest, largest."""
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "runs": len(values),
    }


def start_up() -> dict[str, object]:
    """Seconds of importing and of --help beyond importing torch, run in turn."""
    commands = {
        "torch": [PYTHON, "-c", "import torch"],
        "import": [PYTHON, "-c", "import dynprune"],
        "help": [PYTHON, "-m", "dynprune", "--help"],
    }
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS + 1):
        for name, command in commands.items():
            taken[name].append(measure(command)["seconds"])
    seconds = {name: values[1:] for name, values in taken.items()}
    beyond = {
        name: [a - b for a, b in zip(seconds[name], seconds["torch"], strict=True)]
        for name in ("import", "help")
    }
    return {
        "torch_import": spread(seconds["torch"]),
        **{f"{name}_beyond_torch": spread(values) for name, values in beyond.items()},
    }


def study(*options: str, rounds: int = 1) -> dict[str, object]:
    """A study in a fresh folder, and the same command again."""
    first, again = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            command = [PYTHON, "-m", "dynprune", "study", *options]
            first.append(measure(command, cwd=folder))
            again.append(measure(command, cwd=folder))
    return {
        "seconds": spread([run["seconds"] for run in first]),
        "peak_gib": spread([run["peak_gib"] for run in first]),
        "again_seconds": spread([run["seconds"] for run in again]),
    }


def main(target: Path) -> None:
    """Write the measurements as JSON."""
    table = {
        "command": "python benchmarks/study_cost.py " + target.as_posix(),
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "architecture": platform.machine(),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "start_up": start_up(),
        "quick_study": study("--quick", rounds=3),
        "default_study": study(rounds=3),
    }
    target.write_text(json.dumps(table, indent=1) + "\n")
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
