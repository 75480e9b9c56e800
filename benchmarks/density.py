"""Measure spectral densities, traces and their error bars against rivals.

    python benchmarks/density.py benchmarks/results/density.json
    python benchmarks/density.py --quick

The exact spectrum is LAPACK's of the dense Hessian in float64. The distance of two
spectral measures, neither smoothed, is Wasserstein-1: the mean distance that an
eigenvalue has to be moved, in units of the Hessian. Methods of a table spend the same
number of products; every split into probes and steps is shown, and the best of a rival
is what ours is compared with.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _exact import spectrum
from _models import MIDDLE_DIGITS, SMALL_DIGITS, Case, digits_mlp
from _report import Row, Table, asked, write
from _rivals import DENSITIES, NAMES, TRACES, absent, quiet, want
from _timing import CPU_TIME, now, prepare, spread, stage
from scipy.stats import wasserstein_distance
from torch import Tensor

import dynprune as dp

CPU = torch.device("cpu")
OURS = "dynprune"
POINTS = 50
LEVEL = 0.95


def distance(nodes: Tensor, weights: Tensor, exact: Tensor) -> float:
    """Return Wasserstein-1 of a measure to the exact spectrum."""
    found = wasserstein_distance(nodes.numpy(), exact.numpy(), weights.numpy())
    return float(found)


def smoothed(exact: Tensor, points: Tensor, width: float) -> Tensor:
    """Return the exact density convolved with a Gaussian kernel."""
    z = (points[:, None] - exact) / width
    return torch.exp(-0.5 * z.square()).mean(1) / (width * math.sqrt(2 * math.pi))


def rivals(table: dict[str, Callable]) -> dict[str, Callable]:
    """Return the entries whose rivals are not left out."""
    return {name: run for name, run in table.items() if name not in absent()}


def distances(
    case: Case, exact: Tensor, *, matvecs: int, splits: tuple[int, ...], seeds: range
) -> list[Row]:
    """Every method's distance to the exact spectrum, and the error of its trace."""
    op = dp.HessianOperator(case.system())

    def ours(
        case: Case,
        *,
        probes: int,
        steps: int,
        seed: int,
    ) -> tuple[Tensor, Tensor]:
        found = dp.spectral.density(op, probes=probes, steps=steps, seed=seed)
        assert found.matvecs <= probes * steps
        return found.measure()

    def theirs(run: Callable) -> Callable[..., tuple[Tensor, Tensor]]:
        def measure(case: Case, **options: int) -> tuple[Tensor, Tensor]:
            found = run(case.copy(), **options)
            return found.nodes, found.weights

        return measure

    methods = {OURS: ours} | {n: theirs(run) for n, run in rivals(DENSITIES).items()}
    rows: list[Row] = []
    for name, run in methods.items():
        for probes in splits:
            far: list[float] = []
            off: list[float] = []
            took: list[float] = []
            for seed in seeds:
                start = now()
                with quiet():
                    nodes, weights = run(
                        case, probes=probes, steps=matvecs // probes, seed=seed
                    )
                took.append(now() - start)
                far.append(distance(nodes, weights, exact))
                trace = float(nodes @ weights) * len(exact)
                off.append(abs(trace / float(exact.sum()) - 1))
            rows.append({
                "network": case.name,
                "method": name,
                "probes": probes,
                "steps": matvecs // probes,
                "Wasserstein-1": spread(far),
                "relative error of the trace": spread(off),
                "seconds": statistics.median(took),
            })
    return rows


def along(exact: Tensor, width: float) -> Tensor:
    """Return points evenly along the spectrum, where there is one to be seen."""
    fine = torch.linspace(float(exact.min()), float(exact.max()), 4001).double()
    peak = 1 / (len(exact) * width * math.sqrt(2 * math.pi))
    heavy = fine[smoothed(exact, fine, width) >= 0.1 * peak]
    return heavy[torch.linspace(0, len(heavy) - 1, POINTS).round().long()]


