"""A collapse that cannot heal is told while scores are trained, not after it."""

import copy
import warnings

import pytest
import torch
from other_models import Skip
from problems import classes, small_net
from torch import nn

from dynprune.core import InvalidInputError, NumericalWarning
from dynprune.pruning import edge_popup, gem_miner
from dynprune.pruning._collapse import CollapseWatch
from dynprune.pruning._dependence import Dependence, dependence
from dynprune.pruning._mask_training import MaskTraining
from dynprune.system import GradientSystem

CE = nn.functional.cross_entropy
LOST = "no path of kept weights leads from the input to the output"


def system_of(widths, activation) -> GradientSystem:
    net = small_net(widths=widths, activation=activation)
    return GradientSystem(net, CE, classes(20, 4, 3))


@pytest.fixture
def passes(monkeypatch):
    """What the masks were after each epoch: the finding, and the steps so far."""
    seen = []
    whole = MaskTraining.epoch

    def epoch(self, number, **kwargs):
        finite = whole(self, number, **kwargs)
        seen.append(self.cost.steps)
        return finite

    monkeypatch.setattr(MaskTraining, "epoch", epoch)
    return seen


# one weight of each of three layers: two gaps, across which no derivative comes
DEAD = {"density": 1e-9, "epochs": 60, "batch_size": 4}
# nothing of four rounds is moved but by the freezing
MINED = {
    "density": 0.09,
    "epochs": 40,
    "freeze_every": 2,
    "rule": "exact",
    "optimizer": lambda params: torch.optim.SGD(params, lr=1e-12),
    "seed": 1,
}


def mined(system=None, **knobs):
    system = system or system_of((4, 5, 3), nn.Tanh)
    return gem_miner(system, **MINED | knobs)


def popped(system=None, **knobs):
    system = system or system_of((4, 6, 6, 3), nn.ReLU)
    return edge_popup(system, **DEAD | knobs)


BOTH = pytest.mark.parametrize(
    ("find", "epochs"), [(mined, 40), (popped, 60)], ids=["gem_miner", "edge_popup"]
)


@BOTH
def test_it_is_an_error_before_the_training_ends(find, epochs, passes):
    with pytest.raises(InvalidInputError, match=LOST) as caught:
        find()
    count = len(passes)
    assert count < 0.9 * epochs
    assert f", after epoch {count - 1} of {epochs}, {LOST}" in str(caught.value)
    assert "collapse='warn'" in str(caught.value)


@BOTH
def test_other_values_of_collapse_train_to_the_end(find, epochs, passes):
    with pytest.warns(NumericalWarning, match=LOST) as caught:
        told = find(collapse="warn")
    assert len(passes) == epochs
    assert len([one for one in caught if LOST in str(one.message)]) == 1
    assert "after epoch" not in str(caught[0].message)
    quiet = find(collapse="ignore")
    assert len(passes) == 2 * epochs
    assert all(torch.equal(quiet.masks[n], m) for n, m in told.masks.items())
    assert dict(told.provenance.settings)["collapse"]["dependence"] == "lost"


@pytest.mark.filterwarnings("ignore:After epoch")
def test_throw_false_mines_to_the_end(passes):
    with pytest.warns(NumericalWarning, match=LOST):
        mined(throw=False)
    assert len(passes) == 40


@BOTH
def test_nothing_of_the_user_changes(find, epochs, untouched):
    system = system_of((4, 6, 6, 3), nn.ReLU)
    model = system.model.train()
    before = copy.deepcopy(model.state_dict())
    with untouched(), pytest.raises(InvalidInputError, match=f"of {epochs}, {LOST}"):
        find(system, density=0.03)
    assert all(torch.equal(model.state_dict()[n], part) for n, part in before.items())
    assert all(part.grad is None for part in model.parameters())
    assert all(part.requires_grad for part in model.parameters())
    assert model.training


