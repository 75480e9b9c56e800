import copy
import math

import pytest
import torch
from problems import classes, small_net
from torch import nn
from torch.nn import functional

import dynprune as dp
from dynprune.core import ConvergenceError, InvalidInputError, NumericalWarning, cite
from dynprune.pruning import edge_popup, gem_miner, magnitude, random
from dynprune.pruning._gem_miner import uniform_scores
from dynprune.pruning._signed_weights import (
    fan_in,
    fans,
    plain_values,
    signed_weights,
)
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket

CE = nn.functional.cross_entropy


def conv_net() -> nn.Sequential:
    make = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    ).double()
    with torch.no_grad():
        for part in net.parameters():
            part.copy_(torch.randn(part.shape, generator=make, dtype=part.dtype))
    return net


def conv_system(net=None, **kwargs):
    net = net or conv_net()
    x, y = classes(10, 16, 3)
    return net, GradientSystem(net, CE, (x.view(10, 1, 4, 4), y), **kwargs)


class Rounded(torch.autograd.Function):
    """1[p > ½] whose backward pass hands the gradient on as it is."""

    @staticmethod
    def forward(ctx, p):
        return (p > 0.5).to(p.dtype)

    @staticmethod
    def backward(ctx, slope):
        return slope


def transcribed(net, batches, *, density, epochs, period, lam, lr, momentum=0.9):
    """Gem-Miner on the conv net above, from section 6 line by line."""
    conv, linear = net[0].weight.detach(), net[4].weight.detach()
    w = [
        conv.sign() * math.sqrt(2.0 / 9),  # 1 channel × 3 × 3
        linear.sign() * math.sqrt(2.0 / 12),
    ]
    p = list(uniform_scores({"0.weight": conv, "4.weight": linear}, seed=0).values())
    q = [torch.ones_like(part) for part in p]
    velocity = [None, None]
    mean, var = net[1].running_mean.clone(), net[1].running_var.clone()
    ones, zeros = torch.ones(3).double(), torch.zeros(3).double()
    rounds = (epochs - 1) // period
    r = 1 - density ** (1 / rounds)
    counts, losses, history, clipped = [], [], [], 0
    for epoch in range(epochs):
        lr_now = lr * (1 + math.cos(math.pi * epoch / epochs)) / 2
        total = []
        for x, y in batches:
            clipped += sum(int(((part < 0) | (part > 1)).sum()) for part in p)
            p = [part.clamp(0, 1).requires_grad_() for part in p]
            history.append([part.detach().clone() for part in p])
            a, b = (w[i] * (Rounded.apply(p[i]) * q[i]) for i in (0, 1))
            h = functional.conv2d(x, a, zeros)
            h = functional.batch_norm(h, mean, var, ones, zeros, True, 0.1)
            out = functional.linear(h.relu().flatten(1), b, zeros)
            loss = CE(out, y)
            slopes = torch.autograd.grad(loss, p)
            size = sum((part**2).sum() for part in p)
            total.append(float((loss + lam * size).detach()))
            with torch.no_grad():
                for i in (0, 1):
                    slope = slopes[i] + 2 * lam * p[i]
                    old = velocity[i]
                    velocity[i] = slope if old is None else momentum * old + slope
                p = [p[i].add(velocity[i], alpha=-lr_now) for i in (0, 1)]
        losses.append(sum(total) / len(total))
        p = [part.clamp(0, 1) for part in p]
        history.append([part.clone() for part in p])
        if epoch and epoch % period == 0:
            alive = torch.cat([p[i].abs()[q[i] == 1] for i in (0, 1)])
            cut = sorted(alive.tolist())[math.ceil(r * len(alive)) - 1]
            q = [q[i] * (p[i].abs() > cut) for i in (0, 1)]
            counts.append(int(sum(part.sum() for part in q)))
    assert clipped > 10
    return p, q, counts, losses, history, (mean, var)


