"""What a recipe and many runs check at the door, and what numbers they take."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dynprune.core import Cost, InvalidInputError
from dynprune.system import GradientSystem
from dynprune.training import Recipe, Run, _stacked_many, train, train_many

optim = torch.optim
HOWS = ("auto", "stacked", "processes", "serial")


def sgd(params: list[Tensor]) -> optim.Optimizer:
    return optim.SGD(params, lr=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "-1 steps"),
        ({"mode": "Train"}, "mode is 'Train'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"steps": 2.5}, "steps is 2.5"),
    ],
    ids=str,
)
def test_a_recipe_is_checked_when_it_is_made(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Recipe(sgd, **({"steps": 3} | settings))


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"record": 0}, "record is 0"),
        ({"record": -1}, "record is -1"),
        ({"start_step": 9}, "do not fit"),
        ({"stop_step": 9}, "do not fit"),
        ({"start_step": -1}, "do not fit"),
        ({"seeds": 0.5}, "seed is 0.5"),
        ({"seeds": [0, "a"]}, "seed is 'a'"),
        ({"seeds": None}, "seed is None"),
    ],
    ids=str,
)
def test_many_runs_are_checked_before_the_first(
    linear: GradientSystem, how: Any, settings: dict[str, Any], message: str
) -> None:
    recipe = Recipe(sgd, steps=3, batch_size=8)
    with pytest.raises(InvalidInputError, match=message):
        train_many([linear, linear], recipe, how=how, **settings)


# -- numbers of NumPy and torch -------------------------------------------------------

NUMBERS = [np.int64, np.int32, torch.tensor]


@pytest.mark.parametrize("number", NUMBERS, ids=["int64", "int32", "tensor"])
def test_a_run_takes_any_integer_and_can_be_saved(
    linear: GradientSystem, number: Any, tmp_path: Any
) -> None:
    span = {"start_step": 1, "stop_step": 5, "record": 2, "seed": 4}
    wanted = train(linear, sgd, steps=6, batch_size=8, **span)
    wanted.save(tmp_path / "wanted.safetensors")
    again = Run.load(tmp_path / "wanted.safetensors")
    given = {name: number(value) for name, value in span.items()}
    found = train(linear, sgd, steps=number(6), batch_size=number(8), **given)
    recipe = Recipe(sgd, steps=number(6), batch_size=number(8))
    for run in (found, recipe(linear, **given)):
        assert torch.equal(run.state, wanted.state)
        assert run.provenance == wanted.provenance
        run.save(tmp_path / "run.safetensors")
        assert Run.load(tmp_path / "run.safetensors").provenance == again.provenance
    kept = tmp_path / "checkpoint.safetensors"
    every = {"checkpoint": kept, "checkpoint_every": number(2)}
    for stop in (3, 5):
        part = given | {"stop_step": number(stop)}
        run = train(linear, sgd, steps=6, batch_size=8, **part, **every)
    assert torch.equal(run.state, wanted.state)


@pytest.mark.parametrize("how", ["stacked", "serial"])
@pytest.mark.parametrize(
    ("seeds", "plain"),
    [
        (np.arange(2), [0, 1]),
        (torch.arange(2), [0, 1]),
        (np.int64(3), [3, 3]),
        (torch.tensor(3), [3, 3]),
        (np.array(3), [3, 3]),
    ],
    ids=["array", "tensor", "int64", "0-d tensor", "0-d array"],
)
def test_many_runs_take_any_integers(
    linear: GradientSystem, how: Any, seeds: Any, plain: list[int], tmp_path: Any
) -> None:
    recipe = Recipe(sgd, steps=6, batch_size=8)
    found = train_many([linear, linear], recipe, seeds=seeds, how=how)
    wanted = train_many([linear, linear], recipe, seeds=plain, how=how)
    assert found.provenance == wanted.provenance
    for mine, other in zip(found, wanted, strict=True):
        assert torch.equal(mine.state, other.state)
        assert mine.provenance == other.provenance
    found.save(tmp_path / "runs.safetensors")
    span = {"start_step": np.int64(1), "stop_step": np.int64(4), "record": np.int64(2)}
    many = train_many(
        [linear, linear], recipe, how=how, stack=np.int64(1), jobs=np.int64(1), **span
    )
    many.save(tmp_path / "runs.safetensors")


def test_hyperparameters_are_recorded_as_numbers(linear: GradientSystem) -> None:
    rate = np.float32(0.5)
    made = train(linear, lambda p: optim.SGD(p, lr=rate), steps=1).provenance
    assert dict(made.settings)["hyperparameters"][0]["lr"] == 0.5


# -- what is counted, what is drawn ---------------------------------------------------


@pytest.mark.parametrize("how", ["one", "stacked", "serial"])
def test_a_gradient_is_a_pass_over_the_systems_own_examples(
    linear: GradientSystem, data: tuple[Tensor, Tensor], how: Any
) -> None:
    # five steps of 4 examples are 20 / 22 of a pass over its own 22, whatever is read
    other = tuple(torch.cat([part, part]) for part in data)
    recipe = Recipe(sgd, steps=5, batch_size=4, data=other)
    if how == "one":
        costs = [recipe(linear).cost]
    else:
        costs = [run.cost for run in train_many([linear] * 2, recipe, how=how)]
    assert all(cost == Cost(gradients=20 / 22, steps=5) for cost in costs)


@pytest.mark.parametrize("how", ["stacked", "processes", "serial"])
def test_progress_draws_a_bar_whatever_the_way(
    linear: GradientSystem,
    how: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        _stacked_many, "process_pool", lambda _: ThreadPoolExecutor(max_workers=1)
    )
    recipe = Recipe(sgd, steps=5, batch_size=4)
    for show in (False, True):
        train_many([linear] * 3, recipe, how=how, jobs=2, progress=show)
        drawn = capsys.readouterr().err
        assert ("training.train_many" in drawn) == show
    total = {"stacked": 5, "processes": 2, "serial": 3}[how]
    assert f"/{total} " in drawn
