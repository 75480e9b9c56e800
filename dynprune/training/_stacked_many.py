"""Many small networks trained at once."""

import functools
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import BrokenExecutor
from pickle import PicklingError  # noqa: TID251 - only to catch what loky raises
from typing import Any, Literal

import torch

from dynprune.core import (
    ConvergenceError,
    DynPruneError,
    InvalidInputError,
    Provenance,
    process_pool,
    track,
    unknown,
    whole,
)
from dynprune.system import GradientSystem
from dynprune.training._arguments import (
    check_fits,
    positive_or_none,
    whole_or_none,
)
from dynprune.training._lone import check_lone
from dynprune.training._recipe import Recipe, Trainer
from dynprune.training._results import Run
from dynprune.training._stacked_probe import check_stackable, choose
from dynprune.training._stacked_results import How, Runs
from dynprune.training._stacked_train import train_stacked

_HOWS = ("auto", "stacked", "processes", "serial")


def train_many(
    systems: Sequence[GradientSystem],
    train: Trainer,
    *,
    seeds: int | Sequence[int] = 0,
    start_step: int = 0,
    stop_step: int | None = None,
    record: int | None = None,
    how: Literal["auto", "stacked", "processes", "serial"] = "auto",
    stack: int | None = None,
    jobs: int | None = None,
    progress: bool = False,
    throw: bool = True,
) -> Runs:
    r"""Train many systems, each as :func:`train` would alone; small ones as a stack.

    A stack holds each parameter of R networks as one tensor of shape ``(R, …)`` and
    moves them by one backward pass and one optimiser step,

    .. math:: \nabla_{(\theta_1, \dots, \theta_R)} \sum_r L_{B_r(t)}(\theta_r)
              = (\nabla L_{B_1(t)}(\theta_1), \dots, \nabla L_{B_R(t)}(\theta_R)),

    where :math:`B_r(t)` is the batch that run r would read alone: every run keeps its
    own data order, masks, buffers, history and cost. A network so small that a step is
    mostly overhead trains several times as fast in a stack; a large one does not, and
    trains in processes or one by one.

    In a stack the runs equal those one by one up to rounding, and training amplifies
    rounding as it does any perturbation. Batch norm does so most where a channel is
    constant (dead, or all its weights pruned): it divides rounding by
    :math:`\sqrt{\epsilon}`, 300-fold by default, at every step; after 20 steps of a
    small network in float64, biases before such a norm were off by 6e-13. Adam and
    AdamW do so most of all, by dividing a gradient by its own size: that of a bias
    before a batch norm is zero but for rounding, and after 20 such steps of learning
    rate 0.01 these biases were off by 1e-8 in float64 and 0.1 in float32. The norm
    subtracts them, so that the other parameters and, in train mode, the function agree;
    leave them out (``bias=False``) if all is to.

    Dropout is the exception: its masks come from one generator for all runs (the same
    mask for all if they share one seed, independent ones otherwise), so ``"auto"``
    never stacks it. There are no checkpoints; ``start_step`` and ``stop_step`` are
    those of :func:`train`.

    Args:
        systems: Where to start from; in a stack they may differ in state, buffers and
            masks only, as those that ``with_ticket`` gives.
        train: A :class:`Recipe`; other trainers cannot be stacked.
        seeds: Of data order and dropout: one for each system, or one for all; integers
            of Python, NumPy or torch.
        start_step: Where data order and schedule begin.
        stop_step: Stop before this step; the end by default.
        record: Steps between snapshots; None for no trajectories.
        how: ``"stacked"``, ``"processes"`` (bit for bit as one by one with one thread),
            ``"serial"``, or ``"auto"``: what a stopwatch of seven steps finds fastest,
            so that rounding may differ from call to call.
        stack: Largest number of networks in one stack; all of them by default.
        jobs: Largest number of processes; one for each core by default.
        progress: Draw a bar: of the steps of each stack, of the shares of the runs (one
            for each process), or of the runs one by one.
        throw: Raise if a loss is not finite; False returns such runs with the outcome
            ``DIVERGED`` among the others.

    Returns:
        The runs, in the order of the systems, and how they were trained.

    Raises:
        InvalidInputError: For contradictory arguments, or what cannot be trained as
            asked: other architectures or losses, optimisers that mix the entries of a
            tensor or come with hooks, a step or a state of their own, layers that
            ``torch.func.vmap`` cannot batch, loaders read in several orders at once,
            processes on a GPU, anything inside ``torch.inference_mode()``.
        ConvergenceError: If a loss is NaN or infinite; carries that run so far.

    Cost:
        The gradients of all runs. A stack holds R times the state, gradient, masks and
        optimiser's state; checks take two gradients of 8 examples a run, ``"auto"``
        seven steps of one network and of the stack, once for each kind of stack.

    Example:
        >>> x, y = torch.eye(2), torch.tensor([[1.0], [0.0]])
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> starts = [system.with_state(torch.full((2,), a)) for a in (0.0, 1.0)]
        >>> recipe = Recipe(lambda params: torch.optim.SGD(params, lr=1.0), steps=1)
        >>> [run.state.tolist() for run in train_many(starts, recipe, how="stacked")]
        [[1.0, 0.0], [1.0, 0.0]]
    """  # noqa: DOC502 - unknown() makes one, and the parts raise the others
    _check_systems(systems, train)
    own = _own_seeds(systems, seeds)
    _check(systems, how)
    start_step = whole(start_step, name="start_step")
    stop_step = whole_or_none("stop_step", stop_step)
    record = positive_or_none("record", record)
    stack, jobs = positive_or_none("stack", stack), positive_or_none("jobs", jobs)
    if isinstance(train, Recipe):
        check_lone(
            systems[0],
            systems[0].data if train.data is None else train.data,
            train.batch_size,
            training=train.mode == "train",
            start=start_step,
            stop=check_fits(train.steps, start_step, stop_step),
        )
    size, workers = stack or len(systems), jobs or _cores()
    chosen: How
    speedup, reason = float("nan"), "asked for"
    if how == "auto":
        span = None if stop_step is None else max(0, stop_step - start_step)
        chosen, speedup, reason = choose(
            systems, train, seeds=own, steps=span, stack=size, jobs=workers
        )
    else:
        chosen = how
        if how == "stacked":
            check_stackable(systems, train, seeds=own, stack=size)
    settings = {"start_step": start_step, "stop_step": stop_step, "record": record}
    if chosen == "stacked":
        assert isinstance(train, Recipe)
        runs = _in_stacks(
            systems, train, own, size, throw=throw, progress=progress, **settings
        )
    else:
        alone = functools.partial(_alone, train=train, throw=throw, settings=settings)
        if chosen == "processes":
            runs = _in_processes(alone, systems, own, workers, show=progress)
        else:
            pairs = list(zip(systems, own, strict=True))
            shown = track(pairs, label="training.train_many", show=progress)
            runs = [alone(system, seed) for system, seed in shown]
    first = systems[0]
    made = settings | {"how": chosen, "seeds": list(own)}
    return Runs(
        runs=tuple(runs),
        how=chosen,
        stack=min(size, len(systems)) if chosen == "stacked" else 1,
        speedup=speedup,
        reason=reason,
        provenance=Provenance(
            made_by="training.train_many",
            seed=own[0],
            dtype=str(first.dtype).removeprefix("torch."),
            device=str(first.device),
            examples=round(first.examples),
            settings=tuple(sorted(made.items())),
        ),
    )