def test_steps_agree_with_the_transcription(monkeypatch):
    net, whole = conv_system()
    x, y = whole.data
    batches = [(x[:5], y[:5]), (x[5:], y[5:])]
    system = GradientSystem(net, CE, batches)
    p, q, counts, losses, history, (mean, var) = transcribed(
        net, batches, density=0.4, epochs=9, period=2, lam=0.02, lr=0.5
    )
    import dynprune.pruning._gem_miner as own

    seen = []
    clamp_ = own.clamp_

    def spy(masked):
        clamp_(masked)
        seen.append([part.detach().clone() for part in masked.scores])

    monkeypatch.setattr(own, "clamp_", spy)
    ticket = gem_miner(
        system,
        density=0.4,
        epochs=9,
        freeze_every=2,
        penalty=0.02,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.5, momentum=0.9),
    )
    settings = dict(ticket.provenance.settings)
    # before each of two batches and after them, to the bit
    assert len(seen) == 3 * 9
    for a, b in zip(seen, history, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(a, b, strict=True))
    assert not torch.equal(history[0][0], history[1][0])
    assert settings["kept_counts"] == counts
    assert len(counts) == 4
    assert settings["losses"] == pytest.approx(losses, abs=1e-12)
    assert torch.equal(ticket.masks["0.weight"], q[0].bool())
    assert torch.equal(ticket.masks["4.weight"], q[1].bool())
    active = [int(((a > 0.5) * b).sum()) for a, b in zip(p, q, strict=True)]
    assert settings["active"] == sum(active)
    assert torch.allclose(ticket.buffers["1.running_mean"], mean, atol=1e-12, rtol=0)
    assert torch.allclose(ticket.buffers["1.running_var"], var, atol=1e-12, rtol=0)


def test_29_rounds_of_13_604_percent():
    net = nn.Linear(64, 40, bias=False).double()
    x, y = classes(4, 64, 40)
    system = GradientSystem(net, CE, (x, y))
    ticket = gem_miner(
        system,
        density=0.0144,
        epochs=150,
        penalty=0.0,
        optimizer=lambda params: torch.optim.SGD(params, lr=0.0),
    )
    alive, expected = 2560, []
    for _ in range(29):
        alive -= math.ceil(0.13604 * alive)
        expected.append(alive)
    found = dict(ticket.provenance.settings)["kept_counts"]
    assert len(found) == 29
    # 0.13604 is r to five digits: a count may be one off by that
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= 1
    assert found[-1] == ticket.kept
    # scores that do not move are those drawn, and the highest stay
    drawn = uniform_scores({"weight": net.weight}, seed=0)["weight"].reshape(-1)
    top = torch.zeros(2560, dtype=torch.bool)
    top[drawn.topk(ticket.kept).indices] = True
    assert torch.equal(ticket.masks["weight"].reshape(-1), top)
    assert ticket.cost == dp.Cost(gradients=150.0, steps=150)


@pytest.mark.filterwarnings("ignore:After epoch")
@pytest.mark.parametrize("density", [0.01, 0.25, 0.7, 1.0], ids=str)
def test_exact_rule_keeps_the_exact_count(density):
    _, system = conv_system()
    knobs = {"epochs": 12, "freeze_every": 3, "rule": "exact", "throw": False}
    knobs["collapse"] = "ignore"
    ticket = gem_miner(system, density=density, **knobs)
    assert ticket.kept == max(1, math.floor(density * 63 + 0.5))


def test_exact_rule_keeps_the_exact_count_from_a_mask():
    # 11 / 40 (.1625 / (11 / 40)) is below .1625, and .1625 · 40 + ½ is 7
    net = nn.Linear(10, 4, bias=False).double()
    mask = torch.arange(40).view(4, 10) < 11
    system = GradientSystem(net, CE, classes(8, 10, 4), mask={"weight": mask})
    assert magnitude(system, density=0.1625, collapse="ignore").kept == 7
    ticket = gem_miner(
        system,
        density=0.1625,
        epochs=3,
        freeze_every=2,
        rule="exact",
        throw=False,
        collapse="ignore",
    )
    assert ticket.kept == 7


def test_the_sources_share_is_not_rounded():
    # 1 − √.49 is .30000000000000004, and ⌈that · 100⌉ is 31
    net = nn.Linear(25, 4, bias=False).double()
    system = GradientSystem(net, CE, classes(8, 25, 4))
    knobs = {"density": 0.49, "epochs": 5, "freeze_every": 2, "penalty": 0.0}
    still = {"optimizer": lambda params: torch.optim.SGD(params, lr=0.0)}
    found = gem_miner(system, **knobs, **still)
    assert dict(found.provenance.settings)["kept_counts"] == [69, 48]
    exact = gem_miner(system, rule="exact", **knobs, **still)
    assert dict(exact.provenance.settings)["kept_counts"] == [70, 49]


