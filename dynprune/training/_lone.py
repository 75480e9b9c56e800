"""A batch of one example, and batch norm in training mode, which cannot take it."""

import copy
from typing import Any

from torch import nn

from dynprune.core import InvalidInputError, isolated
from dynprune.system import (
    GradientSystem,
    MeanLoss,
    OnCopies,
    check_data,
    is_resident,
    read,
)


def check_lone(
    system: GradientSystem,
    data: Any,
    batch_size: int | None,
    *,
    training: bool,
    start: int,
    stop: int,
) -> None:
    """Refuse batches of resident data that leave one example alone, where it fails.

    Tried on a copy of the network, for batch norm over the places of an image can do
    with one example.

    Args:
        system: Whose network is to be trained.
        data: What on.
        batch_size: Examples per batch; the last one of a pass may be smaller.
        training: Whether it is in train mode.
        start: First step.
        stop: One after the last step.

    Raises:
        InvalidInputError: If a batch norm raises for an example that a step will meet,
            or data can be read only once.
        ValueError: What else the network raises for it.

    Cost:
        Nothing but for a lone example and a batch norm: then a forward pass of it.
    """
    check_data(data)
    if not is_resident(data) or batch_size is None:
        return
    count = len(data[1])
    per_epoch = -(-count // batch_size)
    met = batch_size == 1 or start // per_epoch < stop // per_epoch
    if count - (per_epoch - 1) * batch_size != 1 or not met:
        return
    net = system.set_mode_(copy.deepcopy(system.module), training=training)
    if not any(_of_batch(part) for part in net.modules()):
        return
    first = data[0][:1], data[1][:1]
    try:
        with isolated(0):
            for batch in read(
                first, dtype=system.dtype, device=system.device, microbatch=None
            ):
                OnCopies(MeanLoss(net, system.loss_fn, system.batch_loss))(batch)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        sizes = range(batch_size + 1, count + 1)
        other = next((size for size in sizes if count % size != 1), None)
        raise InvalidInputError(
            f"{count} examples in batches of {batch_size} leave one alone, and batch "
            "norm has no variance over one value. Pass "
            + (f"batch_size={other}." if other else "more examples.")
        ) from error


def _of_batch(part: nn.Module) -> bool:
    norm = isinstance(part, nn.modules.batchnorm._BatchNorm)
    return norm and (part.training or part.running_mean is None)
