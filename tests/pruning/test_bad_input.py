"""Bad input gets a clear error, and the user's model stays to the bit as it was.

Every case runs through the public API on a model with gradients, running statistics
and modules of both modes. More refusals, each beside what it refuses: densities, rules
and knobs in ``test_counts.py``, ``test_collapse.py`` and the ``test_bad_knobs…`` of
each pruner; mappings in ``tickets/test_elastic.py``; graphs that cannot be followed in
``test_remove_channels.py`` and ``tickets/test_reduce.py``; files in ``test_save.py``.
"""

import contextlib
import copy
import functools
import math

import pytest
import torch
from problems import classes, small_net
from torch import nn

from dynprune import pruning
from dynprune.core import ConvergenceError, InvalidInputError, NumericalWarning
from dynprune.pruning import (
    early_bird,
    edge_popup,
    erk,
    force,
    from_scores,
    gem_miner,
    gradual_magnitude,
    grasp,
    imp,
    iterative_snip,
    kept_count,
    lamp,
    magnitude,
    obd,
    obs,
    random,
    rigl,
    sanity_check,
    snip,
    sparse_evolution,
    sparsegpt,
    synflow,
)
from dynprune.system import GradientSystem
from dynprune.tasks import resnet
from dynprune.tickets import (
    Ticket,
    compare,
    reduce,
    reinitialise,
    squeeze,
    stretch,
    to_sparse,
    union,
)
from dynprune.training import Recipe

CE = nn.functional.cross_entropy


def recipe(**kwargs) -> Recipe:
    return Recipe(
        lambda params: torch.optim.SGD(params, lr=0.1),
        steps=8,
        batch_size=10,
        **kwargs,
    )


def net_of(hidden: int = 5) -> nn.Sequential:
    make = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(hidden, 3),
    ).double()
    with torch.no_grad():
        for part in net.parameters():
            part.copy_(torch.randn(part.shape, generator=make, dtype=part.dtype))
    return net


def used(net: nn.Module) -> nn.Module:
    """Leave gradients, running statistics and modules of both modes behind."""
    with torch.random.fork_rng():
        net.train()
        net(torch.randn(6, 4, dtype=torch.float64)).square().sum().backward()
    next(iter(net.children())).eval()
    return net


def system_of(net: nn.Module) -> GradientSystem:
    return GradientSystem(net, CE, classes(20, 4, 3))


def look(net: nn.Module) -> dict:
    """Everything of a model that a call might have changed."""
    return {
        "state": {n: part.clone() for n, part in net.state_dict().items()},
        "gradients": {
            n: None if part.grad is None else part.grad.clone()
            for n, part in net.named_parameters()
        },
        "trained": {n: part.requires_grad for n, part in net.named_parameters()},
        "places": {n: part.data_ptr() for n, part in net.named_parameters()},
        "modes": {n: part.training for n, part in net.named_modules()},
        "hooks": {
            n: (len(part._forward_pre_hooks), len(part._forward_hooks))
            for n, part in net.named_modules()
        },
        "modules": {n: type(part) for n, part in net.named_modules()},
    }


def same(a, b) -> bool:
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    return bool(a == b)


@pytest.fixture
def refused(untouched):
    """Call it for a context that refuses with a message and changes nothing."""

    @contextlib.contextmanager
    def guard(says: str, *nets: nn.Module, error=InvalidInputError):
        before = [look(net) for net in nets]
        with untouched(), pytest.raises(error, match=says):
            yield
        for net, old in zip(nets, before, strict=True):
            new = look(net)
            assert [key for key in old if not same(old[key], new[key])] == []

    return guard


# what asks for more than a system and a density gets it here
PRUNERS = {
    "random": random,
    "erk": erk,
    "magnitude": magnitude,
    "lamp": lamp,
    "snip": snip,
    "iterative_snip": functools.partial(iterative_snip, rounds=3),
    "force": functools.partial(force, rounds=3),
    "grasp": grasp,
    "synflow": functools.partial(synflow, rounds=5),
    "obd": obd,
    "obs": functools.partial(obs, block_size=5),
    "sparsegpt": sparsegpt,
    "gem_miner": functools.partial(gem_miner, epochs=6),
    "edge_popup": functools.partial(edge_popup, epochs=2),
}
TRAININGS = {
    "gradual_magnitude": functools.partial(
        gradual_magnitude, train=recipe(), update_every=2
    ),
    "rigl": functools.partial(rigl, train=recipe(), update_every=2),
    "sparse_evolution": functools.partial(
        sparse_evolution, train=recipe(), update_every=2
    ),
    "imp": lambda system, density, **knobs: imp(
        system, train=recipe(), densities=(1.0, density), **knobs
    ),
    "early_bird": functools.partial(early_bird, train=recipe()),
    "early_bird of weights": functools.partial(
        early_bird, train=recipe(), unit="weight"
    ),
}
EVERY = PRUNERS | TRAININGS
EACH = pytest.mark.parametrize("prune", EVERY.values(), ids=EVERY.keys())


