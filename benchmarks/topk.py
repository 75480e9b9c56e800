"""Measure the exact global choice of the highest scores against torch.kthvalue.

    python benchmarks/topk.py benchmarks/results/topk.json
    python benchmarks/topk.py --quick

The choice is what every pruner ends in: exactly K of all scores, over all layers, ties
to the lower flat index, given as masks. torch.kthvalue only finds the threshold, and of
scores that lie in one tensor already.
"""

import argparse
import time
from pathlib import Path

import torch
from _report import Row, Table, asked, write
from _timing import CPU_TIME, alternate, peak_memory, prepare, ratios, stage
from torch import Tensor

from dynprune.core import generator
from dynprune.pruning import kept_count
from dynprune.pruning._select import select

CPU = torch.device("cpu")
BASE = "torch.kthvalue"
OURS = "select"
DENSITY = 0.1
# how scores are spread over layers: a few large ones, and many small ones
SHARES = (0.3, 0.25, 0.2, 0.15, *[0.1 / 50] * 50)


def layers(size: int, kind: str) -> dict[str, Tensor]:
    """Return float32 scores of a network: distinct, or half of them zero."""
    make, found = generator(0), {}
    for place, share in enumerate(SHARES):
        part = torch.randn(max(1, round(size * share)), generator=make)
        found[f"{place}"] = part.abs_() if kind == "distinct" else part.clamp_min_(0)
    return found


def measure(size: int, kind: str, *, rounds: int) -> Row:
    """Time both in turn, and measure the memory of each; check the masks."""
    scores = layers(size, kind)
    alive = {
        name: torch.ones(part.shape, dtype=torch.bool) for name, part in scores.items()
    }
    flat = torch.cat(list(scores.values()))
    count = kept_count(DENSITY, len(flat))
    calls = {
        BASE: lambda: flat.kthvalue(len(flat) - count + 1),
        OURS: lambda: select(scores, alive, density=DENSITY),
    }
    masks = calls[OURS]()
    assert sum(int(mask.sum()) for mask in masks.values()) == count
    level = calls[BASE]().values
    assert all(bool((scores[n][m] >= level).all()) for n, m in masks.items())
    del masks
    taken = alternate(calls, rounds=rounds, seconds=120.0, device=CPU, warm=0)
    found = ratios(taken, base=BASE)[OURS]
    own = flat.numel() * flat.element_size()
    return {
        "scores": len(flat),
        "kind": kind,
        "select ÷ kthvalue": found["ratio"],
        "seconds": found["seconds"],
        "memory ÷ scores": peak_memory(calls[OURS], CPU) / own,
        "kthvalue: memory ÷ scores": peak_memory(calls[BASE], CPU) / own,
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("target", nargs="?", type=Path, help="JSON; a .md beside it")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, seconds")
    parser.add_argument("--cpu-time", action="store_true", help=CPU_TIME)
    given = parser.parse_args(arguments)
    began = time.perf_counter()
    prepare(cpu_time=given.cpu_time)
    sizes = (10_000, 30_000) if given.quick else (10**6, 10**7, 10**8)
    rows = []
    for size in sizes:
        for kind in ("distinct", "half zero"):
            if size == 10**8 and kind != "distinct":
                continue  # once is enough for a machine that is shared
            stage(f"{size} scores, {kind}")
            rows.append(measure(size, kind, rounds=3 if size == 10**8 else 9))
    largest = max(rows, key=lambda row: row["scores"])
    goals = [
        asked("select ÷ kthvalue, largest", 3.0, largest["select ÷ kthvalue"]),
        # kthvalue takes 3 itself; one copy in their own dtype, and masks, make it 4
        asked("memory ÷ scores, largest", 5.0, largest["memory ÷ scores"]),
    ]
    tables = [
        Table(title="Asked and found", rows=goals),
        Table(
            title="Choosing the highest scores",
            rows=rows,
            note=f"float32 scores in {len(SHARES)} layers, density {DENSITY}, exact "
            "count and ties to the lower index. Memory is what a call allocates at its "
            "peak, beside the scores, the masks that it returns included (¼).",
        ),
    ]
    words = ("python benchmarks/topk.py", given.target)
    flags = ("--quick" * given.quick, "--cpu-time" * given.cpu_time)
    write(
        given.target,
        tables,
        command=" ".join(str(part) for part in (*words, *flags) if part),
        device=CPU,
        began=began,
        absent={},
    )


if __name__ == "__main__":
    main()
