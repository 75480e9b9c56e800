"""What each pruner says that it costs, in words, in the room's table and in figures."""

import functools
import inspect
import re
from collections import Counter

import pytest
import torch
from problems import classes, small_net
from torch import nn

from dynprune import pruning
from dynprune.core import Cost
from dynprune.pruning._dependence import dependence
from dynprune.pruning._from_scores import survivors
from dynprune.system import GradientSystem
from dynprune.training import Recipe

CE = nn.functional.cross_entropy
N, WEIGHTS, BATCH, STEPS = 40, 4 * 5 + 5 * 3, 10, 8
TRAINING = STEPS * BATCH / N
RECIPE = Recipe(
    lambda params: torch.optim.SGD(params, lr=0.01), steps=STEPS, batch_size=BATCH
)
PROBE = 2.0 * 8 / N
# name: knobs, and what the table's formula gives for them
FORMULAS = {
    "random": ({}, Cost()),
    "erk": ({}, Cost()),
    "magnitude": ({}, Cost()),
    "lamp": ({}, Cost()),
    "snip": ({}, Cost(gradients=1.0)),
    "iterative_snip": ({"rounds": 3}, Cost(gradients=3.0)),
    "force": ({"rounds": 4}, Cost(gradients=4.0)),
    "grasp": ({}, Cost(gradients=1.0, hvps=1.0)),
    "synflow": ({"rounds": 9}, Cost(gradients=10 / N)),
    "gem_miner": (
        {"epochs": 6, "batch_size": 20},
        Cost(gradients=6.0, steps=6 * 2),
    ),
    "edge_popup": (
        {"epochs": 3, "batch_size": 20},
        Cost(gradients=3.0, steps=3 * 2),
    ),
    "obd": ({"matvecs": 20}, Cost(gradients=PROBE, hvps=20.0)),
    "obs": ({"samples": 10, "block_size": 5}, Cost(gradients=10 / N)),
    "sparsegpt": ({}, Cost(forwards=2.0 + 1.0)),
    "imp": (
        {"densities": (1.0, 0.8, 0.5), "train": RECIPE},
        Cost(gradients=3 * TRAINING, steps=3 * STEPS),
    ),
    "early_bird": (
        {"train": RECIPE, "unit": "weight", "window": 2, "tolerance": 0.9},
        Cost(gradients=1.0, steps=4),  # two looks, before the epochs 0 and 1
    ),
    **{
        name: (
            {"train": RECIPE, "update_every": 2},
            Cost(gradients=TRAINING, steps=STEPS),
        )
        for name in ("gradual_magnitude", "rigl", "sparse_evolution")
    },
}


def table() -> dict[str, list[str]]:
    """Read the table of the room's docstring, name to its other cells."""
    text = inspect.getdoc(pruning)
    _, head, rows, _ = re.split(r"^=+(?: =+)+$", text, flags=re.MULTILINE)
    lines = [re.split(r"\s{2,}", line.strip()) for line in rows.strip().splitlines()]
    assert head.split()[-3:] == ["when", "count", "cost"]
    return {line[0]: line[1:] for line in lines}


def pruners() -> list[str]:
    """List the public functions that return a ticket, or what holds one."""
    kinds = {
        "Ticket",
        *(kind.__name__ for kind in (pruning.IMPRun, pruning.SparseTraining)),
        pruning.EarlyBird.__name__,
    }
    found = []
    for name in pruning.__all__:
        thing = getattr(pruning, name)
        if inspect.isfunction(thing) and name != "from_scores":
            returned = inspect.signature(thing).return_annotation
            if getattr(returned, "__name__", returned) in kinds:
                found.append(name)
    return found


def test_every_pruner_has_its_row():
    assert sorted(table()) == sorted(pruners()) == sorted(FORMULAS)
    assert all(len(cells) >= 3 for cells in table().values())


@pytest.mark.parametrize("name", FORMULAS)
def test_the_cost_is_what_the_formula_says(name):
    system = GradientSystem(small_net(widths=(4, 5, 3)), CE, classes(N, 4, 3))
    knobs, expected = FORMULAS[name]
    prune = functools.partial(getattr(pruning, name), system, **knobs)
    found = (prune() if "densities" in knobs else prune(density=0.5)).cost
    assert found.steps == expected.steps
    for part in ("gradients", "hvps", "forwards"):
        assert getattr(found, part) == pytest.approx(getattr(expected, part)), part


