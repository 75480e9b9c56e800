"""Measure Hessian-vector products against rivals, in gradients of the same batch.

    python benchmarks/hvp_cost.py benchmarks/results/hvp_cost.json
    python benchmarks/hvp_cost.py --quick
    python benchmarks/hvp_cost.py --device cuda benchmarks/results/hvp_cost_cuda.json

All methods of a table alternate in one process, on one thread; each ratio divides by a
plain autograd gradient of the same data in the same round. Relative errors are those
of a product in float32 against plain double backward in float64.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from _hvp_device import MODELS, device_tables
from _hvp_layers import LAYERS, layer_table
from _models import Case, mlp, resnet20, tiny_conv
from _ours import Ours, chosen, options
from _report import Row, Table, asked, write
from _rivals import FRESH, NAMES, AbstractProducts, installed, quiet, want, word
from _timing import (
    CPU_TIME,
    GRADIENT,
    Call,
    alternate,
    now,
    peak_memory,
    prepare,
    ratios,
    stage,
)
from torch import Tensor

CPU = torch.device("cpu")
OURS = "dynprune"
KNOWN = "dynprune, system known"
SLOW = {"linearised", "compiled"}  # to set up


def kinds(*, routes: bool = True) -> dict[str, Callable[[Case], AbstractProducts]]:
    """Return dynprune, dynprune by each route if asked for, and the rivals."""
    ours: dict[str, Callable[[Case], AbstractProducts]] = {OURS: Ours}
    for name, given in options().items() if routes else ():
        ours[f"{OURS} {name}"] = lambda case, given=given: Ours(case, **given)
    return ours | installed()


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Bench:
    """Hold each method's operator on a case, ready for repeated products.

    Args:
        case: The case.
        made: Method to operator, after its first product.
        set_up: Method to the seconds of construction and that product.
        failed: Method to a word of reason.
    """

    case: Case
    made: dict[str, AbstractProducts]
    set_up: dict[str, float]
    failed: dict[str, str]


def make(case: Case, names: list[str] | None = None) -> Bench:
    """Construct operators with one product each; a word for those that fail."""
    bench = Bench(case=case, made={}, set_up={}, failed={})
    vector = case.vectors(1)[:, 0]
    case.gradient()
    for name, kind in kinds().items():
        if names is not None and name not in names:
            continue
        own = case.copy()

        def begin(
            kind: Callable[[Case], AbstractProducts] = kind, own: Case = own
        ) -> AbstractProducts:
            one = kind(own)
            one.product(one.native(vector))
            return one

        try:
            with quiet():
                start = now()
                bench.made[name] = begin()
                bench.set_up[name] = now() - start
        except Exception as error:
            bench.failed[name] = word(error)
    return bench


def errors(case: Case, made: dict[str, AbstractProducts]) -> dict[str, float]:
    """Return each method's relative error against double backward in float64."""
    twin = case.to(torch.float64)
    fresh = installed()[FRESH](twin)
    vector = case.vectors(1)[:, 0]
    exact = fresh.flat(fresh.product(fresh.native(vector.double())))
    found = {}
    for name, one in made.items():
        with quiet():
            product = one.flat(one.product(one.native(vector))).double()
        found[name] = float((product - exact).norm() / exact.norm())
    return found


def repeated(bench: Bench, *, seconds: float, rounds: int) -> list[Row]:
    """Products at one state, after the first."""
    case, made = bench.case, bench.made
    vector = case.vectors(1)[:, 0]
    calls: dict[str, Call] = {GRADIENT: case.gradient}
    for name, one in made.items():
        native = one.native(vector)
        calls[name] = lambda one=one, native=native: one.product(native)
    with quiet():
        taken = alternate(calls, rounds=rounds, seconds=seconds, device=case.device)
    wrong = errors(case, made)
    rows: list[Row] = [
        {
            "network": case.name,
            "method": name,
            "product ÷ gradient": line["ratio"],
            "seconds": line["seconds"],
            "relative error": wrong[name],
            "how": chosen(made[name]),
        }
        for name, line in ratios(taken).items()
    ]
    rows += [
        {"network": case.name, "method": name, "how": why}
        for name, why in bench.failed.items()
    ]
    return rows


