"""Stages of repeated blocks, found in the names and shapes of tensors."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from dynprune.core import InvalidInputError

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Stages = tuple[tuple[str, ...], ...]
_NUMBERED = re.compile(r"(.*?)(\d+)")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class _Group:
    """Hold modules that differ in one number of their name.

    Args:
        key: The name with that number left out.
        members: Number to module name.
    """

    key: str
    members: dict[int, str] = field(default_factory=dict)

    @property
    def paths(self) -> tuple[str, ...]:
        """Module names in the order of their numbers."""
        return tuple(self.members[number] for number in sorted(self.members))


def find_stages(shapes: Shapes) -> Stages:
    """Find stages: runs of modules that repeat the same tensors.

    Modules whose names differ in one number (``layer1.0``, ``layer1.1``; or
    ``stage1_block1``, ``stage1_block2``) are the blocks of a stage if each has at least
    two weight matrices, all but the first have the same names and shapes, and the
    first, which may change the width, shares at least one matrix with them. Of nested
    runs the outer one counts, unless it has a single member.

    Args:
        shapes: Parameter name to shape.

    Returns:
        For each stage the module names of its blocks, in order; empty if none.

    Example:
        >>> tensors = {
        ...     f"layer.{i}.{part}.weight": (4, 4)
        ...     for i in range(2)
        ...     for part in ("query", "key")
        ... }
        >>> find_stages(tensors)
        (('layer.0', 'layer.1'),)
    """
    groups: dict[tuple[str, str], _Group] = {}
    for name in shapes:
        tokens = name.split(".")[:-1]
        for depth, token in enumerate(tokens):
            match = _NUMBERED.fullmatch(token)
            if match is None:
                continue
            path = ".".join(tokens[: depth + 1])
            if _matrices(inside(shapes, path)) >= 2:
                key = (".".join(tokens[:depth]), match[1])
                group = groups.setdefault(key, _Group(key=".".join((*key, "#"))))
                group.members.setdefault(int(match[2]), path)
    found = [group for group in groups.values() if _repeats(shapes, group.paths)]
    kept = [
        group
        for group in found
        if not any(_nested(group, other) and len(other.members) > 1 for other in found)
    ]
    single = [
        group
        for group in kept
        if len(group.members) == 1 and any(_nested(other, group) for other in kept)
    ]
    return tuple(group.paths for group in kept if group not in single)


def check_stages(shapes: Shapes, blocks: Sequence[Sequence[str]], whose: str) -> Stages:
    """Check the blocks that a user names.

    Args:
        shapes: Name to shape of the network's tensors.
        blocks: For each stage the module names of its blocks.
        whose: Whose they are, for the message.

    Returns:
        The same as tuples.

    Raises:
        InvalidInputError: If there is none, a stage is empty, a block has no tensor,
            is named twice, or is inside another.
    """
    stages = tuple(tuple(stage) for stage in blocks)
    paths = [path for stage in stages for path in stage]
    if not stages or not all(stages):
        raise InvalidInputError(
            f"The blocks of the {whose} are {stages}. Pass at least one block for each "
            "stage, e.g. [['layer1.0', 'layer1.1'], ['layer2.0', 'layer2.1']]."
        )
    empty = [path for path in paths if not inside(shapes, path)]
    if empty:
        raise InvalidInputError(
            f"{', '.join(empty)} of the {whose} hold no tensor. Pass module names: "
            f"those of {', '.join(list(shapes)[:3])} without the last part."
        )
    twice = [
        path
        for i, path in enumerate(paths)
        if any(
            other == path or path.startswith(f"{other}.")
            for j, other in enumerate(paths)
            if i != j
        )
    ]
    if twice:
        raise InvalidInputError(
            f"{', '.join(dict.fromkeys(twice))} of the {whose} are named twice, or lie "
            "inside another block. Name each block once."
        )
    return stages


def inside(shapes: Shapes, path: str) -> dict[str, Shape]:
    """Return the tensors of a module.

    Args:
        shapes: Name to shape.
        path: The module's name.

    Returns:
        Name within the module to shape.
    """
    start = f"{path}."
    return {
        name.removeprefix(start): shape
        for name, shape in shapes.items()
        if name.startswith(start)
    }


def _matrices(shapes: Shapes) -> int:
    return sum(len(shape) >= 2 for shape in shapes.values())


def _repeats(shapes: Shapes, paths: Sequence[str]) -> bool:
    first, *rest = (inside(shapes, path) for path in paths)
    if not rest:
        return True
    shared = {name for name, shape in first.items() if rest[0].get(name) == shape}
    common = {name: first[name] for name in shared}
    return all(part == rest[0] for part in rest) and _matrices(common) >= 1


def _nested(inner: _Group, outer: _Group) -> bool:
    return inner is not outer and any(
        path.startswith(f"{other}.") for path in inner.paths for other in outer.paths
    )
