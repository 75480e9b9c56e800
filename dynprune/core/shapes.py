"""Names for tensor shapes: P coordinates, k modes, T snapshots.

Type checkers see plain tensors. If jaxtyping is installed the names carry shapes,
which one CI job may check at run time.
"""

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    Vector = Tensor
    Values = Tensor
    Basis = Tensor
    Square = Tensor
    Snapshots = Tensor
else:
    try:
        from jaxtyping import Complex, Float

        Vector = Float[Tensor, "P"]
        Values = Float[Tensor, "k"] | Complex[Tensor, "k"]
        Basis = Float[Tensor, "P k"] | Complex[Tensor, "P k"]
        Square = Float[Tensor, "k k"] | Complex[Tensor, "k k"]
        Snapshots = Float[Tensor, "P T"]
    except ImportError:
        Vector = Values = Basis = Square = Snapshots = Tensor
