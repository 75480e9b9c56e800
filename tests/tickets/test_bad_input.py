"""Whatever a user passes by mistake is refused in words, and nothing is changed."""

import copy
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from dynprune.core import InvalidInputError, isolated
from dynprune.system import GradientSystem
from dynprune.tasks import Problem
from dynprune.tickets import (
    Ticket,
    compare,
    complement,
    effective_density,
    error_barrier,
    graph_measures,
    invert,
    path_norm,
    reduce,
    reinitialise,
    remove_channels,
    remove_units,
    shuffle,
    stretch,
    to_sparse,
    union,
)
from dynprune.training import Recipe, train_many

CE = nn.functional.cross_entropy
X = torch.ones(1, 3)


def make(seed=0):
    with isolated(seed):
        return nn.Sequential(
            nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        )


@dataclass
class Given:
    """What the calls below are made of."""

    model: nn.Module = field(default_factory=make)
    data: tuple = (torch.ones(6, 3), torch.arange(6) % 3)
    recipe: Recipe = field(
        default_factory=lambda: Recipe(lambda p: torch.optim.SGD(p, lr=0.1), steps=2)
    )

    @property
    def ticket(self):
        masks = {
            name: torch.ones_like(part).bool()
            for name, part in self.model.named_parameters()
            if part.ndim > 1
        }
        return Ticket.make(masks, dict(self.model.named_parameters()))

    @property
    def pair(self):
        return {"a": self.ticket, "b": self.ticket}

    @property
    def system(self):
        return GradientSystem(self.model, CE, self.data)

    @property
    def problem(self):
        return Problem(
            make_model=make,
            loss_fn=CE,
            train=self.data,
            validation=self.data,
            test=self.data,
        )


WHOLE = {"0.weight": torch.ones(3, 3).bool()}
CASES = {
    "shuffles": (lambda g: compare(g.pair, shuffles=2.5), "shuffles"),
    "eigenvalues": (
        lambda g: compare(g.pair, system=g.system, eigenvalues=1.0),
        "eigenvalues",
    ),
    "groups": (lambda g: compare(g.pair, groups=8.0), "groups"),
    "groups of a graph": (lambda g: graph_measures(g.ticket, groups=8.0), "groups"),
    "points": (
        lambda g: error_barrier(g.ticket, g.ticket, g.problem, points=3.5),
        "points",
    ),
    "no problem": (
        lambda g: error_barrier(g.ticket, g.ticket, None),
        r"on a NoneType\. Pass the Problem",
    ),
    "a mapping": (
        lambda g: stretch(g.ticket, g.model, {0: [0]}),
        "given as a dict. Write it as text",
    ),
    "a wide example": (
        lambda g: compare(g.pair, model=g.model, example=torch.ones(1, 7)),
        r"example \(tensor \(1, 7\)\): .*example=torch\.ones",
    ),
    "a NumPy example": (
        lambda g: compare(g.pair, model=g.model, example=np.ones((1, 3))),
        r"example \(ndarray\)",
    ),
    "an example of a density": (
        lambda g: effective_density(g.ticket, g.model, example=torch.ones(1, 7)),
        r"example \(tensor \(1, 7\)\)",
    ),
    "a generator": (
        lambda g: train_many((g.system for _ in range(2)), g.recipe),
        r"asked of a generator\. Pass a list",
    ),
    "one system": (lambda g: train_many(g.system, g.recipe), "of a GradientSystem"),
    "a dictionary": (lambda g: train_many({"a": g.system}, g.recipe), "of a dict"),
    "tickets": (
        lambda g: train_many([g.ticket, g.ticket], g.recipe),
        r"list of Ticket\. .*with_ticket",
    ),
    "several recipes": (
        lambda g: train_many([g.system], [g.recipe], how="serial"),
        "with a list. Pass one Recipe",
    ),
    "meta masks": (
        lambda g: Ticket.make({"0.weight": WHOLE["0.weight"].to("meta")}, WHOLE),
        r"'0\.weight' was given .* without data \(meta\)",
    ),
    "meta state": (
        lambda g: Ticket.make(WHOLE, {"0.weight": torch.ones(3, 3, device="meta")}),
        "without data",
    ),
    "NumPy": (
        lambda g: Ticket.make({"w": np.ones(3, bool)}, {"w": np.ones(3)}),
        "'w' was given to a ticket as a ndarray",
    ),
    **{
        f"{name}: {what}": (call, says)
        for what, says, calls in (
            (
                "a system as model",
                r"model is a GradientSystem\. Pass a torch.nn.Module: model\.model of",
                {
                    "apply_": lambda g: g.ticket.apply_(g.system),
                    "to_dense": lambda g: g.ticket.to_dense(g.system),
                    "to_torch_prune": lambda g: g.ticket.to_torch_prune(g.system),
                    "to_sparse": lambda g: to_sparse(g.ticket, g.system),
                    "reduce": lambda g: reduce(g.ticket, g.system, example=X),
                    "remove_units": lambda g: remove_units(g.system, {}, example=X),
                    "stretch": lambda g: stretch(g.ticket, g.system),
                    "graph_measures": lambda g: graph_measures(
                        g.ticket, model=g.system
                    ),
                    "effective_density": lambda g: effective_density(
                        g.ticket, g.system, example=X
                    ),
                    "path_norm": lambda g: path_norm(g.ticket, g.system, example=X),
                },
            ),
            (
                "a model as ticket",
                r"\w+ is a Sequential\. Pass a dynprune\.Ticket",
                {
                    "shuffle": lambda g: shuffle(g.model),
                    "invert": lambda g: invert(g.model),
                    "union": lambda g: union(g.ticket, g.model),
                    "reinitialise": lambda g: reinitialise(g.model, {}),
                    "complement": lambda g: complement(g.model),
                    "reduce": lambda g: reduce(g.model, g.model, example=X),
                    "with_ticket": lambda g: g.system.with_ticket(g.model),
                },
            ),
        )
        for name, call in calls.items()
    },
    "a problem as model": (
        lambda g: g.ticket.apply_(g.problem),
        r"model is a Problem\. Pass a torch\.nn\.Module: model\.model\(seed\)",
    ),
    "a ticket as what to keep": (
        lambda g: remove_channels(g.model, g.ticket, example=X),
        r"keep is a Ticket\. Pass a mapping",
    ),
    "float8": (
        lambda g: Ticket.make(
            WHOLE, {"0.weight": torch.ones(3, 3).to(torch.float8_e4m3fn)}
        ),
        r"as a torch\.float8_e4m3fn",
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_it_is_refused_in_words(name, untouched):
    call, says = CASES[name]
    given = Given()
    before = copy.deepcopy(given.model.state_dict())
    with untouched(), pytest.raises(InvalidInputError, match=says):
        call(given)
    after = given.model.state_dict()
    assert all(torch.equal(after[name], part) for name, part in before.items())


def test_integers_of_numpy_are_integers():
    found = compare(Given().pair, shuffles=np.int64(2), groups=np.int64(8))
    assert dict(found.provenance.settings)["shuffles"] == 2
    assert type(dict(found.provenance.settings)["groups"]) is int
