"""Every way of rewinding against a training loop written out by hand."""

import copy
import itertools

import pytest
import torch
from problems import classes, small_net
from torch import nn
from torch.optim import lr_scheduler

from dynprune.core import (
    Cost,
    InvalidInputError,
    NumericalWarning,
    cite,
    derive_seed,
    generator,
)
from dynprune.pruning import (
    IMPRun,
    densities_by_factor,
    densities_by_share,
    densities_by_target,
    imp,
    kept_count,
)
from dynprune.system import GradientSystem
from dynprune.tickets import zeros_where_pruned
from dynprune.training import Recipe

CE = nn.functional.cross_entropy
DENSITIES = (1.0, 0.6, 0.3)
STEPS, BATCH, SEED = 7, 8, 5
WEIGHTS = ("0.weight", "3.weight")


def make_net() -> nn.Sequential:
    draw = torch.Generator().manual_seed(1)
    net = nn.Sequential(
        nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
    ).double()
    with torch.no_grad():
        for part in net.parameters():
            part.copy_(torch.randn(part.shape, generator=draw, dtype=part.dtype))
    return net


def optimizer(parameters, lr=0.1):
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9, weight_decay=1e-2)


def schedule(made):
    return lr_scheduler.MultiStepLR(made, [3, 5], gamma=0.3)


def recipe(**knobs) -> Recipe:
    given = {"steps": STEPS, "batch_size": BATCH, "schedule": schedule} | knobs
    return Recipe(optimizer, **given)


def problem():
    net = make_net()
    return net, GradientSystem(net, CE, classes(20, 3, 3))


def rate_of(step: int) -> float:
    # written out, not asked from the scheduler
    return 0.1 * (0.3 if step >= 3 else 1.0) * (0.3 if step >= 5 else 1.0)


def batch_of(data, step):
    epoch, place = divmod(step, 3)  # 20 examples in batches of 8, 8 and 4
    order = torch.randperm(20, generator=generator(derive_seed(SEED, epoch)))
    own = order[place * BATCH : (place + 1) * BATCH]
    return data[0][own], data[1][own]


def by_hand(values, masks, data, start, stop, *, rate=rate_of):
    """Train from ``values`` (parameters and buffers), with a fresh momentum."""
    net = make_net().train()
    net.load_state_dict(values)
    named = dict(net.named_parameters())
    with torch.no_grad():
        for name, mask in masks.items():
            named[name].mul_(mask)
    momentum = {}
    for step in range(start, stop):
        x, y = batch_of(data, step)
        loss = CE(net(x), y)
        slopes = torch.autograd.grad(loss, list(named.values()))
        with torch.no_grad():
            for (name, part), slope in zip(named.items(), slopes, strict=True):
                if name in masks:
                    slope = slope * masks[name]
                move = slope + 1e-2 * part
                if name in momentum:
                    move = 0.9 * momentum[name] + move
                momentum[name] = move
                part.sub_(rate(step) * move)
                if name in masks:
                    part.mul_(masks[name])
    return {name: part.detach().clone() for name, part in net.state_dict().items()}


def magnitude_masks(values, masks, density):
    flat = torch.cat([values[name].abs().reshape(-1) for name in WEIGHTS])
    alive = torch.cat([masks[name].reshape(-1) for name in WEIGHTS])
    ranked = torch.where(alive.bool(), flat, -1.0).argsort(descending=True, stable=True)
    kept = torch.zeros(len(flat), dtype=torch.double)
    kept[ranked[: kept_count(density, len(flat))]] = 1.0
    parts = kept.split([values[name].numel() for name in WEIGHTS])
    pairs = zip(WEIGHTS, parts, strict=True)
    return {name: part.view(values[name].shape) for name, part in pairs}


def close(found, expected):
    """Equal to the last bits: a step has a rounding of its own order of operations."""
    assert list(found) == list(expected)
    for name, part in found.items():
        assert torch.allclose(part.double(), expected[name].double(), atol=1e-14), name


