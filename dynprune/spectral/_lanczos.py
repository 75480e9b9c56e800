"""Block Lanczos with thick restart and full reorthogonalisation."""

import itertools
import math
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from dynprune.core import track
from dynprune.operators import AbstractOperator
from dynprune.spectral._basis import Complement, NDArray
from dynprune.spectral._checkpoint import Checkpoint
from dynprune.spectral._recursion import Recursion

Which = Literal["LA", "SA", "BE", "LM"]
ROUNDING = 16  # times eps and |A|: what a residual may be beyond its tolerance


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Krylov:
    """Ritz pairs of a Krylov space, A V = V Θ + F S, and how they ended.

    Args:
        values: Θ, descending, float64, on the CPU, shape ``(k,)``.
        vectors: V, orthonormal, shape ``(held, k)``.
        beyond: F, orthonormal and orthogonal to V, shape ``(held, f)``.
        coupling: S, float64, on the CPU, shape ``(f, k)``.
        scale: Largest norm of a product with a unit vector, or what was given.
        norm: The larger of that and of what was known of |A|.
        converged: Whether the columns of F S met the tolerance.
        whole: Whether the Krylov space was all there is.
    """

    values: Tensor
    vectors: Tensor
    beyond: Tensor
    coupling: Tensor
    scale: float
    norm: float
    converged: bool
    whole: bool


def wanted(values: Tensor, which: Which) -> Tensor:
    """Return the order of Ritz values, the most wanted first.

    Args:
        values: Shape ``(n,)``, ascending.
        which: Largest, smallest, both ends (largest first), or largest in magnitude.

    Returns:
        A permutation of the indices.
    """
    up = torch.arange(len(values), device=values.device)
    if which == "LA":
        return up.flip(0)
    if which == "SA":
        return up
    if which == "LM":
        return torch.argsort(values.abs(), descending=True, stable=True)
    half = (len(values) + 1) // 2
    mixed = torch.empty_like(up)
    mixed[0::2] = up.flip(0)[:half]
    mixed[1::2] = up[: len(values) - half]
    return mixed


def lanczos(
    op: AbstractOperator,
    k: int,
    *,
    which: Which,
    tol: float,
    max_matvecs: float,
    start: Tensor,
    outside: Complement,
    basis_size: int,
    seed: int,
    scale: float = 0.0,
    norm: float = 0.0,
    checkpoint: Checkpoint | None = None,
    progress: bool = False,
) -> Krylov:
    """Find extreme Ritz pairs of A on the complement of some vectors.

    With V orthonormal, T = V'AV and F the next block, A V = V T + F K holds, so that
    the residual of a Ritz pair (ρ, V y) is F K y. A full basis is restarted with its
    most wanted Ritz vectors; converged ones are among them, so they stay in the basis
    and are locked.

    Args:
        op: A.
        k: How many pairs.
        which: Which end.
        tol: Stop when every residual is below ``tol`` times the scale.
        max_matvecs: Stop before this number of products.
        start: First block, shape ``(held, b)``; made orthonormal here.
        outside: Where to look.
        basis_size: Vectors at a restart, more than ``k`` plus two blocks; no restart
            if it is the dimension.
        seed: Of blocks that are drawn when an invariant subspace is exhausted.
        scale: What the tolerance is relative to, as far as it is known already.
        norm: |A|, what rounding is relative to, as far as it is known already.
        checkpoint: Where the state is kept, if anywhere.
        progress: Draw a bar.

    Returns:
        The most wanted k Ritz pairs.

    Raises:
        InvalidInputError: If a product is not finite.
        AssumptionError: If the operator is not symmetric.
    """  # noqa: DOC502 - raised by the steps below
    known = None if checkpoint is None else checkpoint.finished()
    if known is not None:
        vectors, beyond = known.pop("vectors").T, known.pop("beyond").T
        return Krylov(vectors=vectors, beyond=beyond, **known)
    run = Recursion(
        op, k, outside, basis_size=basis_size, width=start.shape[1], norm=norm
    )
    state = None if checkpoint is None else checkpoint.unfinished()
    waiting = None if state is None else run.restore(state)
    if waiting is None:
        run.grow(scale)
        run.begin(start)
    for _ in track(itertools.count(), label="spectral.lanczos", show=progress):
        if waiting is None:
            if not run.F.shape[0]:
                run.renew(seed)
            run.extend()
            waiting = run.product()
            if checkpoint is not None and checkpoint.see(run.F, waiting):
                checkpoint.write(run.state(waiting))
        run.absorb(waiting)
        waiting = None
        full = run.used == run.room
        more = min(run.width, run.room - run.used)
        spent = run.count + more > max_matvecs
        restart = run.used + more > run.basis_size
        if not (full or spent or restart or run.used >= run.due):
            continue
        theta, Y = np.linalg.eigh(run.T[: run.used, : run.used])
        run.grow(max(abs(theta[0]), abs(theta[-1])))
        order = wanted(torch.from_numpy(theta), which).numpy()
        estimates = np.linalg.norm(run.K @ Y[:, order[:k]], axis=0)
        allowed = tol * run.scale + ROUNDING * run.eps * (run.norm - run.scale)
        worst = estimates.max() / allowed if allowed else 0.0
        done = full or (run.used >= k and worst <= 1.0)
        if done or spent:
            break
        if restart:
            count = _kept(theta[order], estimates > allowed, run)
            kept = order[:count]
            run.restart(theta[kept], Y[:, kept])
        _look_again(run, worst, restarted=restart)
    best = order[:k][np.argsort(-theta[order[:k]], kind="stable")]
    found = _found(run, theta[best], Y[:, best], converged=bool(done))
    if checkpoint is not None:
        parts = {name: getattr(found, name) for name in Krylov.__slots__}
        parts |= {"vectors": found.vectors.T, "beyond": found.beyond.T}
        checkpoint.finish(parts)
    return found


