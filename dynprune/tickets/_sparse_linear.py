"""A linear layer whose weight is a sparse matrix."""

import math
import sys
import warnings
from typing import Literal, final

import torch
from torch import Tensor, nn

Layout = Literal["csr", "coo"]
_HALF = (torch.float16, torch.bfloat16)


@final
class SparseLinear(nn.Module):
    r"""Compute :math:`y = W x + b` with W held as its non-zero entries.

    Args:
        weight: Dense, shape ``(out, in)``; exact zeros are left out.
        bias: Shape ``(out,)``, or None.
        layout: ``"csr"`` or ``"coo"``.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None = None, *, layout: Layout = "csr"
    ) -> None:
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.layout = layout
        rows, columns = torch.nonzero(weight.detach(), as_tuple=True)
        narrow = torch.int32 if max(*weight.shape, len(rows)) < 2**31 else torch.int64
        self.values: Tensor
        self.rows: Tensor
        self.columns: Tensor
        self.bias: Tensor | None
        self.register_buffer("values", weight.detach()[rows, columns].clone())
        if layout == "csr":
            counts = torch.bincount(rows, minlength=len(weight))
            starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            self.register_buffer("rows", starts.to(narrow))
            self.register_buffer("columns", columns.to(narrow))
        else:
            self.register_buffer("rows", rows)
            self.register_buffer("columns", columns)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        with warnings.catch_warnings():
            # torch says once a process that its CSR tensors are in beta
            warnings.filterwarnings("ignore", "Sparse CSR tensor support")
            assert self.matrix.shape == weight.shape

    @staticmethod
    def of(module: nn.Module, *, layout: Layout) -> "SparseLinear":
        """Make one of a Linear layer, or of a Conv1D, whose weight is transposed.

        Args:
            module: The layer.
            layout: ``"csr"`` or ``"coo"``.

        Returns:
            The sparse layer.
        """
        weight = module.weight
        assert isinstance(weight, Tensor)
        bias = module.bias
        assert bias is None or isinstance(bias, Tensor)
        straight = isinstance(module, nn.Linear)
        return SparseLinear(weight if straight else weight.T, bias, layout=layout)

    @property
    def kept(self) -> int:
        """Number of entries that are not zero."""
        return len(self.values)

    @property
    def matrix(self) -> Tensor:
        """W as a sparse tensor, shape ``(out, in)``."""
        return self._matrix(self.values)

    @property
    def weight(self) -> Tensor:
        """The same, for modules that ask a layer for the dtype of its weight."""
        return self.matrix

    def _matrix(self, values: Tensor) -> Tensor:
        shape = (self.out_features, self.in_features)
        if self.layout == "coo":
            places = torch.stack([self.rows, self.columns])
            return torch.sparse_coo_tensor(
                places, values, shape, is_coalesced=True, check_invariants=False
            )
        found: Tensor = torch.sparse_csr_tensor(
            self.rows, self.columns, values, shape, check_invariants=False
        )
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: Shape ``(…, in)``.

        Returns:
            Shape ``(…, out)``.
        """
        count = math.prod(x.shape[:-1])
        columns = x.reshape(count, self.in_features).T
        if self.values.dtype in _HALF and self.values.device.type == "cpu":
            # the CPU has no such product of CSR, and that of COO rounds every sum
            single = self._matrix(self.values.float())
            product: Tensor = torch.sparse.mm(single, columns.float())
            y = product.T.to(self.values.dtype)
        else:
            product = torch.sparse.mm(self.matrix, columns)
            y = product.T
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        """Return the arguments, for ``repr``."""
        return (
            f"{self.in_features}, {self.out_features}, kept={self.kept}, "
            f"layout={self.layout!r}"
        )


def is_linear(module: nn.Module) -> bool:
    """Say whether a module is a layer that :meth:`SparseLinear.of` takes.

    Args:
        module: Any module.

    Returns:
        False for subclasses, too: attention reads the weight of its own without
        calling it.
    """
    known = sys.modules.get("transformers.pytorch_utils")
    other = getattr(known, "Conv1D", nn.Linear)
    return type(module) in {nn.Linear, other}
