"""Gradual pruning, RigL and SET against loops and rules written out by hand."""

import copy
import math

import pytest
import torch
from hypothesis import given, strategies as st
from problems import classes, small_net
from torch import nn
from torch.optim import lr_scheduler

from dynprune.core import Cost, InvalidInputError, cite, derive_seed, generator
from dynprune.pruning import (
    cubic_densities,
    gradual_magnitude,
    kept_count,
    magnitude,
    rigl,
    sparse_evolution,
)
from dynprune.system import GradientSystem
from dynprune.training import Recipe

CE = nn.functional.cross_entropy
STEPS, BATCH, SEED = 18, 8, 4
NAMES = ("0.weight", "2.weight", "4.weight")


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-2)


def adam(parameters):
    return torch.optim.AdamW(parameters, lr=0.02, weight_decay=0.3)


def schedule(made):
    return lr_scheduler.MultiStepLR(made, [7, 12], gamma=0.5)


def rate_of(step):
    return 0.1 * (0.5 if step >= 7 else 1.0) * (0.5 if step >= 12 else 1.0)


def recipe(make=sgd, **knobs) -> Recipe:
    given = {"steps": STEPS, "batch_size": BATCH, "schedule": schedule} | knobs
    return Recipe(make, **given)


def make_net():
    return small_net(seed=3, widths=(3, 6, 5, 3))


def problem(**kwargs):
    model = make_net()
    return model, GradientSystem(model, CE, classes(20, 3, 3), **kwargs)


def batch_of(data, step):
    epoch, place = divmod(step, 3)
    order = torch.randperm(20, generator=generator(derive_seed(SEED, epoch)))
    own = order[place * BATCH : (place + 1) * BATCH]
    return data[0][own], data[1][own]


class Hand:
    """SGD with momentum, decay and masks, written out."""

    def __init__(self, net, masks):
        self.net = net
        self.named = dict(net.named_parameters())
        self.momentum = {name: torch.zeros_like(p) for name, p in self.named.items()}
        self.masks = {name: mask.clone() for name, mask in masks.items()}
        self.put(self.masks)

    def gradient(self, batch):
        loss = CE(self.net(batch[0]), batch[1])
        slopes = torch.autograd.grad(loss, list(self.named.values()))
        return dict(zip(self.named, slopes, strict=True))

    @torch.no_grad()
    def put(self, masks):
        for name, mask in masks.items():
            steady = mask & self.masks[name]
            self.momentum[name][~steady] = 0.0
            self.named[name][~mask] = 0.0
        self.masks = masks

    def step(self, batch, step):
        slopes = self.gradient(batch)
        with torch.no_grad():
            for name, part in self.named.items():
                slope = slopes[name]
                if name in self.masks:
                    slope = slope * self.masks[name]
                move = 0.9 * self.momentum[name] + (slope + 1e-2 * part)
                self.momentum[name] = move
                part.sub_(rate_of(step) * move)
                if name in self.masks:
                    part[~self.masks[name]] = 0.0


def largest(scores, places, count):
    """The ``count`` places of highest score, by sorting in Python."""
    flat = scores.reshape(-1).tolist()
    order = sorted(places, key=lambda i: (-flat[i], i))
    return order[:count]


def mask_at(places, shape):
    mask = torch.zeros(math.prod(shape), dtype=torch.bool)
    mask[list(places)] = True
    return mask.view(shape)


def places_of(mask):
    return torch.nonzero(mask.reshape(-1)).reshape(-1).tolist()


def same_end(found, hand):
    for name, mask in found.ticket.masks.items():
        assert torch.equal(mask, hand.masks[name]), name
    for name, part in found.trained.state.items():
        assert torch.allclose(part, hand.named[name].detach(), atol=1e-13), name


# -- gradual magnitude pruning --------------------------------------------------------


