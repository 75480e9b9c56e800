"""How many bytes of tensors a computation holds at its peak, on any device."""

import weakref
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


def peak_bytes(run: Callable[[], object]) -> int:
    """Return the largest sum of bytes of the tensors that a computation makes.

    Tensors that exist before it, and scratch memory inside an operation, are not seen.

    Args:
        run: The computation; what it returns counts as long as it lives.

    Returns:
        Bytes.
    """
    meter = _Meter()
    with meter:
        run()
    return meter.most


@final
class _Meter(TorchDispatchMode):
    def __init__(self) -> None:
        TorchDispatchMode.__init__(self)
        self.now = self.most = 0
        self._live: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        before = {
            leaf.untyped_storage().data_ptr()
            for leaf in pytree.tree_leaves((args, kwargs))
            if _has_data(leaf)
        }
        for leaf in pytree.tree_leaves(out):
            if _has_data(leaf):
                self._note(leaf.untyped_storage(), before)
        return out

    def _note(self, storage: torch.UntypedStorage, before: set[int]) -> None:
        key = storage.data_ptr()
        if key in self._live or key in before:
            return
        size = storage.nbytes()

        def gone(_: Any) -> None:
            del self._live[key]
            self.now -= size

        self._live[key] = weakref.ref(storage, gone)
        self.now += size
        self.most = max(self.most, self.now)


def _has_data(leaf: Any) -> bool:
    if not isinstance(leaf, Tensor) or leaf._is_zerotensor():
        return False
    return leaf.untyped_storage().nbytes() > 0
