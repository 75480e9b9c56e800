"""The loss of each example of a batch, as a function of the parameters."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, final

import torch
from torch import Tensor

from dynprune.core import (
    InvalidInputError,
    NumericalWarning,
    flatten_batch,
    isolated,
    map_leaves,
    tensors_of,
)
from dynprune.operators._plan import head
from dynprune.system import (
    GradientSystem,
    length,
)

Way = Literal["outputs", "network", "loop"]


@final
class ExampleLosses:
    r"""Evaluate :math:`\ell_i(\theta)`, the loss of the batch of example i alone.

    By one forward pass of the batch and a vmap of the loss over its outputs
    (``"outputs"``); where outputs are not one per example, or there is only a
    ``batch_loss``, by a vmap over the whole network (``"network"``); and where torch
    has no rule for that, one after the other (``"loop"``), with a warning. The first
    two are compared with the third, values and gradients, on two examples.

    Args:
        system: The system, at a state of its own.
    """

    def __init__(self, system: GradientSystem) -> None:
        self._system = system
        self._way: Way | None = None

    @property
    def way(self) -> Way:
        """How they are evaluated; decided at the first call."""
        if self._way is None:
            self._way = self._decide()
        return self._way

    def __call__(self, named: dict[str, Tensor], batch: Any) -> Tensor:
        """Return the losses.

        Args:
            named: Parameter name to tensor.
            batch: One batch of n examples.

        Returns:
            Shape ``(n,)``, differentiable in the parameters.
        """
        return self._evaluate(named, batch, self.way)

    def weights(self, batch: Any) -> Tensor:
        """Return the weight of each example: 1, or that of the batch of it alone.

        Args:
            batch: One batch of n examples.

        Returns:
            Shape ``(n,)``, of the system's dtype and device.
        """
        system, count = self._system, examples(batch)
        if system.batch_weight is None:
            return torch.ones(count, dtype=system.dtype, device=system.device)
        weights = [system.weight(example(batch, index)) for index in range(count)]
        return torch.tensor(weights, dtype=system.dtype, device=system.device)

    def check(self, batch: Any, losses: Tensor) -> None:
        """Refuse weights that do not make the batch's loss a mean over examples.

        Args:
            batch: One batch of n examples.
            losses: Of the examples, shape ``(n,)``.

        Raises:
            InvalidInputError: If the examples' weights do not add up to the batch's
                weight, or the weighted losses not to its loss.

        Cost:
            A forward pass.
        """
        system, weights = self._system, self.weights(batch)
        parts = weights * losses.detach().to(weights)
        with torch.no_grad(), isolated(0):
            named = system.unflatten(system.state)
            mean = float(system.batch_mean(named, system.raw_buffers, batch))
        whole, added = system.weight(batch), float(weights.sum())
        rtol = max(torch.finfo(system.dtype).eps ** 0.5, 1e-6)
        off = abs(float(parts.sum()) - whole * mean)
        if abs(added - whole) > rtol * abs(whole) or off > rtol * float(
            parts.abs().sum()
        ):
            raise InvalidInputError(
                f"A batch of {len(losses)} examples has weight {whole:.6g} and mean "
                f"loss {mean:.6g}; its examples alone have weights of sum {added:.6g} "
                f"and losses of weighted mean {float(parts.sum()) / added:.6g}. So the "
                "loss is no mean over examples. Pass a batch_weight that adds over "
                "examples (their number, tokens or class weights) and the loss that "
                "goes with it."
            )

    def _evaluate(self, named: dict[str, Tensor], batch: Any, way: Way) -> Tensor:
        system, buffers = self._system, self._system.raw_buffers
        if way == "outputs":
            assert system.loss_fn is not None
            outputs = system.forward(named, buffers, batch[0])
            examples((outputs, batch[1]))
            loss_fn = system.loss_fn
            return _over_examples(
                lambda pair: loss_fn(pair[0], pair[1]), (outputs, batch[1])
            )
        if way == "network":
            return _over_examples(
                lambda one: system.batch_mean(named, buffers, one), batch
            )
        return torch.stack([
            system.batch_mean(named, buffers, example(batch, index))
            for index in range(examples(batch))
        ])

    def _decide(self) -> Way:
        system = self._system
        batch = head(next(system.batches()), 4)
        two = sorted({0, examples(batch) - 1})
        wanted = self._slope(batch, "loop", two)
        reasons = []
        ways: list[Way] = ["outputs", "network"]
        for way in ways if system.batch_loss is None else ways[1:]:
            with _entered(system) as layers:
                try:
                    found = self._slope(batch, way, two)
                except (RuntimeError, InvalidInputError) as error:
                    reasons.append(f"{_first_line(error)} (in {layers[-1]})")
                    continue
            scale = float(wanted.norm()) + torch.finfo(wanted.dtype).tiny
            off = float((found - wanted).norm()) / scale
            if off <= torch.finfo(wanted.dtype).eps ** 0.5:
                return way
            reasons.append(f"they differ by {off:.1e} (relative)")
        warnings.warn(
            "The losses of the examples cannot be evaluated together: "
            f"{'; '.join(reasons)}. They are evaluated one by one, a forward pass "
            "each, which is slower and exact.",
            NumericalWarning,
            stacklevel=2,
        )
        return "loop"

    def _slope(self, batch: Any, way: Way, two: list[int]) -> Tensor:
        # values and gradient of (first + 2 last) in one vector
        theta = self._system.state.requires_grad_()
        if way == "loop":
            batch = _join([example(batch, index) for index in two])
        with torch.enable_grad(), isolated(0):
            losses = self._evaluate(self._system.unflatten(theta), batch, way)
            losses = losses if way == "loop" else losses[two]
            mixed = losses @ torch.arange(1, len(two) + 1).to(losses)
            if not mixed.requires_grad:
                return losses.detach()
            (gradient,) = torch.autograd.grad(mixed, theta)
        return torch.cat([losses.detach().to(gradient), gradient])


def examples(batch: Any) -> int:
    """Return the number of examples of a batch whose tensors all have one row each.

    Args:
        batch: Any nest of tensors.

    Returns:
        The number.

    Raises:
        InvalidInputError: If the tensors differ in their first size.
    """
    count = length(batch)
    shapes = [tuple(tensor.shape) for tensor in tensors_of(batch)]
    if any(not shape or shape[0] != count for shape in shapes):
        raise InvalidInputError(
            f"Tensors of shapes {shapes} cannot be cut into {count} examples. Each "
            "must have one row per example."
        )
    return count


def example(batch: Any, index: int) -> Any:
    """Return the batch of one example alone.

    Args:
        batch: Any nest of tensors with one row per example.
        index: Which.

    Returns:
        The same nest, with tensors of one row.
    """
    return map_leaves(
        lambda leaf: leaf[index : index + 1] if isinstance(leaf, Tensor) else leaf,
        batch,
    )


def _join(batches: list[Any]) -> Any:
    flat = [flatten_batch(batch) for batch in batches]
    joined = [
        torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0]
        for leaves in zip(*(leaves for leaves, _ in flat), strict=True)
    ]
    rebuild = flat[0][1]
    return rebuild(joined)


def _over_examples(loss: Any, batch: Any) -> Tensor:
    leaves, rebuild = flatten_batch(batch)
    moving = [isinstance(leaf, Tensor) for leaf in leaves]

    def one(*rows: Tensor) -> Tensor:
        given = iter(rows)
        filled = [
            next(given)[None] if yes else leaf
            for leaf, yes in zip(leaves, moving, strict=True)
        ]
        value: Tensor = loss(rebuild(filled))
        return value.reshape(())

    tensors = [leaf for leaf, yes in zip(leaves, moving, strict=True) if yes]
    with warnings.catch_warnings():  # slow is what the loop would be, too
        warnings.filterwarnings("ignore", message="There is a performance drop")
        result: Tensor = torch.vmap(one)(*tensors)
    return result


@contextmanager
def _entered(system: GradientSystem) -> Iterator[list[str]]:
    # which type of layer was entered last: the culprit where a pass raises
    names = ["the loss"]
    outer = type(system.module).__name__

    def enter(layer: Any, _: Any) -> None:
        names.append(type(layer).__name__)

    def leave(layer: Any, _: Any, __: Any) -> None:
        names.append("the loss" if layer is system.module else outer)

    handles = []
    for part in system.module.modules():
        handles += [
            part.register_forward_pre_hook(enter),
            part.register_forward_hook(leave),
        ]
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160]
