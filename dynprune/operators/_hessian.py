"""The exact Hessian of a gradient system, by reverse-over-reverse products."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, final, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dynprune.core import Coordinates, InvalidInputError, Rows, generator, unknown
from dynprune.operators._arithmetic import Precision, arithmetic
from dynprune.operators._graphs import (
    GradientGraph,
    Push,
    at_once,
    build,
    first_bad,
    one_by_one,
    traced,
)
from dynprune.operators._on_data import AbstractOnData
from dynprune.operators._plan import (
    Plan,
    Route,
    Way,
    columns_at_once,
    decide,
    default_budget,
    describe_memory,
    head,
    measure,
    parts,
)
from dynprune.operators._self_check import trust_batched, trust_kernels, trust_trace
from dynprune.system import GradientSystem

_LONG = 0.05  # seconds: kernels of a product that takes longer are large
_WAYS: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Way]] = WeakKeyDictionary()


@final
class HessianOperator(AbstractOnData):
    r"""Apply the Hessian ∇²L(θ) of a gradient system without forming it.

    .. math:: H v = \nabla_\theta \, \langle \nabla L(\theta), v \rangle

    exactly, by a second reverse pass; l2 adds ``l2 * v``. The state and the buffers
    are cloned: later training of the model does not change the operator. On a
    masked system it is the block of the survivors at m⊙θ.

    **Routes.** The graph of the gradient of *resident* data is built once and kept
    while a product's peak stays within ``memory_budget``; otherwise each ``@`` builds
    the graphs of microbatches that fit, weighted exactly, and pushes all columns
    through each before the next. Over a loader that is what happens to each batch:
    one vector costs a pass over the data with a graph built for it alone (about 3
    gradients), k vectors together about 1.6 k + 1.3.

    ========== ====================================================================
    route      what it means
    ========== ====================================================================
    auto       as the budget says; columns of a block one by one or at once, as a
               stopwatch says at the first block of a model on a device
    budget     as the budget says, columns one by one: the same bits every time
    kept       kept, or an error if that is over the budget
    rebuilt    built for each ``@``
    batched    columns at once (vmap)
    linearised kept as a list of operations in which all that does not depend on v
               is computed: seconds of set-up, the cheapest products afterwards
    compiled   the same, compiled: a minute of set-up for a deep network
    ========== ====================================================================

    **Self-check.** Convolutions and batch norms get kernels with cheaper second
    derivatives; these, and products at once or from a list, are compared with a plain
    double backward once per model, on four examples. If they disagree, plain products
    are made and a warning names the layer type. Attention always uses its math kernel.

    Where ranks share the data, each multiplies its own examples' part and one
    all-reduce of the block adds the parts up.

    Args:
        system: The system.
        state: Coordinates, shape ``(P,)``; the system's own by default.
        memory_budget: Bytes that a product may hold at its peak, beside the block; 1
            GiB by default, or 32 vectors of P numbers if that is more.
        route: How products are made.
        precision: ``"native"``, the dtype's own (on CUDA without TF32); ``"tf32"``;
            or ``"bf16"`` matrix products and convolutions. See :meth:`rounding_error`.

    Raises:
        NotDeterministicError: If two passes give different gradients.
        InvalidInputError: For an unknown route or precision, a route that the data or
            the budget do not allow, or a gradient that is not finite.

    Cost:
        Two gradients of a few examples (two of all, over a loader) for the probe of a
        new system. A product costs about 1.1 (MLP) to 1.7 (ResNet-20) gradients
        through a kept graph; building it, 1.3. Memory: see ``plan``.

    Source:
        Pearlmutter, *Fast exact multiplication by the Hessian*, 1994.

    Example:
        >>> x, y = torch.eye(2), torch.zeros(2, 1)
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> H = HessianOperator(system)
        >>> H @ torch.tensor([1.0, 2.0])  # (2/N) X'X v
        tensor([1., 2.])
        >>> H.plan.way, H.plan.kept
        ('kept', True)
    """

    def __init__(
        self,
        system: GradientSystem,
        state: Tensor | None = None,
        *,
        memory_budget: int | None = None,
        route: Route = "auto",
        precision: Precision = "native",
    ) -> None:
        if route not in get_args(Route):
            raise unknown("route", route, get_args(Route))
        if precision not in get_args(Precision):
            raise unknown("precision", precision, get_args(Precision))
        AbstractOnData.__init__(self, system, state)
        if memory_budget is None:
            memory_budget = default_budget(self._system)
        self._memory_budget = memory_budget
        self._route: Route = route
        self._precision: Precision = precision
        self._plan: Plan | None = None
        self._graphs: list[tuple[float, GradientGraph]] | None = None
        self._traces: list[tuple[float, Push]] | None = None

    @property
    def rows(self) -> Rows:
        """All coordinates; survivors where the system is masked."""
        return Rows.whole(self._system.size)

    @property
    def coordinates(self) -> Coordinates:
        """All coordinates of the system."""
        return self._system.coordinates

    @property
    def plan(self) -> Plan:
        """How products are made, and why; decided at the first call or product.

        With route "auto" the way of blocks may change once, at the first block.
        """
        if self._plan is None:
            first = next(self._system.batches())
            substitute = trust_kernels(
                self._system, lambda: first, precision=self._precision
            )
            plan = decide(
                self._system,
                first,
                route=self._route,
                memory_budget=self._memory_budget,
                substitute=substitute,
                precision=self._precision,
            )
            if plan.way == "batched":
                plan = self._checked(plan)
            self._plan = plan
        return self._plan

    def gradient(self) -> Tensor:
        """Return ∇L at the operator's state, shape ``(P,)``.

        Returns:
            Loss per parameter.

        Cost:
            One gradient.
        """
        return self._system.gradient()

    def rounding_error(self, *, examples: int = 64, seed: int = 0) -> float:
        """Measure the accuracy lost to the arithmetic of products.

        Args:
            examples: How many examples of the first batch are compared.
            seed: Of the random vector.

        Returns:
            |H̃v − Hv| / |Hv| of one Gaussian v on those examples, H̃ as this operator
            computes it and H plain in float64.

        Cost:
            Two products and their graphs on those examples, one of them in float64.
        """
        part = head(next(self._system.batches()), examples)
        twin = self._system.double()
        exact = build(twin, head(next(twin.batches()), examples), substitute=False)
        own = build(
            self._system,
            part,
            precision=self._precision,
            substitute=self.plan.substitute,
        )
        v = torch.randn(self.size, 1, generator=generator(seed), dtype=torch.float64)
        with self._arithmetic():
            found = one_by_one(own)(v.to(device=self.device, dtype=self.dtype))
        wanted = one_by_one(exact)(v.to(self.device))
        return float((found.double() - wanted).norm() / wanted.norm())

    def local_product(self, block: Tensor) -> Tensor:
        """Return this rank's part of H V: that of its examples, weighted by 1/W.

        Args:
            block: V, shape ``(P, k)``.

        Returns:
            Shape ``(P, k)``; the parts of all ranks add up to H V.

        Raises:
            InvalidInputError: If it is not finite, naming the parameter, or if memory
                runs out, saying what would fit.
        """
        with self._memory_guard(), self._arithmetic():
            total: Tensor | None = None
            for share, push in self._pushes(block):
                part = push(block)
                part = part if share == 1.0 else share * part
                total = part if total is None else total.add_(part)
                del push  # the next graph is built when this one is gone
        if total is None:
            total = torch.zeros_like(block)
        if self._system.own_l2:
            total = total + self._system.own_l2 * block
        if total.data_ptr() == block.data_ptr():  # H = I may hand v itself back
            total = total.clone()
        # one reduction; large finite numbers may overflow in it
        summed = bool(torch.isfinite(total.sum()))
        if not summed and not bool(torch.isfinite(total).all()):
            bad = ~torch.isfinite(total).all(1)
            where = torch.where(bad, torch.nan, torch.zeros_like(total[:, 0]))
            raise InvalidInputError(
                "A product with the Hessian is not finite, first in parameter "
                f"{first_bad(self._system, where)}. Check the vector, and the state "
                "for overflow; roots and norms have no second derivative at 0."
            )
        return total

    def _product(self, block: Tensor) -> Tensor:
        self._count += block.shape[1]
        return self._system.ranks.sum_of(lambda: self.local_product(block), like=block)

    def _arithmetic(self) -> Any:
        # what a graph was built in, its reverse pass keeps: no autocast here
        quick: Precision = "tf32" if self._precision == "tf32" else "native"
        return arithmetic(self.device, quick)

    def _pushes(self, block: Tensor) -> Iterator[tuple[float, Push]]:
        plan = self.plan
        if plan.way in {"linearised", "compiled"}:
            yield from self._listed(plan)
            return
        for share, graph in self._built(plan):
            if self._route == "auto" and block.shape[1] > 1 and plan.way == "kept":
                plan = self._raced(plan, graph, block.shape[1])
            yield share, self._way(plan, graph)
            del graph

    def _way(self, plan: Plan, graph: GradientGraph) -> Push:
        if plan.way == "batched":
            budget = self._memory_budget
            return at_once(graph, columns=columns_at_once(plan.nbytes, budget))
        return one_by_one(graph)

    def _built(self, plan: Plan) -> Iterator[tuple[float, GradientGraph]]:
        if self._graphs is not None:
            yield from self._graphs
            return
        kept: list[tuple[float, GradientGraph]] = []
        for batch in self._system.batches():
            for part in parts(batch, plan.microbatch):
                share = self._system.weight(part) / self._system.examples
                graph = build(
                    self._system,
                    part,
                    precision=self._precision,
                    substitute=plan.substitute,
                )
                if plan.kept:
                    kept.append((share, graph))
                yield share, graph
                del graph  # before the next is built
        if plan.kept:
            self._graphs = kept

    def _listed(self, plan: Plan) -> Iterator[tuple[float, Push]]:
        if self._traces is None:
            traces: list[tuple[float, Push]] = []
            for share, graph in self._built(replace(plan, kept=False)):
                push = traced(graph, compiled=plan.way == "compiled")
                if not trust_trace(self._system, graph, push):
                    push = one_by_one(graph)
                traces.append((share, push))
            self._traces = traces
        yield from self._traces

    def _checked(self, plan: Plan) -> Plan:
        trusted = trust_batched(
            self._system,
            lambda: next(self._system.batches()),
            precision=self._precision,
            substitute=plan.substitute,
        )
        return plan if trusted else replace(plan, way="kept")

    def _raced(self, plan: Plan, graph: GradientGraph, columns: int) -> Plan:
        # which is cheaper here: columns one by one, or at once?
        wide = min(columns, 8)
        known = _WAYS.setdefault(self._system.module, {})
        key = (self.dtype, self.device, self.size, plan.nbytes, wide)
        if key not in known:
            known[key] = self._race(plan, graph, wide)
        return replace(plan, way=known[key])

    def _race(self, plan: Plan, graph: GradientGraph, wide: int) -> Way:
        sample = torch.ones(self.size, wide, dtype=self.dtype, device=self.device)
        alone = min(self._seconds(one_by_one(graph), sample[:, :1]) for _ in range(2))
        if alone > _LONG or self._checked(replace(plan, way="batched")).way == "kept":
            return "kept"
        together = self._way(replace(plan, way="batched"), graph)
        seconds = min(self._seconds(together, sample) for _ in range(2))
        return "batched" if seconds < 0.9 * wide * alone else "kept"

    def _seconds(self, push: Push, block: Tensor) -> float:
        self._wait()
        begin = time.perf_counter()
        push(block)
        self._wait()
        return time.perf_counter() - begin

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @contextmanager
    def _memory_guard(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            self._graphs = self._traces = None
            size = measure(
                self._system,
                next(self._system.batches()),
                precision=self._precision,
                substitute=True,
                rough=False,
            )
            needs = (
                ""
                if size is None
                else (f" One example needs about {size.peak(1) / 2**20:.1f} MiB.")
            )
            raise InvalidInputError(
                f"Memory ran out in a product ({self.plan.reason}); "
                f"{describe_memory(self.device)}.{needs} Pass a smaller memory_budget "
                f"than {self._memory_budget} with route='rebuilt': microbatches that "
                "fit are made of it."
            ) from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return "can't allocate memory" in str(error) or "not enough memory" in str(error)
