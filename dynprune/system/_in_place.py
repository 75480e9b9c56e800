"""Networks and losses that write into their batch: they get copies."""

import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor, nn

from dynprune.core import map_leaves, tensors_of
from dynprune.system._mean_loss import BatchLoss, LossFn

R = TypeVar("R")


@final
class OnCopies(Generic[R]):
    """Call a function so that it cannot write into what the user's data are read from.

    The first call is on copies of the tensors and shows whether the function writes
    into them. If so, all later calls are on copies, too; otherwise on the tensors
    themselves, at no cost.

    Args:
        function: Of nests of tensors.
    """

    def __init__(self, function: Callable[..., R]) -> None:
        self._function = function
        self._writes: bool | None = None

    @property
    def writes(self) -> bool:
        """Whether a call has shown that the function writes into its arguments."""
        return bool(self._writes)

    def __call__(self, *arguments: Any, **others: Any) -> R:
        """Call the function.

        Args:
            *arguments: Any nests of tensors.
            **others: What it gets as it is.

        Returns:
            What the function returns.
        """
        if self._writes is False:
            return self._function(*arguments, **others)
        fresh = copies(arguments)
        tensors = tensors_of(fresh)
        versions = [_version(tensor) for tensor in tensors]
        value = self._function(*fresh, **others)
        if self._writes is None:
            self._writes = any(
                _version(tensor) != version or not _equal(tensor, given)
                for tensor, version, given in zip(
                    tensors, versions, tensors_of(arguments), strict=True
                )
            )
        return value


def copies(batch: Any) -> Any:
    """Return a nest of copies of its tensors.

    Args:
        batch: Any nest of tensors.

    Returns:
        The same nest; a copy needs gradients where the tensor does.
    """

    def copied(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        made = leaf.clone()
        return made.requires_grad_() if leaf.requires_grad else made

    return map_leaves(copied, batch)


def give_copies_(net: nn.Module) -> None:
    """Let a network work on copies of its inputs, from now on.

    Args:
        net: A private copy of the user's; its copies do so, too.
    """
    if _inputs_copied not in net._forward_pre_hooks.values():
        net.register_forward_pre_hook(_inputs_copied, with_kwargs=True)


def loss_on_copies(loss_fn: LossFn) -> LossFn:
    """Return a loss that works on copies of the targets.

    Args:
        loss_fn: Mean loss of outputs and targets.

    Returns:
        The same function of the same arguments.
    """
    return functools.partial(_of_targets_copied, loss_fn)


def batch_loss_on_copies(batch_loss: BatchLoss) -> BatchLoss:
    """Return a loss that works on copies of the batch.

    Args:
        batch_loss: Mean loss of a network on a batch.

    Returns:
        The same function of the same arguments.
    """
    return functools.partial(_of_batch_copied, batch_loss)


def _inputs_copied(_net: nn.Module, inputs: Any, named: Any) -> Any:
    return copies((inputs, named))


def _of_targets_copied(loss_fn: LossFn, outputs: Any, targets: Any) -> Tensor:
    return loss_fn(outputs, copies(targets))


def _of_batch_copied(batch_loss: BatchLoss, net: nn.Module, batch: Any) -> Tensor:
    return batch_loss(net, copies(batch))


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _equal(one: Tensor, other: Tensor) -> bool:
    # what is written by .data or NumPy moves no version
    return one.layout != torch.strided or torch.equal(one, other)
