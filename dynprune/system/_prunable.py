"""Which weights of a network can be pruned: the matrices of its layers."""

import sys
from collections.abc import Sequence

from torch import nn

_LAYERS = (nn.Linear, nn.modules.conv._ConvNd)
_IN_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def prunable_weights(net: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Return which of some parameters are weights of layers that can be pruned.

    These are the weights of Linear layers, of convolutions of any dimension,
    transposed ones included, of ``transformers.pytorch_utils.Conv1D`` (a Linear layer
    whose weight has shape (in, out)), and the input projections of
    ``nn.MultiheadAttention``: stacked in ``in_proj_weight``, they are the weights of
    three Linear layers, its output projection is one itself. Biases, norms and
    embeddings are not; an embedding that is tied to a Linear layer is that layer's
    weight, and is.

    Args:
        net: The network.
        names: Its parameters that may be pruned, tied ones by their first name.

    Returns:
        Those of ``names`` that are weights, in their order.
    """
    weights = {
        id(part)
        for module in net.modules()
        for name, part in module.named_parameters(recurse=False)
        if name in weight_names(module)
    }
    own = dict(net.named_parameters())
    return tuple(name for name in names if id(own[name]) in weights)


def computed_weights(net: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """Return which weights of layers are no parameters, and so cannot be pruned.

    A parametrisation computes them of others, as ``weight_norm`` and
    ``torch.nn.utils.prune`` do.

    Args:
        net: The network.
        names: Its parameters that may be pruned.

    Returns:
        The names they would have, where what they are computed of is in ``names``.
    """
    own = dict(net.named_parameters())
    chosen = {id(own[name]) for name in names}
    return tuple(
        f"{prefix}.{name}".lstrip(".")
        for prefix, module in net.named_modules()
        for name in weight_names(module)
        if name not in module._parameters
        and any(name in k and id(p) in chosen for k, p in module.named_parameters())
    )


def weight_names(module: nn.Module) -> tuple[str, ...]:
    """Return what a module calls its own weights that can be pruned.

    The one definition of a prunable weight; :func:`prunable_weights` says which layers
    have one.

    Args:
        module: Any module; those inside it do not count.

    Returns:
        Names of its own parameters, present or not: an attention layer has either one
        stacked projection or three.

    Example:
        >>> weight_names(nn.Linear(2, 2)), weight_names(nn.Embedding(2, 2))
        (('weight',), ())
    """
    if isinstance(module, _LAYERS) or is_conv1d(module):
        return ("weight",)
    return _IN_ATTENTION if isinstance(module, nn.MultiheadAttention) else ()


def is_conv1d(module: nn.Module) -> bool:
    """Return whether a module is ``transformers.pytorch_utils.Conv1D``.

    Args:
        module: Any module.

    Returns:
        Whether it is; without importing a library that only its users have.
    """
    library = sys.modules.get("transformers.pytorch_utils")
    kind = getattr(library, "Conv1D", None)
    return isinstance(kind, type) and isinstance(module, kind)