def test_the_guard_bites(refused):
    changes = [
        lambda net: net[0].weight.data.mul_(2.0),
        lambda net: net[0].weight.grad.zero_(),
        lambda net: setattr(net[0].weight, "grad", None),
        lambda net: net[1].running_mean.add_(1.0),
        lambda net: net.eval(),
        lambda net: net[1].requires_grad_(False),
        lambda net: net[0].register_forward_hook(lambda *_: None),
        lambda net: setattr(net[0], "weight", nn.Parameter(net[0].weight.clone())),
        lambda net: torch.rand(1),
    ]

    def wrong(change):
        net = used(net_of())
        with refused("no", net):
            change(net)
            raise InvalidInputError("no")

    for change in changes:
        with torch.random.fork_rng(), pytest.raises(AssertionError, match="assert"):
            wrong(change)


# -- densities ------------------------------------------------------------------------


@EACH
@pytest.mark.parametrize("density", [0.0, -0.5, 1.5, math.nan], ids=str)
def test_densities_outside_are_refused(prune, density, refused):
    net = used(net_of())
    with refused(f"A density of {density} was asked for.*Pass the fraction", net):
        prune(system_of(net), density=density)


@pytest.mark.parametrize("prune", PRUNERS.values(), ids=PRUNERS.keys())
def test_densities_beyond_the_survivors_are_refused(prune, refused):
    net = used(net_of())
    masks = random(system_of(net), density=1.0).masks
    masks["4.weight"][1:] = False  # 5 of 15 are left, and 25 of all 35
    with refused(r"Density .* keeps .*weights of .*, but only (25|5) surv", net):
        prune(system_of(net).with_mask(masks), density=0.95)


@pytest.mark.parametrize("prune", TRAININGS.values(), ids=TRAININGS.keys())
def test_trainings_that_start_dense_refuse_a_mask(prune, refused):
    net = used(net_of())
    masks = random(system_of(net), density=0.5).masks
    with refused(r"already.*Pass .*with_mask\(\{\}\)", net):
        prune(system_of(net).with_mask(masks), density=0.3)


@EACH
def test_a_mask_that_no_ticket_would_carry_is_refused(prune, refused):
    net = used(net_of())
    masked = system_of(net).with_mask({"0.bias": torch.arange(5) > 1})
    with refused(r"2 (weights|entries) of .*already.*Pass .*with_mask\(\{", net):
        prune(masked, density=0.5)


def test_a_mask_beside_the_weights_that_prunes_nothing_is_fine():
    net = net_of()
    system = system_of(net)
    whole = system.with_mask({"0.bias": torch.ones(5, dtype=torch.bool)})
    ticket = magnitude(whole, density=0.5)
    assert same(ticket.masks, magnitude(system, density=0.5).masks)
    # the remedy for one that does: put it on afterwards
    both = ticket.masks | {"0.bias": torch.arange(5) > 1}
    found = system.with_ticket(ticket).with_mask(both)
    assert found.size == system.with_ticket(ticket).size - 2


BY_LAYER = {
    "from_scores": lambda s: from_scores(
        s, {n: m.double() for n, m in s.masks.items()}, density=0.8, scope="layer"
    ),
    "layer_densities": lambda s: magnitude(
        s, layer_densities={"0.weight": 0.1, "4.weight": 0.8}
    ),
    "magnitude": lambda s: magnitude(s, density=0.8, scope="layer"),
    "random": lambda s: random(s, density=0.8, scope="layer"),
    "obd": lambda s: obd(s, density=0.8, scope="layer"),
    "obs": lambda s: obs(s, density=0.8, scope="layer", block_size=5),
    "sparsegpt": lambda s: sparsegpt(s, density=0.8),
    "edge_popup": lambda s: edge_popup(s, density=0.8, epochs=2),
}


