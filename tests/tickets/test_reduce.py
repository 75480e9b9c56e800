"""Units without influence go; the function stays, in float64 to rounding."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional

from dynprune.core import InvalidInputError
from dynprune.tasks import resnet
from dynprune.tickets import Ticket, reduce, remove_units
from dynprune.tickets._same_outputs import compared, outputs

ROUNDING = 1e-12  # relative, sums of tens of float64 numbers in another order


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """Return the model in float64 and eval mode with random numbers everywhere."""
    draw = draws(seed)
    model = model.double().eval()
    with torch.no_grad():
        for part in (*model.parameters(), *model.buffers()):
            if part.is_floating_point():
                part.copy_(torch.randn(part.shape, generator=draw))
        for part in model.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.running_var.abs_().add_(0.5)
    return model


def pruned(model: nn.Module, density: float, seed: int = 0) -> Ticket:
    draw = draws(seed)
    masks = {
        name: torch.rand(part.shape, generator=draw) < density
        for name, part in model.named_parameters()
        if part.ndim > 1
    }
    next(iter(masks.values())).view(-1)[0] = True
    return Ticket.make(
        masks, dict(model.named_parameters()), dict(model.named_buffers())
    )


def whole_units(model: nn.Module, layers, density: float, seed: int = 0) -> Ticket:
    """Prune whole rows of some layers' weights."""
    draw = draws(seed)
    own = dict(model.named_parameters())
    masks = {}
    for name in layers:
        part = own[f"{name}.weight"]
        rows = torch.rand(len(part), generator=draw) < density
        rows[0] = True
        masks[f"{name}.weight"] = rows.view(-1, *[1] * (part.ndim - 1)).expand_as(part)
    return Ticket.make(masks, own, dict(model.named_buffers()))


def check(model: nn.Module, ticket: Ticket, x) -> nn.Module:
    """Return the smaller model after comparing it on inputs it has not seen."""
    before = copy.deepcopy(model.state_dict())
    found = reduce(ticket, model, example=x[:1])
    dense = ticket.to_dense(model)
    with torch.no_grad():
        wanted, got = dense(x), found.module(x)
    assert float((got - wanted).abs().max()) <= ROUNDING * max(
        1.0, float(wanted.abs().max())
    )
    assert all(torch.equal(model.state_dict()[n], t) for n, t in before.items())
    assert found.bytes_after <= found.bytes_before
    assert found.module.training == model.training
    return found.module


def perceptron(*widths, activation=nn.Sigmoid, bias=True) -> nn.Sequential:
    layers = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b, bias=bias), activation()]
    return filled(nn.Sequential(*layers[:-1]))


def influential(masks, fixed_inputs=()):
    """Transcribe the definition for a chain of matrices: paths and constants."""
    sets = []
    live = set(range(masks[0].shape[1]))  # inputs vary
    for mask in masks:
        live = {j for j in range(len(mask)) if any(mask[j, i] for i in live)}
        sets.append(live)
    needed = set(range(len(masks[-1])))
    found = []
    for mask, varying in zip(
        reversed(masks), [*reversed(sets[:-1]), None], strict=True
    ):
        if varying is None:
            break
        needed = {i for i in varying if any(mask[j, i] for j in needed)}
        found.append(needed)
    return found[::-1]


@settings(max_examples=30)
@given(
    density=st.sampled_from([0.05, 0.15, 0.3, 0.6]),
    seed=st.integers(0, 1000),
    bias=st.booleans(),
)
def test_a_perceptron_keeps_exactly_what_lies_between_input_and_output(
    density, seed, bias
):
    model = perceptron(4, 6, 5, 7, 3, bias=bias)
    ticket = pruned(model, density, seed)
    x = torch.randn(9, 4, generator=draws(seed), dtype=torch.float64)
    small = check(model, ticket, x)
    for layer, units in zip(
        (0, 2, 4), influential(list(ticket.masks.values())), strict=True
    ):
        assert small[layer].out_features == max(1, len(units))
        assert small[layer + 2].in_features == small[layer].out_features


