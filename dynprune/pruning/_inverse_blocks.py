"""Inverses of the diagonal blocks of a curvature matrix, and what they remove."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from dynprune.core import AssumptionError


def cut(tensor: Tensor, size: int) -> Tensor:
    """Cut a tensor, row-major, into blocks of entries, the last one padded by zeros.

    Args:
        tensor: Any shape.
        size: B, entries per block.

    Returns:
        Shape ``(blocks, B)``.
    """
    flat = tensor.reshape(-1)
    blocks = -(-len(flat) // size)
    padded = flat.new_zeros(blocks * size)
    padded[: len(flat)] = flat
    return padded.view(blocks, size)


def join(blocks: Tensor, shape: Iterable[int]) -> Tensor:
    """Undo :func:`cut`.

    Args:
        blocks: Shape ``(blocks, B)``.
        shape: Of the tensor.

    Returns:
        The tensor.
    """
    target = torch.Size(shape)
    return blocks.reshape(-1)[: target.numel()].view(target)


def started(blocks: int, size: int, *, damping: float, device: torch.device) -> Tensor:
    r"""Return :math:`I / \lambda` in every block.

    Args:
        blocks: How many.
        size: B.
        damping: λ.
        device: Where.

    Returns:
        Float64, shape ``(blocks, B, B)``.
    """
    eye = torch.eye(size, dtype=torch.float64, device=device) / damping
    return eye.expand(blocks, size, size).clone()


def add_gradient_(inverse: Tensor, gradient: Tensor, *, count: int) -> None:
    r"""Add :math:`g g^\top / n` to the matrices whose inverses are held.

    .. math:: F^{-1} \leftarrow F^{-1}
              - \frac{F^{-1} g g^\top F^{-1}}{n + g^\top F^{-1} g}

    Args:
        inverse: Shape ``(blocks, B, B)``, changed in place.
        gradient: Shape ``(blocks, B)``.
        count: n.
    """
    along = torch.einsum("kij,kj->ki", inverse, gradient)
    bottom = count + (along * gradient).sum(1)
    inverse.baddbmm_(
        along[:, :, None], (along / bottom[:, None])[:, None, :], alpha=-1.0
    )


def inverse_of_dense(
    matrix: Tensor, alive: Tensor, size: int, *, damping: float, name: str
) -> Tensor:
    """Invert the diagonal blocks of the curvature of one tensor's survivors.

    Args:
        matrix: Of the survivors, shape ``(survivors, survivors)``.
        alive: Which entries of the tensor they are, boolean.
        size: B.
        damping: λ, added to the diagonal.
        name: Of the tensor, for the message.

    Returns:
        Float64, shape ``(blocks, B, B)``; the identity where nothing survives.

    Raises:
        AssumptionError: If a block is not positive definite.
    """
    flat = alive.reshape(-1).to(matrix.device)
    places = torch.nonzero(flat).reshape(-1)
    found = []
    for first in range(0, len(flat), size):
        inside = torch.nonzero((places >= first) & (places < first + size)).reshape(-1)
        block = torch.eye(size, dtype=torch.float64, device=matrix.device)
        at = places[inside] - first
        block[at[:, None], at] = matrix[inside[:, None], inside].double()
        block[at, at] += damping
        factor, failed = torch.linalg.cholesky_ex(block)
        if bool(failed):
            lowest = float(torch.linalg.eigvalsh(block)[0]) - damping
            raise AssumptionError(
                f"The curvature of entries {first} to {first + size - 1} of {name!r} "
                f"has an eigenvalue of {lowest:.3g} and damping is {damping:g}: it is "
                f"not positive definite. Pass damping > {max(-lowest, 0.0):.3g}, "
                "curvature='gauss-newton' or 'fisher', or train to a minimum first."
            )
        found.append(torch.cholesky_inverse(factor))
    return torch.stack(found)


def single_costs(inverse: Tensor, weights: Tensor) -> Tensor:
    r"""Return what the removal of each weight alone costs.

    .. math:: \frac{w_q^2}{2 [F^{-1}]_{qq}}

    Args:
        inverse: Shape ``(blocks, B, B)``.
        weights: Shape ``(blocks, B)``.

    Returns:
        Shape ``(blocks, B)``.
    """
    return weights.square() / (2.0 * inverse.diagonal(dim1=1, dim2=2))


def greedy_costs(
    inverse: Tensor, weights: Tensor, alive: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Remove the cheapest weight of each block, move the rest, and repeat.

    Each removal is :math:`w \leftarrow w - (w_q / [F^{-1}]_{qq}) F^{-1} e_q`, and
    F⁻¹ becomes the inverse of what is left. A weight's cost is the largest step up to
    its own, so that costs rise in the order of removal.

    Args:
        inverse: Shape ``(blocks, B, B)``.
        weights: Shape ``(blocks, B)``.
        alive: Boolean, same shape; the others are never removed.

    Returns:
        Costs and places in the order of removal from 0, both ``(blocks, B)``; zero
        and −1 where not alive.
    """
    inverse, weights, left = inverse.clone(), weights.clone(), alive.clone()
    costs = torch.zeros_like(weights)
    order = torch.full(weights.shape, -1, dtype=torch.long, device=weights.device)
    highest = weights.new_zeros(len(weights))
    every = torch.arange(len(weights), device=weights.device)
    size = weights.shape[1]
    for turn in range(int(alive.sum(1).max())):
        steps = torch.where(left, single_costs(inverse, weights), torch.inf)
        # of equal ones the last: ties are kept at the lower index
        q = size - 1 - steps.flip(1).argmin(1)
        some = left.any(1)
        highest = torch.where(some, torch.maximum(highest, steps[every, q]), highest)
        costs[every[some], q[some]] = highest[some]
        order[every[some], q[some]] = turn
        left[every, q] = False
        column = inverse[every, :, q]
        pivot = column[every, q]
        pivot = torch.where(some, pivot, 1.0)
        column = torch.where(some[:, None], column, 0.0)
        weights -= (weights[every, q] / pivot)[:, None] * column
        inverse.baddbmm_(
            column[:, :, None], (column / pivot[:, None])[:, None, :], alpha=-1.0
        )
    return costs, order


