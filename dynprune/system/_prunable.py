"""Which weights of a network can be pruned: the matrices of its layers."""

import sys
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

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
    weights = {id(weight) for module in net.modules() for weight in _weights(module)}
    own = dict(net.named_parameters())
    return tuple(name for name in names if id(own[name]) in weights)


def _weights(module: nn.Module) -> Iterator[Tensor]:
    own = dict(module.named_parameters(recurse=False))
    if isinstance(module, _LAYERS) or _is_conv1d(module):
        wanted: tuple[str, ...] = ("weight",)
    elif isinstance(module, nn.MultiheadAttention):
        wanted = _IN_ATTENTION
    else:
        return
    for name in wanted:
        if name in own:
            yield own[name]


def _is_conv1d(module: nn.Module) -> bool:
    # who has such a layer has imported it; others need not have transformers
    library = sys.modules.get("transformers.pytorch_utils")
    kind = getattr(library, "Conv1D", None)
    return isinstance(kind, type) and isinstance(module, kind)