@pytest.mark.parametrize("prune", BY_LAYER.values(), ids=BY_LAYER.keys())
def test_a_layer_that_cannot_reach_its_density_is_named(prune, refused):
    net = used(net_of())
    masks = random(system_of(net), density=1.0).masks
    masks["4.weight"][0] = False
    with refused(r"0\.8 keeps 12 of 15 weights of 4\.weight, but only 10 surv", net):
        prune(system_of(net).with_mask(masks))


def test_no_weight_for_every_layer_is_refused(refused):
    for prune in (TRAININGS["rigl"], TRAININGS["sparse_evolution"]):
        net = used(net_of())
        with refused("keeps 1 weights, and there are 2 layers", net):
            prune(system_of(net), density=0.03)


# -- scores ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_scores_that_are_not_finite_are_refused(value, refused):
    net = used(net_of())
    scores = {"0.weight": torch.rand(5, 4), "4.weight": torch.rand(3, 5)}
    scores["4.weight"][1, 2] = value
    with refused(r"1 of 15 scores of '4\.weight' are NaN or infinite", net):
        from_scores(system_of(net), scores, density=0.5)


@EACH
@pytest.mark.parametrize("value", [math.nan, math.inf], ids=str)
def test_states_that_are_not_finite_are_refused(prune, value, refused):
    net = used(net_of())
    system = system_of(net)
    state = system.state
    state[3] = value
    with refused(
        r"NaN|not finite|is nan", net, error=(InvalidInputError, ConvergenceError)
    ):
        prune(system.with_state(state), density=0.5)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_scores_that_are_all_equal_are_refused(scope, refused):
    net = used(net_of())
    scores = {"0.weight": torch.full((5, 4), 3.0), "4.weight": torch.full((3, 5), 3.0)}
    where = "all layers" if scope == "global" else "'0.weight'"
    with refused(f"scores of {where} are all 3, and .* flat index would", net):
        from_scores(system_of(net), scores, density=0.5, scope=scope)


# random masks, signs and what is trained from zero do not need a state to choose by
CHOOSING = {
    name: prune
    for name, prune in PRUNERS.items()
    if name not in {"random", "erk", "gem_miner", "edge_popup"}
}


@pytest.mark.parametrize("prune", CHOOSING.values(), ids=CHOOSING.keys())
def test_a_state_of_zeros_leaves_no_choice(prune, refused):
    net = used(net_of())
    system = system_of(net)
    zero = system.with_state(torch.zeros_like(system.state))
    with refused("scores .* are all 0, and|no path of kept weights", net):
        prune(zero, density=0.5)


# -- tickets of other models ----------------------------------------------------------


def enforce(ticket: Ticket, net: nn.Module) -> None:
    with ticket.enforced(net, torch.optim.SGD(net.parameters(), lr=0.1)):
        raise AssertionError("not reached")


def check(ticket: Ticket, net: nn.Module) -> None:
    sanity_check(
        ticket,
        system_of(net),
        train=recipe(),
        held_out=classes(9, 4, 3),
        make_model=lambda _: net_of(),
        seeds=(0, 1),
        how="serial",
    )


TAKING = {
    "apply_": lambda t, net: t.apply_(net),
    "enforced": enforce,
    "to_torch_prune": lambda t, net: t.to_torch_prune(net),
    "with_ticket": lambda t, net: system_of(net).with_ticket(t),
    "with_mask": lambda t, net: system_of(net).with_mask(t.masks),
    "GradientSystem": lambda t, net: GradientSystem(
        net, CE, classes(20, 4, 3), mask=t.masks
    ),
    "from_scores": lambda t, net: from_scores(
        system_of(net), {n: m.double() for n, m in t.masks.items()}, density=0.5
    ),
    "sanity_check": check,
    "compare": lambda t, net: compare(random(system_of(net), density=0.5), t),
    "union": lambda t, net: union(random(system_of(net), density=0.5), t),
    "reinitialise": lambda t, net: reinitialise(t, dict(net.named_parameters())),
    "to_sparse": lambda t, net: to_sparse(t, net),
    "reduce": lambda t, net: reduce(t, net, example=torch.zeros(2, 4).double()),
}
TAKEN = pytest.mark.parametrize("take", TAKING.values(), ids=TAKING.keys())


@TAKEN
def test_a_ticket_of_other_shapes_says_which(take, refused):
    net, wider = used(net_of()), net_of(hidden=6)
    ticket = random(system_of(wider), density=0.5)
    # the name, the shape of the one and the shape of the other
    with refused(r"(?s)0\.weight(?=.*\(6, 4\))(?=.*\(5, 4\))", net, wider):
        take(ticket, net)


