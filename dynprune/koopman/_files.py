"""A Koopman model as tensors and plain metadata, and back."""

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dynprune.core import (
    Coordinates,
    Outcome,
    Provenance,
)
from dynprune.koopman._evolve import Piece

if TYPE_CHECKING:
    from dynprune.koopman._results import KoopmanModel

KIND = "koopman.KoopmanModel"
_COMPLEX = ("eigenvalues", "amplitudes")
_REAL = (
    "residual_norms",
    "residual_floors",
    "standard_errors",
    "mode_norms",
    "groups",
    "singular_values",
    "defect",
    "snapshots",
    "steps",
)
_PLAIN = ("partition", "centring", "method", "delay", "operator_norm", "outside_norm")


def packed(model: "KoopmanModel") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what is saved of a model.

    Args:
        model: The model.

    Returns:
        Real tensors by name, complex ones as pairs, and JSON-serialisable metadata.
    """
    tensors = {name: getattr(model, name) for name in _REAL}
    for name in _COMPLEX:
        tensors[name] = torch.view_as_real(getattr(model, name))
    if model.coordinates.survivors is not None:
        tensors["survivors"] = model.coordinates.survivors
    plain = []
    for i, part in enumerate(model.pieces):
        for field in fields(part):
            value = getattr(part, field.name)
            if field.name == "modes":
                value = torch.view_as_real(value)
            if isinstance(value, Tensor):
                tensors[f"pieces.{i}.{field.name}"] = value
        plain.append({"label": part.label, "folded": part.folded})
    metadata: dict[str, Any] = {name: getattr(model, name) for name in _PLAIN}
    metadata |= {
        "kind": KIND,
        "names": list(model.coordinates.names),
        "shapes": [list(shape) for shape in model.coordinates.shapes],
        "outcome": model.outcome.name,
        "provenance": model.provenance.to_dict(),
        "pieces": plain,
    }
    return tensors, metadata


def unpacked(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the fields of a saved model.

    Args:
        tensors: What :func:`packed` returned.
        metadata: What it returned beside them.

    Returns:
        The fields by name.
    """
    values: dict[str, Any] = {name: tensors[name] for name in _REAL}
    values |= {name: torch.view_as_complex(tensors[name]) for name in _COMPLEX}
    values |= {name: metadata[name] for name in _PLAIN}
    values["pieces"] = tuple(
        _piece(tensors, i, plain) for i, plain in enumerate(metadata["pieces"])
    )
    values["coordinates"] = Coordinates(
        names=tuple(metadata["names"]),
        shapes=tuple(tuple(shape) for shape in metadata["shapes"]),
        survivors=tensors.get("survivors"),
    )
    values["outcome"] = Outcome[metadata["outcome"]]
    values["provenance"] = Provenance.from_dict(metadata["provenance"])
    return values


def _piece(tensors: Mapping[str, Tensor], i: int, plain: dict[str, Any]) -> Piece:
    values: dict[str, Any] = {
        field.name: tensors[f"pieces.{i}.{field.name}"]
        for field in fields(Piece)
        if f"pieces.{i}.{field.name}" in tensors
    }
    values["modes"] = torch.view_as_complex(values["modes"])
    return Piece(**values, **plain)
