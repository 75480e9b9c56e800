"""What is passed to a system in the wrong form: each is refused by name."""

import numpy as np
import pytest
import torch
from problems import classes, small_net
from torch import nn

from dynprune.core import InvalidInputError
from dynprune.system import GradientSystem

CROSS = nn.functional.cross_entropy
DATA = classes(9, 3, 3)


def make(model=None, loss_fn=CROSS, data=DATA, **given):
    return GradientSystem(
        small_net() if model is None else model, loss_fn, data, **given
    )


# -- masks ----------------------------------------------------------------------------

MASKS = {
    "scores": (
        {"0.weight": torch.linspace(0, 1, 12).view(4, 3)},
        r"'0\.weight' is torch\.float32.*threshold",
    ),
    "zeros and ones": ({"0.weight": torch.ones(4, 3)}, r"float32.*mask\.bool\(\)"),
    "integers": ({"0.weight": torch.ones(4, 3).long()}, "int64"),
    "an array": ({"0.weight": np.ones((4, 3), bool)}, "is ndarray"),
    "a tensor": (torch.ones(4, 3).bool(), "mask is a Tensor.*mapping"),
    "a list": ([("0.weight", torch.ones(4, 3).bool())], "mask is a list"),
}


@pytest.mark.parametrize("case", MASKS, ids=str)
def test_a_mask_that_is_not_boolean_is_refused(case):
    mask, message = MASKS[case]
    with pytest.raises(InvalidInputError, match=message):
        make(mask=mask)
    with pytest.raises(InvalidInputError, match=message):
        make().with_mask(mask)


def test_no_mask_is_none():
    assert make(mask=None).masks == make(mask={}).masks == {}


# -- parameters -----------------------------------------------------------------------


def tied():
    net = small_net(widths=(3, 3, 3))
    net[2].weight = net[0].weight
    net[0].bias.requires_grad_(False)
    return net


PATTERNS = {
    "one of two": (["0.*", "fc9.*"], r"matches 'fc9\.\*'\. Found: 0\.weight, 2\.bias"),
    "both": (["fc8", "fc9"], r"matches 'fc8', 'fc9'"),
    "frozen": (["2.*", "0.bias"], r"matches '0\.bias' \(0\.bias is frozen\)"),
    "tied": (["0.*", "2.weight"], r"2\.weight is tied to 0\.weight, which is its name"),
    "none": ([], "list without a name"),
    "a function": (lambda name: True, "parameters is a function.*glob"),
    "tensors": (list(tied().parameters()), "list of Parameter"),
    "an iterator of tensors": (tied().parameters(), "generator of Parameter"),
    "a number": (3, "parameters is a int"),
    "a number in a list": (["0.*", 3], "list of int, str"),
}


@pytest.mark.parametrize("case", PATTERNS, ids=str)
def test_patterns_that_select_nothing_are_named(case):
    patterns, message = PATTERNS[case]
    with pytest.raises(InvalidInputError, match=message):
        make(tied(), parameters=patterns)


def test_patterns_that_overlap_select_once():
    chosen = make(parameters=("0.*", "*.bias"))
    assert chosen.names == ("0.weight", "0.bias", "2.bias")
    assert make(parameters={"0.bias": 1}.keys()).names == ("0.bias",)


# -- the rest -------------------------------------------------------------------------

REFUSED = {
    "a class": (dict(loss_fn=nn.CrossEntropyLoss), r"class CrossEntropyLoss.*Loss\(\)"),
    "data first": (dict(loss_fn=DATA, data=CROSS), "loss_fn is a tuple"),
    "a class of batches": (
        dict(loss_fn=None, batch_loss=nn.CrossEntropyLoss),
        "batch_loss is the class",
    ),
    "a weight": (dict(batch_weight=1.0), r"batch_weight is a float.*\(batch\)"),
    "true l2": (dict(l2=True), "l2 is True"),
    "text l2": (dict(l2="0.1"), "l2 is '0.1'"),
    "no l2": (dict(l2=None), "l2 is None"),
    "NaN l2": (dict(l2=float("nan")), "l2 is nan"),
    "true microbatch": (dict(microbatch=True), "microbatch is True"),
    "half a microbatch": (dict(microbatch=2.5), "microbatch is 2.5"),
    "a meta model": (
        dict(model=nn.Linear(3, 3, device="meta")),
        r"meta device: weight, bias\..*to_empty",
    ),
    "a meta buffer": (
        dict(
            model=nn.Sequential(
                nn.Linear(3, 3), nn.BatchNorm1d(3, device="meta", affine=False)
            )
        ),
        r"meta device: 1\.running_mean",
    ),
    "meta data": (
        dict(data=(DATA[0].to("meta"), DATA[1])),
        r"shape \(9, 3\) on the meta",
    ),
    "meta batches": (dict(data=[[part.to("meta") for part in DATA]]), "on the meta"),
    "arrays": (
        dict(data=(DATA[0].numpy(), DATA[1].numpy())),
        "ndarray and ndarray.*from_numpy",
    ),
    "one array": (
        dict(data=(DATA[0], DATA[1].numpy())),
        "Tensor and ndarray.*from_numpy",
    ),
    "a list of arrays": (
        dict(data=[DATA[0].numpy(), DATA[1].numpy()]),
        "type ndarray is not a pair.*from_numpy",
    ),
    "batches of arrays": (
        dict(data=[(DATA[0].numpy(), DATA[1].numpy())]),
        r"x NumPy array \(9, 3\) float64, y NumPy array.*from_numpy",
    ),
    "examples": (dict(data=list(zip(*DATA, strict=True))), "one example.*DataLoader"),
    "examples with whole numbers": (
        dict(data=list(zip(DATA[0], DATA[1].tolist(), strict=True))),
        "one example.*DataLoader",
    ),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_what_is_no_argument_is_refused(case):
    change, message = REFUSED[case]
    with pytest.raises(InvalidInputError, match=message):
        make(**change)


@pytest.mark.parametrize("l2", [0, 0.5, np.float32(0.5), torch.tensor(0.5)])
def test_numbers_of_any_library_are_taken(l2):
    assert make(l2=l2, microbatch=np.int64(4)).l2 == float(l2)


def test_one_example_at_a_time_with_its_weight_is_a_batch():
    x, y = DATA
    apart = make(data=list(zip(x, y, strict=True)), batch_weight=lambda _: 1.0)
    assert torch.allclose(apart.loss(), make().loss())
