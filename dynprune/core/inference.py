"""``torch.inference_mode()``, in which nothing can be differentiated."""

import torch

from dynprune.core.errors import InvalidInputError


def refuse_inference_mode(what: str) -> None:
    """Refuse to differentiate inside ``torch.inference_mode()``.

    Tensors made there stay without derivatives for good; ``torch.no_grad()`` is no
    such obstacle, for it can be lifted where derivatives are needed.

    Args:
        what: What was asked.

    Raises:
        InvalidInputError: If the mode is on.
    """
    if torch.is_inference_mode_enabled():
        raise InvalidInputError(
            f"{what} was asked inside torch.inference_mode(), whose tensors cannot be "
            "differentiated. Leave that block, or use torch.no_grad() in its place."
        )
