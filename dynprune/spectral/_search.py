"""What a search for eigenpairs is asked for, checked, and where it starts."""

from dataclasses import dataclass
from typing import Literal, final, get_args

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, derive_seed, generator, unknown
from dynprune.operators import AbstractOperator
from dynprune.spectral._basis import Complement
from dynprune.spectral._lanczos import Which
from dynprune.spectral._recursion import random_block

Verify = Literal["one", "all"]
TEST_BLOCK = 4
_DENSE = 2048  # P² numbers of 32 MB in float64
_NOISE = 0.1


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """What is looked for, and at what expense.

    Args:
        k: Number of pairs.
        which: Which end.
        tol: Residual, relative to the largest |Ritz value|.
        budget: Products at most.
        block: Vectors to start from.
        basis_size: Vectors at a restart.
        exact: Whether the operator is so small that it is decomposed whole.
        seed: Of random starts.
        verify: How residuals are verified.
        completeness: Whether missing copies are looked for.
    """

    k: int
    which: Which
    tol: float
    budget: float
    block: int
    basis_size: int
    exact: bool
    seed: int
    verify: Verify
    completeness: bool

    @property
    def reserve(self) -> int:
        """Products that are kept for the verification."""
        return 1 if self.verify == "one" else self.k


def check(
    op: AbstractOperator,
    k: int,
    *,
    which: Which,
    tol: float,
    max_matvecs: float | None,
    block: int,
    basis_size: int | None,
    outside: Complement,
    start: Tensor | None,
    seed: int,
    verify: Verify,
    completeness: bool,
) -> Search:
    """Check the arguments and fill in what was left out.

    Args:
        op: A.
        k: Number of pairs.
        which: Which end.
        tol: Relative residual.
        max_matvecs: Products at most, or None.
        block: Vectors to start from.
        basis_size: Vectors at a restart, or None.
        outside: Where to look.
        start: First vectors, or None.
        seed: Of random starts.
        verify: How residuals are verified.
        completeness: Whether missing copies are looked for.

    Returns:
        The search.

    Raises:
        InvalidInputError: If one is out of range or of the wrong shape.
    """  # noqa: DOC501 - unknown() makes it
    if which not in get_args(Which):
        raise unknown("end of the spectrum", which, get_args(Which))
    if verify not in get_args(Verify):
        raise unknown("way to verify", verify, get_args(Verify))
    room = op.size - outside.codimension
    if not 1 <= k <= room:
        raise InvalidInputError(
            f"{k} eigenpairs were asked of {room} dimensions. Pass 1 <= k <= {room}."
        )
    if block < 1 or not tol > 0.0:
        raise InvalidInputError(
            f"block={block} and tol={tol} were given. Pass block >= 1 and tol > 0."
        )
    _check_start(op, start)
    wide = max(block, TEST_BLOCK) if completeness else block
    budget = max(2000.0, 100.0 * k) if max_matvecs is None else float(max_matvecs)
    if budget < k + wide and budget < room:
        raise InvalidInputError(
            f"max_matvecs={budget:g} is too few for {k} pairs from a block of {wide}. "
            f"Pass at least {k + wide}."
        )
    return Search(
        k=k,
        which=which,
        tol=max(tol, 32 * torch.finfo(op.dtype).eps),
        budget=budget,
        block=min(wide, room),
        basis_size=_basis_size(basis_size, k, wide, room),
        exact=room <= min(_usual(k, wide), basis_size or room, budget),
        seed=seed,
        verify=verify,
        completeness=completeness,
    )


def _check_start(op: AbstractOperator, start: Tensor | None) -> None:
    if start is None:
        return
    held = op.rows.held
    if start.ndim != 2 or start.shape[0] != held or start.shape[1] == 0:
        raise InvalidInputError(
            f"start has shape {tuple(start.shape)}. Pass ({held}, b), b at least 1."
        )
    if not bool(torch.isfinite(start).all()):
        raise InvalidInputError(
            "start holds NaN or infinity. Pass finite vectors, or leave it out."
        )


def _usual(k: int, wide: int) -> int:
    return k + max(24, min(2 * k, 50), k) + 2 * wide


def _basis_size(asked: int | None, k: int, wide: int, room: int) -> int:
    if asked is None:
        return room if room <= _DENSE else min(_usual(k, wide), room)
    if asked < min(k + 2 * wide, room):
        raise InvalidInputError(
            f"A basis of {asked} vectors was asked for {k} pairs from a block of "
            f"{wide}. Pass at least {min(k + 2 * wide, room)}."
        )
    return min(asked, room)


def complement(op: AbstractOperator, outside: Tensor | None) -> Complement:
    """Check the vectors to stay away from.

    Args:
        op: A.
        outside: Orthonormal columns, or None.

    Returns:
        What is orthogonal to them.

    Raises:
        InvalidInputError: If they have the wrong shape or are not orthonormal.
    """
    rows = op.rows
    if outside is None:
        return Complement(rows)
    if outside.ndim != 2 or outside.shape[0] != rows.held:
        raise InvalidInputError(
            f"outside has shape {tuple(outside.shape)}. Pass ({rows.held}, o), with "
            "orthonormal columns."
        )
    away = outside.detach().to(device=op.device, dtype=op.dtype)
    gram = rows.inner(away, away)
    off = float((gram - torch.eye(len(gram)).to(gram)).abs().sum())
    if not off <= torch.finfo(op.dtype).eps ** 0.5:
        raise InvalidInputError(
            f"The columns of outside are not orthonormal: |U'U - I| sums to {off:.2g}. "
            "Pass torch.linalg.qr(U).Q."
        )
    return Complement(rows, (away.T.contiguous(),))


def first_block(op: AbstractOperator, start: Tensor | None, search: Search) -> Tensor:
    """Return the block to start from.

    Args:
        op: A.
        start: Vectors of a nearby state, or None.
        search: Gives the block size and the seed.

    Returns:
        Gaussian vectors, or random combinations of ``start`` plus a tenth of such, so
        that nothing outside of the span of ``start`` is missed; shape ``(held, b)``.
    """
    noise = random_block(op, search.block, seed=search.seed)
    if start is None:
        return noise
    given = start.detach().to(device=op.device, dtype=op.dtype)
    given = given / _norms(op, given)
    count = given.shape[1]
    if count > search.block:
        make = generator(derive_seed("spectral.start", search.seed))
        mixing = torch.randn(count, search.block, generator=make, dtype=torch.float64)
        given = given @ mixing.to(given) / count**0.5
    noise = noise / _norms(op, noise)
    noise[:, : given.shape[1]] *= _NOISE
    noise[:, : given.shape[1]] += given
    return noise


def _norms(op: AbstractOperator, columns: Tensor) -> Tensor:
    squares = op.rows.sum(columns.square().sum(0))
    return squares.sqrt().clamp_min(torch.finfo(columns.dtype).tiny)