class CountedLBFGS(torch.optim.LBFGS):
    """Count, from outside, how often a step asks for the gradient."""

    seen = 0

    def step(self, closure):
        def counted():
            CountedLBFGS.seen += 1
            return closure()

        return torch.optim.LBFGS.step(self, counted)


@pytest.mark.parametrize("name", ["gem_miner", "edge_popup", "early_bird", "imp"])
def test_every_gradient_of_a_step_counts(name):
    def newton(params):
        return CountedLBFGS(params, lr=0.1, max_iter=4)

    knobs = {"optimizer": newton, "epochs": 6, "batch_size": 20}
    density = {"density": 0.5}
    if name in {"early_bird", "imp"}:
        knobs = {"train": Recipe(newton, steps=STEPS, batch_size=20)}
    if name == "early_bird":
        knobs |= {"unit": "weight", "window": 2, "tolerance": 0.9}
    if name == "imp":
        density = {"densities": (1.0, 0.5)}
    CountedLBFGS.seen = 0
    system = GradientSystem(small_net(widths=(4, 5, 3)), CE, classes(N, 4, 3))
    found = getattr(pruning, name)(system, **density, **knobs).cost
    assert CountedLBFGS.seen > found.steps > 0
    assert found.gradients == pytest.approx(CountedLBFGS.seen * 20 / N)


class Passes(nn.Module):
    """Count the examples that pass forwards, in all copies."""

    examples = 0

    def forward(self, x):
        Passes.examples += len(x)
        return x


def test_the_samples_of_a_fisher_matrix_are_all_that_passes():
    net = nn.Sequential(Passes(), small_net(widths=(4, 5, 3)))
    system = GradientSystem(net, CE, classes(N, 4, 3))
    Passes.examples = 0
    pruning.obs_scores(system, samples=10, block_size=5)
    assert Passes.examples == 10


@pytest.mark.parametrize(
    ("name", "knobs"),
    [
        ("obd", {"matvecs": 20}),
        ("obs", {"curvature": "gauss-newton", "damping": 0.1}),
    ],
)
def test_a_system_is_probed_and_pays_once(name, knobs):
    system = GradientSystem(small_net(widths=(4, 5, 3)), CE, classes(N, 4, 3))
    prune = functools.partial(getattr(pruning, name), system, density=0.5, **knobs)
    first, second = prune().cost, prune().cost
    assert first.gradients == pytest.approx(PROBE)
    assert second == Cost(hvps=first.hvps)


def test_exact_curvatures_cost_a_product_for_each_weight():
    net, data = nn.Linear(4, 3).double(), classes(N, 4, 3)
    system = GradientSystem(net, CE, data, l2=0.1)
    ticket = pruning.obs(system, density=0.5, curvature="hessian")
    assert ticket.cost == Cost(gradients=PROBE, hvps=12.0)


@pytest.mark.parametrize("name", FORMULAS)
def test_the_docstring_counts_in_all_three_currencies(name):
    text = inspect.getdoc(getattr(pruning, name)) + "\n"
    cost = re.search(r"^Cost:\n((?:    .*\n)+)", text, re.MULTILINE)[1]
    for word in ("gradient", "forward", "HVP"):
        assert word in cost, word


def test_letters_of_the_table_name_what_is_spent():
    letters = {"gradients": "G", "hvps": "H", "forwards": "F"}
    for name, cells in table().items():
        cost = cells[-1]
        _, spent = FORMULAS[name]
        if "training" in cost:
            assert spent.steps, name
            continue
        for part, letter in letters.items():
            said = bool(re.search(rf"\b{letter}\b", cost)) or (
                part == "gradients" and "probe" in cost
            )
            assert said >= bool(getattr(spent, part)), (name, part)
            if not getattr(spent, part):
                assert not said or (name, part) == ("obs", "hvps"), (name, part)


# -- what is really computed ----------------------------------------------------------

SEEN: Counter[str] = Counter()  # of the module, for copies of a network to share


