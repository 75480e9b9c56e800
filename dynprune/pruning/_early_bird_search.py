"""The search for an early-bird ticket: training that looks at its own masks."""

import copy
import itertools
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dynprune.core import (
    ConvergenceError,
    Cost,
    InvalidInputError,
    track,
)
from dynprune.pruning._early_bird_results import distances
from dynprune.pruning._from_scores import full_state
from dynprune.pruning._mask_training import order_of, own_generators
from dynprune.pruning._scales import scales
from dynprune.system import GradientSystem, is_resident
from dynprune.training import AbstractOrder, Mover, Recipe, check_lone


@final
class Search:
    """Train a copy of a system and look at masks until they have stopped moving.

    Args:
        system: The system; neither it nor the user's model is changed.
        train: The recipe; its steps are the budget.
        look: Makes masks of a state.
        penalty: λ, on the scales of batch norms.
        window: Number of masks that are compared.
        tolerance: Largest share of the entries that may differ.
        seed: Of the data order, of loaders and of dropout.
        progress: Draw a bar.
    """

    def __init__(
        self,
        system: GradientSystem,
        train: Recipe,
        look: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
        *,
        penalty: float,
        window: int,
        tolerance: float,
        seed: int,
        progress: bool,
    ) -> None:
        self._look, self._window, self._tolerance = look, window, tolerance
        self._past: deque[Tensor] = deque(maxlen=window - 1)
        self.steps: list[int] = []
        self.distances: list[Tensor] = []
        self.masks: dict[str, Tensor] = {}
        self.drawn = False
        data = system.data if train.data is None else train.data
        with own_generators(data, seed=seed):
            source = system if train.data is None else system.with_data(train.data)
            size = train.batch_size if is_resident(data) else None
            order = order_of(source, size, seed=seed)
            check_lone(
                system,
                source.data,
                order.batch_size,
                training=train.mode == "train",
                start=0,
                stop=train.steps,
            )
            mover = Mover(
                with_penalty(system, penalty),
                train.optimizer,
                schedule=train.schedule,
                training=train.mode == "train",
                step=0,
                capture=train.capture,
            )
            self.settings = mover.describe() | {
                "steps": train.steps,
                "mode": train.mode,
                "batch_size": order.batch_size,
            }
            if train.capture:
                self.settings["capture"] = True
            self._system, self._mover = system, mover
            self._run(order, train.steps, system.examples, progress=progress)
            self.end = self._state(), mover.buffers()

    def _run(
        self, order: AbstractOrder, stop: int, examples: float, *, progress: bool
    ) -> None:
        step, seen = 0, 0.0
        for number in track(
            itertools.count(), label="pruning.early_bird", show=progress
        ):
            self._see(step)
            self.cost = Cost(gradients=seen / examples, steps=step)
            if self.drawn or step == stop:
                return
            first = step
            with closing(order.epoch(number)) as batches:
                for batch in batches:
                    if step == stop:  # the epoch is not over: no mask to look at
                        self.cost = Cost(gradients=seen / examples, steps=step)
                        return
                    asked = self._mover.evaluations
                    self._mover.step(batch)
                    seen += order.weight(batch) * (self._mover.evaluations - asked)
                    step += 1
            if step == first:
                raise InvalidInputError(
                    f"Epoch {number} of the training data holds no batch. Pass a "
                    "loader that yields some in every pass."
                )

    def _state(self) -> dict[str, Tensor]:
        return full_state(self._system, self._mover.state())

    def _see(self, step: int) -> None:
        state = self._state()
        if not all(bool(torch.isfinite(part).all()) for part in state.values()):
            raise ConvergenceError(
                f"The state is not finite after step {step}. Lower the learning rate "
                "of the recipe."
            )
        self.masks = self._look(state)
        flat = torch.cat([mask.reshape(-1) for mask in self.masks.values()])
        found = distances(flat, list(self._past), self._window)
        self._past.appendleft(flat)
        self.steps.append(step)
        self.distances.append(found)
        # a comparison with NaN is false: there must be enough masks
        near = bool((found <= self._tolerance).all())
        self.drawn = near and bool(flat.any())


def with_penalty(system: GradientSystem, penalty: float) -> GradientSystem:
    r"""Return the same system with :math:`\lambda \sum |\gamma|` in its loss.

    Args:
        system: The system.
        penalty: λ, on the scales of batch norms.

    Returns:
        A system of its own model; the same one for λ = 0.
    """
    if not penalty:
        return system
    net = system.set_mode_(copy.deepcopy(system.module), training=True)
    values = system.unflatten(system.state)
    own: dict[str, Tensor] = dict(net.named_parameters())
    with torch.no_grad():
        for name, weight in own.items():
            weight.requires_grad_(name in values)
        for name, value in values.items():
            own[name].copy_(value)
        for name, part in net.named_buffers():
            part.copy_(system.raw_buffers[name])
    modules = tuple(scales(system).values())
    loss_fn, batch_loss = system.loss_fn, system.batch_loss

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if batch_loss is not None:
            value = batch_loss(model, batch).reshape(())
        else:
            assert loss_fn is not None
            value = loss_fn(model(batch[0]), batch[1]).reshape(())
        norms = (model.get_submodule(name) for name in modules)
        sizes = [n.weight.abs().sum() for n in norms if isinstance(n, _BatchNorm)]
        return value + penalty * torch.stack(sizes).sum()

    return GradientSystem(
        net,
        None,
        system.data,
        batch_loss=loss,
        batch_weight=system.batch_weight,
        l2=system.l2,
    )
