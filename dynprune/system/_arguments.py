"""The door for a model and its settings: what is trained, and where it lies."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import SupportsFloat, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from dynprune.core import InvalidInputError, whole
from dynprune.system._prunable import computed_weights


def own_masks(mask: Mapping[str, Tensor] | None) -> tuple[tuple[str, Tensor], ...]:
    """Return masks as pairs of a name and a boolean copy.

    Args:
        mask: Parameter name to tensor, or None.

    Returns:
        The pairs, none for None.

    Raises:
        InvalidInputError: If it is no mapping of names to boolean tensors.
    """
    if mask is None:
        return ()
    if not isinstance(mask, Mapping):
        raise InvalidInputError(
            f"The mask is a {type(mask).__name__}. Pass a mapping of parameter names "
            "to boolean tensors, e.g. ticket.masks."
        )
    for name, part in mask.items():
        if not isinstance(part, Tensor) or part.dtype != torch.bool:
            found = part.dtype if isinstance(part, Tensor) else type(part).__name__
            raise InvalidInputError(
                f"The mask of {name!r} is {found}. Pass booleans, True = kept: "
                "mask.bool() of zeros and ones, scores > threshold of scores."
            )
    return tuple((name, part.detach().clone()) for name, part in mask.items())


def check_arguments(
    model: object,
    loss_fn: object,
    batch_loss: object,
    batch_weight: object,
    l2: object,
    microbatch: object,
) -> None:
    """Refuse what cannot make a system, whatever the data are.

    Args:
        model: As given.
        loss_fn: As given.
        batch_loss: As given.
        batch_weight: As given.
        l2: As given.
        microbatch: As given.

    Raises:
        InvalidInputError: For no module, one that has no shapes or values yet or cannot
            be copied, no loss, a class in place of a function, or numbers out of range.
    """
    if not isinstance(model, nn.Module):
        raise InvalidInputError(
            f"The model is a {type(model).__name__}. Pass a torch.nn.Module."
        )
    _check_values(model)
    _check_copies(model)
    _check_tables(model)
    if loss_fn is None and batch_loss is None:
        raise InvalidInputError(
            "No loss was given. Pass loss_fn(outputs, targets), or batch_loss(model, "
            "batch)."
        )
    _check_call("loss_fn", loss_fn, "(outputs, targets)")
    _check_call("batch_loss", batch_loss, "(model, batch)")
    _check_call("batch_weight", batch_weight, "(batch)")
    if not _is_number(l2) or not 0.0 <= float(l2) < float("inf"):
        raise InvalidInputError(f"l2 is {l2!r}. Pass a finite number ≥ 0.")
    if microbatch is not None and (
        isinstance(microbatch, bool) or whole(microbatch, name="microbatch") < 1
    ):
        raise InvalidInputError(f"microbatch is {microbatch}. Pass at least 1.")


def _check_call(name: str, given: object, arguments: str) -> None:
    if isinstance(given, type):
        raise InvalidInputError(
            f"{name} is the class {given.__name__}, whose instance is to be called. "
            f"Pass one: {given.__name__}()."
        )
    if given is not None and not callable(given):
        raise InvalidInputError(
            f"{name} is a {type(given).__name__}. Pass a function of {arguments}."
        )


def _is_number(value: object) -> TypeGuard[SupportsFloat]:
    if isinstance(value, Tensor):
        return value.numel() == 1
    return isinstance(value, Real) and not isinstance(value, bool)


def _check_values(model: nn.Module) -> None:
    every = [*model.named_parameters(), *model.named_buffers()]
    lazy = [name for name, part in every if is_lazy(part)]
    if lazy:
        raise InvalidInputError(
            f"Without a shape yet: {', '.join(lazy)} (lazy layers that have not run). "
            "Make one forward pass of the model first: model(x)."
        )
    empty = [name for name, part in every if part.is_meta]
    if empty:
        raise InvalidInputError(
            f"Without values, on the meta device: {', '.join(empty)}. Make the model "
            "on a device, or give it values: model.to_empty(device='cpu'), then "
            "load_state_dict(...)."
        )


def _check_tables(model: nn.Module) -> None:
    tables = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
        and module.max_norm is not None
    ]
    if tables:
        raise InvalidInputError(
            f"Embeddings with max_norm ({', '.join(tables)}) rewrite their weights in "
            "every forward pass, so that the loss is no function of them. Make them "
            "with max_norm=None."
        )


def _check_copies(model: nn.Module) -> None:
    # torch copies no tensor that has a history, and a hook gives it one at each pass
    computed, held = [], []
    for prefix, module in model.named_modules():
        if getattr(module, "__deepcopy__", None):  # as Ticket.to_torch_prune leaves it
            continue
        start = f"{prefix}." if prefix else ""
        names = [
            hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name
            for hook in module._forward_pre_hooks.values()
            if isinstance(hook, BasePruningMethod | WeightNorm | SpectralNorm)
        ]
        computed += [f"{start}{name}" for name in names]
        held += [
            f"{start}{name}"
            for name, part in vars(module).items()
            if isinstance(part, Tensor) and not part.is_leaf and name not in names
        ]
    if computed:
        raise InvalidInputError(
            f"Hooks compute {', '.join(computed)} at each pass, and no model that has "
            "them can be copied. Of one pruned by torch.nn.utils.prune, keep "
            "Ticket.from_torch_prune(model).masks for mask=, and call prune.remove on "
            "its modules; for weight_norm and spectral_norm, use those of "
            "torch.nn.utils.parametrizations."
        )
    if held:
        raise InvalidInputError(
            f"The model holds tensors with a history ({', '.join(held)}), and cannot "
            "be copied. Keep them by detach(), or take them off."
        )


def select(model: nn.Module, parameters: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the trainable parameters that patterns select.

    Args:
        model: The model.
        parameters: Glob pattern(s); all of them if None.

    Returns:
        Names in ``named_parameters`` order.

    Raises:
        InvalidInputError: If there is none, or none that a pattern matches.
    """
    trainable = [name for name, part in model.named_parameters() if part.requires_grad]
    if not trainable:
        raise InvalidInputError(
            "The model has no trainable parameter. Set requires_grad on those to be "
            "trained."
        )
    if parameters is None:
        return tuple(trainable)
    return _matched(model, trainable, parameters, what="parameters", kind="trainable")


