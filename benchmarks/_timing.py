"""Alternating timings, peak memory, and the record of the machine."""

import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from typing import Any

import torch

Call = Callable[[], object]
Samples = dict[str, list[float]]
GRADIENT = "gradient"


CPU_TIME = "time the process, not the wall: for a machine that is busy"
_now: list[Callable[[], float]] = [time.perf_counter]


def prepare(*, cpu_time: bool = False) -> None:
    """Compute on one thread; leave what is imported out of garbage collection."""
    _now[0] = time.process_time if cpu_time else time.perf_counter
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


def environment(device: torch.device) -> dict[str, object]:
    """Return what the numbers depend on: device, threads, versions."""
    names = (
        "torch numpy scipy PyHessian hessian-eigenthings curvlinops-for-pytorch "
        "backpack-for-pytorch cola-ml"
    )
    chip = platform.machine()
    if device.type == "cuda":
        chip = torch.cuda.get_device_name(device)
    elif os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as lines:
            named = [line for line in lines if line.startswith("model name")]
        chip = named[0].split(":")[1].strip() if named else chip
    return {
        "device": str(device),
        "chip": chip,
        "clock": _now[0].__name__,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: _version(name) for name in names.split()},
    }


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "absent"


def now() -> float:
    """Return the seconds of the clock that the timings are read from."""
    return _now[0]()


def stage(name: str) -> None:
    """Say on the standard error what is being measured, and since when."""
    print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)


def settle(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(call: Call, device: torch.device) -> float:
    """Return the seconds one call takes."""
    settle(device)
    start = now()
    kept = call()
    settle(device)
    seconds = now() - start
    del kept
    return seconds


def alternate(
    calls: Mapping[str, Call],
    *,
    rounds: int,
    seconds: float,
    device: torch.device,
    warm: int = 1,
    least: int = 3,
) -> Samples:
    """Time calls in turn, each round in another order, all under the same load.

    Args:
        calls: Name to what is timed.
        rounds: How often each is timed.
        seconds: Stop after this long if ``least`` rounds are done.
        device: Where they compute.
        warm: Rounds that are not counted.
        least: Rounds that are made however long they take.

    Returns:
        Name to the seconds of each round.
    """
    taken: Samples = {name: [] for name in calls}
    gc.collect()
    names, start = list(calls), time.perf_counter()
    for turn in range(-warm, rounds):
        if turn >= least and time.perf_counter() - start > seconds:
            break
        shift = turn % len(names)
        for name in names[shift:] + names[:shift]:
            passed = clock(calls[name], device)
            if turn >= 0:
                taken[name].append(passed)
    return taken


def spread(values: list[float]) -> dict[str, float]:
    """Return the median, the quartiles and the number of values."""
    low, _, high = (
        statistics.quantiles(values, n=4, method="inclusive")
        if len(values) > 1
        else (values[0],) * 3
    )
    return {
        "median": statistics.median(values),
        "q25": low,
        "q75": high,
        "runs": len(values),
    }


def ratios(
    taken: Samples,
    *,
    base: str = GRADIENT,
    per: float | Mapping[str, float] = 1.0,
) -> dict[str, dict[str, Any]]:
    """Divide each name's seconds by those of the base in the same round.

    Args:
        taken: Seconds of :func:`alternate`.
        base: What to divide by.
        per: Vectors per call, to state the ratio per vector; one number or by name.

    Returns:
        Name to the spread of the ratio and the median seconds of one call.
    """
    return {
        name: {
            "ratio": spread([
                a / b / (per if isinstance(per, int | float) else per[name])
                for a, b in zip(values, taken[base], strict=True)
            ]),
            "seconds": statistics.median(values),
        }
        for name, values in taken.items()
        if name != base
    }


def peak_memory(call: Call, device: torch.device) -> int:
    """Return by how many bytes the allocated memory rises at most during a call.

    On the CPU from the profiler's record of every allocation of torch; scratch memory
    of a library's own (oneDNN, NumPy) is not in it. Whatever the call returns is
    freed after it.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        kept = call()
        torch.cuda.synchronize(device)
        peak = torch.cuda.max_memory_allocated(device) - before
        del kept
        return peak
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as record:
        kept = call()
    del kept
    held = peak = 0
    events = [e for e in record.profiler.kineto_results.events() if _is_memory(e)]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def _is_memory(event: Any) -> bool:
    return event.name() == "[memory]"
