"""The door of a gradient system: scalar, finite, and a mean over examples."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dynprune.core import InvalidInputError

_MOST = 32


def check_loss(
    mean: Callable[[Any], Tensor],
    batch: Any,
    steady: Callable[[], bool],
    weight: Callable[[Any], float],
) -> None:
    r"""Refuse a loss that is not finite or not a mean over examples.

    With parts of weights :math:`n_1 + n_2 = n` (numbers of examples by default) a mean
    satisfies :math:`n L = n_1 L_1 + n_2 L_2`; a sum and a class-weighted mean do not.
    Class weights may all but cancel in a large batch, so pairs of examples of
    different targets are split, too: there the weights :math:`w` are off by the
    factor :math:`(w_1 - w_2) / (w_1 + w_2)`.

    Args:
        mean: The loss of a batch, without gradients.
        batch: The first batch of the data.
        steady: Says whether the network is still in eval mode.
        weight: Returns the weight of a batch.

    Raises:
        InvalidInputError: If the loss is NaN or infinite, or the split batch
            disagrees with the whole one.
    """  # noqa: DOC502 - raised by the parts
    with torch.no_grad():
        if not _is_pair(batch):
            _finite(float(mean(batch)))
            return
        x, y = batch[0][:_MOST], batch[1][:_MOST]
        whole = float(mean((x, y)))
        _finite(whole)
        if not steady() or abs(float(mean((x, y))) - whole) > 1e-6 * abs(whole):
            return  # stochastic: the determinism probe will say why
        for cut in {1, len(y) // 3} - {0, len(y)}:
            _compare(mean, weight, x, y, cut, whole)
        for other in _others(y):
            pair = torch.tensor([0, other], device=y.device)
            two = x[pair.to(x.device)], y[pair]
            _compare(mean, weight, *two, 1, float(mean(two)))


def _compare(
    mean: Callable[[Any], Tensor],
    weight: Callable[[Any], float],
    x: Tensor,
    y: Tensor,
    cut: int,
    whole: float,
) -> None:
    n = len(y)
    parts = (x[:cut], y[:cut]), (x[cut:], y[cut:])
    losses = [mean(part) for part in parts]
    rtol = max(float(torch.finfo(losses[0].dtype).eps) ** 0.5, 1e-6)
    head, tail = (float(loss) for loss in losses)
    shares = [weight(part) / weight((x, y)) for part in parts]
    if abs(sum(shares) - 1.0) > 1e-6:  # weights that do not add say nothing of parts
        shares = [cut / n, (n - cut) / n]
    split = shares[0] * head + shares[1] * tail
    if abs(split - whole) > 2 * rtol * max(abs(whole), abs(head), abs(tail)):
        raise InvalidInputError(
            f"The loss is not a mean over examples: a batch of {n} gives {whole:.6g}, "
            f"its parts of {cut} and {n - cut} average to {split:.6g}. Use "
            "reduction='mean' without class weights and without batch statistics, or "
            "pass batch_loss and batch_weight (for class weights: the sum of the "
            "weights of the batch)."
        )


def _others(y: Tensor) -> list[int]:
    # three examples at most whose targets are not the first one's
    differs = (y != y[0]).reshape(len(y), -1).any(1).nonzero().reshape(-1)
    found = differs[[0, len(differs) // 2, -1]] if len(differs) else differs
    return sorted(set(found.tolist()))


def _is_pair(batch: Any) -> bool:
    return (
        isinstance(batch, tuple | list)
        and len(batch) == 2
        and all(isinstance(part, Tensor) and part.ndim > 0 for part in batch)
        and len(batch[0]) == len(batch[1])
        and len(batch[1]) > 1
    )


def _finite(value: float) -> None:
    if not abs(value) < float("inf"):
        raise InvalidInputError(
            f"The loss of the first batch at the given state is {value}. Check the "
            "model's state and the inputs for NaN and overflow (step 0, batch 0)."
        )
