"""Optimal brain surgeon on blocks: remove weights and move the survivors."""

from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from dynprune.core import AssumptionError, Cost, InvalidInputError, unknown
from dynprune.operators import AbstractOperator, GaussNewtonOperator, HessianOperator
from dynprune.pruning._collapse import Collapse, advice_for, check_known
from dynprune.pruning._example_count import example_count
from dynprune.pruning._example_gradients import drawn, example_gradients
from dynprune.pruning._from_scores import full_state, record, scored, survivors
from dynprune.pruning._inverse_blocks import (
    add_gradient_,
    cut,
    greedy_costs,
    inverse_of_dense,
    join,
    joint_update,
    ranked,
    single_costs,
    started,
    summed_update,
)
from dynprune.pruning._numbers import as_count, as_density, as_number
from dynprune.pruning._obd import prunable_coordinates
from dynprune.pruning._prunable import (
    check_any,
    check_finite,
    check_start,
    probe_cost,
)
from dynprune.pruning._select import Scope
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket

OBSCurvature = Literal["fisher", "hessian", "gauss-newton"]
Order = Literal["one-shot", "sequential"]
Update = Literal["joint", "sum", "none"]
_SOURCES = {"fisher": ("woodfisher", "obs"), "hessian": ("obs",)}


def obs_scores(
    system: GradientSystem,
    *,
    curvature: OBSCurvature = "fisher",
    block_size: int | None = 50,
    damping: float = 1e-5,
    samples: int | None = 1000,
    order: Order = "one-shot",
    seed: int = 0,
) -> dict[str, Tensor]:
    r"""Score weights by the cost of removing each and moving the others to the best.

    .. math:: s_q = \frac{w_q^2}{2 [F^{-1}]_{qq}}

    See :func:`obs` for F, its blocks and the orders.

    Args:
        system: The system, at the state that is pruned, best at a minimum.
        curvature: See :func:`obs`.
        block_size: See :func:`obs`.
        damping: See :func:`obs`.
        samples: See :func:`obs`.
        order: ``"one-shot"`` gives the scores above, ``"sequential"`` ranks from 1 in
            the order of removal.
        seed: Of the draw of examples.

    Returns:
        Name to float64 scores, for each of ``system.prunable``; zero where pruned.

    Raises:
        InvalidInputError: See :func:`obs`.
        AssumptionError: See :func:`obs`.

    Cost:
        As for :func:`obs`.

    Source:
        Hassibi and Stork, *Second order derivatives for network pruning: Optimal Brain
        Surgeon*, NeurIPS 1992; Singh and Alistarh, *WoodFisher*, NeurIPS 2020.

    Example:
        >>> x, y = torch.eye(2), torch.zeros(2, 1)
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> at = system.with_state(torch.tensor([2.0, -1.0]))
        >>> obs_scores(at, curvature="hessian", damping=0.0)
        {'weight': tensor([[2.0000, 0.5000]], dtype=torch.float64)}
    """  # noqa: DOC502 - raised by _Surgeon
    surgeon = _Surgeon.of(
        system,
        curvature=curvature,
        block_size=block_size,
        damping=damping,
        samples=samples,
        seed=seed,
    )
    return surgeon.scores(order)


