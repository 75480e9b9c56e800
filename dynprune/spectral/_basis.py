"""Orthonormal vectors, and what is left of others when they are taken out."""

from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor

from dynprune.core import Rows

_SMALL = 2**20  # numbers; bases below it lie in one piece
_STEP = 8
_SLICE = 8192
NDArray = np.typing.NDArray[np.float64]


@final
class Complement:
    """What is orthogonal to some orthonormal vectors.

    Args:
        rows: Which coordinates this process holds.
        panels: The vectors, as rows: tensors of shape ``(c, held)``.
    """

    def __init__(self, rows: Rows, panels: Sequence[Tensor] = ()) -> None:
        self.rows = rows
        self.panels = tuple(panel for panel in panels if len(panel))

    @property
    def codimension(self) -> int:
        """How many vectors are taken out."""
        return sum(len(panel) for panel in self.panels)

    def without(self, columns: Tensor) -> Tensor:
        """Return W − U U'W.

        Args:
            columns: W, shape ``(held, b)``.

        Returns:
            The same shape.
        """
        if not self.panels:
            return columns
        coefficients = self.rows.sum(_inner(self.panels, columns.T))
        return _subtract(self.panels, coefficients, columns.T).T

    def joined(self, columns: Tensor) -> "Complement":
        """Take more vectors out.

        Args:
            columns: Orthonormal, orthogonal to the others, shape ``(held, c)``.

        Returns:
            The smaller complement.
        """
        return Complement(self.rows, (*self.panels, columns.T))


