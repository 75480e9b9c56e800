"""Measure exports of pruned networks: dense with zeros, CSR, COO, units removed.

    python benchmarks/sparse_export.py benchmarks/results/sparse_export.json
    python benchmarks/sparse_export.py --quick

One forward pass in float32 without gradients, on one thread; all exports of a network
alternate in one process, and each ratio divides by the dense network in the same round.
Masks are random with the same density in every layer (unstructured), or whole output
channels of the first convolution of each residual block (channels). Bytes are those of
parameters and buffers. Errors are against the dense network with zeros, of its largest
output.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
from _models import perceptron
from _report import Row, Table, asked, write
from _timing import CPU_TIME, Call, alternate, prepare, ratios, stage
from torch import Tensor, nn

import dynprune as dp
from dynprune.core import isolated

CPU = torch.device("cpu")
DENSE = "dense with zeros"


def unstructured(model: nn.Module, density: float, *, seed: int = 0) -> dp.Ticket:
    """Return random masks of Linear and Conv weights, the same density in each."""
    draw = torch.Generator().manual_seed(seed)
    masks = {}
    for name, part in model.named_parameters():
        if part.ndim > 1:
            order = torch.rand(part.numel(), generator=draw).argsort()
            kept = order < max(1, round(density * part.numel()))
            masks[name] = kept.view(part.shape)
    return dp.Ticket.make(
        masks, dict(model.named_parameters()), dict(model.named_buffers())
    )


def channels(model: nn.Module, density: float, *, seed: int = 0) -> dp.Ticket:
    """Return masks of whole channels inside residual blocks, for what follows them.

    A channel of ``conv1`` is pruned with all weights of ``conv2`` that read it: behind
    BatchNorm and ReLU beside zero padding it is no constant, so that pruning its
    incoming weights alone would not let it go.
    """
    draw = torch.Generator().manual_seed(seed)
    own = dict(model.named_parameters())
    masks = {}
    for name, part in own.items():
        if name.endswith("conv1.weight"):
            kept = torch.rand(len(part), generator=draw).argsort() < max(
                1, round(density * len(part))
            )
            reader = name.replace("conv1", "conv2")
            masks[name] = kept.view(-1, 1, 1, 1).expand_as(part)
            masks[reader] = kept.view(1, -1, 1, 1).expand_as(own[reader])
    return dp.Ticket.make(masks, own, dict(model.named_buffers()))


def exports(ticket: dp.Ticket, model: nn.Module, x: Tensor) -> dict[str, nn.Module]:
    """Return the network in every form that there is."""
    found = {DENSE: ticket.to_dense(model)}
    if any(isinstance(part, nn.Linear) for part in model.modules()) and not any(
        isinstance(part, nn.Conv2d) for part in model.modules()
    ):
        for layout in ("csr", "coo"):
            found[layout] = dp.tickets.to_sparse(ticket, model, layout=layout).module
    small = dp.tickets.reduce(ticket, model, example=x[:1])
    found["units removed"] = small.module
    if "csr" in found:
        rest = {
            name: part != 0
            for name, part in small.module.named_parameters()
            if part.ndim > 1
        }
        left = dp.Ticket.make(rest, dict(small.module.named_parameters()))
        found["units removed, then csr"] = dp.tickets.to_sparse(
            left, small.module
        ).module
    return found


def measured(
    name: str,
    model: nn.Module,
    ticket: dp.Ticket,
    inputs: Tensor,
    *,
    kind: str,
    rounds: int,
    seconds: float,
) -> list[Row]:
    """Time one forward pass of every export, and count bytes and errors."""
    forms = exports(ticket, model, inputs)

    def call(form: nn.Module) -> Call:
        def forward() -> Tensor:
            with torch.no_grad():
                return form(inputs)

        return forward

    calls = {form: call(module) for form, module in forms.items()}
    taken = alternate(calls, rounds=rounds, seconds=seconds, device=CPU)
    wanted = calls[DENSE]()
    again = {DENSE: {"ratio": 1.0, "seconds": statistics.median(taken[DENSE])}}
    lines = again | ratios(taken, base=DENSE)
    whole = _bytes(forms[DENSE])
    return [
        {
            "network": name,
            "mask": kind,
            "density": round(ticket.density, 4),
            "batch": len(inputs),
            "export": form,
            "bytes": _bytes(forms[form]),
            "bytes ÷ dense": _bytes(forms[form]) / whole,
            "seconds": line["seconds"],
            "time ÷ dense": line["ratio"],
            "error": float((calls[form]() - wanted).abs().max() / wanted.abs().max()),
        }
        for form, line in lines.items()
    ]


def _bytes(module: nn.Module) -> int:
    parts = {id(part): part for part in (*module.parameters(), *module.buffers())}
    return sum(part.numel() * part.element_size() for part in parts.values())


def tables(*, quick: bool) -> list[Table]:
    """Measure everything."""
    rounds, seconds = (3, 1.0) if quick else (41, 6.0)
    shapes = (
        {"MLP 20-12-10": (20, 12, 10)}
        if quick
        else {
            "LeNet-300-100": (784, 300, 100, 10),
            "MLP 784-2048-2048-10": (784, 2048, 2048, 10),
        }
    )
    rows: list[Row] = []
    draw = torch.Generator().manual_seed(0)
    for name, widths in shapes.items():
        with isolated(0):
            model = perceptron(widths, nn.ReLU).eval()
        for density in (0.1,) if quick else (0.5, 0.2, 0.1, 0.05, 0.02, 0.01):
            ticket = unstructured(model, density)
            for batch in (4,) if quick else (1, 256):
                stage(f"{name}, density {density}, batch {batch}")
                x = torch.randn(batch, widths[0], generator=draw)
                rows += measured(
                    name,
                    model,
                    ticket,
                    x,
                    kind="unstructured",
                    rounds=rounds,
                    seconds=seconds,
                )
    name, depth, width = ("ResNet-8", 8, 4) if quick else ("ResNet-20", 20, 16)
    model = dp.tasks.resnet(depth, width).eval()
    makers = {"unstructured": unstructured, "channels": channels}
    for kind, make in makers.items():
        for density in (0.5,) if quick else (0.5, 0.25, 0.1):
            stage(f"{name}, {kind}, density {density}")
            x = torch.randn(2 if quick else 64, 3 * 32 * 32, generator=draw)
            rows += measured(
                name,
                model,
                make(model, density),
                x,
                kind=kind,
                rounds=rounds,
                seconds=seconds,
            )
    note = (
        "Sizes and times of one forward pass. Torch has no sparse convolutions: an "
        "unstructured mask of a ResNet saves neither time nor memory in any format "
        "of torch."
    )
    goals = [
        asked("largest error of an export", 1e-6, max(row["error"] for row in rows))
    ]
    return [
        Table(title="Asked and found", rows=goals),
        Table(title="Exports", rows=rows, note=note),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", type=Path, nargs="?", help="JSON file to write")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, seconds")
    parser.add_argument("--cpu-time", action="store_true", help=CPU_TIME)
    given = parser.parse_args(arguments)
    began = time.perf_counter()
    prepare(cpu_time=given.cpu_time)
    found = tables(quick=given.quick)
    parts = (
        "python benchmarks/sparse_export.py",
        "--quick" * given.quick,
        given.target,
    )
    write(
        given.target,
        found,
        command=" ".join(str(part) for part in parts if part),
        device=CPU,
        began=began,
        absent={},
    )


if __name__ == "__main__":
    main()