def test_cubic_schedule_is_that_of_the_sparsities():
    found = cubic_densities(0.1, updates=7, start_density=0.9)
    s_i, s_f, t0, n, dt = 0.1, 0.9, 30, 7, 10
    for i in range(8):
        t = t0 + i * dt
        s_t = s_f + (s_i - s_f) * (1 - (t - t0) / (n * dt)) ** 3
        assert found[i] == pytest.approx(1 - s_t, abs=1e-15)
    assert (found[0], found[-1]) == (0.9, 0.1)


def test_gradual_pruning_is_the_loop_written_by_hand(untouched):
    model, system = problem()
    before = copy.deepcopy(model.state_dict())
    with untouched():
        found = gradual_magnitude(
            system,
            density=0.2,
            train=recipe(),
            start_density=0.8,
            start_step=2,
            update_every=3,
            updates=4,
            seed=SEED,
        )
    hand = Hand(
        make_net(), {n: torch.ones_like(model.state_dict()[n]).bool() for n in NAMES}
    )
    counts = []
    for step in range(STEPS):
        if step in {2, 5, 8, 11, 14}:
            d = 0.2 + 0.6 * (1 - (step - 2) / 12) ** 3
            flat = torch.cat([hand.named[n].detach().reshape(-1) for n in NAMES]).abs()
            alive = places_of(torch.cat([hand.masks[n].reshape(-1) for n in NAMES]))
            kept = largest(flat, alive, kept_count(d, 63))
            counts.append((step, len(kept)))
            parts = mask_at(kept, (63,)).split([18, 30, 15])
            hand.put({
                n: part.view(hand.named[n].shape)
                for n, part in zip(NAMES, parts, strict=True)
            })
        hand.step(batch_of(system.data, step), step)
    same_end(found, hand)
    assert [(u.step, u.kept) for u in found.updates] == counts
    assert found.updates[0].dropped == 63 - counts[0][1]
    assert all(update.grown == 0 for update in found.updates)
    assert counts[-1][1] == found.ticket.kept == kept_count(0.2, 63)
    assert all(torch.equal(model.state_dict()[n], t) for n, t in before.items())


def test_gradual_pruning_in_each_layer():
    _, system = problem()
    found = gradual_magnitude(
        system, density=0.3, train=recipe(), update_every=2, scope="layer"
    )
    assert [int(m.sum()) for m in found.ticket.masks.values()] == [
        kept_count(0.3, size) for size in (18, 30, 15)
    ]
    # the default ends within three quarters of 18 steps
    assert [update.step for update in found.updates] == [0, 2, 4, 6, 8, 10, 12]


def test_density_one_is_plain_training():
    _, system = problem()
    plain = recipe()(system, seed=SEED)
    found = gradual_magnitude(
        system, density=1.0, train=recipe(), update_every=2, seed=SEED
    )
    assert torch.equal(found.run.state, plain.state)


# -- RigL and SET ---------------------------------------------------------------------


def test_rigl_is_the_loop_written_by_hand(untouched):
    _, system = problem()
    with untouched():
        found = rigl(
            system,
            density=0.4,
            train=recipe(),
            layers="uniform",
            update_every=4,
            drop=0.5,
            stop_step=15,
            record_every=1,
            seed=SEED,
        )
    first = system.unflatten(found.run.trajectory.snapshots[:, 0])
    hand = Hand(make_net(), {name: first[name] != 0 for name in NAMES})
    again = 0
    for step in range(STEPS):
        batch = batch_of(system.data, step)
        if step not in {4, 8, 12}:
            hand.step(batch, step)
            continue
        slopes, after = hand.gradient(batch), {}
        for name in NAMES:
            weight, mask = hand.named[name].detach(), hand.masks[name]
            active = places_of(mask)
            k = int(len(active) * 0.5 / 2 * (1 + math.cos(math.pi * step / 15)))
            stay = largest(weight.abs(), active, len(active) - k)
            free = [i for i in range(mask.numel()) if i not in stay]
            grown = largest(slopes[name].abs(), free, k)
            again += len(set(grown) & set(active))
            after[name] = mask_at([*stay, *grown], mask.shape)
        hand.put(after)
    same_end(found, hand)
    assert [update.step for update in found.updates] == [4, 8, 12]
    assert sum(update.grown for update in found.updates) > 0
    assert all(u.grown == u.dropped and u.kept == 25 for u in found.updates)
    # a dense gradient takes the place of a step
    assert found.cost == Cost(gradients=6.0, steps=STEPS)