def obs(
    system: GradientSystem,
    *,
    density: float,
    curvature: OBSCurvature = "fisher",
    block_size: int | None = 50,
    damping: float = 1e-5,
    samples: int | None = 1000,
    order: Order = "one-shot",
    update: Update = "joint",
    scope: Scope = "global",
    collapse: Collapse = "error",
    seed: int = 0,
) -> Ticket:
    r"""Remove the weights of least cost and move the survivors to make up for them.

    In each block of consecutive weights of one tensor, with F its curvature,

    .. math:: s_q = \frac{w_q^2}{2 [F^{-1}]_{qq}}, \qquad
              \delta w = -\frac{w_q}{[F^{-1}]_{qq}} F^{-1} e_q .

    * ``curvature="fisher"`` is WoodFisher: from n gradients of single examples,
      :math:`F^{-1} \leftarrow F^{-1} - F^{-1} g g^\top F^{-1} / (n + g^\top F^{-1} g)`
      starting at :math:`I / \lambda`, so that
      :math:`F = \lambda I + \tfrac{1}{n} \sum_i g_i g_i^\top`.
    * ``"hessian"``, ``"gauss-newton"``: the exact blocks plus λI, inverted; for small
      networks. The Hessian must be positive definite there.

    The system's l2 counts: it is a part of the Hessian and is added to λ for the
    Fisher matrix. Scores are those of each weight alone with ``order="one-shot"``;
    ``"sequential"`` removes one weight after the other in each block, with the
    survivors moved and F⁻¹ reduced in between, and merges the blocks' sequences.

    The ticket's *state* holds the moved survivors; pruned entries keep their old
    values, which a shuffled mask uncovers. ``update="joint"`` minimises the quadratic
    over the survivors, :math:`\delta w = -F^{-1}_{:,Q} (F^{-1}_{QQ})^{-1} w_Q` for
    the removed set Q, which is also where the sequence of single moves ends; ``"sum"``
    adds the single moves, as the source does for many weights at once; ``"none"``
    moves nothing. ``predicted_rise`` in the settings is the loss that this costs
    according to F; for ``"sum"`` and ``"none"`` the sum of the single costs.

    Args:
        system: What is pruned, usually ``system.with_state(run.state)`` of a trained
            run.
        density: Fraction to keep, in (0, 1].
        curvature: ``"fisher"``, ``"hessian"`` or ``"gauss-newton"``.
        block_size: B, weights per block, at least 1; None for whole tensors.
        damping: λ, loss per parameter²; positive for ``"fisher"``.
        samples: Examples that the Fisher matrix is estimated from at most; None for
            all. Of resident data a draw, of a loader the first ones.
        order: ``"one-shot"`` or ``"sequential"``.
        update: ``"joint"``, ``"sum"`` or ``"none"``.
        scope: ``"global"`` count, or ``"layer"``.
        collapse: What to do about one; see :func:`from_scores`.
        seed: Of the draw of examples.

    Returns:
        The ticket.

    Raises:
        InvalidInputError: See :func:`from_scores`; or for an unknown option, a
            ``block_size`` below 1, damping that is negative (or zero with the Fisher
            matrix), fewer samples than a block has weights, examples that cannot be
            told apart, or more than 20,000 coordinates with an exact curvature.
        AssumptionError: If a block of the Hessian is not positive definite, or
            rounding made one of the inverse so.

    Cost:
        Fisher: n / N gradients, one example at a time, and N B numbers in float64; no
        HVPs. Exact curvatures: one HVP per weight, for a new system the gradients of
        the determinism probe, and a dense matrix. No forward passes alone. The
        updates and the sequential order need N B² operations.

    Source:
        Hassibi and Stork, *Second order derivatives for network pruning: Optimal Brain
        Surgeon*, NeurIPS 1992; Singh and Alistarh, *WoodFisher*, NeurIPS 2020.
    """  # noqa: DOC502 - raised by the parts
    density = as_density(density)
    check_known(collapse)
    _check_known("update", update, get_args(Update))
    _check_known("order", order, get_args(Order))
    surgeon = _Surgeon.of(
        system,
        curvature=curvature,
        block_size=block_size,
        damping=damping,
        samples=samples,
        seed=seed,
    )
    draft = scored(
        system,
        surgeon.scores(order),
        density=density,
        scope=scope,
        collapse=collapse,
        provenance=record(system, "pruning.obs", seed=seed),
        cost=surgeon.cost,
        advice=advice_for(scope),
    )
    moved, rise = surgeon.moved(dict(draft.mask_items), update)
    settings = {
        "density": density,
        "rule": "exact",
        "scope": scope,
        "collapse": dict(draft.provenance.settings)["collapse"],
        "curvature": curvature,
        "block_size": None if block_size is None else int(block_size),
        "damping": damping,
        "samples": surgeon.samples,
        "order": order,
        "update": update,
        "predicted_rise": rise,
    }
    return Ticket.make(
        dict(draft.mask_items),
        full_state(system, system.state) | moved,
        system.buffers,
        provenance=record(
            system,
            "pruning.obs",
            seed=seed,
            settings=settings,
            sources=_SOURCES.get(curvature, ("obs",)),
        ),
        cost=surgeon.cost,
    )


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class _Surgeon:
    """The weights and the inverse curvature of each tensor, in blocks."""

    weights: dict[str, Tensor]  # of the tensors' shapes and dtype
    empty: dict[str, Tensor]  # those that have none
    alive: dict[str, Tensor]
    inverses: dict[str, Tensor]  # (blocks, B, B), float64
    samples: int
    cost: Cost

    @staticmethod
    def of(
        system: GradientSystem,
        *,
        curvature: str,
        block_size: int | None,
        damping: float,
        samples: int | None,
        seed: int,
    ) -> "_Surgeon":
        _check(curvature, damping)
        if block_size is not None:
            block_size = as_count("block_size", block_size)
        if samples is not None:
            samples = as_count("samples", samples)
        check_start(system, seed)
        system.check_one_process("Scoring weights")
        prunable_coordinates(system)
        check_finite(system)
        named = system.unflatten(system.state)
        every = {name: named[name].detach().clone() for name in system.prunable}
        check_any(part.numel() for part in every.values())
        weights = {name: part for name, part in every.items() if part.numel()}
        empty = {name: part for name, part in every.items() if not part.numel()}
        sizes = {
            name: min(block_size or part.numel(), part.numel())
            for name, part in weights.items()
        }
        alive = {
            name: kept.to(system.device)
            for name, kept in survivors(system).items()
            if name in weights
        }
        if curvature == "fisher":
            examples = drawn(system, samples, seed=seed)
            inverses = _fisher(system, weights, sizes, damping, examples, seed)
            count = len(examples)
            cost = Cost(gradients=count / example_count(system))
        else:
            count = 0
            inverses, cost = _exact(system, alive, sizes, curvature, damping)
        return _Surgeon(
            weights=weights,
            empty=empty,
            alive=alive,
            inverses=inverses,
            samples=count,
            cost=cost,
        )

    def scores(self, order: Order) -> dict[str, Tensor]:
        _check_known("order", order, get_args(Order))
        costs, places = {}, {}
        for name, weight in self.weights.items():
            inverse, values, alive = self._blocks(name)
            if order == "one-shot":
                found = torch.where(alive, single_costs(inverse, values), 0.0)
            else:
                found, turns = greedy_costs(inverse, values, alive)
                places[name] = join(turns, weight.shape)
            _check_positive(name, inverse, found)
            costs[name] = join(found, weight.shape)
        scores = costs if order == "one-shot" else ranked(costs, places)
        return scores | {name: part.double() for name, part in self.empty.items()}

    def moved(
        self, masks: dict[str, Tensor], update: Update
    ) -> tuple[dict[str, Tensor], float]:
        # kept weights move, the others keep their old values
        found, total = {}, 0.0
        rule = joint_update if update == "joint" else summed_update
        for name, weight in self.weights.items():
            inverse, values, alive = self._blocks(name)
            kept = masks[name].to(weight.device)
            removed = alive & ~cut(kept, values.shape[1])
            move, rise = rule(inverse, values, removed)
            total += rise
            after = join(values + move, weight.shape).to(weight.dtype)
            found[name] = (
                weight if update == "none" else torch.where(kept, after, weight)
            )
        return found | self.empty, total

    def _blocks(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        inverse = self.inverses[name]
        size = inverse.shape[1]
        values = cut(self.weights[name].double(), size)
        return inverse, values, cut(self.alive[name], size)


def _fisher(
    system: GradientSystem,
    weights: dict[str, Tensor],
    sizes: dict[str, int],
    damping: float,
    examples: list[Any],
    seed: int,
) -> dict[str, Tensor]:
    count, largest = len(examples), max(sizes.values())
    if count < largest:
        raise InvalidInputError(
            f"Blocks of {largest} weights were asked, and {count} examples make a "
            f"Fisher matrix of rank {count} at most. Pass block_size ≤ {count}, or "
            "more samples or data."
        )
    found = {
        name: started(
            -(-part.numel() // sizes[name]),
            sizes[name],
            damping=damping + system.l2,
            device=system.device,
        )
        for name, part in weights.items()
    }
    for parts in example_gradients(system, examples, seed=seed):
        for name, part in zip(system.prunable, parts, strict=True):
            if name not in found:
                continue
            add_gradient_(found[name], cut(part, sizes[name]), count=count)
    return found


def _exact(
    system: GradientSystem,
    alive: dict[str, Tensor],
    sizes: dict[str, int],
    curvature: str,
    damping: float,
) -> tuple[dict[str, Tensor], Cost]:
    probe = probe_cost(system)
    kind = HessianOperator if curvature == "hessian" else GaussNewtonOperator
    whole: AbstractOperator = kind(system)
    block = whole.restrict(prunable_coordinates(system))
    matrix = block.dense()
    cost = Cost(gradients=probe, hvps=float(block.size))
    found, first = {}, 0
    for name, kept in alive.items():
        own = slice(first, first + int(kept.sum()))
        first = own.stop
        found[name] = inverse_of_dense(
            matrix[own, own], kept, sizes[name], damping=damping, name=name
        )
    return found, cost


def _check_positive(name: str, inverse: Tensor, costs: Tensor) -> None:
    diagonal = inverse.diagonal(dim1=1, dim2=2)
    fine = bool((diagonal > 0).all()) and bool((costs >= 0).all())
    if not fine or not bool(torch.isfinite(costs).all()):
        raise AssumptionError(
            f"Rounding has left a block of the inverse curvature of {name!r} without a "
            "positive diagonal. Pass more damping or a smaller block_size, or look for "
            "overflow in the gradients."
        )


def _check(curvature: str, damping: float) -> None:
    _check_known("curvature", curvature, get_args(OBSCurvature))
    found = as_number(damping)
    if not 0.0 <= found < float("inf") or (curvature == "fisher" and found == 0):
        raise InvalidInputError(
            f"damping is {damping!r} with curvature={curvature!r}. Pass a positive "
            "number (the Fisher recursion starts at I/damping); 0 is for an exact "
            "curvature that is positive definite."
        )


def _check_known(what: str, name: str, options: tuple[str, ...]) -> None:
    if name not in options:
        raise unknown(what, name, options)