def loop(net, data, rewind, k):
    """IMP with each kind of rewinding, written out."""
    initial = {n: t.detach().clone() for n, t in net.state_dict().items()}
    ones = {name: torch.ones_like(initial[name]) for name in WEIGHTS}
    if rewind == "weights":
        origin = by_hand(initial, {}, data, 0, k)
        trained = by_hand(origin, ones, data, k, STEPS)
    else:
        origin = initial
        trained = by_hand(initial, ones, data, 0, STEPS)
    levels, masks = [(origin, ones, trained)], ones
    for density in DENSITIES[1:]:
        masks = magnitude_masks(trained, masks, density)
        begin = origin if rewind == "weights" else trained
        rate = (lambda _: rate_of(STEPS - 1)) if rewind == "fine-tune" else rate_of
        trained = by_hand(begin, masks, data, k, STEPS, rate=rate)
        levels.append((begin, masks, trained))
    return levels


@pytest.mark.parametrize("k", [0, 4])
@pytest.mark.parametrize("rewind", ["weights", "learning-rate", "fine-tune"])
def test_levels_are_the_loop_written_by_hand(rewind, k, untouched):
    net, system = problem()
    before = copy.deepcopy(net.state_dict())
    with untouched():
        run = imp(
            system,
            densities=DENSITIES,
            train=recipe(),
            rewind=rewind,
            rewind_step=k,
            seed=SEED,
        )
    expected = loop(net, system.data, rewind, k)
    for n, (begin, masks, trained) in enumerate(expected):
        ticket, level = run.tickets[n], run.levels[n]
        assert ticket.kept == kept_count(DENSITIES[n], 36)
        for name, mask in ticket.masks.items():
            assert torch.equal(mask, masks[name].bool())
            assert not level.state[name][~mask].any()
        started = {k: t * masks[k] if k in masks else t for k, t in begin.items()}
        close(
            ticket.masked_state | ticket.buffers,
            {name: started[name] for name in [*ticket.state, *ticket.buffers]},
        )
        close(
            level.state | level.buffers,
            {name: trained[name] for name in [*level.state, *level.buffers]},
        )
        assert int(level.buffers["1.num_batches_tracked"]) == int(
            trained["1.num_batches_tracked"]
        )
    assert all(torch.equal(net.state_dict()[n], t) for n, t in before.items())


@pytest.mark.parametrize("k", [0, 4])
@pytest.mark.parametrize("rewind", ["weights", "learning-rate", "fine-tune"])
def test_levels_are_bit_for_bit_those_of_torch_s_optimiser(rewind, k):
    _, system = problem()
    run = imp(
        system,
        densities=DENSITIES,
        train=recipe(),
        rewind=rewind,
        rewind_step=k,
        seed=SEED,
    )
    for n in (1, 2):
        ticket, level = run.tickets[n], run.levels[n]
        twin = make_net().train()
        ticket.apply_(twin)
        sgd = optimizer(twin.parameters(), lr=rate_of(k))
        with ticket.enforced(twin, sgd):
            for step in range(k, STEPS):
                last = rewind == "fine-tune"
                sgd.param_groups[0]["lr"] = rate_of(STEPS - 1 if last else step)
                sgd.zero_grad()
                x, y = batch_of(system.data, step)
                CE(twin(x), y).backward()
                sgd.step()
        found = level.state | level.buffers
        for name, part in twin.state_dict().items():
            assert torch.equal(found[name], part)
    assert run.levels[1].cost.steps == STEPS - k


