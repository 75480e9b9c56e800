"""Measure how much faster tickets train in one stack than one by one.

    python benchmarks/stacked_training.py benchmarks/results/stacked_training.json
    python benchmarks/stacked_training.py found.json --device cuda
    python benchmarks/stacked_training.py --quick

On a GPU a second table compares steps launched kernel by kernel with steps replayed as
one CUDA graph (``Recipe(capture=True)``), alone and in stacks.

The ratio is R times the seconds of one run over the seconds of the stack of R runs,
checks, copies and the gathering of each run's own batches included; both take turns.

Floors: 32 tickets of the default digits MLP with its default recipe (600 steps) train
at least 2.5 times as fast in a stack on one CPU core, 32 tickets of LeNet-300-100 at
least 10 times as fast on a GPU. LeNet-300-100 on a CPU core is bound by arithmetic and
memory, not by overhead: there a stack is slower and "auto" does not choose it.
"""

import argparse
import functools
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from _report import Row, Table, asked, write
from _timing import CPU_TIME, alternate, prepare, ratios, stage
from torch import nn

import dynprune as dp
from dynprune.core import generator, mean_interval
from dynprune.training import train_many

SIZES = (1, 2, 4, 8, 16, 32, 64)
DENSITY = 0.2
GOAL_RUNS = 32
ALONE, STACKED = "one by one", "stacked"
Case = tuple[list[dp.GradientSystem], dp.Recipe]


def sgd(rate: float) -> dp.training.OptimizerFactory:
    """Return a maker of plain SGD, as in the studies' recipes."""
    return lambda params: torch.optim.SGD(params, lr=rate)


def tickets(problem: dp.Problem, count: int, device: torch.device) -> list:
    """Magnitude tickets of networks of several seeds, on the problem's device."""
    data = tuple(part.to(device) for part in problem.train)
    first = dp.GradientSystem(problem.model(0).to(device), problem.loss_fn, data)
    systems = []
    for seed in range(count):
        net = dict(problem.model(seed).to(device).named_parameters())
        system = first.with_state({name: net[name].detach() for name in first.names})
        systems.append(first.with_ticket(dp.pruning.magnitude(system, density=DENSITY)))
    return systems


def digits(count: int, device: torch.device) -> Case:
    """Return tickets of the default digits MLP with the default recipe."""
    recipe = dp.Recipe(sgd(0.2), steps=600, batch_size=64)
    return tickets(dp.tasks.digits(), count, device), recipe


def lenet(count: int, device: torch.device, *, examples: int = 6000) -> Case:
    """Return tickets of LeNet-300-100 on noise in the shape of MNIST."""
    draw = generator(0)
    x = torch.randn(examples, 784, generator=draw)
    data = x, torch.randint(0, 10, (examples,), generator=draw)
    problem = dp.Problem(
        make_model=lambda _: nn.Sequential(
            nn.Linear(784, 300),
            nn.ReLU(),
            nn.Linear(300, 100),
            nn.ReLU(),
            nn.Linear(100, 10),
        ),
        loss_fn=nn.functional.cross_entropy,
        train=data,
        validation=data,
        test=data,
        name="noise",
    )
    recipe = dp.Recipe(sgd(0.1), steps=5500, batch_size=60)
    return tickets(problem, count, device), recipe


def compare(
    case: Case, count: int, *, steps: int, rounds: int, device: torch.device
) -> dict:
    """Time one run and a stack of ``count`` runs, a few hundred steps each."""
    systems, recipe = case
    chosen, seeds = systems[:count], list(range(count))

    def alone() -> object:
        return recipe(chosen[0], seed=0, stop_step=steps)

    def stacked() -> object:
        return train_many(chosen, recipe, seeds=seeds, stop_step=steps, how="stacked")

    taken = alternate(
        {ALONE: alone, STACKED: stacked},
        rounds=rounds,
        seconds=120.0,
        device=device,
    )
    found = ratios(taken, base=STACKED, per=1 / count)[ALONE]
    return {
        "speed-up": found["ratio"],
        "ms per step and run, one by one": 1e3 * found["seconds"] / steps,
    }


def by_size(
    name: str,
    case: Case,
    sizes: tuple[int, ...],
    *,
    steps: int,
    rounds: int,
    device: torch.device,
) -> list[Row]:
    """Return one row for each size of the stack."""
    rows: list[Row] = []
    for count in sizes:
        stage(f"{name}, {count} runs")
        found = compare(case, count, steps=steps, rounds=rounds, device=device)
        rows.append({"network": name, "runs": count, "steps": steps, **found})
    return rows


def full(case: Case, *, steps: int, rounds: int, device: torch.device) -> dict:
    """Return the speed-up of all runs of a case, one by one against one stack."""
    systems, recipe = case
    seeds = list(range(len(systems)))

    def all_of_them(how: str) -> object:
        return train_many(systems, recipe, seeds=seeds, stop_step=steps, how=how)

    taken = alternate(
        {ALONE: lambda: all_of_them("serial"), STACKED: lambda: all_of_them("stacked")},
        rounds=rounds,
        seconds=300.0,
        device=device,
    )
    return ratios(taken, base=STACKED)[ALONE]["ratio"]


