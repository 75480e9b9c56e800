"""The network of an export in a file: its tensors, and how it differs from a model."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from dynprune.core import InvalidInputError
from dynprune.tickets._apply import differences, listed
from dynprune.tickets._channel_map import ChannelMap
from dynprune.tickets._dense import to_dense
from dynprune.tickets._sparse_linear import SparseLinear, is_linear
from dynprune.tickets._trace import symbolic

_SIZES = (
    "in_features",
    "out_features",
    "in_channels",
    "out_channels",
    "groups",
    "num_features",
    "num_parameters",
)
# nor does it matter where transformers read the weights
_NO_SETTINGS = {*_SIZES, *vars(nn.Module()), "name_or_path"}
_PLAIN = {bool, int, float, str, type(None)}


def placed(root: nn.Module, path: str, part: nn.Module) -> nn.Module:
    """Put a module in a network, which is it itself where the path is empty.

    Args:
        root: The network; changed in place.
        path: Name of the module that it replaces.
        part: The module.

    Returns:
        The network.
    """
    if not path:
        return part
    root.set_submodule(path, part)
    return root


def pack_network(net: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the metadata of a file that holds a network.

    Code is not among them: :func:`unpack_network` needs the model that the network was
    made from.

    Args:
        net: What ``to_sparse``, ``reduce`` or ``remove_channels`` made.

    Returns:
        Copies of parameters and buffers by name, and plain values.
    """
    modules = dict(net.named_modules())
    return {name: part.detach().clone() for name, part in _tensors(net)}, {
        "modules": _types(net),
        "training": [name for name, part in modules.items() if part.training],
        "learned": [name for name, p in net.named_parameters() if p.requires_grad],
        "sizes": {name: own for name, part in modules.items() if (own := _sizes(part))},
        "settings": {
            name: own for name, part in modules.items() if (own := _settings(part))
        },
        "sparse": {
            name: part.layout
            for name, part in modules.items()
            if isinstance(part, SparseLinear)
        },
        "graphs": {
            name: _describe(part)
            for name, part in modules.items()
            if isinstance(part, fx.GraphModule)
        },
    }


def unpack_network(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], model: nn.Module
) -> nn.Module:
    """Make the network of which :func:`pack_network` gave these.

    Args:
        tensors: By name.
        metadata: Plain values.
        model: The whole model that it was made from, with any weights; not changed.

    Returns:
        The network in the mode that it had, on the devices of the model, with copies
        of the tensors.

    Raises:
        InvalidInputError: If the model is another one, or cannot be copied.

    Example:
        >>> import torch
        >>> from dynprune.tickets import remove_units
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> keep = {"0": torch.tensor([True, True, False, True])}
        >>> small = remove_units(net, keep, example=torch.ones(1, 3))
        >>> unpack_network(*pack_network(small), net)[2]
        Linear(in_features=3, out_features=2, bias=True)
    """  # noqa: DOC502 - some are raised by the parts
    made = _with_sparse(to_dense((), model).eval(), tensors, metadata)
    for name, described in metadata["graphs"].items():
        made = _with_maps(made, name, described, tensors)
    _check_types(made, model, metadata["modules"])
    _check_settings(made, model, metadata["settings"])
    _resize(made, model, tensors, metadata["sizes"])
    _fill(made, model, tensors)
    for name, weight in made.named_parameters():
        weight.requires_grad_(name in metadata["learned"])
    for name, part in made.named_modules():
        part.training = name in metadata["training"]
    return made