def test_rewinding_does_something():
    _, system = problem()
    ends = {
        kind: imp(
            system, densities=DENSITIES, train=recipe(), rewind=kind, rewind_step=3
        )
        for kind in ("weights", "learning-rate", "fine-tune")
    }
    for a, b in itertools.combinations(ends.values(), 2):
        assert not torch.equal(a.levels[1].state["0.bias"], b.levels[1].state["0.bias"])
    late = ends["learning-rate"]
    for n in (1, 2):
        before, masks = late.levels[n - 1].state, late.tickets[n].masks
        for name, part in late.tickets[n].masked_state.items():
            mask = masks.get(name, torch.ones(()))
            assert torch.equal(part, before[name] * mask)


@pytest.mark.parametrize("rewind", ["learning-rate", "fine-tune"])
def test_pruned_weights_keep_the_values_they_were_last_trained_to(rewind):
    # so that a shuffled mask finds weights, not zeros
    _, system = problem()
    run = imp(system, densities=DENSITIES, train=recipe(), rewind=rewind)
    expected = run.levels[0].state
    for n in (1, 2):
        if n == 2:
            last, kept = run.levels[1].state, run.tickets[1].masks
            for name in WEIGHTS:
                expected[name] = last[name].where(kept[name], expected[name])
            expected = last | {name: expected[name] for name in WEIGHTS}
        state = run.tickets[n].state
        assert all(torch.equal(state[name], part) for name, part in expected.items())
        assert all(bool(state[name].all()) for name in WEIGHTS)
        assert zeros_where_pruned(run.tickets[n]) == ()


def test_fine_tuning_takes_over_whatever_the_schedule_moves():
    # the one-cycle schedule moves momentum, too
    def one_cycle(made):
        return lr_scheduler.OneCycleLR(made, max_lr=0.2, total_steps=STEPS + 1)

    played = optimizer([torch.zeros(1, requires_grad=True)])
    scheduler = one_cycle(played)
    for _ in range(STEPS - 1):
        played.step()
        scheduler.step()
    last = played.param_groups[0]
    assert last["momentum"] != 0.9
    _, system = problem()
    run = imp(
        system,
        densities=(1.0, 0.5),
        train=recipe(schedule=one_cycle),
        rewind="fine-tune",
        rewind_step=4,
        seed=SEED,
    )
    plain = Recipe(
        lambda params: torch.optim.SGD(
            params, lr=last["lr"], momentum=last["momentum"], weight_decay=1e-2
        ),
        steps=STEPS,
        batch_size=BATCH,
    )
    found = plain(system.with_ticket(run.tickets[1]), seed=SEED, start_step=4)
    for name, part in found.parameters.items():
        assert torch.equal(run.levels[1].state[name], part)
    given = imp(
        system,
        densities=(1.0, 0.5),
        train=recipe(schedule=one_cycle),
        rewind="fine-tune",
        rewind_step=4,
        fine_tune=plain,
        seed=SEED,
    )
    for name, part in found.parameters.items():
        assert torch.equal(given.levels[1].state[name], part)


def by_cosine(made):
    return lr_scheduler.CosineAnnealingLR(made, STEPS - 1, eta_min=1e-8)


def test_fine_tuning_at_the_end_of_a_cosine_is_warned_of():
    # 1e-8 of 0.1: the levels from 1 on would stay where they are
    _, system = problem()
    knobs = {"densities": (1.0, 0.5), "rewind": "fine-tune"}
    say = r"last one, is 1e-08, and the largest of the run 0\.1: .* Pass fine_tune=Rec"
    with pytest.warns(NumericalWarning, match=say) as said:
        run = imp(system, train=recipe(schedule=by_cosine), **knobs)
    assert len(said) == 1
    assert said[0].filename == __file__
    start, end = run.tickets[1].masked_state["0.weight"], run.levels[1].state
    assert torch.allclose(start, end["0.weight"], atol=1e-6)
    imp(system, train=recipe(schedule=by_cosine), fine_tune=recipe(), **knobs)