def accuracies(count: int, *, steps: int, device: torch.device) -> tuple[Row, Row]:
    """Compare what digits tickets reach in a stack with what they reach one by one.

    Returns:
        Whether the mean difference lies within the seed interval, and the numbers.
    """
    problem = dp.tasks.digits()
    systems, recipe = digits(count, device)
    found: dict[str, list[float]] = {}
    for how in ("serial", "stacked"):
        runs = train_many(
            systems, recipe, seeds=list(range(count)), stop_step=steps, how=how
        )
        found[how] = []
        for run in runs:
            net = problem.model(0).to(device)
            run.apply_(net)
            metric = dp.evaluate(net, problem, "test").metric
            found[how].append(100.0 * metric)
    pairs = zip(found["serial"], found["stacked"], strict=True)
    drops = [one - other for one, other in pairs]
    mean, low, _ = mean_interval(found["serial"])
    what = f"{count} digits tickets, {steps} steps: mean difference of accuracy, points"
    apart = abs(statistics.mean(drops))
    return asked(what, round(mean - low, 3), apart), {
        "tickets": count,
        "steps": steps,
        "accuracy, one by one": mean,
        "half of its 95 % interval over seeds": mean - low,
        "mean difference": statistics.mean(drops),
        "largest difference": max(map(abs, drops)),
    }


def noise(model: str, shape: tuple[int, ...], *, device: torch.device) -> Case:
    """Return one network on noise in the shape of its images."""
    draw = generator(0)
    data = torch.randn(6000, *shape, generator=draw), torch.arange(6000) % 10
    make = dp.tasks.model_maker(model, in_shape=shape, classes=10)
    found = dp.GradientSystem(
        make(0).to(device),
        nn.functional.cross_entropy,
        tuple(part.to(device) for part in data),
    )
    recipe = dp.Recipe(
        lambda params: torch.optim.SGD(params, lr=0.05, momentum=0.9, fused=True),
        steps=5500,
        batch_size=128 if "resnet" in model else 60,
    )
    return [found], recipe


def replayed(
    name: str, case: Case, count: int, *, steps: int, rounds: int, device: torch.device
) -> Row:
    """Time steps launched kernel by kernel and steps replayed as one CUDA graph."""
    systems, recipe = case
    both = {"launched": recipe, "replayed": replace(recipe, capture=True)}

    def run(how: dp.Recipe) -> object:
        if count == 1:
            return how(systems[0], seed=0, stop_step=steps)
        seeds = list(range(count))
        return train_many(
            systems[:count], how, seeds=seeds, stop_step=steps, how="stacked"
        )

    taken = alternate(
        {key: functools.partial(run, how) for key, how in both.items()},
        rounds=rounds,
        seconds=60.0,
        device=device,
    )
    row: Row = {"network": name, "runs": count, "steps": steps}
    for key, seconds in taken.items():
        row[f"ms per step, {key}"] = 1e3 * statistics.median(seconds) / steps
    speedup = ratios(taken, base="replayed")["launched"]["ratio"]
    return row | {"launched ÷ replayed": speedup}


def replays(cases: dict[str, Case], *, device: torch.device) -> list[Row]:
    """Return one row for each network, alone and in a stack."""
    alone = cases | {
        "conv 16, 32 on 28 x 28": noise("conv:16,32:relu", (1, 28, 28), device=device),
    }
    rows = []
    for name, case in alone.items():
        for count in (1, GOAL_RUNS) if name in cases else (1,):
            stage(f"{name}, {count} runs, replayed")
            rows.append(replayed(name, case, count, steps=150, rounds=3, device=device))
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, nargs="?", help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, seconds")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="of stacks")
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--cpu-time", action="store_true", help=CPU_TIME)
    given = parser.parse_args(arguments)
    began, device, quick = time.perf_counter(), given.device, given.quick
    prepare(cpu_time=given.cpu_time)
    on_gpu = device.type == "cuda"
    sizes = (1, 2) if quick else tuple(given.sizes)
    most, rounds = (2, 2) if quick else (max(GOAL_RUNS, *sizes), 5)
    cases = {
        "digits MLP 64-64-32-10": digits(most, device),
        "LeNet-300-100": lenet(most, device, examples=120 if quick else 6000),
    }
    goal, floor = ("LeNet-300-100", 10.0) if on_gpu else (next(iter(cases)), 2.5)
    stage("the goal")
    systems, recipe = cases[goal]
    count = min(GOAL_RUNS, most)
    # all of the default recipe on a CPU core, a part of the long one of LeNet on a GPU
    steps = 3 if quick else (100 if on_gpu else recipe.steps)
    found = full(
        (systems[:count], recipe), steps=steps, rounds=min(rounds, 3), device=device
    )
    what = f"{count} tickets of {goal}, {steps} steps: speed-up of the stack"
    stage("accuracies")
    agree, reached = accuracies(count, steps=3 if quick else 600, device=device)
    rows: list[Row] = []
    for name, case in cases.items():
        fast = on_gpu or name.startswith("digits")
        rows += by_size(
            name,
            case,
            sizes,
            steps=3 if quick else (100 if on_gpu else 200 if fast else 40),
            rounds=rounds,
            device=device,
        )
    tables = []
    if on_gpu:
        tables.append(
            Table(
                title="Steps replayed as one CUDA graph",
                rows=replays(cases, device=device),
                note="Recording included. A stack's step is that of all its runs.",
            )
        )
    parts = (
        "python benchmarks/stacked_training.py",
        given.target,
        "--quick" * quick,
        f"--device {device}" if on_gpu else "",
        "--cpu-time" * given.cpu_time,
        f"--sizes {' '.join(map(str, sizes))}" if given.sizes != SIZES else "",
    )
    write(
        given.target,
        [
            Table(
                title="Asked and found",
                rows=[asked(what, floor, found, least=True), agree],
            ),
            Table(
                title="Speed-up by the number of runs",
                rows=rows,
                note="Throughput of the stack over that of runs one by one.",
            ),
            Table(
                title="What they reach",
                rows=[reached],
                note="Test accuracy in per cent, float32, the same seeds both ways.",
            ),
            *tables,
        ],
        command=" ".join(str(part) for part in parts if part),
        device=device,
        began=began,
        absent={},
    )


if __name__ == "__main__":
    main()