def test_an_empty_layer_is_reported_where_it_is_not_refused():
    _, system = conv_system()
    with pytest.warns(NumericalWarning, match="nothing is kept of"):
        gem_miner(
            system,
            density=0.01,
            epochs=12,
            rule="exact",
            throw=False,
            collapse="ignore",
        )


def test_exact_rule_survives_scores_that_tie_at_one():
    _, system = conv_system()
    knobs = {
        "density": 0.3,
        "epochs": 40,
        "penalty": 0.0,
        "optimizer": lambda params: torch.optim.SGD(params, lr=50.0),
    }
    with pytest.raises(ConvergenceError, match=r"clamped at 1 tie. Pass rule='exact'"):
        gem_miner(system, **knobs)
    assert gem_miner(system, rule="exact", throw=False, **knobs).kept == 19


def test_the_state_is_what_was_mined():
    net, system = conv_system()
    ticket = gem_miner(system, density=0.5, epochs=6, freeze_every=2)
    state = ticket.state
    assert set(state) == {name for name, _ in net.named_parameters()}
    for name, n_in in (("0.weight", 9), ("4.weight", 12)):
        assert torch.equal(
            state[name].sign(), system.unflatten(system.state)[name].sign()
        )
        assert torch.allclose(
            state[name].abs(), torch.tensor(math.sqrt(2 / n_in)).double()
        )
    assert state["1.weight"].tolist() == [1.0] * 3
    assert not state["1.bias"].any()
    assert not state["4.bias"].any()
    own = gem_miner(
        system, density=0.5, epochs=6, freeze_every=2, weights="own", plain=False
    ).state
    assert all(torch.equal(own[n], p) for n, p in net.named_parameters())


def test_mined_tickets_beat_random_masks_on_the_same_weights():
    problem = dp.tasks.digits()
    system = GradientSystem(problem.model(0), problem.loss_fn, problem.train)
    ticket = gem_miner(system, density=0.1, epochs=30)
    assert abs(ticket.density - 0.1) < 2e-3

    def accuracy(masks):
        state = Ticket.make(masks, ticket.state).masked_state
        return dp.evaluate(state, problem, "test").metric

    chance = [accuracy(random(system, density=0.1, seed=i).masks) for i in range(3)]
    # 719 test examples: a standard error of two points; chance is 10 %
    assert accuracy(ticket.masks) > max(chance) + 0.3
    assert "sreenivasan" in cite(ticket)


@pytest.mark.parametrize("pruner", [gem_miner, edge_popup], ids=lambda p: p.__name__)
def test_nothing_of_the_user_changes(pruner, untouched):
    net, system = conv_system()
    net.train()
    net(system.data[0]).sum().backward()
    before = copy.deepcopy(net)
    grads = [part.grad.clone() for part in net.parameters()]
    state = system.state
    with untouched():
        first = pruner(system, density=0.5, epochs=6)
        second = pruner(system, density=0.5, epochs=6)
    other = pruner(system, density=0.5, epochs=6, seed=1)
    for a, b in zip(
        net.state_dict().values(), before.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
    assert all(
        torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads, strict=True)
    )
    assert net.training
    assert all(part.requires_grad for part in net.parameters())
    assert torch.equal(system.state, state)
    same = [torch.equal(first.masks[n], second.masks[n]) for n in first.masks]
    differ = [torch.equal(first.masks[n], other.masks[n]) for n in first.masks]
    assert all(same)
    assert not all(differ)


@pytest.mark.parametrize("pruner", [gem_miner, edge_popup], ids=lambda p: p.__name__)
def test_data_of_any_kind_give_the_same_ticket(pruner):
    net, system = conv_system()
    x, y = system.data
    expected = pruner(system, density=0.5, epochs=6, batch_size=10).masks
    batches = GradientSystem(net, CE, [(x, y)])
    named = GradientSystem(
        net,
        None,
        [{"pixels": x, "labels": y}],
        batch_loss=lambda model, batch: CE(model(batch["pixels"]), batch["labels"]),
    )
    for other in (batches, named):
        found = pruner(other, density=0.5, epochs=6).masks
        assert all(torch.equal(found[n], expected[n]) for n in expected)
    small = pruner(system, density=0.5, epochs=6, batch_size=4)
    assert small.cost == dp.Cost(gradients=6.0, steps=18)


