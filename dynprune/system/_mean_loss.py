"""The loss of a batch as a pure function of parameters and buffers."""

from collections.abc import Callable, Mapping
from typing import Any, final

import numpy as np
from torch import Tensor, nn

from dynprune.core import InvalidInputError, functional_call

LossFn = Callable[[Any, Any], Tensor]
BatchLoss = Callable[[nn.Module, Any], Tensor]


@final
class MeanLoss(nn.Module):
    """Wrap a network and its loss so that ``forward(batch)`` is the mean loss.

    Args:
        net: The network.
        loss_fn: Mean loss of outputs and targets, or None with ``batch_loss``.
        batch_loss: Mean loss of a network on a batch, or None.
    """

    def __init__(
        self, net: nn.Module, loss_fn: LossFn | None, batch_loss: BatchLoss | None
    ) -> None:
        nn.Module.__init__(self)
        self.net = net
        # in a tuple, so that a loss that is a module stays the user's own
        self._calls = (loss_fn, batch_loss)

    def forward(self, batch: Any) -> Tensor:
        """Return the mean loss of a batch.

        Args:
            batch: ``(x, y)``, or whatever ``batch_loss`` takes.

        Returns:
            A 0-d tensor.

        Raises:
            InvalidInputError: If the batch is no pair, or the loss no scalar.
        """
        loss_fn, batch_loss = self._calls
        if batch_loss is not None:
            value = batch_loss(self.net, batch)
        else:
            if not isinstance(batch, tuple | list) or len(batch) != 2:
                raise InvalidInputError(_no_pair(batch))
            assert loss_fn is not None
            value = loss_fn(self.net(batch[0]), batch[1])
        if not isinstance(value, Tensor) or value.numel() != 1:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value)
            raise InvalidInputError(
                f"The loss of a batch is not a scalar tensor (found {found}). Use "
                "reduction='mean', or return the mean over the examples."
            )
        return value.reshape(())


def call(
    loss: MeanLoss,
    parameters: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    batch: Any,
) -> Tensor:
    """Evaluate a loss with the given parameters and buffers in place of its own.

    Args:
        loss: The wrapped network, in eval mode.
        parameters: Name in the network to tensor.
        buffers: Name in the network to tensor.
        batch: The batch.

    Returns:
        A 0-d tensor, differentiable in ``parameters``.
    """
    values = {f"net.{name}": value for name, value in parameters.items()}
    values |= {f"net.{name}": value for name, value in buffers.items()}
    result: Tensor = functional_call(loss, values, (batch,))
    return result


def _no_pair(batch: Any) -> str:
    found = f"A batch of type {type(batch).__name__} is not a pair (x, y). "
    if isinstance(batch, np.ndarray):
        return (
            f"{found}Pass data as tensors: (torch.from_numpy(x), torch.from_numpy(y))."
        )
    return f"{found}Pass batch_loss=lambda model, batch: ... for other batches."