@final
class Basis:
    """Orthonormal vectors that come, are turned and go, in panels of rows.

    A panel is allocated when its first vector comes. The first one has room for k, so
    that the answer can be handed over without a copy.

    Args:
        like: Gives dtype, device and length of the vectors.
        k: Vectors that are wanted in the end.
        most: Vectors that may come.
    """

    def __init__(self, like: Tensor, *, k: int, most: int) -> None:
        self._like = like.new_empty(0)
        self._held = like.shape[-1]
        self._most = most
        small = self._held * most <= _SMALL
        self._widths = (max(k, min(most, 64)), 0) if small else (k, _STEP)
        self._panels: list[Tensor] = []
        self.used = 0

    @property
    def panels(self) -> tuple[Tensor, ...]:
        """The vectors, as rows."""
        return self.since(0)

    def since(self, first: int) -> tuple[Tensor, ...]:
        """Return the vectors from the one of this index on, as rows.

        Args:
            first: Counted from 0.

        Returns:
            Views of the panels.
        """
        found, low = [], 0
        for panel in self._panels:
            high = low + panel.shape[0]
            if first < high and self.used > low:
                found.append(panel[max(first - low, 0) : self.used - low])
            low = high
        return tuple(found)

    def append(self, vectors: Tensor) -> None:
        """Copy vectors in.

        Args:
            vectors: Shape ``(b, held)``.
        """
        for vector in vectors:
            first = 0
            for panel in self._panels:
                if self.used < first + len(panel):
                    break
                first += len(panel)
            else:
                self._panels.append(self._new(first))
                panel = self._panels[-1]
            panel[self.used - first] = vector
            self.used += 1

    def turn(self, mixing: NDArray) -> None:
        """Replace the vectors V by V Y, in place.

        Args:
            mixing: Y, orthonormal, shape ``(used, n)``, n at most ``used``.
        """
        panels, count = self.panels, mixing.shape[1]
        turning = torch.from_numpy(mixing.T.copy()).to(self._like)
        step = max(1024, self._held // 128)
        for first in range(0, self._held, step):
            part = torch.cat([panel[:, first : first + step] for panel in panels])
            done = 0
            for panel in panels:
                rows = turning[done : done + len(panel)]
                torch.mm(rows, part, out=panel[: len(rows), first : first + step])
                done += len(panel)
        self.used = count

    def hand_over(self) -> Tensor:
        """Give the vectors away and forget them.

        Returns:
            Shape ``(held, used)``, one vector after the other in memory.
        """
        found = self.panels
        whole = found[0] if len(found) == 1 else torch.cat(found)
        if whole.untyped_storage().size() > 2 * whole.nbytes:
            whole = whole.clone()
        self._panels, self.used = [], 0
        return whole.T

    def _new(self, before: int) -> Tensor:
        first, step = self._widths
        width = first if before == 0 else step or before
        return self._like.new_empty((min(width, self._most - before), self._held))


def project(
    rows: Rows,
    panels: Sequence[Tensor],
    block: Tensor,
    *,
    near: Sequence[Tensor] | None = None,
) -> tuple[Tensor, NDArray, NDArray]:
    """Take orthonormal vectors V out of a block W, twice.

    Args:
        rows: Which coordinates this process holds.
        panels: V as rows.
        block: W as rows, shape ``(b, held)``; not changed.
        near: The last of the vectors, if W is orthogonal to the others but for
            rounding; then the first time only these are taken out.

    Returns:
        W − V C as rows; C, float64, shape ``(v, b)``; and the Gram matrix of W − V C,
        shape ``(b, b)``.

    Cost:
        Two all-reduces where the coordinates are sharded, seldom more.
    """
    width = block.shape[0]
    if not panels or not width:
        gram = rows.sum(_gram(block)).cpu().numpy()
        return block, np.zeros((0, width)), gram
    if near is None:
        near = panels
    part = rows.sum(_inner(near, block))
    block = _subtract(near, part, block)
    first = part.double().cpu().numpy()
    C = np.zeros((sum(panel.shape[0] for panel in panels), width))
    C[len(C) - len(first) :] = first
    for again in (True, True, False):
        both = rows.sum(torch.cat([_inner(panels, block).double(), _gram(block)]))
        block = _subtract(panels, both[:-width], block, fresh=False)
        found = both.cpu().numpy()
        D, gram = found[:-width], found[-width:]
        C += D
        lost = D.T @ D
        gram = gram - lost
        if not (again and np.trace(lost) > 1e-2 * gram.diagonal().min()):
            break
    return block, C, gram


def directions(
    rows: Rows,
    panels: Sequence[Tensor],
    block: Tensor,
    gram: NDArray,
    *,
    floor: float,
) -> tuple[Tensor, NDArray]:
    r"""Return F orthonormal and orthogonal to V, and B with W ≈ F B.

    By Gram matrices, :math:`W X \Sigma^{-1}` with :math:`W^\top W = X \Sigma^2
    X^\top`, twice; directions too weak for their Gram matrix come in a later round,
    and those that carry less than ``floor`` are dropped: they are rounding.

    Args:
        rows: Which coordinates this process holds.
        panels: V as rows.
        block: W as rows, orthogonal to V to rounding, shape ``(b, held)``.
        gram: W'W, shape ``(b, b)``.
        floor: What rounding may carry.

    Returns:
        F as rows, shape ``(f, held)``, and B, float64, shape ``(f, b)``.
    """
    if block.shape[0] == 1:
        norm = max(float(gram[0, 0]), 0.0) ** 0.5
        if norm <= floor:
            return block[:0], gram[:0]
        return block / norm, np.full((1, 1), norm)
    found: list[Tensor] = []
    rest = block
    while rest.shape[0]:
        squares, X = np.linalg.eigh(gram)
        sizes = np.sqrt(squares.clip(0.0))
        if sizes[-1] <= floor:
            break
        strong = sizes > max(1e-3 * sizes[-1], floor)
        taken = (*panels, *found)
        part = _mix(X[:, strong] / sizes[strong], rest)
        part, _, gram = project(rows, taken, part)
        found.append(_whitened(part, gram))
        rest, _, gram = project(rows, (*taken, found[-1]), _mix(X[:, ~strong], rest))
    if not found:
        return block[:0], gram[:0]
    F = torch.cat(found)
    return F, rows.sum(_inner((F,), block)).double().cpu().numpy()


def _whitened(block: Tensor, gram: NDArray) -> Tensor:
    squares, X = np.linalg.eigh(gram)
    return _mix(X / np.sqrt(squares), block)


def _mix(turn: NDArray, block: Tensor) -> Tensor:
    return torch.from_numpy(turn.T.copy()).to(block) @ block


def _inner(panels: Sequence[Tensor], block: Tensor) -> Tensor:
    # Long sums in single precision are made of slices: an error of √P eps in V'W would
    # be what orthogonality is lost to.
    held = block.shape[1]
    if held <= 2 * _SLICE or block.dtype == torch.float64 or block.is_cuda:
        parts = [panel @ block.T for panel in panels]
        return parts[0] if len(parts) == 1 else torch.cat(parts)
    count = sum(panel.shape[0] for panel in panels)
    total = block.new_zeros((count, block.shape[0]), dtype=torch.float64)
    for first in range(0, held, _SLICE):
        part, low = block[:, first : first + _SLICE].T, 0
        for panel in panels:
            high = low + panel.shape[0]
            total[low:high] += panel[:, first : first + _SLICE] @ part
            low = high
    return total


def _gram(block: Tensor) -> Tensor:
    if block.shape[0] == 1:
        norm = torch.linalg.vector_norm(block, dtype=torch.float64)
        squared: Tensor = norm.square().reshape(1, 1)
        return squared
    return _products(block, block)


def overlap(rows: Rows, left: Tensor, right: Tensor) -> Tensor:
    """Return X'Y in float64, a slice of coordinates at a time.

    Args:
        rows: Which coordinates this process holds.
        left: X, shape ``(held, a)``.
        right: Y, shape ``(held, b)``.

    Returns:
        Shape ``(a, b)``.
    """
    return rows.sum(_products(left.T, right.T))


def _products(left: Tensor, right: Tensor) -> Tensor:
    total = left.new_zeros((left.shape[0], right.shape[0]), dtype=torch.float64)
    for first in range(0, left.shape[1], _SLICE):
        x, y = (part[:, first : first + _SLICE].double() for part in (left, right))
        total += x @ y.T
    return total


def _subtract(
    panels: Sequence[Tensor], C: Tensor, block: Tensor, *, fresh: bool = True
) -> Tensor:
    C, first = C.to(block.dtype), 0
    for panel in panels:
        part = C[first : first + panel.shape[0]].T
        first += panel.shape[0]
        if fresh:
            block = torch.addmm(block, part, panel, alpha=-1.0)
        else:
            block.addmm_(part, panel, alpha=-1.0)
        fresh = False
    return block
