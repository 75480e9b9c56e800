"""Whether a smaller network computes what the whole one does."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dynprune.core import InvalidInputError, isolated
from dynprune.tickets._trace import Example

_FEW = 8.0  # roundings of numbers of order 1, which cancel to an output of zero


def outputs(model: nn.Module, example: Example) -> list[Tensor]:
    """Call a network with an example.

    Args:
        model: In eval mode.
        example: What it takes; a tuple is several arguments.

    Returns:
        Every floating-point tensor that it returns.

    Raises:
        InvalidInputError: If it cannot be called.
    """
    inputs = example if isinstance(example, tuple) else (example,)
    try:
        with torch.no_grad(), isolated(0):
            found = model(*inputs)
    except Exception as error:  # whatever a user's forward raises
        raise InvalidInputError(
            f"The model cannot be called with this example ({type(error).__name__}: "
            f"{str(error)[:200]}). Pass what its forward takes, a tuple for several "
            "arguments."
        ) from error
    return [part for part in _leaves(found) if part.is_floating_point()]


def _leaves(found: object) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    if isinstance(found, Mapping):
        return [part for one in found.values() for part in _leaves(one)]
    if isinstance(found, tuple | list):
        return [part for one in found for part in _leaves(one)]
    return []


def compared(
    before: list[Tensor],
    small: nn.Module,
    example: Example,
    *,
    roundings: float | None = None,
    did: str = "Taking units out",
    instead: str = "ticket.to_dense or dp.tickets.to_sparse",
) -> tuple[float, float]:
    r"""Compare the outputs of a smaller network with those of the whole one.

    Sums in another order round otherwise; anything else is of the size of the outputs.
    So the largest difference may be :math:`\sqrt{\epsilon}` of the largest output, and
    a few ε where outputs are zero.

    Args:
        before: Outputs of the whole network.
        small: The smaller one, in eval mode.
        example: What both are called with.
        roundings: How many ε it may be at most, too.
        did: What was done to the network, for the message.
        instead: What to try.

    Returns:
        The largest difference, and the largest output.

    Raises:
        InvalidInputError: If they differ by more.
    """
    scale = max((float(part.abs().max()) for part in before if part.numel()), default=0)
    error = float("inf")
    try:
        pairs = list(zip(before, outputs(small, example), strict=True))
        gaps = [(a - b).abs().max().cpu().double() for a, b in pairs if a.numel()]
        error = float(torch.stack(gaps).max()) if gaps else 0.0  # NaN if any is
    except (InvalidInputError, ValueError, RuntimeError):
        pass  # it fails, or has other outputs: as wrong as can be
    unit = max((torch.finfo(part.dtype).eps for part in before), default=0)
    allowed = unit**0.5 if roundings is None else min(unit**0.5, roundings * unit)
    if not error <= allowed * scale + _FEW * unit:
        raise InvalidInputError(
            f"{did} changed the network's outputs by {error:.3g}, where they are up to "
            f"{scale:.3g}: the model does something that its graph does not show. "
            f"Export it with {instead}."
        )
    return error, scale
