"""One pass over the data: a graph per part, kept within a budget or built again."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Generic, Literal, Protocol, TypeVar, final, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dynprune.core import InvalidInputError, unknown
from dynprune.operators._arithmetic import arithmetic
from dynprune.operators._graphs import first_bad
from dynprune.operators._jacobian import Function
from dynprune.operators._jacobian_check import trust
from dynprune.operators._plan import (
    Plan,
    columns_at_once,
    decide,
    default_budget,
    head,
    parts,
)
from dynprune.operators._self_check import trust_kernels
from dynprune.system import GradientSystem

JacobianRoute = Literal["auto", "budget", "kept", "rebuilt", "batched"]
_LONG = 0.05  # seconds: kernels of a product that takes longer are large
_COLUMNS: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], bool]] = (
    WeakKeyDictionary()
)


class PartGraph(Protocol):
    """The graph of one part of the data, and its share of a symmetric product."""

    def product(self, rows: Tensor) -> Tensor:
        """Multiply each row; together (vmap) if there are several."""
        ...


G = TypeVar("G", bound=PartGraph)


@final
class Passes(Generic[G]):
    """Go over the data part by part, with the graph of each.

    Args:
        system: The system, at a state of its own.
        make: ``(part, substitute) -> graph``.
        function: ``part -> (θ -> vector)``, what is differentiated.
        name: Of the function.
        memory_budget: Bytes that a product may hold at its peak.
        route: As for the Hessian.

    Raises:
        InvalidInputError: For an unknown route.
    """

    def __init__(
        self,
        system: GradientSystem,
        make: Callable[[Any, bool], G],
        function: Callable[[Any], Function],
        *,
        name: str,
        memory_budget: int | None,
        route: JacobianRoute,
    ) -> None:
        if route not in get_args(JacobianRoute):
            raise unknown("route", route, get_args(JacobianRoute))
        self._system, self._make, self._function = system, make, function
        self._name = name
        self._budget = (
            default_budget(system) if memory_budget is None else memory_budget
        )
        self._route: JacobianRoute = route
        self._plan: Plan | None = None
        self._few: Any = None
        self._kept: list[G] = []

    @property
    def plan(self) -> Plan:
        """How products are made, and why; decided at the first call or product.

        With route "auto" the way of blocks may change once, at the first block.
        """
        if self._plan is None:
            first = next(self._system.batches())
            self._few = head(first, 4)
            # the Hessian's graphs hold more: its estimate is on the safe side
            plan = decide(
                self._system,
                first,
                route=self._route,
                memory_budget=self._budget,
                substitute=trust_kernels(
                    self._system, lambda: first, precision="native"
                ),
                precision="native",
            )
            batched = plan.way == "batched" and self._trusted(2)
            self._plan = replace(
                plan,
                way="batched" if batched else "kept",
                substitute=self._trusted(1),
            )
        return self._plan

    def sum(self, block: Tensor) -> Tensor:
        """Add up the products of all parts, each part's for all columns.

        Args:
            block: Shape ``(P, k)``.

        Returns:
            Shape ``(P, k)``.
        """
        rows = block.T.contiguous()
        total: Tensor | None = None

        def add(graph: G) -> None:
            nonlocal total
            wide = self.columns(graph, len(rows))
            if total is None and wide >= len(rows):
                total = graph.product(rows)
                return
            total = torch.zeros_like(rows) if total is None else total
            for into, part in zip(total.split(wide), rows.split(wide), strict=True):
                into += graph.product(part)

        self.each(add)
        return torch.zeros_like(block) if total is None else total.T

    def each(self, action: Callable[[G], None]) -> None:
        """Call an action with the graph of each part, in the order of the data.

        Args:
            action: What to do; a graph that is not kept is freed after it.

        Raises:
            InvalidInputError: If memory runs out; says what would fit.
        """  # noqa: DOC502 - raised by the guard
        plan = self.plan
        with self._memory_guard(), arithmetic(self._system.device, "native"):
            if self._kept:
                for graph in self._kept:
                    action(graph)
                return
            kept = []
            for batch in self._system.batches():
                for part in parts(batch, plan.microbatch):
                    graph = self._make(part, plan.substitute)
                    action(graph)
                    if plan.kept:
                        kept.append(graph)
                    del graph
            self._kept = kept

    def columns(self, graph: G, wanted: int) -> int:
        """Return how many columns to push together.

        Args:
            graph: The graph of a part.
            wanted: Columns of the block.

        Returns:
            1, or as many as the budget allows where that was asked for or is faster.
        """
        if wanted == 1 or self._route not in {"auto", "batched"}:
            return 1
        together = min(columns_at_once(self.plan.nbytes, self._budget), wanted)
        if together == 1 or not self._trusted(2):
            return 1
        if self._route != "batched" and not self._faster(graph, min(together, 8)):
            return 1
        self._plan = replace(self.plan, way="batched")
        return together

    def _trusted(self, columns: int) -> bool:
        return trust(
            self._system,
            self._function(self._few),
            self._few,
            name=self._name,
            columns=columns,
        )

    def _faster(self, graph: G, wide: int) -> bool:
        known = _COLUMNS.setdefault(self._system.module, {})
        key = (self._name, *self._place, self.plan.nbytes, wide)
        if key not in known:
            rows = torch.ones(wide, self._system.size, dtype=self._system.dtype)
            rows = rows.to(self._system.device)
            alone = min(self._seconds(graph, rows[:1]) for _ in range(2))
            known[key] = alone < _LONG and (
                min(self._seconds(graph, rows) for _ in range(2)) < 0.9 * wide * alone
            )
        return known[key]

    @property
    def _place(self) -> tuple[object, ...]:
        system = self._system
        return system.size, system.dtype, system.device

    def _seconds(self, graph: G, rows: Tensor) -> float:
        self._wait()
        begin = time.perf_counter()
        graph.product(rows)
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self._system.device.type == "cuda":
            torch.cuda.synchronize(self._system.device)

    @contextmanager
    def _memory_guard(self) -> Iterator[None]:
        try:
            yield
        except torch.OutOfMemoryError as error:
            self._kept = []
            raise InvalidInputError(
                f"Memory ran out in a product ({self.plan.reason}). Pass a smaller "
                f"memory_budget than {self._budget} with route='rebuilt': microbatches "
                "that fit are made of it."
            ) from error


def refuse_not_finite(system: GradientSystem, block: Tensor, what: str) -> None:
    """Refuse a product that is not finite.

    Args:
        system: Knows the names.
        block: The product, shape ``(P, k)``.
        what: The operator, in words.

    Raises:
        InvalidInputError: If an entry is NaN or infinite; names the parameter.
    """
    # one pass; a norm that overflows alone is looked at entry by entry
    if bool(torch.isfinite(torch.linalg.vector_norm(block))):
        return
    if bool(torch.isfinite(block).all()):
        return
    fine = torch.isfinite(block).all(1)
    where = torch.where(fine, torch.zeros_like(block[:, 0]), torch.nan)
    raise InvalidInputError(
        f"A product with {what} is not finite, first in parameter "
        f"{first_bad(system, where)}. Check the vector, and the state for overflow."
    )
