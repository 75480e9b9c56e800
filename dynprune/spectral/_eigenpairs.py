"""Extreme eigenpairs of a symmetric operator, with enclosures and a test of them."""

from dataclasses import dataclass
from typing import final, get_args

import torch
from torch import Tensor

from dynprune.core import (
    ConvergenceError,
    InvalidInputError,
    Outcome,
    Provenance,
    derive_seed,
    unknown,
)
from dynprune.operators import AbstractOperator
from dynprune.spectral._enclosures import Ritz, enclose, rayleigh_ritz
from dynprune.spectral._lanczos import Which, finite, lanczos, random_block, wanted
from dynprune.spectral._results import Eigenpairs

_TEST_TOL = 1e-4
_TEST_BLOCK = 4
_ROUNDING = 16


def eigenpairs(
    op: AbstractOperator,
    k: int,
    *,
    which: Which = "LA",
    tol: float = 1e-6,
    max_matvecs: float | None = None,
    block: int = 1,
    completeness: bool = False,
    outside: Tensor | None = None,
    start: Tensor | None = None,
    seed: int = 0,
    throw: bool = True,
    progress: bool = False,
) -> Eigenpairs:
    r"""Find extreme eigenpairs by block Lanczos with thick restart.

    .. math:: A u_i = \rho_i u_i + R_i, \qquad u_i^\top u_j = \delta_{ij}

    with full reorthogonalisation; converged pairs stay in the basis. Values and
    residuals are recomputed from k true products, in float64. **Enclosures**: k
    eigenvalues of A, counted with multiplicity, lie one in each interval, of radius
    :math:`\|R_i\|`, or :math:`\|R\|_2` of a whole group whose intervals
    overlap (Kahan), plus ``16 eps max|ρ|`` for rounding. No quadratic (Kato–Temple)
    bound is used: it would need a proof that nothing lies between the pairs.

    A Krylov space sees one vector of a multiple eigenvalue per starting vector, so
    enclosures cannot tell a missing copy. ``completeness=True`` starts from at least 4
    vectors and then runs a second random start on the complement of what was found, to
    a residual of 1e-4 of the largest |Ritz value|: what it finds beyond the last pair
    is put in and the test repeated. The exact decomposition of a small operator is
    always complete.

    Args:
        op: A, symmetric, of P coordinates.
        k: How many pairs, 1 to P (less the columns of ``outside``).
        which: ``"LA"`` largest, ``"SA"`` smallest, ``"BE"`` both ends (one more of the
            largest if k is odd), ``"LM"`` largest in magnitude.
        tol: Residual norm asked for, relative to the largest |Ritz value|; not below
            32 eps of the operator's dtype.
        max_matvecs: Products to spend at most, the last k and the test included; 100
            per pair and at least 2000 by default.
        block: Vectors to start from.
        completeness: Test that no eigenvalue is missing.
        outside: Orthonormal columns U, shape ``(P, o)``: look only at
            (I − UUᵀ)A(I − UUᵀ) on their complement, without the zeros on U.
        start: First vectors, shape ``(P, b)``, e.g. those of a nearby state; random
            ones, at least one, fill the block.
        seed: Of the random starts.
        throw: Raise if the tolerance was not met; otherwise see ``outcome``.
        progress: Draw a bar.

    Returns:
        Pairs, values descending.

    Raises:
        InvalidInputError: For k, which, tol, block or budget out of range, starts of
            the wrong shape, or starts or products that are not finite.
        AssumptionError: If the operator is not symmetric.
        ConvergenceError: If ``throw`` and the tolerance was not met; carries the pairs.

    Cost:
        Matvecs as reported, P for an operator smaller than the basis; about
        max(3 k, k + 24) + 3 blocks P-vectors of memory.

    Source:
        Wu and Simon, *Thick-restart Lanczos method for large symmetric eigenvalue
        problems*, 2000; Kahan's inclusion theorem in Parlett, *The Symmetric Eigenvalue
        Problem*, 1998.

    Example:
        >>> from dynprune.operators import MatrixOperator
        >>> pairs = eigenpairs(MatrixOperator(torch.diag(torch.arange(4.0))), 2)
        >>> pairs.values.tolist(), pairs.complete
        ([3.0, 2.0], True)
    """  # noqa: DOC502 - AssumptionError is raised by the kernel
    away = _outside(op, outside)
    search = _check(
        op, k, which, tol, max_matvecs, block, away, start, seed, completeness
    )
    before = op.matvecs
    complete: bool | None
    if op.size - away.shape[1] <= min(search.basis_size, search.budget):
        ritz, complete, scale = _exact(op, k, which, away)
    else:
        ritz, converged, scale = _iterate(op, k, search, away, start, progress)
        complete = None
        if completeness and converged:
            ritz, complete = _test(op, ritz, k, search, away, scale, before)
    slack = _ROUNDING * torch.finfo(op.dtype).eps * scale
    residual_norms = ritz.gram.diagonal().clamp_min(0.0).sqrt()
    met = bool((residual_norms <= search.tol * scale + slack).all())
    spent = float(op.matvecs - before)
    pairs = Eigenpairs(
        values=ritz.values,
        vectors=ritz.vectors,
        residual_norms=residual_norms,
        enclosures=enclose(ritz.values, ritz.gram, slack=slack),
        complete=complete,
        which=which,
        matvecs=spent,
        outcome=_outcome(met, spent, search.budget, block),
        provenance=_provenance(op, k, search, completeness, seed),
    )
    if throw and not met:
        missed = int((residual_norms > search.tol * scale + slack).sum())
        raise ConvergenceError(
            f"{missed} of {k} pairs missed tol={search.tol:g} after {spent:g} matvecs. "
            "Raise max_matvecs, ask for fewer pairs, or loosen tol; in float32 a "
            "float64 twin (system.double()) helps. throw=False returns the pairs.",
            pairs,
        )
    return pairs


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class _Search:
    which: Which
    tol: float
    budget: float
    block: int
    basis_size: int
    seed: int


