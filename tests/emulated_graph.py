"""A CUDA graph on a CPU: every call to aten is kept with its very tensors.

A replay makes the calls again and writes their results into the memory that the
recording wrote to: like a graph it knows addresses, and runs no Python.
"""

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from dynprune.training import _captured


class _Calls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.kept = []

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if call._schema.name == "aten::_local_scalar_dense":
            raise RuntimeError("operation not permitted when stream is capturing")
        out = call(*args, **kwargs)
        parts = (args, kwargs, out)
        self.kept.append((call, *(pytree.tree_map(_alias, part) for part in parts)))
        return out


def _alias(leaf):
    return leaf.detach() if isinstance(leaf, torch.Tensor) else leaf


def recorded(function, *, device):
    for _ in range(3):
        function()
    calls = _Calls()
    with calls:
        result = function()

    def replay():
        with torch.no_grad():
            for call, args, kwargs, out in calls.kept:
                new = call(*args, **kwargs)
                pairs = zip(
                    pytree.tree_leaves(new), pytree.tree_leaves(out), strict=True
                )
                for one, other in pairs:
                    if isinstance(one, torch.Tensor) and (
                        one.data_ptr() != other.data_ptr()
                    ):
                        other.copy_(one)

    return replay, result


class OnCPU(_captured.Captured):
    """Captured, for systems on a CPU; counts recordings and replays."""

    recordings = replays = 0

    def __init__(self, gradient, *, parameters, buffers, device):
        super().__init__(
            gradient,
            parameters=parameters,
            buffers=buffers,
            device=torch.device("cuda"),
        )

    def _record(self, leaves, structure):
        type(self).recordings += 1
        super()._record(leaves, structure)
        replay = self._replay

        def counted():
            type(self).replays += 1
            replay()

        self._replay = counted
