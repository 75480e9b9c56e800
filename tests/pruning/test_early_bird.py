import copy
import itertools
import re
import warnings

import numpy as np
import pytest
import torch
from problems import classes, small_net
from torch import nn

import dynprune as dp
from dynprune.core import (
    ConvergenceError,
    InvalidInputError,
    NumericalWarning,
    Outcome,
    cite,
)
from dynprune.pruning import EarlyBird, early_bird, from_scores
from dynprune.system import GradientSystem
from dynprune.training import Recipe, _mover

CE = nn.functional.cross_entropy


def net_of(widths=(6, 8, 7, 3)) -> nn.Sequential:
    """A float64 chain of Linear, BatchNorm and ReLU with random scales."""
    make = torch.Generator().manual_seed(0)
    layers = []
    for a, b in itertools.pairwise(widths[:-1]):
        layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
    net = nn.Sequential(*layers, nn.Linear(*widths[-2:])).double()
    with torch.no_grad():
        for part in net.parameters():
            part.copy_(torch.randn(part.shape, generator=make, dtype=part.dtype))
    return net


def problem(n=24):
    net = net_of()
    return net, GradientSystem(net, CE, classes(n, 6, 3))


def recipe(lr=0.0, steps=20, **kwargs):
    return Recipe(
        lambda params: torch.optim.SGD(params, lr=lr),
        steps=steps,
        batch_size=kwargs.pop("batch_size", 24),
        **kwargs,
    )


def gammas(net):
    return torch.cat([net[1].weight, net[4].weight]).detach()


@pytest.mark.parametrize("ratio", [0.3, 0.5, 0.7], ids=str)
def test_the_sources_rule_and_the_stopping_rule_at_rest(ratio):
    net, system = problem()
    found = early_bird(system, train=recipe(batch_size=8), prune_ratio=ratio)
    sizes = gammas(net).abs()
    expected = sizes > sorted(sizes.tolist())[int(15 * ratio)]
    assert torch.equal(torch.cat(list(found.masks.values())), expected)
    assert list(found.masks) == ["1.weight", "4.weight"]
    assert int(expected.sum()) == 15 - int(15 * ratio) - 1
    # five equal masks: before epochs 0, 1, 2, 3 and 4, of three steps each
    assert (found.drawn_epoch, found.drawn_step) == (4, 12)
    assert found.look_steps == (0, 3, 6, 9, 12)
    assert found.cost == dp.Cost(gradients=4.0, steps=12)
    assert found.outcome is Outcome.CONVERGED
    assert not found.distances[-1].any()
    assert [int(row.isnan().sum()) for row in found.distances] == [4, 3, 2, 1, 0]
    assert "you2020drawing" in cite(found)


@pytest.mark.parametrize("density", [0.02, 0.34, 0.5], ids=str)
def test_a_density_keeps_the_exact_number_of_channels(density):
    _, system = problem()
    if density < 0.1:
        with pytest.warns(NumericalWarning) as said:
            found = early_bird(system, train=recipe(), density=density, collapse="warn")
        assert "No channel is left of" in str(said[0].message)
    else:
        found = early_bird(system, train=recipe(), density=density)
    kept = sum(int(mask.sum()) for mask in found.masks.values())
    assert kept == max(1, int(density * 15 + 0.5))
    assert found.density == kept / 15


@pytest.mark.parametrize("unit", ["weight", "channel"])
def test_a_ticket_that_lost_its_input_is_refused(unit):
    net, system = problem()
    with torch.no_grad():
        (net[0] if unit == "weight" else net[1]).weight.mul_(1e-3)
    call = lambda **kwargs: early_bird(  # noqa: E731
        system, train=recipe(), density=0.4, unit=unit, **kwargs
    )
    said = r"At density 0\.4 no path of kept"
    with warnings.catch_warnings():  # of a norm that lost all its channels
        warnings.filterwarnings("ignore", "No channel is left", NumericalWarning)
        with pytest.raises(InvalidInputError, match=said):
            call()
        with pytest.warns(NumericalWarning, match=said):
            found = call(collapse="warn")
    settings = dict(found.provenance.settings)
    assert settings["collapse"]["dependence"] == "lost"
    assert found.ticket.provenance == found.provenance
    with pytest.raises(InvalidInputError, match="collapse is 'no'"):
        call(collapse="no")


