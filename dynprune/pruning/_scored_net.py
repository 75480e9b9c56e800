"""A private copy of a network whose prunable weights are differentiated."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dynprune.core import InvalidInputError, isolated
from dynprune.pruning._from_scores import survivors
from dynprune.pruning._numbers import as_number
from dynprune.pruning._private_copy import private_copy
from dynprune.pruning._prunable import check_prunable, check_start
from dynprune.pruning._warn import warn
from dynprune.system import GradientSystem, MeanLoss, OnCopies

Mode = Literal["eval", "train"]


@final
class ScoredNet:
    """Evaluate batch losses of a system as a function of its prunable weights.

    The system's l2 term is left out: scores measure what the data say.

    Args:
        system: The system; neither it nor the user's model is changed.
        mode: Whether batch norm and dropout are in eval or in train mode.
        temperature: The network's output is divided by it.
        unseen: Whether to warn of batch norms that have seen no batch, in eval mode.

    Raises:
        InvalidInputError: If the mode is unknown, the temperature not positive, or
            there is no prunable weight.

    Warns:
        NumericalWarning: If a batch norm has seen no batch, in eval mode.
    """

    def __init__(
        self,
        system: GradientSystem,
        *,
        mode: Mode = "eval",
        temperature: float = 1.0,
        unseen: Literal["warn", "ignore"] = "warn",
    ) -> None:
        check_start(system)
        system.check_one_process("Scoring weights")
        if mode not in {"eval", "train"}:
            raise InvalidInputError(f"mode is {mode!r}. Pass 'eval' or 'train'.")
        if not 0.0 < as_number(temperature) < float("inf"):
            raise InvalidInputError(
                f"temperature is {temperature!r}. Pass a positive finite number."
            )
        check_prunable(system.prunable)
        self._system = system
        net = system.set_mode_(private_copy(system), training=mode == "train")
        if mode == "eval" and unseen == "warn":
            _check_norms(net)
        own: dict[str, Tensor] = dict(net.named_parameters())
        for part in own.values():
            part.requires_grad_(False)
        self.names = system.prunable
        self.weights = [own[name].requires_grad_() for name in self.names]
        kept = survivors(system)
        self._kept = [kept[name].to(system.device) for name in self.names]
        self._start: list[Tensor] = []
        self._temperature, self._calls = temperature, 0
        if temperature != 1.0:
            net.register_forward_hook(self._divide)
        self._mean = OnCopies(MeanLoss(net, system.loss_fn, system.batch_loss))

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

        Raises:
            InvalidInputError: If a temperature had no outputs to divide.
        """
        before = self._calls
        value: Tensor = self._mean(batch)
        if self._temperature != 1.0 and self._calls == before:
            raise InvalidInputError(
                f"A temperature of {self._temperature} divides what the network "
                "returns, and batch_loss never calls it (only modules inside it). "
                "Pass temperature=1, or a batch_loss that calls model(...)."
            )
        return value

    def _divide(self, _module: nn.Module, _inputs: Any, output: Any) -> Tensor:
        self._calls += 1
        if not isinstance(output, Tensor):
            raise InvalidInputError(
                f"The network returns a {type(output).__name__}, which a temperature "
                f"of {self._temperature} cannot divide. Pass temperature=1, or wrap "
                "the network so that it returns a tensor."
            )
        if output.ndim == 0:
            raise InvalidInputError(
                "The network returns one number, its loss, of which a temperature of "
                f"{self._temperature} would change the scale only. Pass temperature=1, "
                "or let it return its outputs and pass their loss."
            )
        return output / self._temperature

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
            One tensor for each of ``weights``, in float32 or wider.
        """
        total = zeros(self.weights)
        with isolated(seed), torch.enable_grad():
            for share, batch in self.shares(seed=seed):
                add_(total, self.derivatives(self.loss(batch)), share)
        return total


def _check_norms(net: nn.Module) -> None:
    fresh = [
        name
        for name, part in net.named_modules()
        if isinstance(part, _BatchNorm) and _has_seen_nothing(part)
    ]
    if fresh:
        more = f" and {len(fresh) - 3} more" if len(fresh) > 3 else ""
        warn(
            "Weights are scored in eval mode, and the batch norm of "
            f"{', '.join(map(repr, fresh[:3]))}{more} has seen no batch: with means 0 "
            "and variances 1 it normalises nothing, and the network is not the one of "
            "training. Pass mode='train', or train a step first."
        )


def _has_seen_nothing(norm: _BatchNorm) -> bool:
    mean, var, seen = norm.running_mean, norm.running_var, norm.num_batches_tracked
    if mean is None or var is None or (seen is not None and bool(seen)):
        return False
    return not bool(mean.any()) and bool((var == 1.0).all())


def zeros(like: Sequence[Tensor]) -> list[Tensor]:
    """Return zeros to sum in: half precision would lose what batches add.

    Args:
        like: Tensors of the shapes and devices.

    Returns:
        As many, in their dtypes or float32, whichever is wider.
    """
    return [
        torch.zeros_like(part, dtype=torch.promote_types(part.dtype, torch.float32))
        for part in like
    ]


def add_(total: Sequence[Tensor], parts: Sequence[Tensor], share: float) -> None:
    """Add ``share`` times some tensors to others, in place.

    Args:
        total: What is added to.
        parts: What is added.
        share: Its factor.
    """
    for sum_of, part in zip(total, parts, strict=True):
        sum_of.add_(part.detach(), alpha=share)
