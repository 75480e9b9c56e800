"""Models inside wrappers, and the names that their parameters have there."""

from collections.abc import Iterable

from torch import Tensor, nn

from dynprune.tickets._given import check_model

_PARALLEL = (nn.parallel.DistributedDataParallel, nn.DataParallel)
_COMPILED = "_orig_mod"
_PREFIXES = (_COMPILED, "module")
Named = tuple[tuple[str, Tensor], ...]


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that ``torch.compile`` or a data-parallel wrapper holds.

    Args:
        model: The user's model, wrapped any number of times or not.

    Returns:
        The model inside, with the same parameters.
    """
    return layers(model)[-1]


def layers(model: nn.Module) -> list[nn.Module]:
    """Return a model's wrappers from the outside, and the model inside.

    Args:
        model: The user's model, wrapped any number of times or not.

    Returns:
        At least the model.

    Raises:
        InvalidInputError: If it is no module.
    """  # noqa: DOC502 - raised by check_model
    check_model(model)
    inner: nn.Module | None = None
    if isinstance(model, _PARALLEL):
        inner = model.module
    elif _COMPILED in model._modules:
        inner = model._modules[_COMPILED]
    return [model] if inner is None else [model, *layers(inner)]


def named_inside(items: Iterable[tuple[str, Tensor]], model: nn.Module) -> Named:
    """Give tensors the names that they have in a model without wrappers.

    A ticket of a compiled model's system names its weights ``_orig_mod.…``.

    Args:
        items: Name and tensor.
        model: Without wrappers.

    Returns:
        The same tensors; a name that the model has in neither form stays as it is.
    """
    own = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    return tuple((_inside(name, own), part) for name, part in items)


def _inside(name: str, own: set[str]) -> str:
    rest = name
    while rest not in own:
        head, _, rest = rest.partition(".")
        if head not in _PREFIXES or not rest:
            return name
    return rest