@pytest.mark.parametrize("unit", ["weight", "channel"])
def test_equal_sizes_choose_nothing(unit):
    # a warm-up that leaves all sizes equal: no ticket is made of the flat index
    net, system = problem()
    with torch.no_grad():
        for place in (0, 3, 6) if unit == "weight" else (1, 4):
            net[place].weight.fill_(1.0)
    with pytest.raises(ConvergenceError, match="It keeps nothing: all scales tie"):
        early_bird(system, train=recipe(), density=0.5, unit=unit)


def test_a_batch_of_one_example_is_refused_before_the_first_step():
    _, system = problem(25)
    with pytest.raises(InvalidInputError, match="25 examples in batches of 24 leave"):
        early_bird(system, train=recipe(), density=0.5)


def test_knobs_of_other_libraries_are_plain_numbers(tmp_path):
    _, system = problem()
    knobs = {"tolerance": np.float32(0.25), "penalty": torch.tensor(0.5)}
    found = early_bird(system, train=recipe(), prune_ratio=np.float32(0.5), **knobs)
    found.save(tmp_path / "found")
    assert type(EarlyBird.load(tmp_path / "found", system.model).tolerance) is float
    for name in ("tolerance", "penalty", "prune_ratio"):
        with pytest.raises(InvalidInputError, match=name):
            early_bird(
                system, train=recipe(), **({"prune_ratio": 0.5} | {name: "much"})
            )


def transcribed(system, *, ratio, lam, lr, steps, window, tolerance):
    """Section 7 line by line on full batches: one step per epoch."""
    net = copy.deepcopy(system.model).train()
    x, y = system.data
    past, rows = [], []
    for _ in range(steps + 1):
        sizes = gammas(net).abs()
        mask = (sizes > sizes.sort().values[int(len(sizes) * ratio)]).tolist()
        far = [sum(a != b for a, b in zip(mask, m, strict=True)) / 15 for m in past]
        rows.append(far)
        if len(far) == window - 1 and max(far) <= tolerance and any(mask):
            break
        past = [mask, *past][: window - 1]
        for part in net.parameters():
            part.grad = None
        CE(net(x), y).backward()
        with torch.no_grad():
            for part in net.parameters():
                slope = part.grad
                if part is net[1].weight or part is net[4].weight:
                    slope = slope + lam * part.sign()
                part -= lr * slope
    return len(rows) - 1, rows, net


@pytest.mark.parametrize("tolerance", [0.0, 0.07], ids=str)
def test_search_agrees_with_the_transcription(tolerance):
    _, system = problem()
    knobs = {"lr": 1.0, "steps": 80}
    step, rows, net = transcribed(
        system, ratio=0.4, lam=0.02, window=4, tolerance=tolerance, **knobs
    )
    found = early_bird(
        system,
        train=recipe(**knobs),
        prune_ratio=0.4,
        penalty=0.02,
        window=4,
        tolerance=tolerance,
    )
    assert found.drawn_step == step == found.drawn_epoch
    assert step > 3  # the masks did move, or there was nothing to see
    for a, b in zip(found.distances.tolist(), rows, strict=True):
        assert a[: len(b)] == b
    for name, part in net.named_parameters():
        assert torch.allclose(found.ticket.state[name], part, atol=1e-12, rtol=0)
    for name, part in net.named_buffers():
        assert torch.allclose(found.ticket.buffers[name], part, atol=1e-12, rtol=0)


