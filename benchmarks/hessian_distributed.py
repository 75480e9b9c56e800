r"""Measure products and Lanczos over several ranks against one process.

    torchrun --standalone --nproc-per-node=2 benchmarks/hessian_distributed.py \
        benchmarks/results/hessian_distributed.json
    torchrun --nproc-per-node=8 benchmarks/hessian_distributed.py --device cuda
    python benchmarks/hessian_distributed.py --quick

Every rank computes on one thread (on one GPU). The total batch is fixed and shared
out; one process that has all of it, on the first rank while the others sleep, takes
turns with all ranks together, so that both see the same load of the machine. Started
without torchrun it measures one process.
"""

import argparse
import contextlib
import ctypes
import gc
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed as dist
from _models import Case, mlp, resnet20, tiny_conv
from _report import Row, Table, asked, write
from _timing import Call, alternate, peak_memory, prepare, spread
from torch import Tensor

import dynprune as dp
from dynprune.operators import AbstractOperator, ShardedOperator

COLLECTIVES = {"all_reduce": 0, "all_gather": 1, "all_to_all_single": 1}
K, TOL = 10, 1e-3


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Say which rank this is, of how many, and where it computes.

    Args:
        rank: From 0.
        count: How many there are.
        device: Of this rank.
    """

    rank: int
    count: int
    device: torch.device

    def shared(self, case: Case) -> dp.GradientSystem:
        """Return the system of this rank's share of each batch."""
        data = [
            (x[self.rank :: self.count], y[self.rank :: self.count])
            for x, y in case.batches
        ]
        return dp.GradientSystem(
            case.model,
            case.loss,
            data[0] if len(data) == 1 else data,
            process_group=dist.group.WORLD,
        )

    def largest(self, number: float) -> float:
        """Return the largest of a number over the ranks."""
        found = torch.tensor(number, dtype=torch.float64, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return float(found)

    def alone(self, call: Call) -> Call:
        """Return a call that the first rank makes while the others wait."""

        def turn() -> object:
            made = call() if self.rank == 0 else None
            dist.barrier()
            return made

        return turn


def counted(call: Call) -> tuple[list[str], int]:
    """Return the collectives that a call makes, and the bytes this rank puts in."""
    seen: list[str] = []
    sent = [0]
    own = {name: getattr(dist, name) for name in COLLECTIVES}

    def watch(name: str) -> Callable[..., Any]:
        def collective(*given: Any, **named: Any) -> Any:
            tensor: Tensor = given[COLLECTIVES[name]]
            seen.append(name)
            sent[0] += tensor.nbytes
            return own[name](*given, **named)

        return collective

    try:
        for name in COLLECTIVES:
            setattr(dist, name, watch(name))
        call()
    finally:
        for name, function in own.items():
            setattr(dist, name, function)
    return seen, sent[0]


def products(case: Case, place: Place, *, columns: int, rounds: int) -> tuple[Row, Row]:
    """Return a row of throughputs, and one of what a product costs to send."""
    alone = dp.HessianOperator(case.system(), memory_budget=2**34)
    V = case.vectors(columns)
    shared = dp.HessianOperator(place.shared(case), memory_budget=2**34)
    whole, found = alone @ V, shared @ V
    taken = alternate(
        {"one": place.alone(lambda: alone @ V), "all": lambda: shared @ V},
        rounds=rounds,
        seconds=math.inf,  # ranks must not decide by their own clocks
        device=place.device,
    )
    calls, sent = counted(lambda: shared @ V)
    part = shared.local_product(V)
    batch = sum(len(y) for _, y in case.batches)
    what = f"{case.name}, {batch} examples in {len(case.batches)} batch(es)"
    speed = {
        "what": what,
        "columns": columns,
        "one process: products/s": spread([columns / t for t in taken["one"]]),
        f"{place.count} ranks: products/s": spread([columns / t for t in taken["all"]]),
        "speed-up": spread([
            a / b for a, b in zip(taken["one"], taken["all"], strict=True)
        ]),
        "difference": float((whole - found).norm() / whole.norm()),
    }
    reduce = alternate(
        {"all-reduce": lambda: dist.all_reduce(part)},
        rounds=rounds,
        seconds=math.inf,
        device=place.device,
    )
    traffic = {
        "what": what,
        "columns": columns,
        "P": case.size,
        "collectives": ", ".join(calls),
        "bytes": sent,
        "bytes of P numbers a column": columns * case.size * V.element_size(),
        "ms of the collective": spread([1e3 * t for t in reduce["all-reduce"]]),
    }
    return speed, traffic


def peak(call: Call, device: torch.device) -> int:
    """Return by how many bytes the memory rises at most during a call.

    On Linux without a GPU, of the process: gloo frees tensors in threads of its own,
    where torch's profiler does not look.
    """
    status = Path("/proc/self/status")
    if device.type == "cuda" or not status.exists():
        return peak_memory(call, device)
    gc.collect()
    with contextlib.suppress(AttributeError):  # what is freed goes back, with glibc
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again from here
    before, (kept, after) = _held(status, "VmRSS"), (call(), _held(status, "VmHWM"))
    del kept
    return after - before


def _held(status: Path, name: str) -> int:
    lines = status.read_text().splitlines()
    return 1024 * next(int(row.split()[1]) for row in lines if row.startswith(name))


def lanczos(case: Case, place: Place, *, rounds: int) -> list[Row]:
    """Return a row for whole and one for sharded vectors."""
    inner = dp.HessianOperator(place.shared(case))
    made: dict[str, AbstractOperator] = {
        "whole": inner,
        "sharded": ShardedOperator(inner),
    }

    def find(op: AbstractOperator) -> Any:
        return dp.spectral.eigenpairs(op, K, tol=TOL)

    found = {name: find(op) for name, op in made.items()}
    calls = {name: lambda op=op: find(op) for name, op in made.items()}
    taken = alternate(
        calls, rounds=rounds, seconds=math.inf, device=place.device, warm=0
    )
    vector = case.size * torch.finfo(case.dtype).bits // 8
    rows: list[Row] = []
    for name, op in made.items():
        most = place.largest(peak(calls[name], place.device))
        vectors = found[name].vectors[:, :1]
        product = counted(lambda op=op, vectors=vectors: op @ vectors)
        rows.append({
            "vectors": name,
            "P": case.size,
            "numbers of a vector on a rank": int(place.largest(op.rows.held)),
            "matvecs": found[name].matvecs,
            "seconds": spread(taken[name]),
            "peak on a rank, MiB": most / 2**20,
            "peak in P-vectors": most / vector,
            "collectives of a product": ", ".join(product[0]),
            "bytes of a product": product[1],
            "largest relative difference of values": float(
                (found[name].values / found["whole"].values - 1).abs().max()
            ),
        })
    return rows


def join(device: str) -> Place:
    """Enter the group that torchrun started; one of this process alone without it."""
    backend = "nccl" if device == "cuda" else "gloo"
    place = torch.device(device)
    if device == "cuda":
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if "RANK" in os.environ:
        dist.init_process_group(backend)
    else:
        with tempfile.NamedTemporaryFile(delete=False) as meeting:
            pass
        os.unlink(meeting.name)
        dist.init_process_group(
            backend,
            init_method=Path(meeting.name).as_uri(),
            rank=0,
            world_size=1,
        )
    return Place(rank=dist.get_rank(), count=dist.get_world_size(), device=place)


def measure(place: Place, *, quick: bool) -> list[Table]:
    """Return all tables; every rank makes the same calls."""
    rounds = 3 if quick else 15
    # the total batch, in one batch and in four, one vector and four
    net, batch = (tiny_conv, 16) if quick else (resnet20, 128)
    plan = [(1, 1), (1, 4)] if quick else [(1, 1), (1, 4), (4, 4)]
    pairs = [
        products(
            net(batch=batch // batches, batches=batches).to(place.device),
            place,
            columns=columns,
            rounds=rounds if columns == 1 else max(3, rounds // 3),
        )
        for batches, columns in plan
    ]
    wide = mlp(batch=64, width=30 if quick else 1000).to(place.device)
    rows = lanczos(wide, place, rounds=2 if quick else 3)
    tables = [
        Table(
            title=f"Products per second, one process and {place.count} rank(s)",
            rows=[speed for speed, _ in pairs],
            note="The total batch is the same. difference: of the products, relative.",
        ),
        Table(title="What a product sends", rows=[traffic for _, traffic in pairs]),
        Table(
            title=f"Lanczos, {K} pairs to {TOL:g}: {wide.name}",
            rows=rows,
            note="Peak: by how much the memory of a rank rises during the call, on "
            "the rank where it is most; the graph of the products is there before.",
        ),
    ]
    if place.count > 1:
        one = pairs[0]
        sent = one[1]["bytes"] / one[1]["bytes of P numbers a column"]
        tables.append(
            Table(
                title="Asked",
                rows=[
                    asked("speed-up of 2 ranks", 1.6, one[0]["speed-up"], least=True),
                    asked("bytes of a product / P numbers", 1.0, sent),
                    asked(
                        "peak memory of Lanczos, sharded / whole",
                        1.0,
                        rows[1]["peak on a rank, MiB"] / rows[0]["peak on a rank, MiB"],
                    ),
                ],
            )
        )
    return tables


def main() -> None:
    """Measure, and write the tables on the first rank."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("target", nargs="?", type=Path, help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="small and few")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    given = parser.parse_args()
    prepare()
    began = time.perf_counter()
    place = join(given.device)
    try:
        tables = measure(place, quick=given.quick)
        if place.rank == 0:
            start = f"torchrun --nproc-per-node={place.count}"
            write(
                given.target,
                tables,
                command=f"{start if place.count > 1 else 'python'} "
                f"benchmarks/hessian_distributed.py"
                f"{' --device cuda' if given.device == 'cuda' else ''}"
                f"{' --quick' if given.quick else ''}"
                f"{f' {given.target.as_posix()}' if given.target else ''}",
                device=place.device,
                began=began,
                absent={},
            )
        dist.barrier()  # a rank that leaves early takes the others' connections away
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
