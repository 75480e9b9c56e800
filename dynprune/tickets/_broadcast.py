"""One rank's ticket becomes every rank's."""

import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from dynprune.core import InvalidInputError
from dynprune.tickets._ranks import place
from dynprune.tickets._ticket import Ticket

_NONE = -1


def broadcast(
    ticket: Ticket | None,
    *,
    process_group: "dist.ProcessGroup | None" = None,
    source: int = 0,
) -> Ticket:
    """Give every process the ticket of one of them, to the bit.

    Pruners that read data see another shard on every rank; pruned with their own
    masks, ranks would train different networks and average them. Call it on all ranks.

    Args:
        ticket: The ticket on rank ``source``; not read on others, None will do.
        process_group: The processes; all of them by default.
        source: Whose ticket it is, a rank of the group.

    Returns:
        The ticket of rank ``source``.

    Raises:
        InvalidInputError: On all ranks, if rank ``source`` passed none or there is no
            such rank; if no process group was made.

    Cost:
        Two broadcasts: one number, then the bytes that :meth:`Ticket.save` writes.
    """
    if not dist.is_available() or not dist.is_initialized():
        raise InvalidInputError(
            "There is no process group. Call torch.distributed.init_process_group() "
            "first; one process needs no broadcast."
        )
    group = dist.group.WORLD if process_group is None else process_group
    assert group is not None
    if not 0 <= source < dist.get_world_size(group):
        raise InvalidInputError(
            f"source is {source}, the group has ranks 0 to "
            f"{dist.get_world_size(group) - 1}. Pass one of them."
        )
    mine = dist.get_rank(group) == source
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ticket"
        raw = torch.empty(0, dtype=torch.uint8)
        if mine and ticket is not None:
            ticket.save(path)
            raw = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
        size = torch.tensor([len(raw) if len(raw) else _NONE], device=place(group))
        dist.broadcast(size, group_src=source, group=group)
        if int(size) == _NONE:
            raise InvalidInputError(
                f"Rank {source} passed {ticket!r}, no ticket to hand on. Pass the "
                "ticket there, or name the rank that has it as source."
            )
        raw = raw if mine else torch.empty(int(size), dtype=torch.uint8)
        sent = raw.to(place(group))
        dist.broadcast(sent, group_src=source, group=group)
        path.write_bytes(sent.cpu().numpy().tobytes())
        return Ticket.load(path)
