"""How to train, as a value that can be passed on."""

import inspect
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, Protocol, final

from dynprune.core import InvalidInputError, whole
from dynprune.system import GradientSystem, is_resident
from dynprune.training._arguments import check_mode
from dynprune.training._files import Path
from dynprune.training._mover import OptimizerFactory, Schedule
from dynprune.training._results import Run
from dynprune.training._train import Move, train


class Trainer(Protocol):
    """Anything that moves a system forward: a :class:`Recipe` or a function."""

    def __call__(
        self,
        system: GradientSystem,
        *,
        seed: int = 0,
        start_step: int = 0,
        stop_step: int | None = None,
        record: int | None = None,
    ) -> Run:
        """Train from the system's state.

        Args:
            system: Where to start from.
            seed: Of the data order and of dropout.
            start_step: Where schedule and data order begin.
            stop_step: Where to stop; the end by default.
            record: Steps between snapshots, or None.

        Returns:
            The run.
        """
        ...


def check_trainer(train: Any, *, name: str, takes: Sequence[str]) -> None:
    """Refuse what cannot be called as a trainer, before anything is trained.

    Args:
        train: As given.
        name: What the caller's argument is called.
        takes: Keyword arguments that it will be called with.

    Raises:
        InvalidInputError: If it is no function, or takes no such argument.
    """
    if not callable(train):
        raise InvalidInputError(
            f"{name} is a {type(train).__name__}. Pass a dynprune.training.Recipe, or "
            "another Trainer."
        )
    try:
        taken = inspect.signature(train).parameters
    except ValueError:  # of what is not written in Python nothing is known
        return
    missing = [one for one in takes if one not in taken]
    if missing and not any(part.kind is part.VAR_KEYWORD for part in taken.values()):
        raise InvalidInputError(
            f"{name} takes no {', '.join(f'{one}=' for one in missing)}. Pass a "
            "dynprune.training.Recipe, or a function (system, *, "
            f"{', '.join(takes)}) that hands them on to dynprune.train."
        )


@final
@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class Recipe:
    """Say how to train: the arguments of :func:`train` that make a method.

    Args:
        optimizer: Makes the optimiser of a list of parameters.
        steps: Optimiser steps of the whole run.
        batch_size: Examples per batch of resident data; a loader brings its own.
        schedule: Makes the scheduler of the optimiser, stepped once per step.
        mode: Whether the network is in train or eval mode. Train mode leaves in eval
            mode what the user does: modules in eval mode (a frozen batch norm, a
            dropout) of a model that was in train mode when the system was made. Of a
            model in eval mode nothing is known, and all of it is put in train mode.
        data: What to train on if not the system's data.
        capture: Whether a GPU replays loss and gradient as one CUDA graph.

    Raises:
        InvalidInputError: If ``steps`` is negative or no integer, ``batch_size`` not
            positive, or there is no such mode.

    Example:
        >>> import torch
        >>> x, y = torch.eye(2), torch.tensor([[1.0], [0.0]])
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> recipe = Recipe(lambda params: torch.optim.SGD(params, lr=0.1), steps=3)
        >>> recipe(system).cost
        Cost(gradients=3.0, hvps=0.0, forwards=0.0, steps=3)
    """

    optimizer: OptimizerFactory
    _: KW_ONLY
    steps: int
    batch_size: int = 64
    schedule: Schedule | None = None
    mode: Literal["train", "eval"] = "train"
    data: Any = None
    capture: bool = False

    def __post_init__(self) -> None:
        """Check the numbers and the mode.

        Raises:
            InvalidInputError: If one of them is not what it should be.
        """
        size = whole(self.batch_size, name="batch_size")
        if size < 1:
            raise InvalidInputError(f"batch_size is {size}. Pass at least 1.")
        object.__setattr__(self, "batch_size", size)
        object.__setattr__(self, "steps", whole(self.steps, name="steps"))
        check_mode(self.mode)
        if self.steps < 0:
            raise InvalidInputError(f"{self.steps} steps were asked. Pass 0 or more.")

    def __call__(
        self,
        system: GradientSystem,
        *,
        seed: int = 0,
        start_step: int = 0,
        stop_step: int | None = None,
        record: int | None = None,
        checkpoint: Path | None = None,
        move: Move | None = None,
    ) -> Run:
        """Train from the system's state.

        Args:
            system: Where to start from.
            seed: Of the data order and of dropout.
            start_step: Where schedule and data order begin.
            stop_step: Where to stop; the end by default.
            record: Steps between snapshots, or None.
            checkpoint: A file to continue from, if it exists, and to keep; see
                :func:`train`.
            move: What makes each step; see :func:`train`.

        Returns:
            The run.
        """
        data = system.data if self.data is None else self.data
        return train(
            system,
            self.optimizer,
            steps=self.steps,
            data=self.data,
            mode=self.mode,
            schedule=self.schedule,
            capture=self.capture,
            batch_size=self.batch_size if is_resident(data) else None,
            record=record,
            seed=seed,
            start_step=start_step,
            stop_step=stop_step,
            checkpoint=checkpoint,
            move=move,
        )