def test_constants_are_folded_even_into_layers_without_bias():
    model = filled(
        nn.Sequential(
            nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 2, bias=False), nn.Identity()
        )
    )
    kept = {"0.weight": torch.tensor([[True, True], [False, False], [True, False]])}
    ticket = Ticket.make(kept, dict(model.named_parameters()))
    small = check(model, ticket, torch.randn(5, 2, dtype=torch.float64))
    assert small[0].out_features == 2
    folded = model[2].weight[:, 1] * torch.sigmoid(model[0].bias[1])
    torch.testing.assert_close(small[2].bias, folded.detach())


def conv_net(*, padding=0, norm=True, pool="max", mode="zeros"):
    pools = {"max": nn.MaxPool2d(2), "average": nn.AvgPool2d(2)}
    return filled(
        nn.Sequential(
            nn.Conv2d(2, 5, 3, padding=1),
            nn.BatchNorm2d(5) if norm else nn.Identity(),
            nn.ReLU(inplace=True),
            nn.Conv2d(5, 6, 3, padding=padding, padding_mode=mode, bias=False),
            nn.BatchNorm2d(6),
            nn.Tanh(),
            pools[pool],
            nn.Dropout(0.5),
            nn.Flatten(),
            nn.Linear(6 * (4 if not padding else 9), 4),
        )
    )


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize("padding", [0, 1], ids=["valid", "padded"])
@pytest.mark.parametrize("pool", ["max", "average"])
def test_convolutions(padding, pool, mode):
    model = conv_net(padding=padding, pool=pool, mode=mode)
    ticket = whole_units(model, ("0", "3"), 0.5, seed=4)
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64, generator=draws(1))
    small = check(model, ticket, x)
    kept = [int(ticket.masks[f"{n}.weight"].flatten(1).any(1).sum()) for n in (0, 3)]
    assert kept[0] < 5
    assert kept[1] < 6
    # a constant beside zero padding stays, unless relu has made it zero
    off = copy.deepcopy(model[:3])
    with torch.no_grad():
        dead = ~ticket.masks["0.weight"].flatten(1).any(1)
        off[0].weight.masked_fill_(~ticket.masks["0.weight"], 0.0)
        values = off(x)[0, :, 3, 3]
    border = int((dead & (values > 0)).sum()) if padding and mode == "zeros" else 0
    assert small[0].out_channels == kept[0] + border
    assert small[1].num_features == small[3].in_channels == small[0].out_channels
    assert small[3].out_channels == kept[1]
    assert small[9].in_features == kept[1] * (9 if padding else 4)


def test_units_that_nothing_reads_go_whatever_their_padding():
    model = conv_net(padding=1)
    masks = {"3.weight": torch.ones(6, 5, 3, 3, dtype=torch.bool)}
    masks["3.weight"][:, 2] = False
    ticket = Ticket.make(
        masks, dict(model.named_parameters()), dict(model.named_buffers())
    )
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64, generator=draws(1))
    assert check(model, ticket, x)[0].out_channels == 4


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_residual_streams_go_together(shortcut):
    model = filled(resnet(14, 4, in_shape=(2, 8, 8), shortcut=shortcut), seed=3)
    inner = [name for name, _ in model.named_modules() if name.endswith("conv1")]
    with torch.no_grad():  # dead units are zero behind relu, beside padding, too
        for name, part in model.named_modules():
            if name.endswith("norm1"):
                part.running_mean.zero_()
                part.bias.abs_().neg_()
    ticket = whole_units(model, inner, 0.5, seed=1)
    x = torch.randn(3, 128, dtype=torch.float64, generator=draws(1))
    small = check(model, ticket, x)
    assert small.stage1_block1.conv1.out_channels < 4
    assert small.stem.out_channels == 4
    # a channel of the first stage that nobody reads goes from all of its layers
    own = dict(model.named_parameters())
    masks = {}
    readers = ["stage1_block1.conv1", "stage1_block2.conv1", "stage2_block1.conv1"]
    if shortcut == "B":
        readers.append("stage2_block1.shortcut.conv")
    for name in readers:
        masks[f"{name}.weight"] = torch.ones_like(own[f"{name}.weight"]).bool()
        masks[f"{name}.weight"][:, 1] = False
    ticket = Ticket.make(masks, own, dict(model.named_buffers()))
    small = check(model, ticket, x)
    # option A pads channels, which is not followed: all of them stay
    width = 3 if shortcut == "B" else 4
    assert small.stem.out_channels == width
    assert small.stem_norm.num_features == width
    assert small.stage1_block2.conv2.out_channels == width
    assert small.stage1_block2.norm2.num_features == width


