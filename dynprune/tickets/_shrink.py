"""Layers of torch made smaller in place: fewer outputs, fewer inputs."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


def weight_of(module: "nn.Linear | _ConvNd") -> Tensor:
    """Return the weight of an ungrouped layer, outputs first.

    Args:
        module: The layer; transposed convolutions keep their inputs first.

    Returns:
        A view, ``(out, in, …)``.
    """
    weight = module.weight.detach()
    return weight.transpose(0, 1) if isinstance(module, _ConvTransposeNd) else weight


def kept_weight(module: "nn.Linear | _ConvNd", rows: Tensor, columns: Tensor) -> Tensor:
    """Return which weights stay when outputs and inputs go.

    Args:
        module: The layer, before they go.
        rows: Outputs that stay, ``(out,)``.
        columns: Inputs that stay, ``(in,)``.

    Returns:
        Boolean, of the weight's shape.
    """
    both = rows.cpu()[:, None] & columns.cpu()
    both = both.T if isinstance(module, _ConvTransposeNd) else both
    shape = module.weight.shape
    return both.view(*shape[:2], *[1] * (len(shape) - 2)).expand(shape).clone()


def shrink_(
    module: "nn.Linear | _ConvNd", rows: Tensor, columns: Tensor, added: Tensor
) -> None:
    """Take outputs and inputs out of an ungrouped layer.

    Args:
        module: The layer; changed in place.
        rows: Outputs that stay, ``(out,)``.
        columns: Inputs that stay, ``(in,)``.
        added: To the bias, float64, ``(out,)``.
    """
    place, old = module.weight.device, module.bias
    if bool(rows.all()) and bool(columns.all()) and not bool(added.any()):
        return
    rows, columns = rows.to(place), columns.to(place)
    weight = weight_of(module)[rows][:, columns]
    if isinstance(module, _ConvTransposeNd):
        weight = weight.transpose(0, 1)
    if old is not None or bool(added[rows.cpu()].any()):
        bias = added[rows.cpu()].to(place)
        if old is not None:
            bias = bias + old.detach()[rows].double()
        learned = old.requires_grad if old is not None else module.weight.requires_grad
        module.bias = nn.Parameter(bias.to(weight.dtype), requires_grad=learned)
    learned = module.weight.requires_grad
    module.weight = nn.Parameter(weight.contiguous(), requires_grad=learned)
    sizes = int(rows.sum()), int(columns.sum())
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = sizes
    else:
        module.out_channels, module.in_channels = sizes


def shrink_channelwise_(module: nn.Module, kept: Tensor) -> dict[str, Tensor]:
    """Take channels out of a module that has numbers for each of them.

    Args:
        module: A batch norm, PReLU or depthwise convolution; changed in place.
        kept: Which stay, ``(C,)``.

    Returns:
        Name of each parameter that lost some and boolean tensor of the shape it had,
        True = still there.
    """
    if bool(kept.all()):
        return {}
    left: dict[str, Tensor] = {}
    for store in (module._parameters, module._buffers):
        for name, part in store.items():
            if part is None or part.shape[:1] != kept.shape:
                continue
            small: Tensor = part.detach()[kept.to(part.device)].clone()
            if isinstance(part, nn.Parameter):
                small = nn.Parameter(small, requires_grad=part.requires_grad)
                whole = torch.ones(part.shape, dtype=torch.bool)
                left[name] = whole & kept.view(-1, *[1] * (part.ndim - 1))
            setattr(module, name, small)
    count = int(kept.sum())
    if isinstance(module, _BatchNorm):
        module.num_features = count
    elif isinstance(module, nn.PReLU):
        module.num_parameters = count
    elif isinstance(module, _ConvNd):
        module.in_channels = module.out_channels = module.groups = count
    return left