@TAKEN
def test_a_ticket_of_other_names_says_which(take, refused):
    net, moved = used(net_of()), nn.Sequential(nn.Identity(), *net_of())
    ticket = random(system_of(moved), density=0.5)
    # 1.weight is a norm's scale in the model, 4.weight its head
    with refused(r"[014]\.weight.*\(5, 4\)|missing .*4\.weight", net, moved):
        take(ticket, net)


def test_a_run_of_another_model_says_which(refused):
    net = used(net_of())
    run = recipe()(system_of(net_of(hidden=6)), seed=0)
    with refused(r"run has '0\.weight' of shape \(6, 4\), the model \(5, 4\)", net):
        run.apply_(net)


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        ("0:0;1:1", r"no source to stage1_block3 \(stage 0\)"),
        ("0:0;1:1,2|0:0;1:1,2|0:0", r"no source to stage3_block2, stage3_block3"),
    ],
    ids=str,
)
def test_a_mapping_that_leaves_a_block_unwritten_names_it(mapping, says, refused):
    def make(depth):
        return resnet(depth, 4, in_shape=(2, 8, 8), classes=3)

    source, target = make(14), make(20).train()
    ticket = Ticket.make(
        {n: part > 0 for n, part in source.named_parameters() if part.ndim > 1},
        dict(source.named_parameters()),
        dict(source.named_buffers()),
    )
    with refused(says, source, target):
        stretch(ticket, target, mapping)
    deep = Ticket.make(
        {n: part > 0 for n, part in target.named_parameters() if part.ndim > 1},
        dict(target.named_parameters()),
        dict(target.named_buffers()),
    )
    with refused(r"no source to stage1_block2 \(stage 0\)", source, target):
        squeeze(deep, source, "0:0")


# -- what a method needs --------------------------------------------------------------


def test_a_penalty_that_collapses_a_layer_names_both(refused):
    net = used(net_of())
    with refused(
        r"nothing is kept of .*4\.weight .* λ = 5\.0 .*Pass a penalty \(λ\) below 5\.0",
        net,
        error=ConvergenceError,
    ):
        gem_miner(system_of(net), density=0.5, epochs=11, penalty=5.0)


def test_early_bird_without_batch_norm_says_what_to_do(refused):
    net = used(small_net(widths=(4, 5, 3)))
    with refused("no trainable one. Pass unit='weight'", net):
        early_bird(system_of(net), train=recipe(), density=0.5)
    knobs = {"unit": "weight", "tolerance": 0.5}
    found = early_bird(system_of(net), train=recipe(), density=0.5, **knobs)
    assert found.ticket.kept == kept_count(0.5, 35)


# all but early_bird, which prunes channels of norms
WEIGHTS = {name: prune for name, prune in EVERY.items() if name != "early_bird"}


@pytest.mark.parametrize("prune", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_a_model_without_prunable_weights_is_refused(prune, refused):
    net = used(nn.Sequential(nn.BatchNorm1d(4), nn.Tanh()).double())
    with refused("no prunable weight", net):
        prune(GradientSystem(net, CE, classes(20, 4, 4)), density=0.5)


@pytest.mark.parametrize("prune", WEIGHTS.values(), ids=WEIGHTS.keys())
def test_parametrised_layers_are_named(prune, refused):
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3).double())
    net = used(nn.Sequential(layer))
    with (
        pytest.warns(NumericalWarning, match=r": 0\.weight, .*remove_parametrizations"),
        refused("no prunable weight .*parametrisation", net),
    ):
        prune(system_of(net), density=0.5)


# -- modules and tensors used twice ---------------------------------------------------


class Twice(nn.Module):
    """One layer called twice, and two layers of one weight."""

    def __init__(self):
        nn.Module.__init__(self)
        self.first = nn.Linear(4, 4)
        self.again = self.first
        self.tied = nn.Linear(4, 4)
        self.tied.weight = self.first.weight
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = self.again(self.first(x).tanh()).tanh()
        return self.head(self.norm(self.tied(h)))


def twice() -> nn.Module:
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        return used(Twice().double())


@pytest.mark.parametrize("prune", PRUNERS.values(), ids=PRUNERS.keys())
def test_what_is_used_twice_is_counted_once(prune, untouched):
    net = twice()
    before = look(net)
    with untouched():
        ticket = prune(system_of(net), density=0.5)
    assert same(look(net), before)
    assert ticket.prunable_size == 16 + 12
    assert list(ticket.masks) == ["first.weight", "head.weight"]
    other = copy.deepcopy(net)
    ticket.apply_(other)
    assert torch.equal(other.tied.weight != 0, other.first.weight != 0)
    assert other.again is other.first


