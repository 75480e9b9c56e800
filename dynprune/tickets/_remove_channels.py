"""Take masked channels out of a network: fewer parameters, the same function."""

import copy
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dynprune.core import (
    InvalidInputError,
    join_parts,
    load_result,
    part_of,
    save_tensors,
)
from dynprune.tickets._channel_map import ChannelMap
from dynprune.tickets._channel_rules import has_channels
from dynprune.tickets._channels import Channels
from dynprune.tickets._follow import CATS, Walk
from dynprune.tickets._function_rules import reads_batch_size
from dynprune.tickets._given import check_keep, check_model
from dynprune.tickets._network import pack_network, placed, unpack_network
from dynprune.tickets._same_outputs import compared, outputs
from dynprune.tickets._shrink import kept_weight, shrink_, shrink_channelwise_
from dynprune.tickets._trace import Example, graphs, shape_of

_KIND = "tickets.Reduced"
_ROUNDINGS = 1e4  # sums of fewer terms, in another order: some thousand at most


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Reduced:
    """Hold a network without its masked channels.

    Args:
        network: The smaller network, in the mode of the whole one and of its class;
            where channels had to be filled up with zeros, an ``fx.GraphModule``, or the
            modules in it that were traced are.
        kept_items: Name of each parameter that became smaller and boolean tensor of
            the shape that it had, True = still there.
        unreached: Norms whose masked channels could not be taken out.
    """

    network: nn.Module
    kept_items: tuple[tuple[str, Tensor], ...]
    unreached: tuple[str, ...]

    @property
    def kept(self) -> dict[str, Tensor]:
        """Parameter name to boolean tensor, True = still there, fresh copies."""
        return {name: part.clone() for name, part in self.kept_items}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the network's tensors and the masks to one safetensors file.

        Code is not stored: :meth:`load` needs the whole model again.

        Args:
            path: Where it shall be.
        """
        tensors, metadata = join_parts({
            "network": pack_network(self.network),
            "kept": (dict(self.kept_items), dict[str, Any]()),
        })
        metadata |= {
            "kind": _KIND,
            "kept": [name for name, _ in self.kept_items],
            "unreached": list(self.unreached),
        }
        save_tensors(path, tensors, metadata)

    @staticmethod
    def load(path: str | os.PathLike[str], model: nn.Module) -> "Reduced":
        """Read what :meth:`save` wrote.

        Args:
            path: The file.
            model: The whole model that it was made from, with any weights: its code,
                and where the tensors are to be. Not changed.

        Returns:
            The network in the mode and with the weights that it had, and its masks.

        Raises:
            InvalidInputError: If the file is missing, truncated, or holds something
                else, or it is one of another model.

        Example:
            >>> import tempfile
            >>> net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
            >>> keep = torch.tensor([True, False, True, True])
            >>> with torch.no_grad():
            ...     _ = net[1].weight.mul_(keep), net[1].bias.mul_(keep)
            >>> small = remove_channels(net, {"1": keep}, example=torch.ones(2, 3))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     small.save(f"{folder}/small")
            ...     Reduced.load(f"{folder}/small", net).network[2]
            Linear(in_features=3, out_features=2, bias=True)
        """  # noqa: DOC502 - raised by load_result

        def read(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Reduced:
            kept, _ = part_of(tensors, metadata, "kept")
            return Reduced(
                network=unpack_network(*part_of(tensors, metadata, "network"), model),
                kept_items=tuple((name, kept[name]) for name in metadata["kept"]),
                unreached=tuple(metadata["unreached"]),
            )

        return load_result(
            path,
            _KIND,
            read,
            what="a network without its masked channels",
            writer="Reduced.save",
        )

    def __repr__(self) -> str:
        """Return one line."""
        return f"Reduced({len(self.kept_items)} parameters became smaller)"


def remove_channels(
    model: nn.Module, keep: Mapping[str, Tensor], *, example: Example
) -> Reduced:
    r"""Take out the channels whose norm has scale and shift zero.

    With :math:`\gamma_c = \beta_c = 0` channel c of a batch norm is zero whatever
    comes in. So are its images under ReLU, pooling and the like, and nothing is lost
    if the row of the layer before it, c itself, and the columns of every layer that
    reads it go: the network has the same function, in train and in eval mode, and
    trains like the masked one. Where branches are added, the sum holds the channels
    that any branch holds, and branches are filled up with zeros; before an operation
    that is not known to map zero to zero in each channel, the whole tensor is restored.
    In contrast :func:`remove_units` leaves no map behind, folds the constants of eval
    mode into biases, and takes a channel of a sum out of all branches or of none.

    A norm that would lose all channels keeps its first, at scale and shift zero. Where
    torch.fx cannot trace the network, the modules in it that it can trace become
    smaller each for itself.

    Args:
        model: The network, masked: γ = β = 0 where pruned. Not changed.
        keep: Name of a batch-norm module to boolean tensor, True = kept.
        example: What the model is called with; a tuple is several arguments.

    Returns:
        The smaller network, and what is left of each parameter.

    Raises:
        InvalidInputError: If a name is no batch norm, a tensor does not fit or scale
            or shift is not zero where it is False, the graph cannot be followed or
            depends on the mode, or the smaller network does not give the same outputs
            on the example.

    Cost:
        Three or four forward passes of the example.

    Source:
        Taking channels out by following the graph is a reconstruction; You et al.,
        *Drawing Early-Bird Tickets*, ICLR 2020, do it for named architectures.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        >>> keep = torch.tensor([True, False, True, True])
        >>> with torch.no_grad():
        ...     _ = net[1].weight.mul_(keep), net[1].bias.mul_(keep)
        >>> small = remove_channels(net, {"1": keep}, example=torch.ones(2, 3)).network
        >>> small.get_submodule("2")
        Linear(in_features=3, out_features=2, bias=True)
    """  # noqa: DOC502 - some are raised by the parts
    check_model(model)
    check_keep(keep)
    made = copy.deepcopy(model)
    modes = {name: part.training for name, part in made.named_modules()}
    zeros = {name: _checked(made, name, mask) for name, mask in keep.items()}
    before = outputs(made.eval(), example)
    kept: dict[str, Tensor] = {}
    reached: set[str] = set()
    for name, graph in graphs(made, example, lasting=True).items():
        walk = Walk(Channels(), made, graph, name=name, zeros=zeros)
        walk.run()
        removal = _Removal(graph, walk)
        removal.run()
        kept |= removal.kept
        reached |= walk.reached
        if removal.maps:
            made = placed(made, name, graph.eval())
    compared(before, made, example, roundings=_ROUNDINGS)
    for name, part in made.named_modules():
        part.training = modes.get(name, model.training)
    return Reduced(
        network=made,
        kept_items=tuple(kept.items()),
        unreached=tuple(
            name
            for name, mask in zeros.items()
            if name not in reached and not bool(mask.all())
        ),
    )


def _checked(model: nn.Module, name: str, mask: Tensor) -> Tensor:
    norm = dict(model.named_modules()).get(name)
    if not isinstance(norm, _BatchNorm) or not norm.affine:
        raise InvalidInputError(
            f"{name!r} is no batch norm with scale and shift. Pass names of those."
        )
    if mask.dtype != torch.bool or mask.shape != norm.weight.shape:
        raise InvalidInputError(
            f"{name!r} has {norm.num_features} channels, found {tuple(mask.shape)} "
            f"{mask.dtype}. Pass one boolean for each, True = kept."
        )
    mask = mask.detach().to("cpu", copy=True)
    for part in (norm.weight, norm.bias):  # there is no shift with bias=False
        if part is not None and bool(part.detach().cpu()[~mask].any()):
            raise InvalidInputError(
                f"Channels of {name!r} were to go whose scale or shift is not zero. "
                "Set both to zero first, or use dp.tickets.remove_units, which takes "
                "units out whatever they do."
            )
    if not bool(mask.any()):
        mask[0] = True
    return mask


@final
class _Removal:
    """Rewrite a graph so that each node has the channels that its axis holds.

    Its modules, which are those of the network, become smaller in any case; without
    maps the network's own code fits them.

    Args:
        graph: The graph; changed in place, and so are its modules.
        walk: What is known of it.
    """

    def __init__(self, graph: fx.GraphModule, walk: Walk) -> None:
        self.kept: dict[str, Tensor] = {}
        self._graph, self._walk = graph, walk
        self.maps = 0

    def run(self) -> None:
        """Rewrite every node."""
        for node in self._walk.nodes:
            self._rewrite(node)
        self._graph.graph.lint()
        self._graph.recompile()

    def _rewrite(self, node: fx.Node) -> None:
        axis = self._walk.axes.get(node)
        if node in self._walk.layers:
            self._shrink(node)
        elif axis is None:
            if not reads_batch_size(node):
                for source in node.all_input_nodes:
                    self._bring(node, source, None, None)
        elif node.target not in CATS:  # it has what its parts have
            for source in node.all_input_nodes:
                self._bring(node, source, axis.held, axis.dim)
            self._shrink_channelwise(node, axis.held)

    def _bring(
        self, node: fx.Node, source: fx.Node, after: Tensor | None, dim: int | None
    ) -> None:
        # make node read these channels of source, all of them by default
        axis, shape = self._walk.axes.get(source), shape_of(source)
        if axis is not None:
            before, dim = axis.held, axis.dim
        elif dim is not None and dim < len(shape):
            before = torch.ones(shape[dim], dtype=torch.bool)
        else:
            return
        after = torch.ones_like(before) if after is None else after
        if len(after) != len(before) or torch.equal(before, after):
            return  # flattened: the positions of the same channels
        # it may be the smaller network of an earlier removal, which has its own
        taken = dict(self._graph.named_children())
        names = (f"channel_map_{i}" for i in itertools.count())
        name = next(name for name in names if name not in taken)
        self.maps += 1
        places = (torch.nonzero(part).flatten().tolist() for part in (before, after))
        made = ChannelMap(*places, dim=dim)
        self._graph.add_submodule(name, made.to(self._device))
        with self._graph.graph.inserting_before(node):
            mapped = self._graph.graph.call_module(name, (source,))
        node.replace_input_with(source, mapped)

    @property
    def _device(self) -> torch.device:
        return next(self._graph.parameters()).device

    def _shrink(self, node: fx.Node) -> None:
        layer = self._walk.layers[node]
        rows, columns = self._walk.axes[node].held, torch.ones(layer.links.shape[1])
        columns = columns.bool() if layer.inputs is None else layer.inputs.held
        if bool(rows.all()) and bool(columns.all()):
            return
        name = self._walk.name_of(node)
        self.kept[f"{name}.weight"] = kept_weight(layer.module, rows, columns)
        if layer.module.bias is not None:
            self.kept[f"{name}.bias"] = rows.clone()
        shrink_(layer.module, rows, columns, torch.zeros(len(rows)).double())

    def _shrink_channelwise(self, node: fx.Node, kept: Tensor) -> None:
        if node.op != "call_module":
            return
        module = self._graph.get_submodule(str(node.target))
        if has_channels(module):
            name = self._walk.name_of(node)
            left = shrink_channelwise_(module, kept)
            self.kept |= {f"{name}.{slot}": part for slot, part in left.items()}
