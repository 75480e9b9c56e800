"""Units of work over an executor: each once, in order of need, past crashes."""

import concurrent.futures
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pickle import PicklingError  # noqa: TID251 - only to catch what loky raises
from typing import Any, final

from dynprune.core import DynPruneError, InvalidInputError

_MOST_BREAKS = 3


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Unit:
    """Name one independent piece of a study.

    Args:
        name: Its file's name.
        kind: "imp", a method's name, or an analysis's name.
        seed: The seed it belongs to.
        after: Units whose files it reads.
        weight: Its expected work, in optimiser steps.
    """

    name: str
    kind: str
    seed: int
    after: tuple[str, ...] = ()
    weight: float = 1.0


def run_units(
    units: Iterable[Unit],
    work: Callable[[Unit], None],
    *,
    done: Iterable[str],
    make_executor: Callable[[], Executor],
    on_done: Callable[[Unit], None],
) -> None:
    """Run units until none is missing.

    Ready units go to the executor, the heaviest chains first. A broken pool is
    replaced and what it lost is submitted again, three times at most.

    Args:
        units: All units.
        work: Computes one unit and leaves its files; must be picklable.
        done: Names of units that need not run.
        make_executor: Makes a fresh executor.
        on_done: Called in this process after each unit.

    Raises:
        InvalidInputError: If the pool breaks a fourth time, or the work cannot be sent
            to it.
    """
    finished = set(done)
    missing = {unit.name: unit for unit in units if unit.name not in finished}
    breaks = 0
    while missing:
        executor = make_executor()
        try:
            _drain(executor, missing, finished, work, on_done)
            executor.shutdown(wait=True)
        except concurrent.futures.BrokenExecutor as error:
            breaks += 1
            if breaks > _MOST_BREAKS:
                raise InvalidInputError(
                    f"The worker processes died {breaks} times ({error}). Is memory "
                    "short? Try --jobs 1; what is done is kept."
                ) from error
        except PicklingError as error:
            _stop(executor)
            *_, why = str(error.__cause__ or error).strip('" \n').splitlines()
            raise InvalidInputError(
                f"The problem cannot be sent to worker processes ({why}). "
                "Keep locks, open files and the like out of its model, loss, metric "
                "and data, or pass an executor of threads."
            ) from error
        except BaseException:
            _stop(executor)
            raise


def _drain(
    executor: Executor,
    missing: dict[str, Unit],
    finished: set[str],
    work: Callable[[Unit], None],
    on_done: Callable[[Unit], None],
) -> None:
    running: dict[Future[None], Unit] = {}
    urgency = _urgency(missing)
    while missing or running:
        ready = [
            unit
            for unit in missing.values()
            if finished.issuperset(unit.after) and unit not in running.values()
        ]
        for unit in sorted(ready, key=lambda unit: -urgency[unit.name]):
            running[executor.submit(work, unit)] = unit
        if not running:
            raise DynPruneError(f"Units wait for each other: {', '.join(missing)}.")
        settled, _ = concurrent.futures.wait(
            running, return_when=concurrent.futures.FIRST_COMPLETED
        )
        for future in settled:
            unit = running.pop(future)
            future.result()
            finished.add(unit.name)
            del missing[unit.name]
            on_done(unit)


def _urgency(missing: Mapping[str, Unit]) -> dict[str, float]:
    """Return each unit's weight plus that of what waits for it."""
    waiting = {
        name: sum(unit.weight for unit in missing.values() if name in unit.after)
        for name in missing
    }
    return {name: unit.weight + waiting[name] for name, unit in missing.items()}


def _stop(executor: Any) -> None:
    try:
        executor.shutdown(wait=False, kill_workers=True)
    except TypeError:  # not loky's
        executor.shutdown(wait=False, cancel_futures=True)
