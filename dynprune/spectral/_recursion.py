"""The recursion of block Lanczos with full reorthogonalisation."""

import math
from typing import final

import numpy as np
import torch
from torch import Tensor

from dynprune.core import AssumptionError, InvalidInputError, generator
from dynprune.operators import AbstractOperator
from dynprune.spectral._basis import (
    Basis,
    Complement,
    NDArray,
    directions,
    project,
)

_ROUNDING = 20  # times eps and the norm of A: what a product may carry of it
_DOUBLE = 1e-10  # eps of float64 is below, of all others above
_WHOLE = ("new", "near", "count", "turns", "due", "seen")  # numbers of a state
_REAL = ("scale", "norm", "worst")
_NOT_FINITE = (
    "A product with the operator is not finite. Check the state it was made at, e.g. "
    "that the loss is finite there."
)


@final
class Recursion:
    """Build A V = V T + F K on the complement of some vectors, a block at a time.

    Args:
        op: A.
        k: Vectors that are wanted in the end.
        outside: Where V and F lie.
        basis_size: Vectors that V may hold.
        width: Vectors of a block.
        norm: |A|, if more of it is known than is seen on the complement.
    """

    def __init__(
        self,
        op: AbstractOperator,
        k: int,
        outside: Complement,
        *,
        basis_size: int,
        width: int,
        norm: float = 0.0,
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
        self.norm = norm  # what rounding is relative to, at least the scale
        self.skew = 0.0  # largest |x'Ay - y'Ax| seen of unit vectors
        self.near = 0  # K is zero before this column
        self.due, self.seen, self.worst = k, 0, math.inf

    @property
    def used(self) -> int:
        return self.basis.used

    @property
    def panels(self) -> tuple[Tensor, ...]:
        return (*self.basis.panels, *self.outside.panels)

    def begin(self, start: Tensor) -> None:
        """Make F of a first block.

        Args:
            start: Shape ``(held, b)``.
        """
        panels, rows = self.panels, self.op.rows
        block, _, gram = project(rows, (), start.T.contiguous())
        floor = 100 * self.eps * gram.diagonal().max() ** 0.5
        block, _, gram = project(rows, panels, block)
        self.F, _ = directions(rows, panels, block, gram, floor=floor)
        self.K, self.near = np.zeros((self.F.shape[0], self.used)), self.used

    def renew(self, seed: int) -> None:
        """Make F of a random block: the space is invariant.

        Args:
            seed: Of the block, which also depends on the number of the step.
        """
        width = min(self.width, self.room - self.used)
        self.begin(random_block(self.op, width, seed=seed + self.turns))

    def extend(self) -> None:
        """Put F into the basis."""
        self.turns += 1
        left = self.room - self.used
        self.F, self.K = self.F[:left], self.K[:left]
        self.new = self.F.shape[0]
        self.basis.append(self.F)

    def product(self) -> Tensor:
        """Return A F as rows."""
        self.count += self.new
        return (self.op @ self.F.T).T.contiguous()

    def absorb(self, W: Tensor) -> None:
        """Take the product with the newest block into T, and make the next block.

        Args:
            W: A F as rows.

        Raises:
            InvalidInputError: If it is not finite.
            AssumptionError: If A is not symmetric.
        """  # noqa: DOC502 - raised by refuse_skew
        rows, panels, used = self.op.rows, self.panels, self.used
        before = used - self.new
        self.F = self.F[:0]
        near = (*self.basis.since(self.near), *self.outside.panels)
        W, C, gram = project(rows, panels, W, near=near)
        squares = np.square(C).sum(0) + gram.diagonal()
        if not np.isfinite(squares).all():
            raise InvalidInputError(_NOT_FINITE)
        self.grow(squares.max() ** 0.5)
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
        floor = _ROUNDING * self.eps * self.norm
        self.F, B = directions(rows, panels, W, gram, floor=floor)
        self.K, self.near = np.zeros((B.shape[0], used)), before
        self.K[:, before:] = B

    def grow(self, scale: float) -> None:
        """Take note of a Ritz value or of the norm of a product.

        Args:
            scale: Its size.
        """
        self.scale = max(self.scale, scale)
        self.norm = max(self.norm, self.scale)

    def restart(self, theta: NDArray, Y: NDArray) -> None:
        """Keep some Ritz vectors only.

        Args:
            theta: Their values.
            Y: Their coordinates in V, a column each.
        """
        self.basis.turn(Y)
        self.T[:] = 0.0
        self.T[: self.used, : self.used] = np.diag(theta)
        self.K, self.near = self.K @ Y, 0

    def state(self, W: Tensor) -> dict[str, Tensor]:
        """Return all that :meth:`restore` needs.

        Args:
            W: The product that waits.

        Returns:
            Tensors by name.
        """
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
        """Take a state back.

        Args:
            state: What :meth:`state` returned.

        Returns:
            The product that waits.
        """
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
        self.skew = max(self.skew, skew)
        refuse_skew(self.skew, self.norm, self.eps)


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


def refuse_skew(skew: float, scale: float, eps: float) -> None:
    """Refuse an operator that is less symmetric than products with rounding are.

    Args:
        skew: Largest |x'Ay - y'Ax| seen of unit vectors.
        scale: Largest |Ax| seen.
        eps: Of the operator's dtype; single precision may hold bfloat16 products.

    Raises:
        AssumptionError: If it is not symmetric.
    """
    slack = eps ** (0.25 if eps > _DOUBLE else 0.5) * scale
    if skew > slack:
        raise AssumptionError(
            f"The operator is not symmetric: |x'Ay - y'Ax| reaches {skew:.2g}, beyond "
            f"rounding ({slack:.2g}). Pass a symmetric operator."
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