def test_set_drops_the_smallest_and_grows_at_random(untouched):
    _, system = problem()
    knobs = {
        "density": 0.75,
        "train": recipe(),
        "layers": "uniform",
        "update_every": 4,
        "drop": 0.5,
        "record_every": 1,
    }
    with untouched():
        found = sparse_evolution(system, **knobs, seed=SEED)
    states = found.run.trajectory.snapshots
    before, after = (system.unflatten(states[:, t]) for t in (4, 5))
    grown = 0
    for name in NAMES:
        old, new = before[name] != 0, after[name] != 0
        k = int(int(old.sum()) * 0.25 * (1 + math.cos(math.pi * 4 / 13)))
        stay = largest(before[name].abs(), places_of(old), int(old.sum()) - k)
        assert new.reshape(-1)[stay].all()
        assert int(new.sum()) == int(old.sum())
        fresh = new & ~old
        grown += int(fresh.sum())
        # grown weights start at zero without momentum and make the step: −η g
        slope = after[name][fresh] / -rate_of(4)
        twin = make_net()
        values = dict(before) | {
            n: torch.where(after[n] != 0, before[n], 0.0) for n in NAMES
        }
        twin.load_state_dict(values)
        batch = batch_of(system.data, 4)
        loss = CE(twin(batch[0]), batch[1])
        (expected,) = torch.autograd.grad(loss, dict(twin.named_parameters())[name])
        assert torch.allclose(slope, expected[fresh], atol=1e-12)
    assert found.updates[0].grown == grown > 0
    other = sparse_evolution(system, **knobs, seed=SEED + 1)
    again = sparse_evolution(system, **knobs, seed=SEED)
    masks = found.ticket.masks
    assert all(torch.equal(again.ticket.masks[n], m) for n, m in masks.items())
    assert not all(torch.equal(other.ticket.masks[n], m) for n, m in masks.items())


def test_growth_is_uniform_over_what_is_not_kept():
    from dynprune.pruning._drop_and_grow import drop_and_grow

    weight = torch.tensor([5.0, 4.0, 0.1, 0.0, 0.0, 0.0])
    mask = torch.tensor([True, True, True, False, False, False])
    counts = torch.zeros(6)
    draw = torch.Generator().manual_seed(0)
    for _ in range(800):
        new = drop_and_grow(weight, mask, torch.rand(6, generator=draw), count=1)
        assert int(new.sum()) == 3
        assert new[:2].all()
        counts += new
    # four places share one weight: 4 standard errors of 800 draws
    assert ((counts[2:] / 800 - 0.25).abs() < 4 * (0.25 * 0.75 / 800) ** 0.5).all()


@pytest.mark.parametrize("make", [sgd, adam], ids=["SGD", "AdamW"])
@pytest.mark.parametrize("layers", ["erk", "uniform"])
@pytest.mark.parametrize("method", [rigl, sparse_evolution], ids=lambda m: m.__name__)
def test_the_count_is_the_same_at_every_step(method, layers, make):
    _, system = problem()
    found = method(
        system,
        density=0.35,
        train=recipe(make),
        layers=layers,
        update_every=3,
        record_every=1,
        seed=2,
    )
    size = kept_count(0.35, 63)
    assert [update.kept for update in found.updates] == [size] * 4
    assert found.ticket.kept == found.trained.kept == size
    own = {name: int(mask.sum()) for name, mask in found.ticket.masks.items()}
    for state in found.run.trajectory.snapshots.T:
        named = system.unflatten(state)
        alive = {name: int((named[name] != 0).sum()) for name in NAMES}
        assert all(alive[name] <= own[name] for name in NAMES)
    # a weight grown into a unit that nothing reads has no gradient and stays at zero
    assert sum(alive.values()) >= size - 2
    for name, mask in found.ticket.masks.items():
        assert not found.trained.state[name][~mask].any()


