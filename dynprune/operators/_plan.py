"""What a Hessian operator decided: its route, where it is kept, in what parts."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, final
from weakref import WeakKeyDictionary

import torch
from torch import nn

from dynprune.core import InvalidInputError
from dynprune.operators._arithmetic import Precision
from dynprune.operators._graphs import build, one_by_one
from dynprune.operators._meter import peak_bytes
from dynprune.system import GradientSystem, is_resident, length

Route = Literal[
    "auto", "budget", "kept", "rebuilt", "batched", "linearised", "compiled"
]
Way = Literal["kept", "batched", "linearised", "compiled"]

# Scratch memory inside convolutions is not seen by the meter.
_MARGIN = 1.15


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Say how products are made, and why.

    Args:
        way: ``"kept"`` columns one by one, ``"batched"`` together, ``"linearised"``
            or ``"compiled"`` through a list of operations.
        kept: Whether graphs stay between products; otherwise each product builds them.
        microbatch: Largest part of a batch that is evaluated at once, None for whole
            batches.
        substitute: Whether kernels with cheaper second derivatives are put in.
        nbytes: What the graphs that live at once hold, estimated; None over a loader.
        reason: Why, in words.
    """

    way: Way
    kept: bool
    microbatch: int | None
    substitute: bool
    nbytes: int | None
    reason: str


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """Say what a part of n examples needs: a fixed number of bytes and n times another.

    Args:
        graph_fixed: Bytes that a graph holds whatever n is.
        graph_each: Bytes that it holds per example.
        peak_fixed: Bytes at the peak of building it and of a product, whatever n is.
        peak_each: The same, per example.
    """

    graph_fixed: float
    graph_each: float
    peak_fixed: float
    peak_each: float

    def graph(self, examples: float) -> int:
        """Return the bytes that a graph holds.

        Args:
            examples: Its number of examples.

        Returns:
            Bytes.
        """
        return int(self.graph_fixed + self.graph_each * examples)

    def peak(self, examples: float) -> int:
        """Return the bytes at the peak of a product that builds its graph.

        Args:
            examples: Number of examples of the graph.

        Returns:
            Bytes.
        """
        return int((self.peak_fixed + self.peak_each * examples) * _MARGIN)

    def most(self, budget: int) -> int:
        """Return the largest number of examples whose peak is within a budget.

        Args:
            budget: Bytes.

        Returns:
            Examples; less than one if none fits.
        """
        return math.floor((budget / _MARGIN - self.peak_fixed) / self.peak_each)


_SIZES: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Size]] = (
    WeakKeyDictionary()
)


def default_budget(system: GradientSystem) -> int:
    """Return 1 GiB, or 32 vectors of P numbers if that is more.

    Args:
        system: The system.

    Returns:
        Bytes.
    """
    return max(2**30, 32 * system.size * system.dtype.itemsize)


def is_pair(batch: Any) -> bool:
    """Say whether a batch can be cut into parts: a pair (x, y) of tensors.

    Args:
        batch: One batch.

    Returns:
        Whether it is one.
    """
    return is_resident(batch) and batch[0].ndim > 0 and len(batch[0]) == len(batch[1])


def head(batch: Any, examples: int) -> Any:
    """Return the first examples of a batch; all of one that cannot be cut.

    Args:
        batch: One batch.
        examples: How many.

    Returns:
        The part.
    """
    return (batch[0][:examples], batch[1][:examples]) if is_pair(batch) else batch


def parts(batch: Any, microbatch: int | None) -> Iterator[Any]:
    """Cut a batch into parts.

    Args:
        batch: One batch.
        microbatch: Largest part; None for the whole.

    Yields:
        Parts; the whole batch if it cannot be cut.
    """
    if microbatch is None or not is_pair(batch) or len(batch[1]) <= microbatch:
        yield batch
        return
    x, y = batch
    for start in range(0, len(y), microbatch):
        yield x[start : start + microbatch], y[start : start + microbatch]


def measure(
    system: GradientSystem,
    batch: Any,
    *,
    precision: Precision,
    substitute: bool,
    rough: bool,
) -> Size | None:
    """Estimate what products over n examples of the first batch need.

    Args:
        system: The system, at a state of its own.
        batch: Its first batch.
        precision: Arithmetic of the products.
        substitute: Whether kernels are replaced.
        rough: A generous bound from graphs of two and four examples, instead of the
            peaks of products of four and of eight (the meter costs seconds at its
            first use).

    Returns:
        The estimate, from memory after the first call for a module; None where the
        batch cannot be cut.

    Cost:
        Graphs of six examples; of twelve and their products if not rough; once per
        module.
    """
    if not is_pair(batch):
        return None
    key = (system.dtype, tuple(batch[0].shape[1:]), precision, substitute, rough)
    known = _SIZES.setdefault(system.module, {})
    if key not in known:
        known[key] = _size(system, batch, precision, substitute, rough)
    return known[key]


def _size(
    system: GradientSystem,
    batch: Any,
    precision: Precision,
    substitute: bool,  # noqa: FBT001 - private, passed through
    rough: bool,  # noqa: FBT001 - private, passed through
) -> Size:
    held: list[int] = []

    def weigh(part: Any) -> None:
        make = partial(build, system, part, precision=precision, substitute=substitute)
        try:
            held.append(make(weigh=True).nbytes or 0)
        except RuntimeError:  # torch.func inside the model takes no hooks: its peak
            held.append(peak_bytes(make))

    def run(part: Any) -> None:
        graph = build(system, part, precision=precision, substitute=substitute)
        one_by_one(graph)(torch.zeros_like(graph.theta)[:, None])

    few, more = (2, 4) if rough else (4, 8)
    counts = sorted({min(few, length(batch)), min(more, length(batch))})
    for count in counts:
        weigh(head(batch, count))
    graph_fixed, graph_each = _line(counts, held)
    if rough:
        peak_fixed, peak_each = 4 * graph_fixed, 4 * graph_each
    else:
        peaks = [peak_bytes(partial(run, head(batch, count))) for count in counts]
        peak_fixed, peak_each = _line(counts, peaks)
    return Size(
        graph_fixed=graph_fixed,
        graph_each=graph_each,
        peak_fixed=peak_fixed,
        peak_each=peak_each,
    )


