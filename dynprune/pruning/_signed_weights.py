"""Weights of one magnitude per layer, and the plain network around them."""

import math
import sys

import torch
from torch import Tensor, nn

from dynprune.core import InvalidInputError
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
            or ``(in, out / groups, …)`` if transposed, or Hugging Face's ``Conv1D``
            ``(in, out)``.

    Returns:
        The number of inputs; for a transposed convolution in / groups times the size
        of the kernel, whatever the stride is.

    Raises:
        InvalidInputError: If the layer is of another kind.

    Example:
        >>> fan_in(nn.Conv2d(8, 4, 3, groups=2)), fan_in(nn.Linear(5, 2))
        (36, 5)
    """
    if isinstance(module, nn.modules.conv._ConvNd):
        inputs = module.in_channels // module.groups
        return inputs * math.prod(module.kernel_size)
    if isinstance(module, nn.Linear):
        return module.in_features
    if _is_conv1d(module):
        weight = module.weight
        assert isinstance(weight, Tensor)
        return int(weight.shape[0])
    raise InvalidInputError(
        f"The fan-in of a {type(module).__name__} is not known. Pass weights='own' to "
        "keep the system's weights."
    )


def fans(system: GradientSystem) -> dict[str, int]:
    """Return the fan-in of every prunable weight.

    Args:
        system: The system.

    Returns:
        Name to the fan-in of the first layer that owns the weight.
    """
    own: dict[str, Tensor] = dict(system.module.named_parameters())
    layers: dict[int, nn.Module] = {}
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    for part in system.module.modules():
        if isinstance(part, kinds) or _is_conv1d(part):
            layers.setdefault(id(part.weight), part)
    return {name: fan_in(layers[id(own[name])]) for name in system.prunable}


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
        * math.sqrt(2.0 / number)
        for name, number in fans(system).items()
    }


def plain_values(system: GradientSystem) -> dict[str, Tensor]:
    """Return what biases and norms are without their parameters: 0, and 1.

    Args:
        system: The system.

    Returns:
        Name to tensor: ones for scales of normalisation layers, zeros for their
        shifts and for all biases, trainable or not.
    """
    found: dict[str, Tensor] = {}
    weights = set(system.prunable)
    names = {id(part): name for name, part in system.module.named_parameters()}
    for module in system.module.modules():
        norm = isinstance(module, _NORMS) or "norm" in type(module).__name__.lower()
        for name, part in module.named_parameters(recurse=False):
            full = names[id(part)]
            if full in weights:
                continue
            if name.endswith("bias"):
                found[full] = torch.zeros_like(part)
            elif norm and name == "weight":
                found[full] = torch.ones_like(part)
    return found


def _is_conv1d(module: nn.Module) -> bool:
    # without importing transformers: a model that has one has loaded it
    library = sys.modules.get("transformers.pytorch_utils")
    return library is not None and isinstance(module, library.Conv1D)
