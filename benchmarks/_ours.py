"""dynprune's own products, in the form of the rivals' adapters."""

import inspect
from typing import Any, final, get_args

from _models import Case
from _rivals import AbstractProducts
from torch import Tensor

import dynprune as dp

_PLENTY = 2**36
_AUTOMATIC = {"auto", "budget"}


@final
class Ours(AbstractProducts):
    """``HessianOperator`` of the case's system, made anew unless it is given."""

    batched = True

    def __init__(
        self, case: Case, *, system: dp.GradientSystem | None = None, **options: Any
    ) -> None:
        self.made = dp.HessianOperator(system or case.system(), **options)

    def native(self, vectors: Tensor) -> Tensor:
        """As it is."""
        return vectors

    def product(self, native: Any) -> Tensor:
        """Its ``H @ v`` or ``H @ V``."""
        return self.made @ native

    def flat(self, product: Any) -> Tensor:
        """As it is."""
        return product


def options() -> dict[str, dict[str, Any]]:
    """Return the routes that the operator can be told to take, with memory for each."""
    known = inspect.signature(dp.HessianOperator).parameters.get("route")
    names = () if known is None else get_args(known.annotation)
    return {
        name: {"route": name, "memory_budget": _PLENTY}
        for name in names
        if name not in _AUTOMATIC
    }


def chosen(made: AbstractProducts) -> str | None:
    """Return how dynprune's products are made, if it says so."""
    plan = getattr(made.made, "plan", None) if isinstance(made, Ours) else None
    if plan is None:
        return None
    parts = [plan.way, "graph kept" if plan.kept else "graph rebuilt"]
    if plan.microbatch is not None:
        parts.append(f"microbatches of {plan.microbatch}")
    if not plan.substitute:
        parts.append("torch's kernels")
    return ", ".join(parts)
