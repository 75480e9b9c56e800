"""A plain copy of a model with zeros where a ticket prunes."""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from dynprune.core import InvalidInputError
from dynprune.tickets._apply import check_masks


def to_dense(masks: Iterable[tuple[str, Tensor]], model: nn.Module) -> nn.Module:
    r"""Return a copy of a model with weights :math:`m \odot \theta`, θ the model's own.

    Args:
        masks: Name and boolean tensor, True = kept.
        model: The user's model, plain or masked by ``torch.nn.utils.prune``.

    Returns:
        The copy, with plain parameters.

    Raises:
        InvalidInputError: If a mask does not fit, or the model cannot be copied.
    """
    try:
        made = copy.deepcopy(model)
    except RuntimeError as error:
        raise InvalidInputError(
            f"{type(model).__name__} cannot be copied ({error}). If it was pruned with "
            "torch.nn.utils.prune, call its prune.remove for every weight first."
        ) from error
    for part in made.modules():
        _make_permanent_(part)
    pairs = list(masks)
    check_masks(pairs, made)
    own = dict(made.named_parameters())
    with torch.no_grad():
        for name, mask in pairs:
            own[name].masked_fill_(~mask.to(own[name].device), 0.0)
    return made


def _make_permanent_(module: nn.Module) -> None:
    hooks = module._forward_pre_hooks.values()
    names = [h._tensor_name for h in hooks if isinstance(h, prune.BasePruningMethod)]
    for name in names:
        prune.remove(module, name)
    # torch puts them last; optimisers and their files go by the order
    own = dict(module._parameters)
    module._parameters.clear()
    module._parameters.update({name: own.pop(name) for name in names} | own)