def _outside(op: AbstractOperator, outside: Tensor | None) -> Tensor:
    if outside is None:
        return torch.zeros((op.size, 0), dtype=op.dtype, device=op.device)
    if outside.ndim != 2 or outside.shape[0] != op.size:
        raise InvalidInputError(
            f"outside has shape {tuple(outside.shape)}. Pass ({op.size}, o), with "
            "orthonormal columns."
        )
    away = outside.detach().to(device=op.device, dtype=op.dtype)
    gram = away.T @ away
    off = float((gram - torch.eye(len(gram)).to(gram)).abs().sum())
    if not off <= torch.finfo(op.dtype).eps ** 0.5:
        raise InvalidInputError(
            f"The columns of outside are not orthonormal: |U'U - I| sums to {off:.2g}. "
            "Pass torch.linalg.qr(U).Q."
        )
    return away


def _check(
    op: AbstractOperator,
    k: int,
    which: Which,
    tol: float,
    max_matvecs: float | None,
    block: int,
    outside: Tensor,
    start: Tensor | None,
    seed: int,
    completeness: bool,  # noqa: FBT001 - private, passed through
) -> _Search:
    if which not in get_args(Which):
        raise unknown("end of the spectrum", which, get_args(Which))
    room = op.size - outside.shape[1]
    if not 1 <= k <= room:
        raise InvalidInputError(
            f"{k} eigenpairs were asked of {room} dimensions. Pass 1 <= k <= {room}."
        )
    if block < 1 or not tol > 0.0:
        raise InvalidInputError(
            f"block={block} and tol={tol} were given. Pass block >= 1 and tol > 0."
        )
    if start is not None and (start.ndim != 2 or start.shape[0] != op.size):
        raise InvalidInputError(
            f"start has shape {tuple(start.shape)}. Pass ({op.size}, b)."
        )
    if start is not None and not bool(torch.isfinite(start).all()):
        raise InvalidInputError(
            "start holds NaN or infinity. Pass finite vectors, or leave it out."
        )
    wide = max(block, _TEST_BLOCK) if completeness else block
    wide = max(wide, start.shape[1] + 1 if start is not None else 0)
    budget = max(2000.0, 100.0 * k) if max_matvecs is None else float(max_matvecs)
    if budget < k + wide and budget < room:
        raise InvalidInputError(
            f"max_matvecs={budget:g} is too few for {k} pairs from a block of {wide}. "
            f"Pass at least {k + wide}."
        )
    return _Search(
        which=which,
        tol=max(tol, 32 * torch.finfo(op.dtype).eps),
        budget=budget,
        block=wide,
        basis_size=max(3 * k, k + 24) + 2 * wide,
        seed=seed,
    )


def _exact(
    op: AbstractOperator, k: int, which: Which, outside: Tensor
) -> tuple[Ritz, bool, float]:
    # The whole operator, of P products.
    eye = torch.eye(op.size, dtype=op.dtype, device=op.device)
    products = finite(torch.cat([op @ part for part in eye.split(64, dim=1)], 1))
    basis = torch.linalg.qr(outside, mode="complete").Q[:, outside.shape[1] :]
    small = (basis.T @ products @ basis).double()
    theta, Y = torch.linalg.eigh(0.5 * (small + small.T))
    vectors = basis @ Y[:, wanted(theta, which)[:k]].to(op.dtype)
    ritz = rayleigh_ritz(vectors, products @ vectors, outside)
    return ritz, True, float(theta.abs().max())


