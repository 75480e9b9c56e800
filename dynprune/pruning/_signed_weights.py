"""Weights of one magnitude per layer, and the plain network around them."""

import math

import torch
from torch import Tensor, nn

from dynprune.core import InvalidInputError
from dynprune.pruning._layer_matrices import applied, inputs_per_output
from dynprune.system import GradientSystem

_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


def fan_in(module: nn.Module) -> int:
    """Return how many inputs one output of a layer sums over.

    Args:
        module: A Linear layer ``(out, in)``, a convolution ``(out, in / groups, …)``
            or ``(in, out / groups, …)`` if transposed, Hugging Face's ``Conv1D``
            ``(in, out)``, or an attention layer: of its first input projection.

    Returns:
        The number of inputs; for a transposed convolution in / groups times the size
        of the kernel, whatever the stride is.

    Raises:
        InvalidInputError: If the layer is of another kind.

    Example:
        >>> fan_in(nn.Conv2d(8, 4, 3, groups=2)), fan_in(nn.Linear(5, 2))
        (36, 5)
    """
    for weight, _, groups, layout in applied(module):
        return inputs_per_output(weight, groups, layout)
    raise InvalidInputError(
        f"The fan-in of a {type(module).__name__} is not known. Pass weights='own' to "
        "keep the system's weights."
    )


def fans(system: GradientSystem, *, instead: str = "") -> dict[str, int]:
    """Return the fan-in of every prunable weight.

    Args:
        system: The system.
        instead: What else the user can do where one has none.

    Returns:
        Name to the fan-in of the first layer that applies the weight.

    Raises:
        InvalidInputError: If no Linear, Conv or attention layer applies one of them,
            as of those that ``prunable=`` asked for.
    """
    own: dict[str, Tensor] = dict(system.module.named_parameters())
    found: dict[int, int] = {}
    for module in system.module.modules():
        for weight, _, groups, layout in applied(module):
            found.setdefault(id(weight), inputs_per_output(weight, groups, layout))
    unknown = [name for name in system.prunable if id(own[name]) not in found]
    if unknown:
        raise InvalidInputError(
            f"The fan-in of {', '.join(unknown)} is not known: no Linear, Conv or "
            f"attention layer applies them. Leave them out of prunable={instead}."
        )
    return {name: found[id(own[name])] for name in system.prunable}


def signed_weights(system: GradientSystem) -> dict[str, Tensor]:
    r"""Return weights of the system's signs and one magnitude per layer.

    .. math:: w = \operatorname{sign}(\theta) \sqrt{2 / n_{\mathrm{in}}}

    with the sign of zero taken as positive, so that no weight starts dead.

    Args:
        system: The system.

    Returns:
        Name to tensor, for each of ``system.prunable``.
    """
    state = system.unflatten(system.state)
    return {
        name: torch.where(state[name] < 0, -1.0, 1.0).to(state[name])
        * math.sqrt(2.0 / max(number, 1))
        for name, number in fans(system, instead=", or pass weights='own'").items()
    }


def plain_values(system: GradientSystem) -> dict[str, Tensor]:
    """Return what biases and norms are without their parameters: 0, and 1.

    Args:
        system: The system.

    Returns:
        Name to tensor: ones for scales of normalisation layers, zeros for their
        shifts and for all biases, trainable or not. A layer of another library counts
        as one if its name says so and its weight is a vector.
    """
    found: dict[str, Tensor] = {}
    weights = set(system.prunable)
    names = {id(part): name for name, part in system.module.named_parameters()}
    for module in system.module.modules():
        torchs = isinstance(module, _NORMS)
        named = "norm" in type(module).__name__.lower()
        for name, part in module.named_parameters(recurse=False):
            full = names[id(part)]
            if full in weights:
                continue
            # also bias_ih_l0 of recurrent layers, bias_k of attention
            if name.endswith("bias") or name.startswith("bias_"):
                found[full] = torch.zeros_like(part)
            elif name == "weight" and (torchs or (named and part.ndim == 1)):
                found[full] = torch.ones_like(part)
    return found
