"""Data-parallel processes have the same masks, or all of them hear of it."""

import hashlib
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from dynprune.core import InvalidInputError


def digest(masks: Iterable[tuple[str, Tensor]]) -> int:
    """Hash names, shapes and masks to a number in [0, 2**63).

    Args:
        masks: Name and boolean tensor.

    Returns:
        The number, the same on every machine.
    """
    whole = hashlib.sha256()
    for name, mask in sorted(masks, key=lambda item: item[0]):
        whole.update(repr((name, tuple(mask.shape))).encode())
        whole.update(mask.detach().cpu().contiguous().numpy().tobytes())
    return int.from_bytes(whole.digest()[:8], "big") % 2**63


def check_same_masks(
    masks: Iterable[tuple[str, Tensor]], group: "dist.ProcessGroup"
) -> None:
    """Check that every process of a group has the same masks; all raise or none.

    Args:
        masks: Name and boolean tensor.
        group: The processes.

    Raises:
        InvalidInputError: If they differ; says which ranks.

    Cost:
        One all-gather of one number.
    """
    own = torch.tensor([digest(masks)], device=place(group))
    every = [torch.zeros_like(own) for _ in range(dist.get_world_size(group))]
    dist.all_gather(every, own, group=group)
    found = [int(part) for part in every]
    others = [rank for rank, number in enumerate(found) if number != found[0]]
    if others:
        raise InvalidInputError(
            f"The masks of rank(s) {', '.join(map(str, others))} differ from those of "
            "rank 0. Make the ticket on one rank and hand it to all with "
            "dp.tickets.broadcast."
        )


def place(group: "dist.ProcessGroup") -> torch.device:
    """Return where a group exchanges small tensors.

    Args:
        group: The processes.

    Returns:
        The CPU, or the current GPU where the group has NCCL alone.
    """
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
