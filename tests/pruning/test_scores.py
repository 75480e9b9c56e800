import copy

import pytest
import torch
from problems import classes, small_net
from torch import nn

from dynprune.core import Cost, InvalidInputError, generator
from dynprune.pruning import (
    BASELINES,
    grasp,
    grasp_scores,
    magnitude,
    magnitude_scores,
    random,
    snip,
    snip_scores,
)
from dynprune.system import GradientSystem

CE = nn.functional.cross_entropy


def problem(**kwargs):
    """A 3-4-3 tanh net in float64 on 12 examples."""
    model, data = small_net(), classes(12, 3, 3)
    return model, GradientSystem(model, CE, data, **kwargs)


def norm_net() -> nn.Sequential:
    make = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    ).double()
    with torch.no_grad():
        for part in net.parameters():
            part.copy_(torch.randn(part.shape, generator=make, dtype=part.dtype))
        net[1].running_mean.copy_(torch.randn(3, generator=make))
        net[1].running_var.copy_(torch.rand(3, generator=make) + 0.5)
    return net


def norm_system():
    net = norm_net()
    x, y = classes(10, 16, 3)
    return net, GradientSystem(net, CE, (x.view(10, 1, 4, 4), y))


def close(a, b, rtol):
    assert list(a) == list(b)
    for name in a:
        scale = float(b[name].abs().max())
        assert float((a[name] - b[name]).abs().max()) <= rtol * scale, name


def dense_block(net, weights, x, y, temperature):
    """Gradient and Hessian over the prunable weights, row by row."""
    loss = CE(net(x) / temperature, y)
    slopes = torch.autograd.grad(loss, weights, create_graph=True)
    flat = torch.cat([slope.reshape(-1) for slope in slopes])
    rows = []
    for entry in flat:
        parts = torch.autograd.grad(
            entry, weights, retain_graph=True, materialize_grads=True
        )
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    return flat.detach(), torch.stack(rows)


def weights_of(net):
    return {n: p for n, p in net.named_parameters() if p.ndim > 1}


def test_snip_of_a_softmax_layer_is_its_closed_form():
    # L = mean CE of xW': dL/dW = (softmax − onehot)' x / N
    model = small_net(widths=(3, 3))
    x, y = classes(12, 3, 3)
    logits = x @ model[0].weight.T + model[0].bias
    slope = (logits.softmax(1) - nn.functional.one_hot(y, 3)).T @ x / 12
    found = snip_scores(GradientSystem(model, CE, (x, y)))
    close(found, {"0.weight": (model[0].weight * slope).abs().detach()}, 1e-12)


@pytest.mark.parametrize("sizes", [(12,), (6, 6), (11, 1)], ids=str)
def test_snip_ignores_how_data_are_batched(sizes):
    model, system = problem()
    x, y = system.data
    batches = list(zip(x.split(sizes), y.split(sizes), strict=True))
    close(
        snip_scores(GradientSystem(model, CE, batches)),
        snip_scores(system),
        1e-12,
    )


def test_snip_in_single_precision_agrees_with_double():
    model, system = problem()
    x, y = system.data
    single = GradientSystem(copy.deepcopy(model).float(), CE, (x.float(), y))
    # float32 rounding of 12 examples through two layers
    close(
        {n: s.double() for n, s in snip_scores(single).items()},
        snip_scores(system),
        1e-5,
    )


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_snip_with_batch_norm_in_either_mode(mode):
    net, system = norm_system()
    twin = copy.deepcopy(net).train(mode == "train")
    x, y = system.data
    slopes = torch.autograd.grad(CE(twin(x), y), list(weights_of(twin).values()))
    expected = {
        name: (part * slope).abs().detach()
        for (name, part), slope in zip(weights_of(twin).items(), slopes, strict=True)
    }
    before = copy.deepcopy(net.state_dict())
    close(snip_scores(system, mode=mode), expected, 1e-12)
    assert all(torch.equal(net.state_dict()[n], t) for n, t in before.items())