class Seen(torch.autograd.Function):
    """The identity, counting the examples that pass forwards and backwards."""

    @staticmethod
    def forward(ctx, x):
        SEEN["forward"] += len(x)
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        SEEN["backward"] += len(slope)
        return SeenTwice.apply(slope)


class SeenTwice(torch.autograd.Function):
    """What is passed where the backward pass is differentiated."""

    @staticmethod
    def forward(ctx, slope):
        return slope.clone()

    @staticmethod
    def backward(ctx, second):
        assert second.sum().isfinite()  # no vmap: columns of a block one by one
        SEEN["second"] += len(second)
        return second


class Gauge(nn.Module):
    def forward(self, x):
        return Seen.apply(x)


COUNTED = {
    "snip": {},
    "grasp": {},
    "force": {"rounds": 4},
    "iterative_snip": {"rounds": 3},
    "synflow": {"rounds": 9},
    "sparsegpt": {},
}


def counted(name: str, batches, **knobs) -> tuple[Cost, Counter[str]]:
    net = small_net(widths=(4, 5, 3))
    net.insert(1, Gauge())
    system = GradientSystem(net, CE, batches)
    SEEN.clear()
    prune = getattr(pruning, name)
    cost = prune(system, density=0.5, collapse="ignore", **knobs).cost
    return cost, Counter(SEEN)


def data_of(cut: int | None):
    x, y = classes(N, 4, 3)
    if cut is None:
        return x, y
    return list(zip(x.split(cut), y.split(cut), strict=True))  # the last one is short


CUTS = pytest.mark.parametrize("cut", [None, 16], ids=["resident", "batches"])


@CUTS
@pytest.mark.parametrize("name", COUNTED)
def test_the_cost_is_what_is_computed(name, cut):
    cost, seen = counted(name, data_of(cut), **COUNTED[name])
    # a product differentiates a gradient: forwards, back, and back through both
    passes = cost.forwards + cost.gradients + cost.hvps
    assert seen["forward"] == pytest.approx(passes * N)
    assert seen["backward"] == pytest.approx((cost.gradients + 2 * cost.hvps) * N)
    assert seen["second"] == pytest.approx(cost.hvps * N)
    assert passes > 0


@CUTS
@pytest.mark.filterwarnings("ignore:The diagonal from|For this model products")
def test_the_products_of_obd_are_what_is_computed(cut):
    # beyond what the operator spends once on its probe, self-check and stopwatch
    few, seen = counted("obd", data_of(cut), matvecs=8)
    more, seen_more = counted("obd", data_of(cut), matvecs=100)
    assert (few.hvps, more.hvps) == (8.0, WEIGHTS)
    assert seen_more["second"] - seen["second"] == (WEIGHTS - 8) * N
    assert seen["second"] - 8 * N <= 3 * N


@pytest.mark.parametrize("how", ["loader", "resident", "no tensors"])
def test_costs_count_examples_whatever_they_weigh(how):
    x, y = classes(24, 4, 3)
    cuts = [(x[a:b], y[a:b]) for a, b in ((0, 4), (4, 10), (10, 18), (18, 24))]
    knobs = {"batch_weight": lambda batch: 1.0}
    data = (x, y) if how == "resident" else cuts
    if how == "no tensors":
        data = [{"both": lambda part=part: part} for part in cuts]
        knobs["batch_loss"] = lambda net, batch: CE(
            net(batch["both"]()[0]), batch["both"]()[1]
        )
    loss_fn = None if how == "no tensors" else CE
    system = GradientSystem(small_net(widths=(4, 5, 3)), loss_fn, data, **knobs)
    masks = survivors(system)
    if how == "no tensors":  # a batch is what its weight says
        assert dependence(system, masks)[1] == pytest.approx(1 / 4)
        return
    found = pruning.obs(system, density=0.5, block_size=5)
    assert found.cost == Cost(gradients=1.0)
    found = pruning.obs(system, density=0.5, block_size=5, samples=12)
    assert found.cost == Cost(gradients=0.5)
    found = pruning.synflow(system, density=0.5, rounds=9)
    assert found.cost == Cost(gradients=10 / 24)
    read = 8 if how == "resident" else 4  # of the first batch
    assert dependence(system, masks)[1] == read / 24