class Branches(nn.Module):
    """Concatenation, multiplication, means, views, depthwise layers, scalars."""

    def __init__(self):
        nn.Module.__init__(self)
        self.a = nn.Conv2d(2, 4, 3)
        self.b = nn.Conv2d(2, 4, 3, bias=False)
        self.gate = nn.Conv2d(2, 4, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.slope = nn.PReLU(8)
        self.mix = nn.Conv2d(8, 5, 1)
        self.squeeze = nn.AdaptiveAvgPool2d(1)
        self.excite = nn.Conv2d(5, 5, 1)
        self.head = nn.Linear(5 * 4, 3)
        self.other = nn.Linear(5, 3)

    def forward(self, x):
        a = functional.relu(self.a(x)) * torch.sigmoid(self.gate(x))
        b = functional.gelu(self.b(x)) - 0.5
        h = self.slope(self.depthwise(torch.cat([a, 2.0 * b], dim=1)))
        h = functional.avg_pool2d(torch.tanh(self.mix(h)), 2)
        h = h * self.excite(self.squeeze(h)).sigmoid()
        flat = h.view(h.size(0), -1)
        return self.head(flat) + self.other(h.mean((2, 3)))


@pytest.mark.parametrize("seed", range(8))
def test_branches(seed):
    model = filled(Branches(), seed=seed)
    layers = ("a", "b", "gate", "depthwise", "mix", "excite")
    ticket = whole_units(model, layers, 0.5, seed=seed)
    x = torch.randn(4, 2, 8, 8, dtype=torch.float64, generator=draws(1))
    check(model, ticket, x)


class Basic(nn.Module):
    """A block as torchvision writes it: one activation, in place, used twice."""

    def __init__(self):
        nn.Module.__init__(self)
        self.conv1 = nn.Conv2d(3, 5, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(5)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(5, 3, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(3)

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


@pytest.mark.parametrize("density", [0.02, 0.1, 0.3], ids=str)
@pytest.mark.parametrize("kind", [Basic, Branches, "resnet"], ids=str)
def test_scattered_masks(kind, density):
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64, generator=draws(1))
    if kind == "resnet":
        model, x = resnet(8, 4, in_shape=(2, 8, 8)), x.view(3, -1)
    elif kind is Basic:
        stem = nn.Conv2d(2, 3, 3)
        model = nn.Sequential(stem, Basic(), Basic(), nn.Flatten(), nn.Linear(108, 3))
    else:
        model = Branches()
    for seed in range(3):
        model = filled(model, seed=seed)
        small = check(model, pruned(model, density, seed), x)
        whole = {n: torch.ones_like(p).bool() for n, p in small.named_parameters()}
        dense = Ticket.make(
            whole, dict(small.named_parameters()), dict(small.named_buffers())
        )
        # what is left has influence: nothing more goes
        again = reduce(dense, small, example=x[:1])
        assert again.bytes_after == again.bytes_before


def test_blocks_as_torchvision_writes_them_become_smaller():
    model = filled(nn.Sequential(nn.Conv2d(2, 3, 3), Basic(), Basic()))
    mask = torch.ones(3, 5, 3, 3, dtype=torch.bool)
    mask[:, [0, 4]] = False
    ticket = Ticket.make(
        {"2.conv2.weight": mask},
        dict(model.named_parameters()),
        dict(model.named_buffers()),
    )
    x = torch.randn(3, 2, 8, 8, dtype=torch.float64, generator=draws(1))
    small = check(model, ticket, x)
    assert small[2].conv1.out_channels == 3
    assert small[2].bn1.num_features == small[2].conv2.in_channels == 3


def test_several_arguments_and_outputs():
    class Two(nn.Module):
        def __init__(self):
            nn.Module.__init__(self)
            self.a, self.b, self.c = nn.Linear(2, 4), nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x, y):
            h = torch.tanh(self.a(x)) + torch.tanh(self.b(y))
            return {"out": self.c(h), "twice": (self.c.bias * 2,)}

    model = filled(Two())
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[:, 1] = False
    ticket = Ticket.make({"c.weight": mask}, dict(model.named_parameters()))
    x, y = torch.ones(1, 2).double(), torch.ones(1, 3).double()
    found = reduce(ticket, model, example=(x, y))
    wanted = ticket.to_dense(model)(x, y)["out"]
    torch.testing.assert_close(found.module(x, y)["out"], wanted)
    assert found.module.a.out_features == found.module.b.out_features == 3


def test_branches_become_smaller():
    model = filled(Branches())
    own = dict(model.named_parameters())
    mask = torch.ones(5, 8, 1, 1, dtype=torch.bool)
    mask[:, [1, 6]] = False
    ticket = Ticket.make({"mix.weight": mask}, own)
    x = torch.randn(4, 2, 8, 8, dtype=torch.float64, generator=draws(1))
    small = check(model, ticket, x)
    assert small.a.out_channels == small.gate.out_channels == 3
    assert small.b.out_channels == 3
    assert small.depthwise.groups == small.depthwise.in_channels == 6
    assert small.slope.num_parameters == small.mix.in_channels == 6


def test_the_smaller_model_trains_and_has_plain_parameters():
    model = perceptron(4, 6, 3)
    small = reduce(pruned(model, 0.2), model, example=torch.ones(1, 4).double()).module
    loss = small(torch.ones(2, 4).double()).square().sum()
    loss.backward()
    assert all(part.grad is not None for part in small.parameters())
    torch.optim.SGD(small.parameters(), lr=0.1).step()
    assert small.load_state_dict(small.state_dict())


def test_it_says_what_became_of_each_layer():
    model = perceptron(4, 6, 3)
    found = reduce(pruned(model, 0.2), model, example=torch.ones(1, 4).double())
    frame = found.to_frame()
    assert list(frame["layer"]) == ["0", "2"]
    assert frame["form"][1] == "3 of 3 units"
    assert len(found.summary().splitlines()) == 5
    assert "\n" not in repr(found)
    assert "bytes" in found.plot().get_xlabel()
    assert found.provenance.made_by == "tickets.reduce"


class Shared(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.one = nn.Linear(3, 3)
        self.two = nn.Linear(3, 2)

    def forward(self, x):
        return self.two(torch.tanh(self.one(torch.tanh(self.one(x)))))


class Tied(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight
        self.three = nn.Linear(3, 2)

    def forward(self, x):
        return self.three(torch.tanh(self.two(torch.tanh(self.one(x)))))


class Normed(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.one, self.norm = nn.Linear(3, 3), nn.LayerNorm(3)
        self.two = nn.Linear(3, 2)

    def forward(self, x):
        return self.two(self.norm(self.one(x)))


class Sized(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        h = self.one(x)
        return self.two(h) / h.size(1)


@pytest.mark.parametrize(
    "kind", [Shared, Tied, Normed, Sized], ids=lambda k: k.__name__
)
def test_what_is_not_followed_stays(kind):
    model = filled(kind())
    ticket = whole_units(model, ["one"], 0.4, seed=1)
    assert ticket.density < 1
    x = torch.randn(5, 3, dtype=torch.float64, generator=draws(2))
    small = check(model, ticket, x)
    assert small.one.out_features == 3


class OwnNorm(nn.BatchNorm2d):
    def forward(self, x):
        return nn.BatchNorm2d.forward(self, x) + x.mean(1, keepdim=True)


class Deciding(nn.Module):
    """Cannot be traced, and calls a convolution that is not its own."""

    def __init__(self, conv):
        nn.Module.__init__(self)
        self.conv = conv

    def forward(self, x):
        return self.conv(x) if x.sum() > 1e9 else 2.0 * self.conv(x)


class Lent(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.start, self.one = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 1)
        self.deciding = Deciding(self.one)
        self.two = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.two(self.one(self.deciding(self.start(x))))


class Read(nn.Module):
    """The weight or bias of a layer is read without calling it."""

    def __init__(self, layer, slot):
        nn.Module.__init__(self)
        self.one, self.two = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 2, 3)
        self.place = layer, slot

    def forward(self, x):
        layer, slot = self.place
        read = getattr(getattr(self, layer), slot)
        return self.two(self.one(x)) + read.cos().sum()


def over_features(pool, units):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(98, 8), pool, nn.Linear(units, 2), nn.ReLU()
    )


def own_norm():
    return nn.Sequential(nn.Conv2d(2, 4, 3), OwnNorm(4), nn.Conv2d(4, 2, 3))


def parametrised():
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    nn.utils.parametrizations.weight_norm(net[2])
    return net


STAYING = {
    "pooled features": (lambda: over_features(nn.MaxPool1d(2), 4), "1"),
    "overlapping pool": (lambda: over_features(nn.MaxPool1d(3, 1, 1), 8), "1"),
    "subclass of a norm": (own_norm, "0"),
    "parametrised reader": (parametrised, "0"),
    "called by another": (Lent, "one"),
    "bias read": (lambda: Read("one", "bias"), "one"),
    "weight read": (lambda: Read("two", "weight"), "one"),
}


@pytest.mark.parametrize("name", STAYING)
def test_what_only_looks_like_a_module_of_channels_stays(name):
    make, layer = STAYING[name]
    model = filled(make())
    ticket = whole_units(model, [layer], 0.4, seed=1)
    assert ticket.density < 1
    x = torch.randn(3, 2, 7, 7, dtype=torch.float64, generator=draws(2))
    small = check(model, ticket, x).get_submodule(layer)
    before = model.get_submodule(layer)
    assert small.weight.shape == before.weight.shape


class Gated(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.gate, self.up = nn.Linear(3, 6), nn.Linear(3, 6)
        self.down = nn.Linear(6, 2)

    def forward(self, x):
        return self.down(functional.silu(self.gate(x)) * self.up(x))


def test_units_behind_a_gate_that_is_zero_go():
    model = filled(Gated())
    with torch.no_grad():
        model.gate.bias[[1, 4]] = 0.0
    own = dict(model.named_parameters())
    mask = torch.ones(6, 3, dtype=torch.bool)
    mask[[1, 4]] = False
    ticket = Ticket.make({"gate.weight": mask}, own)
    x = torch.randn(5, 3, dtype=torch.float64, generator=draws(1))
    small = check(model, ticket, x)
    assert small.up.out_features == small.gate.out_features == 4
    assert small.down.in_features == 4


class Joined(nn.Module):
    """Features beside the input itself, and a layer that makes images larger."""

    def __init__(self):
        nn.Module.__init__(self)
        self.one = nn.Conv2d(2, 4, 3, padding=1)
        self.back = nn.ConvTranspose2d(6, 5, 3, stride=2)
        self.two = nn.Conv2d(5, 3, 3)

    def forward(self, x):
        h = torch.cat([x, torch.relu(self.one(x))], dim=1)
        return self.two(torch.tanh(self.back(h)))


def test_features_beside_the_input_and_transposed_convolutions():
    model = filled(Joined())
    with torch.no_grad():
        model.one.bias[0], model.one.bias[2] = -1.0, 1.0
    own = dict(model.named_parameters())
    masks = {name: torch.ones_like(own[name]).bool() for name in own if "w" in name}
    masks["one.weight"][[0, 2]] = False  # relu makes the first of them zero
    masks["back.weight"][:, 1] = False
    masks["two.weight"][:, 3] = False
    ticket = Ticket.make(masks, own)
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64, generator=draws(1))
    small = check(model, ticket, x)
    assert small.one.out_channels == 3  # a constant one is none at the border
    assert small.back.in_channels == 5
    # an output without inputs is its bias everywhere, and is folded
    assert small.back.out_channels == small.two.in_channels == 3
    forms = {name: form for name, form, *_ in reduce(ticket, model, example=x).layers}
    assert forms["one"] == "3 of 4 units"
    assert forms["back"] == "3 of 5 units"


def test_networks_that_draw_numbers_leave_the_generator_alone(untouched):
    class Noisy(nn.Module):
        def __init__(self):
            nn.Module.__init__(self)
            self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.two(torch.relu(self.one(x + 0.1 * torch.randn(3))))

    model = filled(Noisy())
    mask = torch.ones(2, 4, dtype=torch.bool)
    mask[:, 1] = False
    ticket = Ticket.make({"two.weight": mask}, dict(model.named_parameters()))
    with untouched():
        found = reduce(ticket, model, example=torch.ones(1, 3).double())
    assert found.error < ROUNDING
    assert found.module.one.out_features == 3


class Branching(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.one = nn.Linear(3, 3)

    def forward(self, x):
        return self.one(x) if x.sum() > 0 else x


class Overwriting(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x):
        h = self.one(x)
        return self.two(functional.relu(h, inplace=True)) + h


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Branching, "torch.fx cannot follow Branching.*to_sparse"),
        (Overwriting, "'relu' changes a tensor in place that 'add' reads afterwards"),
    ],
    ids=["branching", "in place"],
)
def test_graphs_that_cannot_be_followed_are_refused(kind, says):
    model = filled(kind())
    ticket = pruned(model, 0.5)
    with pytest.raises(InvalidInputError, match=says):
        reduce(ticket, model, example=torch.ones(1, 3).double())
    with pytest.raises(InvalidInputError, match=says):
        remove_units(
            model, {"one": torch.ones(3).bool()}, example=torch.ones(1, 3).double()
        )


def llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
    )
    with torch.random.fork_rng():
        return transformers.LlamaForCausalLM(config).double().eval()


