"""From labelled images to a problem: fixed splits, one scale, a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from dynprune.core import InvalidInputError
from dynprune.tasks._model_names import MakeModel, Shape, model_maker
from dynprune.tasks._problem import Problem

CLASSES = 10


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Labelled:
    """Hold images and their class numbers.

    Args:
        images: Unsigned bytes, shape ``(N, channels, height, width)``.
        labels: Class numbers, shape ``(N,)``.
        name: Where they come from, for messages.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    name: str

    def __post_init__(self) -> None:
        """Check the parts.

        Raises:
            InvalidInputError: If they do not belong together.
        """
        n = len(self.labels)
        if len(self.images) != n or n == 0:
            raise InvalidInputError(
                f"{self.name} holds {len(self.images)} images and {n} labels. Get the "
                "files again."
            )
        if self.labels.min() < 0 or self.labels.max() >= CLASSES:
            raise InvalidInputError(
                f"{self.name} holds labels from {self.labels.min()} to "
                f"{self.labels.max()}, expected 0 to {CLASSES - 1}. Get the files "
                "again."
            )

    def take(self, rows: NDArray[np.int64]) -> "Labelled":
        """Return some examples.

        Args:
            rows: Which, in this order.

        Returns:
            A copy of them.
        """
        return Labelled(
            images=self.images[rows], labels=self.labels[rows], name=self.name
        )


def scaled(
    part: Labelled,
    *,
    white: float,
    mean: Sequence[float],
    std: Sequence[float],
    flat: bool,
) -> tuple[Tensor, Tensor]:
    r"""Return a split: :math:`x = (p / \text{white} - m_c) / s_c` for each channel c.

    Args:
        part: The images.
        white: Largest pixel value.
        mean: Subtracted, one per channel.
        std: Divided by, one per channel.
        flat: Lay each image out as one row.

    Returns:
        x, float32, shape ``(N, channels, height, width)`` or ``(N, pixels)``; y,
        int64, shape ``(N,)``.
    """
    x = torch.tensor(part.images, dtype=torch.float32)
    scale = torch.tensor(std, dtype=torch.float32).reshape(1, -1, 1, 1)
    centre = torch.tensor(mean, dtype=torch.float32).reshape(1, -1, 1, 1)
    x.div_(white).sub_(centre).div_(scale)
    return (x.flatten(1) if flat else x), torch.tensor(part.labels, dtype=torch.int64)


def classification(
    *,
    name: str,
    task: str,
    splits: Sequence[tuple[Tensor, Tensor]],
    image: Shape,
    model: str | MakeModel,
    options: tuple[tuple[str, str], ...] = (),
) -> Problem:
    """Return the problem of classifying images with the mean cross-entropy.

    Args:
        name: What figures call it.
        task: Key in ``tasks.TASKS``.
        splits: Train, validation, test.
        image: Channels, height, width.
        model: Name of a model, see ``tasks.model_maker``, or ``seed -> module``.
        options: What else the task's maker was given.

    Returns:
        The problem.
    """
    named = isinstance(model, str)
    maker = (
        model_maker(model, in_shape=image, classes=CLASSES)
        if isinstance(model, str)
        else model
    )
    train, validation, test = splits
    origin = (("task", task), ("model", str(model)), *options) if named else ()
    return Problem(
        make_model=maker,
        loss_fn=functional.cross_entropy,
        train=train,
        validation=validation,
        test=test,
        name=name,
        origin=origin,
    )
