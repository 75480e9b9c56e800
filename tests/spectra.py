"""Operators whose spectra are known, shared by the tests of spectral estimates."""

import torch
from torch import Tensor

from dynprune.core import Rows
from dynprune.operators import AbstractOperator, MatrixOperator


class Products(AbstractOperator):
    """An operator from any function of a block; nothing is checked."""

    coordinates = None

    def __init__(self, size: int, product, dtype=torch.float64, rows=None) -> None:
        self.product, self.count = product, 0
        self.kind, self.own = dtype, rows or Rows.whole(size)

    rows = property(lambda self: self.own)
    dtype = property(lambda self: self.kind)
    device = property(lambda self: torch.device("cpu"))
    matvecs = property(lambda self: float(self.count))

    def _product(self, block: Tensor) -> Tensor:
        self.count += block.shape[1]
        return self.product(block)


def diagonal_operator(values: Tensor) -> Products:
    return Products(len(values), lambda block: values[:, None] * block, values.dtype)


def turned(values: Tensor, *, seed: int = 3) -> MatrixOperator:
    """A dense matrix with these eigenvalues in random directions."""
    make = torch.Generator().manual_seed(seed)
    square = torch.randn(len(values), len(values), generator=make, dtype=torch.float64)
    Q = torch.linalg.qr(square).Q
    matrix = (Q * values.double()) @ Q.T
    return MatrixOperator((0.5 * (matrix + matrix.T)).to(values.dtype))


def like_a_network(size: int = 300) -> Tensor:
    """Outliers, a bulk that decays to zero, some negative eigenvalues, many zeros."""
    place = torch.arange(1, size + 1, dtype=torch.float64)
    values = place**-1.5
    values[size // 2 :] = 0.0
    values[-(size // 10) :] = -0.01 * place[: size // 10] ** -0.5
    return values


def normal(size: int, *, seed: int = 0) -> Tensor:
    make = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=make, dtype=torch.float64)
