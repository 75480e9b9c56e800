"""Measure eigenpairs against rivals: seconds, products, residuals, true enclosures.

    python benchmarks/eigenpairs.py benchmarks/results/eigenpairs.json
    python benchmarks/eigenpairs.py --quick

Seconds include the making of the operator from the model. Residuals |Hv − ρv| are of
products in float64, divided by the largest eigenvalue, whatever a method reports;
errors are against LAPACK's spectrum of the dense Hessian in float64. Methods that run a
number of steps rather than to a tolerance are given the smallest multiple of five that
reaches it, found before the timing. Gradients of time are seconds divided by those of
one gradient of the same data in the same round.
"""

import argparse
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _exact import spectrum
from _models import SMALL_DIGITS, Case, DiagonalOperator, digits_conv, digits_mlp, mlp
from _ours import Ours
from _report import Row, Table, asked, write
from _rivals import (
    FRESH,
    NAMES,
    Found,
    absent,
    cola_top,
    curvlinops_top,
    eigenthings_top,
    eigsh_top,
    installed,
    pyhessian_top,
    quiet,
    want,
)
from _timing import (
    CPU_TIME,
    GRADIENT,
    Call,
    Samples,
    alternate,
    now,
    peak_memory,
    prepare,
    ratios,
    spread,
    stage,
)
from torch import Tensor

import dynprune as dp

CPU = torch.device("cpu")
OURS = "dynprune"
TOL = 1e-4
Solver = Callable[[int], Found]


def ours(case: Case, k: int, *, seed: int, which: str = "LA", **options: object) -> Row:
    """Run dynprune from the model to the pairs."""
    made = dp.HessianOperator(case.system())
    pairs = dp.spectral.eigenpairs(made, k, tol=TOL, seed=seed, which=which, **options)
    return {"pairs": pairs, "found": _found(pairs)}


def _found(pairs: dp.spectral.Eigenpairs) -> Found:
    return Found(values=pairs.values, vectors=pairs.vectors, matvecs=pairs.matvecs)


def worst_residual(case: Case, found: Found) -> float:
    """Return the largest |Hv − ρv| / |v| in float64, relative to the largest value."""
    twin = case.to(torch.float64)
    fresh = installed()[FRESH](twin)
    worst = 0.0
    vectors = found.vectors.double()
    for value, v in zip(found.values.double(), vectors.unbind(1), strict=True):
        unit = v / v.norm()
        product = fresh.flat(fresh.product(fresh.native(unit)))
        worst = max(worst, float((product - value * unit).norm()))
    return worst / float(found.values.abs().max())


def worst_error(found: Found, exact: Tensor) -> float:
    """Return the largest error of the values, relative to the largest of them."""
    values = found.values.double().sort(descending=True).values
    return float((values - exact[: len(values)]).abs().max() / exact[0])


def enclosures_true(pairs: dp.spectral.Eigenpairs, exact: Tensor) -> bool:
    """Say whether each enclosure holds an eigenvalue of its own: what they assert."""
    left = exact.tolist()
    for low, high in sorted(pairs.enclosures.tolist(), key=lambda ends: ends[1]):
        inside = [value for value in left if low <= value <= high]
        if not inside:
            return False
        left.remove(min(inside))
    return True


def missed(pairs: dp.spectral.Eigenpairs, wanted: Tensor) -> int:
    """Count the eigenvalues that were asked for and are in no enclosure."""
    low, high = pairs.enclosures.T
    inside = (low <= wanted[:, None]) & (wanted[:, None] <= high)
    return int((~inside.any(1)).sum())