@pytest.mark.parametrize("pruner", [gem_miner, edge_popup], ids=lambda p: p.__name__)
def test_masked_systems_stay_masked(pruner):
    _, system = conv_system()
    before = random(system, density=0.6, seed=3)
    ticket = pruner(system.with_ticket(before), density=0.3, epochs=11, batch_size=10)
    for name, mask in ticket.masks.items():
        assert not (mask & ~before.masks[name]).any()
    with pytest.raises(InvalidInputError, match="survive the system's mask"):
        pruner(system.with_ticket(before), density=0.9, epochs=6)


@pytest.mark.parametrize("pruner", [gem_miner, edge_popup], ids=lambda p: p.__name__)
def test_other_data_may_be_trained_on(pruner):
    _, system = conv_system()
    x, y = system.data
    other = (x[:6] + 1.0, y[:6])
    found = pruner(system, density=0.5, epochs=6, data=other)
    expected = pruner(system.with_data(other), density=0.5, epochs=6)
    assert all(torch.equal(found.masks[n], m) for n, m in expected.masks.items())
    # a gradient is a pass over the system's own examples
    assert found.cost.gradients == pytest.approx(6 * 6 / len(x))
    assert found.cost.steps == 6


class Attentive(nn.Module):
    """Attention, an embedding tied to the last layer, and one layer used twice."""

    def __init__(self):
        nn.Module.__init__(self)
        self.embed = nn.Embedding(7, 4)
        self.block = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
        self.twice = nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        h = self.block(self.embed(tokens))
        return self.head(self.twice(self.twice(h).tanh())).transpose(1, 2)


@pytest.mark.parametrize("pruner", [gem_miner, edge_popup], ids=lambda p: p.__name__)
def test_attention_tied_and_shared_modules(pruner):
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        net = Attentive().double()
    tokens = torch.randint(0, 7, (6, 5), generator=torch.Generator().manual_seed(0))
    system = GradientSystem(net, CE, (tokens, tokens))
    ticket = pruner(system, density=0.5, epochs=6)
    assert tuple(ticket.masks) == system.prunable
    assert "embed.weight" in ticket.masks
    ticket.apply_(net)
    assert torch.equal(net.head.weight != 0, ticket.masks["embed.weight"])
    losses = dict(ticket.provenance.settings)["losses"]
    assert all(math.isfinite(loss) for loss in losses)


class Recurrent(nn.Module):
    """A GRU and attention with biases of its own beside a Linear layer."""

    def __init__(self):
        nn.Module.__init__(self)
        self.gru = nn.GRU(6, 4, batch_first=True)
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = self.gru(x.view(-1, 2, 6))[0]
        return self.head(self.attention(h, h, h)[0].sum(1))


@pytest.mark.filterwarnings("ignore:Left out of the prunable weights")
@pytest.mark.parametrize("pruner", [gem_miner, edge_popup], ids=lambda p: p.__name__)
def test_plain_leaves_no_bias_whatever_it_is_called(pruner):
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        net = Recurrent().double()
        with torch.no_grad():
            for part in net.parameters():
                part.normal_()
    system = GradientSystem(net, CE, classes(6, 12, 3))
    biases = {name for name, _ in net.named_parameters() if "bias" in name}
    assert {"gru.bias_ih_l0", "gru.bias_hh_l0", "attention.bias_k"} < biases
    assert set(plain_values(system)) == biases
    state = pruner(system, density=0.5, epochs=6).state
    assert not any(state[name].any() for name in biases)
    own = dict(net.named_parameters())
    assert torch.equal(state["gru.weight_ih_l0"], own["gru.weight_ih_l0"])


