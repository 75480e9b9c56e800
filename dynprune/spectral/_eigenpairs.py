"""Extreme eigenpairs of a symmetric operator, with enclosures and a test of them."""

import os
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from dynprune.core import (
    ConvergenceError,
    Outcome,
    Provenance,
    derive_seed,
    generator,
)
from dynprune.operators import AbstractOperator
from dynprune.spectral._basis import Complement
from dynprune.spectral._checkpoint import Checkpoint, digest
from dynprune.spectral._completeness import complete as completed
from dynprune.spectral._enclosures import Recurrence, Ritz, enclose, rayleigh_ritz
from dynprune.spectral._lanczos import ROUNDING, Krylov, Which, lanczos, wanted
from dynprune.spectral._recursion import finite
from dynprune.spectral._results import Eigenpairs
from dynprune.spectral._search import Search, Verify, check, complement, first_block

_SAFETY = 3.0
_STOP = {torch.float64: 0.98}  # of the tolerance: the rest is for the discrepancy


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
    basis_size: int | None = None,
    verify: Verify = "one",
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 20,
    seed: int = 0,
    throw: bool = True,
    progress: bool = False,
) -> Eigenpairs:
    r"""Find extreme eigenpairs by block Lanczos with thick restart.

    .. math:: A u_i = \rho_i u_i + R_i, \qquad u_i^\top u_j = \delta_{ij}

    with full reorthogonalisation; converged pairs stay in the basis. **Residuals** are
    known from the recurrence :math:`A U = U \Theta + F S + D` of the iteration, D
    rounding. With ``verify="one"`` all of it is tested by one true product, with Uz
    for a z of random signs and sizes of ½ to 3/2, so that :math:`E|Dz|^2 = \|D\|_F^2`:
    3 |Dz| is taken as a bound on D and added to every residual norm. Rounding is spread
    over the pairs, and each has about 1/(3 √k) of that; an error of one pair is bounded
    for certain; an error of one *product*, spread over the pairs in proportion to a
    unit vector w, is seen with the factor |w'z|, which is below ⅓ for one z in four.
    Where the sum misses ``tol``, and always with ``verify="all"``, values and residuals
    are recomputed from k true products, in float64.

    **Enclosures**: k eigenvalues of A, counted with multiplicity, lie one in each
    interval, of radius :math:`\|R_i\|`, or :math:`\|R\|_2` of a whole group whose
    intervals overlap (Kahan), plus ``16 eps max|ρ|`` for the rounding of products and
    max|ρ| times the measured :math:`\|U^\top U - I\|_F`. No quadratic (Kato–Temple)
    bound is used: it would need a proof that nothing lies between the pairs. A is the
    operator as its products are, in its dtype.

    A Krylov space sees one vector of a multiple eigenvalue per starting vector, so
    enclosures cannot tell a missing copy. ``completeness=True`` starts from at least 4
    vectors and then runs a second random start on the complement of what was found, to
    a residual of 1e-4 of the largest |Ritz value|: what it finds beyond the last pair
    is put in and the test repeated. The exact decomposition of a small operator is
    always complete.

    Args:
        op: A, symmetric, of P coordinates.
        k: How many pairs, 1 to P (less the columns of ``outside``); all P are found
            by an exact decomposition.
        which: ``"LA"`` largest, ``"SA"`` smallest, ``"BE"`` both ends (one more of the
            largest if k is odd), ``"LM"`` largest in magnitude.
        tol: Residual norm asked for, relative to the largest |Ritz value|; not below
            32 eps of the operator's dtype.
        max_matvecs: Products to spend at most, verification and test included; 100
            per pair and at least 2000 by default.
        block: Vectors to start from.
        completeness: Test that no eigenvalue is missing.
        outside: Orthonormal columns U, shape ``(P, o)``: look only at
            (I − UUᵀ)A(I − UUᵀ) on their complement, without the zeros on U. One
            product says how large A is there, since rounding is relative to that.
        start: First vectors, shape ``(P, b)``, e.g. those of a nearby state; the
            iteration starts from random combinations of them with a tenth of noise.
        basis_size: Vectors kept at most, at least k + 2 blocks; by default
            k + max(24, min(2 k, 50), k) + 2 blocks, and P if that is at most 2048.
        verify: ``"one"`` or ``"all"``.
        checkpoint: File in which the state is kept; if it is there, the run goes on
            from it and ends with the same bits. Its settings must agree, and one
            product is spent to see that the operator does. It stays when the run has
            ended. Where vectors are sharded every rank writes two files of this name
            with an ending.
        checkpoint_every: Products between two states.
        seed: Of the random starts.
        throw: Raise if the tolerance was not met; otherwise see ``converged``.
        progress: Draw a bar.

    Returns:
        Pairs, values descending.

    Raises:
        InvalidInputError: For k, which, tol, block, basis or budget out of range,
            starts of the wrong shape, starts or products that are not finite, or the
            checkpoint of another run.
        AssumptionError: If the operator is not symmetric.
        ConvergenceError: If ``throw`` and the tolerance was not met; carries the pairs.

    Cost:
        Matvecs as reported: never more than P (and the verification) if P is at most
        2048 and ``completeness`` is not asked for. ``basis_size`` + 5 blocks P-vectors
        of memory, 4 k with ``verify="all"``; where vectors are sharded, two
        all-reduces of a column of T a step.

    Source:
        Wu and Simon, *Thick-restart Lanczos method for large symmetric eigenvalue
        problems*, 2000; Kahan's inclusion theorem in Parlett, *The Symmetric Eigenvalue
        Problem*, 1998; the test by one product after Freivalds, *Probabilistic machines
        can use less running time*, 1977.

    Example:
        >>> from dynprune.operators import MatrixOperator
        >>> pairs = eigenpairs(MatrixOperator(torch.diag(torch.arange(4.0))), 2)
        >>> pairs.values.tolist(), pairs.complete
        ([3.0, 2.0], True)
    """  # noqa: DOC502 - raised by the checks, the kernel and the checkpoint
    away = complement(op, outside)
    search = check(
        op,
        k,
        which=which,
        tol=tol,
        max_matvecs=max_matvecs,
        block=block,
        basis_size=basis_size,
        outside=away,
        start=start,
        seed=seed,
        verify=verify,
        completeness=completeness,
    )
    settings = _settings(search)
    keys = {"start": digest(start), "outside": digest(outside)}
    log = Checkpoint(checkpoint, op, every=checkpoint_every, settings=settings | keys)
    complete: bool | None
    if search.exact:
        ritz, complete, size = _exact(op, search, away)
    else:
        ritz, complete, size = _iterate(op, search, away, start, log, progress)
    slack = ROUNDING * torch.finfo(op.dtype).eps * size.norm
    converged = _met(ritz, search, size)
    met = bool(converged.all())
    radius = slack + ritz.error + ritz.skew * size.norm
    ends = enclose(ritz.values.cpu(), ritz.gram.cpu(), slack=radius)
    pairs = Eigenpairs(
        values=ritz.values,
        vectors=ritz.vectors,
        residual_norms=ritz.residual_norms,
        enclosures=ends.to(ritz.values.device),
        converged=converged,
        complete=complete,
        which=which,
        matvecs=log.spent,
        outcome=_outcome(met, log.spent, search),
        provenance=_provenance(op, search, settings),
    )
    if throw and not met:
        raise ConvergenceError(
            f"{int((~converged).sum())} of {k} pairs missed tol={search.tol:g} after "
            f"{log.spent:g} matvecs. Raise max_matvecs, ask for fewer pairs, or loosen "
            "tol; in float32 a float64 twin (system.double()) helps. throw=False "
            "returns the pairs.",
            pairs,
        )
    return pairs


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class _Size:
    # scale: what the tolerance is relative to; norm: what rounding is
    scale: float
    norm: float


