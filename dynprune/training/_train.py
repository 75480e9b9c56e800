"""The optimiser loop."""

from collections.abc import Callable
from contextlib import closing
from typing import Any, Literal

import torch
from torch import Tensor

from dynprune.core import (
    ConvergenceError,
    Cost,
    InvalidInputError,
    Outcome,
    Provenance,
    derive_seed,
    isolated,
    seeded_generators,
    track,
    whole,
)
from dynprune.system import GradientSystem, is_resident
from dynprune.training import _files
from dynprune.training._arguments import (
    check_fits,
    check_mode,
    positive_or_none,
    whole_or_none,
)
from dynprune.training._checkpoint import Checkpoint, identify
from dynprune.training._lone import check_lone
from dynprune.training._mover import Mover, OptimizerFactory, Schedule
from dynprune.training._order import (
    AbstractOrder,
    LoaderOrder,
    ResidentOrder,
    locate,
    stream,
)
from dynprune.training._progress import Progress
from dynprune.training._results import Run
from dynprune.trajectory import Trajectory

Move = Callable[[Mover, int, Any], Tensor]
_LOOK_EVERY = 512
_RATES = 1000  # learning rates that tell schedules apart
_CHECKPOINT_EVERY = 1000
_BATCH_SIZE = 64


def train(
    system: GradientSystem,
    optimizer: OptimizerFactory,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    data: Any = None,
    mode: Literal["train", "eval"] = "train",
    schedule: Schedule | None = None,
    batch_size: int | None = None,
    capture: bool = False,
    record: int | None = None,
    checkpoint: _files.Path | None = None,
    checkpoint_every: int | None = None,
    seed: int = 0,
    start_step: int = 0,
    stop_step: int | None = None,
    progress: bool = False,
    throw: bool = True,
    move: Move | None = None,
) -> Run:
    r"""Train a private copy of a system's model; the user's model stays as it is.

    Step t moves the state by the optimiser's rule on the loss of batch t,

    .. math:: L_t(\theta) = L_{B(t)}(\theta) + \tfrac{1}{2} \ell_2 |\theta|^2,

    where B(t) depends on the seed, the epoch and the place in it only, and l2 is the
    system's. On a masked system the gradient is multiplied by the mask before the
    step and the weights after it: pruned weights are exactly zero after every step,
    whatever the optimiser does. Dropout draws from generators of its own.

    ``start_step=k`` continues data order and schedule at step k with a fresh
    optimiser state, as after rewinding: steps 0 to k and k to ``steps`` in two calls
    visit the batches of one call. A ``checkpoint`` keeps the optimiser state, too: a
    call that finds the checkpoint of the same run continues it bit for bit on a CPU.

    Args:
        system: Where to start from: its state, buffers, masks, loss and data.
        optimizer: Makes a ``torch.optim`` optimiser of a list of parameters;
            those that need a closure (L-BFGS) get one.
        steps: Optimiser steps of the whole run; give this or ``epochs``.
        epochs: Passes over the data of the whole run.
        data: Train on these instead of the system's data, e.g. an augmenting loader.
        mode: Whether the network is in train mode (batch norm, dropout) or eval mode;
            in train mode, what the system says is ``kept_in_eval`` stays in eval mode.
        schedule: Makes a learning-rate scheduler of the optimiser; stepped once per
            optimiser step.
        batch_size: Examples per batch of resident ``(x, y)`` tensors, 64 by default;
            the last batch of an epoch may be smaller. A loader brings its own.
        capture: On a GPU, record loss and gradient of a batch as a CUDA graph and
            replay it: the same kernels without the time to launch them one by one,
            which is most of a small network's step. The first shape of batches that
            comes twice is recorded, others are computed as ever. What Python computes
            in the loss (counters, random numbers, hooks) happens at the recording and
            stays as it was then; the loss may not wait for the GPU (``.item()``, a
            branch on a value); parameters and buffers are to be written in place, and
            an optimiser that keeps ``p.grad`` has to copy it. Dropout draws other
            numbers than without.
        record: Steps between snapshots, from ``start_step``; the last state is
            recorded in any case. None for no trajectory.
        checkpoint: A safetensors file to continue from, if it exists, and to keep.
            Another run's is refused: one of other numbers, names or tensors, or of
            another loss of one batch at the start. What shows in none of these is not
            seen: code for train mode only, rates after the first 1000 steps, batches
            of a loader after the first.
        checkpoint_every: Steps between its writings, 1000 by default; it is also
            written at the end.
        seed: Of the data order, of loaders and of dropout.
        start_step: Where data order and schedule begin.
        stop_step: Stop before this step; ``steps`` by default.
        progress: Draw a bar.
        throw: Raise if the loss is not finite; False returns the run with the
            outcome ``DIVERGED``.
        move: What is called with the mover, the number of the step and its batch to
            make each step, and returns the loss: ``mover.step(batch)`` by default.
            Sparse training changes masks in it; no ``checkpoint`` then.

    Returns:
        The run: state and buffers after the last step, trajectory, loss of each step.

    Raises:
        InvalidInputError: For contradictory arguments, factories that return no
            optimiser or scheduler, a batch of one example that batch norm cannot
            take, ``capture`` on a CPU or of a step that cannot be recorded, a
            checkpoint that is truncated or of another run (the message says which
            arguments differ), or inside ``torch.inference_mode()``.
        ConvergenceError: If a loss is NaN or infinite; it names step, epoch and
            batch, and carries the run so far.

    Cost:
        ``(stop_step - start_step) * batch_size / N`` gradients, N the examples of the
        system's own data whatever ``data`` is; the state, its gradient and the
        optimiser's state, plus P numbers for each snapshot and, captured, a batch's
        activations. With a ``checkpoint``, one more forward pass over a batch.

    Example:
        >>> x, y = torch.eye(2), torch.tensor([[1.0], [0.0]])
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> gd = lambda params: torch.optim.SGD(params, lr=1.0)
        >>> train(system.with_state(torch.zeros(2)), gd, steps=1).state
        tensor([1., 0.])
    """  # noqa: DOC502 - InvalidInputError is raised below
    system.check_one_process("Training")
    seed = whole(seed, name="seed")
    steps, epochs = whole_or_none("steps", steps), whole_or_none("epochs", epochs)
    batch_size = positive_or_none("batch_size", batch_size)
    start_step = whole(start_step, name="start_step")
    stop_step = whole_or_none("stop_step", stop_step)
    record = positive_or_none("record", record)
    checkpoint_every = positive_or_none("checkpoint_every", checkpoint_every)
    check_mode(mode)
    with (
        seeded_generators(system.data, seed),
        seeded_generators(data, seed),
        isolated(derive_seed("noise", seed, start_step)),
    ):
        source = system if data is None else system.with_data(data)
        order = _order(source, batch_size, seed)
        total, stop = _span(order, steps, epochs, start_step, stop_step)
        check_lone(
            system,
            source.data,
            order.batch_size,
            training=mode == "train",
            start=start_step,
            stop=stop,
        )
        _check_move(move, checkpoint)
        settings = {
            "steps": total,
            "start_step": start_step,
            "mode": mode,
            "batch_size": order.batch_size,
            "record": record,
        }
        mover = Mover(
            system,
            optimizer,
            schedule=schedule,
            training=mode == "train",
            step=start_step,
            capture=capture,
        )
        gathered = Progress(start=start_step, record=record)
        keeper = None
        if checkpoint is not None:
            keeper = Checkpoint(
                path=checkpoint,
                every=checkpoint_every or _CHECKPOINT_EVERY,
                identity=identify(
                    system,
                    mover,
                    source=source,
                    rates=_rates(system, optimizer, schedule, steps=total),
                    seed=seed,
                    **settings,
                ),
            )
            if keeper.exists():
                keeper.resume(mover, gathered, stop=stop)
        if capture:
            settings["capture"] = True
        make = move or _step
        failed = _move(mover, order, gathered, keeper, make, stop=stop, show=progress)
        run = _finish(system, mover, gathered, seed, settings, failed)
    if failed is not None and throw:
        raise ConvergenceError(_where(order, failed, run), run)
    return run