def test_modes_differ():
    _, system = norm_system()
    a, b = snip_scores(system, mode="eval"), snip_scores(system, mode="train")
    assert not torch.allclose(a["0.weight"], b["0.weight"], rtol=0.1)


@pytest.mark.parametrize("temperature", [1.0, 200.0], ids=str)
def test_grasp_agrees_with_the_dense_hessian(temperature):
    model, system = problem()
    x, y = system.data
    weights = weights_of(model)
    g, H = dense_block(model, list(weights.values()), x, y, temperature)
    products = (H @ g).split([part.numel() for part in weights.values()])
    expected = {
        name: (part * product.view(part.shape)).detach()
        for (name, part), product in zip(weights.items(), products, strict=True)
    }
    close(grasp_scores(system, temperature=temperature), expected, 1e-10)


def test_dense_block_agrees_with_finite_differences():
    model, system = problem()
    x, y = system.data
    weights = list(weights_of(model).values())
    _, H = dense_block(model, weights, x, y, 1.0)
    h, column = 1e-5, 5
    slopes = []
    for sign in (1, -1):
        twin = copy.deepcopy(model)
        with torch.no_grad():
            weights_of(twin)["0.weight"].view(-1)[column] += sign * h
        slopes.append(dense_block(twin, list(weights_of(twin).values()), x, y, 1.0)[0])
    # central differences: h² from the third derivative, eps / h from rounding
    difference = (slopes[0] - slopes[1]) / (2 * h)
    assert float((difference - H[:, column]).abs().max()) < 1e-8


def test_grasp_over_batches_uses_the_mean_gradient():
    model, system = problem()
    x, y = system.data
    batches = [(x[:7], y[:7]), (x[7:], y[7:])]
    close(grasp_scores(GradientSystem(model, CE, batches)), grasp_scores(system), 1e-10)


def test_grasp_of_a_masked_system_uses_the_block_of_survivors():
    model, system = problem()
    ticket = random(system, density=0.6, seed=2)
    ticket.apply_(model)
    x, y = system.data
    weights = weights_of(model)
    kept = torch.cat([m.reshape(-1) for m in ticket.masks.values()]).double()
    g, H = dense_block(model, list(weights.values()), x, y, 1.0)
    products = (H @ (g * kept)).split([part.numel() for part in weights.values()])
    expected = {
        name: (part * product.view(part.shape)).detach()
        for (name, part), product in zip(weights.items(), products, strict=True)
    }
    found = grasp_scores(system.with_ticket(ticket), temperature=1.0)
    close(found, expected, 1e-10)
    assert all(not found[n][~m].any() for n, m in ticket.masks.items())


def test_grasp_keeps_the_highest():
    _, system = problem()
    scores = grasp_scores(system)
    mask = grasp(system, density=0.3).masks
    kept = torch.cat([scores[n][mask[n]] for n in scores])
    gone = torch.cat([scores[n][~mask[n]] for n in scores])
    assert kept.min() >= gone.max()


def test_grasp_refuses_to_divide_what_is_no_tensor():
    class Pair(nn.Module):
        def __init__(self):
            nn.Module.__init__(self)
            self.inner = small_net()

        def forward(self, x):
            return self.inner(x), x

    system = GradientSystem(Pair(), lambda out, y: CE(out[0], y), classes(12, 3, 3))
    with pytest.raises(InvalidInputError, match="returns a tuple"):
        grasp(system, density=0.5)
    assert grasp(system, density=0.5, temperature=1.0).kept == 12


def test_l2_is_no_part_of_scores():
    _, plain = problem()
    _, decayed = problem(l2=10.0)
    close(snip_scores(decayed), snip_scores(plain), 0.0)
    close(grasp_scores(decayed), grasp_scores(plain), 0.0)


def test_custom_batches():
    model, system = problem()
    x, y = system.data
    batches = [{"x": x[:5], "y": y[:5]}, {"x": x[5:], "y": y[5:]}]
    other = GradientSystem(
        model, None, batches, batch_loss=lambda net, b: CE(net(b["x"]), b["y"])
    )
    close(snip_scores(other), snip_scores(system), 1e-12)
    close(grasp_scores(other), grasp_scores(system), 1e-10)