@pytest.mark.parametrize("other", ["again.weight", "tied.weight"])
def test_a_second_name_of_a_weight_is_refused(other, refused):
    net = twice()
    system = system_of(net)
    scores = {"first.weight": torch.eye(4), "head.weight": torch.eye(3, 4)}
    with refused(rf"too much for \['{other}'\]", net):
        from_scores(system, scores | {other: torch.eye(4)}, density=0.5)
    ticket = random(system, density=0.5)
    both = Ticket.make(
        ticket.masks | {other: ticket.masks["first.weight"]},
        ticket.state | {other: ticket.state["first.weight"]},
        ticket.buffers,
    )
    with refused(rf"The ticket's parameters do not fit: .*{other}", net):
        both.apply_(net)
    with refused(other, net):
        system.with_ticket(both)


# -- arguments of other kinds ---------------------------------------------------------


@EACH
@pytest.mark.parametrize("seed", [None, 1.5, "a"], ids=repr)
def test_seeds_that_are_no_integers_are_refused(prune, seed, refused):
    net = used(net_of())
    with refused(rf"seed is {seed!r}\. Pass an integer", net):
        prune(system_of(net), density=0.5, seed=seed)


# what takes a system, with what else it needs
TAKES_A_SYSTEM = {name: (thing, {"density": 0.5}) for name, thing in EVERY.items()} | {
    "imp": (imp, {"densities": (1.0, 0.5), "train": recipe()}),
    "from_scores": (from_scores, {"scores": {}, "density": 0.5}),
    "sanity_check": (
        functools.partial(sanity_check, None),
        {"train": recipe(), "seeds": (0, 1)},
    ),
    "erk_densities": (pruning.erk_densities, {"density": 0.5}),
    **{
        name: (getattr(pruning, name), {})
        for name in pruning.__all__
        if name.endswith(("_scores", "_diagonal")) and name != "from_scores"
    },
}


@pytest.mark.parametrize("name", TAKES_A_SYSTEM)
def test_a_model_is_no_system(name, refused):
    prune, knobs = TAKES_A_SYSTEM[name]
    for given in (net_of(), None):
        says = rf"^system is a {type(given).__name__}\. Pass a dynprune\.GradientSys"
        with refused(says):
            prune(given, **knobs)


@pytest.mark.parametrize("name", ["imp", "gradual_magnitude"])
def test_a_training_that_leaves_equal_weights_chooses_none(name, refused):
    net = net_of()
    with torch.no_grad():
        for part in net.parameters():
            part.fill_(1.0)
    still = Recipe(lambda params: torch.optim.SGD(params, lr=0.0), steps=4)
    knobs = {"density": 0.5, "update_every": 2}
    if name == "imp":
        knobs = {"densities": (1.0, 0.5)}
    with refused("scores of all layers are all 1, and"):
        getattr(pruning, name)(system_of(net), train=still, **knobs)


def scores_of(kind) -> dict:
    whole = torch.arange(35.0)
    return {
        "0.weight": kind(whole[:20].view(5, 4)),
        "4.weight": kind(whole[20:].view(3, 5)),
    }


IMP = functools.partial(imp, densities=(1.0, 0.5), train=recipe())
BY_RATE = functools.partial(IMP, scope="layer")
CHECK = functools.partial(
    sanity_check,
    train=recipe(),
    held_out=classes(9, 4, 3),
    make_model=lambda _: net_of(),
    seeds=(0, 1),
    how="serial",
)


def checked(system, **knobs):
    return CHECK(random(system, density=0.5), system, **knobs)


