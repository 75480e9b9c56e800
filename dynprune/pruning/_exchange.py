"""Sparse training in which every layer exchanges some weights for others."""

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from dynprune.core import InvalidInputError
from dynprune.pruning._collapse import CollapseInTraining
from dynprune.pruning._drop_and_grow import drop_and_grow
from dynprune.pruning._layer_counts import LayerDensities, layer_counts, random_masks
from dynprune.pruning._numbers import as_count, as_density, as_number
from dynprune.pruning._sparse_training import (
    Masks,
    SparseTraining,
    check_dense,
    trained_with,
)
from dynprune.system import GradientSystem
from dynprune.training import Mover, Recipe

Wanted = Callable[[Mover, int, Any], tuple[Tensor | None, dict[str, Tensor]]]


def exchange(
    system: GradientSystem,
    train: Recipe,
    wanted: Wanted,
    *,
    made_by: str,
    sources: tuple[str, ...],
    density: float,
    layers: LayerDensities,
    update_every: int,
    drop: float,
    stop_step: int | None,
    record_every: int | None,
    collapse: CollapseInTraining,
    seed: int,
) -> SparseTraining:
    """Train with random masks, whose smallest weights give way to wanted ones.

    Args:
        system: The dense system.
        train: How it is trained.
        wanted: Makes, of the mover, the step and its batch, the loss, if computing the
            scores took the step's gradient, and name to scores of growth; larger =
            grown first.
        made_by: The public function.
        sources: Keys of the citations.
        density: Kept / prunable weights throughout.
        layers: Densities of the layers.
        update_every: Steps between updates.
        drop: Share of the kept weights that the first update may move.
        stop_step: No update from here on; three quarters of training by default.
        record_every: Steps between snapshots, or None.
        collapse: What to do about one, of the last masks.
        seed: Of the first masks, data order and dropout.

    Returns:
        What training ended with.
    """
    check_dense(system, train, collapse)
    density = as_density(density)
    update_every = as_count("update_every", update_every)
    end, steps = _exchange_steps(
        train.steps, every=update_every, stop=stop_step, drop=drop
    )
    counts = layer_counts(system, density=density, layers=layers)
    masks = Masks(random_masks(system, counts, seed=seed))

    def move(mover: Mover, step: int, batch: Any) -> Tensor:
        masks.start(mover)
        if step not in steps:
            return mover.step(batch)
        loss, scores = wanted(mover, step, batch)
        share, held = _cosine_share(step, drop=drop, stop=end), mover.weights()
        found = {
            name: drop_and_grow(
                held[name].to(scores[name].device),
                mask.to(scores[name].device),
                scores[name],
                count=int(share * counts[name]),
            ).cpu()
            for name, mask in masks.now.items()
        }
        masks.change(mover, step, found)
        if loss is None:
            return mover.step(batch)
        mover.advance_schedule(1)
        return loss

    return trained_with(
        system,
        train,
        masks,
        move,
        made_by=made_by,
        settings={
            "density": density,
            "layers": layers,
            "update_every": update_every,
            "drop": drop,
            "stop_step": end,
        },
        sources=sources,
        seed=seed,
        record_every=record_every,
        collapse=collapse,
        advice="Pass a higher density, or other densities of the layers (layers=)",
    )


def _cosine_share(step: int, *, drop: float, stop: int) -> float:
    # of kept weights, that an update moves: α/2 (1 + cos πt/T)
    return 0.5 * drop * (1.0 + math.cos(math.pi * step / stop))


def _exchange_steps(
    total: int, *, every: int, stop: int | None, drop: float
) -> tuple[int, frozenset[int]]:
    # where updates end, three quarters of training by default, and the steps before
    # which there is one
    if not 0.0 < as_number(drop) < 1.0:
        raise InvalidInputError(f"drop is {drop!r}. Pass a number in (0, 1).")
    end = 3 * total // 4 if stop is None else as_count("stop_step", stop, least=0)
    if end > total:
        raise InvalidInputError(
            f"stop_step is {end}, beyond training of {total} steps. Pass {total} or "
            "less."
        )
    steps = frozenset(range(every, end, every))
    if not steps:
        raise InvalidInputError(
            f"An update every {every} steps below step {end} leaves none (of {total}; "
            "three quarters are the default). Pass a smaller update_every, a later "
            "stop_step, or train longer."
        )
    return end, steps
