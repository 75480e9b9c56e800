"""A first batch of which no loss, or no gradient, can be computed is explained."""

import pytest
import torch
from problems import classes, small_net
from torch import nn

from dynprune.core import InvalidInputError
from dynprune.system import GradientSystem

CROSS = nn.functional.cross_entropy
X, Y = classes(64, 3, 3)
HEAD = r"loss of the first batch could not be computed \("


def make(model=None, loss_fn=CROSS, data=(X, Y), **given):
    return GradientSystem(
        small_net() if model is None else model, loss_fn, data, **given
    )


def refused(message, **given):
    with pytest.raises(InvalidInputError, match=HEAD + message) as caught:
        make(**given)
    return caught.value


# -- what cannot be computed ----------------------------------------------------------

BCE = nn.functional.binary_cross_entropy_with_logits
FAILS = {
    "float classes": (
        dict(data=(X, Y.double())),
        r"RuntimeError: .*x \(64, 3\) float64, y \(64,\) float64; the parameters are "
        r"float64\. .*y\.long\(\)\.$",
    ),
    "a column of classes": (
        dict(data=(X, Y[:, None])),
        r"RuntimeError.*y \(64, 1\) int64.*y\.squeeze\(1\)",
    ),
    "a class too many": (
        dict(data=(X, Y + 1)),
        r"IndexError: Target 3 is out of bounds\)\. .*from 0.*one output",
    ),
    "whole inputs": (
        dict(data=((9 * X).long(), Y)),
        r"RuntimeError.*x \(64, 3\) int64.*x\.float\(\)",
    ),
    "whole targets": (
        dict(
            loss_fn=lambda out, y: BCE(out[:, 0], y),
            data=(X, (Y > 0).long()),
        ),
        r"RuntimeError.*y\.float\(\)",
    ),
    "a column and a row": (
        dict(model=small_net(widths=(3, 1)), loss_fn=BCE, data=(X, Y.double())),
        r"ValueError.*y\.unsqueeze\(1\)",
    ),
    "other widths": (
        dict(data=(X[:, :2], Y)),
        r"RuntimeError.*x \(64, 2\).*loss_fn\(model\(x\), y\)",
    ),
    "float words": (
        dict(model=nn.Sequential(nn.Embedding(3, 3), nn.Flatten()), data=(X[:, :1], Y)),
        r"RuntimeError.*x\.long\(\)",
    ),
    "an error of her own": (
        dict(loss_fn=lambda out, y: {}["key"]),
        r"KeyError: 'key'\)",
    ),
    "without a word": (
        dict(loss_fn=lambda out, y: next(iter(()))),
        r"StopIteration: no message\)",
    ),
    "a dictionary": (
        dict(
            loss_fn=None,
            data=[{"x": X, "y": Y.double()}],
            batch_loss=lambda model, b: CROSS(model(b["x"]), b["y"]),
        ),
        r"RuntimeError.*\['x'\] \(64, 3\) float64, \['y'\] \(64,\).*batch_loss\(",
    ),
}


@pytest.mark.parametrize("case", FAILS, ids=str)
def test_a_loss_that_cannot_be_computed_is_explained(case):
    given, message = FAILS[case]
    error = refused(message, **given)
    assert isinstance(error.__cause__, Exception)
    assert not isinstance(error.__cause__, InvalidInputError)


def test_a_small_batch_is_explained_too():
    refused(r"RuntimeError.*y \(8,\) float64", data=(X[:8], Y[:8].double()))


def test_other_data_are_explained_too():
    with pytest.raises(InvalidInputError, match=HEAD + r"RuntimeError.*y\.long"):
        make().with_data((X, Y.double()))


@pytest.mark.parametrize(
    "kind", [KeyboardInterrupt, SystemExit, MemoryError, torch.OutOfMemoryError]
)
def test_what_is_no_fault_of_the_batch_is_passed_on(kind):
    def loss(outputs, targets):
        raise kind("stop")

    with pytest.raises(kind, match="stop"):
        make(loss_fn=loss)
    with pytest.raises(kind, match="stop"):
        make(loss_fn=loss, data=(X[:8], Y[:8]))


