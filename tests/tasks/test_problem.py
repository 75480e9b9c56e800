import dataclasses
from collections import UserDict

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune.core import InvalidInputError
from dynprune.tasks import Problem, accuracy, digits

CROSS_ENTROPY = nn.functional.cross_entropy


def linear(seed: int) -> nn.Module:
    return nn.Linear(2, 2)


def toy(**changes) -> Problem:
    data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.tensor([0, 1, 1])
    parts = {
        "make_model": linear,
        "loss_fn": CROSS_ENTROPY,
        "train": data,
        "validation": data,
        "test": data,
    }
    return Problem(**(parts | changes))


def test_accuracy_counts_examples():
    outputs = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 1.0]])
    targets = torch.tensor([0, 0, 1])
    assert accuracy(outputs, targets).tolist() == [1.0, 0.0, 1.0]
    one_hot = nn.functional.one_hot(targets, 3).float()
    assert accuracy(outputs, one_hot).tolist() == [1.0, 0.0, 1.0]


def test_accuracy_of_several_positions_is_their_share():
    outputs = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])  # classes 0, 1 at two positions
    assert accuracy(outputs, torch.tensor([[0, 0]])).tolist() == [0.5]


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (torch.ones(3, 1), torch.ones(3, dtype=torch.int64)),
        (torch.ones(3, 2), torch.ones(4, dtype=torch.int64)),
        (torch.ones(3, 2), torch.ones(3)),
        (torch.ones(3), torch.ones(3)),
    ],
    ids=["one column", "other length", "regression", "scalars"],
)
def test_accuracy_refuses_what_is_no_classification(outputs, targets):
    with pytest.raises(InvalidInputError, match="No accuracy of outputs"):
        accuracy(outputs, targets)


def test_model_depends_on_the_seed_alone(untouched):
    with untouched():
        first, again, other = (toy().model(seed) for seed in (3, 3, 4))
    assert torch.equal(first.weight, again.weight)
    assert not torch.equal(first.weight, other.weight)


def test_split_by_name_and_suggestion():
    problem = toy()
    assert problem.split("test") is problem.test
    with pytest.raises(InvalidInputError, match="Did you mean 'validation'"):
        problem.split("validate")


def test_frozen_and_keyword_only():
    with pytest.raises(dataclasses.FrozenInstanceError):
        toy().name = "other"
    with pytest.raises(TypeError, match="positional"):
        Problem(linear)


def test_fingerprint_sees_data_labels_initial_state_and_architecture(untouched):
    base = toy()
    with untouched():
        assert base.fingerprint() == toy().fingerprint()
    x, y = base.train
    moved = x.clone()
    moved[0, 0] = torch.nextafter(moved[0, 0], torch.tensor(2.0))
    changed = [
        toy(train=(moved, y)),
        toy(test=(x, y.flip(0))),
        toy(validation=(x[:2], y[:2])),
        toy(train=(x.double(), y)),
        toy(make_model=lambda seed: nn.Sequential(nn.Linear(2, 2), nn.Tanh())),
        toy(make_model=lambda seed: nn.Sequential(nn.Linear(2, 2), nn.ReLU())),
        toy(loss_fn=nn.functional.mse_loss),
        toy(metric=None),
    ]
    prints = {problem.fingerprint() for problem in [base, *changed]}
    assert len(prints) == 1 + len(changed)


def test_fingerprint_of_a_shuffling_loader_repeats(untouched):
    loader = DataLoader(
        TensorDataset(torch.randn(9, 2), torch.zeros(9, dtype=torch.int64)),
        batch_size=4,
        shuffle=True,
    )
    with untouched():
        prints = {toy(train=loader).fingerprint() for _ in range(2)}
    assert len(prints) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": (b for b in [])}, "train split is a generator, which can be read"),
        ({"test": 3}, "test split is a int, expected"),
        ({"validation": torch.ones(3)}, "validation split is a Tensor, expected"),
        ({"train": (torch.ones(3, 2), torch.ones(2))}, "same positive number"),
        ({"train": (torch.ones(0, 2), torch.ones(0))}, "same positive number"),
        ({"loss_fn": None}, "has no loss"),
        ({"loss_fn": "mse"}, "loss_fn is a str, which cannot be called"),
        ({"metric": 1.0}, "metric is a float, which cannot be called"),
        ({"make_model": nn.Linear(2, 2).weight}, "make_model is a Parameter"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_bad_parts_are_refused(changes, message):
    with pytest.raises(InvalidInputError, match=message):
        toy(**changes)


def test_a_maker_that_makes_no_module_is_refused():
    with pytest.raises(InvalidInputError, match="returned a NoneType, expected an nn"):
        toy(make_model=lambda seed: None).model(0)


def test_problem_goes_through_a_process_boundary():
    from loky.backend.reduction import dumps, loads

    problem = digits("mlp:4")
    assert loads(bytes(dumps(problem))).fingerprint() == problem.fingerprint()


def test_the_fingerprint_of_a_shuffling_loader_is_the_same_each_time():
    generator = torch.Generator().manual_seed(3)
    data = torch.randn(20, 2), torch.randint(0, 2, (20,))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(*data),
        batch_size=8,
        shuffle=True,
        generator=generator,
    )
    problem = Problem(
        make_model=lambda seed: nn.Linear(2, 2),
        loss_fn=nn.functional.cross_entropy,
        train=loader,
        validation=data,
        test=data,
    )
    before = generator.get_state()
    assert problem.fingerprint() == problem.fingerprint()
    assert torch.equal(generator.get_state(), before)


def test_a_changed_source_of_the_users_functions_changes_the_fingerprint(
    tmp_path, monkeypatch
):
    import importlib
    import sys

    from dynprune.tasks import make

    def write(body):
        (tmp_path / "edited_loss.py").write_text(
            "from torch.nn.functional import cross_entropy\n\n\n"
            f"def loss(outputs, targets):\n    return {body}\n"
        )
        importlib.invalidate_caches()
        sys.modules.pop("edited_loss", None)
        return make("digits", "mlp:4", loss="edited_loss:loss").fingerprint()

    monkeypatch.chdir(tmp_path)
    first = write("cross_entropy(outputs, targets)")
    assert write("cross_entropy(outputs, targets)") == first
    assert write("2 * cross_entropy(outputs, targets)") != first
    sys.modules.pop("edited_loss", None)


def test_fingerprints_see_into_mappings_that_torch_does_not_know():
    # the middle of a long tensor is not in its repr
    long = torch.zeros(4, 2000)
    other = long.clone()
    other[2, 1000] = 1.0
    prints = [
        toy(train=[UserDict(x=x, y=torch.zeros(4))]).fingerprint()
        for x in (long, other, long.clone())
    ]
    assert prints[0] == prints[2] != prints[1]
