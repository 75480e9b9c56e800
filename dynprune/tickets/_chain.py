"""Paths through a chain of layers, read from the shapes of its masks alone."""

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from dynprune.core import InvalidInputError


def chain_effective(masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    r"""Say which kept weights of a chain of layers lie on a path from end to end.

    Unit o of a layer is reached if a kept weight joins it to a reached unit of the
    layer before, and needed if one joins it to a needed unit of the layer after; a
    weight from i to o is effective iff i is reached and o needed. The layers follow
    each other in the order of the masks; where an input is k times as wide as the
    output before it, each channel is k flattened positions.

    Args:
        masks: Name to boolean tensor, shape ``(out, in, …)``.

    Returns:
        Name to boolean tensor.

    Raises:
        InvalidInputError: If the shapes are no chain.
    """  # noqa: DOC502 - raised by _check
    _check(masks)
    units = [
        mask.flatten(2).any(2) if mask.ndim > 2 else mask for mask in masks.values()
    ]
    reached = [torch.ones(units[0].shape[1], dtype=torch.bool)]
    for layer, after in zip(units, [*units[1:], None], strict=True):
        out = (layer & reached[-1]).any(1)
        wide = 1 if after is None else after.shape[1] // len(out)
        reached.append(out.repeat_interleave(wide))
    needed = torch.ones(units[-1].shape[0], dtype=torch.bool)
    found: list[Tensor] = []
    for index in reversed(range(len(units))):
        found.append(reached[index] & needed[:, None])
        inputs = (units[index] & needed[:, None]).any(0)
        if index:
            needed = inputs.view(units[index - 1].shape[0], -1).any(1)
    alive = zip(masks.items(), reversed(found), strict=True)
    return {
        name: mask & part.view(*part.shape, *(1 for _ in mask.shape[2:]))
        for (name, mask), part in alive
    }


def _check(masks: Mapping[str, Tensor]) -> None:
    shapes = {name: tuple(mask.shape) for name, mask in masks.items()}
    flat = [name for name, shape in shapes.items() if len(shape) < 2]
    if flat:
        raise InvalidInputError(
            f"{flat[0]} has shape {shapes[flat[0]]}, no layer of a chain. Pass the "
            "model instead."
        )
    names = list(shapes)
    for before, after in itertools.pairwise(names):
        out, wide = shapes[before][0], shapes[after][1]
        convolved = len(shapes[after]) > 2
        if not out or wide % out or (convolved and wide != out):
            raise InvalidInputError(
                f"A chain was asked for, but {before} has {out} outputs and {after} "
                f"{wide} inputs. Pass the model instead, whose forward pass says how "
                "its layers are joined."
            )