def joint_update(
    inverse: Tensor, weights: Tensor, removed: Tensor
) -> tuple[Tensor, float]:
    r"""Move the survivors to the minimum of the quadratic with Q removed.

    .. math:: \delta w = -F^{-1}_{:,Q} (F^{-1}_{QQ})^{-1} w_Q, \qquad
              \Delta L = \tfrac{1}{2} w_Q^\top (F^{-1}_{QQ})^{-1} w_Q

    Args:
        inverse: Shape ``(blocks, B, B)``.
        weights: Shape ``(blocks, B)``.
        removed: Q, boolean, same shape.

    Returns:
        δw, shape ``(blocks, B)``, and ΔL summed over the blocks.
    """
    eye = torch.eye(weights.shape[1], dtype=inverse.dtype, device=inverse.device)
    inner = removed[:, :, None] & removed[:, None, :]
    system = torch.where(inner, inverse, eye)
    gone = torch.where(removed, weights, 0.0)
    solved = torch.linalg.solve(system, gone)
    moved = -torch.einsum("kij,kj->ki", inverse, solved)
    return moved, float(0.5 * (gone * solved).sum())


def summed_update(
    inverse: Tensor, weights: Tensor, removed: Tensor
) -> tuple[Tensor, float]:
    r"""Add up the moves that each removal alone would make.

    .. math:: \delta w = -\sum_{q \in Q} \frac{w_q}{[F^{-1}]_{qq}} F^{-1} e_q

    Args:
        inverse: Shape ``(blocks, B, B)``.
        weights: Shape ``(blocks, B)``.
        removed: Q, boolean, same shape.

    Returns:
        δw, shape ``(blocks, B)``, and the sum of the costs of each removal alone.
    """
    gone = torch.where(removed, weights, 0.0)
    moved = -torch.einsum(
        "kij,kj->ki", inverse, gone / inverse.diagonal(dim1=1, dim2=2)
    )
    return moved, float(single_costs(inverse, gone).sum())


def ranked(
    costs: Mapping[str, Tensor], order: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Rank removals over all tensors, each block's in its own order.

    Args:
        costs: Name to costs, of the tensors' shapes.
        order: Name to places in the order of removal.

    Returns:
        Name to float64 ranks from 1, larger = removed later; of equal ones the lower
        flat index is removed later. Zero where the place is negative: pruned already.
    """
    cost = torch.cat([part.reshape(-1) for part in costs.values()])
    place = torch.cat([part.reshape(-1) for part in order.values()])
    found = torch.arange(len(cost) - 1, -1, -1, device=cost.device)
    found = found[torch.argsort(place[found], stable=True)]
    found = found[torch.argsort(cost[found], stable=True)]
    ranks = torch.empty_like(cost)
    ranks[found] = torch.arange(len(cost), dtype=cost.dtype, device=cost.device)
    # what is pruned costs nothing, comes first, and has no rank
    gone = int((place < 0).sum())
    parts = (
        (ranks + 1.0 - gone)
        .clamp_(min=0.0)
        .split([part.numel() for part in costs.values()])
    )
    return {
        name: part.view(costs[name].shape)
        for name, part in zip(costs, parts, strict=True)
    }
