"""Files of spectral results, whose fields are tensors and plain values."""

import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from torch import Tensor

from dynprune.core import Outcome, Provenance, load_result, save_tensors

_Result = TypeVar("_Result")


def save(path: str | os.PathLike[str], kind: str, result: Any) -> None:
    """Write a result to one safetensors file.

    Args:
        path: Where it shall be.
        kind: What its metadata say it is.
        result: A dataclass of tensors, a provenance, perhaps an outcome, and values
            that JSON can hold.
    """
    tensors: dict[str, Tensor] = {}
    metadata: dict[str, Any] = {"kind": kind}
    for name in (part.name for part in fields(result)):
        value = getattr(result, name)
        if isinstance(value, Tensor):
            tensors[name] = value
        elif isinstance(value, Provenance):
            metadata[name] = value.to_dict()
        else:
            metadata[name] = value.name if isinstance(value, Outcome) else value
    save_tensors(path, tensors, metadata)


def load(
    path: str | os.PathLike[str], kind: str, make: Callable[..., _Result], *, what: str
) -> _Result:
    """Read what :func:`save` wrote.

    Args:
        path: The file.
        kind: What its metadata shall say it is.
        make: The class of the result.
        what: The result in words, with its article.

    Returns:
        The result, on the CPU.
    """

    def unpack(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> _Result:
        plain = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in metadata.items()
            if name not in {"kind", "outcome", "provenance"}
        }
        if "outcome" in metadata:
            plain["outcome"] = Outcome[metadata["outcome"]]
        made = Provenance.from_dict(metadata["provenance"])
        return make(provenance=made, **plain, **tensors)

    return load_result(path, kind, unpack, what=what, writer=f"{make.__name__}.save")
