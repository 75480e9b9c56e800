"""What can be trained as one stack: looked at, then checked by one gradient."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.core import (
    InvalidInputError,
    generator_states,
    isolated,
    seeded_generators,
)
from dynprune.system import GradientSystem, is_resident, read
from dynprune.training._mover import Mover
from dynprune.training._recipe import Recipe
from dynprune.training._stacked_alike import difference
from dynprune.training._stacked_mover import StackedMover
from dynprune.training._stacked_order import StackedOrder
from dynprune.training._stacked_train import batches_of

_CHECKED = 8  # examples


def check_alike(systems: Sequence[GradientSystem], recipe: Recipe) -> None:
    """Refuse systems that differ in more than state, buffers and masks.

    Args:
        systems: At least one.
        recipe: How they train; data of its own stand for theirs.

    Raises:
        InvalidInputError: If they do; it says in what, and which.
    """
    first = _traits(systems[0])
    for place, system in enumerate(systems[1:], start=1):
        if _twins(system, systems[0]):
            continue
        found = _traits(system)
        differ = [name for name in first if first[name] != found[name]]
        differ += _unlike(system, systems[0])
        if recipe.data is None and not _same_data(system.data, systems[0].data):
            differ.append("data")
        if differ:
            raise InvalidInputError(
                f"Stacked training was asked of systems that differ: number {place} "
                f"and number 0 in {', '.join(differ)}. Make them with with_ticket() or "
                "with_state() of one system, or use how='processes'."
            )


def check_seeds(
    systems: Sequence[GradientSystem], recipe: Recipe, seeds: Sequence[int]
) -> None:
    """Refuse seeds of their own for batches that cannot be gathered.

    Args:
        systems: At least one.
        recipe: What they train on.
        seeds: One for each.

    Raises:
        InvalidInputError: If a loader is to be read in several orders at once.
    """
    data = systems[0].data if recipe.data is None else recipe.data
    if len(set(seeds)) > 1 and not is_resident(data):
        raise InvalidInputError(
            f"Stacked training was asked with {len(set(seeds))} data orders of a "
            f"{type(data).__name__}, whose batches cannot be gathered run by run. Pass "
            "(x, y) tensors, one seed for all, or how='processes'."
        )


def check_agrees(
    systems: Sequence[GradientSystem],
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    stack: int,
) -> bool:
    """Check one stacked gradient of every run against the one it has alone.

    The stacks are those that training makes, one after the other, with a batch for
    each run where training has one. Buffers are compared after it, too. A network that
    is random in train mode (dropout) is compared in eval mode, and in train mode only
    tried.

    Args:
        systems: Alike, see :func:`check_alike`.
        recipe: How they train.
        seeds: One for each.
        stack: Largest number of networks in one stack.

    Returns:
        Whether the network is random in the recipe's mode.

    Raises:
        InvalidInputError: If the network cannot be batched by ``torch.func.vmap``, or
            a loss, gradient or buffer differs by more than rounding.

    Cost:
        For every run, two gradients over at most 8 examples.
    """  # noqa: DOC502 - raised by the parts
    shared = _first_batch(systems[0], recipe)
    training = recipe.mode == "train"
    moves_randomly = training and _is_random(systems[0], recipe, shared)
    calm = training and not moves_randomly
    for first in range(0, len(systems), stack):
        part = slice(first, first + stack)
        own = _own_batches(systems[part], recipe, seeds[part])
        batch = shared if own is None else own
        stacked = _mover(systems[part], recipe, training=calm, own=own is not None)
        with isolated(0):
            _compare(stacked, systems[part], recipe, batch, first=first, training=calm)
        if moves_randomly and first == 0:
            random = _mover(systems[part], recipe, training=True, own=own is not None)
            with isolated(0):
                _attempt(random, batch)
    return moves_randomly


def _compare(
    stack: StackedMover,
    systems: Sequence[GradientSystem],
    recipe: Recipe,
    batch: Any,
    *,
    first: int,
    training: bool,
) -> None:
    losses = _attempt(stack, batch)
    for place, system in enumerate(systems):
        run = first + place
        one = Mover(system, recipe.optimizer, schedule=None, training=training, step=0)
        mine = tuple(part[place] for part in batch) if stack.own else batch
        pairs = {"loss": (losses[place], one.gradient(mine))}
        for name, many, own in zip(
            system.names, stack.parameters, _gradients(system, one), strict=True
        ):
            if (many.grad is None) != (own is None):
                raise _differs(run, f"gradient of {name}", math.inf)
            if many.grad is not None and own is not None:
                pairs[f"gradient of {name}"] = (many.grad[place], own)
        after = stack.buffers(place)
        pairs |= {f"buffer {n}": (after[n], part) for n, part in one.buffers().items()}
        _check_pairs(run, pairs, system.dtype)


def _check_pairs(
    run: int, pairs: dict[str, tuple[Tensor, Tensor]], dtype: torch.dtype
) -> None:
    # a wrong rule is off by its own size, rounding by eps times the depth: in between
    tolerance = math.sqrt(torch.finfo(dtype).eps)
    largest = max(
        (float(b.abs().max()) for what, (_, b) in pairs.items() if "gradient" in what),
        default=0.0,
    )
    largest = max(largest, torch.finfo(dtype).eps)
    for what, (found, wanted) in pairs.items():
        a, b = found.detach().double(), wanted.detach().double()
        if not b.numel():
            continue
        scale = largest if "gradient" in what else max(1.0, float(b.abs().max()))
        if not math.isfinite(scale):
            continue  # where it diverges at once there is nothing to compare
        if not torch.allclose(a, b, rtol=0.0, atol=tolerance * scale, equal_nan=True):
            raise _differs(run, what, float((a - b).abs().max()))


def _attempt(mover: StackedMover, batch: Any) -> Tensor:
    try:
        return mover.gradient(batch)
    except (RuntimeError, NotImplementedError, ValueError) as error:
        why = str(error).strip().splitlines()[0]
        raise InvalidInputError(
            f"Stacked training was asked of a {type(mover.net).__name__}, which "
            f"torch.func.vmap cannot batch: {why} Use how='processes' or 'serial'."
        ) from error


def _mover(
    systems: Sequence[GradientSystem], recipe: Recipe, *, training: bool, own: bool
) -> StackedMover:
    return StackedMover(
        systems,
        recipe.optimizer,
        schedule=recipe.schedule,
        training=training,
        step=0,
        own=own,
    )


def _is_random(system: GradientSystem, recipe: Recipe, batch: Any) -> bool:
    # a rare event may happen under neither seed, but its draw moves a generator; that
    # of a generator of the network's own is seen in the numbers at most
    found = []
    for seed in (0, 1):
        one = Mover(system, recipe.optimizer, schedule=None, training=True, step=0)
        with isolated(seed):
            before = generator_states()
            loss = one.gradient(batch)
            if generator_states() != before:
                return True
        slopes = [part for part in _gradients(system, one) if part is not None]
        found.append([loss, *slopes])
    return not all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def _gradients(system: GradientSystem, mover: Mover) -> list[Tensor | None]:
    found = [part.grad for part in mover.parameters]
    for name, part in zip(system.names, found, strict=True):
        if part is not None and part.layout != torch.strided:
            raise InvalidInputError(
                f"Stacked training was asked of a network with a sparse gradient of "
                f"{name}, which torch.func.vmap cannot batch. Make the embedding with "
                "sparse=False, or use how='processes' or 'serial'."
            )
    return found


def _first_batch(system: GradientSystem, recipe: Recipe) -> Any:
    data = system.data if recipe.data is None else recipe.data
    if is_resident(data):
        data = tuple(part[:_CHECKED] for part in data)
    with seeded_generators(data, 0):
        return next(
            read(data, dtype=system.dtype, device=system.device, microbatch=None)
        )


def _own_batches(
    systems: Sequence[GradientSystem], recipe: Recipe, seeds: Sequence[int]
) -> Any:
    if not batches_of(systems[0], recipe, seeds)[2]:
        return None
    for name, part in systems[0].module.named_modules():
        # rows of all runs are looked up as one table, whose padding is run 0's
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            raise InvalidInputError(
                f"Stacked training was asked with {len(set(seeds))} data orders of a "
                f"network whose embedding {name!r} has padding_idx={part.padding_idx}: "
                "torch.func.vmap would train the padding row of every run but the "
                "first. Pass one seed for all, or how='processes' or 'serial'."
            )
    data = systems[0].data if recipe.data is None else recipe.data
    order = StackedOrder(systems[0], data, batch_size=_CHECKED, seeds=seeds)
    return next(order.epoch(0))


def _twins(one: GradientSystem, other: GradientSystem) -> bool:
    return (
        one.module is other.module
        and one.data is other.data
        and one.l2 == other.l2
        and one.batch_weight is other.batch_weight
        and one.names == other.names
    )


def _same_data(one: Any, other: Any) -> bool:
    if one is other or not (is_resident(one) and is_resident(other)):
        return one is other
    pairs = zip(one, other, strict=True)
    return all(a is b or (a.shape == b.shape and torch.equal(a, b)) for a, b in pairs)


def _traits(system: GradientSystem) -> dict[str, object]:
    parameters = dict(system.module.named_parameters())
    buffers = dict(system.module.named_buffers())
    return {
        "trained parameters": system.names,
        "parameters": {n: (p.shape, p.dtype) for n, p in parameters.items()},
        "buffers": {n: (p.shape, p.dtype) for n, p in buffers.items()},
        "dtype": system.dtype,
        "device": system.device,
        "l2": system.l2,
        "modules kept in eval mode": system.kept_in_eval,
    }


def _unlike(one: GradientSystem, other: GradientSystem) -> list[str]:
    paths = {
        "architecture": difference(one.module, other.module, stacked=True),
        "loss": difference(one.loss_fn, other.loss_fn, stacked=False),
        "batch loss": difference(one.batch_loss, other.batch_loss, stacked=False),
        "batch weight": difference(one.batch_weight, other.batch_weight, stacked=False),
    }
    return [
        f"{name} ({path})" if path else name
        for name, path in paths.items()
        if path is not None
    ]


def _differs(run: int, what: str, by: float) -> InvalidInputError:
    return InvalidInputError(
        f"Stacked training was asked, but the {what} of run {run} differs by {by:.3g} "
        "from the one that the run has alone. The networks differ in what their "
        "description does not say, or torch.func.vmap has no correct rule for a layer. "
        "Use how='processes' or 'serial'."
    )
