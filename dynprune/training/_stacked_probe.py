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
    try:
        random = check_stackable(systems, recipe, seeds=seeds)
        assert isinstance(recipe, Recipe)
    except InvalidInputError as error:
        return _without_stack(systems, jobs, float("inf"), str(error).split(". ")[0])
    if random:
        why = "dropout draws other numbers in a stack than one by one"
        return _without_stack(systems, jobs, float("inf"), why)
    one, many = measured(systems[:stack], recipe, seeds=seeds[:stack])
    speedup = one * min(stack, len(systems)) / many
    workers = min(jobs, len(systems)) if systems[0].device.type == "cpu" else 1
    work = one * len(systems) * (recipe.steps if steps is None else steps)
    found = f"a stack of {min(stack, len(systems))} is {speedup:.2g} times as fast"
    if speedup >= max(1.0, workers if work > _WORTH_PROCESSES else 1.0):
        return "stacked", speedup, found
    how, _, _ = _without_stack(systems, jobs, work, "")
    return how, speedup, found


def check_stackable(
    systems: Sequence[GradientSystem], recipe: object, *, seeds: Sequence[int]
) -> bool:
    """Refuse what cannot be trained as a stack.

    Args:
        systems: Where the runs start from.
        recipe: How they train.
        seeds: One for each.

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
    return check_agrees(systems, recipe)


def measured(
    systems: Sequence[GradientSystem], recipe: Recipe, *, seeds: Sequence[int]
) -> tuple[float, float]:
    """Time a step of one network and a step of the stack, batches included.

    Args:
        systems: All that one stack holds.
        recipe: How they train.
        seeds: One for each.

    Returns:
        Seconds of a step of one network, and of the stack; kept for the next call with
        the same network, optimiser, batch, device and number of threads.

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
        )

    def many() -> StackedMover:
        return StackedMover(
            systems,
            recipe.optimizer,
            schedule=recipe.schedule,
            training=training,
            step=0,
            own=batches_of(first, recipe, seeds)[2],
        )

    key = (
        repr(first.module),
        first.coordinates.shapes,
        str(first.dtype),
        str(first.device),
        one().describe()["optimizer"],
        recipe.batch_size,
        recipe.mode,
        len(systems),
        len(set(seeds)) == 1,
        torch.get_num_threads(),
    )
    if key not in _MEASURED:
        _MEASURED[key] = _in_turn([(one, seeds[:1]), (many, seeds)], first, recipe)
    return _MEASURED[key]


def _in_turn(
    sides: Sequence[tuple[Callable[[], Mover | StackedMover], Sequence[int]]],
    system: GradientSystem,
    recipe: Recipe,
) -> tuple[float, float]:
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
    one, many = (min(times[_WARM:]) for times in taken)
    return one, many


def _without_stack(
    systems: Sequence[GradientSystem], jobs: int, work: float, why: str
) -> tuple[How, float, str]:
    spread = (
        jobs > 1
        and len(systems) > 1
        and work > _WORTH_PROCESSES
        and systems[0].device.type == "cpu"
    )
    return ("processes" if spread else "serial"), float("nan"), why


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
