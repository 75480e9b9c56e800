import copy
import math

import numpy as np
import pytest
import torch
from problems import classes, small_net
from torch import nn

from dynprune.core import Cost, InvalidInputError, cite
from dynprune.pruning import IMPRun, imp, kept_count, magnitude
from dynprune.system import GradientSystem
from dynprune.training import Recipe

CE = nn.functional.cross_entropy
DENSITIES = (1.0, 0.7, 0.4, 0.1)
QUIET: dict = {"collapse": "ignore"}  # two of 24 weights are no network


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-2)


def recipe(**kwargs) -> Recipe:
    return Recipe(momentum, **({"steps": 6, "batch_size": 8} | kwargs))


def norm_net() -> nn.Sequential:
    make = torch.Generator().manual_seed(1)
    net = nn.Sequential(
        nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)
    ).double()
    with torch.no_grad():
        for part in net.parameters():
            part.copy_(torch.randn(part.shape, generator=make, dtype=part.dtype))
    return net


def problem(net=None):
    model = net or small_net()
    return model, GradientSystem(model, CE, classes(20, 3, 3))


def same(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


def check_nested(run, size, densities=DENSITIES):
    for n, (ticket, level) in enumerate(zip(run.tickets, run.levels, strict=True)):
        assert ticket.kept == kept_count(densities[n], size)
        assert level.density == ticket.density
        assert level.level == n
        for name, mask in ticket.masks.items():
            assert not level.state[name][~mask].any()
            if n:
                assert not (mask & ~run.tickets[n - 1].masks[name]).any()


def test_original_rewinds_to_the_initial_state(untouched):
    model, system = problem()
    before = copy.deepcopy(model.state_dict())
    with untouched():
        run = imp(system, densities=DENSITIES, train=recipe(), seed=2, **QUIET)
    check_nested(run, 24)
    for ticket in run.tickets:
        assert same(ticket.state, dict(model.named_parameters()))
    assert same(dict(model.state_dict()), dict(before))


@pytest.mark.parametrize("make", [small_net, norm_net], ids=["plain", "batch norm"])
def test_late_rewinding_returns_to_state_and_buffers_of_step_k(make):
    model, system = problem(make())
    run = imp(
        system, densities=DENSITIES, rewind_step=4, train=recipe(), seed=2, **QUIET
    )
    dense = recipe()(system, seed=2, stop_step=4)
    named, size = system.unflatten(dense.state), run.tickets[0].prunable_size
    check_nested(run, size)
    assert not torch.equal(named["0.weight"], model[0].weight)
    for ticket in run.tickets:
        assert same(ticket.state, named)
        assert same(ticket.buffers, dense.buffers)


@pytest.mark.parametrize("rewind_step", [0, 4])
def test_levels_are_the_loop_written_by_hand(rewind_step):
    _, system = problem()
    run = imp(
        system,
        densities=DENSITIES,
        rewind_step=rewind_step,
        train=recipe(),
        seed=2,
        **QUIET,
    )
    train, start = recipe(), system.with_state(system.state)
    if rewind_step:
        start = system.with_state(train(system, seed=2, stop_step=rewind_step).state)
    masks, trained = None, None
    for n, density in enumerate(DENSITIES):
        at = start if masks is None else start.with_mask(masks)
        if n:
            ticket = magnitude(at, density=density, state=trained, collapse="ignore")
            masks = ticket.masks
            at = start.with_mask(masks)
            assert same(run.tickets[n].masks, masks)
        found = train(at, seed=2, start_step=rewind_step)
        trained = at.unflatten(found.state)
        assert same(run.levels[n].state, trained)


def tensors_of(run):
    """Each tensor of a run by where it lies."""
    found = {}
    for owner in (*run.tickets, *run.levels):
        for slot in ("state_items", "buffer_items"):
            found |= {t.data_ptr(): t for _, t in getattr(owner, slot) if t.numel()}
    return found


@pytest.mark.parametrize("source", ["made", "loaded"])
def test_tickets_of_one_state_hold_it_once(source, tmp_path):
    model, system = problem(norm_net())
    run = imp(system, densities=DENSITIES, rewind_step=2, train=recipe(), **QUIET)
    if source == "loaded":
        run.save(tmp_path / "run")
        run = IMPRun.load(tmp_path / "run")
    first = run.tickets[0]
    for ticket in run.tickets[1:]:
        for slot in ("state_items", "buffer_items"):
            pairs = zip(getattr(first, slot), getattr(ticket, slot), strict=True)
            assert all(a.data_ptr() == b.data_ptr() for (_, a), (_, b) in pairs)
    state = sum(part.nbytes for part in model.state_dict().values())
    held = sum(part.nbytes for part in tensors_of(run).values())
    assert held == (1 + len(run.levels)) * state
    # what is handed out is a copy, as ever
    first.state["0.weight"].zero_()
    assert run.tickets[1].state["0.weight"].any()
    assert {part.device.type for part in tensors_of(run).values()} == {"cpu"}


def test_cost_adds_up():
    _, system = problem()
    run = imp(
        system, densities=DENSITIES, rewind_step=2, train=recipe(), seed=0, **QUIET
    )
    # 20 examples in batches 8, 8, 4: steps 0-1 read 16, steps 2-5 read 4 + 20
    pre, level = Cost(gradients=0.8, steps=2), Cost(gradients=1.2, steps=4)
    for n, (ticket, trained) in enumerate(zip(run.tickets, run.levels, strict=True)):
        assert trained.cost.gradients == pytest.approx(level.gradients, rel=1e-12)
        assert ticket.cost.gradients == pytest.approx(0.8 + 1.2 * n, rel=1e-12)
        assert (trained.cost.steps, ticket.cost.steps) == (4, pre.steps + 4 * n)
    assert run.cost.steps == 2 + 4 * 4


def test_layer_scope_prunes_each_layer():
    _, system = problem()
    run = imp(system, densities=(1.0, 0.5, 0.25), train=recipe(), scope="layer")
    for ticket, density in zip(run.tickets, (1.0, 0.5, 0.25), strict=True):
        counts = [int(mask.sum()) for mask in ticket.masks.values()]
        assert counts == [kept_count(density, 12), kept_count(density, 12)]


def test_buffers_of_batch_norm_are_rewound_and_trained():
    model, system = problem(norm_net())
    run = imp(system, densities=(1.0, 0.5), train=recipe())
    for ticket, level in zip(run.tickets, run.levels, strict=True):
        assert same(ticket.buffers, dict(model.named_buffers()))
        assert int(level.buffers["1.num_batches_tracked"]) == 6


def test_tied_weights_are_counted_once():
    model = small_net(widths=(3, 3, 3))
    model[2].weight = model[0].weight
    _, system = problem(model)
    run = imp(system, densities=(1.0, 0.5), train=recipe())
    assert run.tickets[1].kept == kept_count(0.5, 9)
    run.tickets[1].apply_(model)
    assert int((model[2].weight != 0).sum()) == kept_count(0.5, 9)


def test_frozen_parameters_come_along():
    model = small_net()
    model[0].requires_grad_(False)
    _, system = problem(model)
    run = imp(system, densities=(1.0, 0.5), train=recipe())
    assert list(run.levels[1].state) == [name for name, _ in model.named_parameters()]
    assert torch.equal(run.levels[1].state["0.weight"], model[0].weight)
    run.tickets[1].apply_(model)


def test_pruned_weights_do_not_return_where_survivors_are_zero():
    # level 0 ends at 0, 1, 2, …, level 1 at zero but for the last weight: ties go to
    # the lower *survivor*
    _, system = problem()
    good, named = recipe(steps=0), system.unflatten(torch.zeros(31).double())
    named[system.prunable[-1]].view(-1)[-1] = 1.0
    one = system.flatten(named)
    ends = [torch.arange(31.0).double(), one, one]

    def scripted(at, **kwargs):
        run = good(at, **kwargs)
        state = at.flatten(system.unflatten(ends.pop(0)))
        object.__setattr__(run, "state", state)
        return run

    run = imp(system, densities=(1.0, 0.5, 0.25), train=scripted, **QUIET)
    check_nested(run, 24, (1.0, 0.5, 0.25))
    first = torch.cat([mask.reshape(-1) for mask in run.tickets[1].masks.values()])
    last = torch.cat([mask.reshape(-1) for mask in run.tickets[2].masks.values()])
    assert torch.nonzero(first).reshape(-1).tolist() == list(range(12, 24))
    assert torch.nonzero(last).reshape(-1).tolist() == [*range(12, 17), 23]


def test_callback_sees_every_level():
    _, system = problem()
    seen = []
    run = imp(
        system,
        densities=DENSITIES,
        train=recipe(),
        after_level=lambda ticket, level, found: seen.append((
            ticket.kept,
            level.level,
            found.cost.steps,
        )),
        **QUIET,
    )
    assert seen == [(t.kept, n, 6) for n, t in enumerate(run.tickets)]


def test_round_trip_through_a_file(tmp_path):
    _, system = problem(norm_net())
    run = imp(system, densities=(1.0, 0.5), rewind_step=1, train=recipe(), seed=3)
    run.save(tmp_path / "a")
    found = IMPRun.load(tmp_path / "a")
    assert found.provenance == run.provenance
    for a, b in zip(found.tickets, run.tickets, strict=True):
        assert same(a.masks, b.masks)
        assert same(a.state, b.state)
        assert same(a.buffers, b.buffers)
        assert (a.cost, a.provenance) == (b.cost, b.provenance)
    for a, b in zip(found.levels, run.levels, strict=True):
        assert same(a.state, b.state)
        assert same(a.buffers, b.buffers)
        assert (a.cost, a.density, a.level) == (b.cost, b.density, b.level)
    found.save(tmp_path / "b")
    raw = (tmp_path / "a").read_bytes()
    assert raw == (tmp_path / "b").read_bytes()
    (tmp_path / "b").write_bytes(raw[:-5])
    with pytest.raises(InvalidInputError, match="truncated"):
        IMPRun.load(tmp_path / "b")
    run.tickets[0].save(tmp_path / "c")
    with pytest.raises(InvalidInputError, match="'ticket', not an IMP run"):
        IMPRun.load(tmp_path / "c")


def test_says_what_it_is():
    _, system = problem()
    run = imp(system, densities=(1.0, 0.5), train=recipe(), rewind_step=1)
    assert len(run.summary().splitlines()) == 5
    assert "\n" not in repr(run) + repr(run.levels[0])
    assert list(run.to_frame()["kept"]) == [24, 12]
    assert run.plot().get_xlabel() == "level"
    assert "Linear Mode Connectivity" in cite(run)


@pytest.mark.parametrize(
    ("densities", "says"),
    [
        ((), "start at nothing"),
        ((0.5, 0.2), r"start at 0\.5"),
        ((1.0, 0.5, 0.5), r"Density 0\.5 follows 0\.5"),
        ((1.0, 0.2, 0.5), r"Density 0\.5 follows 0\.2"),
        ((1.0, 0.0), r"density of 0\.0"),
        ((1.0, float("nan")), "density of nan"),
    ],
    ids=["none", "not dense", "equal", "increasing", "zero", "nan"],
)
def test_wrong_densities_are_refused(densities, says):
    with pytest.raises(InvalidInputError, match=says):
        imp(problem()[1], densities=densities, train=recipe())


def test_wrong_arguments_are_refused():
    model, system = problem()
    with pytest.raises(InvalidInputError, match="rewind_step is -1"):
        imp(system, densities=(1.0, 0.5), train=recipe(), rewind_step=-1)
    with pytest.raises(InvalidInputError, match="scope is 'net'"):
        imp(system, densities=(1.0, 0.5), train=recipe(), scope="net")
    masked = system.with_ticket(magnitude(system, density=0.5))
    with pytest.raises(InvalidInputError, match="12 weights of the system are already"):
        imp(masked, densities=(1.0, 0.5), train=recipe())
    biases = GradientSystem(model, CE, system.data, parameters="*.bias")
    with pytest.raises(InvalidInputError, match="no prunable weight"):
        imp(biases, densities=(1.0, 0.5), train=recipe())


def test_a_function_that_is_no_trainer_is_refused_before_it_is_called():
    _, system = problem()

    def never(*_, seed=0):
        raise AssertionError

    how = {"densities": (1.0, 0.5)}
    with pytest.raises(InvalidInputError, match=r"train takes no start_step=\. Pass a"):
        imp(system, train=never, **how)
    with pytest.raises(InvalidInputError, match="takes no seed=, start_step=, stop_st"):
        imp(system, train=lambda at: at, rewind_step=1, **how)
    with pytest.raises(InvalidInputError, match="fine_tune takes no start_step="):
        imp(system, train=recipe(), rewind="fine-tune", fine_tune=never, **how)
    with pytest.raises(InvalidInputError, match="train is a int"):
        imp(system, train=3, **how)


def test_trained_weights_that_are_not_finite_are_refused():
    _, system = problem()
    good = recipe()

    def broken(at, **kwargs):
        run = good(at, **kwargs)
        object.__setattr__(run, "state", run.state * float("nan"))
        return run

    with pytest.raises(InvalidInputError, match="are NaN or infinite"):
        imp(system, densities=(1.0, 0.5), train=broken)


@pytest.mark.parametrize("rewind", ["weights", "learning-rate", "fine-tune"])
@pytest.mark.parametrize("steps", [0, 4])
def test_levels_without_a_step_are_refused(rewind, steps):
    _, system = problem()
    with pytest.raises(InvalidInputError, match=f"{steps} of {steps} steps"):
        imp(
            system,
            densities=(1.0, 0.5),
            train=recipe(steps=steps),
            rewind_step=steps,
            rewind=rewind,
        )


# -- rules of published codes ---------------------------------------------------------


def open_lth(sizes, masks, share):
    every = np.sort(np.concatenate([s[masks[n]] for n, s in sizes.items()]))
    threshold = every[math.ceil(share * len(every))]
    return {n: masks[n] & (s > threshold) for n, s in sizes.items()}


def lth2018(sizes, masks, share):
    found = {}
    for n, s in sizes.items():
        ranked = np.sort(s[masks[n]])
        percent = share[n] if isinstance(share, dict) else share
        cutoff = ranked[np.round(percent * ranked.size).astype(int)]
        found[n] = masks[n] & ~(s <= cutoff)
    return found


def gem_miner(sizes, masks, share):
    every = np.sort(np.concatenate([s[masks[n]] for n, s in sizes.items()]))
    threshold = every[math.ceil(share * len(every)) - 1]
    return {n: masks[n] & (s > threshold) for n, s in sizes.items()}


def synflow(sizes, masks, density):
    every = np.sort(np.concatenate([(s * masks[n]).ravel() for n, s in sizes.items()]))
    threshold = every[int((1.0 - density) * len(every)) - 1]
    return {n: masks[n] & (s > threshold) for n, s in sizes.items()}


def force(sizes, masks, density):
    every = np.sort(np.concatenate([(s * masks[n]).ravel() for n, s in sizes.items()]))
    threshold = every[-int(len(every) * density)]
    return {n: masks[n] & (s >= threshold) for n, s in sizes.items()}


@pytest.mark.parametrize("rewind", ["weights", "learning-rate"])
@pytest.mark.parametrize(
    "rule", [open_lth, lth2018, gem_miner, synflow, force], ids=lambda r: r.__name__
)
def test_rules_hold_at_every_level(rule, rewind):
    _, system = problem(small_net(widths=(3, 7, 6, 3)))
    densities = (1.0, 0.8, 0.64, 0.512, 0.3)
    knobs = {"densities": densities, "rewind": rewind, "rule": rule.__name__}
    run = imp(system, train=recipe(), **knobs, **QUIET)
    masks = {n: m.numpy() for n, m in run.tickets[0].masks.items()}
    assert all(mask.all() for mask in masks.values())
    for n in range(1, len(densities)):
        sizes = {name: run.levels[n - 1].state[name].abs().numpy() for name in masks}
        count = densities[n]
        if rule not in {synflow, force}:
            # those codes know no target: a share p of what is alive goes
            count = round(1 - densities[n] / densities[n - 1], 12)
        masks = rule(sizes, masks, count)
        for name, mask in run.tickets[n].masks.items():
            assert np.array_equal(mask.numpy(), masks[name]), (n, name)
    settings = dict(run.provenance.settings)
    assert settings["rule"] == rule.__name__
    assert settings["scope"] == ("layer" if rule is lth2018 else "global")


def test_one_weight_more_of_a_code_adds_up():
    _, system = problem(small_net(widths=(3, 7, 6, 3)))
    knobs = {"densities": (1.0, 0.8, 0.64, 0.512), "train": recipe(), **QUIET}
    kept = [t.kept for t in imp(system, rule="open_lth", **knobs).tickets]
    expected = [81]
    for _ in range(3):
        expected.append(expected[-1] - math.ceil(round(expected[-1] / 5, 9)) - 1)
    assert kept == expected == [81, 63, 49, 38]
    assert [t.kept for t in imp(system, **knobs).tickets] == [81, 65, 52, 41]


def test_the_output_layer_at_half_the_rate_as_in_the_2018_code():
    _, system = problem(small_net(widths=(3, 7, 6, 3)))
    densities = (1.0, 0.8, 0.64)
    run = imp(
        system,
        densities=densities,
        train=recipe(),
        rule="lth2018",
        rates={"4.weight": 0.5},
        **QUIET,
    )
    masks = {n: m.numpy() for n, m in run.tickets[0].masks.items()}
    share = {"0.weight": 0.2, "2.weight": 0.2, "4.weight": 0.1}
    for n in (1, 2):
        sizes = {name: run.levels[n - 1].state[name].abs().numpy() for name in masks}
        masks = lth2018(sizes, masks, share)
        for name, mask in run.tickets[n].masks.items():
            assert np.array_equal(mask.numpy(), masks[name])


def test_rules_that_cannot_hold_are_refused_before_training():
    def never(*_, **__):
        raise AssertionError("trained")

    _, system = problem()
    with pytest.raises(InvalidInputError, match="Unknown rule 'imp'"):
        imp(system, densities=(1.0, 0.5), train=never, rule="imp")
    for rule in ("open_lth", "lth2018"):
        with pytest.raises(
            InvalidInputError, match=r"rate of '0\.weight' is 0.*one we"
        ):
            imp(
                system,
                densities=(1.0, 0.5),
                train=never,
                rule=rule,
                scope="layer",
                rates={"0.weight": 0.0},
            )
    # 12 weights in each layer: 12, 5, 1, and then all but none
    with pytest.raises(InvalidInputError, match=r"no weight at all of 0\.weight"):
        imp(system, densities=(1.0, 0.5, 0.25, 0.1), train=never, rule="lth2018")
    with pytest.raises(InvalidInputError, match=r"looks for the .*Pass a higher"):
        imp(system, densities=(1.0, 0.5, 0.01), train=never, rule="force")


def test_a_rate_of_nothing_prunes_nothing_where_the_rule_allows_it():
    _, system = problem()
    run = imp(
        system,
        densities=(1.0, 0.5),
        train=recipe(),
        rule="gem_miner",
        scope="layer",
        rates={"0.weight": 0.0},
    )
    assert [int(m.sum()) for m in run.tickets[1].masks.values()] == [12, 6]