# a call on a system, and what it says
WRONG_KINDS = {
    "scores of NumPy": (
        lambda s: from_scores(s, scores_of(lambda t: t.numpy()), density=0.5),
        r"scores of '0\.weight' are of ndarray\. Pass a tensor of real",
    ),
    "scores of lists": (
        lambda s: from_scores(s, scores_of(lambda t: t.tolist()), density=0.5),
        r"scores of '0\.weight' are of list\. Pass a tensor of real",
    ),
    "scores of None": (
        lambda s: from_scores(s, scores_of(lambda _: None), density=0.5),
        r"scores of '0\.weight' are of NoneType\. Pass a tensor of real",
    ),
    "complex scores": (
        lambda s: from_scores(s, scores_of(lambda t: t + 1j), density=0.5),
        r"scores of '0\.weight' are of torch\.complex64\. Pass a tensor of real",
    ),
    "no scores": (
        lambda s: from_scores(s, None, density=0.5),
        r"Scores came as a NoneType\. Pass a mapping .*0\.weight, 4\.weight",
    ),
    "scores in a list": (
        lambda s: from_scores(s, [torch.ones(5, 4)], density=0.5),
        r"Scores came as a list\. Pass a mapping .*0\.weight, 4\.weight",
    ),
    "masks in a list": (
        lambda s: pruning.snip_scores(s, masks=[torch.ones(5, 4).bool()]),
        r"Masks came as a list\. Pass a mapping .*0\.weight, 4\.weight",
    ),
    "densities of layers": (
        lambda s: magnitude(s, layer_densities=0.5),
        r"Layer densities came as a float\. Pass a mapping",
    ),
    "magnitude of a model": (
        lambda s: magnitude(s, density=0.5, state=s.module),
        r"state is a Sequential\. Pass .*dict\(model\.named_parameters\(\)\)",
    ),
    "lamp of a number": (
        lambda s: lamp(s, density=0.5, state=3.0),
        r"state is a float\. Pass .*dict\(model\.named_parameters\(\)\)",
    ),
    "train": (
        lambda s: imp(s, densities=(1.0, 0.5), train=None),
        r"train is a NoneType\. Pass a dynprune\.training\.Recipe",
    ),
    "fine_tune": (
        lambda s: IMP(s, rewind="fine-tune", fine_tune=0.1),
        r"fine_tune is a float\. Pass a dynprune\.training\.Recipe",
    ),
    "after_level": (
        lambda s: IMP(s, after_level="print"),
        r"after_level is 'print'\. Pass a function",
    ),
    "groups": (
        lambda s: IMP(s, scope="grouped", groups=3),
        r"groups is 3\. Pass a mapping of weight names to group names, or a function",
    ),
    "rates in a list": (
        lambda s: BY_RATE(s, rates=[1.0]),
        r"rates is \[1\.0\]\. Pass a mapping of patterns to numbers",
    ),
    "patterns": (
        lambda s: BY_RATE(s, rates={3: 1.0}),
        r"The rate of 3 is for nothing\. There are: 0\.weight, 4\.weight",
    ),
    "a rate": (
        lambda s: BY_RATE(s, rates={"*": "a"}),
        r"The rate of '\*' is 'a'\. Pass 0",
    ),
    "batch_size": (
        lambda s: edge_popup(s, density=0.5, epochs=1, batch_size=1.5),
        r"batch_size is 1\.5\. Pass an integer",
    ),
    "seeds": (lambda s: checked(s, seeds=3), r"with seeds 3\. Pass at least two"),
    "make_model": (
        lambda s: checked(s, make_model=s.module),
        r"make_model is a Sequential\. Pass a function from a seed",
    ),
    "a number of tickets": (
        lambda s: CHECK(3, s),
        r"tickets came as a int\. Pass one for all, or one for each seed",
    ),
}
for value in ("a", None):
    as_number = {
        "temperature": lambda s, v: grasp(s, density=0.5, temperature=v),
        "temperature of scores": lambda s, v: pruning.grasp_scores(s, temperature=v),
        "damping of obs": lambda s, v: obs(s, density=0.5, damping=v),
        "damping of sparsegpt": lambda s, v: sparsegpt(s, density=0.5, damping=v),
        "penalty": lambda s, v: gem_miner(s, density=0.5, epochs=6, penalty=v),
        "drop of rigl": lambda s, v: EVERY["rigl"](s, density=0.5, drop=v),
        "drop of set": lambda s, v: EVERY["sparse_evolution"](s, density=0.5, drop=v),
        "margin": lambda s, v: checked(s, margin=v),
        "rates": lambda s, v: BY_RATE(s, rates={"4.*": v}),
    }
    WRONG_KINDS |= {
        f"{name}, {value!r}": (
            functools.partial(lambda call, v, s: call(s, v), call, value),
            rf"(?s)({name.split(' ')[0]}.*|The rate of '4\.\*') is {value!r}.*Pass ",
        )
        for name, call in as_number.items()
    }


@pytest.mark.parametrize("name", WRONG_KINDS)
def test_arguments_of_wrong_kinds_are_refused(name, refused):
    net = used(net_of())
    call, says = WRONG_KINDS[name]
    with refused(says, net):
        call(system_of(net))