def by_mass(exact: Tensor, width: float) -> Tensor:
    """Return points that halve equal shares of the smoothed density."""
    low, high = float(exact.min()) - 4 * width, float(exact.max()) + 4 * width
    fine = torch.linspace(low, high, 40_001).double()
    mass = smoothed(exact, fine, width).cumsum(0)
    shares = (torch.arange(POINTS).double() + 0.5) / POINTS
    return fine[torch.searchsorted(mass / mass[-1], shares)]


def coverage(case: Case, exact: Tensor, *, runs: int, splits: tuple) -> list[Row]:
    """How often the band holds the exact density convolved with the same kernel."""
    op = dp.HessianOperator(case.system())
    rows: list[Row] = []
    for probes, steps in splits:
        first = dp.spectral.density(op, probes=probes, steps=steps, level=LEVEL)
        points = torch.cat([by_mass(exact, first.width), along(exact, first.width)])
        true = smoothed(exact, points, first.width)
        held = torch.zeros(len(points), dtype=torch.float64)
        halves: list[float] = []
        for seed in range(runs):
            with quiet():
                found = dp.spectral.density(
                    op,
                    probes=probes,
                    steps=steps,
                    width=first.width,
                    grid=points,
                    level=LEVEL,
                    seed=seed,
                )
            held += (found.lower <= true) & (true <= found.upper)
            half = 0.5 * (found.upper - found.lower) / true
            halves.append(float(half[:POINTS].median()))
        share = held / runs
        rows.append({
            "network": case.name,
            "P": case.size,
            "probes": probes,
            "steps": steps,
            "runs": runs,
            "kernel width": first.width,
            "covered, by mass": float(share[:POINTS].mean()),
            "its worst point": float(share[:POINTS].min()),
            "covered, along the spectrum": float(share[POINTS:].mean()),
            "half width ÷ density, by mass": statistics.median(halves),
        })
    return rows


def traces(case: Case, exact: Tensor, *, matvecs: int, seeds: range) -> list[Row]:
    """The error of every method's trace with so many products."""
    op, true = dp.HessianOperator(case.system()), float(exact.sum())
    found: dict[str, tuple[list[float], list[float], list[bool]]] = {}
    for seed in seeds:
        for method in ("xtrace", "hutch++", "hutchinson"):
            ours = dp.spectral.trace(op, matvecs=matvecs, method=method, seed=seed)
            error, spent, held = found.setdefault(f"{OURS} {method}", ([], [], []))
            error.append(abs(ours.value / true - 1))
            spent.append(ours.matvecs)
            held.append(ours.interval[0] <= true <= ours.interval[1])
        for name, run in rivals(TRACES).items():
            with quiet():
                value, used = run(case.copy(), matvecs=matvecs, seed=seed)
            error, spent, _ = found.setdefault(name, ([], [], []))
            error.append(abs(value / true - 1))
            spent.append(used)
    return [
        {
            "network": case.name,
            "P": case.size,
            "method": name,
            "products": statistics.median(spent),
            "relative error": spread(error),
            "95 % interval holds": sum(held) / len(held) if held else None,
        }
        for name, (error, spent, held) in found.items()
    ]


