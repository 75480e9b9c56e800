"""The determinism probe: two passes must agree, or the culprit is named."""

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from dynprune.core import InvalidInputError, NotDeterministicError, tensors_of

if TYPE_CHECKING:
    from dynprune.system._gradient_system import GradientSystem

MOST_PROBED = 8  # examples of resident data, which are the same bytes on each pass


def probe(system: "GradientSystem") -> None:
    """Compare loss and gradient of two passes over the data.

    The tolerance is relative to the dtype, so that plain shuffling, which only
    reorders sums, passes.

    Args:
        system: The system, in one process, with the data to be probed.

    Raises:
        NotDeterministicError: If they differ; the message names the cause.
        InvalidInputError: If the gradient is NaN or infinite; says in which batch.

    Cost:
        Two gradients over those data.
    """
    before, buffers = system.buffers, system.buffers
    first, second = (
        system.gradient_with(buffers, system.state, seed=seed) for seed in (0, 1)
    )
    moved = [
        name for name, part in buffers.items() if not torch.equal(part, before[name])
    ]
    scale = float(first.abs().max().nan_to_num()) + 1e-30
    change = float((first - second).abs().max()) / scale
    tolerance = 1e3 * torch.finfo(system.dtype).eps
    training = [name for name, part in system.module.named_modules() if part.training]
    system.module.eval()
    if not moved and not training and change <= tolerance:
        return
    if not bool(torch.isfinite(first).all()):
        raise InvalidInputError(
            "A Hessian or flow was asked where the gradient is not finite"
            f"{_where(system)}. Look for NaN and overflow in the data and the state."
        )
    raise NotDeterministicError(
        f"A Hessian or flow was asked of a loss whose gradient moved by {change:.1e} "
        f"(relative) between two passes over the data. Cause: "
        f"{_cause(system, moved, training)}"
    )


def _where(system: "GradientSystem") -> str:
    named, buffers = system.unflatten(system.state), system.buffers
    with torch.no_grad():
        for index, batch in enumerate(system.batches()):
            loss = float(system.batch_mean(named, buffers, batch))
            if not math.isfinite(loss):
                return f": the loss of batch {index} is {loss}"
    return ", though the loss of each batch is"


def _cause(system: "GradientSystem", moved: list[str], training: list[str]) -> str:
    norms = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm)
    modules = dict(system.module.named_modules())
    if moved or any(isinstance(modules[name], norms) for name in training):
        return (
            f"batch norm in training mode (running statistics {moved[:3]} change). "
            "Do not call model.train() inside batch_loss; statistics must be fixed."
        )
    if training:
        drops = [
            name
            for name in training
            if isinstance(modules[name], nn.modules.dropout._DropoutNd)
        ]
        return (
            f"dropout in training mode ({', '.join(drops) or 'modules in train mode'})"
            ". Do not call model.train() inside batch_loss."
        )
    if _data_moved(system):
        return (
            "the loader gives other data on each pass (augmentation, a random "
            "sampler, or shuffle with drop_last). Pass a loader without them; "
            "dp.train(data=...) may use another one."
        )
    return (
        "the forward pass itself is random (functional dropout or noise). Make it "
        "depend on self.training."
    )


def _data_moved(system: "GradientSystem") -> bool:
    return _fingerprint(system, seed=0) != _fingerprint(system, seed=1)


def _fingerprint(system: "GradientSystem", *, seed: int) -> list[tuple[float, ...]]:
    rows: list[tuple[float, ...]] = []
    for batch in system.batches(seed=seed):
        tensors = [tensor for tensor in tensors_of(batch) if tensor.ndim]
        for row in range(len(tensors[-1])) if tensors else ():
            rows.append(
                tuple(
                    float(tensor[row].double().sum())
                    for tensor in tensors
                    if row < len(tensor)
                )
            )
    return sorted(rows)
