"""A problem from what a user names on the command line."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from dynprune.core import InvalidInputError, isolated, unknown
from dynprune.tasks._arrays import read_npz
from dynprune.tasks._import import call, is_import_path, load_callable
from dynprune.tasks._model_names import model_maker
from dynprune.tasks._problem import (
    SPLITS,
    Metric,
    Problem,
    accuracy,
    check_split,
    is_pair,
)

LossFn = Callable[[Tensor, Tensor], Tensor]
_END = object()


def mse(outputs: Tensor, targets: Tensor) -> Tensor:
    r"""Return the mean squared error over all entries.

    .. math:: L = \frac{1}{N C} \sum_{i c} (f_c(x_i) - y_{ic})^2

    Args:
        outputs: Shape ``(N, …)``.
        targets: The same shape: nothing is broadcast.

    Returns:
        The loss, a scalar.

    Raises:
        InvalidInputError: If the shapes differ.

    Example:
        >>> mse(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [0.0]]))
        tensor(5.)
    """
    if outputs.shape != targets.shape:
        raise InvalidInputError(
            f"The squared error of outputs {tuple(outputs.shape)} and targets "
            f"{tuple(targets.shape)} was asked for. Give both the same shape, e.g. "
            "targets (N, 1) for one output."
        )
    return (outputs - targets).square().mean()


LOSSES: dict[str, LossFn] = {"cross_entropy": functional.cross_entropy, "mse": mse}


def load_user(
    *, model: str = "", data: str = "", loss: str = "", metric: str = ""
) -> Problem:
    """Make a problem from names, so that it can be made again in another process.

    Modules are searched in the current folder first. Random numbers that the data
    function draws come from ``core.isolated(0)``.

    Args:
        model: ``"package.module:function"`` that returns an nn.Module and takes no
            argument or a seed; or a bundled model, see ``tasks.model_maker``, sized
            to the data. Empty for "mlp".
        data: ``"package.module:function"`` that returns train, validation and test,
            in this order or in a dict with these names, each ``(x, y)`` or a
            re-iterable of batches; or an .npz file with the arrays ``x_train``,
            ``y_train``, ``x_validation``, ``y_validation``, ``x_test``, ``y_test``.
        loss: "cross_entropy", "mse", or ``"package.module:function"`` of (outputs,
            targets). Empty for cross-entropy of integer targets and the mean squared
            error of others.
        metric: ``"package.module:function"`` of (outputs, targets) that gives one
            value per example. Empty for accuracy where targets are integers or
            one-hot, none otherwise.

    Returns:
        The problem, named "user".

    Raises:
        InvalidInputError: If a name cannot be resolved, a function fails, or it
            returns something else; says which and what to do.
    """
    if not data:
        raise InvalidInputError(
            "No data were named. Give package.module:function, or an .npz file with "
            "x_train, y_train, x_validation, y_validation, x_test, y_test."
        )
    splits = _read_npz(data) if _is_npz(data) else _call_data(data)
    (x, y), *_ = [_first_batch(splits[name], name) for name in SPLITS]
    maker = model_maker(
        model or "mlp", in_shape=tuple(x.shape[1:]), classes=_outputs(splits, model, y)
    )
    chosen = _loss(loss, y)
    return Problem(
        make_model=maker,
        loss_fn=chosen,
        metric=_metric(metric, y),
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        origin=tuple(
            (key, value)
            for key, value in (
                ("model", model),
                ("data", data),
                ("loss", loss),
                ("metric", metric),
            )
            if value
        ),
    )


def named_loss(name: str) -> LossFn:
    """Look a loss up, by name or import path.

    Args:
        name: A key of ``tasks.LOSSES`` or ``package.module:function``; a class of
            modules is instantiated without arguments.

    Returns:
        ``(outputs, targets) -> mean loss``.

    Raises:
        InvalidInputError: If it is unknown or cannot be imported.
    """
    if name in LOSSES:
        return LOSSES[name]
    if not is_import_path(name):
        error = unknown("loss", name, LOSSES)
        raise InvalidInputError(f"{error} Or give package.module:function.")
    found: Any = load_callable(name, what="loss")
    if isinstance(found, type) and issubclass(found, nn.Module):
        found = call(found, what="loss")
    loss: LossFn = found
    return loss


def _loss(name: str, y: Tensor) -> LossFn:
    if name:
        return named_loss(name)
    return mse if y.is_floating_point() else LOSSES["cross_entropy"]


def _metric(name: str, y: Tensor) -> Metric | None:
    if name:
        return load_callable(name, what="metric")
    if not y.is_floating_point():
        return accuracy
    one_hot = y.ndim == 2 and y.shape[1] > 1 and bool(((y == 0) | (y == 1)).all())
    return accuracy if one_hot and bool((y.sum(1) == 1).all()) else None


def _call_data(path: str) -> dict[str, Any]:
    function = load_callable(path, what="data")
    with isolated(0):
        made = call(function, what="data")
    splits = _named_splits(made, path)
    for name, split in splits.items():
        splits[name] = _as_tensors(split)
        check_split(splits[name], name=name)
    return splits


def _named_splits(made: Any, path: str) -> dict[str, Any]:
    if isinstance(made, Mapping):
        for name in made:
            if name not in SPLITS:
                raise unknown(f"split of {path!r}", str(name), SPLITS)
        missing = [name for name in SPLITS if name not in made]
        if not missing:
            return dict(made)
        found = f"a dict without {', '.join(missing)}"
    elif isinstance(made, tuple | list):
        if len(made) == len(SPLITS):
            return dict(zip(SPLITS, made, strict=True))
        found = f"{len(made)} parts"
    else:
        found = f"a {type(made).__name__}"
    raise InvalidInputError(
        f"The data function {path!r} returned {found}, expected (train, validation, "
        "test) or a dict with these names. Return all three; the test split is only "
        "used for what is reported."
    )


def _as_tensors(split: Any) -> Any:
    if isinstance(split, tuple | list) and len(split) == 2:
        parts = [
            torch.from_numpy(part.copy()) if isinstance(part, np.ndarray) else part
            for part in split
        ]
        return tuple(parts) if all(isinstance(p, Tensor) for p in parts) else split
    return split


def _first_batch(data: Any, name: str) -> tuple[Tensor, Tensor]:
    def read_a_batch() -> Any:
        return data if is_pair(data) else next(iter(data), _END)

    with isolated(0):
        batch = call(read_a_batch, what=f"{name} data")
    if not is_pair(batch):
        found = f"a {type(batch).__name__}" if batch is not _END else "no batch"
        raise InvalidInputError(
            f"The {name} split yields {found}, expected batches (x, y) of two tensors. "
            "For other batches make a dp.Problem with batch_loss and pass it to "
            "dp.study.run."
        )
    x, y = batch
    return x, y


def _outputs(splits: dict[str, Any], model: str, y: Tensor) -> int:
    if model and ":" in model and is_import_path(model):
        return 1  # the user's model has its own outputs
    if y.is_floating_point():
        return int(np.prod(y.shape[1:])) if y.ndim > 1 else 1
    largest = 0
    with isolated(0):
        for split in splits.values():
            for _, labels in (split,) if is_pair(split) else split:
                largest = max(largest, int(labels.max()))
    return largest + 1


def _is_npz(data: str) -> bool:
    return data.endswith(".npz")


def _read_npz(path: str) -> dict[str, Any]:
    found = read_npz(Path(path))
    names = [f"{part}_{split}" for split in SPLITS for part in "xy"]
    missing = [name for name in names if name not in found]
    if missing:
        raise InvalidInputError(
            f"{path} lacks the arrays {', '.join(missing)}; it holds "
            f"{', '.join(found)}. Save all of {', '.join(names)}."
        )
    splits = {
        split: (
            _inputs(found[f"x_{split}"], f"x_{split} of {path}"),
            _targets(found[f"y_{split}"], f"y_{split} of {path}"),
        )
        for split in SPLITS
    }
    for name, split in splits.items():
        check_split(split, name=name)
    return splits


def _inputs(array: NDArray[Any], name: str) -> Tensor:
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float32))
    if array.dtype in {np.dtype(np.int64), np.dtype(np.int32)}:
        return torch.from_numpy(array.astype(np.int64))
    raise InvalidInputError(
        f"{name} is {array.dtype}. Save inputs as float32 (e.g. pixels / 255), or "
        "tokens as int64."
    )


def _targets(array: NDArray[Any], name: str) -> Tensor:
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float32))
    if array.dtype.kind in "iub":
        return torch.from_numpy(array.astype(np.int64))
    raise InvalidInputError(
        f"{name} is {array.dtype}. Save class numbers as integers, or targets as "
        "float32."
    )