def fewest_steps(
    case: Case, run: Callable[..., Found], k: int, *, seed: int, most: int
) -> int | None:
    """Return the smallest multiple of five with all residuals below the tolerance."""
    for steps in range(5 * (k // 5 + 1), most + 1, 5):
        with quiet():
            if worst_residual(case, run(case.copy(), k, seed=seed, steps=steps)) <= TOL:
                return steps
    return None


def solvers(case: Case, k: int, *, seed: int) -> dict[str, Callable[[], Found]]:
    """Return what each method runs, from the model to the pairs."""
    missing = absent()
    runs: dict[str, Callable[[], Found]] = {
        OURS: lambda: ours(case, k, seed=seed)["found"],
        "PyHessian, default": lambda: pyhessian_top(case.copy(), k, seed=seed),
        "curvlinops + eigsh": lambda: curvlinops_top(
            case.copy(), k, seed=seed, tol=TOL
        ),
        "SciPy eigsh, dynprune's product": lambda: eigsh_top(
            Ours(case).product, case.size, case.dtype, k, seed=seed, tol=TOL
        ),
    }
    stepped: dict[str, Callable[..., Found]] = {
        "hessian-eigenthings": eigenthings_top,
        "CoLA": cola_top,
    }
    for name, run in stepped.items():
        if name in missing:
            continue
        steps = fewest_steps(case, run, k, seed=seed, most=min(300, case.size - 1))
        if steps is not None:
            runs[f"{name}, {steps} steps"] = functools.partial(
                run, case.copy(), k, seed=seed, steps=steps
            )
    return {
        name: run
        for name, run in runs.items()
        if not any(name.startswith(rival) for rival in missing)
    }


def top(
    case: Case, k: int, exact: Tensor | None, *, seeds: range, rounds: int
) -> list[Row]:
    """The k largest pairs by every method, over seeds of the start vector."""
    lines: dict[str, dict[str, list[float]]] = {}
    truths: list[bool] = []
    lost = 0
    for seed in seeds:
        runs = solvers(case, k, seed=seed)
        with quiet():
            results = {name: run() for name, run in runs.items()}
            calls: dict[str, Call] = {GRADIENT: case.gradient, **runs}
            taken = alternate(calls, rounds=rounds, seconds=30.0, device=CPU, least=1)
        for name, found in results.items():
            line = lines.setdefault(name.split(" steps")[0].rstrip("0123456789 ,"), {})
            numbers = {
                "seconds": ratios(taken)[name]["seconds"],
                "gradients of time": ratios(taken)[name]["ratio"]["median"],
                "products": found.matvecs,
                "worst residual": worst_residual(case, found),
            }
            if exact is not None:
                numbers["worst error"] = worst_error(found, exact)
            for key, value in numbers.items():
                line.setdefault(key, []).append(value)
        if exact is not None:
            pairs = ours(case, k, seed=seed)["pairs"]
            truths.append(enclosures_true(pairs, exact))
            lost += missed(pairs, exact[:k])
    rows: list[Row] = []
    for name, line in lines.items():
        row: dict[str, object] = {"network": case.name, "pairs": k, "method": name}
        row |= {key: spread(values) for key, values in line.items()}
        if name == OURS and truths:
            row["enclosures true"] = f"{sum(truths)} of {len(truths)}"
            row["eigenvalues missed"] = lost
        rows.append(row)
    return rows


def many_coordinates(*, size: int, k: int) -> list[Row]:
    """K pairs of diag(30/i): products, and P-vectors of memory at the peak."""
    diagonal = 30 / torch.arange(1.0, size + 1)
    op = DiagonalOperator(diagonal)
    caught: list[Found] = []

    def run() -> None:
        caught.append(_found(dp.spectral.eigenpairs(op, k, tol=TOL)))

    start = now()
    peak = peak_memory(run, CPU)
    seconds = now() - start
    vectors = peak / (size * diagonal.element_size())
    exact = diagonal[:k].double()
    rows: list[Row] = [
        {
            "P": size,
            "pairs": k,
            "method": OURS,
            "products": caught[0].matvecs,
            "P-vectors at the peak": vectors,
            "seconds": seconds,
            "worst error": worst_error(caught[0], exact),
        }
    ]
    basis = max(k + 2, int(vectors) - 4)
    start = now()
    found = eigsh_top(
        lambda v: diagonal * v, size, op.dtype, k, seed=0, tol=TOL, basis=basis
    )
    rows.append({
        "P": size,
        "pairs": k,
        "method": "SciPy eigsh, as many P-vectors",
        "products": found.matvecs,
        "P-vectors at the peak": float(basis + 4),
        "seconds": now() - start,
        "worst error": worst_error(found, exact),
    })
    return rows


@functools.cache
def solver_vectors(k: int, *, size: int = 100_000) -> float:
    """Return the P-vectors that our solver allocates at its peak for k pairs.

    On diag(30/i), whose products allocate one P-vector only: on a network the
    activations would be counted too.
    """
    op = DiagonalOperator(30 / torch.arange(1.0, size + 1))
    peak = peak_memory(lambda: dp.spectral.eigenpairs(op, k, tol=TOL), CPU)
    return peak / (size * 4)


def equal_memory(cases: list[Case], ks: tuple[int, ...], seeds: range) -> list[Row]:
    """Products of ours, and the fewest of eigsh with that many P-vectors or less.

    ARPACK holds its basis and four vectors more. It looks at its residuals when the
    basis is full, so three sizes are tried. Its tolerance is relative to each value,
    so it is also run with one that allows the residual that ours allows.
    """
    rows: list[Row] = []
    for case in cases:
        system = case.system()
        for k in ks:
            op = dp.HessianOperator(system)
            basis = min(max(2 * k + 1, int(solver_vectors(k)) - 4), case.size - 1)
            counts: dict[str, list[float]] = {}
            for seed in seeds:
                found = _found(dp.spectral.eigenpairs(op, k, tol=TOL, seed=seed))
                loose = TOL * float(found.values.max() / found.values.min())
                counts.setdefault(OURS, []).append(found.matvecs)
                fewest = {name: math.inf for name in ("eigsh", "eigsh, same residual")}
                for name, tol in zip(fewest, (TOL, loose), strict=True):
                    for ncv in {2 * k + 1, (basis + 2 * k + 1) // 2, basis}:
                        rival = eigsh_top(
                            lambda v, op=op: op @ v,
                            case.size,
                            case.dtype,
                            k,
                            seed=seed,
                            tol=tol,
                            basis=ncv,
                        )
                        fewest[name] = min(fewest[name], rival.matvecs)
                    counts.setdefault(name, []).append(fewest[name])
            rows.append({
                "network": case.name,
                "pairs": k,
                "P-vectors": float(basis + 4),
                **{name: spread(values) for name, values in counts.items()},
            })
    return rows


def both_ends(case: Case, k: int, exact: Tensor, seeds: range) -> list[Row]:
    """K pairs of both ends in one run, and in two."""
    rows: list[Row] = []
    for seed in seeds:
        one = ours(case, k, seed=seed, which="BE")["pairs"]
        high = ours(case, (k + 1) // 2, seed=seed, which="LA")["pairs"]
        low = ours(case, k // 2, seed=seed, which="SA")["pairs"]
        true = torch.cat([exact[: (k + 1) // 2], exact[len(exact) - k // 2 :]])
        rows.append({
            "network": case.name,
            "pairs": k,
            "seed": seed,
            "products, one run": one.matvecs,
            "products, two runs": high.matvecs + low.matvecs,
            "worst error": float((one.values - true).abs().max() / exact[0]),
            "enclosures true": enclosures_true(one, exact),
            "eigenvalues missed": missed(one, true),
        })
    return rows


def growth(*, quick: bool) -> list[Row]:
    """Seconds and products as P and k grow."""
    points: list[tuple[str, Case, int]] = [
        ("P", mlp(batch=256, width=width), 2 if quick else 10)
        for width in ((30,) if quick else (30, 100, 300, 1000))
    ]
    net = digits_mlp(**({"steps": 30, "widths": SMALL_DIGITS} if quick else {}))
    points += [("k", net, k) for k in ((2,) if quick else (1, 5, 10, 20, 50))]
    rows: list[Row] = []
    for what, case, k in points:
        runs: dict[str, Callable[[], Found]] = {
            OURS: lambda case=case, k=k: ours(case, k, seed=0)["found"]
        }
        if "curvlinops" not in absent():
            runs["curvlinops + eigsh"] = lambda case=case, k=k: curvlinops_top(
                case.copy(), k, seed=0, tol=TOL
            )
        calls: dict[str, Call] = {GRADIENT: case.gradient, **runs}
        with quiet():
            results = {name: run() for name, run in runs.items()}
            taken: Samples = alternate(
                calls, rounds=3, seconds=5.0, device=CPU, warm=0, least=1
            )
        row: dict[str, object] = {
            "growing": what,
            "network": case.name,
            "P": case.size,
            "pairs": k,
        }
        for name, line in ratios(taken).items():
            row |= {
                f"{name}: products": results[name].matvecs,
                f"{name}: gradients of time": line["ratio"],
            }
        rows.append(row)
    return rows


def _column(rows: list[Row], method: str, column: str) -> float | None:
    for row in rows:
        if row["method"].startswith(method) and column in row:
            value = row[column]
            return value["median"] if isinstance(value, dict) else value
    return None


def goals(ten: list[Row], thirty: list[Row], wide: list[Row], equal: list[Row]) -> list:
    """Compare with what the issue asks."""
    mine = _column(ten, OURS, "seconds")
    rows = [asked("10 pairs: products", 26, _column(ten, OURS, "products"))]
    for rival, factor in (("PyHessian, default", 10.0), ("curvlinops + eigsh", 5.0)):
        other = _column(ten, rival, "seconds")
        gain = None if other is None else other / mine
        rows.append(
            asked(f"10 pairs: seconds of {rival} ÷ ours", factor, gain, least=True)
        )
    rows += [
        asked("10 pairs: worst residual", TOL, _column(ten, OURS, "worst residual")),
        asked(
            "30 pairs: gradients of time",
            205,
            _column(thirty, OURS, "gradients of time"),
        ),
        asked("30 pairs: worst residual", TOL, _column(thirty, OURS, "worst residual")),
        asked("50 pairs, diag(30/i): products", 150, _column(wide, OURS, "products")),
        asked(
            "50 pairs, diag(30/i): P-vectors",
            110,
            _column(wide, OURS, "P-vectors at the peak"),
        ),
    ]
    worst = max(row[OURS]["median"] / row["eigsh"]["median"] for row in equal)
    rows.append(
        asked("networks: products ÷ eigsh's at equal memory, worst", 1.0, worst)
    )
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
    case = digits_mlp(**({"steps": 30, "widths": SMALL_DIGITS} if quick else {}))
    exact = spectrum(case)
    few, more = (3, 6) if quick else (10, 30)
    seeds = range(1 if quick else 3)
    stage("largest pairs")
    ten = top(case, few, exact, seeds=seeds, rounds=1 if quick else 5)
    thirty = top(case, more, exact, seeds=seeds[:1], rounds=1 if quick else 3)
    stage("diag(30/i)")
    wide = many_coordinates(size=2000 if quick else 1_000_000, k=5 if quick else 50)
    stage("equal memory")
    nets = [
        case,
        *(make(steps=0) for make in (() if quick else (digits_mlp, digits_conv))),
        *(() if quick else (digits_conv(),)),
    ]
    equal = equal_memory(nets, (few,) if quick else (few, more), seeds)
    stage("both ends, growth")
    tables = [
        Table(title="Asked and found", rows=goals(ten, thirty, wide, equal)),
        Table(title="Largest pairs to a residual of 1e-4", rows=ten + thirty),
        Table(title="Pairs of diag(30/i)", rows=wide),
        Table(
            title="Products at equal memory",
            rows=equal,
            note="P-vectors: what our run on diag(30/i), P = 1e5, allocates.",
        ),
        Table(
            title="Both ends in one run",
            rows=both_ends(case, 2 * few, exact, seeds),
        ),
        Table(title="Growth", rows=growth(quick=quick)),
    ]
    write(
        given.target,
        tables,
        command=" ".join(
            part
            for part in (
                "python benchmarks/eigenpairs.py",
                "--quick" * quick,
                str(given.target or ""),
                "--cpu-time" * given.cpu_time,
            )
            if part
        ),
        device=CPU,
        began=began,
        absent=missing,
    )


if __name__ == "__main__":
    main()