def test_later_batches_and_calls_raise_what_they_raise():
    system = make(data=[(X, Y), (X, Y + 1)])
    with pytest.raises(IndexError, match="out of bounds"):
        system.loss()


# -- what is cut off from the coordinates ---------------------------------------------


class Cut(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.net = small_net()

    def forward(self, x):
        with torch.no_grad():
            return self.net(x)


OTHER = small_net()
CUT_OFF = {
    "detach": dict(loss_fn=lambda out, y: CROSS(out.detach(), y)),
    "no_grad": dict(model=Cut()),
    "item": dict(loss_fn=lambda out, y: torch.tensor(CROSS(out, y).item())),
    "another model": dict(
        loss_fn=None, batch_loss=lambda model, b: CROSS(OTHER(b[0]), b[1])
    ),
    "a constant": dict(loss_fn=lambda out, y: out.new_tensor(1.0)),
    "the unused layer": dict(
        model=nn.ModuleDict({"used": small_net(), "idle": small_net()}),
        loss_fn=None,
        batch_loss=lambda model, b: CROSS(model["used"](b[0]), b[1]),
        parameters="idle.*",
    ),
}


@pytest.mark.parametrize("case", CUT_OFF, ids=str)
@pytest.mark.parametrize("size", [64, 8])
def test_a_loss_that_is_cut_off_is_refused(case, size):
    given = CUT_OFF[case]
    for data in ((X[:size], Y[:size]), [(X[:size], Y[:size])]):
        with pytest.raises(InvalidInputError, match=r"does not depend on.*detach\(\)"):
            make(data=data, **given)


def test_a_loss_by_numpy_is_explained():
    def loss(outputs, targets):
        return torch.as_tensor((outputs.numpy() ** 2).mean())

    refused("RuntimeError.*NumPy cuts it off", loss_fn=loss)


def test_masked_systems_are_looked_at():
    mask = {"0.weight": torch.ones(4, 3, dtype=torch.bool)}
    with pytest.raises(InvalidInputError, match="does not depend on"):
        make(mask=mask, **CUT_OFF["detach"])


def test_what_depends_on_a_part_is_taken():
    net = nn.ModuleDict({"used": small_net(), "idle": small_net()})
    system = make(
        net, None, batch_loss=lambda model, b: CROSS(model["used"](b[0]), b[1])
    )
    named = system.unflatten(system.gradient())
    assert not named["idle.0.weight"].any()
    assert named["used.0.weight"].any()


def test_nothing_to_train_is_no_cut():
    empty = {
        name: torch.zeros_like(part, dtype=torch.bool)
        for name, part in small_net().named_parameters()
    }
    assert make(mask=empty).gradient().shape == (0,)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.enable_grad])
def test_the_mode_outside_makes_no_difference(guard):
    with guard():
        system = make()
        with pytest.raises(InvalidInputError, match="does not depend on"):
            make(**CUT_OFF["detach"])
    assert torch.equal(system.gradient(), make().gradient())


def test_inference_tensors_are_no_cut():
    with torch.inference_mode():
        net = small_net()
        data = X.clone(), Y.clone()
    assert make(net, data=data).loss().isfinite()
    plain = make()
    with torch.inference_mode():
        assert plain.with_data((X, Y)).loss().isfinite()


def test_one_pass_is_made_with_gradients(untouched):
    modes = []

    def loss(outputs, targets):
        modes.append(outputs.requires_grad)
        return CROSS(outputs, targets)

    net = small_net()
    with untouched():
        system = make(net, loss)
    assert modes[0]
    assert not any(modes[1:])
    modes.clear()
    system.with_data((X[:9], Y[:9]))  # the loss is as it was
    assert modes
    assert not any(modes)
