"""Bridge to ``torch.nn.utils.prune``: masks in the graph of a user's model."""

import copy
from collections.abc import Collection, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from dynprune.core import InvalidInputError
from dynprune.system import weight_names
from dynprune.tickets._apply import check_masks

_ORIGINAL, _MASK = "_orig", "_mask"


def reparametrise(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Put masks on a model's weights with ``custom_from_mask``, tied ones everywhere.

    Three things that torch leaves broken are mended: such a module can be copied with
    ``copy.deepcopy``; its masked weight is fresh after ``load_state_dict``; and the
    output projection of attention, which reads a weight without calling its module,
    sees the weight of this step and not of the first one.

    Args:
        model: The user's model; it is changed.
        masks: Parameter name to boolean tensor.
    """
    check_masks(masks.items(), model)
    named = dict(model.named_parameters())
    wanted = {id(named[name]): mask for name, mask in masks.items()}
    places = [
        (module, attribute, wanted[id(part)], part.device)
        for module in model.modules()
        for attribute, part in module.named_parameters(recurse=False)
        if id(part) in wanted
    ]
    for module, attribute, mask, device in places:
        prune.custom_from_mask(module, attribute, mask.to(device))
    for module in dict.fromkeys(module for module, *_ in places):
        module.__dict__["__deepcopy__"] = _Copier(module)
        module.register_load_state_dict_post_hook(refresh)
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention) and _methods(module.out_proj):
            module.register_forward_pre_hook(_refresh_projection)


def refresh(module: nn.Module, *_: Any) -> None:
    """Compute the masked weights of a pruned module again.

    Args:
        module: One that ``torch.nn.utils.prune`` masks; another is left as it is.
    """
    for method in _methods(module):
        method(module, ())


def copied(model: nn.Module) -> nn.Module:
    """Copy a model; weights that ``torch.nn.utils.prune`` computed are no obstacle.

    Args:
        model: The user's model.

    Returns:
        A deep copy, in which these weights are outside any graph until its next pass.
    """
    computed = [
        getattr(module, str(method._tensor_name))
        for module in model.modules()
        for method in _methods(module)
    ]
    # not leaves of a graph, which torch does not copy
    memo: dict[int, Any] = {id(part): part.detach().clone() for part in computed}
    return copy.deepcopy(model, memo)


def make_permanent_(module: nn.Module) -> None:
    """Make the masks of one module permanent and take the hooks away.

    Args:
        module: One that ``torch.nn.utils.prune`` masks; another is left as it is.
    """
    names = [str(method._tensor_name) for method in _methods(module)]
    for name in names:
        prune.remove(module, name)
    # optimisers and their files go by the order
    own = _ordered(module, first=names)
    module._parameters.clear()
    module._parameters.update(own)
    if isinstance(module.__dict__.get("__deepcopy__"), _Copier):
        del module.__dict__["__deepcopy__"]
    hooks: tuple[dict[int, Any], ...] = (
        module._load_state_dict_post_hooks,
        module._forward_pre_hooks,
    )
    for kind in hooks:
        for key, hook in list(kind.items()):
            if hook in {refresh, _refresh_projection}:
                del kind[key]


def _refresh_projection(attention: nn.MultiheadAttention, _: Any) -> None:
    refresh(attention.out_proj)


def _methods(module: nn.Module) -> list[prune.BasePruningMethod]:
    hooks = module._forward_pre_hooks.values()
    return [hook for hook in hooks if isinstance(hook, prune.BasePruningMethod)]


@final
class _Copier:
    """Copy a pruned module; the weight in the graph is computed again in the copy.

    Args:
        module: The one it belongs to.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, memo: dict[int, Any]) -> nn.Module:
        """Return the copy, as ``copy.deepcopy`` asks for it.

        Args:
            memo: What is copied already.

        Returns:
            The copy.
        """
        made: nn.Module = self.module.__new__(type(self.module))
        memo[id(self.module)] = made
        computed = {method._tensor_name for method in _methods(self.module)}
        for name in computed:  # recurrent layers hold it in a list, too
            part = self.module.__dict__[name]
            memo[id(part)] = part.detach().clone()
        for key, value in self.module.__dict__.items():
            if key not in computed:
                made.__dict__[key] = copy.deepcopy(value, memo)
        refresh(made)
        return made


def read(
    model: nn.Module,
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Read masks, state and buffers of a model pruned with ``torch.nn.utils.prune``.

    A weight held in several places has the name of its first place, and is masked and
    counted if it is in any of them.

    Args:
        model: The user's model.

    Returns:
        Masks of pruned tensors and of every prunable weight, the parameters before
        masking, and the buffers that are no masks.

    Raises:
        InvalidInputError: If nothing of the model is pruned that way, or a tied weight
            has two masks.
    """  # noqa: DOC502 - raised by _masks
    own = _masks(model)
    weights = {
        id(part)
        for module in model.modules()
        for attribute, part in module._parameters.items()
        if attribute.removesuffix(_ORIGINAL) in weight_names(module)
    }
    masks: dict[str, Tensor] = {}
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, part, _ in _places(model):
        if id(part) in seen:
            continue
        seen.add(id(part))
        state[name] = part.detach()
        if id(part) in own:
            masks[name] = own[id(part)][1]
        elif id(part) in weights:
            masks[name] = torch.ones_like(part, dtype=torch.bool)
    found = {name + _MASK for name, _, mask in _places(model) if mask is not None}
    others = {
        name: part.detach() for name, part in model.named_buffers() if name not in found
    }
    return masks, state, others


def _places(model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    # every holder of every parameter, by the name it has without a mask
    for prefix, module in model.named_modules():
        start = f"{prefix}." if prefix else ""
        for attribute, part in _ordered(module):
            if part is None:
                continue
            plain = attribute.removesuffix(_ORIGINAL)
            mask = module._buffers.get(plain + _MASK) if plain != attribute else None
            yield start + (attribute if mask is None else plain), part, mask


def _ordered(
    module: nn.Module, *, first: Collection[str] = ()
) -> list[tuple[str, nn.Parameter | None]]:
    # as before torch put the masked ones last: weights, then biases
    names: list[str] = []
    if isinstance(module, nn.RNNBase):
        names = list(module._flat_weights_names)

    def place(item: tuple[str, Any]) -> tuple[int, bool, bool]:
        name = item[0].removesuffix(_ORIGINAL)
        masked = name != item[0] or name in first
        known = names.index(name) if name in names else len(names)
        return known, "bias" in name, not masked

    return sorted(module._parameters.items(), key=place)


def _masks(model: nn.Module) -> dict[int, tuple[str, Tensor]]:
    found: dict[int, tuple[str, Tensor]] = {}
    for name, part, mask in _places(model):
        if mask is None:
            continue
        holder, other = found.setdefault(id(part), (name, mask != 0))
        if not torch.equal(other, mask != 0):
            raise InvalidInputError(
                f"{name} and {holder} are one tied weight, but {name} has an other "
                f"mask than {holder}. Prune it in one place only, or with one mask."
            )
    if not found:
        raise InvalidInputError(
            "No tensor of the model is pruned with torch.nn.utils.prune (no "
            f"'*{_MASK}' buffer beside a '*{_ORIGINAL}' parameter). Prune it first, or "
            "use Ticket.make."
        )
    return found
