import copy

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from dynprune.core import InvalidInputError
from dynprune.tasks import resnet
from dynprune.tickets import Reduced, pack_network, remove_channels, unpack_network
from dynprune.tickets._channel_map import ChannelMap

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
        self.biased = nn.Conv2d(6, 6, 1, groups=6)
        self.fc = nn.Linear(6 * 6 * 6, 5)

    def forward(self, x):
        x = functional.relu6(self.norm0(self.stem(x)))
        x = functional.relu6(self.norm1(self.deep(x)))
        x = self.alone(self.norm2(self.point(x)).relu())
        x = self.biased(x)
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


class InPlace(nn.Module):
    """Residual blocks that add and rectify in place, with one ReLU for all."""

    def __init__(self):
        nn.Module.__init__(self)
        self.stem, self.norm0 = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.conv1, self.norm1 = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        h = self.relu(self.norm0(self.stem(x)))
        identity = h
        out = self.relu(self.norm1(self.conv1(h)))
        out = self.norm2(self.conv2(out))
        out += identity
        return self.fc(torch.flatten(self.pool(self.relu(out)), 1))


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
    "in-place": InPlace,
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
    reduced = remove_channels(net, masks, example=(x,))
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
    reduced = remove_channels(net, masks, example=(x,))
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
    reduced = remove_channels(net, masks, example=(x,)).network
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
    reduced = remove_channels(net, masks, example=(x,)).network
    stem = masks["stem_norm"] | masks["stage1_block1.norm2"]
    second = reduced.get_submodule("stage1_block2.conv1")
    assert second.in_channels == int(stem.sum())
    assert second.out_channels == int(masks["stage1_block2.norm1"].sum())


def test_shared_modules_stay_whole_and_are_named():
    net, masks, x = masked(Shared, 0.4)
    masks["again"] = torch.tensor([True, False, True, False])
    net.again.weight.data.mul_(masks["again"])
    net.again.bias.data.mul_(masks["again"])
    reduced = remove_channels(net, masks, example=(x,))
    assert reduced.unreached == ("again",)
    assert reduced.network.get_submodule("conv").out_channels == 4


def test_a_smaller_network_trains_and_copies():
    net, masks, x = masked(NETS["resnet-B"], 0.5)
    reduced = copy.deepcopy(remove_channels(net, masks, example=(x,)).network).train()
    sgd = torch.optim.SGD(reduced.parameters(), lr=1e-3)
    before = float(reduced(x).square().sum().detach())
    for _ in range(3):
        sgd.zero_grad()
        reduced(x).square().sum().backward()
        sgd.step()
    assert float(reduced(x).square().sum().detach()) < before
    twin = copy.deepcopy(reduced)
    twin.load_state_dict(reduced.state_dict())


@pytest.mark.parametrize("name", ["resnet-B", "shared", "dense"])
def test_a_saved_result_comes_back(name, tmp_path):
    net, masks, x = masked(NETS[name], 0.4)
    reduced = remove_channels(net, masks, example=(x,))
    reduced.save(tmp_path / "small")
    other = NETS[name]().double()
    again = Reduced.load(tmp_path / "small", other)
    assert again.unreached == reduced.unreached
    assert again.kept.keys() == reduced.kept.keys()
    for part, mask in reduced.kept.items():
        assert torch.equal(again.kept[part], mask)
    with torch.no_grad():
        expected, found = reduced.network.eval()(x), again.network.eval()(x)
    assert torch.equal(expected, found)
    with pytest.raises(InvalidInputError, match="another model"):
        Reduced.load(tmp_path / "small", vgg().double())
    (tmp_path / "small").write_bytes(b"no network")
    with pytest.raises(InvalidInputError, match="small"):
        Reduced.load(tmp_path / "small", other)


def test_a_smaller_network_becomes_smaller_again():
    net, masks, x = masked(NETS["resnet-B"], 0.7)
    first = remove_channels(net, masks, example=(x,)).network
    maps = {n for n, part in first.named_modules() if isinstance(part, ChannelMap)}
    norm = first.get_submodule("stage2_block1.norm2")
    keep = torch.arange(norm.num_features) > 0
    norm.weight.data.mul_(keep)
    norm.bias.data.mul_(keep)
    reduced = remove_channels(
        first, {"stage2_block1.norm2": keep}, example=(x,)
    ).network
    found = {n for n, part in reduced.named_modules() if isinstance(part, ChannelMap)}
    assert maps < found  # the maps that were there are there
    assert size(reduced) < size(first)
    with torch.no_grad():
        expected, outputs = first.eval()(x), reduced.eval()(x)
    scale = float(expected.abs().max())
    assert float((expected - outputs).abs().max()) < 1e-12 * max(scale, 1.0)
    again = unpack_network(*pack_network(reduced), first)
    assert [n for n, _ in again.named_modules()] == [
        n for n, _ in reduced.named_modules()
    ]


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
        remove_channels(net, masks, example=(x,))


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


