"""A private copy of the model, its optimiser, and one step of both."""

import copy
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from dynprune.core import InvalidInputError, plain_numbers, refuse_inference_mode
from dynprune.system import GradientSystem, OnCopies
from dynprune.training._captured import Captured

OptimizerFactory = Callable[[list[Tensor]], Optimizer]
Schedule = Callable[[Optimizer], LRScheduler]


@final
class Mover:
    r"""Move a private copy of a system's model, one optimiser step at a time.

    The loss of a batch is its mean loss plus the system's
    :math:`\tfrac{1}{2} \ell_2 |\theta|^2`. Gradients are multiplied by the masks
    before the optimiser's step and weights after it, so that momentum, weight decay
    and line searches leave pruned weights exactly zero.

    Args:
        system: Where to start from; it and its model are not changed.
        optimizer: Makes the optimiser of the copy's parameters.
        schedule: Makes the scheduler of the optimiser, or None.
        training: Whether the copy is in train mode, but for what the system says is
            ``kept_in_eval``.
        step: Optimiser steps that the schedule has behind it.
        capture: Whether to replay loss and gradient as one CUDA graph.

    Raises:
        InvalidInputError: If the factories do not return what they should, or capture
            is asked of a CPU, or inside ``torch.inference_mode()``.
    """

    def __init__(
        self,
        system: GradientSystem,
        optimizer: OptimizerFactory,
        *,
        schedule: Schedule | None,
        training: bool,
        step: int,
        capture: bool = False,
    ) -> None:
        refuse_inference_mode("Training")
        self.coordinates = system.coordinates
        self.device = system.device
        self._l2 = system.l2
        self.net = system.set_mode_(copy.deepcopy(system.module), training=training)
        for name in system.sparse:  # SparseAdam takes no other gradients
            table: Any = self.net.get_submodule(name)
            table.sparse = True
        self._kept_in_eval = list(system.kept_in_eval) if training else []
        own: dict[str, Tensor] = dict(self.net.named_parameters())
        for parameter in own.values():
            parameter.requires_grad_(False)
        self._named = {name: own[name] for name in system.names}
        self.parameters = list(self._named.values())
        for parameter in self.parameters:
            parameter.requires_grad_()
        self.load(system.state, system.buffers)
        self._mean = OnCopies(_mean_loss(self.net, system))
        self._gradient = self._backward
        if capture:
            self._gradient = Captured(
                self._backward,
                parameters=self.parameters,
                buffers=lambda: list(self.net.buffers()),
                device=self.device,
            )
        self._pruned = [
            (self._named[name], _like(self._named[name], mask))
            for name, mask in system.masks.items()
            if not bool(mask.all())
        ]
        self._weights = [weight for weight, _ in self._pruned]
        self._masks = [mask for _, mask in self._pruned]
        self.evaluations = 0
        self.optimizer = _made(optimizer, self.parameters)
        self._hyperparameters = _plain_groups(self.optimizer)
        self._scheduler = _scheduled(schedule, self.optimizer)
        self._schedule = _describe(self._scheduler)
        self._needs_closure = _needs_closure(self.optimizer)
        self.advance_schedule(step)

    def step(self, batch: Any) -> Tensor:
        """Make one optimiser step.

        Args:
            batch: What to compute the gradient on.

        Returns:
            The loss before the step, a 0-d tensor without graph.
        """
        if self._needs_closure:
            loss = self._closure_step(batch)
        else:
            loss = self.gradient(batch)
            self.optimizer.step()
        if self._masks:
            with torch.no_grad():
                torch._foreach_mul_(self._weights, self._masks)
        if self._scheduler is not None:
            self._scheduler.step()
        return loss

    @property
    def takes_closure(self) -> bool:
        """Whether the optimiser evaluates the loss itself, as L-BFGS does."""
        return self._needs_closure

    def weights(self) -> dict[str, Tensor]:
        """Return the selected parameters by name, without copying them."""
        return {name: part.detach() for name, part in self._named.items()}

    def dense_gradient(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Return loss and gradient of a batch, pruned weights included; no step.

        Args:
            batch: What to compute the gradient on.

        Returns:
            The loss, a 0-d tensor without graph, and name to gradient.
        """
        pruned, self._pruned = self._pruned, []
        try:
            loss = self.gradient(batch)
        finally:
            self._pruned = pruned
        found = {
            name: torch.zeros_like(part) if part.grad is None else _dense(part.grad)
            for name, part in self._named.items()
        }
        for part in self.parameters:
            part.grad = None
        return loss, found

    def set_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Change which weights are pruned, from the next step on.

        Weights that are or become pruned are zero; those that come back start at
        zero. Momentum, and whatever else the optimiser keeps in the shape of a weight,
        is zero but for weights that stay.

        Args:
            masks: Name to boolean tensor, True = kept; the other masks stay.
        """
        before = {id(weight): mask for weight, mask in self._pruned}
        after = dict(before)
        with torch.no_grad():
            for name, mask in masks.items():
                weight = self._named[name]
                kept = mask.to(weight.device)
                weight.masked_fill_(~kept, 0.0)
                steady = kept
                if id(weight) in before:
                    steady = kept & before[id(weight)].bool()
                kept_by = self.optimizer.state.get(weight, {})
                for key, value in kept_by.items():
                    if isinstance(value, Tensor) and value.shape == weight.shape:
                        if value.layout != torch.strided:  # of sparse gradients
                            value = kept_by[key] = value.to_dense()
                        value.masked_fill_(~steady, 0)
                after[id(weight)] = _like(weight, kept)
        self._pruned = [
            (part, after[id(part)])
            for part in self.parameters
            if id(part) in after and not bool(after[id(part)].all())
        ]
        self._weights = [weight for weight, _ in self._pruned]
        self._masks = [mask for _, mask in self._pruned]

    def describe(self) -> dict[str, Any]:
        """Return plain values of how it moves, before the first step."""
        made = {
            "optimizer": type(self.optimizer).__name__,
            "hyperparameters": self._hyperparameters,
            "schedule": self._schedule,
            "l2": self._l2,
        }
        kept = self._kept_in_eval
        return made | ({"kept_in_eval": kept} if kept else {})

    def state(self) -> Tensor:
        """Return the coordinates now, a new vector of shape ``(P,)``."""
        return self.coordinates.flatten({
            name: parameter.detach() for name, parameter in self._named.items()
        })

    def buffers(self) -> dict[str, Tensor]:
        """Return copies of the buffers now."""
        return {name: part.detach().clone() for name, part in self.net.named_buffers()}

    def load(self, state: Tensor, buffers: dict[str, Tensor]) -> None:
        """Place coordinates and buffers in the copy.

        Args:
            state: Shape ``(P,)``.
            buffers: Name to tensor.
        """
        with torch.no_grad():
            for name, value in self.coordinates.unflatten(state).items():
                self._named[name].copy_(value)
            for name, part in self.net.named_buffers():
                part.copy_(buffers[name])

    def gradient(self, batch: Any) -> Tensor:
        """Leave the gradient of a batch in the parameters.

        Args:
            batch: What to compute it on.

        Returns:
            The loss, a 0-d tensor without graph.
        """
        value = self._gradient(batch)
        self.evaluations += 1
        for weight, mask in self._pruned:
            if weight.grad is not None:
                weight.grad.mul_(mask)
        return value

    @torch.enable_grad()
    def _backward(self, batch: Any) -> Tensor:
        for parameter in self.parameters:
            parameter.grad = None
        loss = self._mean(batch)
        loss.backward()
        value = loss.detach()
        return self._add_l2(value) if self._l2 else value

    def _closure_step(self, batch: Any) -> Tensor:
        seen: list[Tensor] = []

        def closure() -> Tensor:
            seen.append(self.gradient(batch))
            return seen[-1]

        self.optimizer.step(closure)  # type: ignore[arg-type]
        return seen[0]

    @torch.no_grad()
    def _add_l2(self, value: Tensor) -> Tensor:
        for parameter in self.parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        found = (parameter.grad for parameter in self.parameters)
        gradients = [part for part in found if part is not None]
        torch._foreach_add_(gradients, self.parameters, alpha=self._l2)
        norms = torch.stack(torch._foreach_norm(self.parameters))
        return value + 0.5 * self._l2 * norms.dot(norms)

    def advance_schedule(self, steps: int) -> None:
        """Step the schedule without the optimiser.

        Args:
            steps: How often.
        """
        if self._scheduler is None:
            return
        with warnings.catch_warnings():
            # "lr_scheduler.step() before optimizer.step()": those steps lie behind us
            warnings.simplefilter("ignore", UserWarning)
            for _ in range(steps):
                self._scheduler.step()


def _like(weight: Tensor, mask: Tensor) -> Tensor:
    # in the weight's memory format, too: a fused product of all masks needs that
    return torch.empty_like(weight, requires_grad=False).copy_(mask)


def _dense(gradient: Tensor) -> Tensor:
    return gradient.clone() if gradient.layout == torch.strided else gradient.to_dense()


def _mean_loss(net: nn.Module, system: GradientSystem) -> Callable[[Any], Tensor]:
    batch_loss, loss_fn = system.batch_loss, system.loss_fn
    if batch_loss is not None:
        return lambda batch: batch_loss(net, batch).reshape(())
    assert loss_fn is not None
    return lambda batch: loss_fn(net(batch[0]), batch[1]).reshape(())


def _made(factory: OptimizerFactory, parameters: list[Tensor]) -> Optimizer:
    made = factory(parameters) if callable(factory) else factory
    if not isinstance(made, Optimizer) or not callable(factory):
        raise InvalidInputError(
            f"The optimizer is (or makes) a {type(made).__name__}. Pass a function of "
            "the parameters that returns a torch optimiser, for instance "
            "lambda params: torch.optim.SGD(params, lr=0.1)."
        )
    return made


def _scheduled(factory: Schedule | None, optimizer: Optimizer) -> LRScheduler | None:
    if factory is None:
        return None
    made = factory(optimizer) if callable(factory) else factory
    if not isinstance(made, LRScheduler) or isinstance(made, ReduceLROnPlateau):
        raise InvalidInputError(
            f"The schedule makes a {type(made).__name__}. Pass a function of the "
            "optimiser that returns a scheduler of the step count, for instance "
            "lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 100)."
        )
    return made


def _needs_closure(optimizer: Optimizer) -> bool:
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _plain_groups(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [
        {
            key: len(value) if key == "params" else plain(value)
            for key, value in group.items()
        }
        for group in optimizer.param_groups
    ]


def _describe(scheduler: LRScheduler | None) -> Any:
    if scheduler is None:
        return None
    return [type(scheduler).__name__, plain(scheduler.state_dict())]


def plain(value: Any) -> Any:
    """Return JSON-serialisable values for a nest of hyperparameters.

    Args:
        value: Any nest; a function becomes its name, an object its type's.

    Returns:
        Numbers, strings, lists and dictionaries of them.
    """
    value = plain_numbers(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, dict):
        return {
            str(key): plain(part)
            for key, part in sorted(value.items(), key=lambda item: str(item[0]))
        }
    if isinstance(value, list | tuple | set):
        return [plain(part) for part in value]
    return getattr(value, "__qualname__", type(value).__qualname__)
