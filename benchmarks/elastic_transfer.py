"""Carry IMP's tickets to another depth, and train them beside matched controls.

    python benchmarks/elastic_transfer.py benchmarks/results/elastic_transfer.json
    python benchmarks/elastic_transfer.py --quick

A ticket of ResNet-20 is stretched to ResNet-32, and one of ResNet-32 squeezed to
ResNet-20, on the 8×8 digits. What a transfer is worth is the difference to a control of
the same state and of exactly the same number of weights in each layer, which ones drawn
at random (``dp.tickets.matched``); beside them train random masks of the same layer
densities on new weights, and what IMP finds by itself. Tickets are rewound to an early
step, from which all but the new weights train.
"""

import argparse
import functools
import math
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from _report import Row, Table, write
from _timing import CPU_TIME, prepare, stage

import dynprune as dp
from dynprune.core import derive_seed, mean_interval

DENSITIES = (1.0, 0.6, 0.36, 0.2, 0.12, 0.07, 0.04)
TICKET, SHUFFLED, RANDOM = "ticket", "matched control", "random, new weights"
OWN = "IMP on this network"
CPU = torch.device("cpu")
Rows = list[dict[str, float | str]]


def sgd(parameters: list[torch.Tensor]) -> torch.optim.Optimizer:
    """Make the optimiser of every training."""
    return torch.optim.SGD(
        parameters, lr=0.1, momentum=0.9, weight_decay=1e-4, fused=True
    )


