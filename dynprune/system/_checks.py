"""The door of a gradient system: scalar, finite, and a mean over examples."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, NumericalWarning
from dynprune.system._batches import is_resident
from dynprune.system._first_batch import PASSED_ON, explained

_MOST = 32
_WHOLE = "for the loss of whole batches: batch_weight=lambda batch: 1.0"


def check_loss(
    mean: Callable[[Any], Tensor],
    batch: Any,
    steady: Callable[[], bool],
    weight: Callable[[Any], float],
    *,
    dtype: torch.dtype,
    traced: bool,
    by_batch: bool,
    weighed: bool,
) -> None:
    r"""Refuse a loss that is not finite or not a mean over examples.

    With parts of weights :math:`n_1 + n_2 = n` (numbers of examples by default) a mean
    satisfies :math:`n L = n_1 L_1 + n_2 L_2`; a sum and a class-weighted mean do not.
    Class weights may all but cancel in a large batch, so pairs of examples of
    different targets are split, too: there the weights :math:`w` are off by the
    factor :math:`(w_1 - w_2) / (w_1 + w_2)`.

    A ``batch_loss`` may be the loss of whole batches only. It is not cut where the
    parts of a batch weigh what the batch does, as for a mean over batches; and where
    it cannot be computed of parts, a user who gave no weights is told so.

    Args:
        mean: The loss of a batch, without gradients but where ``traced``.
        batch: The first batch of the data.
        steady: Says whether the network is still in eval mode.
        weight: Returns the weight of a batch.
        dtype: Of the parameters.
        traced: Whether gradients are enabled for the loss of the first batch.
        by_batch: Whether it is a ``batch_loss``.
        weighed: Whether the weights are the user's.

    Raises:
        InvalidInputError: If the loss cannot be computed, is NaN or infinite, or the
            split batch disagrees with the whole one or has no loss.
    """  # noqa: DOC502 - raised by the parts
    with torch.no_grad():
        if not _can_be_cut(batch):
            with explained(batch, dtype, by_batch=by_batch):
                _first(mean, batch, traced=traced)
            return
        x, y = batch[0][:_MOST], batch[1][:_MOST]
        by_user = by_batch and weighed
        try:
            whole = _first(mean, (x, y), traced=traced)
        except Exception as error:
            if isinstance(error, PASSED_ON):
                raise
            with explained(batch, dtype, by_batch=by_batch):
                if len(y) == len(batch[1]):
                    raise
                _first(mean, batch, traced=traced)
            _cannot_cut(error, len(batch[1]), by_batch=by_batch, by_user=by_user)
            return
        if not steady() or abs(float(mean((x, y))) - whole) > 1e-6 * abs(whole):
            return  # stochastic: the determinism probe will say why
        errors = [
            _compare(mean, weight, x, y, cut, whole, by_user=by_user)
            for cut in {1, len(y) // 3} - {0, len(y)}
        ]
        for other in _others(y):
            pair = torch.tensor([0, other], device=y.device)
            two = x[pair.to(x.device)], y[pair]
            errors.append(_compare(mean, weight, *two, 1, None, by_user=by_user))
    failed = next((error for error in errors if error is not None), None)
    if failed is not None:
        _cannot_cut(failed, len(y), by_batch=by_batch, by_user=by_user)


def _compare(
    mean: Callable[[Any], Tensor],
    weight: Callable[[Any], float],
    x: Tensor,
    y: Tensor,
    cut: int,
    whole: float | None,
    *,
    by_user: bool,
) -> Exception | None:
    # returns what the user's loss or weight raised
    n = len(y)
    parts = (x[:cut], y[:cut]), (x[cut:], y[cut:])
    try:
        first, second, total = (weight(part) for part in (*parts, (x, y)))
        if by_user and first == second == total:  # a mean over batches as they are
            return None
        whole = float(mean((x, y))) if whole is None else whole
        losses = [mean(part) for part in parts]
    except InvalidInputError:
        raise
    except Exception as error:
        return error
    eps = float(torch.finfo(losses[0].dtype).eps)
    rtol = max(eps**0.5, 1e-6)
    head, tail = (float(loss) for loss in losses)
    shares = [first / total, second / total]
    if abs(sum(shares) - 1.0) > 1e-6:  # weights that do not add say nothing of parts
        shares = [cut / n, (n - cut) / n]
    split = shares[0] * head + shares[1] * tail
    largest = max(abs(whole), abs(head), abs(tail))
    # a perfect fit leaves squares of rounding, which are anything of the size eps²
    if largest > eps**1.5 and abs(split - whole) > 2 * rtol * largest:
        raise InvalidInputError(
            f"The loss is not a mean over examples: a batch of {n} gives {whole:.6g}, "
            f"its parts of {cut} and {n - cut} average to {split:.6g}. Use "
            "reduction='mean' without class weights and without batch statistics, or "
            "pass batch_loss and batch_weight (for class weights: the sum of the "
            f"weights of the batch; {_WHOLE})."
        )
    return None


def _cannot_cut(error: Exception, n: int, *, by_batch: bool, by_user: bool) -> None:
    if by_user:
        return
    found = (
        f"The loss of a batch of {n} can be computed, that of its parts cannot "
        f"({type(error).__name__}: {error}), "
    )
    if not by_batch:
        raise InvalidInputError(
            f"{found}so that it is no mean over examples. Let the network take single "
            "examples (batch norm: track_running_stats=True), or pass batch_loss and "
            f"batch_weight ({_WHOLE})."
        ) from error
    warnings.warn(
        f"{found}and whether it is a mean over examples was not seen. Pass "
        f"batch_weight=lambda batch: ... to say what a batch weighs ({_WHOLE}).",
        NumericalWarning,
        stacklevel=5,
    )


def _others(y: Tensor) -> list[int]:
    # three examples at most whose targets are not the first one's
    differs = (y != y[0]).reshape(len(y), -1).any(1).nonzero().reshape(-1)
    found = differs[[0, len(differs) // 2, -1]] if len(differs) else differs
    return sorted(set(found.tolist()))


def _can_be_cut(batch: Any) -> bool:
    return (
        is_resident(batch)
        and all(part.ndim > 0 for part in batch)
        and len(batch[0]) == len(batch[1])
        and len(batch[1]) > 1
    )


def _first(mean: Callable[[Any], Tensor], batch: Any, *, traced: bool) -> float:
    with torch.set_grad_enabled(traced):
        value = float(mean(batch).detach())
    if not abs(value) < float("inf"):
        raise InvalidInputError(
            f"The loss of the first batch at the given state is {value}. Check the "
            "model's state and the inputs for NaN and overflow (step 0, batch 0)."
        )
    return value
