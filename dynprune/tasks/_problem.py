"""A problem: a model maker, a loss, three splits and a metric."""

import functools
import hashlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune.core import (
    InvalidInputError,
    as_plain,
    isolated,
    seeded_generators,
    unknown,
)

Metric = Callable[[Tensor, Tensor], Tensor]
SPLITS = ("train", "validation", "test")


def accuracy(outputs: Tensor, targets: Tensor) -> Tensor:
    r"""Say for each example whether the largest output is that of its class.

    .. math:: a_i = 1[\arg\max_c f_c(x_i) = y_i]

    Args:
        outputs: Scores, shape ``(N, classes)`` or ``(N, classes, …)``.
        targets: Class numbers, shape ``(N,)`` or ``(N, …)``, or one-hot (or soft)
            floating-point targets of the shape of ``outputs``.

    Returns:
        0 or 1 for each example, shape ``(N,)``, float32; the share of correct
        positions where an example has several.

    Raises:
        InvalidInputError: If the shapes do not belong to a classification.

    Example:
        >>> accuracy(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.tensor([0, 1]))
        tensor([1., 0.])
    """
    if targets.is_floating_point() and targets.shape == outputs.shape:
        targets = targets.argmax(1) if targets.ndim > 1 else targets
    if (
        outputs.ndim < 2
        or outputs.shape[1] < 2
        or targets.is_floating_point()
        or outputs[:, 0].shape != targets.shape
    ):
        raise InvalidInputError(
            f"No accuracy of outputs {tuple(outputs.shape)} against targets "
            f"{tuple(targets.shape)} of {targets.dtype}. Give (N, classes) and class "
            "numbers (N,), or pass a metric of your own: metric(outputs, targets) -> "
            "one value per example."
        )
    correct = (outputs.argmax(1) == targets).float()
    return correct.flatten(1).mean(1) if correct.ndim > 1 else correct


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Problem:
    """Hold what a study needs: how to make the model, the loss, the data, the metric.

    A split is a pair ``(x, y)`` of tensors or anything that yields the same batches
    each time it is iterated over, e.g. a DataLoader. Only ``train`` may be used for
    gradients, only ``validation`` for choices, and ``test`` for what is reported.

    Args:
        make_model: ``seed -> nn.Module``; see :meth:`model`.
        loss_fn: ``(outputs, targets) -> mean loss``; None with ``batch_loss``.
        train: Training split.
        validation: Validation split.
        test: Test split.
        metric: ``(outputs, targets) -> one value per example``, larger is better;
            None where there is no such thing.
        name: What tables and figures call it.
        batch_loss: ``(model, batch) -> mean loss`` for batches that are no (x, y).
        batch_weight: ``batch -> weight``, e.g. its number of tokens.
        origin: Names it can be made again from, see ``tasks.remake``; empty for a
            problem made by hand.

    Raises:
        InvalidInputError: For a split that can be read only once, that is empty or
            whose x and y differ in length, or something not callable.

    Example:
        >>> data = torch.eye(2), torch.tensor([0, 1])
        >>> toy = Problem(
        ...     make_model=lambda seed: nn.Linear(2, 2),
        ...     loss_fn=nn.functional.cross_entropy,
        ...     train=data,
        ...     validation=data,
        ...     test=data,
        ... )
        >>> toy.model(0).weight.shape
        torch.Size([2, 2])
    """

    make_model: Callable[[int], nn.Module]
    loss_fn: Callable[[Tensor, Tensor], Tensor] | None
    train: Any
    validation: Any
    test: Any
    metric: Metric | None = accuracy
    name: str = "user"
    batch_loss: Callable[[nn.Module, Any], Tensor] | None = None
    batch_weight: Callable[[Any], float] | None = None
    origin: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        """Check the parts.

        Raises:
            InvalidInputError: If one cannot be used.
        """
        if self.loss_fn is None and self.batch_loss is None:
            raise InvalidInputError(
                "The problem has no loss. Pass loss_fn(outputs, targets), or "
                "batch_loss(model, batch) for batches that are no (x, y)."
            )
        for what in ("make_model", "loss_fn", "metric", "batch_loss", "batch_weight"):
            part = getattr(self, what)
            if not callable(part) and (part is not None or what == "make_model"):
                raise InvalidInputError(
                    f"{what} is a {type(part).__name__}, which cannot be called. Pass "
                    "a function."
                )
        for split in SPLITS:
            check_split(getattr(self, split), name=split)

    def model(self, seed: int = 0) -> nn.Module:
        """Make the model of a seed; the global generators are left as they are.

        ``make_model(seed)`` runs with the generators of Python, NumPy and torch
        seeded with ``seed``, so a maker may ignore its argument.

        Args:
            seed: Any integer.

        Returns:
            A new model, on the device the maker put it.

        Raises:
            InvalidInputError: If the maker returns no module.
        """
        with isolated(seed):
            made = self.make_model(seed)
        if not isinstance(made, nn.Module):
            raise InvalidInputError(
                f"make_model({seed}) returned a {type(made).__name__}, expected an "
                "nn.Module. Return the model."
            )
        return made

    def split(self, name: str) -> Any:
        """Return one split.

        Args:
            name: "train", "validation" or "test".

        Returns:
            The data as given.

        Raises:
            InvalidInputError: For any other name.
        """  # noqa: DOC501, DOC502 - unknown() makes it
        if name not in SPLITS:
            raise unknown("split", name, SPLITS)
        return getattr(self, name)

    def fingerprint(self) -> str:
        """Return a hash of all that is known of the problem.

        SHA-256 over the bytes, shapes and dtypes of the three splits, the description
        and the initial state of ``model(0)``, the names of the loss and the metric,
        and the source files of the user's own functions. Loaders are read once, under
        ``core.isolated(0)``.

        Returns:
            64 hexadecimal digits.

        Cost:
            One pass over all data, one model.
        """
        digest = hashlib.sha256()
        for part in (self.loss_fn, self.metric, self.batch_loss, self.batch_weight):
            digest.update(_name_of(part).encode())
        for source in self._sources():
            digest.update(source)
        for split in SPLITS:
            digest.update(split.encode())
            data = getattr(self, split)
            with isolated(0), seeded_generators(data, 0):
                for batch in (data,) if is_pair(data) else data:
                    _hash_batch(digest, batch)
        model = self.model(0)
        digest.update(repr(model).encode())
        for name, tensor in model.state_dict().items():
            digest.update(name.encode())
            _hash_batch(digest, tensor)
        return digest.hexdigest()

    def _sources(self) -> Iterator[bytes]:
        parts = (self.make_model, self.loss_fn, self.metric, self.batch_loss)
        named = {value.partition(":")[0] for _, value in self.origin if ":" in value}
        named |= {_module_of(part) for part in (*parts, self.batch_weight)}
        for name in sorted(named):
            file = getattr(sys.modules.get(name), "__file__", None)
            own = name.partition(".")[0] not in {"dynprune", "torch", "builtins"}
            if own and file is not None and os.path.exists(file):
                yield Path(file).read_bytes()


