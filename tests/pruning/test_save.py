"""Results that are kept in files come back as they were."""

import dataclasses

import pytest
import torch
from problems import classes, small_net
from torch import nn

from dynprune.core import InvalidInputError, load_tensors, save_tensors
from dynprune.pruning import SanityCheck, SparseTraining, random, rigl, sanity_check
from dynprune.system import GradientSystem
from dynprune.tickets import Matched, Ticket, matched
from dynprune.training import Recipe, Runs, train_many

CE = nn.functional.cross_entropy


def system_of() -> GradientSystem:
    net = nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)
    ).double()
    plain = small_net(widths=(4, 5, 3))
    net[0].load_state_dict(plain[0].state_dict())
    net[3].load_state_dict(plain[2].state_dict())
    return GradientSystem(net, CE, classes(20, 4, 3))


def recipe() -> Recipe:
    return Recipe(
        lambda params: torch.optim.SGD(params, lr=0.1), steps=8, batch_size=10
    )


def a_training() -> SparseTraining:
    return rigl(
        system_of(), density=0.5, train=recipe(), update_every=2, record_every=4
    )


def a_check() -> SanityCheck:
    system = system_of()
    return sanity_check(
        random(system, density=0.5),
        system,
        train=recipe(),
        held_out=classes(10, 4, 3, seed=1),
        make_model=lambda seed: system_of().model,
        seeds=range(3),
        how="serial",
    )


def a_pair() -> Matched:
    return matched(random(system_of(), density=0.5))


def some_runs() -> Runs:
    system = system_of()
    systems = [system, system.with_ticket(random(system, density=0.5))]
    return train_many(systems, recipe(), seeds=[0, 1], how="serial")


KEPT = {
    "SparseTraining": a_training,
    "SanityCheck": a_check,
    "Matched": a_pair,
    "Runs": some_runs,
}
EACH = pytest.mark.parametrize("make", KEPT.values(), ids=KEPT.keys())


def plain(value):
    """Take a result apart, down to numbers that compare, NaN with itself."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), repr(value.tolist())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, tuple | list):
        return [plain(part) for part in value]
    return repr(value) if isinstance(value, float) else value


def differences(a, b, where=""):
    """List the paths at which two plain values differ."""
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for key in a for d in differences(a[key], b[key], f"{where}.{key}")]
    return [] if a == b else [where]


@EACH
def test_it_comes_back_as_it_was(make, tmp_path):
    before = make()
    before.save(tmp_path / "a")
    after = type(before).load(tmp_path / "a")
    assert differences(plain(before), plain(after)) == []
    assert after.summary() == before.summary()
    assert after.to_frame().equals(before.to_frame())
    after.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@EACH
def test_what_is_no_such_file_is_refused(make, tmp_path):
    result = make()
    kind = type(result)
    random(system_of(), density=0.5).save(tmp_path / "ticket")
    with pytest.raises(
        InvalidInputError, match=f"'ticket', not .* {kind.__name__}.save wrote"
    ):
        kind.load(tmp_path / "ticket")
    result.save(tmp_path / "whole")
    with pytest.raises(InvalidInputError, match=r"not a ticket\. Pass"):
        Ticket.load(tmp_path / "whole")
    metadata = load_tensors(tmp_path / "whole")[1]
    save_tensors(tmp_path / "part", {}, metadata)
    with pytest.raises(InvalidInputError, match="lacks part of"):
        kind.load(tmp_path / "part")
    raw = (tmp_path / "whole").read_bytes()
    (tmp_path / "half").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InvalidInputError, match="truncated"):
        kind.load(tmp_path / "half")


def test_plain_comparison_bites():
    a, b = a_pair(), a_pair()
    assert differences(plain(a), plain(b)) == []
    other = matched(a.ticket, seed=1)
    found = differences(plain(a), plain(other))
    assert ".control.mask_items" in found
    assert not any(path.startswith(".ticket") for path in found)
