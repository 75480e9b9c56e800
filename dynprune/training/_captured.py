"""Loss and gradients of a batch as one CUDA graph: recorded once, replayed after."""

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dynprune.core import InvalidInputError

Gradient = Callable[[Any], Tensor]
_WARM = 3  # passes before the recording: libraries choose kernels and allocate in them


@final
class Captured:
    """Compute loss and gradients of a batch by replaying one CUDA graph.

    A replay launches the kernels of forward and backward pass at once; one by one their
    launches take longer than a small network's arithmetic. The kernels are those of the
    function. The graph is recorded for the first shape of batches that comes twice in a
    row; batches of another shape (the last of an epoch) are computed as ever.

    Args:
        gradient: From a batch to its loss, leaving gradients in the parameters.
        parameters: Those that get gradients.
        buffers: Those that a pass may move; recording leaves them as they are.
        device: Where; must be CUDA.

    Raises:
        InvalidInputError: If the device is no GPU.
    """

    def __init__(
        self,
        gradient: Gradient,
        *,
        parameters: Sequence[Tensor],
        buffers: Sequence[Tensor],
        device: torch.device,
    ) -> None:
        if device.type != "cuda":
            raise InvalidInputError(
                f"capture=True was asked on {device}: only a GPU replays steps. Leave "
                "it out, or move the system to 'cuda'."
            )
        self._gradient, self._device = gradient, device
        self._parameters, self._buffers = parameters, buffers
        self._last: Any = None
        self._shape: Any = None
        self._batch: list[Tensor] = []
        self._slopes: list[Tensor | None] = []
        self._loss = torch.zeros(())
        self._replay: Callable[[], object] = lambda: None

    def __call__(self, batch: Any) -> Tensor:
        """Leave the gradient of a batch in the parameters.

        Args:
            batch: What to compute it on.

        Returns:
            The loss, without graph.

        Raises:
            InvalidInputError: If the pass cannot be recorded.
        """  # noqa: DOC502 - raised by the recording
        leaves, structure = pytree.tree_flatten(batch)
        shape = (structure, tuple(_shape(leaf) for leaf in leaves))
        if self._shape is None and shape == self._last:
            self._record(leaves, structure)
            self._shape = shape
        self._last = shape
        if shape != self._shape:
            return self._gradient(batch)
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        torch._foreach_copy_(self._batch, tensors)
        self._replay()
        for parameter, slope in zip(self._parameters, self._slopes, strict=True):
            parameter.grad = slope
        return self._loss.clone()

    def _record(self, leaves: list[Any], structure: Any) -> None:
        fixed = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        batch = pytree.tree_unflatten(fixed, structure)
        kept = [part.clone() for part in self._buffers]
        try:
            self._replay, self._loss = recorded(
                lambda: self._gradient(batch), device=self._device
            )
        except RuntimeError as error:
            raise InvalidInputError(
                "capture=True was asked, but this step cannot be recorded as a CUDA "
                "graph: it waits for the GPU (.item(), a branch on a value) or uses "
                f"the CPU ({error}). Leave capture out."
            ) from error
        finally:
            with torch.no_grad():
                for part, value in zip(self._buffers, kept, strict=True):
                    part.copy_(value)
        self._batch = [leaf for leaf in fixed if isinstance(leaf, Tensor)]
        self._slopes = [parameter.grad for parameter in self._parameters]


def recorded(
    function: Callable[[], Tensor], *, device: torch.device
) -> tuple[Callable[[], object], Tensor]:
    """Record a function on tensors that stay where they are.

    Args:
        function: What to record; it is called a few times before.
        device: A GPU.

    Returns:
        What replays it, and the tensor that a replay writes its result to.
    """
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM):
                function()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = function()
    return graph.replay, result


def _shape(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device
    return leaf
