"""Measure what scoring costs beyond the bare autograd calls of each score.

    python benchmarks/scoring_cost.py benchmarks/results/scoring_cost.json
    python benchmarks/scoring_cost.py --quick

The bare calls are what the score's formula needs and no more: forward passes and
torch.autograd.grad on a copy of the network that is ready, products with the weights,
and for SynFlow the masks between the rounds. The goal is on the scores; a ticket
costs the choice of the highest and the test for layer collapse on top.
"""

import argparse
import copy
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _models import Case, resnet20, tiny_conv
from _report import Row, Table, asked, write
from _timing import CPU_TIME, alternate, prepare, ratios, stage
from torch import Tensor, nn

import dynprune as dp
from dynprune.pruning._from_scores import survivors
from dynprune.pruning._synflow import flow_of

CPU = torch.device("cpu")
BARE, SCORES, TICKET = "bare autograd", "scores", "ticket"
DENSITY = 0.1
TEMPERATURE = 200.0
Scores = dict[str, Tensor]


def prunable(model: nn.Module, names: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """Return the weights that are scored; the others are frozen, as in the score."""
    own = dict(model.named_parameters())
    for name, part in own.items():
        part.requires_grad_(name in names)
    return {name: own[name] for name in names}


def bare_snip(case: Case, names: tuple[str, ...]) -> Callable[[], Scores]:
    """Return the calls of |w ⊙ ∇L|."""
    weights = prunable(case.model, names)
    (x, y), parts = case.batches[0], list(weights.values())

    def call() -> Scores:
        slopes = torch.autograd.grad(case.loss(case.model(x), y), parts)
        found = zip(weights, parts, slopes, strict=True)
        return {name: (w.detach() * g).abs() for name, w, g in found}

    return call


def bare_grasp(case: Case, names: tuple[str, ...]) -> Callable[[], Scores]:
    """Return the calls of w ⊙ Hg: a gradient, and a double backward."""
    weights = prunable(case.model, names)
    (x, y), parts = case.batches[0], list(weights.values())

    def call() -> Scores:
        g = torch.autograd.grad(case.loss(case.model(x) / TEMPERATURE, y), parts)
        value = case.loss(case.model(x) / TEMPERATURE, y)
        own = torch.autograd.grad(value, parts, create_graph=True)
        along = sum((a * b).sum() for a, b in zip(g, own, strict=True))
        products = torch.autograd.grad(along, parts)
        found = zip(weights, parts, products, strict=True)
        return {name: w.detach() * p for name, w, p in found}

    return call


def bare_synflow(
    case: Case, names: tuple[str, ...], *, rounds: int
) -> Callable[[], Scores]:
    """Return as many rounds of |w ∂R/∂w| in float64, each with a mask to apply."""
    net = copy.deepcopy(case.model).double().eval()
    with torch.no_grad():
        for part in net.state_dict().values():
            part.copy_(part.abs())
    weights = prunable(net, names)
    parts = list(weights.values())
    full = [part.detach().clone() for part in parts]
    masks = [torch.ones_like(part, dtype=torch.bool) for part in parts]
    ones = torch.ones(1, *case.batches[0][0].shape[1:], dtype=torch.float64)

    def call() -> Scores:
        scores: Scores = {}
        for _ in range(rounds):
            with torch.no_grad():
                for part, start, mask in zip(parts, full, masks, strict=True):
                    part.copy_(start * mask)
            slopes = torch.autograd.grad(net(ones).sum(), parts)
            found = zip(weights, parts, slopes, strict=True)
            scores = {name: (w.detach() * g).abs() for name, w, g in found}
        return scores

    return call


def check(case: Case, rounds: int) -> None:
    """Refuse to time what is not the same."""
    system = case.system()
    pairs = {
        "snip": (bare_snip, dp.pruning.snip_scores),
        "grasp": (bare_grasp, dp.pruning.grasp_scores),
        "synflow": (
            lambda case, names: bare_synflow(case, names, rounds=rounds),
            dp.pruning.synflow_scores,
        ),
    }
    for name, (bare, ours) in pairs.items():
        mine, theirs = ours(system), bare(case.copy(), system.prunable)()
        for key, part in mine.items():
            scale = float(part.abs().max())
            far = float((part - theirs[key]).abs().max())
            # single precision, another order of sums in second derivatives
            assert far <= 1e-3 * scale, f"{name}: {key} is {far} of {scale} off"


def measure(case: Case, *, rounds: int, turns: int) -> list[Row]:
    """Time each score, and its ticket, against the bare calls."""
    system, names = case.system(), case.system().prunable
    alive = survivors(system)

    def flows() -> None:
        score = flow_of(system, activations="as is", example=None)
        for _ in range(rounds + 1):
            score(alive)

    calls = {
        "SNIP": {
            BARE: bare_snip(case.copy(), names),
            SCORES: lambda: dp.pruning.snip_scores(system),
            TICKET: lambda: dp.pruning.snip(system, density=DENSITY, collapse="warn"),
        },
        "GraSP": {
            BARE: bare_grasp(case.copy(), names),
            SCORES: lambda: dp.pruning.grasp_scores(system),
            TICKET: lambda: dp.pruning.grasp(system, density=DENSITY, collapse="warn"),
        },
        f"SynFlow, {rounds} rounds": {
            # one more pass than rounds: of the flow that is left
            BARE: bare_synflow(case, names, rounds=rounds + 1),
            SCORES: flows,
            TICKET: lambda: dp.pruning.synflow(
                system, density=DENSITY, rounds=rounds, collapse="ignore"
            ),
        },
    }
    rows: list[Row] = []
    for score, own in calls.items():
        stage(score)
        taken = alternate(own, rounds=turns, seconds=120.0, device=CPU)
        for name, found in ratios(taken, base=BARE).items():
            rows.append({
                "score": score,
                "what": name,
                "÷ bare autograd": found["ratio"],
                "seconds": found["seconds"],
            })
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Measure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("target", nargs="?", type=Path, help="JSON; a .md beside it")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, seconds")
    parser.add_argument("--cpu-time", action="store_true", help=CPU_TIME)
    given = parser.parse_args(arguments)
    began = time.perf_counter()
    prepare(cpu_time=given.cpu_time)
    case = tiny_conv() if given.quick else resnet20(batch=128)
    rounds = 3 if given.quick else 100
    check(case, rounds)
    rows = measure(case, rounds=rounds, turns=3 if given.quick else 15)
    goals = [
        asked(f"{row['score']}: scores ÷ bare", 1.1, row["÷ bare autograd"])
        for row in rows
        if row["what"] == SCORES
    ]
    note = (
        f"{case.name}, one batch of {len(case.batches[0][1])} for SNIP and GraSP. "
        "Scores are what the formula gives, with the copy of the model and the checks; "
        "a ticket also has the choice of the highest (SynFlow: in every round, which "
        "the bare calls leave out), a state of its own, and for SNIP and GraSP the "
        "test for collapse."
    )
    tables = [
        Table(title="Asked and found", rows=goals),
        Table(title="Scoring against the bare calls", rows=rows, note=note),
    ]
    words = ("python benchmarks/scoring_cost.py", given.target)
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
