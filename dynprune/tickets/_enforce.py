"""Hooks that keep pruned weights exactly zero in a user's own loop."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynprune.core import InvalidInputError
from dynprune.tickets._apply import check_masks, listed
from dynprune.tickets._ranks import check_same_masks
from dynprune.tickets._wrapped import layers, named_inside


@contextmanager
def enforced(
    masks: Iterable[tuple[str, Tensor]], model: nn.Module, optimizer: Optimizer
) -> Iterator[nn.Module]:
    r"""Keep :math:`\theta = m \odot \theta` after every step of an optimiser.

    Gradients are masked as they arrive and before each step, weights after it, after
    every ``load_state_dict``, and before every evaluation of a closure (a line search
    moves along directions that older, dense steps may have left in the optimiser).

    Args:
        masks: Name and boolean tensor, True = kept.
        model: The user's model, compiled and data-parallel too; masked at once.
        optimizer: Of its parameters.

    Yields:
        The same model.

    Raises:
        InvalidInputError: If a mask does not fit the model, the optimiser moves none
            of the masked weights, or data-parallel ranks have different masks; at a
            step, if other tensors have taken the place of weights that it moves.
    """  # noqa: DOC502 - raised by the checks
    *wrappers, inner = layers(model)
    pairs = list(named_inside(masks, inner))
    for part in wrappers:
        if isinstance(part, nn.parallel.DistributedDataParallel):
            check_same_masks(pairs, part.process_group)
    check_masks(pairs, inner)
    weights = _Weights(pairs, inner)
    moved = _check_moved(weights.now(), optimizer)

    @torch.no_grad()
    def mask_weights(*_: Any) -> None:
        for _name, weight, pruned in weights.now():
            _zero_(weight, pruned)

    def before_step(
        _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        current = weights.now()
        _check_still_moved(current, moved, optimizer)
        with torch.no_grad():
            for _name, weight, pruned in current:
                if weight.grad is not None:
                    _zero_(weight.grad, pruned)
        # args[0] is the optimiser itself
        rest = [_masked(part, mask_weights) for part in args[1:]]
        named = {key: _masked(part, mask_weights) for key, part in kwargs.items()}
        return (*args[:1], *rest), named

    mask_weights()
    loaded = _Loaded(inner, mask_weights)
    handles = [
        optimizer.register_step_pre_hook(before_step),
        optimizer.register_step_post_hook(mask_weights),
        inner.register_load_state_dict_post_hook(loaded),
    ]
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()
        mask_weights()
        weights.unhook()


@final
class _Weights:
    """Find the masked weights of a model by their names, whatever replaced them.

    Args:
        pairs: Name and boolean tensor, True = kept.
        model: The model.
    """

    def __init__(self, pairs: Iterable[tuple[str, Tensor]], model: nn.Module) -> None:
        self._model = model
        every = dict(model.named_parameters(remove_duplicate=False))
        masks = {id(every[name]): ~mask for name, mask in pairs}
        # tied ones by all their names: a state that is assigned unties them
        self._pruned = {
            name: masks[id(part)].to(part.device)
            for name, part in every.items()
            if id(part) in masks
        }
        self._held: dict[str, Tensor] = {name: every[name] for name in self._pruned}
        self._hooks: dict[int, Any] = {}

    def now(self) -> list[tuple[str, Tensor, Tensor]]:
        """Return name, weight and what is pruned of it; hook gradients of new ones."""
        every = dict(self._model.named_parameters(remove_duplicate=False))
        found: list[tuple[str, Tensor, Tensor]] = []
        for name, pruned in self._pruned.items():
            # torch.nn.utils.prune renames a weight; it is still the same tensor
            weight = self._held[name] = every.get(name, self._held[name])
            self._pruned[name] = pruned.to(weight.device)
            if weight.requires_grad and id(weight) not in self._hooks:
                hook = _gradient_hook(self._pruned[name])
                handle = weight.register_post_accumulate_grad_hook(hook)
                self._hooks[id(weight)] = (weight, handle)
            found.append((name, weight, self._pruned[name]))
        return found

    def unhook(self) -> None:
        """Take the hooks of gradients away, of replaced weights too."""
        for _, handle in self._hooks.values():
            handle.remove()


@final
class _Loaded:
    """Mask a model's weights after it has loaded a state; copies of it do nothing.

    Args:
        module: The model.
        mask_weights: What to call.
    """

    def __init__(
        self,
        module: nn.Module | None = None,
        mask_weights: Callable[[], None] | None = None,
    ) -> None:
        self._module = module
        self._mask_weights = mask_weights

    def __call__(self, module: nn.Module, _: Any) -> None:
        """Mask the weights if the model is the one meant.

        Args:
            module: The one that has loaded.
        """
        if self._mask_weights is not None and module is self._module:
            self._mask_weights()

    def __reduce__(self) -> tuple[type["_Loaded"], tuple[()]]:
        """Return how a copy of the model, or its pickle, makes one that is inert."""
        return _Loaded, ()


def _masked(part: Any, mask_weights: Callable[[], None]) -> Any:
    if not callable(part):
        return part

    def closure(*args: Any, **kwargs: Any) -> Any:
        mask_weights()
        return part(*args, **kwargs)

    return closure


def _gradient_hook(pruned: Tensor) -> Callable[[Tensor], None]:
    def hook(weight: Tensor) -> None:
        if weight.grad is not None:
            with torch.no_grad():
                _zero_(weight.grad, pruned)

    return hook


def _zero_(values: Tensor, pruned: Tensor) -> None:
    # not a product: 0 · inf would be NaN
    if values.is_sparse:  # of an embedding with sparse=True: rows, some of them twice
        values._values().masked_fill_(pruned[tuple(values._indices())], 0.0)
    else:
        values.masked_fill_(pruned, 0.0)


def _check_moved(
    weights: list[tuple[str, Tensor, Tensor]], optimizer: Optimizer
) -> dict[str, Tensor]:
    moved = _ids(optimizer)
    found = {name: weight for name, weight, _ in weights if id(weight) in moved}
    if not found:
        raise InvalidInputError(
            f"The {type(optimizer).__name__} holds {len(moved)} parameters, none of "
            "them a masked weight of this model. Make the optimiser from "
            "model.parameters() of the same model object."
        )
    return found


def _check_still_moved(
    weights: list[tuple[str, Tensor, Tensor]],
    first: dict[str, Tensor],
    optimizer: Optimizer,
) -> None:
    moved = _ids(optimizer)
    lost = [
        name
        for name, weight, _ in weights
        if name in first and weight is not first[name] and id(weight) not in moved
    ]
    if lost:
        raise InvalidInputError(
            f"The {type(optimizer).__name__} was asked for a step, but {listed(lost)} "
            "of the model are other tensors than it holds: something replaced them, "
            "such as load_state_dict(assign=True). Load without assign, or give the "
            "optimiser the new parameters."
        )


def _ids(optimizer: Optimizer) -> set[int]:
    return {id(part) for group in optimizer.param_groups for part in group["params"]}