def _move(
    mover: Mover,
    order: AbstractOrder,
    gathered: Progress,
    keeper: Checkpoint | None,
    make: Move,
    *,
    stop: int,
    show: bool,
) -> int | None:
    # returns the step of the first loss that was not finite, the next step if the
    # state is not, or None
    gathered.snapshot(mover.state)
    due = _next_due(gathered, keeper, stop)
    batches = stream(order, start=gathered.step, stop=stop)
    left = stop - gathered.step
    shown = track(batches, label="training.train", show=show, total=left)
    weight, pending = order.weight, gathered.pending
    step, seen = gathered.step, gathered.seen
    with closing(batches):
        for batch in shown:
            before = mover.evaluations
            pending.append(make(mover, step, batch))
            seen += weight(batch) * (mover.evaluations - before)
            step += 1
            if step < due:
                continue
            gathered.step, gathered.seen = step, seen
            gathered.snapshot(mover.state)
            keeps = keeper is not None and (step == stop or step % keeper.every == 0)
            if keeps or step == stop or step % _LOOK_EVERY == 0:
                failed = gathered.check()
                if failed is not None:
                    return failed
                if not bool(torch.isfinite(mover.state()).all()):
                    return step
            if keeper is not None and keeps:
                keeper.write(mover, gathered)
            due = _next_due(gathered, keeper, stop)
    return None


def _step(mover: Mover, _: int, batch: Any) -> Tensor:
    return mover.step(batch)


