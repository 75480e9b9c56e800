"""Private copies of R networks as one stack, their optimiser, and one step of all."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor
from torch.func import vmap

from dynprune.core import functional_call
from dynprune.system import GradientSystem, MeanLoss, OnCopies
from dynprune.training._captured import Captured
from dynprune.training._mover import Mover, OptimizerFactory, Schedule
from dynprune.training._stacked_chain import Losses, Values, chain_losses
from dynprune.training._stacked_optimizer import check_optimizer, on_stacks


@final
class StackedMover:
    r"""Move R networks of one architecture, one optimiser step of all at a time.

    Every parameter is one tensor of shape ``(R, …)``. The losses of the R networks are
    one batched forward pass; their sum has the gradients of the R losses as its
    slices, and an optimiser that acts on each entry by itself moves each slice as it
    would move that network alone. Masks and l2 act as in :class:`Mover`.

    Args:
        systems: Where the networks start from; checked to be of one architecture.
        optimizer: Makes the optimiser of one network's parameters.
        schedule: Makes the scheduler of that optimiser, or None.
        training: Whether the networks are in train mode.
        step: Optimiser steps that the schedule has behind it.
        own: Whether batches are ``(R, B, …)``, one for each network, or shared.
        noise: Whether dropout draws the same mask for all networks, or different ones.
        capture: Whether to replay losses and gradients as one CUDA graph.

    Raises:
        InvalidInputError: If the factories do not return what they should, or an
            optimiser that mixes the entries of its tensors, or capture is asked of a
            CPU, or inside ``torch.inference_mode()``.
    """

    def __init__(
        self,
        systems: Sequence[GradientSystem],
        optimizer: OptimizerFactory,
        *,
        schedule: Schedule | None,
        training: bool,
        step: int,
        own: bool,
        noise: Literal["same", "different"] = "different",
        capture: bool = False,
    ) -> None:
        first = systems[0]
        # one network alone: its optimiser's groups and schedule are those of all
        self._one = Mover(
            first, optimizer, schedule=schedule, training=training, step=step
        )
        check_optimizer(self._one.optimizer)
        self.net, self.own = self._one.net, own
        self._coordinates = [system.coordinates for system in systems]
        self._l2 = first.l2
        self._named = {
            name: part.requires_grad_()
            for name, part in _stacked(_states(systems)).items()
        }
        self.parameters = list(self._named.values())
        self._fixed = _stacked(_frozen(systems), only_different=True)
        self._buffers = _stacked(
            [system.buffers for system in systems], only_different=not training
        )
        self._pruned = _masks(systems, self._named)
        self._weights = [self._named[name] for name in self._pruned]
        self._masks = list(self._pruned.values())
        self.optimizer = on_stacks(
            self._one.optimizer,
            dict(zip(self._one.parameters, self.parameters, strict=True)),
        )
        self._values = self._named | self._fixed | self._buffers
        losses = chain_losses(
            self.net,
            first.loss_fn if first.batch_loss is None else None,
            runs=len(systems),
            own=own,
            stacked=tuple(self._values),
        ) or _vmapped(
            MeanLoss(self.net, first.loss_fn, first.batch_loss), own=own, noise=noise
        )
        self._losses = OnCopies(lambda batch: losses(self._values, batch))
        self._gradient = self._backward
        if capture:
            self._gradient = Captured(
                self._backward,
                parameters=self.parameters,
                buffers=lambda: [*self._buffers.values(), *self.net.buffers()],
                device=first.device,
            )

    def step(self, batch: Any) -> Tensor:
        """Make one optimiser step of every network.

        Args:
            batch: What to compute the gradients on.

        Returns:
            The losses before the step, shape ``(R,)``, without graph.
        """
        losses = self.gradient(batch)
        self.optimizer.step()
        if self._masks:
            with torch.no_grad():
                torch._foreach_mul_(self._weights, self._masks)
        self._one.advance_schedule(1)
        self._follow_schedule()
        return losses

    def gradient(self, batch: Any) -> Tensor:
        """Leave the gradients of a batch in the stacked parameters.

        Args:
            batch: What to compute them on.

        Returns:
            The losses, shape ``(R,)``, without graph.
        """
        values = self._gradient(batch)
        for name, mask in self._pruned.items():
            slope = self._named[name].grad
            if slope is not None:
                slope.mul_(mask)
        return values

    @torch.enable_grad()
    def _backward(self, batch: Any) -> Tensor:
        for parameter in self.parameters:
            parameter.grad = None
        losses = self._losses(batch)
        losses.sum().backward()
        values = losses.detach()
        return self._add_l2(values) if self._l2 else values

    def state(self, run: int) -> Tensor:
        """Return the coordinates of one network, a new vector.

        Args:
            run: Which network.

        Returns:
            Shape ``(P,)`` with P its own number of survivors.
        """
        return self._coordinates[run].flatten({
            name: part.detach()[run] for name, part in self._named.items()
        })

    def buffers(self, run: int) -> dict[str, Tensor]:
        """Return copies of the buffers of one network.

        Args:
            run: Which network.

        Returns:
            Name to tensor.
        """
        shared = {name: part.detach() for name, part in self.net.named_buffers()}
        own = {name: part.detach()[run] for name, part in self._buffers.items()}
        return {name: part.clone() for name, part in (shared | own).items()}

    def finite(self) -> Tensor:
        """Say of each network whether all its parameters are finite.

        Returns:
            Shape ``(R,)``.
        """
        found = [
            torch.isfinite(part.detach()).reshape(len(part), -1).all(1)
            for part in self.parameters
        ]
        return torch.stack(found).all(0)

    def _follow_schedule(self) -> None:
        groups = zip(
            self.optimizer.param_groups, self._one.optimizer.param_groups, strict=True
        )
        for mine, planned in groups:
            mine |= {key: part for key, part in planned.items() if key != "params"}

    @torch.no_grad()
    def _add_l2(self, values: Tensor) -> Tensor:
        squares = torch.zeros_like(values)
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.add_(parameter, alpha=self._l2)
            squares += parameter.reshape(len(parameter), -1).square().sum(1)
        return values + 0.5 * self._l2 * squares


def _vmapped(loss: MeanLoss, *, own: bool, noise: str) -> Losses:
    def one(values: Values, batch: Any) -> Tensor:
        placed = {f"net.{name}": part for name, part in values.items()}
        found: Tensor = functional_call(loss, placed, (batch,))
        return found

    return vmap(one, in_dims=(0, 0 if own else None), randomness=noise)


def _states(systems: Sequence[GradientSystem]) -> list[dict[str, Tensor]]:
    return [system.unflatten(system.state) for system in systems]


def _frozen(systems: Sequence[GradientSystem]) -> list[dict[str, Tensor]]:
    moved = set(systems[0].names)
    return [
        {
            name: part.detach()
            for name, part in system.module.named_parameters()
            if name not in moved
        }
        for system in systems
    ]


def _stacked(
    parts: Sequence[Mapping[str, Tensor]], *, only_different: bool = False
) -> dict[str, Tensor]:
    return {
        name: torch.stack([part[name] for part in parts])
        for name, tensor in parts[0].items()
        if not only_different
        or not all(torch.equal(part[name], tensor) for part in parts[1:])
    }


def _masks(
    systems: Sequence[GradientSystem], named: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    masks = [system.masks for system in systems]
    pruned = _pruned_names(masks)
    return {
        name: torch.stack([
            mask[name].to(stack)
            if name in mask
            else torch.ones_like(stack[run], requires_grad=False)
            for run, mask in enumerate(masks)
        ])
        for name, stack in named.items()
        if name in pruned
    }


def _pruned_names(masks: Iterable[Mapping[str, Tensor]]) -> set[str]:
    return {name for one in masks for name, mask in one.items() if not bool(mask.all())}