def select_prunable(
    model: nn.Module, names: Sequence[str], prunable: str | Sequence[str] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the parameters that are to be pruned on request.

    Args:
        model: The model.
        names: Its selected parameters.
        prunable: Glob pattern(s), or None.

    Returns:
        Those that a pattern matches, in the order of ``names``, none if None; and the
        names of weights that it matches, all if None, but that are computed of others.

    Raises:
        InvalidInputError: If a pattern matches none.
    """  # noqa: DOC502 - raised by _matched
    computed = computed_weights(model, names)
    if prunable is None:
        return (), computed
    found = _matched(model, names, prunable, what="prunable", kind="selected")
    return found, _chosen(computed, _patterns(prunable, "prunable"))


def _matched(
    model: nn.Module, names: Sequence[str], given: object, *, what: str, kind: str
) -> tuple[str, ...]:
    patterns = _patterns(given, what)
    missing = [one for one in patterns if not _matching(names, one)]
    if missing:
        asked = ", ".join(map(repr, missing))
        raise InvalidInputError(
            f"No {kind} parameter matches {asked}{_but(model, missing)}. "
            f"Found: {', '.join(names)}."
        )
    return _chosen(names, patterns)


def _patterns(given: object, what: str) -> list[str]:
    several = [given] if isinstance(given, str) else given
    found = list(several) if isinstance(several, Iterable) else []
    if not found or not all(isinstance(one, str) for one in found):
        kinds = sorted({type(one).__name__ for one in found})
        held = f" of {', '.join(kinds)}" if kinds else " without a name"
        raise InvalidInputError(
            f"{what} is a {type(given).__name__}{held}. Pass a glob pattern "
            "of parameter names ('fc1.*'), or a list of them."
        )
    return found


def _matching(names: Iterable[str], pattern: str) -> list[str]:
    # a name may hold brackets, and stands for itself all the same
    return [n for n in names if n == pattern or fnmatch.fnmatchcase(n, pattern)]


def _chosen(names: Iterable[str], patterns: Sequence[str]) -> tuple[str, ...]:
    return tuple(n for n in names if any(_matching([n], one) for one in patterns))


def _but(model: nn.Module, patterns: Sequence[str]) -> str:
    # frozen parameters, and second names of tied ones, can be meant
    own = {id(part): name for name, part in model.named_parameters()}
    said = [
        f"{name} is frozen"
        if not part.requires_grad
        else f"{name} is tied to {own[id(part)]}, which is its name here"
        for name, part in model.named_parameters(remove_duplicate=False)
        if any(_matching([name], one) for one in patterns)
    ]
    said += [
        f"{name} is computed of other parameters"
        for name in _chosen(computed_weights(model, list(own.values())), patterns)
    ]
    return f" ({'; '.join(said)})" if said else ""


def place_of(
    parameters: Mapping[str, Tensor], names: Sequence[str]
) -> tuple[torch.dtype, torch.device]:
    """Return the one dtype and the one device of parameters.

    Args:
        parameters: Name to tensor.
        names: The selected ones.

    Returns:
        The dtype and the device.

    Raises:
        InvalidInputError: If there are several, or the dtype is not a real float.
    """
    dtypes = {parameters[name].dtype for name in names}
    devices = {parameters[name].device for name in names}
    if len(dtypes) > 1 or len(devices) > 1:
        raise InvalidInputError(
            f"The selected parameters are of {sorted(map(str, dtypes))} on "
            f"{sorted(map(str, devices))}. Move them to one dtype and device, or "
            "select some with parameters=."
        )
    dtype = dtypes.pop()
    if not dtype.is_floating_point:
        raise InvalidInputError(
            f"The parameters are {dtype}. Only real floating-point ones are supported."
        )
    return dtype, devices.pop()