def _iterate(
    op: AbstractOperator,
    k: int,
    search: _Search,
    outside: Tensor,
    start: Tensor | None,
    progress: bool,  # noqa: FBT001 - private, passed through
) -> tuple[Ritz, bool, float]:
    found = lanczos(
        op,
        k,
        which=search.which,
        tol=0.5 * search.tol,
        max_matvecs=search.budget - k,
        start=_first_block(op, search.block, start, seed=search.seed),
        outside=outside,
        basis_size=search.basis_size,
        seed=derive_seed("spectral.fresh", search.seed),
        progress=progress,
    )
    products = op @ found.vectors
    return (
        rayleigh_ritz(found.vectors, products, outside),
        found.converged,
        found.scale,
    )


def _first_block(
    op: AbstractOperator, block: int, start: Tensor | None, *, seed: int
) -> Tensor:
    if start is None:
        return random_block(op, block, seed=seed)
    given = start.detach().to(device=op.device, dtype=op.dtype)
    fill = random_block(op, block - given.shape[1], seed=seed)
    tiny = torch.finfo(op.dtype).tiny
    return torch.cat([given / given.norm(dim=0).clamp_min(tiny), fill], 1)


def _test(
    op: AbstractOperator,
    ritz: Ritz,
    k: int,
    search: _Search,
    outside: Tensor,
    scale: float,
    before: float,
) -> tuple[Ritz, bool | None]:
    # Missing pairs are looked for from a second random start; what is found is put in.
    # A Ritz value on the complement beyond the last pair proves that one is missing.
    ends = 2 if search.which == "BE" else 1
    coarse = max(_TEST_TOL, search.tol)
    for turn in range(k + 1):
        away = torch.cat([outside, ritz.vectors], 1)
        room = op.size - away.shape[1]
        if room == 0:
            return ritz, True
        seed = derive_seed("spectral.completeness", search.seed, turn)
        start = random_block(op, 1, seed=seed)
        tols = (coarse, 0.5 * search.tol)
        for tol in tols:
            left = search.budget - (op.matvecs - before) - 2 * ends
            if left < 3:
                return ritz, None if tol == coarse else False
            found = lanczos(
                op,
                min(ends, room),
                which=search.which,
                tol=tol,
                max_matvecs=left,
                start=start,
                outside=away,
                basis_size=min(max(24, 2 * ends + 8), room),
                seed=seed,
            )
            extra = rayleigh_ritz(found.vectors, op @ found.vectors, away)
            more = _merge(ritz, extra, outside)
            best = _take(more, k, search.which)
            slack = max(search.tol, 32 * torch.finfo(op.dtype).eps) * scale
            missing = bool(((best.values - ritz.values).abs() > slack).any())
            if not missing:
                return ritz, True if found.converged else None
            start = found.vectors
        ritz = best
    return ritz, False


def _merge(ritz: Ritz, extra: Ritz, outside: Tensor) -> Ritz:
    vectors = torch.cat([ritz.vectors, extra.vectors], 1)
    products = torch.cat([ritz.products, extra.products], 1)
    return rayleigh_ritz(vectors, products, outside)


def _take(ritz: Ritz, k: int, which: Which) -> Ritz:
    order = wanted(ritz.values.flip(0), which)[:k]
    chosen = (len(ritz.values) - 1 - order).sort().values
    return Ritz(
        values=ritz.values[chosen],
        vectors=ritz.vectors[:, chosen],
        products=ritz.products[:, chosen],
        gram=ritz.gram[chosen][:, chosen],
    )


def _outcome(met: bool, spent: float, budget: float, block: int) -> Outcome:  # noqa: FBT001
    if met:
        return Outcome.CONVERGED
    if spent + block >= budget:
        return Outcome.MAX_MATVECS
    return Outcome.NOT_CONVERGED


def _provenance(
    op: AbstractOperator,
    k: int,
    search: _Search,
    completeness: bool,  # noqa: FBT001 - private, passed through
    seed: int,
) -> Provenance:
    settings = {
        "k": k,
        "which": search.which,
        "tol": search.tol,
        "max_matvecs": search.budget,
        "block": search.block,
        "completeness": completeness,
    }
    return Provenance(
        made_by="spectral.eigenpairs",
        seed=seed,
        dtype=str(op.dtype).removeprefix("torch."),
        device=str(op.device),
        settings=tuple(sorted(settings.items())),
        sources=("lanczos",),
    )
