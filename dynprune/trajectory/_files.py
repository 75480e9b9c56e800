"""Trajectories and states in safetensors files."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dynprune.core import (
    Coordinates,
    InvalidInputError,
    Provenance,
    load_result,
    load_tensors,
    save_tensors,
)

Path = str | os.PathLike[str]
_KIND = "trajectory"


def write(
    path: Path,
    *,
    snapshots: Tensor,
    steps: Tensor,
    losses: Tensor | None,
    coordinates: Coordinates,
    provenance: Provenance,
) -> None:
    """Write the parts of a trajectory to one file, atomically.

    Args:
        path: Where the file shall be.
        snapshots: Shape ``(P, T)``; stored one state after the other.
        steps: Shape ``(T,)``.
        losses: Shape ``(T,)``, or None.
        coordinates: Of the states.
        provenance: Where they come from.
    """
    tensors = {"snapshots": snapshots.T, "steps": steps}
    if losses is not None:
        tensors["losses"] = losses
    if coordinates.survivors is not None:
        tensors["survivors"] = coordinates.survivors
    metadata = {
        "kind": _KIND,
        "names": list(coordinates.names),
        "shapes": [list(shape) for shape in coordinates.shapes],
        "provenance": provenance.to_dict(),
    }
    save_tensors(path, tensors, metadata)


def read(path: Path) -> dict[str, Any]:
    """Read what :func:`write` wrote.

    Args:
        path: The file.

    Returns:
        The arguments of :func:`write`, less the path.

    Raises:
        InvalidInputError: If the file is missing, truncated, no trajectory, or lacks a
            part.
    """  # noqa: DOC502 - raised by load_result
    return load_result(
        path,
        _KIND,
        _unpack,
        what="a trajectory (Trajectory.from_checkpoints reads checkpoints)",
        writer="Trajectory.save",
    )


def _unpack(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "snapshots": tensors["snapshots"].T,
        "steps": tensors["steps"],
        "losses": tensors.get("losses"),
        "coordinates": _coordinates(tensors, metadata),
        "provenance": Provenance.from_dict(metadata["provenance"]),
    }


def read_state(
    path: Path, coordinates: Coordinates | None
) -> tuple[Tensor, Coordinates, int | None]:
    """Read one state from a dynprune checkpoint or a file of named tensors.

    Args:
        path: A safetensors file.
        coordinates: What the state is laid out in; None to take the checkpoint's
            own, or every floating-point tensor in the order of their names.

    Returns:
        The state, its coordinates, and its step where the file says it.

    Raises:
        InvalidInputError: If the file is missing, truncated, a pickle, or does not
            fit the coordinates.
    """
    tensors, ours = _any_safetensors(path)
    if not ours:
        named = {
            name: part for name, part in tensors.items() if part.is_floating_point()
        }
        if not named:
            raise InvalidInputError(
                f"{path} holds no floating-point tensor. Found: {sorted(tensors)}."
            )
        where = coordinates or Coordinates(
            names=tuple(sorted(named)),
            shapes=tuple(tuple(named[name].shape) for name in sorted(named)),
        )
        return where.flatten(named), where, None
    metadata = load_tensors(path)[1]
    if "state" not in tensors:
        raise InvalidInputError(
            f"{path} holds a {metadata.get('kind')} without a state. Pass checkpoints "
            "of dynprune.train, or files of named tensors."
        )
    own = _coordinates(tensors, metadata)
    state, step = tensors["state"], metadata.get("step")
    if coordinates is None:
        return state, own, step
    return coordinates.flatten(own.unflatten(state)), coordinates, step


def _coordinates(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> Coordinates:
    return Coordinates(
        names=tuple(metadata["names"]),
        shapes=tuple(tuple(shape) for shape in metadata["shapes"]),
        survivors=tensors.get("survivors"),
    )


def _any_safetensors(path: Path) -> tuple[dict[str, Tensor], bool]:
    try:
        with safe_open(str(path), framework="pt") as file:
            ours = "dynprune" in (file.metadata() or {})
            names = list(file.keys())
            return {name: file.get_tensor(name) for name in names}, ours
    except FileNotFoundError as error:
        raise InvalidInputError(f"No file {path}. Check the path.") from error
    except (SafetensorError, OSError) as error:
        raise InvalidInputError(
            f"{path} is truncated or not a safetensors file ({error}). A .pt file is "
            "a pickle, which dynprune does not read: convert it once with "
            "safetensors.torch.save_file(model.state_dict(), path)."
        ) from error


def as_steps(steps: object) -> Tensor:
    """Return steps as an int64 vector.

    Args:
        steps: A tensor or sequence of integers.

    Returns:
        A new CPU tensor, shape ``(T,)``.

    Raises:
        InvalidInputError: If they are not whole numbers in one dimension.
    """
    found = torch.as_tensor(steps)
    whole = found.to(torch.int64)
    if found.ndim != 1 or not bool((whole == found).all()):
        raise InvalidInputError(
            f"Steps {steps} are not a list of whole numbers. Pass one optimiser step "
            "per snapshot."
        )
    return whole.detach().cpu().clone()
