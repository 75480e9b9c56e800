"""Block Lanczos with thick restart and full reorthogonalisation."""

import itertools
import math
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from dynprune.core import AssumptionError, InvalidInputError, generator, track
from dynprune.operators import AbstractOperator
from dynprune.spectral._basis import (
    Basis,
    Complement,
    NDArray,
    directions,
    project,
)
from dynprune.spectral._checkpoint import Checkpoint

Which = Literal["LA", "SA", "BE", "LM"]
_WHOLE = ("new", "near", "count", "turns", "due", "seen")  # numbers of a state
_REAL = ("scale", "worst")
_NOT_FINITE = (
    "A product with the operator is not finite. Check the state it was made at, e.g. "
    "that the loss is finite there."
)


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Krylov:
    """Ritz pairs of a Krylov space, A V = V Θ + F S, and how they ended.

    Args:
        values: Θ, descending, float64, on the CPU, shape ``(k,)``.
        vectors: V, orthonormal, shape ``(held, k)``.
        beyond: F, orthonormal and orthogonal to V, shape ``(held, f)``.
        coupling: S, float64, on the CPU, shape ``(f, k)``.
        scale: Largest norm of a product with a unit vector.
        converged: Whether the columns of F S met the tolerance.
        whole: Whether the Krylov space was all there is.
    """

    values: Tensor
    vectors: Tensor
    beyond: Tensor
    coupling: Tensor
    scale: float
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


def random_block(op: AbstractOperator, columns: int, *, seed: int) -> Tensor:
    """Return a Gaussian block that depends on the seed only.

    Args:
        op: Gives rows, dtype and device.
        columns: How many.
        seed: The seed.

    Returns:
        Shape ``(held, columns)``.
    """
    block = op.rows.random(columns, generator=generator(seed), dtype=op.dtype)
    return block.to(device=op.device)


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
        scale: Norm of A, as far as it is known already.
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
    run = _Recursion(op, k, outside, basis_size=basis_size, width=start.shape[1])
    state = None if checkpoint is None else checkpoint.unfinished()
    waiting = None if state is None else run.restore(state)
    if waiting is None:
        run.scale = scale
        run.begin(start)
    for _ in track(itertools.count(), label="spectral.lanczos", show=progress):
        if waiting is None:
            run.extend(seed)
            waiting = run.product()
            if checkpoint is not None and checkpoint.see(run.F, waiting):
                checkpoint.write(run.state(waiting))
        run.absorb(waiting)
        waiting = None
        full = run.used == run.room
        spent = run.count + min(run.width, run.room - run.used) > max_matvecs
        restart = run.used + run.width > run.basis_size
        if not (full or spent or restart or run.used >= run.due):
            continue
        theta, Y = np.linalg.eigh(run.T[: run.used, : run.used])
        run.scale = max(run.scale, abs(theta[0]), abs(theta[-1]))
        order = wanted(torch.from_numpy(theta), which).numpy()
        estimates = np.linalg.norm(run.K @ Y[:, order[:k]], axis=0)
        worst = estimates.max() / (tol * run.scale) if run.scale else 0.0
        done = full or (run.used >= k and worst <= 1.0)
        if done or spent:
            break
        if restart:
            count = _kept(theta[order], estimates > tol * run.scale, run)
            kept = order[:count]
            run.restart(theta[kept], Y[:, kept])
        run.look_again(worst, restarted=restart)
    best = order[:k][np.argsort(-theta[order[:k]], kind="stable")]
    found = run.finish(theta[best], Y[:, best], converged=bool(done))
    if checkpoint is not None:
        parts = {name: getattr(found, name) for name in Krylov.__slots__}
        parts |= {"vectors": found.vectors.T, "beyond": found.beyond.T}
        checkpoint.finish(parts)
    return found


def _kept(theta: NDArray, missed: NDArray, run: "_Recursion") -> int:
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