def hugging_resnet():
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        num_channels=2,
        embedding_size=4,
        hidden_sizes=[4, 8],
        depths=[2, 2],
        layer_type="basic",
        num_labels=3,
    )
    with torch.random.fork_rng():
        return transformers.ResNetForImageClassification(config).double().eval()


@pytest.mark.parametrize(
    ("make", "reader", "units"),
    [
        (llama, "down_proj.weight", 12),
        (hugging_resnet, "layer.1.convolution.weight", 4),
    ],
    ids=["llama", "resnet"],
)
def test_modules_inside_a_network_that_cannot_be_traced(make, reader, units):
    model = make()
    own = dict(model.named_parameters())
    masks = {}
    for name, part in own.items():
        if name.endswith(reader):
            masks[name] = torch.ones_like(part).bool()
            masks[name][:, ::2] = False
    ticket = Ticket.make(masks, own, dict(model.named_buffers()))
    if make is llama:
        inputs = [torch.arange(6).view(1, 6) + k for k in range(2)]
    else:
        inputs = [
            torch.randn(2, 2, 16, 16, dtype=torch.float64, generator=draws(k))
            for k in range(2)
        ]
    found = reduce(ticket, model, example=inputs[0])
    with torch.no_grad():
        small, dense = found.module(inputs[1]), ticket.to_dense(model)(inputs[1])
    torch.testing.assert_close(small.logits, dense.logits, rtol=1e-12, atol=1e-12)
    sizes = {name: part.shape for name, part in found.module.named_parameters()}
    for name, mask in masks.items():
        assert sizes[name][1] == mask.shape[1] // 2
    assert any(f"{units // 2} of {units} units" in form for _, form, *_ in found.layers)


