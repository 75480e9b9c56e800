"""A plain copy of a model with zeros where a ticket prunes."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from dynprune.core import InvalidInputError
from dynprune.tickets._apply import check_masks
from dynprune.tickets._torch_prune import copied, make_permanent_
from dynprune.tickets._wrapped import named_inside, unwrapped


def to_dense(masks: Iterable[tuple[str, Tensor]], model: nn.Module) -> nn.Module:
    r"""Return a copy of a model with weights :math:`m \odot \theta`, θ the model's own.

    Args:
        masks: Name and boolean tensor, True = kept.
        model: The user's model, plain or masked by ``torch.nn.utils.prune``; taken out
            of ``torch.compile`` and data-parallel wrappers.

    Returns:
        The copy, with plain parameters.

    Raises:
        InvalidInputError: If a mask does not fit, or the model cannot be copied.
    """
    try:
        made = copied(unwrapped(model))
    except RuntimeError as error:
        raise InvalidInputError(
            f"{type(model).__name__} cannot be copied ({error}). Take tensors that are "
            "not leaves of a graph off its modules, or detach them."
        ) from error
    for part in made.modules():
        make_permanent_(part)
    pairs = list(named_inside(masks, made))
    check_masks(pairs, made)
    own = dict(made.named_parameters())
    with torch.no_grad():
        for name, mask in pairs:
            own[name].masked_fill_(~mask.to(own[name].device), 0.0)
    return made