def functions(case: Case, exact: Tensor, *, matvecs: int, seeds: range) -> list[Row]:
    """Traces of functions, and how often their 95 % intervals hold the exact value."""
    mu = 0.1 * float(exact.max()) - min(0.0, float(exact.min()))
    op = dp.HessianOperator(case.system())
    estimates: dict[str, tuple[float, Callable[[int], dp.spectral.Trace]]] = {
        "trace": (
            float(exact.sum()),
            lambda seed: dp.spectral.trace(op, matvecs=matvecs, seed=seed),
        ),
        "Frobenius norm": (
            float(exact.square().sum().sqrt()),
            lambda seed: dp.spectral.frobenius_norm(op, matvecs=matvecs, seed=seed),
        ),
        "log-determinant of H + μI": (
            float((exact + mu).log().sum()),
            lambda seed: dp.spectral.log_determinant(op, mu, seed=seed),
        ),
        "effective dimension": (
            float((exact / (exact + mu)).sum()),
            lambda seed: dp.spectral.effective_dimension(op, mu, seed=seed),
        ),
    }
    rows: list[Row] = []
    for name, (true, estimate) in estimates.items():
        with quiet():
            found = [estimate(seed) for seed in seeds]
        held = [one.interval[0] <= true <= one.interval[1] for one in found]
        rows.append({
            "network": case.name,
            "P": case.size,
            "quantity": name,
            "exact": true,
            "products": statistics.median(one.matvecs for one in found),
            "relative error": spread([abs(one.value / true - 1) for one in found]),
            "runs": len(held),
            "95 % interval holds": sum(held) / len(held),
        })
    return rows


def goals(far: list[Row], bands: list[Row]) -> list[Row]:
    """Compare with what the issue asks."""

    def best(rows: list[Row], name: str, column: str) -> float | None:
        values = [row[column]["median"] for row in rows if row["method"] == name]
        return min(values) if values else None

    rows: list[Row] = []
    mine = best(far, OURS, "Wasserstein-1")
    for name in DENSITIES:
        other = best(far, name, "Wasserstein-1")
        ratio = None if other is None else mine / other
        rows.append(asked(f"Wasserstein-1 ÷ {name}'s", 0.5, ratio))
    for row in bands:
        what = f"band of {row['probes']} × {row['steps']}: covered, by mass"
        rows += [
            asked(what, 0.90, row["covered, by mass"], least=True),
            asked(what, 0.99, row["covered, by mass"]),
        ]
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, nargs="?", help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, seconds")
    parser.add_argument("--cpu-time", action="store_true", help=CPU_TIME)
    parser.add_argument("--rivals", nargs="*", choices=NAMES, help="only these")
    given = parser.parse_args(arguments)
    began, missing = time.perf_counter(), want(given.rivals)
    prepare(cpu_time=given.cpu_time)
    quick = given.quick
    stage("the dense spectrum")
    widths = SMALL_DIGITS if quick else MIDDLE_DIGITS
    small = digits_mlp(steps=30 if quick else 300, widths=widths)
    exact_small = spectrum(small)
    case, exact = small, exact_small
    if not quick:
        case = digits_mlp()
        exact = spectrum(case)
    stage("distances")
    far = distances(
        case,
        exact,
        matvecs=24 if quick else 200,
        splits=(4,) if quick else (2, 4, 8, 20),
        seeds=range(1 if quick else 5),
    )
    stage("bands")
    bands = coverage(
        small,
        exact_small,
        runs=4 if quick else 200,
        splits=((4, 6),) if quick else ((2, 50), (8, 25)),
    )
    stage("traces")
    sums = traces(
        small if quick else case,
        exact_small if quick else exact,
        matvecs=9 if quick else 99,
        seeds=range(2 if quick else 20),
    )
    stage("functions")
    more = functions(
        small,
        exact_small,
        matvecs=9 if quick else 99,
        seeds=range(2 if quick else 100),
    )
    tables = [
        Table(title="Asked and found", rows=goals(far, bands)),
        Table(title="Distance to the exact spectrum", rows=far),
        Table(
            title="Coverage of the 95 % band",
            rows=bands,
            note=f"At {POINTS} points that halve equal shares of the exact smoothed "
            f"density, and at {POINTS} evenly along the spectrum where it is at least "
            "a tenth of one eigenvalue's peak.",
        ),
        Table(title="Traces", rows=sums),
        Table(title="Functions of the Hessian", rows=more),
    ]
    how = "--cpu-time" * given.cpu_time
    parts = ("python benchmarks/density.py", "--quick" * quick, given.target, how)
    write(
        given.target,
        tables,
        command=" ".join(str(part) for part in parts if part),
        device=CPU,
        began=began,
        absent=missing,
    )


if __name__ == "__main__":
    main()