def test_fine_tuning_is_quiet_where_a_group_still_moves():
    def groups(parameters):
        kinds = ({"params": parameters[:1]}, {"params": parameters[1:], "lr": 1e-2})
        return torch.optim.SGD(kinds, lr=0.1)

    def first_only(made):
        factors = [lambda step: 0.5 ** (4 * step), lambda step: 0.5**step]
        return lr_scheduler.LambdaLR(made, factors)

    _, system = problem()
    knobs = {"densities": (1.0, 0.5), "rewind": "fine-tune"}
    imp(system, train=Recipe(groups, schedule=first_only, steps=STEPS), **knobs)


def test_cost_of_each_way():
    _, system = problem()
    for rewind, dense in (("weights", 4), ("learning-rate", 7), ("fine-tune", 7)):
        run = imp(
            system, densities=DENSITIES, train=recipe(), rewind=rewind, rewind_step=3
        )
        assert [level.cost.steps for level in run.levels] == [dense, 4, 4]
        assert run.cost.steps == 7 + 2 * 4
        assert run.tickets[0].cost == (Cost() if dense == 7 else run.tickets[0].cost)


def test_round_trip_through_a_file(tmp_path):
    _, system = problem()
    run = imp(
        system,
        densities=DENSITIES,
        train=recipe(),
        rewind="learning-rate",
        scope="grouped",
        groups=lambda name: "first" if name[0] == "0" else "last",
        rates={"last": 0.5},
    )
    run.save(tmp_path / "a")
    found = IMPRun.load(tmp_path / "a")
    assert found.provenance == run.provenance
    for a, b in zip(found.tickets, run.tickets, strict=True):
        assert all(torch.equal(a.state[n], t) for n, t in b.state.items())
        assert all(torch.equal(a.buffers[n], t) for n, t in b.buffers.items())
        assert all(torch.equal(a.masks[n], t) for n, t in b.masks.items())
    assert "learning-rate, to step 0" in found.summary()
    assert "Comparing Rewinding" in cite(run)


# -- counts ---------------------------------------------------------------------------


def test_half_the_rate_for_the_output_layer():
    # LeNet's 20 % and 10 %: the counts follow the rates, never each other
    _, system = problem()
    densities = densities_by_factor(0.8, 6)
    run = imp(
        system,
        densities=densities,
        train=recipe(),
        scope="layer",
        rates={"3.*": 0.5},
    )
    for n, ticket in enumerate(run.tickets):
        counts = [int(mask.sum()) for mask in ticket.masks.values()]
        assert counts == [kept_count(0.8**n, 18), kept_count(0.9**n, 18)]
        assert run.levels[n].density == sum(counts) / 36
    settings = dict(run.provenance.settings)
    assert settings["rates"] == {"3.*": 0.5}


def test_a_rate_of_zero_keeps_a_layer_dense():
    _, system = problem()
    run = imp(
        system,
        densities=(1.0, 0.5, 0.1),
        train=recipe(),
        scope="layer",
        rates={"0.weight": 0, "*": 1.0},
    )
    assert [int(m.sum()) for m in run.tickets[2].masks.values()] == [18, 2]


@pytest.mark.parametrize("kind", ["mapping", "callable"])
def test_groups_have_counts_of_their_own(kind):
    net = small_net(seed=2, widths=(3, 4, 5, 3))
    system = GradientSystem(net, CE, classes(20, 3, 3))
    of = {"0.weight": "ends", "2.weight": "middle", "4.weight": "ends"}
    run = imp(
        system,
        densities=DENSITIES,
        train=recipe(),
        scope="grouped",
        groups=of if kind == "mapping" else of.get,
    )
    free = False
    for n, ticket in enumerate(run.tickets):
        kept = {name: int(mask.sum()) for name, mask in ticket.masks.items()}
        assert kept["2.weight"] == kept_count(DENSITIES[n], 20)
        assert kept["0.weight"] + kept["4.weight"] == kept_count(DENSITIES[n], 27)
        free |= kept["0.weight"] != kept_count(DENSITIES[n], 12)
        if n:  # the highest of the group, over both of its tensors
            state, masks = run.levels[n - 1].state, run.tickets[n - 1].masks
            ends = ("0.weight", "4.weight")
            inside = torch.cat([state[k][ticket.masks[k]].abs() for k in ends])
            outside = [state[k][masks[k] & ~ticket.masks[k]].abs() for k in ends]
            assert inside.min() >= torch.cat(outside).max()
    assert free, "the tensors of a group never competed"
    assert dict(run.provenance.settings)["groups"] == of