def test_hooks_and_wrong_examples_are_refused():
    model = perceptron(4, 6, 3)
    ticket = pruned(model, 0.5)
    with pytest.raises(InvalidInputError, match="cannot be called with this example"):
        reduce(ticket, model, example=torch.ones(1, 5).double())
    model[0].register_forward_hook(lambda *_: None)
    with pytest.raises(InvalidInputError, match="with forward hooks: '0'"):
        reduce(ticket, model, example=torch.ones(1, 4).double())


def test_a_model_that_its_graph_does_not_show_is_refused():
    class Hidden(nn.Module):
        def __init__(self):
            nn.Module.__init__(self)
            self.one, self.two = nn.Linear(3, 4), nn.Linear(4, 2)
            self.plain = True

        def forward(self, x):
            h = self.one(x)
            if h.__class__ is torch.Tensor:  # false for the tracer's proxies
                h = h + 1.0
            return self.two(torch.tanh(h))

    model = filled(Hidden())
    ticket = whole_units(model, ["one"], 0.4, seed=1)
    assert ticket.density < 1
    with pytest.raises(InvalidInputError, match="that its graph does not show"):
        reduce(ticket, model, example=torch.ones(1, 3).double())


# -- chosen units ---------------------------------------------------------------------


def test_chosen_channels_behind_a_norm_of_scale_zero_leave_their_shift():
    # Early-Bird: the scale of a pruned channel is zero
    model = conv_net(padding=0)
    keep = {
        "0": torch.tensor([True, False, True, True, False]),
        "3": torch.tensor([True, False, True, True, False, True]),
    }
    dense = copy.deepcopy(model)
    x = torch.randn(3, 2, 6, 6, dtype=torch.float64, generator=draws(1))
    with torch.no_grad():
        for layer, name in ((1, "0"), (4, "3")):
            for net in (dense, model):
                net[layer].weight[~keep[name]] = 0.0
    small = remove_units(model, keep, example=x[:1])
    assert (small[0].out_channels, small[3].out_channels) == (3, 4)
    torch.testing.assert_close(small(x), dense(x), rtol=1e-12, atol=1e-12)
    # the same is found without naming them
    ticket = Ticket.make(
        {"9.weight": torch.ones_like(model[9].weight).bool()},
        dict(model.named_parameters()),
        dict(model.named_buffers()),
    )
    found = check(model, ticket, x)
    assert found[3].out_channels == 4


