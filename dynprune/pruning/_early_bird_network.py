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

from dynprune.core import InvalidInputError, NumericalWarning, isolated
from dynprune.pruning._from_scores import full_state
from dynprune.pruning._scales import scales
from dynprune.system import GradientSystem, is_resident
from dynprune.tickets import Reduced, remove_channels


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Built:
    """Hold a smaller network and where its parameters lay in the whole one.

    Args:
        network: The smaller network, each module in the mode of the user's.
        masks: Name to boolean tensor, of prunable weights and of all that lost some.
        state: Name to parameter of the whole network; shifts that no mask is for,
            because they are not trained, are zero where pruned.
        flops: Of one example, in the whole and in the smaller network.
    """

    network: nn.Module
    masks: dict[str, Tensor]
    state: dict[str, Tensor]
    flops: tuple[float, float]

    def __repr__(self) -> str:
        """Return one line."""
        return f"Built(flops={self.flops})"


@final
class SmallerNet:
    """Take channels out of a system's network.

    Args:
        system: The system; it is tried now, so that a graph that cannot be followed
            is refused before anything is trained.

    Raises:
        InvalidInputError: If no channel of any norm can be taken out.
    """

    def __init__(self, system: GradientSystem) -> None:
        self._system = system
        self._inputs = _example_inputs(system)
        names = scales(system)
        state = full_state(system, system.state)
        first = {
            name: torch.arange(state[name].numel()).view(state[name].shape) == 0
            for name in names
        }
        _, tried = self._reduced(first, state, system.buffers)
        if len(tried.unreached) == len(names):
            raise InvalidInputError(
                f"Channels of {list(tried.unreached)} cannot be taken out: the norms "
                "are shared, not torch's own, or in modules that torch.fx cannot "
                "follow. Pass unit='weight', which needs no graph."
            )

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
        net, reduced = self._reduced(masks, state, buffers)
        own = {id(part): name for name, part in net.named_parameters()}
        lost, state = reduced.kept, dict(state)
        prunable, trained = self._system.prunable, set(self._system.names)
        for name, mask in masks.items():
            lost[name] = mask
            shift = net.get_submodule(names[name]).bias
            if isinstance(shift, Tensor):
                slot = own[id(shift)]
                lost[slot] = mask
                if slot not in trained:
                    state[slot] = shift.detach().clone()
        empty = [names[name] for name, mask in masks.items() if not bool(mask.any())]
        if empty or reduced.unreached:
            warnings.warn(
                f"No channel is left of {empty or 'no norm'}: the first of each stays, "
                "at scale and shift zero; raise the density or lower the penalty. "
                f"Channels of {list(reduced.unreached) or 'no norm'} could not be "
                "taken out and stay, at zero.",
                NumericalWarning,
                stacklevel=3,
            )
        flops = self._flops(net), self._flops(reduced.network.eval())
        alive = {n: torch.ones_like(state[n], dtype=torch.bool) for n in prunable}
        return Built(
            network=_in_mode(reduced.network, self._system),
            masks=alive | {n: m for n, m in lost.items() if n in trained},
            state=state,
            flops=flops,
        )

    def _reduced(
        self,
        masks: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
    ) -> tuple[nn.Module, Reduced]:
        names = scales(self._system)
        net = _filled(self._system.module, state, buffers)
        with torch.no_grad():
            for name, mask in masks.items():
                norm = net.get_submodule(names[name])
                for part in (norm.weight, norm.bias):
                    if isinstance(part, Tensor):
                        part.mul_(mask.to(part))
        keep = {names[name]: mask for name, mask in masks.items()}
        try:
            return net, remove_channels(net, keep, example=self._inputs)
        except InvalidInputError as error:
            raise InvalidInputError(
                f"{error} Or pass unit='weight', which needs no graph."
            ) from error

    def _flops(self, net: nn.Module) -> float:
        leaves: list[Any] = pytree.tree_leaves(self._inputs)
        count = next(len(x) for x in leaves if isinstance(x, Tensor) and x.ndim)
        counter = FlopCounterMode(display=False)
        with torch.no_grad(), isolated(0), counter:
            net(*self._inputs)
        return counter.get_total_flops() / count


def _in_mode(net: nn.Module, system: GradientSystem) -> nn.Module:
    # modules by their names in the user's model; those that the graph added as a whole
    named = system.model.named_modules(remove_duplicate=False)
    modes = {name: part.training for name, part in named}
    modes |= dict.fromkeys(system.kept_in_eval, False)
    for name, part in net.named_modules():
        part.training = modes.get(name, system.model.training)
    return net


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


def _example_inputs(system: GradientSystem) -> tuple[Any, ...]:
    # what the network is called with on the first batch, cut to two examples
    net = copy.deepcopy(system.module)
    seen: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    net.register_forward_pre_hook(
        lambda _module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True
    )
    batch = next(system.batches())
    if is_resident(batch):  # two examples say all there is to know of shapes
        batch = tuple(part[:2] for part in batch)
    with torch.no_grad(), isolated(0):
        if system.batch_loss is not None:
            system.batch_loss(net, batch)
        else:
            net(batch[0])
    if not seen or seen[0][1]:
        found = f"the keywords {sorted(seen[0][1])}" if seen else "no arguments at all"
        raise InvalidInputError(
            f"The loss calls the network with {found}; its graph is followed from "
            "positional arguments. Wrap it so that it takes tensors by position, or "
            "pass unit='weight'."
        )
    return seen[0][0]