def _tensors(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from net.named_parameters()
    yield from net.named_buffers()


def _types(net: nn.Module) -> dict[str, str]:
    return {name: type(part).__name__ for name, part in net.named_modules()}


def _sizes(module: nn.Module) -> dict[str, int]:
    own = vars(module)
    return {slot: own[slot] for slot in _SIZES if type(own.get(slot)) is int}


def _settings(module: nn.Module) -> dict[str, Any]:
    # plain attributes that no removal changes; a graph has them in its code
    if isinstance(module, fx.GraphModule):
        return {}
    return {
        slot: _plain(value)
        for slot, value in vars(module).items()
        if slot not in _NO_SETTINGS and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return type(value) in _PLAIN


def _plain(value: Any) -> Any:
    # as JSON gives it back
    return list(map(_plain, value)) if isinstance(value, tuple) else value


def _other(model: nn.Module, found: list[str]) -> InvalidInputError:
    return InvalidInputError(
        f"The network in the file was made from another model than this "
        f"{type(model).__name__}: {listed(found)}. Pass the whole model that was "
        "exported, with any weights."
    )


def _check_types(net: nn.Module, model: nn.Module, saved: Mapping[str, str]) -> None:
    own = _types(net)
    wrong = [
        f"{name or 'the model itself'} is {own.get(name, 'missing')} instead of "
        f"{saved.get(name, 'missing')}"
        for name in {**saved, **own}
        if own.get(name) != saved.get(name)
    ]
    if wrong:
        raise _other(model, wrong)


def _check_settings(
    net: nn.Module, model: nn.Module, saved: Mapping[str, Mapping[str, Any]]
) -> None:
    modules = dict(net.named_modules())
    found = [
        (name, slot, own[slot], value)
        for name, settings in saved.items()
        for own in [_settings(modules[name])]
        for slot, value in settings.items()
        if slot in own  # a call may leave attributes behind
    ]
    wrong = [
        f"{name or 'the model itself'} has {slot}={own!r} instead of {value!r}"
        for name, slot, own, value in found
        if own != value and repr(own) != repr(value)  # NaN is not itself
    ]
    if wrong:
        raise _other(model, wrong)


def _resize(
    net: nn.Module,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    sizes: Mapping[str, Mapping[str, int]],
) -> None:
    modules = dict(net.named_modules())
    for name, saved in sizes.items():
        part, own = modules[name], _sizes(modules[name])
        larger = any(own.get(slot, 0) < size for slot, size in saved.items())
        if larger or (isinstance(part, SparseLinear) and own != saved):
            raise _other(model, [f"{name} has {own} instead of {dict(saved)}"])
        for slot, size in saved.items():
            setattr(part, slot, size)
        bias = tensors.get(f"{name}.bias" if name else "bias")
        if bias is not None and part._parameters.get("bias", bias) is None:
            place = next(part.parameters()).device
            part.bias = nn.Parameter(bias.to(place))  # constants went there


def _fill(net: nn.Module, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    own = dict(_tensors(net))
    found = {name: _as_saved(part, tensors.get(name)) for name, part in own.items()}
    lines = differences(tensors, found, "in the model", "in the file", dtypes=False)
    if lines:
        raise _other(model, lines)
    for name, part in own.items():
        part.data = tensors[name].to(part.device, copy=True)  # tied ones stay tied


def _as_saved(part: Tensor, saved: Tensor | None) -> Tensor:
    # what may have become the saved tensor counts as it
    if saved is None or part.device.type == "meta" or part.ndim != saved.ndim:
        return part
    pairs = zip(part.shape[:2], saved.shape[:2], strict=True)  # outputs and inputs
    smaller = all(a >= b for a, b in pairs) and part.shape[2:] == saved.shape[2:]
    return saved if smaller else part


def _with_sparse(
    net: nn.Module, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> nn.Module:
    swapped: dict[nn.Module, SparseLinear] = {}
    for path, part in list(net.named_modules(remove_duplicate=False)):
        layout = metadata["sparse"].get(path)
        if layout is not None and is_linear(part):
            swapped[part] = new = SparseLinear.of(part, layout=layout)
            for slot in ("values", "rows", "columns"):
                saved = tensors[f"{path}.{slot}" if path else slot]
                setattr(new, slot, saved.to(new.values.device))
        if part in swapped:
            net = placed(net, path, swapped[part])
    return net


def _describe(graph: fx.GraphModule) -> dict[str, Any]:
    modules = dict(graph.named_modules())
    maps = []
    for node in graph.graph.nodes:
        part = modules.get(str(node.target)) if node.op == "call_module" else None
        if isinstance(part, ChannelMap):
            (source,), (reader,) = node.all_input_nodes, node.users
            maps.append([node.target, source.name, reader.name, part.size, part.dim])
    return {"maps": maps, "code": _digest(graph), "torch": str(torch.__version__)}


def _digest(graph: fx.GraphModule) -> str:
    return hashlib.sha256(graph.code.encode()).hexdigest()


def _with_maps(
    net: nn.Module,
    name: str,
    described: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> nn.Module:
    # trace a module again and put the maps between the nodes where they were
    try:
        graph = symbolic(net.get_submodule(name))
        nodes = {node.name: node for node in graph.graph.nodes}
        own = dict(graph.named_children())
        for target, source, reader, size, dim in described["maps"]:
            if target in own:  # the model is a smaller network itself
                continue
            made = ChannelMap((), (), dim=dim)
            made.size = size
            for slot in ("takes", "places"):
                start = f"{name}.{target}" if name else target
                setattr(made, slot, tensors[f"{start}.{slot}"])
            graph.add_submodule(target, made.to(next(net.parameters()).device))
            with graph.graph.inserting_before(nodes[reader]):
                mapped = graph.graph.call_module(target, (nodes[source],))
            nodes[reader].replace_input_with(nodes[source], mapped)
        graph.recompile()
    except Exception as error:  # whatever a user's forward raises
        raise _other(net, [f"{name or 'it'} cannot be traced ({error})"]) from error
    if _digest(graph) != described["code"]:
        versions = f"torch {torch.__version__} (file: {described['torch']})"
        raise _other(net, [f"{name or 'it'} has another graph under {versions}"])
    return placed(net, name, graph.eval())
