"""Loss and gradients of a batch as one CUDA graph: recorded once, replayed after."""

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dynprune.core import InvalidInputError

Gradient = Callable[[Any], Tensor]
_WARM = 3  # passes before the recording: libraries choose kernels and allocate in them
_REMEMBERED = 64  # shapes of batches
_PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device)


@final
class Captured:
    """Compute loss and gradients of a batch by replaying one CUDA graph.

    A replay launches the kernels of forward and backward pass at once; one by one their
    launches take longer than a small network's arithmetic. The kernels are those of the
    function; what Python computes is what it computed at the recording. The graph is
    recorded for the first shape of batches that is seen twice; batches of another shape
    (the last of an epoch) are computed as ever.

    Args:
        gradient: From a batch to its loss, leaving gradients in the parameters.
        parameters: Those that get gradients.
        buffers: Returns those that a pass may move; recording leaves them as they are.
        device: Where; must be CUDA.

    Raises:
        InvalidInputError: If the device is no GPU.
    """

    def __init__(
        self,
        gradient: Gradient,
        *,
        parameters: Sequence[Tensor],
        buffers: Callable[[], Sequence[Tensor]],
        device: torch.device,
    ) -> None:
        if device.type != "cuda":
            raise InvalidInputError(
                f"capture=True was asked on {device}: only a GPU replays steps. Leave "
                "it out, or move the system to 'cuda'."
            )
        self._gradient, self._device = gradient, device
        self._parameters, self._buffers = parameters, buffers
        self._seen: list[Any] = []
        self._shape: Any = None
        self._batch: list[Tensor] = []
        self._slopes: list[Tensor | None] = []
        self._places: list[int] = []
        self._loss = torch.zeros(())
        self._replay: Callable[[], object] = lambda: None

    def __call__(self, batch: Any) -> Tensor:
        """Leave the gradient of a batch in the parameters.

        Args:
            batch: What to compute it on.

        Returns:
            The loss, without graph.

        Raises:
            InvalidInputError: If the pass cannot be recorded, the batch holds what a
                graph cannot read, or parameters or buffers moved to other memory since
                the recording.
        """  # noqa: DOC501, DOC502 - the parts make and raise them
        leaves, structure = pytree.tree_flatten(batch)
        tensors = _tensors(batch, leaves)
        shape = (structure, tuple(_shape(leaf) for leaf in leaves))
        if self._shape is None:
            if shape not in self._seen:
                self._seen = [*self._seen[-_REMEMBERED:], shape]
                return self._gradient(batch)
            self._record(leaves, structure)
            self._shape = shape
        if shape != self._shape:
            return self._gradient(batch)
        if self._addresses() != self._places:
            raise _moved("since this step was recorded")
        torch._foreach_copy_(self._batch, tensors)
        self._replay()
        for parameter, slope in zip(self._parameters, self._slopes, strict=True):
            parameter.grad = slope
        return self._loss.clone()

    def _record(self, leaves: list[Any], structure: Any) -> None:
        fixed = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        batch = pytree.tree_unflatten(fixed, structure)
        buffers, places = list(self._buffers()), self._addresses()
        kept = [part.clone() for part in buffers]
        try:
            self._replay, self._loss = recorded(
                lambda: self._gradient(batch), device=self._device
            )
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            cause = error.__context__ or error
            raise InvalidInputError(
                "capture=True was asked, but this step cannot be recorded as a CUDA "
                "graph: it waits for the GPU (.item(), a branch on a value) or uses "
                f"the CPU ({cause}). Leave capture out."
            ) from error
        finally:
            with torch.no_grad():
                for part, value in zip(buffers, kept, strict=True):
                    part.copy_(value)
        if self._addresses() != places:
            raise _moved("in one pass")
        self._places = places
        self._batch = [leaf for leaf in fixed if isinstance(leaf, Tensor)]
        self._slopes = [parameter.grad for parameter in self._parameters]

    def _addresses(self) -> list[int]:
        return [part.data_ptr() for part in (*self._parameters, *self._buffers())]


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
        here, side = torch.cuda.current_stream(), torch.cuda.Stream()
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(_WARM):
                function()
        here.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # a stream of this device, not torch's of the first recording; other threads
        # (a loader that pins memory) may go on; a failure leaves no stream behind
        recording = torch.cuda.graph(
            graph, stream=side, capture_error_mode="thread_local"
        )
        with torch.cuda.stream(here), recording:
            result = function()
    return graph.replay, result


def _tensors(batch: Any, leaves: list[Any]) -> list[Tensor]:
    found = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    others = [leaf for leaf in leaves if not isinstance(leaf, (Tensor, *_PLAIN))]
    sparse = [leaf for leaf in found if leaf.layout != torch.strided]
    if found and not others and not sparse:
        return found
    what = [type(leaf).__name__ for leaf in others] or [
        str(leaf.layout) for leaf in sparse
    ]
    raise InvalidInputError(
        f"capture=True found a batch of type {type(batch).__name__} with "
        f"{what[0] if what else 'no tensor'} in it, which a CUDA graph cannot read. "
        "Pass tuples, lists or dicts of dense tensors, or leave capture out."
    )


def _moved(when: str) -> InvalidInputError:
    return InvalidInputError(
        "capture=True was asked, but a parameter or buffer went to other memory "
        f"{when} (self.mean = ..., p.data = ...), where a CUDA graph does not look. "
        "Write in place (copy_, lerp_, add_), or leave capture out."
    )


def _shape(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return leaf.shape, leaf.dtype, leaf.device
    return leaf
