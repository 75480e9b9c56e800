"""Apply a fitted map h times: small recursions, then one pass over the weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynprune.koopman._delays import Pairs
from dynprune.koopman._dmd import Fitted
from dynprune.koopman._reduce import chunk_rows, gather, stream


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Piece:
    """The evolution of B groups of q coordinates each.

    The state s has s_1 = ``start`` and s_{h+1} = K s_h + ``drift``; the forecast is
    ``offset + lift @ s_h``, times the increments Z of the group unless ``folded``.

    Args:
        label: The module the groups belong to.
        index: As a block's, shape ``(B, q)``, or empty for all coordinates.
        rows: Row of each group, ``(B,)``.
        columns: First column of each group, ``(B,)``.
        operator: K, shape ``(B, r, r)``.
        start: Shape ``(B, r)``.
        drift: Shape ``(B, r)``.
        lift: Shape ``(B, T, r)``, or ``(B, q, r)`` if folded.
        offset: Shape ``(B, T)``, or ``(B, q)`` if folded.
        modes: Complex combinations of Z that give the projected modes, ``(B, T, k)``;
            no columns where the partition does not keep them.
        folded: Whether Z is multiplied in already.
    """

    label: str
    index: Tensor
    rows: Tensor
    columns: Tensor
    operator: Tensor
    start: Tensor
    drift: Tensor
    lift: Tensor
    offset: Tensor
    modes: Tensor
    folded: bool


def piece(
    fitted: Fitted,
    built: Pairs,
    *,
    method: str,
    centring: str,
    label: str,
    index: Tensor,
    rows: Tensor,
    columns: Tensor,
    increments: Tensor | None,
) -> Piece:
    """Keep of a fit what a forecast needs.

    Args:
        fitted: The fits of B groups.
        built: The pairs.
        method: ``dmd`` applies Y C; ``self-adjoint`` applies U K, U = X C.
        centring: As the pairs'.
        label: The module.
        index: The groups' coordinates.
        rows: Their rows.
        columns: Their first columns.
        increments: Z of the groups, ``(B, q, T)``, to be multiplied in where that is
            smaller; None to keep combinations.

    Returns:
        The piece.
    """
    C, batch = fitted.weights, fitted.weights.shape[0]
    folded = increments is not None and increments.shape[1] <= increments.shape[2]
    plain = method == "dmd"
    constant = built.mean if plain else built.mean_past
    if folded:
        assert increments is not None
        lift, offset = fitted.image if plain else fitted.basis, increments @ constant
    else:
        blocks = built.future if plain else built.past
        lift, offset = blocks[-1] @ C, constant.expand(batch, -1)
    if not plain:  # U (K s + drift) instead of Y C s
        if centring == "affine":
            offset = offset + (lift @ fitted.drift[..., None])[..., 0]
        lift = lift @ fitted.operator
    modes = torch.zeros((batch, lift.shape[1], 0), dtype=torch.complex128)
    if increments is None:
        spread = C.to(fitted.vectors.dtype) @ fitted.vectors
        chosen = spread[:, :, fitted.kept[0]]
        modes = built.past[-1].to(chosen.dtype) @ chosen
    return Piece(
        label=label,
        index=index,
        rows=rows,
        columns=columns,
        operator=fitted.operator,
        start=fitted.start,
        drift=fitted.drift,
        lift=lift.clone(),
        offset=offset.clone(),
        modes=modes,
        folded=folded,
    )


def states(part: Piece, horizons: Sequence[int]) -> Tensor:
    """Return s_h for several h by matrix powers.

    Args:
        part: The piece.
        horizons: Numbers of applications h, at least 1, in increasing order.

    Returns:
        Shape ``(B, r, len(horizons))``.
    """
    batch, r = part.start.shape
    step = torch.zeros((batch, r + 1, r + 1), dtype=part.operator.dtype)
    step[:, :r, :r], step[:, :r, r], step[:, r, r] = part.operator, part.drift, 1.0
    current = torch.cat([part.start, torch.ones((batch, 1), dtype=step.dtype)], 1)
    found, at = [], 1
    for h in horizons:
        current = (torch.linalg.matrix_power(step, h - at) @ current[..., None])[..., 0]
        at = h
        found.append(current[:, :r])
    return torch.stack(found, 2)


def resting(part: Piece) -> Tensor:
    """Return the fixed point of s -> K s + drift, shape ``(B, r, 1)``.

    Args:
        part: The piece.

    Returns:
        The fixed states.
    """
    eye = torch.eye(part.operator.shape[-1], dtype=part.operator.dtype)
    found: Tensor = torch.linalg.solve(eye - part.operator, part.drift[..., None])
    return found


def combine(part: Piece, small: Tensor, snapshots: Tensor, target: Tensor) -> None:
    """Write ``offset + lift @ small`` of the groups into ``target``.

    Args:
        part: The piece.
        small: States, shape ``(B, r, H)``.
        snapshots: The weights, shape ``(P, T)``.
        target: Shape ``(P, H)``; rows of other groups stay as they are.
    """
    mixed = part.lift @ small + part.offset[..., None]
    if part.folded:
        _scatter(part.index, mixed, target)
    elif part.index.shape[0] > 1:
        _scatter(part.index, gather(snapshots, part.index).cpu() @ mixed, target)
    else:
        spread(part.index, mixed[0], snapshots, target)


def spread(index: Tensor, mixed: Tensor, snapshots: Tensor, target: Tensor) -> None:
    """Write Z @ mixed into the rows of one group, streaming over them.

    Args:
        index: Shape ``(1, q)``, or empty for all coordinates.
        mixed: Combinations of the increments, shape ``(T, H)``.
        snapshots: Shape ``(P, T)``.
        target: Shape ``(P, H)``.
    """
    members = index[0] if index.numel() else None
    rows, at = chunk_rows(snapshots.shape[1]), 0
    device_mixed = mixed.to(snapshots.device)
    for block in stream(snapshots, members, rows):
        values = (block.to(mixed.dtype) @ device_mixed).to(target.dtype)
        values = values.to(target.device)
        stop = at + len(values)
        if members is None:
            target[at:stop] = values
        else:
            inside = members[at:stop] < len(target)
            target[members[at:stop][inside].to(target.device)] = values[
                inside.to(values.device)
            ]
        at = stop


def _scatter(index: Tensor, values: Tensor, target: Tensor) -> None:
    inside = index < len(target)
    target[index[inside].to(target.device)] = (
        values[inside].to(target.dtype).to(target.device)
    )
