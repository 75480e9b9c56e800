"""The path norm of a ticket at the state it is to be trained from."""

from typing import Any

from torch import nn

from dynprune.core import InvalidInputError
from dynprune.tickets._apply import check_same
from dynprune.tickets._given import check_model, check_tickets
from dynprune.tickets._path_network import PathNetwork, check_example
from dynprune.tickets._ticket import Ticket


def path_norm(
    ticket: Ticket, model: nn.Module, *, example: Any, power: int = 1
) -> float:
    r"""Return the sum over paths of products of weights, to the power of 1/p.

    .. math:: \phi_p = \Big( \sum_{\text{paths}} \prod_{e \in \text{path}}
              |m_e \theta_e|^p \Big)^{1/p}

    over all paths from an input to an output, by one forward pass of :math:`|m \odot
    \theta|^p` on ones in float64. Biases start no path; a batch norm multiplies by
    :math:`\gamma / \sqrt{v + \epsilon}`; a max-pooling module counts as a sum over its
    window (called as a function, ``F.max_pool2d``, it stays a maximum). **Constants of
    the forward pass are no weights**: average pooling keeps its factor 1/n and ``0.5 *
    layer(x)`` its 0.5 whatever p. A minus sign is refused where the output falls as a
    weight or an input rises. A function that is homogeneous and never falls, such as a
    maximum or a norm of units, cannot be told from a sum and stays as it is.

    Args:
        ticket: The ticket.
        model: A model of the same names and shapes; not changed.
        example: One example, shape ``(1, …)``; only its shape counts.
        power: p, 1 or 2.

    Returns:
        The norm, float64.

    Raises:
        InvalidInputError: If the ticket does not fit the model, ``power`` is not 1 or
            2, or the network is no sum over paths (layer norm, attention, a minus
            sign, a shift).

    Cost:
        Four forward and two backward passes of one example.

    Source:
        Neyshabur, Tomioka and Srebro, *Norm-Based Capacity Control in Neural Networks*,
        COLT 2015.

    Example:
        >>> import torch
        >>> net = nn.Sequential(*(nn.Linear(*n, bias=False) for n in ((1, 2), (2, 1))))
        >>> state = {
        ...     "0.weight": torch.tensor([[3.0], [-2.0]]),
        ...     "1.weight": torch.tensor([[-4.0, 5.0]]),
        ... }
        >>> masks = {name: torch.ones_like(part).bool() for name, part in state.items()}
        >>> ticket = Ticket.make(masks, state)
        >>> path_norm(ticket, net, example=torch.zeros(1, 1))  # 3·4 + 2·5
        22.0
    """
    check_tickets(ticket=ticket)
    check_model(model)
    if power not in {1, 2}:
        raise InvalidInputError(
            f"A path norm of power {power} was asked for. Pass 1 or 2."
        )
    own = dict(model.named_parameters())
    check_same("parameters", dict(ticket.state_items), own)
    network = PathNetwork(model, check_example(example))
    return network.path_norm(
        ticket.masked_state, dict(ticket.buffer_items), power=power
    )
