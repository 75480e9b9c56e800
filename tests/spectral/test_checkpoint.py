"""A run that is killed goes on from its file, to the same bits."""

import pytest
import torch
from torch import Tensor

from dynprune.core import Coordinates, InvalidInputError, Rows
from dynprune.operators import AbstractOperator, MatrixOperator
from dynprune.spectral import eigenpairs


class Mortal(AbstractOperator):
    """A matrix whose process dies after some products."""

    def __init__(self, matrix: Tensor, *, dies_after: float = float("inf")) -> None:
        self._matrix, self._left, self._count = matrix, dies_after, 0.0

    @property
    def rows(self) -> Rows:
        return Rows.whole(len(self._matrix))

    @property
    def coordinates(self) -> Coordinates | None:
        return None

    @property
    def dtype(self):
        return self._matrix.dtype

    @property
    def device(self):
        return self._matrix.device

    @property
    def matvecs(self) -> float:
        return self._count

    def _product(self, block):
        if self._count + block.shape[1] > self._left:
            raise KeyboardInterrupt
        self._count += block.shape[1]
        return self._matrix @ block


def matrix(size: int = 300) -> Tensor:
    values = 30.0 / torch.arange(1, size + 1, dtype=torch.float64)
    make = torch.Generator().manual_seed(0)
    turn = torch.linalg.qr(
        torch.randn(size, size, generator=make, dtype=torch.float64)
    ).Q
    return turn @ torch.diag(values) @ turn.T


ASK = {"k": 6, "tol": 1e-9, "basis_size": 24, "checkpoint_every": 5}


@pytest.mark.parametrize("completeness", [False, True])
@pytest.mark.parametrize("lives", [(3,), (17,), (11, 14), (7, 7, 7)], ids=str)
def test_a_killed_run_ends_with_the_same_bits(tmp_path, lives, completeness):
    ask = ASK | {"completeness": completeness}
    whole = eigenpairs(Mortal(matrix()), **ask)
    path = tmp_path / "state.safetensors"
    for life in lives:
        with pytest.raises(KeyboardInterrupt):
            eigenpairs(Mortal(matrix(), dies_after=life), checkpoint=path, **ask)
    resumed = eigenpairs(Mortal(matrix()), checkpoint=path, **ask)
    for name in ("values", "vectors", "residual_norms", "enclosures", "converged"):
        assert torch.equal(getattr(resumed, name), getattr(whole, name)), name
    assert resumed.complete == whole.complete
    assert resumed.matvecs == whole.matvecs


def test_a_resumed_run_does_not_start_anew(tmp_path):
    path = tmp_path / "state.safetensors"
    whole = eigenpairs(MatrixOperator(matrix()), **ASK)
    with pytest.raises(KeyboardInterrupt):
        eigenpairs(Mortal(matrix(), dies_after=20), checkpoint=path, **ASK)
    op = MatrixOperator(matrix())
    eigenpairs(op, checkpoint=path, **ASK)
    assert op.matvecs <= whole.matvecs - 12  # of the 20, less the probe
    again = MatrixOperator(matrix())
    eigenpairs(again, checkpoint=path, **ASK)
    assert again.matvecs <= 3  # the check of the operator, and of the result


@pytest.mark.parametrize(
    "change",
    [{"k": 5}, {"tol": 1e-7}, {"seed": 1}, {"which": "SA"}, {"matrix": 1}],
    ids=str,
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, change):
    path = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        eigenpairs(Mortal(matrix(), dies_after=20), checkpoint=path, **ASK)
    before = path.read_bytes()
    other = matrix()
    if change.pop("matrix", None):
        other = other + 0.1 * torch.eye(300, dtype=torch.float64)
    with pytest.raises(InvalidInputError, match="checkpoint"):
        eigenpairs(MatrixOperator(other), checkpoint=path, **(ASK | change))
    assert path.read_bytes() == before