def test_chosen_units_are_a_slice_of_the_weights():
    model = perceptron(3, 5, 2)
    keep = torch.tensor([True, False, True, True, False])
    small = remove_units(model, {"0": keep}, example=torch.ones(1, 3).double())
    assert torch.equal(small[0].weight, model[0].weight[keep])
    assert torch.equal(small[2].weight, model[2].weight[:, keep])
    assert torch.equal(small[2].bias, model[2].bias)
    assert model[0].out_features == 5


@pytest.mark.parametrize(
    ("keep", "says"),
    [
        ({"fc": [True] * 9 + [False]}, "1 units to be removed are also units of 'fc'"),
        ({"stem": [False] + [True] * 3}, "are also units of 'stage1_block1.conv2'"),
        ({"stem_norm": [True] * 4}, "'stem_norm' is no Linear"),
        ({"stem": [True] * 3}, r"'stem' has 4 units, found \(3,\)"),
        ({"stem": [False] * 4}, "'stem' would keep no unit"),
    ],
    ids=["output", "residual", "no layer", "shape", "none"],
)
def test_wrong_choices_are_refused(keep, says):
    model = filled(resnet(8, 4, in_shape=(2, 8, 8)))
    named = {name: torch.tensor(part) for name, part in keep.items()}
    with pytest.raises(InvalidInputError, match=says):
        remove_units(model, named, example=torch.ones(1, 128).double())


