"""Hooks that keep pruned weights exactly zero in a user's own loop."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynprune.core import InvalidInputError
from dynprune.tickets._apply import check_masks


@contextmanager
def enforced(
    masks: Iterable[tuple[str, Tensor]], model: nn.Module, optimizer: Optimizer
) -> Iterator[nn.Module]:
    r"""Keep :math:`\theta = m \odot \theta` after every step of an optimiser.

    Gradients are masked as they arrive and before each step, weights after it.

    Args:
        masks: Name and boolean tensor, True = kept.
        model: The user's model; masked at once.
        optimizer: Of its parameters.

    Yields:
        The same model.

    Raises:
        InvalidInputError: If a mask does not fit the model, or the optimiser moves
            none of the masked weights.
    """  # noqa: DOC502 - raised by the checks
    pairs = list(masks)
    check_masks(pairs, model)
    own = dict(model.named_parameters())
    weights: list[tuple[Tensor, Tensor]] = [
        (own[name], mask.to(own[name].device)) for name, mask in pairs
    ]
    _check_moved(weights, optimizer)

    @torch.no_grad()
    def mask_gradients(*_: Any) -> None:
        for weight, mask in weights:
            if weight.grad is not None:
                _zero_(weight.grad, mask)

    @torch.no_grad()
    def mask_weights(*_: Any) -> None:
        for weight, mask in weights:
            _zero_(weight, mask)

    mask_weights()
    handles = [
        optimizer.register_step_pre_hook(mask_gradients),
        optimizer.register_step_post_hook(mask_weights),
        *(
            weight.register_post_accumulate_grad_hook(_gradient_hook(mask))
            for weight, mask in weights
            if weight.requires_grad
        ),
    ]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()
        mask_weights()


def _gradient_hook(mask: Tensor) -> Callable[[Tensor], None]:
    def hook(weight: Tensor) -> None:
        if weight.grad is not None:
            with torch.no_grad():
                _zero_(weight.grad, mask)

    return hook


def _zero_(values: Tensor, mask: Tensor) -> None:
    # not a product: 0 · inf would be NaN
    values.masked_fill_(~mask, 0.0)


def _check_moved(weights: list[tuple[Tensor, Tensor]], optimizer: Optimizer) -> None:
    moved = {id(part) for group in optimizer.param_groups for part in group["params"]}
    if not any(id(weight) in moved for weight, _ in weights):
        raise InvalidInputError(
            f"The {type(optimizer).__name__} holds {len(moved)} parameters, none of "
            "them a masked weight of this model. Make the optimiser from "
            "model.parameters() of the same model object."
        )
