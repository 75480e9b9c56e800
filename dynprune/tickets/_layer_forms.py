"""Weights as matrices from input to output, however a layer stores them."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from dynprune.system import is_conv1d, weight_names

_TABLES = (nn.Embedding, nn.EmbeddingBag)
UNKNOWN = (
    "layers are read as weights of shape (out, in, …): pass system= or model= for "
    "convolutions with groups, transposed ones and Hugging Face Conv1D"
)


@final
class LayerForms:
    """Bring tensors of a weight's shape to (out, in, …), and back.

    A convolution with groups becomes the one without that computes the same, zeros
    between its groups; a transposed convolution, ``transformers``' Conv1D and an
    embedding that is tied to no other layer, which store the input first, are
    transposed.

    Args:
        model: Whose layers; None to take every tensor as it is.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._modules: dict[str, nn.Module] = {}
        if model is None:
            return
        # not by attribute: a parametrisation computes it, and may change its buffers
        tables = {
            id(module._parameters.get("weight")): module
            for module in model.modules()
            if isinstance(module, _TABLES)
        }
        readers: dict[int, nn.Module] = tables | {
            id(part): module
            for module in model.modules()
            for name, part in module.named_parameters(recurse=False)
            if name in weight_names(module)
        }
        self._modules = {
            name: readers[id(part)]
            for name, part in model.named_parameters()
            if id(part) in readers
        }

    def first(self, masks: Mapping[str, Tensor]) -> str:
        """Return which weight the input of the network meets first.

        Args:
            masks: Name to tensor, at least one, in the order of the network.

        Returns:
            The first weight of a layer; without a model, or if it has none of them,
            the first matrix, or else the first of all.
        """
        known = (name for name in masks if name in self._modules)
        matrices = (name for name, mask in masks.items() if mask.ndim > 1)
        return next(known, next(matrices, next(iter(masks))))

    def straight(self, name: str, value: Tensor) -> Tensor:
        """Return a mask or a weight as (out, in, …).

        Args:
            name: Of the weight.
            value: In the shape that its layer stores.

        Returns:
            The same tensor where it has that form already.
        """
        module = self._modules.get(name)
        if module is None or not _differs(module):
            return value
        if not isinstance(module, _ConvNd):
            return value.T
        parts = [
            part.transpose(0, 1) if isinstance(module, _ConvTransposeNd) else part
            for part in value.chunk(module.groups)
        ]
        out, into = parts[0].shape[:2]
        count, kernel = module.groups, parts[0].shape[2:]
        whole = value.new_zeros(count * out, count * into, *kernel)
        for index, part in enumerate(parts):
            whole[_block(index, out), _block(index, into)] = part
        return whole

    def own(self, name: str, value: Tensor) -> Tensor:
        """Return what :meth:`straight` made in the shape that the layer stores.

        Args:
            name: Of the weight.
            value: Shape (out, in, …).

        Returns:
            The tensor; what lies between groups is left out.
        """
        module = self._modules.get(name)
        if module is None or not _differs(module):
            return value
        if not isinstance(module, _ConvNd):
            return value.T
        out, into = (size // module.groups for size in value.shape[:2])
        parts = [
            value[_block(index, out), _block(index, into)]
            for index in range(module.groups)
        ]
        if isinstance(module, _ConvTransposeNd):
            parts = [part.transpose(0, 1) for part in parts]
        return torch.cat(parts)


def _differs(module: nn.Module) -> bool:
    if isinstance(module, _ConvNd):
        return module.groups > 1 or isinstance(module, _ConvTransposeNd)
    return isinstance(module, _TABLES) or is_conv1d(module)


def _block(index: int, size: int) -> slice:
    return slice(index * size, (index + 1) * size)
