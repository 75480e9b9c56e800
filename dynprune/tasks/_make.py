"""Tasks by name, and problems made again from their names."""

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

from dynprune.core import InvalidInputError, unknown
from dynprune.tasks._cifar import cifar10, locate_cifar10
from dynprune.tasks._digits import digits
from dynprune.tasks._files import fetch, read_known
from dynprune.tasks._import import load_callable
from dynprune.tasks._mnist import (
    FASHION_MNIST_FILES,
    FASHION_MNIST_MIRRORS,
    MNIST_FILES,
    MNIST_MIRRORS,
    fashion_mnist,
    mnist,
)
from dynprune.tasks._problem import Problem
from dynprune.tasks._user import load_user, named_loss

TASKS: dict[str, Callable[..., Problem]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
}
_KNOWN = {
    "mnist": (MNIST_FILES, MNIST_MIRRORS),
    "fashion-mnist": (FASHION_MNIST_FILES, FASHION_MNIST_MIRRORS),
}


def make(
    task: str = "digits",
    model: str | None = None,
    *,
    data: str = "",
    loss: str = "",
    metric: str = "",
) -> Problem:
    """Make the problem that a config names.

    Args:
        task: Key of ``tasks.TASKS``; not looked at where ``data`` is given.
        model: Name of a model, see ``tasks.model_maker``, or
            ``"package.module:function"``; None or empty for the task's own.
        data: A user's own data instead of the task's, see :func:`load_user`.
        loss: A loss instead of the task's, see :func:`load_user`.
        metric: A metric instead of accuracy, see :func:`load_user`.

    Returns:
        The problem.

    Raises:
        InvalidInputError: If a name is unknown (suggests the nearest), or files are
            missing.

    Example:
        >>> make("digits", "mlp:16:relu").model(0).fc1.weight.shape
        torch.Size([16, 64])
    """  # noqa: DOC501, DOC502 - unknown() makes it
    if data:
        return load_user(model=model or "", data=data, loss=loss, metric=metric)
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    problem = TASKS[task](model or None)
    if not loss and not metric:
        return problem
    named = tuple((k, v) for k, v in (("loss", loss), ("metric", metric)) if v)
    return dataclasses.replace(
        problem,
        loss_fn=named_loss(loss) if loss else problem.loss_fn,
        metric=load_callable(metric, what="metric") if metric else problem.metric,
        origin=(*problem.origin, *named),
    )


def remake(origin: Iterable[tuple[str, str]]) -> Problem:
    """Make a problem again, e.g. in a worker process, from its ``origin``.

    Args:
        origin: ``Problem.origin`` of a problem that was made from names.

    Returns:
        The same problem: equal fingerprints, unless files or code changed.

    Raises:
        InvalidInputError: If the problem was made by hand.

    Example:
        >>> problem = digits("mlp:8")
        >>> remake(problem.origin).fingerprint() == problem.fingerprint()
        True
    """
    names = dict(origin)
    if "path" in names:
        return cifar10(names["model"], path=names["path"])
    if not names:
        raise InvalidInputError(
            "The problem was made by hand, so it has no names to be made again from. "
            "Make it with tasks.make or tasks.load_user, or pass the object itself."
        )
    return make(**names)


def download(task: str) -> Path | None:
    """Fetch the files of a task that are missing to the user's cache.

    Args:
        task: Key of ``tasks.TASKS``.

    Returns:
        The folder, or None for a task that needs no files.

    Raises:
        InvalidInputError: If the task is unknown, cannot be downloaded, or no mirror
            gives files of the right checksum.
    """  # noqa: DOC501 - unknown() makes it
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    if task in _KNOWN:
        files, mirrors = _KNOWN[task]
        return fetch(task, files, mirrors)
    if task == "cifar10":
        try:
            return locate_cifar10()
        except InvalidInputError as error:
            raise InvalidInputError(
                f"CIFAR-10 is not downloaded by dynprune. {error}"
            ) from error
    return None


def check_files(task: str) -> None:
    """Check that the files of a task are there and undamaged, without decoding them.

    CIFAR-10 is only looked for; it is verified when it is read.

    Args:
        task: Key of ``tasks.TASKS``.

    Raises:
        InvalidInputError: If the task is unknown, or a file is missing, truncated or
            of another checksum.
    """  # noqa: DOC501, DOC502 - unknown() makes it
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    if task in _KNOWN:
        read_known(task, _KNOWN[task][0])
    if task == "cifar10":
        locate_cifar10()