# -- what is kept ---------------------------------------------------------------------


def test_a_network_without_maps_keeps_its_class():
    net, masks, x = masked(vgg, 0.5)
    assert type(remove_channels(net, masks, example=x).network) is nn.Sequential
    net, masks, x = masked(NETS["resnet-B"], 0.5)
    small = remove_channels(net, masks, example=x).network
    assert isinstance(small, torch.fx.GraphModule)


def chain(*between, bias=True):
    """Two convolutions with a norm, and what is given, between them."""
    return lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        *(part() for part in between),
        nn.Conv2d(6, 4, 3, bias=bias),
    )


def test_slopes_of_each_channel_go_with_it():
    net, masks, x = masked(chain(lambda: nn.PReLU(6)), 0.5)
    reduced = remove_channels(net, masks, example=x)
    count = int(masks["1"].sum())
    assert reduced.network[2].num_parameters == reduced.network[3].in_channels == count
    assert torch.equal(reduced.kept["2.weight"], masks["1"])
    assert torch.equal(reduced.kept["1.weight"], masks["1"])
    for training in (True, False):
        expected = net.train(training)(x)
        found = reduced.network.train(training)(x)
        assert torch.allclose(expected, found, atol=1e-12, rtol=0)


def test_what_is_zero_now_but_need_not_stay_so_is_kept():
    # scale and shift of a channel to keep may be zero, as a residual branch starts
    net, masks, x = masked(chain(nn.ReLU), 0.5)
    with torch.no_grad():
        net[1].weight.zero_()
        net[1].bias.zero_()
    small = remove_channels(net, masks, example=x).network
    assert small[0].out_channels == small[3].in_channels == int(masks["1"].sum())
    # so may the weights of a layer and the bias of a depthwise one
    net, masks, x = masked(Sep, 0.5)
    with torch.no_grad():
        net.biased.bias.zero_()
        net.fc.weight[:, :36] = 0.0
        net.point.weight[1] = 0.0
    reduced = remove_channels(net, masks, example=x)
    assert reduced.network.get_submodule("biased").groups == 6
    rows = int(masks["norm2"].sum())
    assert reduced.network.get_submodule("point").out_channels == rows
    twin = reduced.network.train()
    net.train()(x).square().sum().backward()
    twin(x).square().sum().backward()
    assert float(twin.get_submodule("biased").bias.grad[1:].abs().min()) > 0
    slope = net.fc.weight.grad
    assert torch.allclose(twin.get_submodule("fc").weight.grad, slope, rtol=1e-10)


class Product(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.a, self.norm_a = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.b, self.norm_b = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 2, 3)

    def forward(self, x):
        return self.last(self.norm_a(self.a(x)) * self.norm_b(self.b(x)))


def test_a_product_of_channels_that_never_meet_keeps_one_of_zeros():
    net, masks, x = masked(Product, 1.0)
    masks = {"norm_a": torch.arange(4) > 1, "norm_b": torch.arange(4) < 2}
    with torch.no_grad():
        for name, mask in masks.items():
            net.get_submodule(name).weight.mul_(mask)
            net.get_submodule(name).bias.mul_(mask)
    small = remove_channels(net, masks, example=x).network
    assert small.get_submodule("last").in_channels == 1
    assert small.get_submodule("a").out_channels == 2
    assert torch.allclose(small(x), net(x), atol=1e-12, rtol=0)


@pytest.mark.parametrize("p", [0.0, 0.5], ids=str)
@pytest.mark.parametrize("kind", [nn.Dropout, nn.Dropout2d, nn.AlphaDropout])
def test_dropout_passes_zeros_unless_it_drops_to_another_value(kind, p):
    net, masks, x = masked(chain(nn.ReLU, lambda: kind(p)), 0.5)
    small = remove_channels(net, masks, example=x).network
    wide = 6 if kind is nn.AlphaDropout else int(masks["1"].sum())
    assert small.get_submodule("4").in_channels == wide
    # a constant that is not zero does not survive a dropout either
    parts = nn.Sigmoid, lambda: kind(p), lambda: nn.Softshrink(0.5)
    net, masks, x = masked(chain(*parts), 0.5)
    small = remove_channels(net, masks, example=x).network
    assert small.get_submodule("5").in_channels == 6


def test_hooks_keep_a_layer_whole():
    net, masks, x = masked(chain(nn.ReLU), 0.5)
    net[3].register_forward_hook(lambda _module, _inputs, output: 2.0 * output)
    reduced = remove_channels(net, masks, example=x)
    assert reduced.network.get_submodule("3").in_channels == 6
    assert reduced.network.get_submodule("0").out_channels == int(masks["1"].sum())
    assert torch.allclose(reduced.network.eval()(x), net.eval()(x), atol=1e-12)


