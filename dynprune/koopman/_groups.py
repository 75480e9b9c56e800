"""Which coordinates evolve together: the partitions of a Koopman fit."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor

from dynprune.core import Coordinates, InvalidInputError, unknown

Partition = Literal["network", "layer", "node", "quasi-node", "weight"]
PARTITIONS = ("network", "layer", "node", "quasi-node", "weight")


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Block:
    """Groups of one size that come from one module.

    Args:
        label: The module, e.g. ``"net.0"``, or ``"network"``.
        index: Coordinate of each member, shape ``(groups, q)``; ``size`` of the
            coordinates stands for a pruned entry, which is constantly zero. Empty
            with shape ``(0, 0)`` for the one group of all coordinates in order.
        rows: Row of the module that each group belongs to, shape ``(groups,)``; minus
            one for groups that span all rows.
        columns: First column of each group, shape ``(groups,)``, minus one where a
            group has all of them.
    """

    label: str
    index: Tensor
    rows: Tensor
    columns: Tensor

    @property
    def whole(self) -> bool:
        """Whether this is the one group of all coordinates."""
        return self.index.numel() == 0


def group_name(label: str, row: int, column: int) -> str:
    """Name a group as a person would.

    Args:
        label: The module.
        row: Its row, or minus one.
        column: The first column, or minus one.

    Returns:
        For example ``"net.0"``, ``"net.0[3]"``, ``"net.0[3, 20]"``.

    Example:
        >>> group_name("net.0", 3, -1)
        'net.0[3]'
    """
    if row < 0:
        return label
    return f"{label}[{row}]" if column < 0 else f"{label}[{row}, {column}]"


def blocks(
    coordinates: Coordinates, partition: str, columns: int | None
) -> tuple[Block, ...]:
    """Divide the coordinates into groups.

    ``layer`` groups all tensors of one module. The finer ones lay the tensors of a
    module that share their first size side by side, weight first and bias last, so
    that a row is a node with its incoming weights and its bias; ``quasi-node`` cuts
    each row into groups of ``columns``, the rest forms one smaller group.

    Args:
        coordinates: The map from names to coordinates.
        partition: One of ``PARTITIONS``.
        columns: Group size of ``quasi-node``, at least 1.

    Returns:
        The blocks; every coordinate is in exactly one group.

    Raises:
        InvalidInputError: If the partition is unknown, or ``columns`` does not fit it.
    """  # noqa: DOC501 - unknown() makes it
    if partition not in PARTITIONS:
        raise unknown("partition", partition, PARTITIONS)
    if (partition == "quasi-node") != (columns is not None):
        raise InvalidInputError(
            f"partition={partition!r} with columns={columns}. Give columns=q with "
            'partition="quasi-node", and only there.'
        )
    if columns is not None and columns < 1:
        raise InvalidInputError(f"columns={columns} weights per group. Pass 1 or more.")
    if partition == "network":
        none = torch.full((1,), -1)
        empty = torch.empty((0, 0), dtype=torch.long)
        return (Block(label="network", index=empty, rows=none, columns=none),)
    if partition == "layer":
        return _layers(coordinates)
    if partition == "weight":
        columns = 1
    found = []
    for label, table in _tables(coordinates):
        found.extend(_cut(label, table, columns, coordinates.size))
    return tuple(found)


def _modules(coordinates: Coordinates) -> dict[str, list[str]]:
    # Names by module, in order, each module's bias last.
    found: dict[str, list[str]] = {}
    for name in coordinates.names:
        found.setdefault(name.rpartition(".")[0] or name, []).append(name)
    return {
        label: sorted(names, key=lambda name: name.rpartition(".")[2] == "bias")
        for label, names in found.items()
    }


def _lookup(coordinates: Coordinates) -> Tensor:
    # Coordinate of every flat position, P where pruned.
    if coordinates.survivors is None:
        return torch.arange(coordinates.full_size)
    found = torch.full((coordinates.full_size,), coordinates.size)
    found[coordinates.survivors.cpu()] = torch.arange(coordinates.size)
    return found


def _layers(coordinates: Coordinates) -> tuple[Block, ...]:
    lookup, slices, none = (
        _lookup(coordinates),
        coordinates.slices,
        torch.full((1,), -1),
    )
    found = []
    for label, names in _modules(coordinates).items():
        index = torch.cat([lookup[slices[name]] for name in names])
        index = index[index < coordinates.size]
        if len(index):
            found.append(Block(label=label, index=index[None], rows=none, columns=none))
    return tuple(found)


def _tables(coordinates: Coordinates) -> list[tuple[str, Tensor]]:
    # Coordinate tables [weight | bias], shape (rows, fan_in + 1), by module.
    lookup, slices = _lookup(coordinates), coordinates.slices
    shapes = dict(zip(coordinates.names, coordinates.shapes, strict=True))
    found: list[tuple[str, Tensor]] = []
    for label, names in _modules(coordinates).items():
        by_rows: dict[int, list[Tensor]] = {}
        for name in names:
            rows = shapes[name][0] if shapes[name] else 1
            table = lookup[slices[name]].reshape(rows, -1)
            by_rows.setdefault(rows, []).append(table)
        found.extend((label, torch.cat(parts, 1)) for parts in by_rows.values())
    return found


def _cut(label: str, table: Tensor, columns: int | None, size: int) -> list[Block]:
    rows, width = table.shape
    q = width if columns is None else min(columns, width)
    whole = width // q
    parts = [(0, table[:, : whole * q].reshape(-1, q), whole)]
    if width % q:
        parts.append((whole * q, table[:, whole * q :], 1))
    found = []
    for first, index, per_row in parts:
        row = torch.arange(rows).repeat_interleave(per_row)
        start = (first + q * torch.arange(per_row)).repeat(rows)
        start = torch.full_like(start, -1) if columns is None else start
        kept = (index < size).any(1)
        if kept.any():
            found.append(
                Block(
                    label=label,
                    index=index[kept],
                    rows=row[kept],
                    columns=start[kept],
                )
            )
    return found
