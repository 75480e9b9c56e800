"""Spectral results in files: as they were, or refused with the reason."""

import dataclasses

import pytest
import torch

from dynprune.core import InvalidInputError, load_tensors, save_tensors
from dynprune.operators import MatrixOperator
from dynprune.spectral import (
    SpectrumTrack,
    density,
    diagonal,
    eigenpairs,
    gaps,
    trace,
    track,
)
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket
from dynprune.trajectory import Trajectory


def operator() -> MatrixOperator:
    values = torch.linspace(3.0, -1.0, 30, dtype=torch.float64)
    make = torch.Generator().manual_seed(0)
    square = torch.randn(30, 30, generator=make, dtype=torch.float64)
    Q = torch.linalg.qr(square).Q
    matrix = (Q * values) @ Q.T
    return MatrixOperator(0.5 * (matrix + matrix.T))


def a_track() -> SpectrumTrack:
    net = torch.nn.Linear(2, 1, bias=False).double()
    x, y = torch.eye(2).double(), torch.zeros(2, 1).double()
    system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
    states = Trajectory.from_states([torch.ones(2).double()] * 3, [0, 5, 10])
    return track(states, system, 2, operator=lambda _, state: operator())


MADE = {
    "Eigenpairs": lambda: eigenpairs(operator(), 3, completeness=True),
    "Gaps": lambda: gaps(eigenpairs(operator(), 3)),
    "Density": lambda: density(operator(), steps=8, probes=3),
    "Diagonal": lambda: diagonal(operator(), matvecs=12),
    "Trace": lambda: trace(operator(), matvecs=12),
    "SpectrumTrack": a_track,
}
EACH = pytest.mark.parametrize("make", MADE.values(), ids=MADE.keys())


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())
    return type(a) is type(b) and a == b


@EACH
def test_it_comes_back_as_it_was(make, tmp_path):
    before = make()
    before.save(tmp_path / "a")
    after = type(before).load(tmp_path / "a")
    for part in dataclasses.fields(before):
        assert same(getattr(before, part.name), getattr(after, part.name)), part.name
    after.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@EACH
def test_what_is_no_such_file_is_refused(make, tmp_path):
    result = make()
    kind = type(result)
    weights = {"w": torch.ones(2)}
    Ticket.make({"w": torch.tensor([True, False])}, weights).save(tmp_path / "ticket")
    with pytest.raises(
        InvalidInputError, match=rf"'ticket', not .*{kind.__name__}\.save wrote"
    ):
        kind.load(tmp_path / "ticket")
    result.save(tmp_path / "whole")
    tensors, metadata = load_tensors(tmp_path / "whole")
    save_tensors(tmp_path / "plain", {}, metadata)
    with pytest.raises(InvalidInputError, match="lacks part of"):
        kind.load(tmp_path / "plain")
    del metadata["provenance"]
    save_tensors(tmp_path / "part", tensors, metadata)
    with pytest.raises(InvalidInputError, match=r"lacks part of .*provenance"):
        kind.load(tmp_path / "part")
    raw = (tmp_path / "whole").read_bytes()
    (tmp_path / "half").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InvalidInputError, match="truncated"):
        kind.load(tmp_path / "half")