def _line(counts: list[int], values: list[int]) -> tuple[float, float]:
    # value = fixed + each * count, both not negative
    if len(counts) == 1:
        return 0.0, max(values[0] / counts[0], 1.0)
    each = max((values[1] - values[0]) / (counts[1] - counts[0]), 1.0)
    return max(values[0] - each * counts[0], 0.0), each


def decide(
    system: GradientSystem,
    batch: Any,
    *,
    route: Route,
    memory_budget: int,
    substitute: bool,
    precision: Precision,
) -> Plan:
    """Decide by the memory budget where graphs live and in what parts.

    Args:
        system: The system, at a state of its own.
        batch: Its first batch.
        route: What was asked for.
        memory_budget: Bytes that one product may hold at its peak.
        substitute: Whether replaced kernels are trusted.
        precision: Arithmetic of the products.

    Returns:
        The plan.

    Raises:
        InvalidInputError: If the route asked for needs what is not there: resident
            data, or more memory than the budget.
    """
    way: Way = "kept" if route in {"auto", "budget", "rebuilt"} else route  # type: ignore[assignment]
    resident = is_resident(system.data)
    needs_kept = way in {"linearised", "compiled"} or route == "kept"

    def size(*, rough: bool) -> Size | None:
        return measure(
            system, batch, precision=precision, substitute=substitute, rough=rough
        )

    if not resident:
        if needs_kept:
            raise InvalidInputError(
                f"route={route!r} keeps graphs between products and was asked of data "
                "that are read batch by batch. Pass resident (x, y) tensors, or "
                "route='rebuilt' with blocks of vectors: each pass builds a batch's "
                "graph once for all of them."
            )
        # batches of a loader are cut only if the first one is over the budget
        largest = length(batch) if _cuttable(system, batch) else None
        return Plan(
            way=way,
            kept=False,
            microbatch=_microbatch(size, memory_budget, largest),
            substitute=substitute,
            nbytes=None,
            reason="a loader: each batch's graph is built once per block of vectors",
        )
    count = length(system.data)
    whole = min(count, system.microbatch or count)
    if route != "rebuilt":
        for rough in (True, False):
            known = size(rough=rough)
            assert known is not None  # resident data are a pair
            total = known.graph(count - whole) + known.peak(whole)
            if total <= memory_budget:
                return Plan(
                    way=way,
                    kept=True,
                    microbatch=None,
                    substitute=substitute,
                    nbytes=known.graph(count),
                    reason=f"the graphs of all {count} examples are within "
                    f"{memory_budget / 2**20:,.0f} MiB",
                )
        numbers = f"{total / 2**20:,.0f} MiB, budget {memory_budget / 2**20:,.0f} MiB"
        why = f"the graphs of all {count} examples need too much ({numbers})"
        if needs_kept:
            assert known is not None
            raise InvalidInputError(
                f"route={route!r} was asked for, but {why}. Pass memory_budget={total} "
                "or more; route='rebuilt' fits with microbatches of "
                f"{max(known.most(memory_budget), 1)}."
            )
    else:
        why = "asked for"
    able = whole if _cuttable(system, batch) else None
    microbatch = _microbatch(size, memory_budget, able)
    held = min(whole, microbatch or whole)
    return Plan(
        way=way,
        kept=False,
        microbatch=microbatch,
        substitute=substitute,
        nbytes=None,
        reason=f"{why}; built for each product, in parts of {held} examples",
    )


def _cuttable(system: GradientSystem, batch: Any) -> bool:
    # the weights of parts must add up to that of the batch
    if not is_pair(batch):
        return False
    half = -(-length(batch) // 2)
    both = sum(system.weight(part) for part in parts(batch, half))
    return abs(both - system.weight(batch)) <= 1e-6 * abs(both)


class _Sizer(Protocol):
    def __call__(self, *, rough: bool) -> Size | None: ...


def _microbatch(size: _Sizer, budget: int, whole: int | None) -> int | None:
    if whole is None:
        return None
    for rough in (True, False):
        known = size(rough=rough)
        if known is None or known.peak(whole) <= budget:
            return None
    assert known is not None
    most = known.most(budget)
    if most < 1:
        raise InvalidInputError(
            f"The memory budget of {budget:,} bytes is below what one example needs: "
            f"{known.peak(1):,}. Pass at least that."
        )
    return -(-whole // -(-whole // most))  # parts of equal size


def columns_at_once(nbytes: int | None, budget: int) -> int:
    """Return how many columns may be pushed together within a budget.

    Args:
        nbytes: What a graph holds; None if it is not known.
        budget: Bytes.

    Returns:
        At least one.
    """
    if nbytes is None:
        return 32
    return max(1, min(256, (budget - nbytes) // max(nbytes, 1)))


def describe_memory(device: torch.device) -> str:
    """Return what is free on a device, in words.

    Args:
        device: The device.

    Returns:
        For a message.
    """
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB are free on {device}"
    return "the machine's memory is full"
