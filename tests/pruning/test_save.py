"""Results that are kept in files come back as they were."""

import dataclasses

import pytest
import torch
from problems import classes, small_net
from torch import nn

from dynprune.core import InvalidInputError, load_tensors, save_tensors
from dynprune.pruning import (
    EarlyBird,
    SanityCheck,
    SparseTraining,
    early_bird,
    random,
    rigl,
    sanity_check,
)
from dynprune.system import GradientSystem
from dynprune.tasks import resnet
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


def a_draw(system: GradientSystem | None = None, **knobs) -> EarlyBird:
    knobs = {"density": 0.6, "window": 2, "tolerance": 0.75} | knobs
    return early_bird(system or system_of(), train=recipe(), **knobs)


def a_draw_of_weights() -> EarlyBird:
    return a_draw(unit="weight")


def no_draw() -> EarlyBird:
    return a_draw(window=9, throw=False)


def residual() -> nn.Module:
    return resnet(8, 4, in_shape=(1, 4, 4), classes=3).double()


def a_draw_with_branches() -> EarlyBird:
    return a_draw(GradientSystem(residual(), CE, classes(20, 16, 3)))


class Deciding(nn.Module):
    """A network that cannot be traced, of a module that can."""

    def __init__(self):
        nn.Module.__init__(self)
        self.inner = residual()

    def forward(self, x):
        h = self.inner(x)
        return h if h.sum() < 1e9 else -h


def a_draw_in_parts() -> EarlyBird:
    return a_draw(GradientSystem(Deciding(), CE, classes(20, 16, 3)))


def whole() -> nn.Module:
    """The model of :func:`system_of`, with other weights."""
    return nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)
    ).double()


# how each is made, and what its load takes beside the path
KEPT = {
    "SparseTraining": (a_training, tuple),
    "SanityCheck": (a_check, tuple),
    "Matched": (a_pair, tuple),
    "Runs": (some_runs, tuple),
    "EarlyBird": (a_draw, lambda: (whole(),)),
    "EarlyBird, branches": (a_draw_with_branches, lambda: (residual(),)),
    "EarlyBird, parts": (a_draw_in_parts, lambda: (Deciding(),)),
    "EarlyBird, weights": (a_draw_of_weights, tuple),
    "EarlyBird, none": (no_draw, tuple),
}
EACH = pytest.mark.parametrize(("make", "also"), KEPT.values(), ids=KEPT.keys())


def plain(value):
    """Take a result apart, down to numbers that compare, NaN with itself."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), repr(value.tolist())
    if isinstance(value, nn.Module):
        modes = {name: part.training for name, part in value.named_modules()}
        return {"code": str(value), "modes": modes, **plain(value.state_dict())}
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
def test_it_comes_back_as_it_was(make, also, tmp_path):
    before = make()
    before.save(tmp_path / "a")
    after = type(before).load(tmp_path / "a", *also())
    assert differences(plain(before), plain(after)) == []
    assert after.summary() == before.summary()
    assert after.to_frame().equals(before.to_frame())
    after.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@EACH
def test_what_is_no_such_file_is_refused(make, also, tmp_path):
    result, other = make(), also()
    kind = type(result)
    random(system_of(), density=0.5).save(tmp_path / "ticket")
    with pytest.raises(
        InvalidInputError, match=f"'ticket', not .* {kind.__name__}.save wrote"
    ):
        kind.load(tmp_path / "ticket", *other)
    result.save(tmp_path / "whole")
    with pytest.raises(InvalidInputError, match=r"not a ticket\. Pass"):
        Ticket.load(tmp_path / "whole")
    metadata = load_tensors(tmp_path / "whole")[1]
    save_tensors(tmp_path / "part", {}, metadata)
    with pytest.raises(InvalidInputError, match="lacks part of"):
        kind.load(tmp_path / "part", *other)
    raw = (tmp_path / "whole").read_bytes()
    (tmp_path / "half").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InvalidInputError, match="truncated"):
        kind.load(tmp_path / "half", *other)


@pytest.mark.parametrize("name", ["EarlyBird, branches", "EarlyBird, parts"])
def test_a_network_with_filled_branches_computes_and_trains_as_before(name, tmp_path):
    make, also = KEPT[name]
    before = make()
    maps = [n for n, _ in before.network.named_modules() if "channel_map" in n]
    assert maps  # or the test sees nothing
    before.save(tmp_path / "a")
    after = EarlyBird.load(tmp_path / "a", *also())
    x, y = classes(20, 16, 3)
    for net in (before.network, after.network):
        sgd = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(2):
            sgd.zero_grad()
            CE(net(x), y).backward()
            sgd.step()
    with torch.no_grad():
        outputs, wanted = after.network.eval()(x), before.network.eval()(x)
    # memory that lies elsewhere: sums in another order
    assert torch.allclose(outputs, wanted, rtol=0, atol=1e-12)


def test_what_was_trained_since_is_what_is_saved(tmp_path):
    before = a_draw()
    with torch.no_grad():
        before.network.get_submodule("0").weight.add_(1.0)
    before.network.eval().float()
    before.save(tmp_path / "a")
    after = EarlyBird.load(tmp_path / "a", whole())
    assert differences(plain(before), plain(after)) == []
    assert not after.network.training
    assert next(after.network.parameters()).dtype == torch.float32


def same_tensors() -> nn.Module:
    """A residual network with the tensors of another, added elsewhere."""
    net = residual()
    first = type(net.get_submodule("stage1_block1"))

    class Other(first):
        def forward(self, x):
            return first.forward(self, x) + x

    Other.__name__ = first.__name__
    for part in net.modules():
        if type(part) is first and len(part.shortcut.state_dict()) == 0:
            part.__class__ = Other
    return net


def test_a_network_needs_the_model_that_it_was_drawn_from(tmp_path):
    a_draw_with_branches().save(tmp_path / "a")
    with pytest.raises(InvalidInputError, match=r"not its code\. Pass model="):
        EarlyBird.load(tmp_path / "a")
    wide = resnet(8, 3, in_shape=(1, 4, 4), classes=3).double()
    with pytest.raises(InvalidInputError, match=r"another model .* instead of"):
        EarlyBird.load(tmp_path / "a", wide)
    with pytest.raises(InvalidInputError, match=r"another model .*cannot be traced"):
        EarlyBird.load(tmp_path / "a", whole())
    with pytest.raises(InvalidInputError, match=r"another model .* another graph"):
        EarlyBird.load(tmp_path / "a", same_tensors())


def test_plain_comparison_bites():
    a, b = a_pair(), a_pair()
    assert differences(plain(a), plain(b)) == []
    other = matched(a.ticket, seed=1)
    found = differences(plain(a), plain(other))
    assert ".control.mask_items" in found
    assert not any(path.startswith(".ticket") for path in found)