def test_units_of_a_residual_stream_named_together():
    model = filled(resnet(8, 4, in_shape=(2, 8, 8)))
    keep = torch.tensor([True, False, True, True])
    named = {"stem": keep, "stage1_block1.conv2": keep}
    small = remove_units(model, named, example=torch.ones(1, 128).double())
    assert small.stem_norm.num_features == 3
    assert small.stage2_block1.shortcut.conv.in_channels == 3
    assert small(torch.ones(2, 128).double()).shape == (2, 10)


class Aliased(nn.Module):
    """A tensor is changed in place through another name of its memory."""

    def __init__(self, alias, *, after=False):
        nn.Module.__init__(self)
        self.alias, self.after = alias, after
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 3, bias=False)

    def forward(self, x):
        y = self.one(x)
        v = self.alias(y)
        if self.after:
            return self.two(functional.relu(y, inplace=True)).sum() + v.sum()
        functional.relu(v, inplace=True)
        return self.two(y)


ALIASES = {
    "detach": lambda y: y.detach(),
    "contiguous": lambda y: y.contiguous(),
    "view": lambda y: y.view(-1, 4, 2),
    "flatten": lambda y: y.flatten(1),
    "transpose": lambda y: y.transpose(0, 1),
    "slice": lambda y: y[:, :4],
    "chunk": lambda y: y.chunk(2, dim=1)[0],
    "twice": lambda y: y.detach().view(-1, 8).reshape(-1, 2, 4),
    "dropout": nn.Dropout(),
    "identity": nn.Identity(),
}