def test_bad_knobs_are_refused():
    _, system = problem()
    with pytest.raises(InvalidInputError, match="mode is 'test'"):
        snip(system, density=0.5, mode="test")
    with pytest.raises(InvalidInputError, match="temperature is 0"):
        grasp(system, density=0.5, temperature=0)
    _, frozen = problem(parameters="*.bias")
    with pytest.raises(InvalidInputError, match="no prunable weight"):
        snip(frozen, density=0.5)


def test_magnitude_of_own_and_of_trained_state():
    model, system = problem()
    expected = {name: part.detach().abs() for name, part in weights_of(model).items()}
    close(magnitude_scores(system), expected, 0.0)
    trained = {n: p.detach() * -2.0 for n, p in small_net(seed=5).named_parameters()}
    ticket = magnitude(system, density=0.5, state=trained, cost=Cost(gradients=7.0))
    flat = magnitude(system, density=0.5, state=system.flatten(trained))
    for name, mask in ticket.masks.items():
        assert torch.equal(mask, flat.masks[name])
        assert torch.equal(ticket.state[name], dict(model.named_parameters())[name])
    kept = torch.cat([trained[n][m].abs() for n, m in ticket.masks.items()])
    gone = torch.cat([trained[n][~m].abs() for n, m in ticket.masks.items()])
    assert kept.min() > gone.max()
    assert ticket.cost == Cost(gradients=7.0)


def test_random_is_its_seed():
    _, system = problem()
    a, b, c = (random(system, density=0.5, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a.masks[n], b.masks[n]) for n in a.masks)
    assert any(not torch.equal(a.masks[n], c.masks[n]) for n in a.masks)
    nested = random(system, density=0.25, seed=0)
    assert all(not (m & ~a.masks[n]).any() for n, m in nested.masks.items())


def test_random_is_uniform():
    # 4 standard errors of a binomial with p = 1/4 over 400 draws of 24 weights
    _, system = problem()
    draws = [
        random(system, density=0.25, collapse="ignore", seed=s).masks
        for s in range(400)
    ]
    flat = torch.stack([torch.cat([m.reshape(-1) for m in d.values()]) for d in draws])
    shares = flat.double().mean(0)
    assert float((shares - 0.25).abs().max()) < 4 * (0.25 * 0.75 / 400) ** 0.5


@pytest.mark.parametrize("baseline", BASELINES, ids=lambda b: b.name)
def test_baselines_leave_everything_as_it_was(baseline, untouched):
    net, system = norm_system()
    net.train()
    draw = generator(0)
    for part in net.parameters():
        part.grad = torch.rand(part.shape, generator=draw, dtype=part.dtype)
    before = copy.deepcopy(net.state_dict())
    slopes = [part.grad.clone() for part in net.parameters()]
    with untouched(), torch.no_grad():
        ticket = baseline(system, density=0.25, seed=3)
    assert ticket.kept == round(0.25 * (27 + 36))
    assert net.training
    assert all(torch.equal(net.state_dict()[n], t) for n, t in before.items())
    grads = [part.grad for part in net.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(grads, slopes, strict=True))
    assert all(part.requires_grad for part in net.parameters())
    assert ticket.provenance.seed == 3
    assert torch.equal(ticket.buffers["1.running_var"], net[1].running_var)


@pytest.mark.parametrize(
    ("name", "cost"),
    [
        ("random", Cost()),
        ("magnitude-init", Cost()),
        ("snip", Cost(gradients=1.0)),
        ("grasp", Cost(gradients=1.0, hvps=1.0)),
        ("synflow", Cost(gradients=10.1)),
        ("erk", Cost()),
        ("force", Cost(gradients=10.0)),
        ("iterative-snip", Cost(gradients=10.0)),
        ("lamp", Cost()),
    ],
)
def test_costs_are_in_passes_over_the_data(name, cost):
    _, system = norm_system()
    (baseline,) = [one for one in BASELINES if one.name == name]
    assert baseline(system, density=0.5).cost == cost
