"""Symmetric matrix-free operators, counted, and what is composed of them."""

import abc
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final, overload

import torch
from torch import Tensor

from dynprune.core import Coordinates, InvalidInputError, Rows
from dynprune.operators._selection import named_product

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator


class AbstractOperator(abc.ABC):
    """A symmetric operator A on R^P, known by its products.

    ``A @ v`` takes shape ``(P,)``, ``A @ V`` takes ``(P, k)``; where the rows are
    parameters of a system, also a dictionary or list of tensors shaped like them.
    ``matvecs`` counts products so far, each column of a block once.
    """

    @property
    @abc.abstractmethod
    def rows(self) -> Rows:
        """Which rows of vectors this process holds: all P, unless they are sharded."""

    @property
    @abc.abstractmethod
    def coordinates(self) -> Coordinates | None:
        """Which entries of parameters the rows are; None if they are none."""

    @property
    @abc.abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype of products."""

    @property
    @abc.abstractmethod
    def device(self) -> torch.device:
        """The device of products."""

    @property
    @abc.abstractmethod
    def matvecs(self) -> float:
        """Number of products so far."""

    @abc.abstractmethod
    def _product(self, block: Tensor) -> Tensor:
        """Return A V for V of shape (P, k)."""

    @final
    @property
    def size(self) -> int:
        """Number P of coordinates."""
        return self.rows.total

    @final
    @property
    def shape(self) -> tuple[int, int]:
        """(P, P)."""
        return (self.size, self.size)

    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...

    @overload
    def __matmul__(self, other: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    @overload
    def __matmul__(self, other: Sequence[Tensor]) -> list[Tensor]: ...

    @final
    def __matmul__(
        self, other: Tensor | Mapping[str, Tensor] | Sequence[Tensor]
    ) -> Tensor | dict[str, Tensor] | list[Tensor]:
        """Return A v or A V.

        Args:
            other: Shape ``(P,)`` or ``(P, k)``, of the operator's dtype and device; or
                parameter name to tensor, or tensors in the order of the parameters,
                of their shapes, each with an axis of k columns at the end or none.

        Returns:
            The product, of the same shape.

        Raises:
            InvalidInputError: If shape, dtype or device do not fit.
        """
        if not isinstance(other, Tensor):
            return named_product(self, self.coordinates, other)
        held = self.rows.held
        if other.ndim not in {1, 2} or other.shape[0] != held:
            raise InvalidInputError(
                f"A product with shape {tuple(other.shape)} was asked of an operator "
                f"of shape {self.shape}. Pass ({held},) or ({held}, k)."
            )
        if other.dtype != self.dtype or other.device != self.device:
            raise InvalidInputError(
                f"A product with {other.dtype} on {other.device} was asked of an "
                f"operator in {self.dtype} on {self.device}. Convert the vector."
            )
        if other.ndim == 1:
            return self._product(other.detach()[:, None])[:, 0]
        return self._product(other.detach())

    @final
    def dense(self) -> Tensor:
        """Return the matrix, shape (P, P), symmetrised.

        Raises:
            InvalidInputError: If P > 20,000.

        Cost:
            P products, P² numbers.
        """
        _refuse_shards(self, "dense()")
        if self.size > 20_000:
            raise InvalidInputError(
                f"dense() of {self.size} coordinates would hold {self.size**2:.1e} "
                "numbers. Ask for eigenpairs instead."
            )
        eye = torch.eye(self.size, dtype=self.dtype, device=self.device)
        matrix = torch.cat([self._product(part) for part in eye.split(64, dim=1)], 1)
        return 0.5 * (matrix + matrix.T)

    @final
    def to_scipy(self) -> "LinearOperator":
        """Return a SciPy LinearOperator that makes the same products."""
        from scipy.sparse.linalg import LinearOperator

        _refuse_shards(self, "to_scipy()")

        def product(array: Any) -> Any:
            block = torch.as_tensor(array).to(device=self.device, dtype=self.dtype)
            return (
                (self @ block.reshape(self.size, -1)).cpu().numpy().reshape(array.shape)
            )

        return LinearOperator(
            self.shape,
            matvec=product,
            matmat=product,
            rmatvec=product,
            dtype=torch.empty(0, dtype=self.dtype).numpy().dtype,
        )

    @final
    def shifted(self, mu: float) -> "ShiftedOperator":
        """Return A + μI.

        Args:
            mu: μ, in units of A.

        Returns:
            The operator; products are counted by this one.
        """
        return ShiftedOperator(self, mu)

    @final
    def restrict(self, mask: Tensor) -> "RestrictedOperator":
        """Return the block SᵀAS of the kept coordinates.

        Args:
            mask: Boolean, shape ``(P,)``, True = kept.

        Returns:
            The operator on the kept coordinates, in their order.
        """
        return RestrictedOperator(self, mask)

    @final
    def deflated(self, basis: Tensor) -> "DeflatedOperator":
        """Return (I − UUᵀ) A (I − UUᵀ).

        Args:
            basis: Orthonormal U, shape ``(P, k)``.

        Returns:
            The operator; U spans eigenvectors of eigenvalue zero of it.
        """
        return DeflatedOperator(self, basis)

    @final
    def __add__(self, other: "AbstractOperator") -> "SumOperator":
        """Return A + B.

        Args:
            other: B, of the same shape, dtype and device.

        Returns:
            The sum.
        """
        return SumOperator(self, other)

    @final
    def __sub__(self, other: "AbstractOperator") -> "SumOperator":
        """Return A − B.

        Args:
            other: B, of the same shape, dtype and device.

        Returns:
            The difference.
        """
        return SumOperator(self, other, factor=-1.0)


class _AbstractWrapped(AbstractOperator):
    """An operator made from one other; products are counted there."""

    def __init__(self, inner: AbstractOperator) -> None:
        self._inner = inner

    @final
    @property
    def dtype(self) -> torch.dtype:
        """The dtype of products."""
        return self._inner.dtype

    @final
    @property
    def device(self) -> torch.device:
        """The device of products."""
        return self._inner.device

    @final
    @property
    def matvecs(self) -> float:
        """Number of products of the wrapped operator so far."""
        return self._inner.matvecs


@final
class ShiftedOperator(_AbstractWrapped):
    """A + μI.

    Args:
        inner: A.
        mu: μ, in units of A.
    """

    def __init__(self, inner: AbstractOperator, mu: float) -> None:
        self._inner = inner
        self._mu = float(mu)

    @property
    def rows(self) -> Rows:
        """Which rows of vectors this process holds."""
        return self._inner.rows

    @property
    def coordinates(self) -> Coordinates | None:
        """Which parameters' entries the rows are."""
        return self._inner.coordinates

    def _product(self, block: Tensor) -> Tensor:
        return self._inner._product(block) + self._mu * block


