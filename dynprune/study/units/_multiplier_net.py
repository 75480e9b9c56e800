"""The small smooth net, and its data, of the multiplier experiment."""

from typing import Any

import torch
from torch import Tensor, nn

from dynprune.core import InvalidInputError, isolated
from dynprune.system import GradientSystem, is_resident
from dynprune.tasks import Problem

EXAMPLES = 256
LEAST_EXAMPLES = 16
FEATURES = 1024
HIDDEN = 12
L2 = 1e-2


def small_system(problem: Problem, *, seed: int) -> GradientSystem:
    """Make a tanh net of one hidden layer on a problem's first training examples.

    Args:
        problem: The problem.
        seed: Of the initial weights.

    Returns:
        The system, float64, on the CPU: cross-entropy for integer labels, mean
        squared error for other targets, l2 = 1e-2.

    Raises:
        InvalidInputError: If inputs or targets are of another kind.
    """  # noqa: DOC502 - raised by what reads the data
    x, y = _first_examples(problem.train)
    inputs = _inputs(x)
    targets, width = _targets(y)
    loss_fn = (
        nn.functional.mse_loss
        if targets.is_floating_point()
        else nn.functional.cross_entropy
    )
    with isolated(seed):
        net = nn.Sequential(
            nn.Linear(inputs.shape[1], HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, width)
        ).double()
    return GradientSystem(net, loss_fn, (inputs, targets), l2=L2)


def _first_examples(data: Any) -> tuple[Tensor, Tensor]:
    if is_resident(data):
        x, y = data
        return x[:EXAMPLES].cpu(), y[:EXAMPLES].cpu()
    found: list[tuple[Tensor, Tensor]] = []
    with isolated(0):
        for batch in data:
            if not is_resident(batch):
                raise InvalidInputError("the batches are no pairs (x, y) of tensors")
            found.append((batch[0].cpu(), batch[1].cpu()))
            if sum(len(y) for _, y in found) >= EXAMPLES:
                break
    if not found:
        raise InvalidInputError("the training split is empty")
    x = torch.cat([part for part, _ in found])
    y = torch.cat([part for _, part in found])
    return x[:EXAMPLES], y[:EXAMPLES]


def _inputs(x: Tensor) -> Tensor:
    if not x.is_floating_point() and x.dtype != torch.uint8:
        raise InvalidInputError(
            f"inputs of dtype {x.dtype} are no numbers to a tanh net"
        )
    flat = x.double().reshape(len(x), -1)
    if flat.shape[1] > FEATURES:
        flat = flat[:, torch.linspace(0, flat.shape[1] - 1, FEATURES).long()]
    centred = flat - flat.mean(0)
    scale = float(centred.square().mean().sqrt())
    if len(flat) < LEAST_EXAMPLES or not 0.0 < scale < float("inf"):
        raise InvalidInputError(
            f"{len(flat)} examples with inputs of standard deviation {scale:.3g}; "
            f"needs {LEAST_EXAMPLES} that differ"
        )
    return centred / scale


def _targets(y: Tensor) -> tuple[Tensor, int]:
    if y.is_floating_point():
        flat = y.double().reshape(len(y), -1)
        if flat.shape[1] > 64 or not bool(flat.isfinite().all()):
            raise InvalidInputError(f"targets of shape {tuple(y.shape)} are too wide")
        return flat, flat.shape[1]
    if y.ndim != 1:
        raise InvalidInputError(f"targets of shape {tuple(y.shape)} are no labels")
    known, labels = torch.unique(y, return_inverse=True)
    if len(known) < 2:
        raise InvalidInputError("the first training examples are all of one class")
    return labels, len(known)
