"""What must be the same on every rank, in words that can be compared."""

import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynprune._version import __version__
from dynprune.core import as_plain

if TYPE_CHECKING:
    from dynprune.system._gradient_system import GradientSystem

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SLICE = 2**18
# odd multipliers of the splitmix64 generator, as signed numbers
_STEP, _MIX = -0x61C8864680B583EB, -0x40A7B892E31B1A47


def signature(system: "GradientSystem", state: Tensor, data: str) -> dict[str, str]:
    """Return what all ranks of a system must share, field by field.

    Args:
        system: The system.
        state: The coordinates that are about to be used, shape ``(P,)``.
        data: Layout of the data.

    Returns:
        Field to text; tensors are in it by a 64-bit hash of their bits.
    """
    kind = f"{system.dtype}".removeprefix("torch.")
    return {
        "library": f"dynprune {__version__}, torch {torch.__version__}",
        "parameters": f"{kind} on {system.device.type}: "
        + " ".join(
            f"{name}{list(shape)}"
            for name, shape in zip(system.names, system.coordinates.shapes, strict=True)
        ),
        **function_signature(system),
        "mask": hashes(system.masks) or "none",
        "prunable on request": ", ".join(system.requested) or "none",
        "l2 coefficient": repr(system.l2),
        "data": data,
        **state_signature(system, state),
    }


def function_signature(system: "GradientSystem") -> dict[str, str]:
    """Return what the loss is a function of beside coordinates, buffers and data.

    Two networks whose modules describe themselves alike, or two functions of one name,
    have the same signature.

    Args:
        system: The system.

    Returns:
        Field to text.
    """
    named = system.module.named_parameters()
    frozen = {key: value for key, value in named if key not in system.names}
    loss = (system.loss_fn, system.batch_loss, system.batch_weight)
    return {
        "model": _plain(repr(system.module)),
        "frozen parameters": hashes(frozen) or "none",
        "loss": ", ".join(_named(part) for part in loss),
    }


def state_signature(system: "GradientSystem", state: Tensor) -> dict[str, str]:
    """Return the part of the signature that changes while a model is trained.

    Args:
        system: The system.
        state: The coordinates that are about to be used, shape ``(P,)``.

    Returns:
        Field to text.
    """
    return {
        "state": hashes(system.unflatten(state)),
        "buffers": hashes(system.raw_buffers) or "none",
    }


def layout(batch: Any, *, shapes: bool) -> str:
    """Return the structure of a batch: its tensors' dtypes and shapes.

    Args:
        batch: Any nest of tensors.
        shapes: Say all sizes but the first; otherwise only how many there are, as
            the lengths of sequences may differ from batch to batch.

    Returns:
        One line.
    """

    def one(leaf: Any) -> str:
        if not isinstance(leaf, Tensor):
            return type(leaf).__name__
        kind = str(leaf.dtype).removeprefix("torch.")
        sizes = list(map(str, leaf.shape[1:])) if shapes else ["·"] * (leaf.ndim - 1)
        return f"{kind} ({', '.join(['N', *sizes][: leaf.ndim])})"

    leaves = pytree.tree_flatten_with_path(as_plain(batch))[0]
    return ", ".join(f"{pytree.keystr(path)} {one(leaf)}" for path, leaf in leaves)


def hashes(tensors: Mapping[str, Tensor]) -> str:
    """Return names with a 64-bit hash of the bits of each tensor.

    Args:
        tensors: Name to tensor.

    Returns:
        One line, the same on every device.
    """
    if not tensors:
        return ""
    parts = [_hash(part) for part in tensors.values()]
    found = torch.stack([part.to(parts[0].device) for part in parts])
    return " ".join(
        f"{name}={value % 2**64:016x}"
        for name, value in zip(tensors, found.tolist(), strict=True)
    )


def _hash(tensor: Tensor) -> Tensor:
    # a sum modulo 2**64 of mixed (place, bits): any order of summation gives the same
    plain = tensor.detach().reshape(-1)
    plain = torch.view_as_real(plain).reshape(-1) if plain.is_complex() else plain
    bits = plain.contiguous().view(_BITS[plain.element_size()])
    total = torch.zeros((), dtype=torch.int64, device=tensor.device)
    for start in range(0, len(bits), _SLICE):
        part = bits[start : start + _SLICE].to(torch.int64)
        place = torch.arange(start + 1, start + 1 + len(part), device=part.device)
        mixed = part + place * _STEP
        for shift in (30, 27):
            mixed = (mixed ^ (mixed >> shift)) * _MIX
        total += (mixed ^ (mixed >> 31)).sum()
    return total


def _named(thing: object) -> str:
    if isinstance(thing, functools.partial):
        return f"{_named(thing.func)} {_numbers(thing.keywords)}".strip()
    if isinstance(thing, nn.Module):
        tensors = hashes(dict(thing.state_dict()))
        return _plain(f"{thing!r} {_numbers(vars(thing))} {tensors}").strip()
    return str(getattr(thing, "__qualname__", None) or type(thing).__qualname__)


def _numbers(values: Mapping[str, object]) -> str:
    # settings that a repr need not show, e.g. label_smoothing
    plain = {
        name: value
        for name, value in values.items()
        if not name.startswith("_") and isinstance(value, bool | int | float | str)
    }
    return " ".join(f"{name}={value}" for name, value in plain.items())


def _plain(text: str) -> str:
    # no addresses, which differ from process to process
    return re.sub(r"0x[0-9a-f]+", "", re.sub(r"\s+", " ", text))
