"""Which block of a source becomes which blocks of a target."""

import re
from collections.abc import Sequence
from typing import Literal

from dynprune.core import InvalidInputError
from dynprune.tickets._blocks import Stages

Method = Literal["append", "interpolate"]
Mapped = tuple[tuple[int, ...], ...]  # stage, target block: source block
_ENTRY = re.compile(r"\s*(\d+)\s*:\s*(\d+(?:\s*,\s*\d+)*)\s*")


def read_mapping(text: str, sources: Sequence[int], targets: Stages) -> Mapped:
    """Read ``source:target,target;…``, ``|`` between stages.

    Args:
        text: The mapping; that of one stage stands for every stage.
        sources: Number of blocks of each stage of the source.
        targets: Module names of the target's blocks.

    Returns:
        For each stage and target block the source block it is copied from.

    Raises:
        InvalidInputError: If the text cannot be read, a stage is missing, a block does
            not exist, or a target block is written twice or not at all.

    Example:
        >>> read_mapping("0:0;1:1,2", [2], (("a.0", "a.1", "a.2"),))
        ((0, 1, 1),)
    """
    if not isinstance(text, str):
        raise InvalidInputError(
            f"A mapping was given as a {type(text).__name__}. Write it as text, "
            "source:target,target with ';' between sources, e.g. '0:0;1:1,2'."
        )
    parts = text.split("|")
    if len(parts) == 1:
        parts *= len(targets)
    if len(parts) != len(targets):
        raise InvalidInputError(
            f"The mapping {text!r} has {len(parts)} stages, the networks have "
            f"{len(targets)}. Write one part for each, '|' between them."
        )
    return tuple(
        _stage(part, number, count, paths)
        for number, (part, count, paths) in enumerate(
            zip(parts, sources, targets, strict=True)
        )
    )


def write_mapping(mapped: Mapped) -> str:
    """Return a mapping as text.

    Args:
        mapped: For each stage and target block its source block.

    Returns:
        What :func:`read_mapping` reads.

    Example:
        >>> write_mapping(((0, 1, 1), (0, 1)))
        '0:0;1:1,2|0:0;1:1'
    """
    return "|".join(
        ";".join(
            f"{source}:"
            + ",".join(str(target) for target, s in enumerate(stage) if s == source)
            for source in dict.fromkeys(stage)
        )
        for stage in mapped
    )


def stretched(
    sources: Sequence[int],
    targets: Sequence[int],
    method: Method,
    *,
    keep_first: bool,
) -> Mapped:
    """Repeat blocks until the target's depth is reached.

    Args:
        sources: Number of blocks of each stage of the source.
        targets: Of the target, at least as many.
        method: ``"append"`` repeats the run of blocks, ``"interpolate"`` each block.
        keep_first: Whether the first block of a stage is not repeated.

    Returns:
        For each stage and target block its source block.

    Raises:
        InvalidInputError: If the method is unknown, or a stage has no block to repeat.

    Example:
        >>> stretched([3], [5], "append", keep_first=True)
        ((0, 1, 2, 1, 2),)
        >>> stretched([3], [5], "interpolate", keep_first=True)
        ((0, 1, 1, 2, 2),)
    """
    if method not in {"append", "interpolate"}:
        raise InvalidInputError(
            f"method is {method!r}. Pass 'append' or 'interpolate'."
        )
    found = []
    for number, (source, target) in enumerate(zip(sources, targets, strict=True)):
        first = 1 if keep_first else 0
        free, slots = source - first, target - first
        if slots and not free:
            raise InvalidInputError(
                f"Stage {number} of the source has only its first block, which is not "
                f"repeated as it may change the width; the target has {target}. "
                "Stretch from a deeper network, pass a mapping, or name the blocks of "
                "one stage of equal blocks with blocks= and source_blocks=."
            )
        repeated = (
            slot % free if method == "append" else slot * free // slots
            for slot in range(slots)
        )
        found.append((*range(first), *(first + block for block in repeated)))
    return tuple(found)


def squeezed(targets: Sequence[int]) -> Mapped:
    """Keep the earliest blocks.

    Args:
        targets: Number of blocks of each stage of the target.

    Returns:
        For each stage and target block its source block.
    """
    return tuple(tuple(range(count)) for count in targets)


def _stage(part: str, number: int, count: int, paths: Sequence[str]) -> tuple[int, ...]:
    written: dict[int, int] = {}
    for entry in filter(str.strip, part.split(";")):
        match = _ENTRY.fullmatch(entry)
        if match is None:
            raise InvalidInputError(
                f"Cannot read {entry.strip()!r} in stage {number} of the mapping. "
                "Write source:target,target with ';' between sources, e.g. "
                "'0:0;1:1,2'."
            )
        source = int(match[1])
        if source >= count:
            raise InvalidInputError(
                f"Stage {number} of the source has blocks 0 to {count - 1}, the "
                f"mapping reads block {source}."
            )
        for target in map(int, match[2].split(",")):
            if target >= len(paths):
                raise InvalidInputError(
                    f"Stage {number} of the target has blocks 0 to {len(paths) - 1}, "
                    f"the mapping writes block {target}."
                )
            if target in written:
                raise InvalidInputError(
                    f"Block {target} of stage {number} ({paths[target]}) is written "
                    f"twice, from {written[target]} and {source}. Write it once."
                )
            written[target] = source
    unwritten = [path for i, path in enumerate(paths) if i not in written]
    if unwritten:
        raise InvalidInputError(
            f"The mapping writes no source to {', '.join(unwritten)} (stage {number}). "
            "Every block of the target must be written."
        )
    return tuple(written[target] for target in range(len(paths)))
