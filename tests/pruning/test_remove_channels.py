import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from dynprune.core import InvalidInputError
from dynprune.pruning._channel_map import ChannelMap
from dynprune.pruning._remove_channels import remove_channels
from dynprune.tasks import resnet

NORMS = nn.modules.batchnorm._BatchNorm


class Sep(nn.Module):
    """Depthwise separable convolutions, as in MobileNet."""

    def __init__(self):
        nn.Module.__init__(self)
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm0 = nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm1 = nn.BatchNorm2d(8)
        self.point = nn.Conv2d(8, 6, 1)
        self.norm2 = nn.BatchNorm2d(6)
        self.alone = nn.Conv2d(6, 6, 3, groups=6, bias=False)
        self.fc = nn.Linear(6 * 6 * 6, 5)

    def forward(self, x):
        x = functional.relu6(self.norm0(self.stem(x)))
        x = functional.relu6(self.norm1(self.deep(x)))
        x = self.alone(self.norm2(self.point(x)).relu())
        return self.fc(x.view(x.size(0), -1))


class Dense(nn.Module):
    """Concatenation, pre-activation and grouped convolutions, as in DenseNet."""

    def __init__(self):
        nn.Module.__init__(self)
        self.a = nn.Conv2d(3, 4, 3, padding=1)
        self.norm_a = nn.BatchNorm2d(4)
        self.b = nn.Conv2d(4, 6, 3, padding=1)
        self.norm_b = nn.BatchNorm2d(6)
        self.both = nn.BatchNorm2d(13)
        self.grouped = nn.Conv2d(13 + 3, 8, 3, groups=2)
        self.norm_g = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        a = self.norm_a(self.a(x))
        b = self.norm_b(self.b(a.relu()))
        h = self.both(torch.cat([a, x, b], dim=1)).relu()
        h = self.norm_g(self.grouped(torch.cat([h, x], 1)))
        return self.fc(functional.avg_pool2d(h, 2).mean((2, 3)))


class Squeeze(nn.Module):
    """Channels weighed by a sigmoid, which does not map zero to zero."""

    def __init__(self):
        nn.Module.__init__(self)
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.down = nn.Conv2d(8, 2, 1)
        self.up = nn.Conv2d(2, 8, 1)
        self.back = nn.ConvTranspose2d(8, 6, 3, stride=2)
        self.norm_back = nn.BatchNorm2d(6)
        self.norm_last = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        h = self.norm(self.conv(x)).relu()
        s = self.up(self.down(self.pool(h)).relu()).sigmoid()
        h = self.norm_back(self.back(h * s)) * 0.5
        h = self.norm_last(h.sigmoid() + 1.0)
        b, c, height, width = h.shape
        return self.fc(h.reshape(b, c, height * width).mean(2))


class Shared(nn.Module):
    """A convolution and a norm that are used twice, and tied weights."""

    def __init__(self):
        nn.Module.__init__(self)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.again = nn.BatchNorm2d(4)
        self.left = nn.Linear(4, 5)
        self.right = nn.Linear(4, 5)
        self.right.weight = self.left.weight
        self.last = nn.BatchNorm1d(5)
        self.fc = nn.Linear(5, 5)

    def forward(self, x):
        h = self.norm(self.stem(x)).relu()
        h = self.again(self.conv(h)).relu()
        h = self.again(self.conv(h)).relu().mean(dim=[-1, -2])
        return self.fc(self.last(self.left(h)) + self.right(h))


