"""Whether the output of a masked network still depends on its input."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils import _pytree as pytree

from dynprune.core import derive_seed, generator, isolated
from dynprune.pruning._example_count import example_count, examples_in
from dynprune.system import GradientSystem

_EXAMPLES = 8
_NO_INPUT = frozenset({"label", "labels", "target", "targets"})


class Dependence(Enum):
    """What the derivative of the output by the input says."""

    KEPT = "kept"
    LOST = "lost"
    UNTESTABLE = "untestable"


class Start(Enum):
    """Where the derivative is taken: weights and input."""

    OWN = "the weights and the data"
    POSITIVE = "positive weights and input"
    SPREAD = "positive weights, input in the range of the data"


def dependence(
    system: GradientSystem, masks: Mapping[str, Tensor]
) -> tuple[Dependence, float]:
    r"""Test whether a path of kept weights leads from the input to the output.

    The test is the derivative :math:`\partial (c \cdot f_{m \odot \theta}(x)) /
    \partial x` with a random c. Every term of it is a product along one path, and a
    pruned weight is exactly zero, so a derivative that is not zero proves a path, and
    without a path it is exactly zero. It is taken

    1. at the weights themselves, on the first examples of the data;
    2. if that is zero (dead units), at positive random weights on the same mask, of
       sum one for each output unit, without biases, with unit norm statistics and a
       positive random input, where rectifiers let everything pass and no signal grows
       or dies with depth; then with an input spread over the range of the data, which
       networks want that shift or negate it;
    3. if that is zero, without a mask at those same two places: only if the dense
       network passes where the masked one did not does the mask get the blame. A
       network without a derivative by its input (computed under ``no_grad``, rounded,
       …), or that stops all such signals, is untestable, not lost.

    Skip connections and everything else that is no prunable weight count as paths. For
    (x, y) batches the output is the network's; with ``batch_loss`` it is the loss, and
    the input is each floating-point tensor that the network is called with (labels and
    targets by keyword excepted), since only ``batch_loss`` knows the output. Integer
    inputs (token ids) count where they enter an ``nn.Embedding``: its output is
    then what is differentiated by, unless all of it is pruned. Untestable are integer
    inputs that enter another way, a ``batch_loss`` that never calls the network itself,
    a network that refuses inputs with a derivative (``x.numpy()``) or such numbers, and
    systems over several ranks, whose parts of the data differ.

    Args:
        system: The system; left as it is.
        masks: Name to boolean tensor, for each of ``system.prunable``.

    Returns:
        The finding, and what it cost in gradients over all data.

    Cost:
        As a rule one pass of at most 8 examples (of one batch with ``batch_loss``,
        or where x is no tensor, of which it is not known what an example has) and two
        copies of the weights; at most five passes where the first is zero.
    """
    if system.ranks.group is not None:
        return Dependence.UNTESTABLE, 0.0
    batch = next(system.batches())
    if system.batch_loss is None and all(isinstance(part, Tensor) for part in batch):
        batch = tuple(part[:_EXAMPLES] for part in batch)
    share = examples_in(system, batch) / example_count(system)
    all_kept = {name: torch.ones_like(mask) for name, mask in masks.items()}
    tries = [(masks, start) for start in Start]
    tries += [(all_kept, start) for start in (Start.POSITIVE, Start.SPREAD)]
    for count, (kept, start) in enumerate(tries, start=1):
        if _passes(system, kept, batch, start):
            found = Dependence.KEPT if kept is masks else Dependence.LOST
            return found, count * share
    return Dependence.UNTESTABLE, len(tries) * share


def _passes(
    system: GradientSystem, masks: Mapping[str, Tensor], batch: Any, start: Start
) -> bool:
    values, buffers = _masked(system, masks), system.buffers
    closed = _closed(system.module, masks)
    if start is not Start.OWN:
        _make_positive_(values, buffers, system, masks)
    try:
        return _slope(system, values, buffers, batch, start, closed)
    except torch.OutOfMemoryError:
        raise
    except Exception:
        # the same call worked without a derivative by the input, at the door: there
        # is none (the input leaves torch on its way), or such numbers are refused
        return False


def _slope(
    system: GradientSystem,
    values: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    batch: Any,
    start: Start,
    closed: Collection[nn.Module],
) -> bool:
    with (
        isolated(0),
        torch.enable_grad(),
        _differentiated(system.module, batch, start, closed) as inputs,
    ):
        if system.batch_loss is None:
            output = system.forward(values, buffers, batch[0])
        else:
            output = system.batch_mean(values, buffers, batch)
        return _depends(output, inputs)


def _depends(output: Any, inputs: list[Tensor]) -> bool:
    leaves = [
        leaf
        for leaf in pytree.tree_leaves(output)
        if isinstance(leaf, Tensor) and leaf.requires_grad
    ]
    if not leaves or not inputs:
        return False
    slopes = torch.autograd.grad(
        leaves,
        inputs,
        grad_outputs=[_positive_like(leaf, "output") for leaf in leaves],
        allow_unused=True,
    )
    return any(
        bool(((slope != 0) & torch.isfinite(slope)).any())
        for slope in slopes
        if slope is not None
    )


def _masked(system: GradientSystem, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    named = {name: part.detach() for name, part in system.module.named_parameters()}
    named |= system.unflatten(system.state)
    for name, mask in masks.items():
        named[name] = named[name] * mask.to(named[name].device)
    return named


def _make_positive_(
    values: dict[str, Tensor],
    buffers: dict[str, Tensor],
    system: GradientSystem,
    masks: Mapping[str, Tensor],
) -> None:
    for name, part in values.items():
        if name in masks:
            full = _positive_like(part, name) * masks[name].to(part.device)
            total = full.sum(tuple(range(1, full.ndim)), keepdim=True)
            values[name] = full / total.clamp_min(0.5)
        elif name.endswith("bias"):
            values[name] = torch.zeros_like(part)
        elif part.ndim <= 1:
            values[name] = part.abs().masked_fill(part == 0, 1.0)
        else:
            values[name] = part.abs()
    for prefix, module in system.module.named_modules():
        if isinstance(module, _NormBase):
            mean, var = f"{prefix}.running_mean", f"{prefix}.running_var"
            for name, value in ((mean, 0.0), (var, 1.0)):
                key = name.removeprefix(".")
                if key in buffers:
                    buffers[key] = torch.full_like(buffers[key], value)


def _positive_like(tensor: Tensor, name: str) -> Tensor:
    # between one half and three halves, the same on every device
    make = generator(derive_seed("dependence", name))
    drawn = torch.rand(tensor.shape, generator=make).add_(0.5)
    return drawn.to(device=tensor.device, dtype=tensor.dtype)


def _closed(net: nn.Module, masks: Mapping[str, Tensor]) -> set[nn.Module]:
    # embeddings that are pruned whole: the output is differentiated by what leaves them
    empty = {name for name, mask in masks.items() if not bool(mask.any())}
    gone = {id(part) for name, part in net.named_parameters() if name in empty}
    return {
        module
        for module in net.modules()
        if isinstance(module, nn.Embedding)
        and id(module._parameters.get("weight")) in gone
    }


@contextmanager
def _differentiated(
    net: nn.Module, batch: Any, start: Start, closed: Collection[nn.Module]
) -> Iterator[list[Tensor]]:
    """Collect what enters a network, as leaves to differentiate by.

    Args:
        net: The network; it has hooks while the block runs.
        batch: What it will be called on.
        start: What shall enter: it, or random numbers instead.
        closed: Embeddings whose output nothing enters by.

    Yields:
        A list that fills when the network is called.
    """
    inputs: list[Tensor] = []
    ids = {
        (leaf.data_ptr(), leaf.numel())
        for leaf in pytree.tree_leaves(batch)
        if isinstance(leaf, Tensor) and not leaf.is_floating_point()
    }

    def leaf(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        entering = value.detach().clone()
        if start is not Start.OWN:
            entering = _positive_like(value, "input")
        if start is Start.SPREAD and value.numel():
            low, high = value.detach().aminmax()
            entering = low + (high - low) * (entering - 0.5)
        inputs.append(entering.requires_grad_())
        return inputs[-1].clone()  # so that layers may work in place

    def enters(_: nn.Module, given: Any, named: dict[str, Any]) -> Any:
        changed = {
            name: value if name in _NO_INPUT else pytree.tree_map(leaf, value)
            for name, value in named.items()
        }
        return pytree.tree_map(leaf, given), changed

    def embeds(own: nn.Module, given: Any, named: dict[str, Any], output: Any) -> Any:
        if own in closed:
            return output
        index = given[0] if given else named["input"]
        return leaf(output) if (index.data_ptr(), index.numel()) in ids else output

    hooks = [net.register_forward_pre_hook(enters, with_kwargs=True)]
    hooks += [
        part.register_forward_hook(embeds, with_kwargs=True)
        for part in net.modules()
        if isinstance(part, nn.Embedding)
    ]
    try:
        yield inputs
    finally:
        for hook in hooks:
            hook.remove()