def history(monkeypatch, system, **knobs):
    """What edge-popup's masks were after each epoch."""
    seen = []
    whole = MaskTraining.epoch

    def epoch(self, number, **kwargs):
        finite = whole(self, number, **kwargs)
        seen.append(dependence(system, self.masks())[0])
        return finite

    with monkeypatch.context() as patch:
        patch.setattr(MaskTraining, "epoch", epoch)
        ticket = edge_popup(system, collapse="ignore", **knobs)
    return seen, ticket


# by the slope across one gap, and by the momentum that is left across two
@pytest.mark.parametrize(
    ("widths", "activation", "knobs"),
    [
        ((4, 5, 3), nn.Tanh, {"density": 1e-9, "seed": 1}),
        ((4, 6, 6, 3), nn.ReLU, {"density": 0.1, "seed": 3}),
    ],
    ids=["slope", "momentum"],
)
def test_masks_that_pop_up_again_are_no_error(widths, activation, knobs, monkeypatch):
    system = system_of(widths, activation)
    knobs |= {"epochs": 80, "batch_size": 10}
    seen, quiet = history(monkeypatch, system, **knobs)
    assert Dependence.LOST in seen
    assert seen[-1] is Dependence.KEPT
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = edge_popup(system, **knobs)
    assert all(torch.equal(found.masks[n], m) for n, m in quiet.masks.items())


def test_a_batch_without_a_derivative_is_no_epoch_without_one(monkeypatch):
    x, y = classes(20, 4, 3)
    dark = torch.zeros_like(x[:4]), y[:4]  # the last batch of each epoch
    net = small_net(widths=(4, 5, 3))
    system = GradientSystem(net, CE, [(x[:10], y[:10]), (x[10:], y[10:]), dark])
    knobs = {"density": 1e-9, "epochs": 80}
    seen, quiet = history(monkeypatch, system, **knobs)
    assert Dependence.LOST in seen
    assert seen[-1] is Dependence.KEPT
    found = edge_popup(system, **knobs)
    assert all(torch.equal(found.masks[n], m) for n, m in quiet.masks.items())


@pytest.mark.parametrize(
    "own",
    [
        {"optimizer": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.995)},
        {"schedule": lambda made: torch.optim.lr_scheduler.LambdaLR(made, lambda _: 1)},
    ],
    ids=["optimizer", "schedule"],
)
def test_how_long_momentum_lasts_is_known_of_the_default_only(own, passes):
    with pytest.raises(InvalidInputError, match=LOST) as caught:
        popped(**own)
    assert len(passes) == 60
    assert "after epoch" not in str(caught.value)


def test_an_empty_layer_is_told_at_the_end_only():
    system = GradientSystem(Skip(), CE, classes(9, 4, 3))
    masks = {
        "inner.weight": torch.zeros(4, 4).bool(),
        "head.weight": torch.ones(3, 4).bool(),
    }
    watch = CollapseWatch(
        system, density=0.4, collapse="error", epochs=9, advice="Pass a higher density"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watch.during(masks, 1)
    with pytest.warns(NumericalWarning, match=r"keeps no weight of 'inner\.weight'"):
        found = watch.end(masks)
    assert found["check_gradients"] == pytest.approx(2 * 8 / 9)


@pytest.mark.parametrize("density", [0.4, 0.6], ids=str)
def test_a_ticket_is_the_one_of_no_looks(density):
    system = system_of((4, 5, 3), nn.Tanh)
    knobs = {"density": density, "epochs": 9, "freeze_every": 2, "seed": 2}
    looked = gem_miner(system, **knobs)
    quiet = gem_miner(system, collapse="ignore", **knobs)
    assert all(torch.equal(looked.masks[n], m) for n, m in quiet.masks.items())
    assert looked.cost == quiet.cost
    spent = dict(looked.provenance.settings)["collapse"]["check_gradients"]
    # four rounds and the end, 8 examples of 20 each time
    assert spent == pytest.approx(5 * 8 / 20)
