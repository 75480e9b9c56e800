"""Fit linear evolution operators to a recorded trajectory."""

from collections.abc import Iterator
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, Outcome, Provenance
from dynprune.koopman._checks import EPS, check, check_rank, cutoff
from dynprune.koopman._delays import Centring, Pairs, pairs
from dynprune.koopman._dmd import Fitted, Method, solve_pairs
from dynprune.koopman._evolve import Piece, piece
from dynprune.koopman._groups import Block, Partition, blocks
from dynprune.koopman._holdout import held_out_rank
from dynprune.koopman._reduce import (
    chunk_rows,
    gather,
    gram_factor,
    qr_factor,
    stream,
)
from dynprune.koopman._results import KoopmanModel
from dynprune.trajectory import Trajectory

Fit: TypeAlias = tuple[Piece, dict[str, Tensor]]  # of one batch of groups
_PER_MODE = (
    "eigenvalues",
    "residual_norms",
    "residual_floors",
    "standard_errors",
    "amplitudes",
    "mode_norms",
)


def fit(
    trajectory: Trajectory,
    *,
    rank: int | Literal["holdout"] | None = None,
    partition: Partition = "network",
    centring: Centring = "none",
    rtol: float | None = None,
    delay: int = 1,
    method: Method = "dmd",
    route: Literal["gram", "qr"] = "gram",
    columns: int | None = None,
    holdout: float = 0.2,
) -> KoopmanModel:
    r"""Fit the operator that maps each snapshot to the next.

    On each group of coordinates, with past :math:`X = [w_0 \dots w_{T-2}]` and future
    :math:`Y = [w_1 \dots w_{T-1}]`, the operator is :math:`A = Y X^+`; its projection
    on the r leading left singular vectors U of X is :math:`K = U^* Y V \Sigma^{-1}`.
    ``"affine"`` centres X and Y each by its own mean (an appended constant),
    ``"difference"`` fits the increments; one common vector is never subtracted.

    The network and the layers are streamed once into the T x T Gram matrix of the
    increments ``[w_0, w_1 - w_0, ...]``; the weights are read again only by
    ``forecast``. Nodes, quasi-nodes and single weights follow the source: per row
    ``[weights | bias]``, float64 pseudo-inverse, no centring unless asked for.

    Args:
        trajectory: At least 3 snapshots (4 for differences, ``delay - 1`` more with a
            delay), equally spaced.
        rank: Most singular values kept per group; None keeps what ``rtol`` allows;
            ``"holdout"`` (network, layer) takes the rank whose forecast of the last
            ``holdout`` of the window, fitted on what is before it, has the smallest
            root mean square error, then fits the whole window.
        partition: Which coordinates evolve together.
        centring: How the constant is treated.
        rtol: Singular values at most this times the largest are dropped. Default:
            ``max(shape) * eps`` as in the source; :math:`\sqrt{T\,\epsilon}` by the
            Gram route, which squares the condition number.
        delay: Snapshots stacked in one vector; 1 is plain DMD, 2 adds one delay, which
            momentum needs.
        method: ``"dmd"``, or ``"self-adjoint"``, the least-squares fit among symmetric
            K, for plain gradient descent near a minimum.
        route: ``"gram"``, or ``"qr"`` (a sequence of QR factorisations, about three
            times the work), which does not square the condition number.
        columns: Group size of the ``"quasi-node"`` partition.
        holdout: Share of the window held out by ``rank="holdout"``, in (0, 1).

    Returns:
        The model.

    Raises:
        InvalidInputError: If there are too few, unequally spaced or non-finite
            snapshots, the rank is larger than the data support, or a knob is wrong.

    Cost:
        One pass over the snapshots, 2 P T^2 operations and a T x T matrix for the
        network and the layers; a T x T singular value and eigenvalue problem per
        group. No gradient.

    Source:
        Tu et al., *On dynamic mode decomposition*, 2014, arXiv:1312.0041; Dogra and
        Redman, *Optimizing Neural Networks via Koopman Operator Theory*, NeurIPS 2020.
        The self-adjoint fit is that of Baddoo et al., *Physics-informed dynamic mode
        decomposition*, 2023, in Gram coordinates.

    Example:
        >>> w = torch.tensor([[1.0, 0.5, 0.25, 0.125], [1.0, 0.9, 0.81, 0.729]])
        >>> run = Trajectory.from_states(w.T, [0, 10, 20, 30])
        >>> model = fit(run)
        >>> model.eigenvalues.real.numpy().round(4)
        array([0.9, 0.5])
        >>> model.forecast([50])
        tensor([[0.0312],
                [0.5905]])
    """
    T = trajectory.snapshots.shape[1]
    check(trajectory, rank, centring, method, route, delay, rtol)
    built = pairs(T, centring, delay)
    wanted = None if rank == "holdout" else rank
    if rank == "holdout" and partition not in {"network", "layer"}:
        raise InvalidInputError(
            f'rank="holdout" with partition={partition!r}. It is made for "network" '
            'and "layer"; pass a number or None.'
        )
    fits: list[Fit] = []
    eps = torch.finfo(trajectory.snapshots.dtype).eps
    for block in blocks(trajectory.coordinates, partition, columns):
        if partition in {"network", "layer"}:
            factor = _factor(trajectory.snapshots, block, route)
            if rank == "holdout":
                wanted = held_out_rank(
                    factor, centring, delay, method, holdout, cutoff(rtol, route, T, T)
                )
            size = len(trajectory.snapshots) if block.whole else block.index.shape[1]
            small = solve_pairs(
                factor[None],
                built,
                centring=centring,
                method=method,
                rank=wanted,
                rtol=cutoff(rtol, route, T, size * delay),
                dtype_eps=eps,
                gram_eps=(T * EPS) ** 0.5 if route == "gram" else 0.0,
            )
            check_rank(wanted, small, block.label)
            fits.append(_keep(small, built, block, slice(None), None, method, centring))
        else:
            fits.extend(
                _rows(
                    trajectory.snapshots,
                    block,
                    built,
                    wanted,
                    rtol,
                    method,
                    centring,
                    eps,
                )
            )
    return _model(
        trajectory,
        fits,
        partition=partition,
        centring=centring,
        method=method,
        delay=delay,
        settings=(
            ("centring", centring),
            ("columns", columns),
            ("delay", delay),
            ("holdout", holdout),
            ("method", method),
            ("partition", partition),
            ("rank", rank),
            ("route", route),
            ("rtol", rtol),
        ),
    )