def _exact(
    op: AbstractOperator, search: Search, outside: Complement
) -> tuple[Ritz, bool, _Size]:
    # The whole operator, of P products; every process holds the P x P matrix.
    rows = op.rows
    eye = torch.eye(op.size, dtype=op.dtype, device=op.device)
    mine = eye[rows.start : rows.stop]
    products = finite(torch.cat([op @ part for part in mine.split(64, dim=1)], 1))
    matrix = rows.inner(mine, products)
    away = [rows.inner(mine, panel.T) for panel in outside.panels]
    taken = torch.cat([eye[:, :0], *away], 1)
    basis = torch.linalg.qr(taken, mode="complete").Q[:, taken.shape[1] :]
    small = (basis.T @ matrix @ basis).double()
    theta, Y = torch.linalg.eigh(0.5 * (small + small.T))
    best = basis @ Y[:, wanted(theta, search.which)[: search.k]].to(op.dtype)
    vectors = rows.own(best)
    ritz = rayleigh_ritz(vectors, products @ best, outside)
    scale = float(theta.abs().max())
    norm = max(scale, float(matrix.norm(dim=0).max()))
    return ritz, True, _Size(scale=scale, norm=norm)


def _iterate(
    op: AbstractOperator,
    search: Search,
    outside: Complement,
    start: Tensor | None,
    log: Checkpoint,
    progress: bool,  # noqa: FBT001 - private, passed through
) -> tuple[Ritz, bool | None, _Size]:
    found = lanczos(
        op,
        search.k,
        which=search.which,
        tol=_STOP.get(op.dtype, 0.85) * search.tol,
        max_matvecs=search.budget - search.reserve,
        start=first_block(op, start, search),
        outside=outside,
        basis_size=search.basis_size,
        seed=derive_seed("spectral.fresh", search.seed),
        norm=_norm_outside(op, outside, search),
        checkpoint=log,
        progress=progress,
    )
    ritz = _verified(op, found, search, outside, log)
    size = _Size(scale=found.scale, norm=found.norm)
    if found.whole:
        return ritz, True, size
    if not search.completeness or not found.converged:
        return ritz, None, size
    ritz, complete = completed(op, ritz, search, outside, found.scale, found.norm, log)
    return ritz, complete, size


