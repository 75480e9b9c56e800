"""A copy of a system's network, at the system's state, to be worked on."""

import copy

import torch
from torch import Tensor, nn

from dynprune.system import GradientSystem


def private_copy(system: GradientSystem) -> nn.Module:
    """Return a copy of the network with the system's state and buffers.

    Args:
        system: The system; neither it nor the user's model is changed.

    Returns:
        The copy; pruned weights are zero.
    """
    net = copy.deepcopy(system.module)
    own: dict[str, Tensor] = dict(net.named_parameters())
    with torch.no_grad():
        for name, value in system.unflatten(system.state).items():
            own[name].copy_(value)
        for name, part in net.named_buffers():
            part.copy_(system.raw_buffers[name])
    return net
