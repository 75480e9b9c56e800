"""What a trajectory holds, what it refuses, and what it reads from files."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dynprune.core import Coordinates, InvalidInputError, load_tensors, save_tensors
from dynprune.trajectory import Trajectory

STATES = [[1.0, 0.0, 2.0], [0.5, 0.0, 1.0], [0.25, 0.0, 0.5], [0.125, 0.0, 0.25]]


@pytest.fixture
def where() -> Coordinates:
    return Coordinates(names=("a", "b"), shapes=((2,), (1, 1)))


@pytest.fixture
def path(where: Coordinates) -> Trajectory:
    return Trajectory(
        snapshots=torch.tensor(STATES).T,
        steps=torch.tensor([0, 5, 10, 15]),
        coordinates=where,
        losses=torch.tensor([4.0, 3.0, 2.0, 1.0]),
    )


def test_window_every_and_state_at_pick_the_columns(path: Trajectory) -> None:
    window = path.window(5, 10)
    assert window.steps.tolist() == [5, 10]
    assert window.snapshots.T.tolist() == STATES[1:3]
    assert window.losses is not None
    assert window.losses.tolist() == [3.0, 2.0]
    assert path.every(2).steps.tolist() == [0, 10]
    assert path.every(2).snapshots.T.tolist() == STATES[::2]
    assert path.state_at(10).tolist() == STATES[2]
    assert (path.size, path.dt, path.times.tolist()) == (3, 5.0, [0, 5, 10, 15])
    assert path.window(0, 5).window(5, 5).snapshots.shape == (3, 1)


def test_a_trajectory_owns_its_tensors(where: Coordinates) -> None:
    snapshots, steps = torch.tensor(STATES).T, torch.tensor([0, 5, 10, 15])
    path = Trajectory(snapshots=snapshots, steps=steps, coordinates=where)
    snapshots.zero_()
    steps.zero_()
    path.state_at(0).zero_()
    assert path.snapshots.T.tolist() == STATES
    assert path.steps.tolist() == [0, 5, 10, 15]
    with pytest.raises(dataclasses.FrozenInstanceError, match="snapshots"):
        path.snapshots = snapshots  # type: ignore[misc]


def test_the_frame_has_steps_losses_and_norms(path: Trajectory) -> None:
    frame = path.to_frame()
    assert list(frame.columns) == ["step", "loss", "norm"]
    assert frame["loss"].tolist() == [4.0, 3.0, 2.0, 1.0]
    np.testing.assert_allclose(frame["norm"], np.linalg.norm(STATES, axis=1), rtol=1e-6)


def test_xarray_has_two_named_axes(path: Trajectory) -> None:
    pytest.importorskip("xarray")
    data = path.to_xarray()
    assert dict(data.sizes) == {"parameter": 3, "step": 4}
    assert data.state.sel(step=10).values.tolist() == STATES[2]


def test_the_figure_shows_the_distance_from_the_start(path: Trajectory) -> None:
    ax = path.plot()
    (line,) = ax.get_lines()
    expected = np.linalg.norm(np.array(STATES) - STATES[0], axis=1)
    np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-6)
    assert "step" in ax.get_xlabel()
    assert path.plot(ax) is ax


def test_repr_is_one_line_and_summary_five(path: Trajectory) -> None:
    assert "\n" not in repr(path)
    assert "tensor(" not in repr(path)
    assert len(path.summary().splitlines()) == 5


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_saved_and_loaded_is_the_same(
    tmp_path: Path, where: Coordinates, masked: bool, dtype: torch.dtype
) -> None:
    if masked:
        kept = {"a": torch.tensor([True, False])}
        where = where.restrict(kept)
    path = Trajectory(
        snapshots=torch.randn(where.size, 4, generator=torch.Generator()).to(dtype),
        steps=torch.tensor([0, 1, 5, 9]),
        coordinates=where,
    )
    path.save(tmp_path / "t.safetensors")
    again = Trajectory.load(tmp_path / "t.safetensors")
    assert torch.equal(again.snapshots, path.snapshots)
    assert again.snapshots.dtype == dtype
    assert torch.equal(again.steps, path.steps)
    assert again.losses is None
    assert again.coordinates.names == where.names
    assert again.coordinates.shapes == where.shapes
    if masked:
        assert where.survivors is not None
        assert again.coordinates.survivors is not None
        assert torch.equal(again.coordinates.survivors, where.survivors)
    assert again.provenance == path.provenance


def test_named_states_are_laid_out_by_the_coordinates(where: Coordinates) -> None:
    named = [
        {"b": torch.tensor([[3.0]]), "a": torch.tensor([1.0, 2.0])},
        {"b": torch.tensor([[6.0]]), "a": torch.tensor([4.0, 5.0])},
    ]
    path = Trajectory.from_states(named, [0, 1], where)
    assert path.snapshots.T.tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]


def test_files_of_named_tensors_become_a_trajectory(
    tmp_path: Path, where: Coordinates
) -> None:
    files = []
    for i in range(3):
        files.append(tmp_path / f"{i}.safetensors")
        tensors = {
            "b": torch.full((1, 1), 10.0 + i),
            "a": torch.tensor([0.0, float(i)]),
            "bn.count": torch.tensor(i),
        }
        save_file(tensors, files[-1])
    path = Trajectory.from_checkpoints(files, [0, 10, 20], coordinates=where)
    assert path.snapshots.T.tolist() == [[0.0, i, 10.0 + i] for i in range(3)]
    alone = Trajectory.from_checkpoints(files, [0, 10, 20])
    assert alone.coordinates.names == ("a", "b")
    assert torch.equal(alone.snapshots, path.snapshots)


def test_files_of_different_tensors_are_refused(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2)}, tmp_path / "0.safetensors")
    save_file({"c": torch.zeros(2)}, tmp_path / "1.safetensors")
    save_file({"n": torch.tensor(2)}, tmp_path / "2.safetensors")
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    with pytest.raises(InvalidInputError, match=r"other tensors than the first.*'a'"):
        Trajectory.from_checkpoints(files[:2], [0, 1])
    with pytest.raises(InvalidInputError, match="no floating-point tensor"):
        Trajectory.from_checkpoints(files[2:], [0])
    with pytest.raises(InvalidInputError, match="does not say its step"):
        Trajectory.from_checkpoints(files[:1])
    with pytest.raises(InvalidInputError, match="1 files were given with 2 steps"):
        Trajectory.from_checkpoints(files[:1], [0, 1])
    with pytest.raises(InvalidInputError, match="0 files were given with no steps"):
        Trajectory.from_checkpoints([])


def test_pickles_and_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "model.pt")
    with pytest.raises(InvalidInputError, match="convert it once with"):
        Trajectory.from_checkpoints([tmp_path / "model.pt"], [0])
    with pytest.raises(InvalidInputError, match="No file"):
        Trajectory.from_checkpoints([tmp_path / "none"], [0])
    save_tensors(tmp_path / "ticket", {"mask": torch.ones(1)}, {"kind": "ticket"})
    with pytest.raises(InvalidInputError, match="holds a ticket without a state"):
        Trajectory.from_checkpoints([tmp_path / "ticket"], [0])
    with pytest.raises(InvalidInputError, match="holds 'ticket', not a trajectory"):
        Trajectory.load(tmp_path / "ticket")


def test_a_truncated_file_is_refused(tmp_path: Path, path: Trajectory) -> None:
    file = tmp_path / "t.safetensors"
    path.save(file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-4])
    with pytest.raises(InvalidInputError, match="truncated"):
        Trajectory.load(file)
    file.write_bytes(whole)
    save_tensors(file, {}, load_tensors(file)[1])
    with pytest.raises(InvalidInputError, match="lacks part of a trajectory"):
        Trajectory.load(file)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"steps": [0, 5, 10]}, "3 steps"),
        ({"steps": [0, 5, 5, 10]}, "do not increase"),
        ({"steps": [0.5, 1, 2, 3]}, "whole numbers"),
        ({"snapshots": torch.zeros(2, 4)}, "2 rows, the coordinates 3"),
        ({"snapshots": torch.zeros(4)}, r"shape \(4,\)"),
        ({"losses": torch.zeros(3)}, r"Losses of shape \(3,\)"),
        ({"snapshots": torch.zeros(3, 0), "steps": []}, "T ≥ 1"),
    ],
    ids=["count", "order", "fraction", "rows", "vector", "losses", "empty"],
)
def test_parts_that_do_not_fit_are_refused(
    path: Trajectory, change: dict[str, object], match: str
) -> None:
    with pytest.raises(InvalidInputError, match=match):
        dataclasses.replace(path, **change)


def test_questions_without_an_answer_are_refused(path: Trajectory) -> None:
    with pytest.raises(InvalidInputError, match=r"0, 5, 15 are not evenly spaced"):
        _ = path._take(torch.tensor([0, 1, 3])).dt
    with pytest.raises(InvalidInputError, match=r"One snapshot \(step 5\)"):
        _ = path.window(5, 5).dt
    with pytest.raises(InvalidInputError, match="No snapshot lies in steps 6 to 9"):
        path.window(6, 9)
    with pytest.raises(InvalidInputError, match="Step 7 was not recorded"):
        path.state_at(7)
    with pytest.raises(InvalidInputError, match=r"every\(0\)"):
        path.every(0)
    with pytest.raises(InvalidInputError, match="without coordinates"):
        Trajectory.from_states([{"a": torch.zeros(1)}], [0])
    with pytest.raises(InvalidInputError, match=r"sizes \[1, 2\]"):
        Trajectory.from_states([torch.zeros(1), torch.zeros(2)], [0, 1])