def test_ticket_starts_where_training_did_and_trained_where_it_ended():
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    )
    x, y = classes(20, 16, 3)
    net[4].bias.requires_grad_(False)
    system = GradientSystem(net, CE, (x.float().view(20, 1, 4, 4), y))
    start = copy.deepcopy(net.state_dict())
    for found in (
        rigl(system, density=0.5, train=recipe(), update_every=3),
        gradual_magnitude(system, density=0.5, train=recipe(), update_every=3),
    ):
        ticket, trained = found.ticket, found.trained
        values = ticket.state | ticket.buffers
        assert all(torch.equal(values[n], t) for n, t in start.items())
        assert int(trained.buffers["1.num_batches_tracked"]) == STEPS
        assert torch.equal(trained.state["4.bias"], start["4.bias"])
        assert not torch.equal(trained.state["0.weight"], start["0.weight"])
        assert all(torch.equal(trained.masks[n], m) for n, m in ticket.masks.items())
        trained.apply_(net)
        assert int((net[0].weight != 0).sum()) == int(ticket.masks["0.weight"].sum())
        net.load_state_dict(start)
        assert trained.cost == found.cost == found.run.cost


def test_rigl_finds_what_matters_where_random_masks_do_not():
    # the target needs 3 of 12 inputs; the masks start at random
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(64, 12, generator=draw, dtype=torch.float64)
    model = nn.Linear(12, 1, bias=False).double()
    true = torch.zeros(1, 12, dtype=torch.float64)
    true[0, [1, 6, 10]] = torch.tensor([2.0, -1.0, 1.5], dtype=torch.float64)
    system = GradientSystem(model, nn.functional.mse_loss, (x, x @ true.T))
    plan = Recipe(lambda p: torch.optim.SGD(p, lr=0.1), steps=60, batch_size=64)
    found = rigl(system, density=0.25, train=plan, update_every=4, drop=0.7)
    assert places_of(found.ticket.masks["weight"]) == [1, 6, 10]


# -- counts of layers -----------------------------------------------------------------


def counts_of(density, layers, widths=(3, 6, 5, 3)):
    from dynprune.pruning._layer_counts import layer_counts

    model = small_net(widths=widths)
    data = classes(8, widths[0], widths[-1])
    return layer_counts(GradientSystem(model, CE, data), density=density, layers=layers)


@given(density=st.floats(0.06, 1.0))
def test_layer_counts_add_up(density):
    for layers in ("erk", "uniform"):
        counts = counts_of(density, layers)
        assert sum(counts.values()) == kept_count(density, 63)
        sizes = (18, 30, 15)
        assert all(1 <= c <= n for c, n in zip(counts.values(), sizes, strict=True))
        if layers == "uniform":
            pairs = zip(counts.values(), sizes, strict=True)
            assert all(abs(count - density * size) < 1.5 for count, size in pairs)


def test_erk_solves_its_equation():
    # 40-30-20-10: p = (in + out) / (in · out), no layer is full at d = 0.1
    widths = (40, 30, 20, 10)
    counts = counts_of(0.1, "erk", widths)
    sums, sizes = [70, 50, 30], [1200, 600, 200]
    scale = 0.1 * 2000 / sum(sums)
    for count, both in zip(counts.values(), sums, strict=True):
        assert abs(count - scale * both) < 1
    # at d = 0.8 the last layer is full: the rest is solved without it
    counts = list(counts_of(0.8, "erk", widths).values())
    assert counts[2] == 200
    scale = (0.8 * 1800 - 0.2 * 200) / 120
    assert all(scale * both < size for both, size in zip(sums[:2], sizes, strict=False))
    pairs = zip(counts[:2], sums[:2], strict=True)
    assert all(abs(count - scale * both) < 1 for count, both in pairs)
    assert sum(counts) == 1600