def _norm_outside(op: AbstractOperator, outside: Complement, search: Search) -> float:
    # |A U z| of one random unit vector U z: what is left of A may be rounding of it
    if not outside.panels:
        return 0.0
    basis = torch.cat(outside.panels)
    make = generator(derive_seed("spectral.outside", search.seed))
    z = torch.randn(len(basis), generator=make, dtype=torch.float64)
    product = finite(op @ (basis.T @ (z / z.norm()).to(basis)))[:, None]
    square = float(op.rows.inner(product, product, dtype=torch.float64))
    return float(max(square, 0.0) ** 0.5)


def _verified(
    op: AbstractOperator,
    found: Krylov,
    search: Search,
    outside: Complement,
    log: Checkpoint,
) -> Ritz:
    if search.verify == "one":
        discrepancy = _SAFETY * _discrepancy(op, found, search, outside)
        known = Recurrence(
            values=found.values,
            beyond=found.beyond,
            coupling=found.coupling,
            discrepancy=discrepancy,
        )
        ritz = rayleigh_ritz(found.vectors, known, outside)
        size = _Size(scale=found.scale, norm=found.norm)
        met = bool(_met(ritz, search, size).all())
        affordable = search.budget - log.spent >= search.k
        if met or not found.converged or not affordable:
            return ritz
    products = finite(op @ found.vectors)
    return rayleigh_ritz(found.vectors, products, outside)


def _discrepancy(
    op: AbstractOperator, found: Krylov, search: Search, outside: Complement
) -> float:
    # |Dz| = |A U z - U Θ z - F S z|, z of random signs and sizes, |z|² = k.
    make = generator(derive_seed("spectral.verify", search.seed))
    z = torch.rand(search.k, 1, generator=make, dtype=torch.float64) - 0.5
    z += 0.5 * z.sign()
    z *= search.k**0.5 / z.norm()
    U, F = found.vectors, found.beyond
    off = outside.without(finite(op @ (U @ z.to(U))))
    off = off - U @ (found.values[:, None] * z).to(U)
    off = off - F @ (found.coupling @ z).to(U)
    square = float(op.rows.inner(off, off, dtype=torch.float64))
    return float(max(square, 0.0) ** 0.5)


def _met(ritz: Ritz, search: Search, size: _Size) -> Tensor:
    slack = ROUNDING * torch.finfo(ritz.vectors.dtype).eps * size.norm
    return ritz.residual_norms <= search.tol * size.scale + slack


def _outcome(met: bool, spent: float, search: Search) -> Outcome:  # noqa: FBT001
    if met:
        return Outcome.CONVERGED
    if spent + search.block + search.reserve > search.budget:
        return Outcome.MAX_MATVECS
    return Outcome.NOT_CONVERGED


def _settings(search: Search) -> dict[str, object]:
    names = ("k", "which", "tol", "block", "basis_size", "completeness", "verify")
    return {name: getattr(search, name) for name in names} | {"seed": search.seed}


def _provenance(
    op: AbstractOperator, search: Search, settings: dict[str, object]
) -> Provenance:
    knobs = {name: value for name, value in settings.items() if name != "seed"}
    return Provenance(
        made_by="spectral.eigenpairs",
        seed=search.seed,
        dtype=str(op.dtype).removeprefix("torch."),
        device=str(op.device),
        settings=tuple(sorted((knobs | {"max_matvecs": search.budget}).items())),
        sources=("lanczos",),
    )
