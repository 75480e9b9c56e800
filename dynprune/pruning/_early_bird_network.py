"""The network of an early-bird ticket, without the channels that were pruned."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from dynprune.core import NumericalWarning, isolated
from dynprune.pruning._remove_channels import remove_channels
from dynprune.pruning._scales import scales
from dynprune.pruning._trace import example_inputs, trace
from dynprune.system import GradientSystem


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Built:
    """Hold a smaller network and where its parameters lay in the whole one.

    Args:
        network: The smaller network, in the mode of the user's.
        masks: Name to boolean tensor, of prunable weights and of all that lost some.
        flops: Of one example, in the whole and in the smaller network.
    """

    network: nn.Module
    masks: dict[str, Tensor]
    flops: tuple[float, float]

    def __repr__(self) -> str:
        """Return one line."""
        return f"Built(flops={self.flops})"


@final
class SmallerNet:
    """Take channels out of a system's network.

    Args:
        system: The system; it is traced now, so that a graph that cannot be followed
            is refused before anything is trained.

    Raises:
        InvalidInputError: If the graph cannot be followed.
    """

    def __init__(self, system: GradientSystem) -> None:
        self._system = system
        self._inputs = example_inputs(system)
        trace(system.module, self._inputs)

    def without(
        self,
        masks: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
    ) -> Built:
        """Build the network without some channels.

        Args:
            masks: Name of a scale to boolean tensor, True = kept.
            state: Name to parameter of the whole network.
            buffers: Name to buffer of the whole network.

        Returns:
            The smaller network.

        Warns:
            NumericalWarning: If a norm lost all its channels, or channels stay.
        """
        names = scales(self._system)
        net = _filled(self._system.module, state, buffers)
        lost: dict[str, Tensor] = {}
        own = {id(part): name for name, part in net.named_parameters()}
        with torch.no_grad():
            for name, mask in masks.items():
                norm = net.get_submodule(names[name])
                for slot in ("weight", "bias"):
                    part = norm.get_parameter(slot)
                    part.mul_(mask.to(part))
                    lost[own[id(part)]] = mask
        chosen = {names[name]: mask for name, mask in masks.items()}
        reduced = remove_channels(net, chosen, self._inputs)
        lost |= dict(reduced.kept_items)
        empty = [name for name, mask in chosen.items() if not bool(mask.any())]
        if empty or reduced.unreached:
            warnings.warn(
                f"No channel is left of {empty or 'no norm'}: the first of each stays, "
                "at scale and shift zero; raise the density or lower the penalty. "
                f"Channels of {list(reduced.unreached) or 'no norm'} could not be "
                "taken out and stay, at zero.",
                NumericalWarning,
                stacklevel=3,
            )
        flops = self._flops(net), self._flops(reduced.network)
        prunable, trained = self._system.prunable, set(self._system.names)
        alive = {n: torch.ones_like(state[n], dtype=torch.bool) for n in prunable}
        return Built(
            network=reduced.network.train(self._system.model.training),
            masks=alive | {n: m for n, m in lost.items() if n in trained},
            flops=flops,
        )

    def _flops(self, net: nn.Module) -> float:
        leaves: list[Any] = pytree.tree_leaves(self._inputs)
        count = next(len(x) for x in leaves if isinstance(x, Tensor) and x.ndim)
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), isolated(0), counter:
            net(*self._inputs)
        return counter.get_total_flops() / count


def _filled(
    module: nn.Module, state: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> nn.Module:
    net = copy.deepcopy(module)
    own: dict[str, Tensor] = dict(net.named_parameters())
    with torch.no_grad():
        for name, part in net.named_buffers():
            part.copy_(buffers[name])
        for name, value in state.items():
            own[name].copy_(value)
    return net
