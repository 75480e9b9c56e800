"""How much faster a stack is than its networks one by one: a stopwatch of few steps."""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

import torch

from dynprune.core import InvalidInputError, isolated, seeded_generators
from dynprune.system import GradientSystem
from dynprune.training._mover import Mover
from dynprune.training._order import stream
from dynprune.training._recipe import Recipe
from dynprune.training._stacked_checks import check_agrees, check_alike, check_seeds
from dynprune.training._stacked_mover import StackedMover
from dynprune.training._stacked_results import How
from dynprune.training._stacked_train import batches_of

_WARM, _TIMED = 2, 5  # steps
_WORTH_PROCESSES = 10.0  # seconds of work; starting the processes takes a few
_NAN = float("nan")
Side = tuple[Callable[[], Mover | StackedMover], Sequence[int]]
_MEASURED: dict[tuple[object, ...], tuple[float, float]] = {}


def choose(
    systems: Sequence[GradientSystem],
    recipe: object,
    *,
    seeds: Sequence[int],
    steps: int | None,
    stack: int,
    jobs: int,
) -> tuple[How, float, str]:
    """Choose how to train many networks: what the stopwatch says is fastest.

    Args:
        systems: Where they start from.
        recipe: How they train; only a :class:`Recipe` can be stacked.
        seeds: One for each.
        steps: Of each run; None if only the recipe knows.
        stack: Largest number in one stack.
        jobs: Processes that may run at once.

    Returns:
        How, the measured speed-up of the stack (NaN if there is none), and why.
    """
    workers = min(jobs, len(systems)) if systems[0].device.type == "cpu" else 1
    if not isinstance(recipe, Recipe):
        why = "a trainer that is no Recipe; how='processes' would use all cores"
        return "serial", _NAN, why
    count = recipe.steps if steps is None else steps
    size = min(stack, len(systems))
    try:
        random = check_stackable(systems, recipe, seeds=seeds, stack=size)
        why = "dropout draws other numbers in a stack than one by one"
    except InvalidInputError as error:
        random, why = True, str(error)
    if random or size == 1:
        one, _ = measured(systems[:1], recipe, seeds=seeds[:1], stacked=False)
        how = _spread(workers, one * len(systems) * count)
        return how, _NAN, why if random else "there is nothing to stack"
    one, many = measured(systems[:size], recipe, seeds=seeds[:size])
    speedup, how = one * size / many, _spread(workers, one * len(systems) * count)
    if speedup >= (workers if how == "processes" else 1):
        how = "stacked"
    return how, speedup, f"a stack of {size} is {speedup:.2g} times as fast"


def _spread(workers: int, work: float) -> How:
    return "processes" if workers > 1 and work > _WORTH_PROCESSES else "serial"


def check_stackable(
    systems: Sequence[GradientSystem],
    recipe: object,
    *,
    seeds: Sequence[int],
    stack: int,
) -> bool:
    """Refuse what cannot be trained as a stack.

    Args:
        systems: Where the runs start from.
        recipe: How they train.
        seeds: One for each.
        stack: Largest number in one stack.

    Returns:
        Whether the networks are random in the recipe's mode.

    Raises:
        InvalidInputError: If so; says what is in the way, and what to do.
    """
    if not isinstance(recipe, Recipe):
        raise InvalidInputError(
            f"Stacked training was asked with a {type(recipe).__name__}, which trains "
            "one system at a time. Pass a Recipe, or how='processes' or 'serial'."
        )
    check_alike(systems, recipe)
    check_seeds(systems, recipe, seeds)
    return check_agrees(systems, recipe, seeds=seeds, stack=stack)


def measured(
    systems: Sequence[GradientSystem],
    recipe: Recipe,
    *,
    seeds: Sequence[int],
    stacked: bool = True,
) -> tuple[float, float]:
    """Time a step of one network and a step of the stack, batches included.

    Args:
        systems: All that one stack holds.
        recipe: How they train.
        seeds: One for each.
        stacked: Whether to time the stack.

    Returns:
        Seconds of a step of one network, and of the stack (infinite if not timed);
        kept for the next call with the same network, optimiser, batch, device and
        number of threads.

    Cost:
        Seven steps each.
    """
    first, training = systems[0], recipe.mode == "train"

    def one() -> Mover:
        return Mover(
            first,
            recipe.optimizer,
            schedule=recipe.schedule,
            training=training,
            step=0,
            capture=recipe.capture,
        )

    def many() -> StackedMover:
        return StackedMover(
            systems,
            recipe.optimizer,
            schedule=recipe.schedule,
            training=training,
            step=0,
            own=batches_of(first, recipe, seeds)[2],
            capture=recipe.capture,
        )

    key = (
        repr(first.module),
        first.coordinates.shapes,
        str(first.dtype),
        str(first.device),
        one().describe()["optimizer"],
        recipe.batch_size,
        recipe.mode,
        recipe.capture,
        stacked and len(systems),
        len(set(seeds)) == 1,
        torch.get_num_threads(),
    )
    if key not in _MEASURED:
        sides: list[Side] = [(one, seeds[:1])]
        if stacked:
            sides.append((many, seeds))
        times = _in_turn(sides, first, recipe)
        _MEASURED[key] = times[0], times[1] if stacked else float("inf")
    return _MEASURED[key]


def _in_turn(
    sides: Sequence[Side], system: GradientSystem, recipe: Recipe
) -> list[float]:
    data = system.data if recipe.data is None else recipe.data
    taken: list[list[float]] = [[] for _ in sides]
    with ExitStack() as held:
        for source in (system.data, data):
            held.enter_context(seeded_generators(source, 0))
        held.enter_context(isolated(0))
        runners = []
        for make, seeds in sides:
            order, _, _ = batches_of(system, recipe, seeds)
            batches = stream(order, start=0, stop=_WARM + _TIMED)
            runners.append((make().step, held.enter_context(closing(batches))))
        for _ in range(_WARM + _TIMED):
            for kept, (step, batches) in zip(taken, runners, strict=True):
                _settle(system.device)
                start = time.perf_counter()
                step(next(batches))
                _settle(system.device)
                kept.append(time.perf_counter() - start)
    # the least: other work on the machine only ever adds
    return [min(times[_WARM:]) for times in taken]


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