def vgg() -> nn.Sequential:
    layers, width = [], 3
    for out in (8, "pool", 12, 12, "pool"):
        if out == "pool":
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(width, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
        width = out
    head = [
        nn.Flatten(),
        nn.Linear(12 * 4, 16),
        nn.BatchNorm1d(16),
        nn.ReLU(inplace=True),
        nn.Dropout(0.0),
        nn.Linear(16, 5),
    ]
    return nn.Sequential(*layers, *head)


NETS = {
    "vgg": vgg,
    "resnet-A": lambda: resnet(8, 4, in_shape=(3, 8, 8), classes=5, shortcut="A"),
    "resnet-B": lambda: resnet(20, 4, in_shape=(3, 8, 8), classes=5, shortcut="B"),
    "depthwise": Sep,
    "dense": Dense,
    "squeeze": Squeeze,
    "shared": Shared,
}


def masked(make, density, seed=0):
    """A float64 net with random norms, γ = β = 0 where masks say so, and the masks."""
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(seed)
        net = make().double()
    masks = {}
    for name, part in net.named_modules():
        if isinstance(part, NORMS):
            size = part.num_features
            kept = torch.rand(size, generator=draw) < density
            kept[int(torch.randint(size, (1,), generator=draw))] = True
            masks[name] = kept
            for tensor in (part.weight, part.bias, part.running_mean):
                tensor.data.copy_(torch.randn(size, generator=draw))
            part.running_var.copy_(torch.rand(size, generator=draw) + 0.5)
            part.weight.data.mul_(kept)
            part.bias.data.mul_(kept)
    x = torch.randn(4, 3, 8, 8, generator=draw, dtype=torch.float64)
    return net, masks, x


def flops(net, x):
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        net(x)
    return counter.get_total_flops()


def size(net):
    return sum(part.numel() for part in net.parameters())


@pytest.mark.parametrize("density", [0.0, 0.3, 0.6], ids=str)
@pytest.mark.parametrize("name", NETS)
def test_the_smaller_network_is_the_same_function(name, density):
    net, masks, x = masked(NETS[name], density)
    before = copy.deepcopy(net)
    reduced = remove_channels(net, masks, (x,))
    assert all(
        torch.equal(a, b)
        for a, b in zip(net.parameters(), before.parameters(), strict=True)
    )
    for training in (False, True):
        net.train(training)
        reduced.network.train(training)
        with torch.no_grad():
            expected, found = net(x), reduced.network(x)
        # float64 sums of at most some hundred terms in another order
        scale = float(expected.abs().max())
        assert float((expected - found).abs().max()) < 1e-12 * max(scale, 1.0)
        assert scale > 1e-3
    assert size(reduced.network) < size(net)
    fewer = flops(net, x) - flops(reduced.network, x)
    assert fewer > 0
    left = dict(reduced.kept_items)
    assert sum(int(part.sum()) for part in left.values()) < sum(
        part.numel() for part in left.values()
    )


@pytest.mark.parametrize("name", ["vgg", "resnet-B", "depthwise"])
def test_gradients_are_those_of_the_masked_network(name):
    net, masks, x = masked(NETS[name], 0.5)
    reduced = remove_channels(net, masks, (x,))
    twin = reduced.network.train()
    net.train()(x).square().sum().backward()
    twin(x).square().sum().backward()
    own = dict(net.named_parameters())
    left = dict(reduced.kept_items)
    checked = 0
    for path, part in twin.named_parameters():
        slope = own[path].grad
        if path in left:
            slope = slope[left[path]].view(part.shape)
        elif part.shape != slope.shape:
            slope = slope[masks[path.rpartition(".")[0]]]
        scale = float(slope.abs().max()) + 1.0
        assert float((part.grad - slope).abs().max()) < 1e-10 * scale, path
        checked += 1
    assert checked == len(list(twin.parameters()))


def test_a_chain_becomes_a_chain_of_the_counted_sizes():
    net, masks, x = masked(vgg, 0.5)
    reduced = remove_channels(net, masks, (x,)).network
    a, b, c, d = (int(masks[name].sum()) for name in ("1", "5", "8", "13"))
    shapes = {n: tuple(p.shape) for n, p in reduced.named_parameters() if p.ndim > 1}
    assert shapes == {
        "0.weight": (a, 3, 3, 3),
        "4.weight": (b, a, 3, 3),
        "7.weight": (c, b, 3, 3),
        "12.weight": (d, 4 * c),
        "16.weight": (5, d),
    }
    assert not any(isinstance(part, ChannelMap) for part in reduced.modules())
    assert reduced.get_submodule("0").out_channels == a
    assert reduced.get_submodule("12").in_features == 4 * c


def test_residual_sums_hold_the_union():
    net, masks, x = masked(NETS["resnet-B"], 0.3)
    reduced = remove_channels(net, masks, (x,)).network
    stem = masks["stem_norm"] | masks["stage1_block1.norm2"]
    second = reduced.get_submodule("stage1_block2.conv1")
    assert second.in_channels == int(stem.sum())
    assert second.out_channels == int(masks["stage1_block2.norm1"].sum())


def test_shared_modules_stay_whole_and_are_named():
    net, masks, x = masked(Shared, 0.4)
    masks["again"] = torch.tensor([True, False, True, False])
    net.again.weight.data.mul_(masks["again"])
    net.again.bias.data.mul_(masks["again"])
    reduced = remove_channels(net, masks, (x,))
    assert reduced.unreached == ("again",)
    assert reduced.network.get_submodule("conv").out_channels == 4


def test_a_smaller_network_trains_and_copies():
    net, masks, x = masked(NETS["resnet-B"], 0.5)
    reduced = copy.deepcopy(remove_channels(net, masks, (x,)).network).train()
    sgd = torch.optim.SGD(reduced.parameters(), lr=1e-3)
    before = float(reduced(x).square().sum().detach())
    for _ in range(3):
        sgd.zero_grad()
        reduced(x).square().sum().backward()
        sgd.step()
    assert float(reduced(x).square().sum().detach()) < before
    twin = copy.deepcopy(reduced)
    twin.load_state_dict(reduced.state_dict())


class Branching(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        h = self.norm(self.conv(x))
        return h if h.sum() > 0 else -h


class Dropping(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        h = functional.dropout(self.norm(self.conv(x)), 0.5, self.training)
        return h.mean((1, 2, 3))


class Rereading(nn.Module):
    """Multiplies in place what it reads again: not what the graph says."""

    def __init__(self):
        nn.Module.__init__(self)
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        h = self.norm(self.conv(x))
        doubled = h.exp_()
        return doubled + h


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (Branching, "cannot be followed by torch.fx: TraceError"),
        (Dropping, "depends on self.training"),
        (Rereading, "changed the network's outputs"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_graphs_that_cannot_be_followed_are_refused(make, message):
    net, masks, x = masked(make, 0.5)
    with pytest.raises(InvalidInputError, match=message):
        remove_channels(net, masks, (x,))


@pytest.mark.parametrize(
    ("before", "after"),
    [((0, 2, 5), (2, 3, 5)), ((1, 2), (1, 2)), ((0, 1, 2), (1,)), ((0,), (1, 2))],
    ids=str,
)
def test_channel_maps_agree_with_their_definition(before, after):
    whole = torch.zeros(2, 6, 3)
    x = torch.arange(6.0 * len(before)).view(2, len(before), 3) + 1.0
    whole[:, list(before)] = x
    assert torch.equal(ChannelMap(before, after)(x), whole[:, list(after)])