def test_the_penalty_is_the_l1_norm_of_the_scales():
    _, system = problem()
    knobs = {"train": recipe(lr=0.1), "density": 0.5, "window": 2, "tolerance": 0.9}
    with_, without = (
        early_bird(system, penalty=lam, **knobs).ticket.state for lam in (0.5, 0.0)
    )
    for name, part in system.unflatten(system.state).items():
        # one step: −lr λ sign γ for scales, nothing else
        moved = -0.1 * 0.5 * part.sign() if name in {"1.weight", "4.weight"} else 0.0
        assert torch.allclose(with_[name] - without[name], moved + 0 * part, atol=1e-14)


def test_ticket_and_network_are_the_same_function():
    net, system = problem()
    found = early_bird(system, train=recipe(lr=0.05), density=0.5, tolerance=0.3)
    ticket, x = found.ticket, system.data[0]
    ticket.apply_(net)
    net.eval()
    with torch.no_grad():
        expected = net(x)
        assert torch.allclose(found.network.eval()(x), expected, atol=1e-12, rtol=0)
        # γ = β = 0 alone, at the drawn state, gives that function as well
        twin = net_of().eval()
        twin.load_state_dict(ticket.state | ticket.buffers)
        for name in ("1", "4"):
            norm = twin.get_submodule(name)
            norm.weight.mul_(found.masks[f"{name}.weight"])
            norm.bias.mul_(found.masks[f"{name}.weight"])
        assert torch.allclose(twin(x), expected, atol=1e-12, rtol=0)
    # the survivors are the parameters of the network
    count = sum(part.numel() for part in found.network.parameters())
    assert found.parameters == (sum(p.numel() for p in net.parameters()), count)
    assert system.with_ticket(ticket).size == count < found.parameters[0]
    assert found.flops[1] < found.flops[0]
    a, b = (int(mask.sum()) for mask in found.masks.values())
    assert found.flops == (2 * (48 + 56 + 21), 2 * (6 * a + a * b + 3 * b))


def same_losses(found, system):
    """Losses of training the ticket, held to those of the smaller network."""
    small = GradientSystem(found.network, CE, system.data)
    again = recipe(lr=0.1, steps=5)
    a = again(system.with_ticket(found.ticket)).history[1]
    b = again(small).history[1]
    assert torch.allclose(a, b, atol=1e-12, rtol=0)
    assert float(a[-1]) < float(a[0])


def test_ticket_and_network_train_alike():
    _, system = problem()
    found = early_bird(system, train=recipe(lr=0.05), density=0.5, tolerance=0.3)
    same_losses(found, system)


@pytest.mark.parametrize("traced", [True, False], ids=["traced", "in parts"])
def test_a_frozen_norm_stays_in_eval_mode_in_the_network(tmp_path, traced):
    inner = net_of().train()
    net = inner if traced else Deciding().train()
    inner = net if traced else net.inner
    inner[4].eval()
    system = GradientSystem(net, CE, classes(24, 6, 3))
    knobs = {"train": recipe(lr=0.05), "density": 0.5, "tolerance": 0.3}
    found = early_bird(system, **knobs)
    frozen = system.kept_in_eval
    assert frozen == (("4",) if traced else ("inner.4",))
    found.save(tmp_path / "found")
    for network in (found.network, EarlyBird.load(tmp_path / "found", net).network):
        modes = {name: part.training for name, part in network.named_modules()}
        assert [name for name, training in modes.items() if not training] == [*frozen]
    same_losses(found, system)
    net.eval()  # nothing said of its modules any more
    assert not any(p.training for p in early_bird(system, **knobs).network.modules())


def test_modules_that_the_graph_adds_have_the_mode_of_the_network():
    net = dp.tasks.resnet(20, 4, in_shape=(1, 8, 8), classes=3).double().train()
    norms = [p for p in net.modules() if isinstance(p, nn.BatchNorm2d)]
    norms[1].eval()
    system = GradientSystem(net, CE, classes(16, 64, 3))
    train = recipe(lr=0.1, steps=12)
    found = early_bird(system, train=train, density=0.6, tolerance=0.4, window=3)
    modes = {name: part.training for name, part in found.network.named_modules()}
    assert any("channel_map" in name for name in modes)
    assert [name for name, mode in modes.items() if not mode] == [*system.kept_in_eval]


