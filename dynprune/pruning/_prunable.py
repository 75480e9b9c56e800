"""What pruners check of a system's prunable weights at the door."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from dynprune.core import InvalidInputError, whole
from dynprune.pruning._warn import warn
from dynprune.system import GradientSystem, weight_names

# what is told to be left out elsewhere, or is no matrix that a layer multiplies by
_BY_DESIGN = (nn.Embedding, nn.EmbeddingBag, ParametrizationList)
_NO_WEIGHTS = ("bias", "embed", "token")
# models of which it was said what stays dense
_TOLD: WeakValueDictionary[int, nn.Module] = WeakValueDictionary()


def check_start(system: Any, seed: Any = 0) -> None:
    """Refuse what is no system, or no seed, before anything is computed.

    Args:
        system: As given.
        seed: As given.

    Raises:
        InvalidInputError: If the system is no GradientSystem, or the seed no integer.

    Warns:
        NumericalWarning: If weights of other layers than those that are pruned are left
            out; once for each model, and not where ``parameters=`` or ``prunable=``
            chose.
    """
    if not isinstance(system, GradientSystem):
        raise InvalidInputError(
            f"system is a {type(system).__name__}. Pass a dynprune.GradientSystem: "
            "GradientSystem(model, loss_fn, data)."
        )
    whole(seed, name="seed")
    _say_what_stays(system)


def left_out(system: GradientSystem) -> tuple[str, ...]:
    """Return the weights that no pruner counts and that are no layer's by design.

    These are the coordinates of two or more dimensions longer than one that belong to
    no Linear, Conv or attention layer, embedding or norm, and are called neither bias
    nor embedding: those of recurrent layers, and a module's own.

    Args:
        system: The system.

    Returns:
        Parameter names, in the order of the network.
    """
    names = {id(part): name for name, part in system.module.named_parameters()}
    wanted, known = set(system.names) - set(system.prunable), set[int]()
    found: list[str] = []
    for module in system.module.modules():
        own = dict(module.named_parameters(recurse=False))
        by_design = isinstance(module, _BY_DESIGN) or bool(weight_names(module))
        if by_design or "norm" in type(module).__name__.lower():
            known |= {id(part) for part in own.values()}
        found += [
            names[id(part)]
            for name, part in own.items()
            if sum(size > 1 for size in part.shape) > 1
            and not any(word in name.lower() for word in _NO_WEIGHTS)
        ]
    stays = {name for key, name in names.items() if key not in known}
    return tuple(n for n in dict.fromkeys(found) if n in wanted and n in stays)


def _say_what_stays(system: GradientSystem) -> None:
    model = system.model
    trainable = {n for n, part in model.named_parameters() if part.requires_grad}
    chosen = bool(system.requested) or trainable != set(system.names)
    if chosen or id(model) in _TOLD or not system.prunable:
        return
    _TOLD[id(model)] = model
    stay = left_out(system)
    if not stay:
        return
    shapes = dict(zip(system.names, system.coordinates.shapes, strict=True))
    count = sum(math.prod(shapes[name]) for name in stay)
    more = f" and {len(stay) - 3} more" if len(stay) > 3 else ""
    named = ", ".join(map(repr, _patterns(system.module, stay)))
    warn(
        f"Left out of the prunable weights: {', '.join(stay[:3])}{more}, {count} "
        "weights that belong to no Linear, Conv or attention layer. They stay dense, "
        "and no density counts them. To prune them, too: "
        f"GradientSystem(..., prunable=[*system.prunable, {named}])."
    )


def _patterns(net: nn.Module, names: Iterable[str]) -> list[str]:
    # one for all weights of a recurrent layer
    starts = [
        f"{prefix}.weight_".lstrip(".")
        for prefix, module in net.named_modules()
        if isinstance(module, nn.RNNBase)
    ]
    found = (
        next((start + "*" for start in starts if name.startswith(start)), name)
        for name in names
    )
    return list(dict.fromkeys(found))


def check_prunable(names: Collection[str]) -> None:
    """Refuse a system without prunable weights.

    Args:
        names: Of its prunable weights.

    Raises:
        InvalidInputError: If there is none.
    """
    if not names:
        raise InvalidInputError(
            "The system has no prunable weight (no weight of a Linear or Conv layer "
            "among its trainable parameters; one that a parametrisation computes is "
            "none). Pass a model that has one, select others, or name what is to be "
            "pruned: GradientSystem(..., prunable=...)."
        )


def check_any(sizes: Iterable[int]) -> None:
    """Refuse prunable tensors that are all empty, as of ``nn.Linear(0, 5)``.

    Args:
        sizes: How many weights each holds.

    Raises:
        InvalidInputError: If there is none in any.
    """
    if not any(sizes):
        raise InvalidInputError(
            "The system has no prunable weight: all its prunable tensors are empty. "
            "Pass a model that has one, or select others."
        )


def check_unmasked(system: GradientSystem, why: str) -> None:
    """Refuse a system without prunable weights, or with anything pruned.

    Args:
        system: The system.
        why: What must be whole, or chosen here; for the message.

    Raises:
        InvalidInputError: If it has no prunable weight, or a mask prunes any weight.
    """
    check_start(system)
    check_prunable(system.prunable)
    pruned = sum(int((~mask).sum()) for mask in system.masks.values())
    if pruned:
        raise InvalidInputError(
            f"{pruned} weights of the system are already pruned: {why}. Pass "
            "system.with_mask({})."
        )


def check_others(system: GradientSystem) -> None:
    """Refuse masks that prune what no ticket has a mask of, as of biases.

    Args:
        system: The system.

    Raises:
        InvalidInputError: If there is one; ``with_ticket`` would undo it.
    """
    for name, mask in system.masks.items():
        pruned = int((~mask).sum())
        if pruned and name not in system.prunable:
            raise InvalidInputError(
                f"{pruned} entries of {name!r}, which is no prunable weight, are "
                "pruned already. Tickets hold masks of system.prunable only, and the "
                "entries would come back. Pass system.with_mask({}) and put the others "
                "on afterwards: system.with_ticket(ticket).with_mask(ticket.masks | "
                "others); or make the system with prunable=list(masks)."
            )


def check_finite(system: GradientSystem) -> None:
    """Refuse a state that is not finite, where scores would not show it.

    Args:
        system: The system.

    Raises:
        InvalidInputError: If a parameter holds NaN or infinity.
    """
    for name, part in system.unflatten(system.state).items():
        if not bool(torch.isfinite(part).all()):
            raise InvalidInputError(
                f"The state of {name!r} holds NaN or infinity. Pass a finite state to "
                "prune."
            )


def check_each(what: str, given: Any, prunable: Iterable[str]) -> None:
    """Refuse what is not given for exactly the prunable weights, by name.

    Args:
        what: What is given by name, in the plural.
        given: A mapping, if it is right.
        prunable: Those of the weights.

    Raises:
        InvalidInputError: If it is no mapping, or names are missing or too much.
    """
    wanted = list(prunable)
    if not isinstance(given, Mapping):
        raise InvalidInputError(
            f"{what} came as a {type(given).__name__}. Pass a mapping with one for "
            f"each of system.prunable: {', '.join(wanted)}."
        )
    missing = [name for name in wanted if name not in given]
    extra = [name for name in given if name not in wanted]
    if missing or extra:
        raise InvalidInputError(
            f"{what} are missing for {missing or 'none'} and too much for "
            f"{extra or 'none'}. Pass one for each of system.prunable: "
            f"{', '.join(wanted)}."
        )


def check_masks(masks: Mapping[str, Tensor], system: GradientSystem) -> None:
    """Refuse masks that do not fit the prunable weights.

    Args:
        masks: Name to boolean tensor.
        system: The system.

    Raises:
        InvalidInputError: If a name is missing or too much, a shape differs, or a mask
            is not boolean.
    """
    check_start(system)
    check_each("Masks", masks, system.prunable)
    shapes = dict(zip(system.names, system.coordinates.shapes, strict=True))
    for name in system.prunable:
        mask = masks[name]
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise InvalidInputError(
                f"The mask of {name!r} is of {kind}. Pass boolean tensors, True = kept."
            )
        if tuple(mask.shape) != tuple(shapes[name]):
            raise InvalidInputError(
                f"The mask of {name!r} has shape {tuple(mask.shape)}, the weights "
                f"{tuple(shapes[name])}. Pass one entry for each weight."
            )


def probe_cost(system: GradientSystem) -> float:
    """Return what the determinism probe of a system will cost, if it is still to come.

    Args:
        system: The system, before it meets an operator.

    Returns:
        Gradients; 0 for a system that was probed before.

    Raises:
        InvalidInputError: If it is no system.
    """  # noqa: DOC502 - raised by check_start
    check_start(system)
    return 0.0 if system.probed else system.probe_gradients