def test_schedules_of_densities():
    by_factor = densities_by_factor(0.8, 19)
    assert len(by_factor) == 20
    assert by_factor[0] == 1.0
    assert round(by_factor[-1], 4) == 0.0144
    target = densities_by_target(0.0144, 19)
    assert target[-1] == 0.0144
    ratios = [b / a for a, b in itertools.pairwise(target)]
    assert max(ratios) - min(ratios) < 1e-12
    share = densities_by_share(0.1, 9)
    # 10 % of the ORIGINAL count at each level
    counts = [kept_count(d, 1000) for d in share]
    assert counts == list(range(1000, 0, -100))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: densities_by_factor(1.0, 3), r"factor is 1\.0"),
        (lambda: densities_by_factor(0.8, 0), "levels is 0"),
        (lambda: densities_by_target(0.0, 3), r"target is 0\.0"),
        (lambda: densities_by_share(float("nan"), 3), "share is nan"),
        (lambda: densities_by_share(0.1, 10), "remove everything. Pass fewer levels"),
    ],
    ids=["factor", "levels", "target", "share", "everything"],
)
def test_schedules_refuse(make, says):
    with pytest.raises(InvalidInputError, match=says):
        make()


FROZEN = {"schedule": lambda made: lr_scheduler.LambdaLR(made, lambda step: step < 3)}


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"rewind": "rate"}, "Unknown rewind 'rate'"),
        ({"rewind_step": -1}, "rewind_step is -1"),
        ({"rewind_step": 7}, "7 of 7 steps: levels"),
        ({"rewind": "learning-rate", "rewind_step": 7}, "7 of 7 steps: levels from 1"),
        ({"rewind": "fine-tune", "rewind_step": 9}, "9 of 7 steps: levels from 1"),
        ({"rewind": "fine-tune", "train": recipe(**FROZEN)}, "last one, is 0: fine-"),
        (
            {"rewind": "fine-tune", "train": recipe().__call__},
            "last learning rate of a method is not known",
        ),
        ({"fine_tune": recipe()}, "fine_tune came with rewind='weights'"),
        ({"scope": "node"}, "scope is 'node'"),
        ({"scope": "grouped"}, "scope='grouped' came without groups"),
        ({"groups": str}, "scope='global' came with groups"),
        ({"rates": {"*": 0.5}}, "rates came with scope='global'"),
        ({"scope": "layer", "rates": {"9.*": 0.5}}, r"rate of '9\.\*' is for nothing"),
        ({"scope": "layer", "rates": {"0.*": -1.0}}, r"rate of '0\.\*' is -1\.0"),
        ({"scope": "layer", "rates": {"0.*": 3.0}}, r"rate of 3\.0 for '0\.weight' re"),
        ({"scope": "grouped", "groups": {"0.weight": "a"}}, r"groups lacks \['3\.we"),
        ({"scope": "grouped", "groups": lambda name: 3}, "Give each a name"),
        ({"densities": (1.0, 0.5, 0.5)}, r"Density 0\.5 follows 0\.5"),
        ({"densities": (0.9, 0.5)}, r"densities start at 0\.9"),
        ({"densities": (1.0, 0.0)}, r"density of 0\.0"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_knobs_are_refused_before_training(knobs, says):
    _, system = problem()
    given = {"densities": DENSITIES, "train": recipe()} | knobs
    with pytest.raises(InvalidInputError, match=says):
        imp(system, **given, after_level=lambda *_: pytest.fail("it has trained"))
