"""Compare Lanczos with the dense spectrum of the default digits MLP, in float64.

    python benchmarks/lanczos_dense.py benchmarks/results/lanczos_dense.json

The Hessian of the 64-64-32-10 network (P = 6570) after 10 optimiser steps is formed
column by column and decomposed by LAPACK; Lanczos finds the ten largest eigenvalues
from matrix-free products. Several seeds; relative errors, and whether each enclosure
holds the dense eigenvalue.
"""

import json
import sys
import time
from pathlib import Path

import torch

import dynprune as dp

SEEDS = (0, 1, 2)
K = 10


def compare(seed: int) -> dict[str, float | int | bool]:
    """One seed's errors and costs."""
    problem = dp.tasks.digits()
    start = dp.GradientSystem(problem.model(seed), problem.loss_fn, problem.train)
    recipe = dp.Recipe(lambda p: torch.optim.SGD(p, lr=0.2), steps=600)
    run = recipe(start, seed=seed, stop_step=10)
    system = start.with_state(run.state).double()
    begin = time.perf_counter()
    pairs = dp.spectral.eigenpairs(
        dp.HessianOperator(system), K, tol=1e-10, completeness=True, seed=seed
    )
    lanczos = time.perf_counter() - begin
    begin = time.perf_counter()
    exact = torch.linalg.eigvalsh(dp.HessianOperator(system).dense()).flip(0)[:K]
    dense = time.perf_counter() - begin
    low, high = pairs.enclosures.unbind(1)
    return {
        "seed": seed,
        "P": system.size,
        "largest_relative_error": float(((pairs.values - exact) / exact).abs().max()),
        "enclosures_true": bool(((low <= exact) & (exact <= high)).all()),
        "matvecs": pairs.matvecs,
        "lanczos_seconds": round(lanczos, 2),
        "dense_seconds": round(dense, 2),
    }


def main(target: Path) -> None:
    """Write the comparison as JSON."""
    table = {
        "command": f"python benchmarks/lanczos_dense.py {target.as_posix()}",
        "torch": torch.__version__,
        "device": "cpu, 1 thread",
        "tolerance": 1e-10,
        "runs": [compare(seed) for seed in SEEDS],
    }
    target.write_text(json.dumps(table, indent=1) + "\n")
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
