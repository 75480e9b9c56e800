"""A run that was stopped continues bit for bit, and no other run's file is taken."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from dynprune.core import InvalidInputError, load_tensors, save_tensors
from dynprune.system import GradientSystem
from dynprune.training import Run, train
from dynprune.trajectory import Trajectory

Data = tuple[Tensor, Tensor]
optim = torch.optim
OPTIMIZERS = {
    "momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "Adam": lambda p: optim.Adam(p, lr=0.01, amsgrad=True),
    "AdamW": lambda p: optim.AdamW(p, lr=torch.tensor(0.01, dtype=torch.float64)),
    "NAdam": lambda p: optim.NAdam(p, lr=0.01),
    "Adafactor": lambda p: optim.Adafactor(p, lr=0.01),
    "ASGD": lambda p: optim.ASGD(p, lr=0.01),
    "Rprop": lambda p: optim.Rprop(p, lr=0.01),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "L-BFGS": lambda p: optim.LBFGS(p, lr=0.1, max_iter=3, history_size=4),
    "groups": lambda p: optim.SGD(
        [{"params": p[:2], "lr": 0.1}, {"params": p[2:]}], lr=0.01, momentum=0.5
    ),
}
SCHEDULES = {
    "none": None,
    "StepLR": lambda o: lr_scheduler.StepLR(o, 4, gamma=0.3),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 9]),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (1 + step)),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=20),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [
            lr_scheduler.LinearLR(o, 0.1, total_iters=3),
            lr_scheduler.ExponentialLR(o, 0.9),
        ],
        [3],
    ),
}


@pytest.fixture
def system(data: Data, make_net: Callable[[], nn.Module]) -> GradientSystem:
    mask = {"0.weight": torch.arange(24).reshape(8, 3) % 3 != 0}
    return GradientSystem(make_net(), nn.functional.mse_loss, data, mask=mask, l2=0.01)


def bits(run: Run) -> list[Tensor]:
    """Return all numbers of a run as bytes."""
    assert run.trajectory is not None
    assert run.trajectory.losses is not None
    parts = [
        run.state,
        *(run.buffers[name] for name in sorted(run.buffers)),
        *run.history,
        run.trajectory.snapshots.contiguous(),
        run.trajectory.steps,
        run.trajectory.losses,
        torch.tensor([run.cost.gradients, run.cost.steps], dtype=torch.float64),
    ]
    return [part.reshape(-1).view(torch.uint8) for part in parts]


def assert_same_bits(one: Run, two: Run) -> None:
    pairs = list(zip(bits(one), bits(two), strict=True))
    assert all(torch.equal(mine, yours) for mine, yours in pairs)


@pytest.mark.parametrize("kind", ["resident", "loader", "own generator"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_stopped_run_continues_bit_for_bit(
    system: GradientSystem, data: Data, tmp_path: Path, name: str, kind: str
) -> None:
    # batch norm, dropout, masks, l2 and a schedule at once; step 7 is inside epoch 2
    source = torch.Generator() if kind == "own generator" else None
    loader = DataLoader(TensorDataset(*data), 8, shuffle=True, generator=source)
    options: dict[str, Any] = {
        "steps": 11,
        "data": None if kind == "resident" else loader,
        "batch_size": 8 if kind == "resident" else None,
        "schedule": SCHEDULES["StepLR"],
        "record": 2,
        "seed": 3,
    }
    whole = train(system, OPTIMIZERS[name], **options)
    file = tmp_path / "run.safetensors"
    options["checkpoint"] = file
    stopped = train(system, OPTIMIZERS[name], stop_step=7, **options)
    assert len(stopped.history[0]) == 7
    assert_same_bits(train(system, OPTIMIZERS[name], **options), whole)
    # a finished run is only read
    before = file.read_bytes()
    assert_same_bits(train(system, OPTIMIZERS[name], **options), whole)
    assert file.read_bytes() == before


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_continues_bit_for_bit(
    system: GradientSystem, tmp_path: Path, name: str
) -> None:
    schedule, factory = SCHEDULES[name], OPTIMIZERS["momentum"]
    options: dict[str, Any] = {"steps": 12, "schedule": schedule, "record": 5}
    options |= {"batch_size": 5, "start_step": 1}
    whole = train(system, factory, **options)
    options["checkpoint"] = tmp_path / "run"
    for stop in (1, 2, 6, 7):
        train(system, factory, stop_step=stop, **options)
    assert_same_bits(train(system, factory, **options), whole)


@pytest.mark.parametrize("crash", [0, 1, 4, 5, 6, 19])
def test_a_crashed_run_continues_from_its_last_checkpoint(
    data: Data, make_net: Callable[[], nn.Module], tmp_path: Path, crash: int
) -> None:
    left = [-1]

    def batch_loss(model: nn.Module, batch: Data) -> Tensor:
        if torch.is_grad_enabled():
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt
        return nn.functional.mse_loss(model(batch[0]), batch[1])

    system = GradientSystem(make_net(), None, data, batch_loss=batch_loss)
    factory = OPTIMIZERS["Adam"]
    options: dict[str, Any] = {"steps": 20, "batch_size": 4, "record": 3}
    whole = train(system, factory, **options)
    options |= {"checkpoint": tmp_path / "run", "checkpoint_every": 5}
    left[0] = crash
    with pytest.raises(KeyboardInterrupt):
        train(system, factory, **options)
    assert (tmp_path / "run").exists() == (crash >= 5)
    left[0] = -1
    assert_same_bits(train(system, factory, **options), whole)
    assert left[0] == -1 - (20 - crash // 5 * 5)


def test_how_often_it_is_written_changes_nothing(
    system: GradientSystem, tmp_path: Path
) -> None:
    factory = OPTIMIZERS["Adam"]
    runs = [
        train(
            system,
            factory,
            steps=9,
            record=2,
            checkpoint=tmp_path / str(every),
            checkpoint_every=every,
        )
        for every in (1, 4, 100)
    ]
    assert_same_bits(runs[0], runs[1])
    assert_same_bits(runs[0], runs[2])
    assert (tmp_path / "1").read_bytes() == (tmp_path / "100").read_bytes()


def other_net(system: GradientSystem) -> GradientSystem:
    net = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 1)).double()
    return GradientSystem(net, nn.functional.mse_loss, system.data)


def other_state(system: GradientSystem) -> GradientSystem:
    return system.with_state(system.state + 1)


def other_mask(system: GradientSystem) -> GradientSystem:
    return system.with_mask({"0.weight": torch.arange(24).reshape(8, 3) % 3 != 1})


def other_l2(system: GradientSystem) -> GradientSystem:
    return GradientSystem(
        system.model, system.loss_fn, system.data, mask=system.masks, l2=0.02
    )


def other_data(system: GradientSystem) -> GradientSystem:
    x, y = system.data
    return system.with_data((x, y + 1))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"system": other_net}, r"names .*; shapes \(checkpoint \[\[8, 3\]"),
        ({"system": other_state}, "initial state"),
        ({"system": other_mask}, "mask"),
        ({"system": other_l2}, r"l2 \(checkpoint 0.01, now 0.02\)"),
        ({"system": other_data}, "data"),
        ({"optimizer": "Adam"}, r'optimizer \(checkpoint "SGD", now "Adam"\)'),
        ({"lr": 0.2}, r'hyperparameters .*"lr": 0.1.*"lr": 0.2'),
        ({"schedule": "MultiStepLR"}, r"schedule .*StepLR.*MultiStepLR"),
        ({"seed": 1}, r"seed \(checkpoint 0, now 1\)"),
        ({"steps": 7}, r"steps \(checkpoint 6, now 7\)"),
        ({"batch_size": 6}, r"batch_size \(checkpoint 8, now 6\)"),
        ({"record": 1}, r"record \(checkpoint null, now 1\)"),
        ({"start_step": 1}, r"start_step \(checkpoint 0, now 1\)"),
        ({"mode": "eval"}, r"mode \(checkpoint \"train\", now \"eval\"\)"),
        ({"stop_step": 3}, "is at step 6, this run stops at 3"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_checkpoint_of_another_run_is_refused_and_kept(
    system: GradientSystem, tmp_path: Path, change: dict[str, Any], match: str
) -> None:
    file = tmp_path / "run.safetensors"

    def start(
        *,
        system: GradientSystem,
        optimizer: str = "SGD",
        lr: float = 0.1,
        schedule: str = "StepLR",
        batch_size: int = 8,
        steps: int = 6,
        **options: Any,
    ) -> Run:
        return train(
            system,
            lambda params: getattr(optim, optimizer)(params, lr=lr),
            steps=steps,
            batch_size=batch_size,
            schedule=SCHEDULES[schedule],
            checkpoint=file,
            **options,
        )

    start(system=system)
    before = file.read_bytes()
    given = {"system": lambda same: same} | change
    with pytest.raises(InvalidInputError, match=match):
        start(**(given | {"system": given["system"](system)}))
    assert file.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]


def test_truncated_and_foreign_files_are_refused_and_kept(
    system: GradientSystem, tmp_path: Path
) -> None:
    file, factory = tmp_path / "run.safetensors", OPTIMIZERS["momentum"]
    train(system, factory, steps=3, checkpoint=file)
    for cut in (0, 4, 100, file.stat().st_size - 1):
        short = tmp_path / "short.safetensors"
        short.write_bytes(file.read_bytes()[:cut])
        with pytest.raises(InvalidInputError, match="truncated"):
            train(system, factory, steps=3, checkpoint=short)
        assert short.stat().st_size == cut
    save_tensors(tmp_path / "ticket", {"mask": torch.ones(1)}, {"kind": "ticket"})
    with pytest.raises(InvalidInputError, match="holds a ticket, not a checkpoint"):
        train(system, factory, steps=3, checkpoint=tmp_path / "ticket")


def test_an_optimiser_state_that_has_no_plain_form_is_refused(
    system: GradientSystem, tmp_path: Path
) -> None:
    class Odd(optim.SGD):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            optim.SGD.step(self, closure)
            self.state[self.param_groups[0]["params"][0]]["odd"] = {1, 2}

    with pytest.raises(InvalidInputError, match=r"optimizer.state.0.odd is a set"):
        train(system, lambda p: Odd(p, lr=0.1), steps=1, checkpoint=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_leaves_the_last_good_checkpoint(
    system: GradientSystem, tmp_path: Path
) -> None:
    file = tmp_path / "run"

    def schedule(optimizer: optim.Optimizer) -> lr_scheduler.LRScheduler:
        return lr_scheduler.LambdaLR(optimizer, lambda t: 1.0 if t < 4 else 1e300)

    run = train(
        system,
        OPTIMIZERS["momentum"],
        steps=8,
        schedule=schedule,
        batch_size=22,
        checkpoint=file,
        checkpoint_every=1,
        throw=False,
    )
    assert not run.outcome.ok
    tensors, metadata = load_tensors(file)
    assert metadata["step"] >= 4
    assert bool(torch.isfinite(tensors["state"]).all())


def test_checkpoints_become_a_trajectory(
    system: GradientSystem, tmp_path: Path
) -> None:
    files = []
    for stop in (2, 5, 9):
        files.append(tmp_path / f"{stop}.safetensors")
        run = train(
            system, OPTIMIZERS["Adam"], steps=9, stop_step=stop, checkpoint=files[-1]
        )
    run.save(tmp_path / "run.safetensors")
    path = Trajectory.from_checkpoints(files)
    assert path.steps.tolist() == [2, 5, 9]
    assert torch.equal(path.state_at(9), run.state)
    assert path.coordinates.names == system.names
    dense = Trajectory.from_checkpoints(
        [*files[:2], tmp_path / "run.safetensors"],
        [2, 5, 9],
        coordinates=system.with_mask({}).coordinates,
    )
    assert dense.size == system.with_mask({}).size > path.size
    assert torch.equal(
        dense.coordinates.unflatten(dense.state_at(9))["0.weight"],
        run.parameters["0.weight"],
    )


def test_a_saved_run_is_read_back(system: GradientSystem, tmp_path: Path) -> None:
    run = train(system, OPTIMIZERS["Adam"], steps=5, record=2)
    run.save(tmp_path / "run")
    again = Run.load(tmp_path / "run")
    assert_same_bits(again, run)
    assert again.provenance == dataclasses.replace(
        run.provenance, settings=again.provenance.settings
    )
    assert dict(again.provenance.settings) == dict(run.provenance.settings)
    assert (again.cost, again.outcome) == (run.cost, run.outcome)
    assert again.parameters.keys() == run.parameters.keys()
    train(system, OPTIMIZERS["Adam"], steps=5).save(tmp_path / "bare")
    assert Run.load(tmp_path / "bare").trajectory is None
    with pytest.raises(InvalidInputError, match="holds 'run', not a trajectory"):
        Trajectory.load(tmp_path / "run")


class Functional(nn.Module):
    """A network whose description does not say what its forward does."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        nn.Module.__init__(self)
        self.first = nn.Linear(3, 4).double()
        self.last = nn.Linear(4, 1).double()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Evaluate it."""
        return self.last(self.function(self.first(x)))


def test_other_code_frozen_weights_loss_loader_or_rates_are_another_run(
    data: Data, tmp_path: Path
) -> None:
    x, y = data
    huber, mse = nn.functional.smooth_l1_loss, nn.functional.mse_loss

    def start(name: str, **change: Any) -> Run:
        given = {"function": torch.tanh, "loss": mse, "frozen": 0.0, "data": data}
        given |= {"decay": 0.9, "net": nn.Tanh()} | change
        with torch.random.fork_rng():
            torch.random.default_generator.manual_seed(0)
            net = nn.Sequential(Functional(given["function"]), given["net"])
        with torch.no_grad():
            net[0].first.weight.requires_grad_(False).add_(given["frozen"])
        return train(
            GradientSystem(net, given["loss"], given["data"]),
            OPTIMIZERS["momentum"],
            steps=5,
            schedule=lambda o: lr_scheduler.LambdaLR(o, lambda t: given["decay"] ** t),
            checkpoint=tmp_path / name,
        )

    def loader(targets: Tensor) -> DataLoader[Any]:
        return DataLoader(TensorDataset(x, targets), 8, shuffle=True)

    start("run")
    start("run")
    for change, match in (
        ({"function": torch.sigmoid}, "loss of a batch at the start"),
        ({"loss": lambda a, b: 2 * mse(a, b)}, "loss .*mse_loss.*<lambda>"),
        ({"loss": huber}, "loss"),
        ({"frozen": 0.1}, "frozen parameters"),
        ({"net": nn.Tanhshrink()}, "model"),
        ({"decay": 0.8}, "rates"),
        ({"data": loader(y)}, "data"),
    ):
        with pytest.raises(InvalidInputError, match=rf"differ: .*{match}"):
            start("run", **change)
    start("loader", data=loader(y))
    start("loader", data=loader(y))
    with pytest.raises(InvalidInputError, match=r"data .*first batch"):
        start("loader", data=loader(y + 1))