def is_pair(data: object) -> bool:
    """Say whether ``data`` is one resident (x, y) pair of tensors.

    Args:
        data: A split.

    Returns:
        True for a tuple or list of exactly two tensors.
    """
    return (
        isinstance(data, tuple | list)
        and len(data) == 2
        and all(isinstance(part, Tensor) for part in data)
    )


def check_split(data: Any, *, name: str) -> None:
    """Refuse a split that cannot be read several times, or is empty or ragged.

    Args:
        data: The split.
        name: What to call it.

    Raises:
        InvalidInputError: If so; says what to pass instead.
    """
    if is_pair(data):
        x, y = data
        if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or len(x) == 0:
            raise InvalidInputError(
                f"The {name} split (x, y) has shapes {tuple(x.shape)} and "
                f"{tuple(y.shape)}. Pass tensors with the same positive number of "
                "examples first."
            )
        return
    if isinstance(data, Iterator):
        raise InvalidInputError(
            f"The {name} split is a {type(data).__name__}, which can be read only "
            "once; dynprune reads several times. Pass list(data), a DataLoader, or "
            "(x, y) tensors."
        )
    if not isinstance(data, Iterable) or isinstance(data, Tensor | str | dict):
        raise InvalidInputError(
            f"The {name} split is a {type(data).__name__}, expected (x, y) tensors or "
            "a re-iterable of batches. Pass (x, y), a DataLoader, or a list of batches."
        )


def _module_of(part: object) -> str:
    while isinstance(part, functools.partial):
        part = part.func
    return str(getattr(part, "__module__", ""))


def _name_of(part: object) -> str:
    if isinstance(part, functools.partial):
        arguments = (*part.args, *sorted(part.keywords.items()))
        return f"{_name_of(part.func)}{arguments!r}"
    if isinstance(part, nn.Module):
        return repr(part)
    name = getattr(part, "__qualname__", type(part).__qualname__)
    return f"{getattr(part, '__module__', '')}.{name};"


def _hash_batch(digest: Any, batch: Any) -> None:
    leaves, structure = pytree.tree_flatten(as_plain(batch))
    digest.update(str(structure).encode())
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            plain = leaf.detach().cpu().contiguous()
            digest.update(f"{plain.dtype}{tuple(plain.shape)}".encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy())
        else:
            digest.update(repr(leaf).encode())
