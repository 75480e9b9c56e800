"""Whether a ticket's state is zero where it prunes."""

from torch import Tensor

from dynprune.tickets._ticket import Ticket


def zeros_where_pruned(ticket: Ticket) -> tuple[str, ...]:
    r"""Return the layers whose state is zero at most pruned weights, not at kept ones.

    Layer l is one of them if

    .. math:: \frac{|\{i : m_i = 0, \theta_i = 0\}|}{|\{i : m_i = 0\}|} > \tfrac{1}{2}
              \ge \frac{|\{i : m_i = 1, \theta_i = 0\}|}{|\{i : m_i = 1\}|}

    over its weights. A shuffled or inverted mask then uncovers zeros, and is no control
    of which weights are kept: :math:`m' \odot \theta` is a network without these
    weights, not one with others. So it is where a state was trained under the mask.

    Args:
        ticket: The ticket.

    Returns:
        Parameter names, in the order of the masks; none of a layer that keeps or prunes
        nothing.

    Example:
        >>> import torch
        >>> kept = {"w": torch.tensor([True, True, False, False])}
        >>> zeros_where_pruned(Ticket.make(kept, {"w": torch.tensor([1.0, 2, 0, 0])}))
        ('w',)
        >>> zeros_where_pruned(Ticket.make(kept, {"w": torch.tensor([1.0, 2, 3, 4])}))
        ()
    """
    state = dict(ticket.state_items)
    return tuple(
        name
        for name, mask in ticket.mask_items
        if bool(mask.any())
        and not bool(mask.all())
        and _mostly_zero(state[name][~mask])
        and not _mostly_zero(state[name][mask])
    )


def _mostly_zero(values: Tensor) -> bool:
    return 2 * int(values.count_nonzero()) < values.numel()
