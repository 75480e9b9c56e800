"""Scores against formulas that no autograd of a score shares: differences, products."""

import copy

import pytest
import torch
from problems import classes, small_net
from torch import nn

from dynprune.pruning import (
    grasp,
    grasp_scores,
    kept_count,
    snip_scores,
    synflow,
    synflow_scores,
)
from dynprune.system import GradientSystem

CE = nn.functional.cross_entropy


class Residual(nn.Module):
    """Two convolutions with norms, a skip with a 1×1 convolution, a head."""

    def __init__(self):
        nn.Module.__init__(self)
        self.stem = nn.Conv2d(1, 2, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(2)
        self.inner = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(3)
        self.skip = nn.Conv2d(2, 3, 1, bias=False)
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        h = torch.tanh(self.norm(self.stem(x)))
        h = torch.tanh(self.inner_norm(self.inner(h)) + self.skip(h))
        return self.head(h.mean((2, 3)))


def residual_system():
    make = torch.Generator().manual_seed(3)
    net = Residual().double()
    with torch.no_grad():
        for part in (*net.parameters(), *net.buffers()):
            if part.is_floating_point():
                part.copy_(torch.randn(part.shape, generator=make))
        for norm in (net.norm, net.inner_norm):
            norm.running_var.abs_().add_(0.5)
    x, y = classes(6, 25, 3)
    return net, GradientSystem(net, CE, (x.view(6, 1, 5, 5), y))


def twin_of(net, mode):
    twin = copy.deepcopy(net).train(mode == "train")
    for part in twin.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = 0.0  # what is differenced must not move
    return twin


def gradient(twin, names, data):
    own = dict(twin.named_parameters())
    parts = torch.autograd.grad(CE(twin(data[0]), data[1]), [own[n] for n in names])
    return dict(zip(names, parts, strict=True))


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_snip_is_the_derivative_by_the_mask(mode):
    # s = |dL(m ⊙ w)/dm| at m = 1, by Richardson's central differences in m
    net, system = residual_system()
    twin = twin_of(net, mode)
    own = dict(twin.named_parameters())
    x, y = system.data

    def difference(flat, place, step):
        value = float(flat[place])
        losses = []
        for sign in (1, -1):
            flat[place] = value * (1 + sign * step)
            losses.append(CE(twin(x), y).item())
        flat[place] = value
        return (losses[0] - losses[1]) / (2 * step)

    for name, found in snip_scores(system, mode=mode).items():
        flat, step = own[name].data.view(-1), 2e-3
        expected = torch.tensor(
            [
                abs(4 * difference(flat, i, step / 2) - difference(flat, i, step)) / 3
                for i in range(len(flat))
            ],
            dtype=torch.float64,
        )
        # h⁴ and eps/h are both below 1e-10 of the loss
        torch.testing.assert_close(found.view(-1), expected, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_grasp_is_the_difference_of_gradients_along_the_gradient(mode):
    # Hg = d/dε ∇L(w + ε g), over the prunable weights
    net, system = residual_system()
    names, data = system.prunable, system.data
    g = gradient(twin_of(net, mode), names, data)

    def moved(step):
        twin = twin_of(net, mode)
        own = dict(twin.named_parameters())
        with torch.no_grad():
            for name in names:
                own[name] += step * g[name]
        return gradient(twin, names, data)

    h, weights = 1e-4, dict(net.named_parameters())
    ahead, behind = moved(h), moved(-h)
    found = grasp_scores(system, temperature=1.0, mode=mode)
    for name in names:
        product = (ahead[name] - behind[name]) / (2 * h)
        expected = (weights[name] * product).detach()
        atol = 1e-4 * float(expected.abs().max())
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=atol * 1e-2)


def test_modes_differ_where_there_are_norms():
    _, system = residual_system()
    for score in (snip_scores, grasp_scores):
        a, b = score(system, mode="eval"), score(system, mode="train")
        assert all(not torch.allclose(a[n], b[n], rtol=1e-2) for n in a)


def test_grasp_in_absolute_value():
    _, system = residual_system()
    signed = grasp_scores(system)
    found = grasp_scores(system, absolute=True)
    assert all(torch.equal(found[n], part.abs()) for n, part in signed.items())
    assert any((part < 0).any() for part in signed.values())
    ticket = grasp(system, density=0.4, absolute=True)
    kept = torch.cat([found[n][m] for n, m in ticket.masks.items()])
    gone = torch.cat([found[n][~m] for n, m in ticket.masks.items()])
    assert kept.min() >= gone.max()
    assert dict(ticket.provenance.settings)["absolute"] is True
    other = grasp(system, density=0.4)
    assert any(not torch.equal(m, other.masks[n]) for n, m in ticket.masks.items())


def test_synflow_of_a_chain_is_a_product_of_matrices():
    # s = |W_l| ⊙ (…|W_{l+2}|ᵀ|W_{l+1}|ᵀ 1)(|W_{l−1}|…|W_1| 1)ᵀ, from single precision
    net = small_net(widths=(6, 9, 7, 4), activation=nn.ReLU).float()
    for part in net:
        if isinstance(part, nn.Linear):
            part.bias = None
    x, y = classes(6, 6, 4)
    system = GradientSystem(net, CE, (x.float(), y))
    matrices = [p.detach().double().abs() for p in net.parameters()]
    for place, found in enumerate(synflow_scores(system).values()):
        right = torch.ones(6, dtype=torch.float64)
        for matrix in matrices[:place]:
            right = matrix @ right
        left = torch.ones(4, dtype=torch.float64)
        for matrix in reversed(matrices[place + 1 :]):
            left = matrix.T @ left
        expected = matrices[place] * torch.outer(left, right)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_sixty_wide_layers_stay_finite_and_conserve_the_flow():
    # in single precision the sum is beyond 1e38: Kaiming's mean |w| is 1/(2√512)
    layers = []
    make = torch.Generator().manual_seed(0)
    for _ in range(60):
        layer = nn.utils.skip_init(nn.Linear, 512, 512, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.rand(512, 512, generator=make).sub_(0.5) / 11.3)
        layers += [layer, nn.ReLU()]
    net = nn.Sequential(*layers)
    x = torch.zeros(2, 512)
    system = GradientSystem(net, CE, (x, torch.tensor([0, 1])))
    scores = synflow_scores(system)
    sums = torch.stack([part.sum() for part in scores.values()])
    assert len(sums) == 60
    assert all(bool(part.isfinite().all()) for part in scores.values())
    assert float(sums[0]) > float(torch.finfo(torch.float32).max)
    # sums of 512² positive terms through 60 layers
    assert float((sums / sums[0] - 1).abs().max()) < 1e-11


def test_flow_is_conserved_over_cuts_where_there_are_skips():
    # by Euler, R = Σ over any cut of the graph; single layers beside a skip carry less
    class Skip(nn.Module):
        def __init__(self):
            nn.Module.__init__(self)
            parts = [small_net(seed=s, widths=(4, 4))[0] for s in range(3)]
            for part in parts:
                part.bias = None
            self.first, self.inner, self.last = parts

        def forward(self, x):
            h = torch.relu(self.first(x))
            return self.last(h + torch.relu(self.inner(h)))

    scores = synflow_scores(GradientSystem(Skip(), CE, classes(6, 4, 4)))
    sums = {name: float(part.sum()) for name, part in scores.items()}
    assert sums["first.weight"] == pytest.approx(sums["last.weight"], rel=1e-13)
    assert sums["inner.weight"] < 0.99 * sums["last.weight"]


def test_synflow_of_a_network_with_norms_keeps_its_count():
    _, system = residual_system()
    ticket = synflow(system, density=0.3, activations="linear")
    assert ticket.kept == kept_count(0.3, ticket.prunable_size)
