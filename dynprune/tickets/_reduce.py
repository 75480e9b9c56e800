"""Units without influence are really removed, and the function stays."""

import copy
from collections.abc import Mapping

from torch import Tensor, nn

from dynprune.tickets._channels import Channels
from dynprune.tickets._dense import to_dense
from dynprune.tickets._export_results import Export, size
from dynprune.tickets._follow import follow
from dynprune.tickets._given import check_keep, check_model, check_tickets
from dynprune.tickets._same_outputs import compared, outputs
from dynprune.tickets._shrink import weight_of
from dynprune.tickets._sparse import exported
from dynprune.tickets._ticket import Ticket
from dynprune.tickets._trace import Example


def reduce(ticket: Ticket, model: nn.Module, *, example: Example) -> Export:
    r"""Remove the units that a mask has left without influence, and nothing else.

    A unit goes if nothing that the output depends on reads it, or if it has one value
    c for all inputs (all its incoming weights are pruned, or come from such units);
    then the layers that read it take :math:`b \leftarrow b + W_{:,j} c`. Units that are
    added to each other (residual streams) go together or not at all. Beside zero
    padding a constant that is not zero is no constant at the border, and the unit
    stays. Every layer keeps at least one unit. The result computes the same function
    in eval mode, up to rounding; its layers have the same names and fewer units.

    Followed are Linear, ungrouped and depthwise Conv, BatchNorm, pointwise activations,
    pooling, flattening, concatenation, addition and multiplication; what reads a tensor
    in another way (LayerNorm, attention, a subclass, a shared or parametrised module)
    keeps all of its units. Where torch.fx cannot trace the network, the modules in it
    that it can trace are followed each for itself, such as the feed-forward modules of
    Llama. What such a module puts out is read by others, so its last layer stays whole:
    where each layer is a module of its own, as in Hugging Face BERT, nothing is
    removed, and GPT-2, whose layers are ``Conv1D``, is refused. The table of the result
    says how many units of which layers are left.

    Args:
        ticket: Its masks; not its state.
        model: The model whose own (trained) weights are exported; not changed.
        example: What it is called with, e.g. a batch of one; a tuple is several
            arguments. The outputs before and after are compared on it.

    Returns:
        The smaller model, its sizes, and the error on the example.

    Raises:
        InvalidInputError: If a mask does not fit, torch.fx can follow nothing of the
            network, or the smaller one computes something else on the example.

    Cost:
        Three or four passes of the example; pure bookkeeping in the weights.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> kept = {"2.weight": torch.tensor([[True, False, False, True]] * 2)}
        >>> ticket = Ticket.make(kept, dict(net.named_parameters()))
        >>> reduce(ticket, net, example=torch.ones(1, 3)).module[0]
        Linear(in_features=3, out_features=2, bias=True)
    """  # noqa: DOC502 - raised by to_dense and follow
    check_tickets(ticket=ticket)
    check_model(model)
    dense = to_dense(ticket.mask_items, model)
    modes = {name: part.training for name, part in dense.named_modules()}
    before = outputs(dense.eval(), example)
    sizes = {name: size(part) for name, part in dense.named_modules()}
    channels = follow(dense, example)
    units = {name: len(layer.rows) for name, layer in channels.layers.items()}
    channels.remove_(channels.needed())
    error, scale = compared(before, dense, example)
    for name, part in dense.named_modules():
        part.training = modes[name]
    small = dict(dense.named_modules())
    return Export(
        module=dense,
        layers=tuple(
            (
                name,
                f"{len(weight_of(channels.layers[name].module))} of {count} units",
                sizes[name],
                size(small[name]),
            )
            for name, count in units.items()
        ),
        bytes_before=size(model),
        bytes_after=size(dense),
        error=error,
        scale=scale,
        provenance=exported(ticket, "tickets.reduce"),
    )


def remove_units(
    model: nn.Module, keep: Mapping[str, Tensor], *, example: Example
) -> nn.Module:
    r"""Remove chosen output units of layers, whatever they do to the function.

    What is removed no longer contributes, except that one with a constant value c
    leaves it in the biases, :math:`b \leftarrow b + W_{:,j} c` (a channel behind a
    BatchNorm of scale zero leaves its shift). Every layer that reads a removed unit,
    and every BatchNorm between, becomes smaller. Units that are added to each other
    must be named together.

    Args:
        model: The model; not changed.
        keep: Layer name to boolean tensor over its output units, True = kept.
        example: What the model is called with; a tuple is several arguments.

    Returns:
        The smaller model, in the mode of the old one.

    Raises:
        InvalidInputError: If torch.fx cannot follow the network, a layer is not
            followed, or a unit is part of the output, is read by an operation that
            asks for all units, or is added to one that stays.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        >>> keep = {"0": torch.tensor([True, True, False, True])}
        >>> remove_units(net, keep, example=torch.ones(1, 3))[2]
        Linear(in_features=3, out_features=2, bias=True)
    """  # noqa: DOC502 - raised by follow and without
    check_model(model)
    check_keep(keep)
    made = copy.deepcopy(model)
    modes = {name: part.training for name, part in made.named_modules()}
    channels: Channels = follow(made.eval(), example)
    channels.remove_(channels.without(keep))
    for name, part in made.named_modules():
        part.training = modes[name]
    return made