def test_too_large_a_penalty_names_layer_penalty_and_remedy(untouched):
    net, system = conv_system()
    before = copy.deepcopy(net.state_dict())
    with (
        untouched(),
        pytest.raises(
            ConvergenceError,
            match=r"After epoch 5 nothing is kept of 0.weight, 4.weight .* λ = 5.0 .* "
            r"Pass a penalty \(λ\) below 5.0",
        ),
    ):
        gem_miner(system, density=0.5, epochs=11, penalty=5.0)
    assert all(torch.equal(net.state_dict()[n], t) for n, t in before.items())


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"density": 0.0}, "density of 0.0"),
        ({"density": 0.5, "epochs": 5}, "no round before the last epoch"),
        ({"density": 0.5, "freeze_every": 0}, "freeze_every is 0"),
        ({"density": 0.5, "penalty": -1.0}, r"penalty \(λ\) is -1.0"),
        ({"density": 0.5, "rule": "top"}, "rule is 'top'"),
        ({"density": 0.5, "weights": "random"}, "weights is 'random'"),
        ({"density": 0.5, "mode": "test"}, "mode is 'test'"),
        ({"density": 0.5, "batch_size": 0}, "batch_size is 0"),
        ({"density": 1.0, "epochs": 0}, "epochs is 0"),
        ({"density": 0.5, "optimizer": 3}, "The optimizer is"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_refusals(knobs, message):
    _, system = conv_system()
    with pytest.raises(InvalidInputError, match=message):
        gem_miner(system, **knobs)


def test_data_without_a_length_need_a_schedule():
    class Endless:
        def __init__(self, pair):
            self.pair = pair

        def __iter__(self):
            return iter([self.pair])

    net, system = conv_system()
    data = Endless(system.data)
    loader = GradientSystem(net, CE, data)
    with pytest.raises(InvalidInputError, match="no length to count steps by"):
        gem_miner(loader, density=0.5, epochs=6)
    ticket = gem_miner(
        loader,
        density=0.5,
        epochs=6,
        schedule=lambda made: torch.optim.lr_scheduler.LambdaLR(made, lambda _: 1.0),
    )
    assert ticket.cost.steps == 6


def test_a_network_without_weights_is_refused():
    net = nn.BatchNorm1d(3).double()
    system = GradientSystem(net, CE, classes(6, 3, 3))
    for pruner in (gem_miner, edge_popup):
        with pytest.raises(InvalidInputError, match="no prunable weight"):
            pruner(system, density=0.5)


@pytest.mark.parametrize("pruner", [gem_miner, edge_popup], ids=lambda p: p.__name__)
def test_scores_that_leave_the_finite_numbers(pruner):
    _, system = conv_system()
    with pytest.raises(ConvergenceError, match="not finite after epoch"):
        pruner(
            system,
            density=0.5,
            epochs=6,
            optimizer=lambda params: torch.optim.SGD(params, lr=float("inf")),
        )


@pytest.mark.parametrize(
    ("layer", "count"),
    [
        (nn.Linear(5, 3), 5),
        (nn.Conv2d(8, 4, (3, 2), groups=2), 24),
        (nn.Conv1d(6, 6, 3, groups=6), 3),
        (nn.ConvTranspose2d(8, 4, 3, groups=2), 36),
    ],
    ids=str,
)
def test_fan_in_counts_the_inputs_of_one_output(layer, count):
    assert fan_in(layer) == count
    # ones everywhere: away from the edges an output is the number of its inputs
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.bias.zero_()
        shape = {nn.Linear: (1, 5), nn.Conv1d: (1, 6, 9)}.get(type(layer), (1, 8, 9, 9))
        assert float(layer(torch.ones(shape)).max()) == count


def test_fan_in_of_a_transposed_linear_layer():
    library = pytest.importorskip("transformers.pytorch_utils")
    assert fan_in(library.Conv1D(6, 4)) == 4
    with pytest.raises(InvalidInputError, match="fan-in of a Embedding"):
        fan_in(nn.Embedding(3, 2))


@pytest.mark.parametrize("width", [None, 3], ids=["stacked", "apart"])
def test_fan_in_of_attention(width):
    part = nn.MultiheadAttention(4, 2, kdim=width, vdim=width).double()
    named = dict(part.named_parameters())
    system = GradientSystem(
        part,
        None,
        [torch.ones(1)],
        batch_loss=lambda net, _: sum(p.square().mean() for p in net.parameters()),
    )
    found = fans(system)
    assert tuple(found) == system.prunable
    # every row of a projection is one output
    assert found == {name: named[name].shape[1] for name in system.prunable}
    assert set(found.values()) == ({4} if width is None else {4, 3})


def test_signs_and_plain_values():
    net = small_net()
    with torch.no_grad():
        net[0].weight[0, 0] = 0.0
    system = GradientSystem(net, CE, classes(6, 3, 3))
    found = signed_weights(system)["0.weight"]
    assert float(found[0, 0]) == math.sqrt(2 / 3)
    assert set(plain_values(system)) == {"0.bias", "2.bias"}


def test_plain_values_of_norms():
    net = nn.Sequential(
        nn.Linear(4, 4), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.PReLU(), nn.RMSNorm(4)
    ).double()
    system = GradientSystem(net, CE, classes(6, 4, 4))
    found = plain_values(system)
    assert {n for n, v in found.items() if bool((v == 1).all())} == {
        "1.weight",
        "2.weight",
        "4.weight",
    }
    assert {n for n, v in found.items() if not v.any()} == {
        "0.bias",
        "1.bias",
        "2.bias",
    }


class Cosines(nn.Module):
    """A classifier that calls itself a norm: cosines with one vector per class."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        make = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(3, 4, generator=make).double())

    def forward(self, x):
        return nn.functional.linear(
            nn.functional.normalize(x), nn.functional.normalize(self.weight)
        )


class NormFace(Cosines):
    pass


class MyNorm(nn.Module):
    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(torch.full((4,), 3.0, dtype=torch.float64))

    def forward(self, x):
        return self.weight * nn.functional.normalize(x)


@pytest.mark.parametrize("pruner", [gem_miner, edge_popup])
def test_what_only_calls_itself_a_norm_keeps_its_matrix(pruner):
    net = nn.Sequential(nn.Linear(4, 4), MyNorm(), NormFace()).double()
    system = GradientSystem(net, CE, classes(12, 4, 3))
    ticket = pruner(system, density=0.5, epochs=6)
    assert torch.equal(ticket.state["2.weight"], net[2].weight)
    # the scale of a norm of the user's own is one number for each channel
    assert bool((ticket.state["1.weight"] == 1).all())
    # a scale of torch's own norms may have more axes
    layer = nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.LayerNorm([2, 2]), nn.Flatten(), nn.Linear(4, 3)
    ).double()
    values = plain_values(GradientSystem(layer, CE, classes(6, 4, 3)))
    assert values["1.weight"].shape == (2, 2)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("pruner", [gem_miner, edge_popup], ids=lambda p: p.__name__)
def test_on_a_gpu_as_on_the_cpu(pruner):
    tickets = []
    for device in ("cpu", "cuda"):
        _, system = conv_system(conv_net().to(device))
        tickets.append(pruner(system, density=0.5, epochs=6))
    a, b = tickets
    assert all(torch.equal(b.masks[n], mask) for n, mask in a.masks.items())


def wide_system(dtype, width=64):
    net = small_net(widths=(6, width, 3)).to(dtype)
    x, y = classes(16, 6, 3)
    return GradientSystem(net, CE, (x.to(dtype), y))


def resting(parameters):
    return torch.optim.SGD(parameters, lr=0.0)


@pytest.mark.parametrize("penalty", [0.0, 1e-4])
@pytest.mark.parametrize("rule", ["exact", "gem_miner"])
def test_scores_of_a_model_in_half_precision_choose_and_not_ties(rule, penalty):
    # bfloat16 tells some 200 numbers of [0, 1) apart, and there are 2304 weights
    knobs = {"density": 0.1, "epochs": 7, "optimizer": resting, "penalty": penalty}
    found, expected = (
        gem_miner(wide_system(dtype, 256), rule=rule, **knobs)
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert found.kept == expected.kept
    assert all(torch.equal(found.masks[n], m) for n, m in expected.masks.items())
    assert {part.dtype for part in found.state.values()} == {torch.bfloat16}
    a, b = (dict(one.provenance.settings) for one in (found, expected))
    assert a["kept_counts"] == b["kept_counts"]
    assert a["active"] == b["active"]


@pytest.mark.parametrize("prune", [gem_miner, edge_popup])
def test_scores_of_a_model_in_half_precision_move_in_single(prune):
    # a step of 1e-5 is lost on eight bits of a score
    seen = []

    def small_steps(parameters):
        seen.extend((part, part.detach().clone()) for part in parameters)
        return torch.optim.SGD(parameters, lr=1e-5)

    system = wide_system(torch.bfloat16)
    ticket = prune(system, density=0.5, epochs=7, optimizer=small_steps)
    assert {part.dtype for part in ticket.state.values()} == {torch.bfloat16}
    for part, start in seen:
        assert part.dtype == torch.float32
        moves = (part.detach() - start).abs()
        assert 0 < moves.max() < 1e-3
