"""The parts that run and checkpoint files share."""

import os
from dataclasses import asdict
from typing import Any

from torch import Tensor

from dynprune.core import (
    Coordinates,
    Cost,
    InvalidInputError,
    Provenance,
    load_tensors,
    save_tensors,
)
from dynprune.trajectory import Trajectory

__all__ = ["Path", "save_tensors"]
Path = str | os.PathLike[str]


def read_kind(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of ours and check what it holds.

    Args:
        path: The file.
        kind: What it shall be.

    Returns:
        Tensors and metadata.

    Raises:
        InvalidInputError: If it is missing, truncated or of another kind.
    """
    tensors, metadata = load_tensors(path)
    if metadata.get("kind") != kind:
        raise InvalidInputError(
            f"{path} holds a {metadata.get('kind', 'thing of unknown kind')}, not a "
            f"{kind}. Choose another path; the file is unchanged."
        )
    return tensors, metadata


def pack_coordinates(
    coordinates: Coordinates,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and metadata of coordinates.

    Args:
        coordinates: What to store.

    Returns:
        Tensors and metadata.
    """
    survivors = coordinates.survivors
    tensors = {} if survivors is None else {"survivors": survivors}
    return tensors, {
        "names": list(coordinates.names),
        "shapes": [list(shape) for shape in coordinates.shapes],
    }


def unpack_coordinates(
    tensors: dict[str, Tensor], metadata: dict[str, Any]
) -> Coordinates:
    """Read back what :func:`pack_coordinates` gave.

    Args:
        tensors: By name.
        metadata: Of the file.

    Returns:
        The coordinates.
    """
    return Coordinates(
        names=tuple(metadata["names"]),
        shapes=tuple(tuple(shape) for shape in metadata["shapes"]),
        survivors=tensors.get("survivors"),
    )


def pack_trajectory(trajectory: Trajectory) -> dict[str, Tensor]:
    """Return the tensors of a trajectory in the run's coordinates.

    Args:
        trajectory: What to store.

    Returns:
        Name to tensor.
    """
    tensors = {
        "trajectory.snapshots": trajectory.snapshots.T,
        "trajectory.steps": trajectory.steps,
    }
    if trajectory.losses is not None:
        tensors["trajectory.losses"] = trajectory.losses
    return tensors


def unpack_trajectory(
    tensors: dict[str, Tensor], coordinates: Coordinates, provenance: Provenance
) -> Trajectory | None:
    """Read back what :func:`pack_trajectory` gave.

    Args:
        tensors: By name.
        coordinates: Of the states.
        provenance: Of the run.

    Returns:
        The trajectory, or None if there was none.
    """
    if "trajectory.snapshots" not in tensors:
        return None
    return Trajectory(
        snapshots=tensors["trajectory.snapshots"].T,
        steps=tensors["trajectory.steps"],
        losses=tensors.get("trajectory.losses"),
        coordinates=coordinates,
        provenance=provenance,
    )


def pack_cost(cost: Cost) -> dict[str, Any]:
    """Return plain values of a cost.

    Args:
        cost: What to store.

    Returns:
        Name to number.
    """
    return asdict(cost)


def unpack_prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it.

    Args:
        tensors: By name.
        prefix: The beginning.

    Returns:
        Name to tensor.
    """
    return {
        name.removeprefix(prefix): part
        for name, part in tensors.items()
        if name.startswith(prefix)
    }
