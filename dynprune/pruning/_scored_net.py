"""A private copy of a network whose prunable weights are differentiated."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, isolated
from dynprune.pruning._from_scores import survivors
from dynprune.system import GradientSystem

Mode = Literal["eval", "train"]


@final
class ScoredNet:
    """Evaluate batch losses of a system as a function of its prunable weights.

    The system's l2 term is left out: scores measure what the data say.

    Args:
        system: The system; neither it nor the user's model is changed.
        mode: Whether batch norm and dropout are in eval or in train mode.
        temperature: The network's output is divided by it.

    Raises:
        InvalidInputError: If the mode is unknown, the temperature not positive, or
            there is no prunable weight.
    """

    def __init__(
        self, system: GradientSystem, *, mode: Mode = "eval", temperature: float = 1.0
    ) -> None:
        system.check_one_process("Scoring weights")
        if mode not in {"eval", "train"}:
            raise InvalidInputError(f"mode is {mode!r}. Pass 'eval' or 'train'.")
        if not 0.0 < temperature < float("inf"):
            raise InvalidInputError(
                f"temperature is {temperature}. Pass a positive finite number."
            )
        if not system.prunable:
            raise InvalidInputError(
                "The system has no prunable weight (no trainable Linear or Conv layer "
                "among its parameters). Pass a model that has one, or select others."
            )
        self._system = system
        self._net = copy.deepcopy(system.module).train(mode == "train")
        own: dict[str, Tensor] = dict(self._net.named_parameters())
        with torch.no_grad():
            for name, value in system.unflatten(system.state).items():
                own[name].copy_(value)
            for name, part in self._net.named_buffers():
                part.copy_(system.raw_buffers[name])
        for part in own.values():
            part.requires_grad_(False)
        self.names = system.prunable
        self.weights = [own[name].requires_grad_() for name in self.names]
        kept = survivors(system)
        self._kept = [kept[name].to(system.device) for name in self.names]
        self._start: list[Tensor] = []
        if temperature != 1.0:
            self._net.register_forward_hook(
                lambda _module, _inputs, output: _divided(output, temperature)
            )

    def start(self) -> list[Tensor]:
        """Return the weights as they were before any :meth:`restrict_`.

        Returns:
            One tensor for each of ``weights``; not to be changed.
        """
        return self._start or [part.detach() for part in self.weights]

    def restrict_(self, masks: Mapping[str, Tensor]) -> None:
        """Set the weights to those of the start, masked.

        Args:
            masks: Name to boolean tensor, for each of ``names``.
        """
        if not self._start:
            self._start = [part.detach().clone() for part in self.weights]
        with torch.no_grad():
            found = zip(self.names, self.weights, self._start, strict=True)
            for name, part, full in found:
                part.copy_(full * masks[name].to(full.device))

    def shares(self, *, seed: int) -> Iterator[tuple[float, Any]]:
        """Read the data once.

        Args:
            seed: What a random loader starts from.

        Yields:
            The batch's share of the total weight, and the batch.
        """
        for batch in self._system.batches(seed=seed):
            yield self._system.weight(batch) / self._system.examples, batch

    def loss(self, batch: Any) -> Tensor:
        """Return the mean loss of a batch.

        Args:
            batch: One of the data.

        Returns:
            A 0-d tensor, differentiable in ``weights``.
        """
        if self._system.batch_loss is not None:
            return self._system.batch_loss(self._net, batch).reshape(())
        assert self._system.loss_fn is not None
        return self._system.loss_fn(self._net(batch[0]), batch[1]).reshape(())

    def derivatives(self, value: Tensor, *, keep_graph: bool = False) -> list[Tensor]:
        """Differentiate by the prunable weights; those of the system's mask get zero.

        Args:
            value: A 0-d tensor.
            keep_graph: Make the derivatives differentiable.

        Returns:
            One tensor for each of ``weights``; zeros where nothing depends on it.
        """
        if not value.requires_grad:
            return [torch.zeros_like(part) for part in self.weights]
        parts = torch.autograd.grad(
            value,
            self.weights,
            create_graph=keep_graph,
            allow_unused=True,
            materialize_grads=True,
        )
        return [part * kept for part, kept in zip(parts, self._kept, strict=True)]

    def gradient(self, *, seed: int) -> list[Tensor]:
        """Return the mean gradient over the data.

        Args:
            seed: Of loaders and dropout.

        Returns:
            One tensor for each of ``weights``.
        """
        total = [torch.zeros_like(part) for part in self.weights]
        with isolated(seed), torch.enable_grad():
            for share, batch in self.shares(seed=seed):
                add_(total, self.derivatives(self.loss(batch)), share)
        return total


def add_(total: Sequence[Tensor], parts: Sequence[Tensor], share: float) -> None:
    """Add ``share`` times some tensors to others, in place.

    Args:
        total: What is added to.
        parts: What is added.
        share: Its factor.
    """
    for sum_of, part in zip(total, parts, strict=True):
        sum_of.add_(part.detach(), alpha=share)


def _divided(output: Any, temperature: float) -> Tensor:
    if not isinstance(output, Tensor):
        raise InvalidInputError(
            f"The network returns a {type(output).__name__}, which a temperature of "
            f"{temperature} cannot divide. Pass temperature=1, or wrap the network so "
            "that it returns a tensor."
        )
    return output / temperature