@pytest.mark.parametrize("start", ["drawn", "initial"])
@pytest.mark.parametrize("how", ["frozen", "not selected"])
def test_shifts_that_are_not_trained_are_zero_where_pruned(how, start):
    net = net_of().train()
    if how == "frozen":
        net[1].bias.requires_grad_(False)
    chosen = "*weight" if how == "not selected" else None
    system = GradientSystem(net, CE, classes(24, 6, 3), parameters=chosen)
    found = early_bird(
        system, train=recipe(lr=0.05), density=0.5, tolerance=0.3, start=start
    )
    ticket, mask = found.ticket, found.masks["1.weight"]
    assert torch.equal(ticket.state["1.bias"], net[1].bias.detach() * mask)
    assert bool(ticket.state["1.bias"].any())
    x, y = system.data
    whole, small = system.with_ticket(ticket), GradientSystem(found.network, CE, (x, y))
    assert float((whole.loss() - small.loss()).abs()) < 1e-12
    ticket.apply_(net)
    with torch.no_grad():
        assert torch.allclose(found.network(x), net(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("which", [(1,), (1, 4)], ids=str)
def test_norms_without_a_shift(which):
    net = net_of()
    try:
        norms = {k: nn.BatchNorm1d((8, 7)[k > 1], bias=False).double() for k in which}
    except TypeError:
        pytest.skip("batch norms of this torch always have a shift")
    with torch.no_grad():
        for k, norm in norms.items():
            norm.weight.copy_(net[k].weight)
            net[k] = norm
    system = GradientSystem(net.train(), CE, classes(24, 6, 3))
    found = early_bird(system, train=recipe(lr=0.05), density=0.5, tolerance=0.3)
    assert "1.bias" not in found.ticket.masks
    assert ("4.bias" in found.ticket.masks) == (4 not in which)
    assert found.parameters[1] < found.parameters[0]
    same_losses(found, system)
    found.ticket.apply_(net.eval())
    small = dp.tickets.reduce(found.ticket, net, example=system.data[0][:2]).module
    with torch.no_grad():
        expected = net(system.data[0])
        for network in (found.network.eval(), small):
            assert torch.allclose(network(system.data[0]), expected, atol=1e-12, rtol=0)


def test_resnet_20_becomes_smaller_with_the_same_outputs():
    net = dp.tasks.resnet(20, 4, in_shape=(1, 8, 8), classes=3).double()
    x, y = classes(16, 64, 3)
    system = GradientSystem(net, CE, (x, y))
    found = early_bird(
        system, train=recipe(lr=0.1, steps=12), density=0.6, tolerance=0.4, window=3
    )
    found.ticket.apply_(net)
    with torch.no_grad():
        expected, seen = net.eval()(x), found.network.eval()(x)
    scale = float(expected.abs().max())
    assert float((expected - seen).abs().max()) < 1e-12 * scale
    assert found.parameters[1] < 0.6 * found.parameters[0]
    assert found.flops[1] < 0.6 * found.flops[0]


def test_start_initial_rewinds_the_drawn_mask():
    _, system = problem()
    knobs = {"train": recipe(lr=0.05), "density": 0.5, "tolerance": 0.3}
    drawn = early_bird(system, **knobs)
    rewound = early_bird(system, start="initial", **knobs)
    for name, part in system.unflatten(system.state).items():
        assert torch.equal(rewound.ticket.state[name], part)
    assert all(torch.equal(rewound.masks[n], m) for n, m in drawn.masks.items())
    first = rewound.network.get_submodule("1")
    assert torch.equal(
        first.weight,
        system.unflatten(system.state)["1.weight"][drawn.masks["1.weight"]],
    )


def test_weights_stop_by_the_same_rule_without_batch_norm():
    net = small_net(widths=(6, 8, 3))
    system = GradientSystem(net, CE, classes(24, 6, 3))
    train = recipe(lr=2.0, steps=40)
    knobs = {"density": 0.3, "unit": "weight", "window": 3, "tolerance": 0.03}
    found = early_bird(system, train=train, **knobs)
    # transcribed: masks of largest weights after every full-batch step
    twin, masks = copy.deepcopy(net), []
    for _ in range(41):
        scores = {n: p.detach().abs() for n, p in twin.named_parameters() if p.ndim > 1}
        chosen = from_scores(system, scores, density=0.3).masks
        masks.append(torch.cat([m.reshape(-1) for m in chosen.values()]))
        far = [float((masks[-1] != m).sum()) / 72 for m in masks[-3:-1]]
        if len(far) == 2 and max(far) <= 0.03:
            break
        loss = CE(twin(system.data[0]), system.data[1])
        slopes = torch.autograd.grad(loss, list(twin.parameters()))
        with torch.no_grad():
            for part, slope in zip(twin.parameters(), slopes, strict=True):
                part -= 2.0 * slope
    assert found.drawn_step == len(masks) - 1 > 2
    assert found.ticket.kept == 22
    assert all(torch.equal(found.ticket.masks[n], m) for n, m in chosen.items())
    assert found.network is None
    assert "unit" in dict(found.provenance.settings)


@pytest.mark.parametrize(
    ("knobs", "most"),
    [
        ({"unit": "weight", "density": 0.05}, "keep 6 of 125 weights .* 0.096 of"),
        ({"unit": "weight", "density": 0.96}, "keep 120 of 125 weights .* 0.08 of"),
        ({"density": 0.2, "tolerance": 0.4}, "keep 3 of 15 channels .* 0.4 of"),
        ({"prune_ratio": 0.8, "tolerance": 0.3}, "keep 2 of 15 channels .* 0.267 of"),
    ],
    ids=["few weights", "nearly all", "channels", "the source's rule"],
)
def test_a_stopping_rule_that_cannot_fail_is_warned_of(knobs, most):
    _, system = problem()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        early_bird(system, train=recipe(lr=3.0), collapse="ignore", **knobs)
    found = [str(one.message) for one in said if "cannot fail" in str(one.message)]
    assert len(found) == 1
    assert re.search(f"{most} .*Pass a smaller tolerance", found[0])
    # a tolerance below the bound lets training decide, and so does the whole network
    for other in ({**knobs, "tolerance": 0.0}, {"unit": "weight", "density": 1.0}):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            early_bird(
                system, train=recipe(lr=3.0), collapse="ignore", throw=False, **other
            )
        assert not any("cannot fail" in str(one.message) for one in said)


def test_no_ticket_within_the_budget_carries_the_result():
    _, system = problem()
    knobs = {"density": 0.5, "train": recipe(steps=3)}
    with pytest.raises(ConvergenceError, match=r"4 masks were seen.* loosen") as caught:
        early_bird(system, **knobs)
    partial = caught.value.partial
    assert isinstance(partial, EarlyBird)
    assert partial.ticket is None
    assert partial.outcome is Outcome.NOT_CONVERGED
    assert partial.drawn_step is None
    returned = early_bird(system, throw=False, **knobs)
    assert returned.look_steps == partial.look_steps == (0, 1, 2, 3)
    assert returned.cost.steps == 3
    # a budget that ends within an epoch gives no look there
    short = recipe(steps=4, batch_size=8)
    within = early_bird(system, throw=False, density=0.5, train=short)
    assert within.look_steps == (0, 3)
    assert within.cost.steps == 4


def test_scales_that_all_tie_draw_nothing():
    net, _ = problem()
    nn.init.ones_(net[1].weight)
    nn.init.ones_(net[4].weight)
    system = GradientSystem(net, CE, classes(24, 6, 3))
    with pytest.raises(ConvergenceError, match="all scales tie"):
        early_bird(system, train=recipe(steps=8), prune_ratio=0.5)


def test_nothing_of_the_user_changes(untouched):
    net, system = problem()
    net.train()
    net(system.data[0]).sum().backward()
    before = copy.deepcopy(net.state_dict())
    grads = [part.grad.clone() for part in net.parameters()]
    knobs = {"train": recipe(lr=0.05, batch_size=8), "density": 0.5, "tolerance": 0.4}
    with untouched():
        first, second = early_bird(system, **knobs), early_bird(system, **knobs)
    other = early_bird(system, seed=1, **knobs)
    assert all(torch.equal(net.state_dict()[n], t) for n, t in before.items())
    pairs = zip(net.parameters(), grads, strict=True)
    assert all(torch.equal(part.grad, slope) for part, slope in pairs)
    assert net.training
    assert first.network.training
    states = [run.ticket.state["0.weight"] for run in (first, second, other)]
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


def test_a_loader_is_read_as_resident_data_are():
    net, system = problem()
    batches = GradientSystem(net, CE, [system.data])
    a = early_bird(system, train=recipe(lr=0.05), density=0.5, tolerance=0.3)
    b = early_bird(batches, train=recipe(lr=0.05), density=0.5, tolerance=0.3)
    assert all(torch.equal(a.ticket.state[n], t) for n, t in b.ticket.state.items())
    assert a.cost == b.cost


def test_the_recipe_may_bring_other_data():
    _, system = problem()
    x, y = system.data
    other = (x[:12] + 1.0, y[:12])
    knobs = {"density": 0.5, "tolerance": 0.3}
    a = early_bird(system, train=recipe(lr=0.05, data=other), **knobs)
    b = early_bird(system.with_data(other), train=recipe(lr=0.05), **knobs)
    assert all(torch.equal(a.ticket.state[n], t) for n, t in b.ticket.state.items())
    # a gradient is a pass over the system's own examples
    assert a.cost.steps == b.cost.steps
    assert a.cost.gradients == pytest.approx(b.cost.gradients * 12 / len(x))


def test_summary_frame_and_plot():
    _, system = problem()
    found = early_bird(system, train=recipe(), density=0.5)
    assert len(found.summary().splitlines()) == 5
    assert "before epoch 4 (step 4)" in found.summary()
    assert "\n" not in repr(found)
    frame = found.to_frame()
    assert list(frame["step"]) == [0, 1, 2, 3, 4]
    axes = found.plot()
    assert axes.get_xlabel() == "optimiser steps"
    import matplotlib.pyplot as plt

    plt.close(axes.figure)


class Branching(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.norm, self.fc = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.norm(x)
        return self.fc(h if h.sum() > 1e9 else h.relu())


def test_a_graph_that_cannot_be_followed_is_refused_before_training():
    steps = []

    class Counted(torch.optim.SGD):
        def step(self, closure=None):
            steps.append(1)

    system = GradientSystem(Branching().double(), CE, classes(24, 6, 3))
    train = Recipe(lambda params: Counted(params, lr=0.1), steps=9)
    with pytest.raises(InvalidInputError, match=r"cannot be followed by torch\.fx"):
        early_bird(system, train=train, density=0.5)
    assert steps == []
    # the unstructured version needs no graph
    found = early_bird(system, train=train, density=0.5, unit="weight")
    assert found.ticket.kept == 9


class Deciding(nn.Module):
    """A network that cannot be traced, of modules that can."""

    def __init__(self):
        nn.Module.__init__(self)
        self.inner = net_of()

    def forward(self, x):
        h = self.inner(x)
        return h if h.sum() < 1e9 else -h


def test_modules_of_a_network_that_cannot_be_traced_become_smaller():
    net = Deciding()
    x, y = classes(24, 6, 3)
    knobs = {"train": recipe(lr=0.05), "density": 0.5, "tolerance": 0.3}
    found = early_bird(GradientSystem(net, CE, (x, y)), **knobs)
    chain = early_bird(GradientSystem(net.inner, CE, (x, y)), **knobs)
    assert found.parameters == chain.parameters
    assert found.parameters[1] < found.parameters[0]
    with torch.no_grad():
        assert torch.equal(found.network.eval()(x), chain.network.eval()(x))


class Twice(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 3)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x):
        return self.b(self.norm(self.a(self.norm(self.a(x)))))


def test_norms_that_are_all_shared_are_refused_before_training():
    system = GradientSystem(Twice().double(), CE, classes(24, 6, 3))
    with pytest.raises(InvalidInputError, match=r"\['norm'\] cannot be taken out"):
        early_bird(system, train=recipe(), density=0.5)


def test_channels_without_batch_norm_are_refused_with_the_way_out():
    system = GradientSystem(small_net(), CE, classes(12, 3, 3))
    with pytest.raises(
        InvalidInputError, match=r"no trainable one. Pass unit='weight'"
    ):
        early_bird(system, train=recipe(), density=0.5)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({}, "density=None and prune_ratio=None"),
        ({"density": 0.5, "prune_ratio": 0.5}, "Pass one"),
        ({"density": 0.0}, "density of 0.0"),
        ({"prune_ratio": 1.0}, "prune_ratio is 1.0"),
        ({"density": 0.5, "unit": "filter"}, "unit is 'filter'"),
        ({"prune_ratio": 0.5, "unit": "weight"}, "source's rule for channels"),
        ({"density": 0.5, "unit": "weight", "penalty": 0.1}, "scales of batch norms"),
        ({"density": 0.5, "penalty": -0.1}, r"penalty \(λ\) is -0.1"),
        ({"density": 0.5, "window": 1}, "window is 1"),
        ({"density": 0.5, "tolerance": 1.0}, "tolerance is 1.0"),
        ({"density": 0.5, "start": "end"}, "start is 'end'"),
        ({"density": 0.5, "train": 3}, "train is a int"),
    ],
    ids=lambda value: "-".join(value) or "none" if isinstance(value, dict) else "",
)
def test_refusals(knobs, message):
    _, system = problem()
    with pytest.raises(InvalidInputError, match=message):
        early_bird(system, **({"train": recipe()} | knobs))