@pytest.mark.parametrize("name", ALIASES)
@pytest.mark.parametrize("after", [False, True], ids=["alias changed", "alias read"])
def test_changes_in_place_are_seen_through_aliases(name, after):
    model = filled(Aliased(ALIASES[name], after=after))
    ticket = pruned(model, 0.5)
    with pytest.raises(InvalidInputError, match="'relu' changes a tensor in place"):
        reduce(ticket, model, example=torch.ones(5, 4).double())


def test_a_copy_is_no_alias():
    model = filled(Aliased(lambda y: y.clone()))
    found = reduce(pruned(model, 0.5), model, example=torch.ones(5, 4).double())
    assert found.error <= 1e-12 * found.scale


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4], ids=str)
def test_outputs_are_compared_relative_to_their_size(scale):
    def model(weight):
        net = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            net.weight.copy_(weight * scale)
        return net

    whole, x = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(1, 2)
    before = outputs(model(whole), x)
    error, size = compared(before, model(whole * (1.0 + 1e-5)), x)
    assert 0.0 < error < 1e-4 * size
    with pytest.raises(InvalidInputError, match="changed the network's outputs"):
        compared(before, model(whole * 1.01), x)


def test_outputs_that_are_zero_may_differ_by_roundings():
    net, x = nn.Linear(2, 2), torch.ones(1, 2)
    with torch.no_grad():
        for part in net.parameters():
            part.zero_()
        before = outputs(net, x)
        net.bias.fill_(1e-7)
        assert compared(before, net, x)[1] == 0.0
        net.bias.fill_(1e-5)
    with pytest.raises(InvalidInputError, match="changed the network's outputs"):
        compared(before, net, x)