def _next_due(gathered: Progress, keeper: Checkpoint | None, stop: int) -> int:
    step = gathered.step
    due = [stop, (step // _LOOK_EVERY + 1) * _LOOK_EVERY]
    snapshot = gathered.next_snapshot()
    if snapshot is not None:
        due.append(snapshot)
    if keeper is not None:
        due.append((step // keeper.every + 1) * keeper.every)
    return min(due)


def _finish(
    system: GradientSystem,
    mover: Mover,
    gathered: Progress,
    seed: int,
    settings: dict[str, Any],
    failed: int | None,
) -> Run:
    start = gathered.start
    settings = settings | mover.describe() | {"stop_step": gathered.step}
    state, losses = mover.state(), gathered.losses().to(system.dtype)
    provenance = Provenance(
        made_by="training.train",
        seed=seed,
        dtype=str(system.dtype).removeprefix("torch."),
        device=str(system.device),
        examples=round(system.examples),
        settings=tuple(sorted(settings.items())),
    )
    trajectory = None
    if gathered.snapshots:
        trajectory = _trajectory(system, gathered, state, losses, provenance)
    return Run(
        state=state,
        buffers=mover.buffers(),
        coordinates=system.coordinates,
        trajectory=trajectory,
        history=(torch.arange(start, start + len(losses)), losses),
        cost=Cost(
            gradients=gathered.seen / system.examples, steps=gathered.step - start
        ),
        outcome=Outcome.FINISHED if failed is None else Outcome.DIVERGED,
        provenance=provenance,
    )


def _trajectory(
    system: GradientSystem,
    gathered: Progress,
    state: Tensor,
    losses: Tensor,
    provenance: Provenance,
) -> Trajectory:
    snapshots, steps = list(gathered.snapshots), list(gathered.snapshot_steps)
    if steps[-1] < gathered.step:
        snapshots.append(state)
        steps.append(gathered.step)
    padded = torch.cat([losses, losses.new_full((1,), float("nan"))])
    return Trajectory(
        snapshots=torch.stack(snapshots).T,
        steps=torch.tensor(steps),
        coordinates=system.coordinates,
        losses=padded[torch.tensor(steps) - gathered.start],
        provenance=provenance,
    )


def _order(source: GradientSystem, batch_size: int | None, seed: int) -> AbstractOrder:
    data = source.data
    if is_resident(data):
        size = _BATCH_SIZE if batch_size is None else batch_size
        return ResidentOrder(source, data, batch_size=size, seed=seed)
    if batch_size is not None:
        raise InvalidInputError(
            f"batch_size={batch_size} was given with a {type(data).__name__}, which "
            "makes its own batches. Set it there, or pass (x, y) tensors."
        )
    return LoaderOrder(source, seed=seed)


def _span(
    order: AbstractOrder,
    steps: int | None,
    epochs: int | None,
    start: int,
    stop: int | None,
) -> tuple[int, int]:
    if (steps is None) == (epochs is None):
        raise InvalidInputError(
            f"steps={steps} and epochs={epochs} were given. Pass one of them."
        )
    if steps is None:
        if order.per_epoch is None:
            raise InvalidInputError(
                f"epochs={epochs} was asked of data without a length. Pass steps=."
            )
        assert epochs is not None
        steps = epochs * order.per_epoch
    return steps, check_fits(steps, start, stop)


def _rates(
    system: GradientSystem,
    optimizer: OptimizerFactory,
    schedule: Schedule | None,
    *,
    steps: int,
) -> list[list[float]]:
    # of the first steps: what a function in a schedule does shows nowhere else
    if schedule is None:
        return []
    mover = Mover(system, optimizer, schedule=schedule, training=False, step=0)
    found = []
    for _ in range(min(steps, _RATES)):
        found.append([float(group["lr"]) for group in mover.optimizer.param_groups])
        mover.advance_schedule(1)
    return found


def _check_move(move: Move | None, checkpoint: _files.Path | None) -> None:
    if move is not None and checkpoint is not None:
        raise InvalidInputError(
            f"checkpoint={checkpoint!s} came with move=, whose masks a checkpoint does "
            "not hold. Leave one of them out."
        )


def _where(order: AbstractOrder, failed: int, run: Run) -> str:
    advice = (
        "Lower the learning rate, or look for NaN and overflow in that batch. "
        "throw=False returns the run."
    )
    steps, losses = run.history
    if failed > int(steps[-1]):
        epoch, batch = locate(order, failed - 1)
        return (
            f"The state is not finite after step {failed - 1} (epoch {epoch}, batch "
            f"{batch}). {advice}"
        )
    epoch, batch = locate(order, failed)
    return (
        f"The loss is {float(losses[failed - int(steps[0])])} at step {failed} (epoch "
        f"{epoch}, batch {batch}). {advice}"
    )