def test_a_recipe_that_is_captured_is_captured_here_too(monkeypatch):
    _, system = problem()
    knobs = {"density": 0.5, "tolerance": 0.3}
    plain = early_bird(system, train=recipe(lr=0.05), **knobs)
    assert "capture" not in dict(plain.provenance.settings)
    captured = recipe(lr=0.05, capture=True)
    with pytest.raises(InvalidInputError, match="only a GPU replays steps"):
        early_bird(system, train=captured, **knobs)
    made = []

    def captures(gradient, **_):
        made.append(gradient)
        return gradient

    monkeypatch.setattr(_mover, "Captured", captures)  # a CPU that does not refuse
    found = early_bird(system, train=captured, **knobs)
    assert len(made) == 1
    assert dict(found.provenance.settings)["capture"] is True
    assert all(torch.equal(found.masks[n], m) for n, m in plain.masks.items())


def test_masked_systems_are_refused():
    _, system = problem()
    masks = {name: torch.ones(8, 6, dtype=torch.bool) for name in ("0.weight",)}
    masks["0.weight"][0, 0] = False
    with pytest.raises(InvalidInputError, match="masked already"):
        early_bird(system.with_mask(masks), train=recipe(), density=0.5)


def test_a_state_that_leaves_the_finite_numbers():
    _, system = problem()
    with pytest.raises(ConvergenceError, match="not finite after step 1"):
        early_bird(system, train=recipe(lr=float("inf")), density=0.5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_on_a_gpu_as_on_the_cpu():
    found = []
    for device in ("cpu", "cuda"):
        net = net_of().to(device)
        system = GradientSystem(net, CE, classes(24, 6, 3))
        knobs = {"density": 0.5, "tolerance": 0.3}
        found.append(early_bird(system, train=recipe(lr=0.05), **knobs))
        x = system.data[0].to(device)
        found[-1].ticket.apply_(net)
        with torch.no_grad():
            outputs = found[-1].network.eval()(x)
            assert torch.allclose(outputs, net.eval()(x), atol=1e-12, rtol=0)
    assert found[0].drawn_step == found[1].drawn_step
    assert all(torch.equal(found[1].masks[n], m) for n, m in found[0].masks.items())
