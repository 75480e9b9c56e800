"""Routes × layers: every way of making products, against finite differences."""

import warnings

import pytest
import torch
from torch import nn

from dynprune.core import NumericalWarning
from dynprune.operators import HessianOperator
from dynprune.system import GradientSystem

ROUTES = ("kept", "rebuilt", "batched", "linearised")


class Attention(nn.Module):
    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.own = nn.MultiheadAttention(4, 2, batch_first=True)
        self.qkv = nn.Linear(4, 12)

    def forward(self, x):
        if not self.fused:
            return self.own(x, x, x)[0].mean(1)
        q, k, v = self.qkv(x).chunk(3, -1)
        return nn.functional.scaled_dot_product_attention(q, k, v).mean(1)


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4, padding_idx=0)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        return self.out(self.embedding(x).tanh().mean(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).tanh())[:, :3]


class Mapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 3)

    def forward(self, x):
        return torch.func.vmap(lambda row: self.one(row).tanh())(x)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(4, 3)
        self.never = nn.Linear(2, 2)

    def forward(self, x):
        return self.used(x)


def after(layer: nn.Module, *, channels: int = 4, flat: int = 4) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, channels, 3, padding=1),
        layer,
        nn.Softplus(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(flat, 3),
    )


def warmed(layer: nn.Module) -> nn.Module:
    # running statistics that are not 0 and 1
    for name, part in layer.named_buffers():
        if "running" in name:
            part.copy_(torch.linspace(0.5, 1.5, part.numel()))
    return layer


IMAGES, TOKENS, POINTS = (5, 2, 4, 4), (5, 3, 4), (5, 4)
LAYERS = {
    "Linear": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
        POINTS,
    ),
    "Conv": (lambda: after(nn.Identity()), IMAGES),
    "Conv strided": (lambda: after(nn.Conv2d(4, 4, 3, stride=2, bias=False)), IMAGES),
    "Conv grouped": (
        lambda: after(nn.Conv2d(4, 4, 3, groups=2, dilation=2, padding=2)),
        IMAGES,
    ),
    "Conv same": (lambda: after(nn.Conv2d(4, 4, 3, padding="same")), IMAGES),
    "Conv circular": (
        lambda: after(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")),
        IMAGES,
    ),
    "ConvTranspose": (lambda: after(nn.ConvTranspose2d(4, 4, 2)), IMAGES),
    "BatchNorm": (lambda: warmed(after(nn.BatchNorm2d(4))), IMAGES),
    "BatchNorm alone": (
        lambda: warmed(nn.Sequential(nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3))),
        POINTS,
    ),
    "BatchNorm plain": (lambda: warmed(after(nn.BatchNorm2d(4, affine=False))), IMAGES),
    "LayerNorm": (
        lambda: nn.Sequential(nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, 3)),
        POINTS,
    ),
    "GroupNorm": (lambda: after(nn.GroupNorm(2, 4)), IMAGES),
    "InstanceNorm": (lambda: after(nn.InstanceNorm2d(4, affine=True)), IMAGES),
    "RMSNorm": (
        lambda: nn.Sequential(nn.RMSNorm(4), nn.Tanh(), nn.Linear(4, 3)),
        POINTS,
    ),
    "Dropout off": (
        lambda: nn.Sequential(
            nn.Linear(4, 5), nn.Dropout(0.5), nn.Tanh(), nn.Linear(5, 3)
        ),
        POINTS,
    ),
    "MultiheadAttention": (lambda: Attention(fused=False), TOKENS),
    "scaled_dot_product_attention": (lambda: Attention(fused=True), TOKENS),
    "TransformerEncoderLayer": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, activation="gelu"),
            nn.Flatten(),
            nn.Linear(12, 3),
        ),
        TOKENS,
    ),
    "Embedding": (Embedded, (5, 6)),
    "tied": (Tied, POINTS),
    "weight_norm": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)),
            nn.Tanh(),
            nn.Linear(5, 3),
        ),
        POINTS,
    ),
    "weight_norm of a conv": (
        lambda: after(nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3), dim=1)),
        IMAGES,
    ),
    "torch.func inside": (Mapped, POINTS),
    "unused": (Unused, POINTS),
    "GRUCell": (
        lambda: nn.Sequential(nn.GRUCell(4, 3)),
        POINTS,
    ),
}
SILENT = {"MultiheadAttention", "scaled_dot_product_attention", "unused"}


def make(name: str) -> GradientSystem:
    maker, shape = LAYERS[name]
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        net = maker().double()
    with torch.no_grad():
        for part in net.parameters():  # norms away from 1 and 0
            part.add_(0.3 * torch.randn(part.shape, generator=generator).double())
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if name == "Embedding":
        x = torch.randint(0, 7, shape, generator=generator)
    y = torch.randint(0, 3, shape[:1], generator=generator)
    return GradientSystem(net, nn.functional.cross_entropy, (x, y))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("route", ROUTES)
def test_every_route_is_right_on_every_layer(route, name):
    system = make(name)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        H = HessianOperator(system, route=route)
        block = torch.randn(
            system.size, 2, generator=torch.Generator().manual_seed(2)
        ).double()
        if name == "Embedding":  # the row of padding never moves: it is held fixed
            block[:4] = 0.0
        found = H @ block
    for column, product in zip(block.T, found.T, strict=True):
        step = 1e-6
        ahead = system.gradient(system.state + step * column)
        behind = system.gradient(system.state - step * column)
        wanted = (ahead - behind) / (2 * step)
        # step² of third derivatives of the gradient, and eps / step
        assert float((product - wanted).norm()) <= 1e-7 * float(wanted.norm())
    assert all(one.category is NumericalWarning for one in said), said
    spoken = [str(one.message) for one in said]
    if route == "batched" and H.plan.way == "kept":  # torch has no rule for this layer
        assert any(name in text for text in spoken), spoken
    elif name not in SILENT:
        assert not spoken


def test_batches_that_torch_cannot_map_fall_back_and_say_where():
    # torch 2.11 to 2.13 has no batched second derivative of group norm; if one comes,
    # this test goes
    H = HessianOperator(make("GroupNorm"), route="batched")
    with pytest.warns(NumericalWarning, match="probably in GroupNorm"):
        plan = H.plan
    assert plan.way == "kept"
