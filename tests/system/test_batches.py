"""Batches of other types than tuples, lists and dictionaries."""

import types
from collections import UserDict
from collections.abc import Mapping, MutableMapping

import pytest
import torch
from problems import problem_of
from torch import nn

from dynprune.operators import EmpiricalFisherOperator, HessianOperator
from dynprune.system import GradientSystem
from dynprune.training import Recipe, evaluate

MSE = nn.functional.mse_loss


class Encoding(UserDict):
    """Like ``transformers.BatchEncoding``: attributes beside the data."""

    def __init__(self, data=None, *, note="none"):
        UserDict.__init__(self, data)
        self.note = note


class Ordered(dict):
    """A dictionary that torch does not know as a nest."""


class Own(MutableMapping):
    """Keeps its items in a dictionary that copies of it would share."""

    def __init__(self, items):
        self.items_ = dict(items)

    def __getitem__(self, key):
        return self.items_[key]

    def __setitem__(self, key, value):
        self.items_[key] = value

    def __delitem__(self, key):
        del self.items_[key]

    def __iter__(self):
        return iter(self.items_)

    def __len__(self):
        return len(self.items_)


class Frozen(Mapping):
    """Cannot be made of a dictionary."""

    def __init__(self, *parts):
        self.parts = parts

    @classmethod
    def of(cls, items):
        return cls(*items.items())

    def __getitem__(self, key):
        return dict(self.parts)[key]

    def __iter__(self):
        return iter(dict(self.parts))

    def __len__(self):
        return len(self.parts)


KINDS = [Encoding, Ordered, Own, types.MappingProxyType]


def rows(count=6):
    source = torch.Generator().manual_seed(0)
    x, y = torch.randn(count, 3, generator=source), torch.randn(count, generator=source)
    return x, y[:, None]


def net():
    made = nn.Linear(3, 1).double()
    with torch.no_grad():
        for part in made.parameters():
            part.fill_(0.5)
    return made


def batch_loss(model, batch):
    return MSE(model(batch["features"]["x"]), batch["y"])


def nested(kind, x, y):
    return kind({"features": kind({"x": x}), "y": y})


def systems(kind):
    x, y = rows()
    cuts = [slice(0, 4), slice(4, 6)]
    mine = [nested(kind, x[cut], y[cut]) for cut in cuts]
    plain = [nested(dict, x[cut], y[cut]) for cut in cuts]
    return [
        GradientSystem(net(), None, data, batch_loss=batch_loss)
        for data in (mine, plain)
    ]


def systems_of_one():
    return GradientSystem(net(), None, [nested(dict, *rows())], batch_loss=batch_loss)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mapping_is_a_nest_at_any_depth(kind):
    mine, plain = systems(kind)
    assert mine.examples == plain.examples == 6.0
    assert torch.equal(mine.gradient(), plain.gradient())
    one = torch.ones(mine.size, dtype=torch.float64)
    hessian, wanted = HessianOperator(mine), HessianOperator(plain)
    torch.testing.assert_close(hessian @ one, wanted @ one, rtol=1e-12, atol=0)
    fisher, wanted = EmpiricalFisherOperator(mine), EmpiricalFisherOperator(plain)
    torch.testing.assert_close(fisher @ one, wanted @ one, rtol=1e-12, atol=0)
    recipe = Recipe(lambda params: torch.optim.SGD(params, lr=0.1), steps=3)
    assert torch.equal(recipe(mine).state, recipe(plain).state)


@pytest.mark.parametrize("kind", KINDS)
def test_the_batch_keeps_its_type_and_the_user_her_batch(kind):
    x, y = rows()
    data = [nested(kind, x, y)]
    seen = []

    def spy(model, batch):
        seen.append(batch)
        return batch_loss(model, batch)

    GradientSystem(net(), None, data, batch_loss=spy).gradient()
    assert data[0]["features"]["x"] is x
    assert data[0]["features"]["x"].dtype == torch.float32
    wanted = Mapping if kind is types.MappingProxyType else kind
    for batch in seen:
        assert isinstance(batch, wanted)
        assert isinstance(batch["features"], wanted)
        assert batch["features"]["x"].dtype == torch.float64


def test_a_mapping_that_cannot_be_made_again_becomes_a_dictionary():
    x, y = rows()
    seen = []

    def spy(model, batch):
        seen.append(type(batch))
        return batch_loss(model, batch)

    made = GradientSystem(net(), None, [nested(Frozen.of, x, y)], batch_loss=spy)
    assert made.gradient().isfinite().all()
    assert set(seen) == {dict}


def test_a_batch_of_hugging_face():
    transformers = pytest.importorskip("transformers")
    x, y = rows()
    batch = transformers.BatchEncoding({"features": {"x": x}, "y": y})
    kinds = []

    def spy(model, found):
        kinds.append(type(found))
        return batch_loss(model, found)

    made = GradientSystem(net(), None, [batch], batch_loss=spy)
    assert made.examples == 6.0
    assert torch.equal(made.gradient(), systems_of_one().gradient())
    assert set(kinds) == {transformers.BatchEncoding}


def test_attributes_of_a_batch_stay():
    x, y = rows()
    batch = Encoding({"features": {"x": x}, "y": y}, note="mine")
    notes = []

    def spy(model, found):
        notes.append(found.note)
        return batch_loss(model, found)

    GradientSystem(net(), None, [batch], batch_loss=spy).loss()
    assert set(notes) == {"mine"}


def test_ranks_would_compare_what_a_mapping_holds():
    mine, plain = systems(UserDict)
    assert mine._layout == plain._layout


def test_evaluate_takes_a_mapping():
    x, y = rows()

    def problem(kind):
        return problem_of(net, [nested(kind, x, y)], batch_loss)

    found, wanted = (evaluate(net(), problem(kind)) for kind in (UserDict, dict))
    assert (found.loss, found.examples) == (wanted.loss, wanted.examples)