def first(bench: Bench, *, seconds: float, rounds: int) -> list[Row]:
    """Construction and one product; routes that trace or compile only once."""
    case = bench.case
    vector = case.vectors(1)[:, 0]
    known = case.system()
    known.check_deterministic()

    def whole(kind: Callable[[Case], AbstractProducts], case: Case) -> Call:
        native = kind(case).native(vector)
        return lambda: kind(case).product(native)

    everything = kinds()
    calls: dict[str, Call] = {
        GRADIENT: case.gradient,
        KNOWN: lambda: Ours(case, system=known).product(vector),
    }
    slow = [name for name in bench.made if name.split()[-1] in SLOW]
    for name in (OURS, *installed()):
        if name in bench.made:
            calls[name] = whole(everything[name], case.copy())
    with quiet():
        taken = alternate(
            calls, rounds=rounds, seconds=seconds, device=case.device, warm=0, least=2
        )
    gradient = statistics.median(taken[GRADIENT])
    found = ratios(taken)
    found |= {
        name: {"ratio": bench.set_up[name] / gradient, "seconds": bench.set_up[name]}
        for name in slow
    }
    return [
        {
            "network": case.name,
            "method": name,
            "construction and product ÷ gradient": line["ratio"],
            "seconds": line["seconds"],
            "the first of the process ÷ gradient": bench.set_up.get(name, 0) / gradient
            if name in bench.set_up
            else None,
        }
        for name, line in found.items()
    ]


def block_calls(made: dict[str, AbstractProducts], block: Tensor) -> dict[str, Call]:
    """Return the products with a block: at once, or looped."""
    calls: dict[str, Call] = {}
    for name, one in made.items():
        if one.batched:
            given = block if block.shape[1] > 1 else block[:, 0]
            calls[name] = lambda one=one, given=given: one.product(given)
        else:
            natives = [one.native(column) for column in block.unbind(1)]
            calls[name] = lambda one=one, natives=natives: [
                one.product(native) for native in natives
            ]
    return calls


def several(
    bench: Bench, names: list[str], *, k: int, seconds: float, rounds: int
) -> list[Row]:
    """Several vectors by the named methods, at once or looped."""
    case = bench.case
    made = {name: bench.made[name] for name in names if name in bench.made}
    calls: dict[str, Call] = {GRADIENT: case.gradient}
    calls |= block_calls(made, case.vectors(k))
    with quiet():
        taken = alternate(
            calls, rounds=rounds, seconds=seconds, device=case.device, warm=0, least=2
        )
    return [
        {
            "network": case.name,
            "batches": len(case.batches),
            "vectors": k,
            "method": name,
            "per vector ÷ gradient": line["ratio"],
            "seconds": line["seconds"],
            "how": chosen(made[name]),
        }
        for name, line in ratios(taken, per=float(k)).items()
    ]


def memory(case: Case, *, seconds: float, rivals: bool) -> list[Row]:
    """Peak memory, and time, of products in each mode."""
    vector = case.vectors(1)[:, 0]
    system = case.system()
    system.check_deterministic()
    base = peak_memory(case.gradient, case.device)
    half = base // 2
    modes = {
        f"{OURS}, memory_budget ½ gradient": {"memory_budget": half},
    }
    modes |= {
        f"{OURS} {name}": given
        for name, given in options().items()
        if name in {"rebuilt", "kept"} and rivals
    }
    calls: dict[str, Call] = {GRADIENT: case.gradient}
    peaks: dict[str, int | str] = {GRADIENT: base}

    def region(kind: Callable[[], AbstractProducts]) -> None:
        one = kind()
        native = one.native(vector)
        for _ in range(2):
            one.product(native)

    tried: dict[str, Callable[[], AbstractProducts]] = {
        f"{OURS}, default": lambda: Ours(case, system=system)
    }
    for name, given in modes.items():
        tried[name] = lambda given=given: Ours(case, system=system, **given)
    for name, kind in installed().items():
        # CoLA's product is curvlinops', BackPACK's takes more than any
        if rivals and name not in {"CoLA", "BackPACK"}:
            tried[name] = lambda kind=kind: kind(case.copy())
    for name, kind in tried.items():
        try:
            with quiet():
                peaks[name] = peak_memory(lambda kind=kind: region(kind), case.device)
        except Exception as error:
            peaks[name] = word(error)
    for name in modes | {FRESH: None}:
        if isinstance(peaks.get(name), int):
            one = tried[name]()
            native = one.native(vector)
            calls[name] = lambda one=one, native=native: one.product(native)
    with quiet():
        taken = alternate(
            calls, rounds=5, seconds=seconds, device=case.device, warm=0, least=2
        )
    times = ratios(taken)
    rows: list[Row] = []
    for name, peak in peaks.items():
        good = isinstance(peak, int)
        rows.append({
            "network": case.name,
            "batch": len(case.batches[0][1]),
            "method": name,
            "peak ÷ gradient's": peak / base if good else peak,
            "MiB": peak / 2**20 if good else None,
            "product ÷ gradient, time": times.get(name, {}).get("ratio"),
        })
    return rows