@final
class _Recursion:
    # A V = V T + F K on the complement of some vectors, one block more at a time.

    def __init__(
        self,
        op: AbstractOperator,
        k: int,
        outside: Complement,
        *,
        basis_size: int,
        width: int,
    ) -> None:
        self.op, self.outside = op, outside
        self.room = op.size - outside.codimension
        self.width = width
        self.eps = torch.finfo(op.dtype).eps
        like = torch.empty(op.rows.held, dtype=op.dtype, device=op.device)
        self.basis = Basis(like, k=k, most=min(basis_size, self.room))
        self.k, self.basis_size = k, basis_size
        self.T, self.K = np.zeros((0, 0)), np.zeros((0, 0))
        self.F = like[None, :][:0]
        self.new, self.count, self.turns, self.scale = 0, 0, 0, 0.0
        self.near = 0  # K is zero before this column
        self.due, self.seen, self.worst = k, 0, math.inf

    @property
    def used(self) -> int:
        return self.basis.used

    @property
    def panels(self) -> tuple[Tensor, ...]:
        return (*self.basis.panels, *self.outside.panels)

    def begin(self, start: Tensor) -> None:
        """Make F of a first block."""
        panels, rows = self.panels, self.op.rows
        block, _, gram = project(rows, (), start.T.contiguous())
        floor = 100 * self.eps * gram.diagonal().max() ** 0.5
        block, _, gram = project(rows, panels, block)
        self.F, _ = directions(rows, panels, block, gram, floor=floor)
        self.K, self.near = np.zeros((self.F.shape[0], self.used)), self.used

    def extend(self, seed: int) -> None:
        """Put F into the basis; a random one if the space is invariant."""
        if not self.F.shape[0]:
            width = min(self.width, self.room - self.used)
            self.begin(random_block(self.op, width, seed=seed + self.turns))
        self.turns += 1
        left = self.room - self.used
        self.F, self.K = self.F[:left], self.K[:left]
        self.new = self.F.shape[0]
        self.basis.append(self.F)

    def product(self) -> Tensor:
        self.count += self.new
        return (self.op @ self.F.T).T.contiguous()

    def absorb(self, W: Tensor) -> None:
        # take the product with the newest block into T, and make the next
        rows, panels, used = self.op.rows, self.panels, self.used
        before = used - self.new
        self.F = self.F[:0]
        near = (*self.basis.since(self.near), *self.outside.panels)
        W, C, gram = project(rows, panels, W, near=near)
        squares = np.square(C).sum(0) + gram.diagonal()
        if not np.isfinite(squares).all():
            raise InvalidInputError(_NOT_FINITE)
        self.scale = max(self.scale, squares.max() ** 0.5)
        C = C[:used]
        self._check_symmetric(C, before)
        self._widen(used)
        corner = C[before:]
        self.T[before:used, :before] = self.K
        self.T[:before, before:used] = self.K.T
        self.T[before:used, before:used] = 0.5 * (corner + corner.T)
        if used == self.room:
            self.F, self.K = W[:0], np.zeros((0, used))
            return
        floor = 100 * self.eps * self.scale
        self.F, B = directions(rows, panels, W, gram, floor=floor)
        self.K, self.near = np.zeros((B.shape[0], used)), before
        self.K[:, before:] = B

    def restart(self, theta: NDArray, Y: NDArray) -> None:
        """Keep some Ritz vectors only."""
        self.basis.turn(Y)
        self.T[:] = 0.0
        self.T[: self.used, : self.used] = np.diag(theta)
        self.K, self.near = self.K @ Y, 0

    def finish(self, theta: NDArray, Y: NDArray, *, converged: bool) -> Krylov:
        # hand the Ritz pairs over
        whole = self.used == self.room
        self.basis.turn(Y)
        return Krylov(
            values=torch.from_numpy(theta),
            vectors=self.basis.hand_over(),
            beyond=self.F.T,
            coupling=torch.from_numpy(self.K @ Y),
            scale=float(self.scale),
            converged=converged,
            whole=whole,
        )

    def look_again(self, worst: float, *, restarted: bool) -> None:
        """Say when the Ritz pairs are looked at next.

        Half way to where they should have converged; at every step of a small basis,
        whose eigenproblem costs next to nothing.
        """
        left = 1.0
        if not restarted and 0.0 < worst < self.worst < math.inf:
            rate = math.log(self.worst / worst) / (self.used - self.seen)
            left = math.log(max(worst, 1.0)) / rate / 2
        ahead = 1 if self.used < 64 else self.used // 16
        self.due = self.used + max(1, min(int(left), ahead))
        self.seen, self.worst = self.used, worst

    def state(self, W: Tensor) -> dict[str, Tensor]:
        """Return all that :meth:`restore` needs, with the product that waits."""
        numbers = [float(getattr(self, name)) for name in (*_WHOLE, *_REAL)]
        used = self.used - self.new
        return {
            **{f"basis.{i}": panel for i, panel in enumerate(self.basis.panels)},
            "W": W,
            "T": torch.from_numpy(self.T[:used, :used]),
            "K": torch.from_numpy(self.K),
            "numbers": torch.tensor(numbers, dtype=torch.float64),
        }

    def restore(self, state: dict[str, Tensor]) -> Tensor:
        # take a state back; return the product that waits
        numbers = state["numbers"].tolist()
        for name, number in zip((*_WHOLE, *_REAL), numbers, strict=True):
            setattr(self, name, int(number) if name in _WHOLE else number)
        panels = [name for name in state if name.startswith("basis.")]
        for i in range(len(panels)):
            self.basis.append(state[f"basis.{i}"])
        self.K, T = state["K"].numpy(), state["T"].numpy()
        self._widen(self.used)
        self.T[: len(T), : len(T)] = T
        return state["W"]

    def _widen(self, least: int) -> None:
        if len(self.T) < least:
            size = min(max(2 * len(self.T), 64, least), max(least, self.basis_size))
            T = np.zeros((size, size))
            T[: len(self.T), : len(self.T)] = self.T
            self.T = T

    def _check_symmetric(self, C: NDArray, before: int) -> None:
        # C = V'AF: its corner must be symmetric, and the rest be (F'AV)' = K'.
        corner = C[before:]
        skew = max(_largest(corner - corner.T), _largest(C[:before] - self.K.T))
        single = self.eps > 1e-10
        floor = self.eps ** (0.25 if single else 0.5) * self.scale
        if skew > floor:
            raise AssumptionError(
                f"The operator is not symmetric: |x'Ay - y'Ax| reaches {skew:.2g}, "
                f"beyond rounding ({floor:.2g}). Pass a symmetric operator."
            )


def _largest(numbers: NDArray) -> float:
    return float(np.abs(numbers).max()) if numbers.size else 0.0


def finite(W: Tensor) -> Tensor:
    """Return products as they are.

    Args:
        W: Any tensor.

    Returns:
        The same.

    Raises:
        InvalidInputError: If an entry is NaN or infinite.
    """
    if not bool(torch.isfinite(W).all()):
        raise InvalidInputError(_NOT_FINITE)
    return W