class Deciding(nn.Module):
    """A network that cannot be traced, of modules that can."""

    def __init__(self):
        nn.Module.__init__(self)
        self.first, self.last = InPlace(), nn.Linear(5, 2)

    def forward(self, x):
        h = self.first(x)
        return self.last(h if h.sum() < 1e9 else -h)


def hugging_resnet():
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        num_channels=3,
        embedding_size=4,
        hidden_sizes=[4, 8],
        depths=[2, 2],
        layer_type="basic",
        num_labels=3,
    )
    return transformers.ResNetForImageClassification(config)


class Noisy(nn.Module):
    """Draws numbers, which torch.fx takes for constants."""

    def __init__(self):
        nn.Module.__init__(self)
        self.block, self.fc = InPlace(), nn.Linear(5, 5)

    def forward(self, x):
        return self.fc(self.block(x) + torch.randn(5).double())


def test_numbers_that_are_drawn_do_not_become_constants(untouched):
    net, masks, x = masked(Noisy, 0.3, seed=2)
    with untouched(), pytest.raises(InvalidInputError, match="graph does not show"):
        remove_channels(net, masks, example=x)
    # without maps the network keeps its own code
    same = torch.tensor([False, True, True, False, True, False])
    for name in ("norm0", "norm2"):
        masks[f"block.{name}"] = same
        net.get_submodule(f"block.{name}").weight.data.mul_(same)
        net.get_submodule(f"block.{name}").bias.data.mul_(same)
    with untouched():
        small = remove_channels(net, masks, example=x).network.eval()
    assert type(small) is Noisy
    assert size(small) < size(net)
    assert not torch.equal(small(x), small(x))


class Constant(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.block = InPlace()

    def forward(self, x):
        return self.block(x - torch.tensor([0.5]).view(1, 1, 1, 1))


def test_constants_of_the_code_are_kept():
    net, masks, x = masked(Constant, 0.3, seed=2)
    small = remove_channels(net, masks, example=x).network
    assert isinstance(small, torch.fx.GraphModule)
    assert torch.allclose(small(x), net(x), atol=1e-12, rtol=0)
    assert not any("constant" in name for name in vars(net))


@pytest.mark.parametrize("make", [Deciding, hugging_resnet], ids=lambda m: m.__name__)
def test_networks_that_cannot_be_traced_become_smaller_in_parts(make):
    net, masks, x = masked(make, 0.5)
    x = x.repeat(1, 1, 2, 2)
    reduced = remove_channels(net, masks, example=x[:2])
    assert reduced.unreached == ()
    assert size(reduced.network) < 0.8 * size(net)
    assert type(reduced.network) is type(net)
    own = dict(net.named_parameters())
    for name, part in reduced.network.named_parameters():
        left = reduced.kept.get(name, torch.ones_like(own[name]).bool())
        assert torch.equal(part.flatten(), own[name][left])
    for training in (True, False):
        with torch.no_grad():
            expected = net.train(training)(x)
            found = reduced.network.train(training)(x)
        if make is hugging_resnet:
            expected, found = expected.logits, found.logits
        assert torch.allclose(expected, found, atol=1e-12, rtol=0)


def test_modes_and_the_network_itself_are_as_they_were(untouched):
    net, masks, x = masked(NETS["resnet-A"], 0.5)
    net.train()
    net.stem_norm.eval()
    before = copy.deepcopy(net.state_dict())
    with untouched():
        small = remove_channels(net, masks, example=x).network
    assert all(torch.equal(net.state_dict()[name], t) for name, t in before.items())
    assert small.training
    assert small.get_submodule("stage1_block1.norm1").training
    assert not small.get_submodule("stem_norm").training


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"0": [True] * 6}, "'0' is no batch norm"),
        ({"norm": [True] * 6}, "'norm' is no batch norm"),
        ({"1": [True] * 5}, r"'1' has 6 channels, found \(5,\)"),
        ({"1": [1.0] * 6}, "found .* torch.float32"),
        ({"1": [False] * 6}, "whose scale or shift is not zero"),
    ],
    ids=["layer", "unknown", "shape", "dtype", "not zero"],
)
def test_wrong_channels_are_refused(keep, message):
    net, _, x = masked(chain(nn.ReLU), 1.0)
    named = {name: torch.tensor(part) for name, part in keep.items()}
    with pytest.raises(InvalidInputError, match=message):
        remove_channels(net, named, example=x)


def test_examples_that_do_not_fit_are_refused():
    net, masks, _ = masked(chain(nn.ReLU), 0.5)
    with pytest.raises(InvalidInputError, match="cannot be called with this example"):
        remove_channels(net, masks, example=torch.ones(1, 5).double())
