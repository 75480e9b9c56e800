"""IMP that is cut off goes on from the checkpoints of its levels, to the same bits."""

import itertools
from typing import Any

import pytest
import torch
from problems import classes, small_net
from torch import nn

from dynprune.core import InvalidInputError
from dynprune.pruning import imp
from dynprune.system import GradientSystem
from dynprune.training import Recipe, train

CE = nn.functional.cross_entropy
DENSITIES = (1.0, 0.7, 0.4)
STEPS, BACK = 6, 2


class CutError(Exception):
    """What stands for a kill."""


class Counted(torch.optim.SGD):
    """Counts the steps of all its instances, and stops at one of them."""

    made, last = 0, None

    def step(self, closure=None):
        if Counted.made == Counted.last:
            raise CutError
        Counted.made += 1
        return super().step(closure)

    @staticmethod
    def start(last: int | None = None) -> None:
        Counted.made, Counted.last = 0, last


def optimizer(parameters):
    return Counted(parameters, lr=0.1, momentum=0.9)


def schedule(made):
    return torch.optim.lr_scheduler.StepLR(made, 2, 0.5)


RECIPE = Recipe(optimizer, steps=STEPS, batch_size=8, schedule=schedule)


def system(seed: int = 0) -> GradientSystem:
    return GradientSystem(small_net(seed=seed), CE, classes(20, 3, 3))


def loss_doubled() -> GradientSystem:
    net = small_net(seed=0)
    return GradientSystem(net, lambda a, b: 2 * CE(a, b), classes(20, 3, 3))


def found(tmp_path, **settings: Any) -> bytes:
    chosen = {"densities": DENSITIES, "train": RECIPE, "collapse": "ignore"}
    imp(**({"system": system()} | chosen | settings)).save(tmp_path / "run")
    return (tmp_path / "run").read_bytes()


@pytest.mark.parametrize("rewind", ["weights", "learning-rate", "fine-tune"])
def test_cut_off_after_any_step_it_goes_on_to_the_same_bytes(tmp_path, rewind):
    how = {"rewind_step": BACK, "rewind": rewind}
    Counted.start()
    right, total = found(tmp_path, **how), Counted.made
    assert total == STEPS + 2 * (STEPS - BACK)
    for last in range(total):
        folder = tmp_path / str(last)
        Counted.start(last)
        with pytest.raises(CutError):
            found(tmp_path, checkpoints=folder, **how)
        Counted.start()
        assert found(tmp_path, checkpoints=folder, **how) == right
        # what is made again is less than one training
        assert total - last <= Counted.made < total - last + STEPS
        Counted.start(0)
        assert found(tmp_path, checkpoints=folder, **how) == right


def test_in_the_middle_of_a_level_too(tmp_path):
    long = Recipe(optimizer, steps=1200, batch_size=8)
    how = {"train": long, "densities": DENSITIES[:2]}
    Counted.start()
    right = found(tmp_path, **how)
    Counted.start(1200 + 1100)
    with pytest.raises(CutError):
        found(tmp_path, checkpoints=tmp_path / "kept", **how)
    Counted.start()
    assert found(tmp_path, checkpoints=tmp_path / "kept", **how) == right
    assert Counted.made == 200


def test_levels_are_added_to_a_finished_run_and_all_are_handed_over(tmp_path):
    Counted.start()
    whole = found(tmp_path)
    found(tmp_path, densities=DENSITIES[:2], checkpoints=tmp_path / "kept")
    Counted.start()
    seen: list[int] = []
    again = found(
        tmp_path,
        checkpoints=tmp_path / "kept",
        after_level=lambda ticket, level, run: seen.append(level.level),
    )
    assert again == whole
    assert seen == [0, 1, 2]
    assert Counted.made == STEPS


def test_checkpoints_of_another_run_are_refused_and_kept(tmp_path):
    Counted.start()
    kept = tmp_path / "kept"
    found(tmp_path, checkpoints=kept)
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    assert sorted(before) == [f"level-{n}.safetensors" for n in range(3)]
    for other, says in (
        ({"system": loss_doubled()}, "level-0.*another run.*loss"),
        ({"seed": 1}, "level-0.*another run.*seed"),
        ({"densities": (1.0, 0.6)}, "level-1.*another run.*mask"),
        ({"train": Recipe(optimizer, steps=7, batch_size=8)}, "level-0.*steps"),
    ):
        with pytest.raises(InvalidInputError, match=says):
            found(tmp_path, checkpoints=kept, **other)
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before


def test_another_rewind_step_leaves_what_is_kept_usable(tmp_path):
    Counted.start()
    kept = tmp_path / "kept"
    right = found(tmp_path, checkpoints=kept, rewind_step=2)
    with pytest.raises(InvalidInputError, match=r"level-0.*another run"):
        found(tmp_path, checkpoints=kept, rewind_step=3)
    Counted.start(0)
    assert found(tmp_path, checkpoints=kept, rewind_step=2) == right


def test_a_trainer_of_ones_own_that_keeps_checkpoints(tmp_path):
    def own(system, *, seed=0, start_step=0, stop_step=None, checkpoint=None):
        return train(
            system,
            optimizer,
            steps=STEPS,
            batch_size=8,
            seed=seed,
            start_step=start_step,
            stop_step=stop_step,
            checkpoint=checkpoint,
        )

    Counted.start()
    right = found(tmp_path, train=own)
    Counted.start(STEPS + 1)
    with pytest.raises(CutError):
        found(tmp_path, train=own, checkpoints=tmp_path / "kept")
    Counted.start()
    assert found(tmp_path, train=own, checkpoints=tmp_path / "kept") == right
    assert Counted.made == 2 * STEPS


def test_a_trainer_that_cannot_keep_any_is_refused_before_it_trains(tmp_path):
    def without(system, *, seed=0, start_step=0, stop_step=None):
        raise AssertionError

    for given in ({"train": without}, {"rewind": "fine-tune", "fine_tune": without}):
        with pytest.raises(InvalidInputError, match="takes no checkpoint"):
            found(tmp_path, checkpoints=tmp_path / "kept", **given)
    with pytest.raises(InvalidInputError, match=r"checkpoints is 3\."):
        found(tmp_path, checkpoints=3)
    (tmp_path / "file").write_text("here")
    with pytest.raises(InvalidInputError, match="is a file"):
        found(tmp_path, checkpoints=tmp_path / "file")
    assert not list(itertools.chain((tmp_path).glob("kept*")))
