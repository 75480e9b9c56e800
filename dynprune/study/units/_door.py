"""The door of a study: a problem that units would fail on is refused before them."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch

from dynprune import pruning
from dynprune.core import DynPruneError, InvalidInputError
from dynprune.study._config import Config
from dynprune.study.units._setup import seed_of, system_of
from dynprune.system import read
from dynprune.tasks import Problem
from dynprune.training import evaluate

_SPLITS = ("train", "validation", "test")
_MOST = 256


def check_problem(problem: Problem, config: Config) -> None:
    """Put the first batch of each split through model, loss and metric.

    Args:
        problem: The problem.
        config: The config.

    Raises:
        InvalidInputError: If the model has nothing to train or to prune, a loss is not
            a finite mean over examples, or the user's functions fail.

    Cost:
        One model, eight forward passes over at most 256 examples of a resident split,
        or one batch of a loader.
    """
    heads: dict[str, Any] = {name: _head(problem, name) for name in _SPLITS}
    part = dataclasses.replace(problem, **heads)
    with explained("A first pass over the train split"):
        system = system_of(part, config, config.seed)
        pruning.random(system, density=1.0)  # refuses a model without prunable weights
    model = problem.model(seed_of(config, "init", config.seed)).to(config.device)
    for name in _SPLITS:
        with explained(f"A first pass over the {name} split"):
            loss = evaluate(model, part, name).loss
        if not math.isfinite(loss):
            raise InvalidInputError(
                f"The loss of the first batch of the {name} split is {loss} at the "
                "initial state. Look for NaN and overflow in the data."
            )


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Say what was tried when a user's model, loss, metric or data raise.

    Args:
        what: What is done inside the block.

    Yields:
        Nothing.

    Raises:
        InvalidInputError: If anything but dynprune's own errors is raised inside; that
            is its cause.
    """  # noqa: DOC501 - passed on
    try:
        yield
    except DynPruneError:
        raise
    except Exception as error:
        found = f"{type(error).__name__}: {error}".rstrip(". \n")
        raise InvalidInputError(
            f"{what} failed with {found}. Make model, data, loss and metric fit each "
            "other; dp.study.run shows the whole traceback."
        ) from error


def _head(problem: Problem, name: str) -> Any:
    data = problem.split(name)
    with explained(f"Reading the {name} split"):
        batch = next(
            read(
                data,
                dtype=torch.get_default_dtype(),
                device=torch.device("cpu"),
                microbatch=_MOST,
            ),
            None,
        )
    return data if batch is None else [batch]
