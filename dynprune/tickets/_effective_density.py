"""What is left of a density when disconnected weights are left out."""

from typing import Any

from torch import nn

from dynprune.tickets._chain import chain_effective
from dynprune.tickets._given import check_model, check_tickets
from dynprune.tickets._path_network import PathNetwork, check_example
from dynprune.tickets._ticket import Ticket


def effective_density(
    ticket: Ticket, model: nn.Module | None = None, *, example: Any = None
) -> dict[str, float]:
    r"""Return the share of weights that are kept and lie on an input–output path.

    .. math:: d_{\text{eff}} = \frac{1}{N} \#\{w : m_w = 1,\;
              w \text{ lies on a path of kept weights from input to output}\}

    With a model, the paths are those of its forward pass: in a private float64 copy
    with positive weights, no biases and linear units, w is on a path iff
    :math:`|w| \, \partial R / \partial |w| > 0` for the summed output R. (The copy has
    random weights where a weight is kept, so one of value 0 counts as a connection.
    Norms and ``relu`` pass units one by one; a max-pooling module passes its whole
    window, a softmax module all units of its dimension; through functions whose slopes
    have signs, such as attention, the condition is ≠ 0. A unit of a constant value,
    such as a sigmoid of 0, starts no path into a Linear or Conv module. Layers whose
    weights have no slope, pruned or not, because of a clamp, a maximum or a choice are
    refused; a gate that is 0 without its bias closes its paths. Masked biases, shifts
    of norms and slopes of activation modules lie on no path and count as kept.)
    Without a model the masks are read as a chain of Linear and Conv layers in their
    order, by boolean reachability of units. **That is wrong where layers are joined
    otherwise**, e.g. by a skip connection, or store their weights otherwise than (out,
    in, …), such as convolutions with groups and Hugging Face ``Conv1D``: pass the model
    there.

    Args:
        ticket: The ticket; only its masks count.
        model: A model with parameters of these names and shapes; not changed.
        example: One example, shape ``(1, …)``, for the model. Of floating-point tensors
            only the shape counts; others are passed on, so of a masked embedding the
            rows that the example asks for are on a path, and no others. A tuple is
            spread into arguments, a mapping into keywords.

    Returns:
        ``"all"`` and each layer to its effective density, in [0, density].

    Raises:
        InvalidInputError: If the masks fit no chain or not the model, the model comes
            without an example, or weights have no slope because a function saturates
            or hides them.

    Cost:
        Two forward passes and a backward pass of one example, and as much again once
        where some kept weight has no path.

    Source:
        Vysogorets and Kempe, *Connectivity Matters: Neural Network Pruning Through the
        Lens of Effective Sparsity*, JMLR 2023; the pass is that of SynFlow.

    Example:
        >>> import torch
        >>> first, last = torch.tensor([[True], [True]]), torch.tensor([[True, False]])
        >>> state = {"a": torch.ones(2, 1), "b": torch.ones(1, 2)}
        >>> ticket = Ticket.make({"a": first, "b": last}, state)
        >>> effective_density(ticket)  # the second hidden unit leads nowhere
        {'all': 0.5, 'a': 0.5, 'b': 0.5}
    """  # noqa: DOC502 - raised by the parts
    check_tickets(ticket=ticket)
    if model is not None:
        check_model(model)
    masks = dict(ticket.mask_items)
    if model is None:
        alive = chain_effective(masks)
    else:
        alive = PathNetwork(model, check_example(example)).effective(masks)
    kept = {name: int(part.sum()) for name, part in alive.items()}
    sizes = {name: part.numel() for name, part in alive.items()}
    total = {"all": sum(kept.values()) / max(1, sum(sizes.values()))}
    return total | {name: kept[name] / max(1, sizes[name]) for name in kept}
