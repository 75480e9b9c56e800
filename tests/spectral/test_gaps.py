"""Gaps: indices, enclosures, and what may be called resolved."""

import pytest
import torch

from dynprune.core import InvalidInputError
from dynprune.operators import MatrixOperator
from dynprune.spectral import Eigenpairs, Gaps, eigenpairs, gaps


def operator(head, size: int = 200) -> MatrixOperator:
    values = torch.linspace(0.4, -0.4, size, dtype=torch.float64)
    values[: len(head)] = torch.tensor(head, dtype=torch.float64)
    make = torch.Generator().manual_seed(3)
    square = torch.randn(size, size, generator=make, dtype=torch.float64)
    Q = torch.linalg.qr(square).Q
    matrix = (Q * values) @ Q.T
    return MatrixOperator(0.5 * (matrix + matrix.T))


def test_the_index_counts_from_the_sharp_end():
    found = gaps(eigenpairs(operator([5.0, 4.0, 1.0]), 4, completeness=True, tol=1e-9))
    assert found.n_fast.tolist() == [1, 2, 3]
    assert found.spectral_gap[:2].tolist() == pytest.approx([1.0, 3.0])
    assert found.relative_gap[:2].tolist() == pytest.approx([0.2, 0.75])
    assert found.largest() == 2
    assert found.at(2)["resolved"] is True
    assert (found.lower_bound <= found.spectral_gap).all()


def test_a_false_gap_is_not_resolved_and_the_second_start_removes_it():
    op = operator([5.0, 4.0, 4.0, 1.0])
    alone = gaps(eigenpairs(op, 3))
    assert alone.spectral_gap.tolist() == pytest.approx([1.0, 3.0])  # the false gap
    assert not alone.resolved.any()
    assert alone.largest() is None
    assert alone.largest(resolved_only=False) == 2
    tested = gaps(eigenpairs(op, 4, completeness=True))
    assert tested.spectral_gap.tolist() == pytest.approx([1.0, 0.0, 3.0], abs=1e-5)
    assert tested.resolved.tolist() == [True, False, True]
    assert tested.largest() == 3


def test_overlapping_enclosures_are_not_resolved():
    op = operator([5.0, 4.0, 4.0 - 1e-14, 1.0])
    found = gaps(eigenpairs(op, 4, completeness=True, tol=1e-6))
    assert found.resolved.tolist() == [True, False, True]
    assert float(found.lower_bound[1]) <= 0.0


def test_relative_gaps_exist_only_where_the_curvature_is_positive():
    matrix = torch.diag(torch.tensor([2.0, -1.0, -3.0], dtype=torch.float64))
    found = gaps(eigenpairs(MatrixOperator(matrix), 3))
    assert torch.isnan(found.relative_gap).tolist() == [False, True]
    assert found.largest() == 1


@pytest.mark.parametrize(
    ("k", "which", "message"),
    [(3, "SA", "counted from the sharp end"), (1, "LA", "needs two eigenvalues")],
    ids=str,
)
def test_what_has_no_gap_is_refused(k, which, message):
    pairs = eigenpairs(operator([5.0]), k, which=which, tol=1e-3)
    with pytest.raises(InvalidInputError, match=message):
        gaps(pairs)


def test_an_unknown_index_is_refused():
    found = gaps(eigenpairs(operator([5.0, 4.0]), 2))
    with pytest.raises(InvalidInputError, match="no gap n_fast=2"):
        found.at(2)


def test_gaps_survive_a_file_and_show_themselves(tmp_path):
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    found = gaps(eigenpairs(operator([5.0, 4.0, 1.0]), 4, completeness=True))
    found.save(tmp_path / "g.safetensors")
    back = Gaps.load(tmp_path / "g.safetensors")
    assert torch.equal(back.spectral_gap, found.spectral_gap)
    assert back.largest() == found.largest()
    assert "n_fast = 2" in found.summary()
    assert repr(found) == "Gaps(3, resolved=3, largest=2)"
    assert len(found.to_frame()) == 3
    ax = found.plot()
    assert "gap" in ax.get_ylabel()
    plt.close(ax.figure)
    with pytest.raises(InvalidInputError, match="not eigenpairs"):
        Eigenpairs.load(tmp_path / "g.safetensors")