def _in_stacks(
    systems: Sequence[GradientSystem],
    recipe: Recipe,
    seeds: Sequence[int],
    size: int,
    **settings: Any,
) -> list[Run]:
    runs: list[Run] = []
    for first in range(0, len(systems), size):
        part = slice(first, first + size)
        runs += train_stacked(systems[part], recipe, seeds=seeds[part], **settings)
    return runs


def _alone(
    system: GradientSystem,
    seed: int,
    *,
    train: Trainer,
    throw: bool,
    settings: dict[str, Any],
) -> Run:
    try:
        return train(system, seed=seed, **settings)
    except ConvergenceError as error:
        if throw or not isinstance(error.partial, Run):
            raise
        return error.partial


def _in_processes(
    alone: Callable[[GradientSystem, int], Run],
    systems: Sequence[GradientSystem],
    seeds: Sequence[int],
    jobs: int,
    *,
    show: bool,
) -> list[Run]:
    jobs = min(jobs, len(systems))
    # one share for each process: what its systems have in common is sent once
    shares = [range(first, len(systems), jobs) for first in range(jobs)]
    pool = process_pool(jobs)
    try:
        sent = [
            pool.submit(
                _share, alone, [systems[n] for n in share], [seeds[n] for n in share]
            )
            for share in shares
        ]
        runs: dict[int, Run] = {}
        pairs = list(zip(shares, sent, strict=True))
        for share, future in track(pairs, label="training.train_many", show=show):
            runs |= zip(share, future.result(), strict=True)
        return [runs[place] for place in range(len(systems))]
    except BrokenExecutor as error:
        raise DynPruneError(
            f"A worker process died while training ({error}). Is memory short? Pass "
            "fewer jobs, or how='serial'."
        ) from error
    except PicklingError as error:
        *_, why = str(error.__cause__ or error).strip('" \n').splitlines()
        raise InvalidInputError(
            f"The systems cannot be sent to worker processes ({why}). Keep locks, open "
            "files and the like out of model, loss and data, or pass how='serial'."
        ) from error
    finally:
        pool.shutdown(wait=True)