def growth(*, quick: bool, seconds: float) -> list[Row]:
    """Products as P, the batch, the block and the number of batches grow."""
    names = [OURS, "PyHessian", "curvlinops"]
    sweeps: dict[str, list[tuple[int, dict[str, int], int]]] = {
        "width": [(w, {"width": w}, 1) for w in (100, 300, 1000, 2000)],
        "batch": [(n, {"batch": n}, 1) for n in (64, 256, 1024, 4096)],
        "vectors k": [(k, {}, k) for k in (1, 2, 4, 8, 16, 32)],
        "batches of 256": [(b, {"batch": 256, "batches": b}, 8) for b in (2, 4, 8)],
    }
    rows: list[Row] = []
    for what, points in sweeps.items():
        for value, given, k in points[:1] if quick else points:
            case = mlp(**({"width": 30, "batch": 32} if quick else {}) | given)
            calls: dict[str, Call] = {GRADIENT: case.gradient}
            calls |= block_calls(make(case, names).made, case.vectors(k))
            with quiet():
                taken = alternate(calls, rounds=5, seconds=seconds, device=CPU)
            found = ratios(taken, per=float(k))
            rows.append({
                "growing": what,
                "value": value,
                "P": case.size,
                "vectors": k,
                "gradient, ms": 1e3
                * sorted(taken[GRADIENT])[len(taken[GRADIENT]) // 2],
                **{name: line["ratio"] for name, line in found.items()},
            })
    return rows


def _find(rows: list[Row], column: str, **wanted: object) -> object:
    for row in rows:
        if all(row.get(key) == value for key, value in wanted.items()):
            return row.get(column)
    return None


def _quotient(above: object, below: object) -> float | None:
    if not isinstance(above, dict) or not isinstance(below, dict):
        return None
    return above["median"] / below["median"]


def goals(
    again: list[Row],
    begun: list[Row],
    blocks: list[Row],
    loops: list[Row],
    mem: list[Row],
) -> list[Row]:
    """Compare with what the issue asks."""
    ratio, whole = "product ÷ gradient", "construction and product ÷ gradient"
    per, rows = "per vector ÷ gradient", []
    networks = list(dict.fromkeys(row["network"] for row in again))
    for network, one, eight in zip(networks, (1.2, 2.3), (1.2, 2.6), strict=True):
        here = {"network": network, "method": OURS}
        rows += [
            asked(f"{network}: repeated", one, _find(again, ratio, **here)),
            asked(
                f"{network}: first, ÷ PyHessian's",
                1.0,
                _quotient(
                    _find(begun, whole, network=network, method=KNOWN),
                    _find(begun, whole, network=network, method="PyHessian"),
                ),
            ),
            asked(f"{network}: 8 at once", eight, _find(blocks, per, **here)),
            asked(
                f"{network}: 8 in lockstep over mini-batches",
                2.6,
                _find(loops, per, vectors=8, **here),
            ),
        ]
    last = {"network": networks[-1]}
    rival = _find(blocks, per, method="curvlinops", **last)
    gain = _quotient(rival, _find(blocks, per, method=OURS, **last))
    rows.append(asked("8 at once, curvlinops' ÷ ours", 1.7, gain, least=True))
    kept = _find(mem, "peak ÷ gradient's", method=f"{OURS}, default")
    half = f"{OURS}, memory_budget ½ gradient"
    rows.append(asked("peak memory, kept graph ÷ gradient's", 2.7, kept))
    peak = _find(mem, "peak ÷ gradient's", method=half)
    rows.append(asked("peak memory, budget ½ ÷ gradient's", 0.5, peak))
    times = "product ÷ gradient, time"
    slower = _quotient(_find(mem, times, method=half), _find(mem, times, method=FRESH))
    rows.append(asked("time with that budget ÷ a fresh product's", 1.1, slower))
    return rows


def cpu_tables(*, quick: bool, slow: bool) -> list[Table]:
    """Measure everything on one CPU thread."""
    few = 0.2 if quick else 1.0
    rounds = 1 if quick else 15
    cases = [mlp(batch=32, width=30), tiny_conv()] if quick else [mlp(), resnet20()]
    loops = (
        [mlp(batch=16, batches=2, width=30), tiny_conv(batch=4, batches=2)]
        if quick
        else [mlp(batches=4), resnet20(batch=32, batches=4)]
    )
    again: list[Row] = []
    begun: list[Row] = []
    blocks: list[Row] = []
    lockstep: list[Row] = []
    everything = [*kinds(routes=not quick)]
    large = [OURS, f"{OURS} batched", "curvlinops"]  # what batches, in few seconds
    for case, parts in zip(cases, loops, strict=True):
        small = quick or case is cases[0]
        stage(case.name)
        skipped = set() if small or slow else {f"{OURS} {name}" for name in SLOW}
        bench = make(case, [name for name in everything if name not in skipped])
        again += repeated(bench, seconds=20 * few, rounds=rounds)
        stage("  first products")
        begun += first(bench, seconds=10 * few, rounds=rounds)
        stage("  eight at once")
        names = everything if small else large
        blocks += several(bench, names, k=8, seconds=15 * few, rounds=rounds)
        del bench
        stage("  mini-batches")
        loop = make(parts, [OURS, *installed()])
        names = [*loop.made]
        lockstep += several(loop, names, k=1, seconds=10 * few, rounds=rounds)
        names = names if small else large
        lockstep += several(loop, names, k=8, seconds=15 * few, rounds=rounds)
        del loop
    big = tiny_conv() if quick else resnet20(batch=256)
    mem = memory(big, seconds=20 * few, rivals=not quick)
    stage("layers")
    few_layers = ("Linear", "LayerNorm", "attention") if quick else tuple(LAYERS)
    layered = kinds(routes=not quick)
    layered.pop(f"{OURS} compiled", None)
    stage("growth")
    grown = growth(quick=quick, seconds=2 * few)
    return [
        Table(title="Asked and found", rows=goals(again, begun, blocks, lockstep, mem)),
        Table(
            title="Repeated products at one state",
            rows=again,
            note="How: what dynprune chose, or why a method gave nothing.",
        ),
        Table(
            title="First product",
            rows=begun,
            note="From the model to the first product, and, in the row 'system known', "
            "from a GradientSystem that was used before.",
        ),
        Table(
            title="Eight vectors at once",
            rows=blocks,
            note="Methods that are missing loop, at the cost of repeated products.",
        ),
        Table(title="Mini-batches of a data set in lockstep", rows=lockstep),
        Table(
            title="Peak memory",
            rows=mem,
            note="Construction and two products; the profiler's record of torch.",
        ),
        Table(
            title="Relative error by layer, float64, against finite differences",
            rows=layer_table(layered, layers=few_layers),
        ),
        Table(title="Growth, per vector ÷ gradient", rows=grown),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, nargs="?", help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, seconds")
    parser.add_argument("--device", help="products per second on this device instead")
    parser.add_argument("--models", nargs="+", choices=sorted(MODELS), default=None)
    parser.add_argument("--rounds", type=int, default=11, help="on a device")
    parser.add_argument("--peak-tflops", type=float, default=None)
    parser.add_argument(
        "--slow", action="store_true", help="trace and compile ResNet-20 too"
    )
    parser.add_argument("--cpu-time", action="store_true", help=CPU_TIME)
    parser.add_argument("--rivals", nargs="*", choices=NAMES, help="only these")
    given = parser.parse_args(arguments)
    began, missing = time.perf_counter(), want(given.rivals)
    prepare(cpu_time=given.cpu_time)
    command = ["python benchmarks/hvp_cost.py", "--quick" * given.quick]
    if given.device:
        command.append(f"--device {given.device} --rounds {given.rounds}")
        if given.peak_tflops is not None:
            command.append(f"--peak-tflops {given.peak_tflops}")
        if given.models:
            command.append(f"--models {' '.join(given.models)} --")
        device = torch.device(given.device)
        tables = device_tables(
            device,
            models=given.models,
            quick=given.quick,
            tflops=given.peak_tflops,
            rounds=given.rounds,
        )
    else:
        device = CPU
        tables = cpu_tables(quick=given.quick, slow=given.slow)
    write(
        given.target,
        tables,
        command=" ".join(part for part in [*command, str(given.target or "")] if part),
        device=device,
        began=began,
        absent=missing,
    )


if __name__ == "__main__":
    main()