@final
class RestrictedOperator(_AbstractWrapped):
    """SᵀAS, with S the embedding of the kept coordinates.

    Args:
        inner: A.
        mask: Boolean, shape ``(P,)``, True = kept.

    Raises:
        InvalidInputError: If the mask has another shape or keeps nothing.
    """

    def __init__(self, inner: AbstractOperator, mask: Tensor) -> None:
        if mask.shape != (inner.size,) or mask.dtype != torch.bool:
            raise InvalidInputError(
                f"A mask of {mask.dtype} and shape {tuple(mask.shape)} was given; pass "
                f"torch.bool of shape ({inner.size},)."
            )
        _refuse_shards(inner, "restrict()")
        self._inner = inner
        self._kept = torch.nonzero(mask.to(inner.device)).reshape(-1)
        if not len(self._kept):
            raise InvalidInputError("The mask keeps no coordinate. Keep at least one.")

    @property
    def rows(self) -> Rows:
        """All kept coordinates."""
        return Rows.whole(len(self._kept))

    @property
    def coordinates(self) -> Coordinates | None:
        """Which parameters' entries are kept."""
        whole = self._inner.coordinates
        if whole is None:
            return None
        kept = self._kept.cpu()
        before = whole.survivors
        return replace(whole, survivors=kept if before is None else before[kept])

    def _product(self, block: Tensor) -> Tensor:
        whole = block.new_zeros((self._inner.size, block.shape[1]))
        whole[self._kept] = block
        return self._inner._product(whole)[self._kept]


@final
class DeflatedOperator(_AbstractWrapped):
    """(I − UUᵀ) A (I − UUᵀ).

    Args:
        inner: A.
        basis: Orthonormal U, shape ``(P, k)``.

    Raises:
        InvalidInputError: If U has another shape or is not orthonormal.
    """

    def __init__(self, inner: AbstractOperator, basis: Tensor) -> None:
        if basis.ndim != 2 or basis.shape[0] != inner.rows.held:
            raise InvalidInputError(
                f"A basis of shape {tuple(basis.shape)} was given; pass "
                f"({inner.rows.held}, k)."
            )
        gram = inner.rows.inner(basis, basis)
        eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        error = float((gram - eye).abs().max()) if gram.numel() else 0.0
        if error > torch.finfo(basis.dtype).eps ** 0.5:
            raise InvalidInputError(
                f"The basis is not orthonormal: |U'U - I| reaches {error:.2g}. Pass "
                "torch.linalg.qr(U).Q."
            )
        self._inner = inner
        self._basis = basis.detach().clone()

    @property
    def rows(self) -> Rows:
        """Which rows of vectors this process holds."""
        return self._inner.rows

    @property
    def coordinates(self) -> Coordinates | None:
        """Which parameters' entries the rows are."""
        return self._inner.coordinates

    def _product(self, block: Tensor) -> Tensor:
        U, rows = self._basis, self.rows
        inside = self._inner._product(block - U @ rows.inner(U, block))
        return inside - U @ rows.inner(U, inside)


@final
class SumOperator(AbstractOperator):
    """A + cB.

    Args:
        left: A.
        right: B, of the same shape, dtype and device.
        factor: c.

    Raises:
        InvalidInputError: If shape, dtype or device differ.
    """

    def __init__(
        self, left: AbstractOperator, right: AbstractOperator, factor: float = 1.0
    ) -> None:
        a = (left.rows, left.dtype, left.device)
        b = (right.rows, right.dtype, right.device)
        if a != b:
            raise InvalidInputError(
                f"Operators {a} and {b} cannot be added: shape, dtype and device must "
                "agree."
            )
        self._left, self._right, self._factor = left, right, float(factor)

    @property
    def rows(self) -> Rows:
        """Which rows of vectors this process holds."""
        return self._left.rows

    @property
    def coordinates(self) -> Coordinates | None:
        """Which parameters' entries the rows are."""
        return self._left.coordinates

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of products."""
        return self._left.dtype

    @property
    def device(self) -> torch.device:
        """The device of products."""
        return self._left.device

    @property
    def matvecs(self) -> float:
        """Number of products of both so far."""
        return self._left.matvecs + self._right.matvecs

    def _product(self, block: Tensor) -> Tensor:
        return self._left._product(block) + self._factor * self._right._product(block)


def _refuse_shards(op: AbstractOperator, what: str) -> None:
    if op.rows.held != op.size:
        raise InvalidInputError(
            f"{what} was asked of an operator whose vectors are sharded: this process "
            f"holds {op.rows.held} of {op.size} rows. Make it with whole vectors."
        )