def _factor(snapshots: Tensor, block: Block, route: str) -> Tensor:
    T = snapshots.shape[1]
    index = None if block.whole else block.index[0]
    parts: Iterator[Tensor] = stream(snapshots, index, max(T, chunk_rows(T)))
    return gram_factor(parts) if route == "gram" else qr_factor(parts)


def _rows(
    snapshots: Tensor,
    block: Block,
    built: Pairs,
    rank: int | None,
    rtol: float | None,
    method: str,
    centring: str,
    eps: float,
) -> Iterator[Fit]:
    T, q = snapshots.shape[1], block.index.shape[1]
    delay, _, n = built.past.shape
    batch = chunk_rows(4 * T * q)
    for start in range(0, len(block.index), batch):
        part = slice(start, start + batch)
        Z = gather(snapshots, block.index[part])
        factor = torch.linalg.qr(Z, mode="r")[1] if q > T else Z
        small = solve_pairs(
            factor.cpu(),
            built,
            centring=centring,
            method=method,
            rank=rank,
            rtol=max(q * delay, n) * EPS if rtol is None else rtol,
            dtype_eps=eps,
            gram_eps=0.0,
        )
        yield _keep(small, built, block, part, Z.cpu(), method, centring)


def _keep(
    small: Fitted,
    built: Pairs,
    block: Block,
    part: slice,
    Z: Tensor | None,
    method: str,
    centring: str,
) -> Fit:
    # The numbers of each mode, without the large factors they come from.
    numbers = {name: getattr(small, name)[small.kept] for name in _PER_MODE}
    numbers |= {
        "count": small.kept.sum(1),
        "norms": small.norms,
        "outside": small.outside,
        "singular_values": small.singular_values[0].clone(),
        "defect": small.defect[0].clone(),
    }
    kept = piece(
        small,
        built,
        method=method,
        centring=centring,
        label=block.label,
        index=block.index[part].clone(),
        rows=block.rows[part].clone(),
        columns=block.columns[part].clone(),
        increments=Z,
    )
    return kept, numbers


def _model(
    trajectory: Trajectory,
    fits: list[Fit],
    *,
    partition: str,
    centring: str,
    method: str,
    delay: int,
    settings: tuple[tuple[str, object], ...],
) -> KoopmanModel:
    def joined(name: str) -> Tensor:
        return torch.cat([numbers[name] for _, numbers in fits])

    count, network = joined("count"), partition == "network"
    first = fits[0][1]
    empty = torch.zeros(0, dtype=torch.float64)
    return KoopmanModel(
        eigenvalues=joined("eigenvalues"),
        residual_norms=joined("residual_norms"),
        residual_floors=joined("residual_floors"),
        standard_errors=joined("standard_errors"),
        amplitudes=joined("amplitudes"),
        mode_norms=joined("mode_norms"),
        groups=torch.repeat_interleave(torch.arange(len(count)), count),
        singular_values=first["singular_values"] if network else empty,
        operator_norm=float(joined("norms").max()),
        outside_norm=float(torch.linalg.vector_norm(joined("outside"))),
        defect=first["defect"] if network else empty.reshape(0, 0),
        pieces=tuple(part for part, _ in fits),
        snapshots=trajectory.snapshots,
        steps=trajectory.steps.cpu(),
        coordinates=trajectory.coordinates,
        partition=partition,
        centring=centring,
        method=method,
        delay=delay,
        outcome=Outcome.FINISHED,
        provenance=Provenance(
            made_by="koopman.fit",
            dtype=str(trajectory.snapshots.dtype).removeprefix("torch."),
            device=str(trajectory.snapshots.device),
            examples=trajectory.provenance.examples,
            settings=settings,
            sources=("dmd", "koopman_training"),
        ),
    )