# -- refusals -------------------------------------------------------------------------

SOON = {"update_every": 3}


@pytest.mark.parametrize(
    ("method", "knobs", "says"),
    [
        (rigl, SOON | {"density": 0.0}, r"density of 0\.0"),
        (rigl, SOON | {"density": 0.02}, "keeps 1 weights, and there are 3 layers"),
        (rigl, {"update_every": 0}, "update_every is 0"),
        (rigl, {"update_every": 13}, "every 13 steps below step 13 leaves none"),
        (rigl, SOON | {"stop_step": 19}, "stop_step is 19, beyond training of 18"),
        (rigl, SOON | {"drop": 1.0}, r"drop is 1\.0"),
        (rigl, SOON | {"layers": "er"}, "Unknown layers 'er'"),
        (rigl, SOON | {"train": print}, "train is a builtin_function_or_method"),
        (sparse_evolution, {"update_every": 100}, "leaves none"),
        (sparse_evolution, SOON | {"drop": -0.1}, r"drop is -0\.1"),
        (gradual_magnitude, {"update_every": 0}, "update_every is 0"),
        (gradual_magnitude, {"update_every": 100}, "end at step 100, beyond training"),
        (gradual_magnitude, SOON | {"updates": 6}, "end at step 18, beyond training"),
        (gradual_magnitude, SOON | {"updates": 0}, "updates is 0"),
        (gradual_magnitude, SOON | {"start_step": -1}, "start_step is -1"),
        (gradual_magnitude, SOON | {"start_density": 0.1}, r"is 0\.1, below the dens"),
        (gradual_magnitude, SOON | {"scope": "node"}, "scope is 'node'"),
        (gradual_magnitude, SOON | {"density": 1.2}, r"density of 1\.2"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)[:40]),
)
def test_bad_knobs_are_refused(method, knobs, says):
    _, system = problem()
    with pytest.raises(InvalidInputError, match=says):
        method(system, **({"density": 0.3, "train": recipe()} | knobs))


@pytest.mark.parametrize(
    "method", [rigl, sparse_evolution, gradual_magnitude], ids=lambda m: m.__name__
)
def test_systems_that_do_not_fit_are_refused(method):
    _, system = problem()
    masked = system.with_ticket(magnitude(system, density=0.5))
    with pytest.raises(InvalidInputError, match="31 weights of the system are already"):
        method(masked, density=0.3, train=recipe(), **SOON)
    _, frozen = problem(parameters="*.bias")
    with pytest.raises(InvalidInputError, match="no prunable weight"):
        method(frozen, density=0.3, train=recipe(), **SOON)
    newton = Recipe(lambda p: torch.optim.LBFGS(p), steps=18)
    with pytest.raises(InvalidInputError, match="LBFGS evaluates the loss several"):
        method(system, density=0.3, train=newton, **SOON)


def test_what_a_person_reads():
    _, system = problem()
    found = rigl(system, density=0.4, train=recipe(), **SOON)
    assert "kept      25 of 63" in found.summary()
    assert "4, steps 3 to 12" in found.summary()
    assert repr(found).startswith("SparseTraining('pruning.rigl', density=0.3968")
    frame = found.to_frame()
    assert frame["step"].tolist() == [3, 6, 9, 12]
    assert frame["kept"].tolist() == [25] * 4
    assert found.plot().get_xlabel() == "optimiser step"
    for method, words in (
        (rigl, "Rigging the Lottery"),
        (sparse_evolution, "adaptive sparse"),
        (gradual_magnitude, "To prune, or not"),
    ):
        run = method(system, density=0.4, train=recipe(), **SOON)
        assert words in " ".join(cite(run).split())
