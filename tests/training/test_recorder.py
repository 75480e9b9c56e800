"""The user's own loop, recorded."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dynprune.core import InvalidInputError
from dynprune.system import GradientSystem
from dynprune.training import Recorder, train
from dynprune.trajectory import Trajectory

Data = tuple[Tensor, Tensor]


def loop(system: GradientSystem, data: Data, recorder: Recorder, steps: int) -> None:
    optimizer = torch.optim.SGD(system.model.parameters(), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(system.model(data[0]), data[1])
        recorder.snapshot(step, loss)
        loss.backward()
        optimizer.step()
    recorder.snapshot(steps)


def test_a_recorded_loop_equals_train(linear: GradientSystem, data: Data) -> None:
    run = train(
        linear,
        lambda params: torch.optim.SGD(params, lr=0.1),
        steps=12,
        batch_size=22,
        record=3,
    )
    assert run.trajectory is not None
    with Recorder(linear, every=3) as recorder:
        loop(linear, data, recorder, 12)
    path = recorder.trajectory
    assert path.steps.tolist() == [0, 3, 6, 9, 12]
    assert torch.equal(path.snapshots, run.trajectory.snapshots)
    assert path.losses is not None
    assert run.trajectory.losses is not None
    torch.testing.assert_close(path.losses, run.trajectory.losses, equal_nan=True)
    assert path.coordinates is linear.coordinates
    # the user's loop moved her model: that is hers to do
    assert not torch.equal(path.state_at(0), linear.state)


def test_the_file_is_there_while_the_loop_runs(
    linear: GradientSystem, tmp_path: Path
) -> None:
    file = tmp_path / "loop.safetensors"
    recorder = Recorder(linear, every=2, path=file)

    def interrupted() -> None:
        with recorder:
            for step in range(7, 200):
                recorder.snapshot(step)
                if step == 7 + 99:
                    assert len(Trajectory.load(file).steps) == 50
                if step == 120:
                    raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    path = Trajectory.load(file)
    assert path.steps.tolist() == list(range(7, 121, 2))
    assert torch.equal(path.snapshots, recorder.trajectory.snapshots)
    assert path.losses is None


def test_a_masked_system_records_its_survivors(data: Data) -> None:
    net = nn.Linear(3, 1, bias=False).double()
    mask = {"weight": torch.tensor([[True, False, True]])}
    system = GradientSystem(net, nn.functional.mse_loss, data, mask=mask)
    with Recorder(system, every=1) as recorder:
        recorder.snapshot(0)
    kept = net.weight.detach()[mask["weight"]]
    assert torch.equal(recorder.trajectory.state_at(0), kept)


def test_misuse_of_a_recorder_is_refused(
    linear: GradientSystem, tmp_path: Path
) -> None:
    with pytest.raises(InvalidInputError, match="every is 0"):
        Recorder(linear, every=0)
    with Recorder(linear, path=tmp_path / "none") as recorder:
        pass
    assert not (tmp_path / "none").exists()
    with pytest.raises(InvalidInputError, match="Nothing was recorded"):
        _ = recorder.trajectory
    recorder.snapshot(5)
    with pytest.raises(InvalidInputError, match="Step 5 came after step 5"):
        recorder.snapshot(5)
    linear.model.weight = nn.Parameter(torch.zeros(2, 2))
    with pytest.raises(InvalidInputError, match=r"shape \(2, 2\), expected \(1, 3\)"):
        recorder.snapshot(15)
