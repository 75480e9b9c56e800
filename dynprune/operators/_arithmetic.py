"""The arithmetic that products are made in: as the dtype says, TF32 or bfloat16."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch

Precision = Literal["native", "tf32", "bf16"]


@contextmanager
def arithmetic(device: torch.device, precision: Precision) -> Iterator[None]:
    """Make products in a given arithmetic, and restore the user's settings.

    On CUDA torch lets convolutions of float32 tensors lose 13 bits to TF32 by default,
    and chooses kernels that may add in another order each time: ``"native"`` is exact
    float32 and always the same kernels. ``"tf32"`` allows TF32 there; ``"bf16"``
    casts matrix products and convolutions to bfloat16 on any device (autocast).

    Args:
        device: Of the system.
        precision: The arithmetic.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(_cuda("tf32" if precision == "tf32" else "ieee"))
        if precision == "bf16":
            stack.enter_context(torch.autocast(device.type, torch.bfloat16))
        yield


@contextmanager
def _cuda(fp32: str) -> Iterator[None]:
    backend: Any = torch.backends.cudnn  # its parts are not known to type checkers
    matmul, conv = torch.backends.cuda.matmul, backend.conv
    before = (matmul.fp32_precision, conv.fp32_precision)
    kernels = (backend.deterministic, backend.benchmark)
    try:
        matmul.fp32_precision = conv.fp32_precision = fp32
        backend.deterministic, backend.benchmark = True, False
        yield
    finally:
        matmul.fp32_precision, conv.fp32_precision = before
        backend.deterministic, backend.benchmark = kernels