def _kept(theta: NDArray, missed: NDArray, run: Recursion) -> int:
    # How many Ritz vectors to go on with, theta being the most wanted first. Steps of
    # a polynomial that is 1 on the discarded interval of width w gain the factor
    # cosh(steps acosh(1 + 2 d / w)) at the distance d: take the best for the median of
    # the pairs that have not converged (Yamazaki, Bai, Simon, Wang and Wu 2010).
    k, most = len(missed), min(run.basis_size - run.width, run.used - 2)
    least = min(k + 1, most)
    still = np.flatnonzero(missed)
    target = theta[still[len(still) // 2]] if len(still) else theta[k - 1]
    high = np.maximum.accumulate(theta[::-1])[::-1][least : most + 1]
    low = np.minimum.accumulate(theta[::-1])[::-1][least : most + 1]
    distance = np.maximum(target - high, low - target).clip(0.0)
    steps = run.basis_size - np.arange(least, most + 1)
    width = np.maximum(high - low, run.eps * run.scale)
    gain = steps * np.arccosh(1.0 + 2.0 * distance / width)
    return least + int(gain.argmax())


def _look_again(run: Recursion, worst: float, *, restarted: bool) -> None:
    # Say when the Ritz pairs are looked at next: half way to where they should have
    # converged; at every step of a small basis, whose eigenproblem costs next to
    # nothing.
    left = 1.0
    if not restarted and 0.0 < worst < run.worst < math.inf:
        rate = math.log(run.worst / worst) / (run.used - run.seen)
        left = math.log(max(worst, 1.0)) / rate / 2
    ahead = 1 if run.used < 64 else run.used // 16
    run.due = run.used + max(1, min(int(left), ahead))
    run.seen, run.worst = run.used, worst


def _found(run: Recursion, theta: NDArray, Y: NDArray, *, converged: bool) -> Krylov:
    # hand the Ritz pairs over
    whole = run.used == run.room
    run.basis.turn(Y)
    return Krylov(
        values=torch.from_numpy(theta),
        vectors=run.basis.hand_over(),
        beyond=run.F.T,
        coupling=torch.from_numpy(run.K @ Y),
        scale=float(run.scale),
        norm=float(run.norm),
        converged=converged,
        whole=whole,
    )
