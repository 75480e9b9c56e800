"""Chains of linear layers, batched by hand: a tenth of the calls that vmap makes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional

from dynprune.system import LossFn

Values = Mapping[str, Tensor]
Losses = Callable[[Values, Any], Tensor]
_IGNORED = -100  # class number of the targets that cross_entropy leaves out
_POINTWISE = (
    nn.Identity,
    nn.Tanh,
    nn.Sigmoid,
    nn.ReLU,
    nn.LeakyReLU,
    nn.ELU,
    nn.SiLU,
    nn.GELU,
    nn.Softplus,
)


def chain_losses(
    net: nn.Module,
    loss_fn: LossFn | None,
    *,
    runs: int,
    own: bool,
    stacked: Sequence[str],
) -> Losses | None:
    r"""Return the losses of R chains of linear layers as one batched computation.

    With :math:`W_r, b_r` the tensors of run r, a layer is
    :math:`h_r \mapsto h_r W_r^\top + b_r`, one ``baddbmm`` for all r.

    Args:
        net: One of the networks.
        loss_fn: Mean loss of outputs and targets.
        runs: R.
        own: Whether batches are ``(R, B, …)``, or shared by all.
        stacked: Names of the parameters that have a slice for each run.

    Returns:
        A function of the parameters by name (those of ``stacked``, shape ``(R, …)``)
        and a batch; None if the network is no such chain, or has hooks.
    """
    parts = list(_parts(net, ""))
    if loss_fn is None or any(part is None for _, part in parts):
        return None
    layers = [(name, part) for name, part in parts if part is not None]
    tensors = {
        f"{name}.{key}" if name else key
        for name, part in layers
        for key, _ in part.named_parameters()
    }
    if not tensors or tensors != set(stacked):
        return None  # some are shared by layers or by runs
    mean = _mean_losses(loss_fn, own=own)

    def losses(values: Values, batch: Any) -> Tensor:
        x, y = batch
        h = x if own else x.expand(runs, *x.shape)
        for name, part in layers:
            if isinstance(part, nn.Linear):
                h = _linear(h, values, name)
            elif isinstance(part, nn.Flatten):
                h = h.flatten(2)
            else:
                h = part(h)
        return mean(h, y)

    return losses


def _linear(h: Tensor, values: Values, name: str) -> Tensor:
    start = f"{name}." if name else ""
    weight, bias = values[f"{start}weight"], values.get(f"{start}bias")
    if h.ndim > 3:  # the last dimension is the layer's, those before it are examples
        return _linear(h.flatten(1, -2), values, name).view(*h.shape[:-1], -1)
    if bias is None:
        return torch.bmm(h, weight.mT)
    return torch.baddbmm(bias.unsqueeze(1), h, weight.mT)


def _mean_losses(loss_fn: LossFn, *, own: bool) -> Callable[[Any, Any], Tensor]:
    def cross_entropies(outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = targets if own else targets.expand(len(outputs), *targets.shape)
        each = functional.cross_entropy(
            outputs.flatten(0, 1), wanted.flatten(0, 1), reduction="none"
        ).view(len(outputs), -1)
        if wanted.is_floating_point():
            return each.mean(1)
        counted = (wanted != _IGNORED).flatten(1).sum(1)
        return each.sum(1) / counted

    if loss_fn is functional.cross_entropy:
        return cross_entropies
    return vmap(
        lambda outputs, targets: loss_fn(outputs, targets).reshape(()),
        in_dims=(0, 0 if own else None),
        randomness="error",
    )


def _parts(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module | None]]:
    if _has_hooks(module):
        yield name, None
    elif type(module) is nn.Sequential:
        for key, part in module._modules.items():  # a module used twice, twice
            assert part is not None
            yield from _parts(part, f"{name}.{key}" if name else key)
    elif type(module) is nn.Flatten:
        whole = (module.start_dim, module.end_dim) == (1, -1)
        yield name, module if whole else None
    else:
        known = type(module) is nn.Linear or type(module) in _POINTWISE
        yield name, module if known else None


def _has_hooks(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )
