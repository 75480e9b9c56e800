"""Start several gloo ranks on this machine and bring back what they return.

One fresh interpreter imports torch, the test's module, and what that names in IMPORTS
once and forks the ranks of each job, so that a test pays for one import only. A rank
that hangs is killed.
"""

import contextlib
import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

TESTS = Path(__file__).resolve().parent
SECONDS = 55  # for all jobs of a call
Job = Callable[[int, int], Any]


def run(folder: Path, *jobs: tuple[Job, int]) -> list[list[Any]]:
    """Return, for each (function, number of ranks), what each rank returned.

    Args:
        folder: An empty one.
        *jobs: Functions of a test module that take the rank and the number of ranks
            and return something that JSON can hold, on a default process group.
    """
    plan = [(job.__code__.co_filename, job.__name__, count) for job, count in jobs]
    paths = [str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")]
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(
        [sys.executable, __file__, json.dumps(plan), str(folder)],
        env=os.environ | variables | _loopback(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        text=True,
    )
    try:
        output = process.communicate(timeout=SECONDS)[0]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0, output
    return [
        [json.loads((folder / f"{index}-{rank}.json").read_text()) for rank in range(n)]
        for index, (_, n) in enumerate(jobs)
    ]


def _loopback() -> dict[str, str]:
    return {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}


def one_rank(job: Job, rank: int, count: int, place: str) -> None:
    """Join the group, run the job, write its result."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{place}.rendezvous",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=20),
    )
    result = job(rank, count)
    Path(f"{place}-{rank}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Fork the ranks of each job in turn."""
    plan, folder = json.loads(sys.argv[1]), sys.argv[2]
    fork = multiprocessing.get_context("fork")
    modules: dict[str, Any] = {}
    for index, (path, name, count) in enumerate(plan):
        if path not in modules:
            spec = importlib.util.spec_from_file_location("jobs", path)
            modules[path] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(modules[path])
            for late in getattr(modules[path], "IMPORTS", ()):
                importlib.import_module(late)
        job = getattr(modules[path], name)
        ranks = [
            fork.Process(target=one_rank, args=(job, rank, count, f"{folder}/{index}"))
            for rank in range(count)
        ]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            sys.exit(f"{name} on {count} ranks failed")


if __name__ == "__main__":
    main()
