"""Gradients of single examples, weighted so that their mean square is the Fisher."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from dynprune.core import (
    InvalidInputError,
    derive_seed,
    flatten_batch,
    generator,
    isolated,
)
from dynprune.pruning._scored_net import ScoredNet
from dynprune.system import GradientSystem, is_resident, length, read


def drawn(system: GradientSystem, samples: int | None, *, seed: int) -> list[Any]:
    """Return single examples of the data, each as a batch of one.

    Args:
        system: Whose data are read.
        samples: How many; all if None, or if there are no more. Of resident data
            they are drawn without replacement, of a loader they are the first.
        seed: Of the draw, and of a random loader.

    Returns:
        The batches.

    Raises:
        InvalidInputError: If a batch cannot be cut into examples.
    """  # noqa: DOC502 - raised by _rows
    batches = system.batches(seed=seed)
    if (
        samples is not None
        and is_resident(system.data)
        and samples < length(system.data)
    ):
        draw = generator(derive_seed("pruning.examples", seed))
        chosen = torch.randperm(length(system.data), generator=draw)[:samples]
        x, y = system.data
        chosen = chosen.sort().values
        # not with_data(), whose checks would be forward passes
        batches = read(
            (x[chosen.to(x.device)], y[chosen.to(y.device)]),
            dtype=system.dtype,
            device=system.device,
            microbatch=system.microbatch,
        )
    found: list[Any] = []
    for batch in batches:
        for one in _rows(batch):
            if samples is not None and len(found) == samples:
                return found
            found.append(one)
    return found


def example_gradients(
    system: GradientSystem, examples: list[Any], *, seed: int
) -> Iterator[list[Tensor]]:
    r"""Iterate over :math:`\sqrt{n w_i / \sum_j w_j} \; \nabla \ell_i`.

    Args:
        system: The system, evaluated in eval mode; its l2 term is left out.
        examples: Batches of one example.
        seed: Of whatever is random in a forward pass.

    Yields:
        One float64 tensor for each of ``system.prunable``; zero where pruned.
    """
    net = ScoredNet(system, mode="eval", unseen="ignore")
    weights = [system.weight(one) for one in examples]
    mean = sum(weights) / len(weights)
    for weight, one in zip(weights, examples, strict=True):
        with isolated(seed), torch.enable_grad():
            parts = net.derivatives(net.loss(one))
        factor = (weight / mean) ** 0.5
        yield [part.detach().double().mul_(factor) for part in parts]


def _rows(batch: Any) -> Iterator[Any]:
    leaves, rebuild = flatten_batch(batch)
    count = length(batch)
    shapes = [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor)]
    if any(not shape or shape[0] != count for shape in shapes):
        raise InvalidInputError(
            f"The gradients of single examples were asked, and tensors of shapes "
            f"{shapes} cannot be cut into {count} examples. Give each tensor of a "
            "batch one row per example."
        )
    for index in range(count):
        yield rebuild([
            leaf[index : index + 1] if isinstance(leaf, Tensor) else leaf
            for leaf in leaves
        ])