class Depth:
    """Hold a network of one depth on one seed, and its run of IMP.

    Args:
        depth: Of the ResNet.
        width: Of its first stage.
        seed: Of weights and data order.
        recipe: Of every training.
        densities: Of IMP's levels.
        rewind_step: Where tickets start.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        seed: int,
        *,
        recipe: dp.Recipe,
        densities: tuple[float, ...],
        rewind_step: int,
    ) -> None:
        self.problem = dp.tasks.make("digits", f"resnet:{depth}:{width}")
        model = self.problem.model(derive_seed("elastic", "init", depth, seed) % 2**31)
        self.system = dp.GradientSystem(model, self.problem.loss_fn, self.problem.train)
        self.seed = derive_seed("elastic", "order", seed)
        self._recipe, self._step = recipe, rewind_step
        self.found = dp.pruning.imp(
            self.system,
            densities=densities,
            train=recipe,
            rewind_step=rewind_step,
            seed=self.seed,
            collapse="ignore",
        )

    def accuracy(self, ticket: dp.Ticket, *, start: int | None = None) -> float:
        """Train a ticket; return its accuracy on the test split, in per cent."""
        start = self._step if start is None else start
        masked = self.system.with_ticket(ticket)
        run = self._recipe(masked, seed=self.seed, start_step=start)
        net = self.problem.model(0)
        run.apply_(net)
        return 100.0 * dp.evaluate(net, self.problem, "test").metric

    def own(self, place: int = -1) -> float:
        """Return the accuracy of a level of IMP."""
        level = self.found.levels[place]
        found = dp.evaluate(level.state, self.problem, "test", buffers=level.buffers)
        return 100.0 * found.metric

    def controls(self, ticket: dp.Ticket) -> dict[str, float]:
        """Train a ticket of this network beside its controls."""
        draw = derive_seed("elastic", "control", self.seed)
        pair = dp.tickets.matched(ticket, seed=draw)
        new = self.problem.model(derive_seed("elastic", "new", self.seed) % 2**31)
        again = dp.tickets.reinitialise(
            dp.tickets.shuffle(ticket, seed=draw + 1),
            dict(new.named_parameters()),
            dict(new.named_buffers()),
        )
        return {
            TICKET: self.accuracy(pair.ticket),
            SHUFFLED: self.accuracy(pair.control),
            RANDOM: self.accuracy(again, start=0),
        }


def transfers(
    seed: int,
    *,
    depths: tuple[int, int],
    width: int,
    steps: int,
    rewind_step: int,
    densities: tuple[float, ...],
) -> Iterator[dict[str, float | str]]:
    """Yield a row for each transfer of one seed."""
    recipe = dp.Recipe(
        sgd,
        steps=steps,
        batch_size=128,
        schedule=functools.partial(
            torch.optim.lr_scheduler.CosineAnnealingLR, T_max=steps
        ),
    )
    small, large = (
        Depth(
            depth,
            width,
            seed,
            recipe=recipe,
            densities=densities,
            rewind_step=rewind_step,
        )
        for depth in depths
    )
    for what, source, target, carry in (
        ("stretch, append", small, large, dp.tickets.stretch),
        (
            "stretch, interpolate",
            small,
            large,
            functools.partial(dp.tickets.stretch, method="interpolate"),
        ),
        ("squeeze", large, small, dp.tickets.squeeze),
    ):
        ticket = carry(source.found.tickets[-1], target.system.module)
        row = {"transfer": what, "seed": seed, "density": ticket.density}
        yield (
            row
            | target.controls(ticket)
            | {
                OWN: target.own(),
                "dense": target.own(0),
            }
        )


def summary(rows: Rows) -> list[Row]:
    """Return means over seeds, and the paired difference to the matched control."""
    found = []
    for what in dict.fromkeys(row["transfer"] for row in rows):
        own = [row for row in rows if row["transfer"] == what]
        said = {
            name: _interval(row[name] for row in own)
            for name in (TICKET, SHUFFLED, RANDOM, OWN, "dense")
        }
        drops = [row[TICKET] - row[SHUFFLED] for row in own]
        mean, low, high = mean_interval(drops)
        verdict = "better" if low > 0 else "worse" if high < 0 else "not decided"
        density = sum(row["density"] for row in own) / len(own)
        found.append(
            {"transfer": what, "density %": f"{100 * density:.2f}"}
            | said
            | {
                "ticket − control": f"{mean:+.2f} ({low:+.2f} to {high:+.2f})",
                "the ticket is": "–" if math.isnan(low) else verdict,
            }
        )
    return found


def _interval(values: Iterable[float]) -> str:
    mean, low, _ = mean_interval(list(values))
    return f"{mean:.2f}" if math.isnan(low) else f"{mean:.2f} ± {mean - low:.2f}"


def main(arguments: list[str] | None = None) -> None:
    """Train, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", nargs="?", type=Path, help="JSON; a .md beside it")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="tiny sizes, seconds")
    parser.add_argument("--cpu-time", action="store_true", help=CPU_TIME)
    given = parser.parse_args(arguments)
    began, quick = time.perf_counter(), given.quick
    prepare(cpu_time=given.cpu_time)
    size = {"depths": (20, 32), "width": 8, "densities": DENSITIES}
    size |= {"steps": 200, "rewind_step": 20}
    if quick:
        size = {"depths": (14, 20), "width": 4, "densities": (1.0, 0.3)}
        size |= {"steps": 3, "rewind_step": 1}
    shallow, deep = size["depths"]
    rows: Rows = []
    for seed in range(2 if quick else given.seeds):
        stage(f"seed {seed}")
        rows += transfers(seed, **size)
    words = ("python benchmarks/elastic_transfer.py", given.target)
    flags = (
        "--quick" * quick,
        f"--seeds {given.seeds}" * (given.seeds != 5),
        "--cpu-time" * given.cpu_time,
    )
    write(
        given.target,
        [
            Table(
                title="Tickets carried to another depth",
                rows=summary(rows),
                note=f"ResNet-{shallow} and -{deep} of width {size['width']} on the "
                f"digits, {size['steps']} steps of SGD at 0.1 with momentum and a "
                f"cosine, batch 128, tickets rewound to step {size['rewind_step']}. "
                "Test accuracy in per cent, mean over "
                f"{len({row['seed'] for row in rows})} seeds ± half of the 95 % "
                "Student interval; differences are paired over seeds. IMP's own ticket "
                f"has density {100 * size['densities'][-1]:g} %, a transferred one "
                "that of its copies.",
            ),
            Table(title="Every seed", rows=[_rounded(row) for row in rows]),
        ],
        command=" ".join(str(part) for part in (*words, *flags) if part),
        device=CPU,
        began=began,
        absent={},
    )


def _rounded(row: dict[str, float | str]) -> Row:
    return {
        key: round(value, 4) if isinstance(value, float) else value
        for key, value in row.items()
    }


if __name__ == "__main__":
    main()