def _share(
    alone: Callable[[GradientSystem, int], Run],
    systems: list[GradientSystem],
    seeds: list[int],
) -> list[Run]:
    torch.set_num_threads(1)
    return [alone(system, seed) for system, seed in zip(systems, seeds, strict=True)]


def _own_seeds(systems: Sequence[GradientSystem], seeds: Any) -> tuple[int, ...]:
    many = isinstance(seeds, Iterable) and getattr(seeds, "ndim", 1) > 0
    own = tuple(seeds) if many else (seeds,) * len(systems)
    if not systems or len(own) != len(systems):
        raise InvalidInputError(
            f"{len(systems)} systems and {len(own)} seeds were given. Pass at least "
            "one system, and one seed for each or one for all."
        )
    for system in systems:
        system.check_one_process("Training")
    return tuple(whole(seed, name="seed") for seed in own)


def _check_systems(systems: Any, train: object) -> None:
    single = not isinstance(systems, Sequence) or isinstance(systems, str)
    wrong = [] if single else [s for s in systems if not isinstance(s, GradientSystem)]
    if single or wrong:
        found = type(systems).__name__ + (
            f" of {type(wrong[0]).__name__}" if wrong else ""
        )
        raise InvalidInputError(
            f"Training was asked of a {found}. Pass a list of GradientSystem, such as "
            "[system.with_ticket(ticket) for ticket in tickets]."
        )
    if not callable(train):
        raise InvalidInputError(
            f"Training was asked with a {type(train).__name__}. Pass one Recipe for "
            "all systems."
        )


def _check(systems: Sequence[GradientSystem], how: str) -> None:
    if how not in _HOWS:
        raise unknown("how", how, _HOWS)
    device = systems[0].device
    if how == "processes" and device.type != "cpu":
        raise InvalidInputError(
            f"Processes were asked for on {device}, where they would share one device. "
            "Pass how='stacked' or 'serial'."
        )


def _cores() -> int:
    import loky

    return int(loky.cpu_count())
