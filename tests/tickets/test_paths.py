"""Effective density and path norm: paths enumerated, chains, and real modules."""

import copy
import functools
import itertools
import math

import pytest
import torch
from torch import nn

from dynprune import tasks
from dynprune.core import InvalidInputError
from dynprune.tickets import Ticket, compare, effective_density, path_norm
from dynprune.tickets._chain import chain_effective
from dynprune.tickets._path_modules import _softmax_dim
from dynprune.tickets._path_network import PathNetwork


def seeded_(net, seed=0):
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for part in net.parameters():
            part.copy_(torch.randn(part.shape, generator=draw))
        for name, part in net.named_buffers():
            if name.endswith("running_var"):
                part.copy_(torch.rand(part.shape, generator=draw) + 0.5)
            elif name.endswith("running_mean"):
                part.copy_(torch.randn(part.shape, generator=draw))
    return net


def mlp(widths=(4, 5, 4, 3), activation=nn.ReLU, bias=True):
    layers = []
    with torch.random.fork_rng():
        for pair in itertools.pairwise(widths):
            layers += [nn.Linear(*pair, bias=bias), activation()]
    return seeded_(nn.Sequential(*layers[:-1]))


def masks_for(net, density, seed):
    draw = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(part.shape, generator=draw) < density
        for name, part in net.named_parameters()
        if part.ndim > 1
    }


def ticket_of(net, masks):
    return Ticket.make(masks, dict(net.named_parameters()), dict(net.named_buffers()))


def walked(masks):
    """Weights on a path, by walking every path of an MLP."""
    layers = list(masks.values())
    found = [torch.zeros_like(mask) for mask in layers]
    widths = [layers[0].shape[1], *(mask.shape[0] for mask in layers)]
    for path in itertools.product(*(range(width) for width in widths)):
        edges = list(itertools.pairwise(path))
        if all(mask[o, i] for mask, (i, o) in zip(layers, edges, strict=True)):
            for part, (i, o) in zip(found, edges, strict=True):
                part[o, i] = True
    return dict(zip(masks, found, strict=True))


@pytest.mark.parametrize("seed", range(6), ids=str)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU], ids=str)
def test_chain_pass_and_walk_agree_on_mlps(seed, activation):
    net = mlp(activation=activation)
    masks = masks_for(net, 0.3, seed)
    expected = walked(masks)
    chain = chain_effective(masks)
    passed = PathNetwork(net, torch.zeros(1, 4)).effective(masks)
    for name in masks:
        assert torch.equal(chain[name], expected[name]), name
        assert torch.equal(passed[name], expected[name]), name
    assert any(bool((masks[n] & ~expected[n]).any()) for n in masks)


@pytest.mark.parametrize(
    "last", [nn.LogSoftmax(1), nn.Softmax(1), nn.Softmin(1)], ids=str
)
def test_classifier_that_ends_in_a_softmax(last):
    # its outputs sum to 1, and are equal where all weights of a layer are
    net = mlp().append(last)
    masks = masks_for(net, 0.4, 3)
    masks["4.weight"][:] = True
    chain = chain_effective(masks)
    passed = PathNetwork(net, torch.zeros(1, 4)).effective(masks)
    assert all(torch.equal(chain[name], passed[name]) for name in masks)
    assert any(bool(part.any()) for part in chain.values())


class TakesMax(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.conv1, self.conv2 = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 5, 3)
        self.norm, self.pool = nn.BatchNorm2d(4), nn.MaxPool2d(2)
        self.fc = nn.Linear(5 * 9, 3)

    def forward(self, x):
        x = self.pool(torch.relu(self.norm(self.conv1(x))))
        return self.fc(torch.relu(self.conv2(x)).flatten(1))


@pytest.mark.parametrize("seed", range(4), ids=str)
def test_chain_and_pass_agree_on_convolutions(seed):
    with torch.random.fork_rng():
        net = seeded_(TakesMax())
    masks = masks_for(net, 0.07, seed)
    chain = chain_effective(masks)
    passed = PathNetwork(net, torch.zeros(1, 2, 12, 12)).effective(masks)
    # a position of the last feature map counts of itself in the pass only
    for name in ("conv1.weight", "conv2.weight", "fc.weight"):
        assert torch.equal(passed[name], chain[name]), name
    assert sum(int(part.sum()) for part in chain.values()) > 0


class Skips(nn.Module):
    def __init__(self):
        nn.Module.__init__(self)
        self.inner, self.last = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x):
        return self.last(x + torch.relu(self.inner(x)))


def test_skip_connection_is_seen_by_the_pass_and_not_by_the_chain():
    with torch.random.fork_rng():
        net = seeded_(Skips())
    masks = {
        "inner.weight": torch.zeros(3, 3).bool(),
        "last.weight": torch.ones(2, 3).bool(),
    }
    ticket = ticket_of(net, masks)
    found = effective_density(ticket, net, example=torch.zeros(1, 3))
    assert found == {"all": 6 / 15, "inner.weight": 0.0, "last.weight": 1.0}
    assert effective_density(ticket)["all"] == 0.0


def test_value_zero_and_bias_do_not_decide():
    # a kept weight that starts at 0 is a connection; a bias starts no path
    net = mlp((2, 2, 1))
    with torch.no_grad():
        net[0].weight.zero_()
        net[0].bias.fill_(5.0)
    masks = {
        "0.weight": torch.tensor([[True, True], [False, False]]),
        "2.weight": torch.tensor([[True, True]]),
    }
    found = effective_density(ticket_of(net, masks), net, example=torch.zeros(1, 2))
    assert found == {"all": 0.5, "0.weight": 0.5, "2.weight": 0.5}


def test_deep_narrow_chains_do_not_underflow():
    net = mlp([40] * 60)
    masks = masks_for(net, 0.2, 1)
    chain = chain_effective(masks)
    passed = PathNetwork(net, torch.zeros(1, 40)).effective(masks)
    assert all(torch.equal(chain[name], passed[name]) for name in masks)


def test_attention_queries_are_on_paths():
    with torch.random.fork_rng():
        net = seeded_(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    masks = {
        name: torch.ones_like(part, dtype=torch.bool)
        for name, part in net.named_parameters()
        if part.ndim > 1
    }
    masks["linear1.weight"][0] = False
    found = effective_density(ticket_of(net, masks), net, example=torch.zeros(1, 5, 8))
    assert found["self_attn.in_proj_weight"] == 1.0
    assert found["linear1.weight"] == 15 / 16
    assert found["linear2.weight"] == 15 / 16  # one input of it has no path
    # without values nothing comes out, and queries and keys lead nowhere
    masks["self_attn.in_proj_weight"][16:] = False
    found = effective_density(ticket_of(net, masks), net, example=torch.zeros(1, 5, 8))
    assert found["self_attn.in_proj_weight"] == 0.0
    assert found["self_attn.out_proj.weight"] == 0.0
    assert found["linear1.weight"] == 15 / 16  # by the skip connection


def test_hugging_face_model_by_keywords():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2
    )
    with torch.random.fork_rng():
        net = seeded_(transformers.GPT2Model(config))
    masks = {"h.0.mlp.c_fc.weight": torch.ones(8, 32).bool()}
    masks["h.0.mlp.c_proj.weight"] = torch.ones(32, 8).bool()
    masks["h.0.mlp.c_fc.weight"][:, 0] = False  # Conv1D is (in, out)
    example = {"input_ids": torch.tensor([[1, 2, 3]])}
    found = effective_density(ticket_of(net, masks), net, example=example)
    assert found["h.0.mlp.c_proj.weight"] == 31 / 32


def paths_of(net, masks, power):
    layers = [part.detach().double() for part in net.parameters() if part.ndim > 1]
    layers = [
        (part * mask).abs() ** power
        for part, mask in zip(layers, masks.values(), strict=True)
    ]
    widths = [layers[0].shape[1], *(part.shape[0] for part in layers)]
    total = 0.0
    for path in itertools.product(*(range(width) for width in widths)):
        edges = zip(layers, itertools.pairwise(path), strict=True)
        total += math.prod(float(part[o, i]) for part, (i, o) in edges)
    return total ** (1 / power)


@pytest.mark.parametrize("power", [1, 2], ids=str)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh], ids=str)
def test_path_norm_is_the_sum_over_all_paths(power, activation):
    net = mlp(activation=activation)
    masks = masks_for(net, 0.6, 0)
    found = path_norm(
        ticket_of(net, masks), net, example=torch.zeros(1, 4), power=power
    )
    assert found == pytest.approx(paths_of(net, masks, power), rel=1e-12)


@pytest.mark.parametrize("power", [1, 2], ids=str)
def test_path_norm_scales_with_a_batch_norm_and_sums_a_max_pool(power):
    with torch.random.fork_rng():
        net = nn.Sequential(
            nn.Conv1d(1, 2, 1, bias=False),
            nn.BatchNorm1d(2),
            nn.ReLU(),
            nn.MaxPool1d(3),
            nn.Flatten(),
            nn.Linear(2, 1),
        )
    seeded_(net).requires_grad_(False)
    masks = masks_for(net, 1.0, 0)
    w, v = net[0].weight.double().reshape(2), net[5].weight.double().reshape(2)
    scale = net[1].weight.double() / (net[1].running_var.double() + net[1].eps).sqrt()
    expected = 3 * ((w * scale * v).abs() ** power).sum()
    ticket = ticket_of(net, masks)
    found = path_norm(ticket, net, example=torch.zeros(1, 1, 3), power=power)
    assert found == pytest.approx(float(expected) ** (1 / power), rel=1e-6)


@pytest.mark.parametrize(
    ("make", "shape", "says"),
    [
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), (1, 3), "LayerNorm"),
        (
            lambda: nn.Sequential(nn.Linear(3, 4), nn.Softmax(1)),
            (1, 3),
            "no sum over paths",
        ),
    ],
    ids=["layer norm", "softmax"],
)
def test_networks_without_a_path_norm_are_refused(make, shape, says):
    with torch.random.fork_rng():
        net = seeded_(make())
    ticket = ticket_of(net, {"0.weight": torch.ones(4, 3).bool()})
    with pytest.raises(InvalidInputError, match=says):
        path_norm(ticket, net, example=torch.zeros(shape))


def test_user_model_stays_as_it_was(untouched):
    with torch.random.fork_rng():
        net = seeded_(TakesMax()).train()
    before = copy.deepcopy(net.state_dict())
    masks = masks_for(net, 0.5, 0)
    with untouched():
        effective_density(ticket_of(net, masks), net, example=torch.zeros(1, 2, 12, 12))
        path_norm(ticket_of(net, masks), net, example=torch.zeros(1, 2, 12, 12))
    assert net.training
    assert net.pool.forward.__func__ is nn.MaxPool2d.forward
    assert all(part.grad is None for part in net.parameters())
    assert all(torch.equal(before[n], part) for n, part in net.state_dict().items())


def test_refusals():
    net = mlp()
    ticket = ticket_of(net, masks_for(net, 0.5, 0))
    with pytest.raises(InvalidInputError, match="without an example"):
        effective_density(ticket, net)
    with pytest.raises(InvalidInputError, match="power 3"):
        path_norm(ticket, net, example=torch.zeros(1, 4), power=3)
    other = mlp((4, 6, 3))
    with pytest.raises(InvalidInputError, match=r"masks 0.weight \(5, 4\)"):
        effective_density(ticket, other, example=torch.zeros(1, 4))
    with pytest.raises(InvalidInputError, match="do not fit"):
        path_norm(ticket, other, example=torch.zeros(1, 4))
    state = {"a": torch.ones(5, 4), "b": torch.ones(3, 6)}
    apart = Ticket.make({n: p.bool() for n, p in state.items()}, state)
    with pytest.raises(InvalidInputError, match=r"a has 5 outputs and b 6 inputs"):
        effective_density(apart)
    flat = Ticket.make({"c": torch.ones(3).bool()}, {"c": torch.ones(3)})
    with pytest.raises(InvalidInputError, match="no layer of a chain"):
        effective_density(flat)


class Through(nn.Module):
    """A function after a network."""

    def __init__(self, net, function):
        nn.Module.__init__(self)
        self.net, self.function = net, function

    def forward(self, x):
        return self.function(self.net(x))


def residual(depth, last):
    net = tasks.resnet(depth, 4, in_shape=(3, 8, 8))
    return (
        nn.Sequential(net, last) if isinstance(last, nn.Module) else Through(net, last)
    )


@pytest.mark.parametrize("depth", [20, 44, 110])
@pytest.mark.parametrize(
    "last",
    [
        nn.Softmax(-1),
        nn.LogSoftmax(-1),
        nn.Softmin(-1),
        functools.partial(torch.softmax, dim=-1),
        functools.partial(nn.functional.log_softmax, dim=-1),
    ],
    ids=["Softmax", "LogSoftmax", "Softmin", "softmax", "log_softmax"],
)
def test_deep_residual_networks_reach_through_a_softmax(depth, last):
    net = residual(depth, last)
    ticket = ticket_of(net, masks_for(net, 2.0, 0))
    found = effective_density(ticket, net, example=torch.ones(1, 3, 8, 8))
    assert found["all"] == 1.0


def test_a_softmax_is_no_sum_over_paths():
    net = nn.Sequential(mlp(), nn.Softmax(-1))
    with pytest.raises(InvalidInputError, match="no sum over paths"):
        path_norm(ticket_of(net, masks_for(net, 2.0, 0)), net, example=torch.ones(1, 4))


def test_a_softmax_mixes_only_along_its_dimension():
    # two tokens; the second is not read: what leads to it alone is on no path
    net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Softmax(1))
    net = Through(net, lambda y: y[:, :1])
    mask = {"net.0.weight": torch.ones(2, 2).bool()}
    example = torch.ones(1, 2)
    assert effective_density(ticket_of(net, mask), net, example=example)["all"] == 1.0
    net.net[1].dim = 0
    assert effective_density(ticket_of(net, mask), net, example=example)["all"] == 0.5


@pytest.mark.parametrize("clip", [nn.functional.relu6, nn.functional.hardtanh])
def test_a_function_that_saturates_everywhere_is_refused(clip):
    net = Through(mlp(), lambda y: clip(1e6 * y))
    ticket = ticket_of(net, masks_for(net, 2.0, 0))
    with pytest.raises(InvalidInputError, match=r"saturates.*as a module"):
        effective_density(ticket, net, example=torch.ones(1, 4))


def test_a_network_that_is_cut_has_effective_density_zero():
    net = mlp()
    masks = masks_for(net, 2.0, 0)
    masks["2.weight"][:] = False
    ticket = ticket_of(net, masks)
    assert effective_density(ticket, net, example=torch.ones(1, 4))["all"] == 0.0


def test_masks_that_the_output_does_not_depend_on_are_refused():
    net = mlp((4, 2))
    net.register_module("idle", nn.Identity())
    net.idle.register_parameter("weight", nn.Parameter(torch.ones(2, 4)))
    ticket = ticket_of(net, {"idle.weight": torch.ones(2, 4).bool()})
    with pytest.raises(InvalidInputError, match=r"does not depend on.*idle\.weight"):
        effective_density(ticket, net, example=torch.ones(1, 4))


def test_rows_of_a_masked_embedding_count_where_the_example_asks_for_them():
    class Bag(nn.Module):
        def __init__(self):
            nn.Module.__init__(self)
            self.e, self.o = nn.Embedding(10, 4), nn.Linear(4, 2)

        def forward(self, ids):
            return self.o(self.e(ids).mean(1))

    net = Bag()
    ticket = ticket_of(net, masks_for(net, 2.0, 0))
    for ids, rows in (
        (torch.zeros(1, 5, dtype=torch.long), 1),
        (torch.arange(5)[None], 5),
    ):
        found = effective_density(ticket, net, example=ids)
        assert found["e.weight"] == rows / 10
        assert found["o.weight"] == 1.0


@pytest.mark.parametrize(
    ("pool", "shape", "windows"),
    [
        (nn.MaxPool2d(2, ceil_mode=True), (3, 3), 9),
        (nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True), (3, 3), 16),
        (nn.MaxPool2d(2), (3, 3), 4),
        (nn.MaxPool1d(2, ceil_mode=True), (5,), 5),
        (nn.MaxPool1d((3,), stride=1, padding=1), (4,), 2 + 3 + 3 + 2),
        (nn.MaxPool3d(2, ceil_mode=True), (3, 3, 3), 27),
        (nn.AdaptiveMaxPool1d(3), (4,), 2 + 2 + 2),
        (nn.AdaptiveMaxPool2d(1), (3, 3), 9),
        (nn.AdaptiveMaxPool2d((2, None)), (3, 2), 2 * (2 + 2)),
        (nn.AdaptiveMaxPool3d(1), (2, 2, 2), 8),
    ],
    ids=str,
)
@pytest.mark.parametrize("power", [1, 2])
def test_max_pooling_counts_every_element_of_every_window(pool, shape, windows, power):
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(shape) - 1]
    net = nn.Sequential(conv(1, 1, 1, bias=False), pool)
    nn.init.constant_(net[0].weight, 3.0)
    ticket = ticket_of(net, masks_for(net, 2.0, 0))
    found = path_norm(ticket, net, example=torch.ones(1, 1, *shape), power=power)
    assert found == pytest.approx(3.0 * windows ** (1 / power), rel=1e-12)


class LastOf(nn.Module):
    """The last output of a recurrent layer, read by a linear one."""

    def __init__(self, kind):
        nn.Module.__init__(self)
        self.rnn = kind(3, 4, batch_first=True, bidirectional=True)
        self.out = nn.Linear(8, 2)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_biases_of_recurrent_layers_start_no_path(kind):
    net = LastOf(kind)
    masks = masks_for(net, 2.0, 0)
    example = torch.ones(1, 5, 3)
    whole = effective_density(ticket_of(net, masks), net, example=example)
    assert whole["out.weight"] == whole["rnn.weight_ih_l0"] == 1.0
    for name in ("rnn.weight_ih_l0", "rnn.weight_ih_l0_reverse"):
        masks[name][:] = False
    found = effective_density(ticket_of(net, masks), net, example=example)
    assert set(found.values()) == {0.0}


class Attends(nn.Module):
    """Attention with a learned key and value beside those of the input."""

    def __init__(self):
        nn.Module.__init__(self)
        self.map = nn.Linear(3, 4)
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)

    def forward(self, x):
        h = self.map(x)
        return self.attention(h, h, h)[0]


def test_added_keys_and_values_of_attention_start_no_path():
    net = Attends()
    masks = {n: m for n, m in masks_for(net, 2.0, 0).items() if "bias" not in n}
    masks["map.weight"][:] = False
    found = effective_density(ticket_of(net, masks), net, example=torch.ones(1, 5, 3))
    assert set(found.values()) == {0.0}


class Two(nn.Module):
    """Two linear layers, joined by a function of them and the input."""

    def __init__(self, join, sizes=((3, 4), (3, 4)), **buffers):
        nn.Module.__init__(self)
        self.a, self.b = (nn.Linear(*size) for size in sizes)
        self.join = join
        for name, part in buffers.items():
            self.register_buffer(name, part)

    def forward(self, x):
        return self.join(self, x)


def relu_of_shift(net, x):
    return net.b(torch.relu(net.a(x - net.mean)))


MINUS = {
    "difference": Two(lambda net, x: net.a(x) - net.b(x)),
    "negated input": Two(lambda net, x: net.a(-x) + net.b(x)),
    "relu": Two(lambda net, x: torch.relu(net.a(x) - net.b(x))),
    "module": Two(lambda net, x: nn.ReLU()(net.a(x) - net.b(x))),
    "clamp": Two(lambda net, x: (net.a(x) - net.b(x)).clamp(min=0)),
    "two outputs": Two(lambda net, x: (net.a(x), -net.b(x))),
    "skip": Two(lambda net, x: net.b(net.a(x)) - x, ((3, 3), (3, 3))),
    "long way": Two(lambda net, x: net.b(net.a(x)) - net.a(x), ((3, 3), (3, 3))),
    "both signs": Two(
        lambda net, x: net.b(torch.relu(torch.cat([net.a(x), -net.a(x)], 1))),
        ((3, 4), (8, 2)),
    ),
    "shift": Two(relu_of_shift, ((3, 4), (4, 2)), mean=torch.tensor(5.0)),
    "clamped shift": Two(
        lambda net, x: net.b(net.a(x - net.mean).clamp(min=0)),
        ((3, 4), (4, 2)),
        mean=torch.tensor(5.0),
    ),
}


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("name", MINUS)
def test_a_minus_sign_has_no_path_norm(name, power):
    net = seeded_(copy.deepcopy(MINUS[name]))
    ticket = ticket_of(net, masks_for(net, 2.0, 0))
    with pytest.raises(InvalidInputError, match=r"no sum over paths.*leave"):
        path_norm(ticket, net, example=torch.ones(1, 3), power=power)


def test_a_norm_of_no_path_is_zero():
    net = mlp()
    masks = masks_for(net, 2.0, 0)
    masks["2.weight"][:] = False
    assert path_norm(ticket_of(net, masks), net, example=torch.ones(1, 4)) == 0.0


@pytest.mark.parametrize("power", [1, 2])
def test_a_sum_of_layers_has_a_path_norm(power):
    net = seeded_(copy.deepcopy(MINUS["relu"]))
    net.join = lambda net, x: nn.functional.relu(net.a(x) + net.b(x))
    parts = [net.a.weight.detach(), net.b.weight.detach()]
    expected = sum(float((p.double().abs() ** power).sum()) for p in parts)
    ticket = ticket_of(net, masks_for(net, 2.0, 0))
    found = path_norm(ticket, net, example=torch.ones(1, 3), power=power)
    assert found == pytest.approx(expected ** (1 / power), rel=1e-12)


def test_a_comparison_says_that_there_is_no_path_norm():
    net = seeded_(copy.deepcopy(MINUS["difference"]))
    tickets = [ticket_of(net, masks_for(net, 0.5, seed)) for seed in range(2)]
    found = compare(tickets, model=net, example=torch.ones(1, 3), power=2)
    assert "path_norm" not in found.measures
    assert "effective_density" in found.measures
    assert any("no sum over paths" in note for note in found.notes)


class Shifts(nn.Module):
    """Three layers with a function that is not 0 at 0 between them."""

    def __init__(self, function, widths=(4, 4, 4, 2)):
        nn.Module.__init__(self)
        self.layers = nn.ModuleList(
            nn.Linear(*pair) for pair in itertools.pairwise(widths)
        )
        self.shift = nn.Parameter(torch.ones(4))
        self.register_buffer("offset", torch.ones(4))
        self.function = function

    def forward(self, x):
        *first, last = self.layers
        for layer in first:
            x = self.function(self, layer(x))
        return last(x)


NOT_ZERO_AT_ZERO = {
    "sigmoid": lambda net, x: torch.sigmoid(x),
    "softplus": lambda net, x: nn.functional.softplus(x),
    "hardsigmoid": lambda net, x: nn.functional.hardsigmoid(x),
    "cos": lambda net, x: torch.cos(x),
    "parameter": lambda net, x: torch.relu(x + net.shift),
    "buffer": lambda net, x: torch.relu(x + net.offset),
}


@pytest.mark.parametrize("widths", [(4, 4, 2), (4, 4, 4, 2)], ids=str)
@pytest.mark.parametrize("name", NOT_ZERO_AT_ZERO)
def test_a_unit_that_is_cut_from_the_input_starts_no_path(name, widths):
    net = seeded_(Shifts(NOT_ZERO_AT_ZERO[name], widths))
    masks = masks_for(net, 2.0, 0)
    masks["layers.0.weight"][0] = False
    found = effective_density(ticket_of(net, masks), net, example=torch.ones(1, 4))
    assert found["layers.0.weight"] == found["layers.1.weight"] == 0.75
    assert found[f"layers.{len(widths) - 2}.weight"] == (
        0.75 if len(widths) == 3 else 1
    )


@pytest.mark.parametrize("seed", range(3))
def test_convolutions_by_functions_reach_as_the_chain_says(seed):
    class Net(nn.Module):
        def __init__(self):
            nn.Module.__init__(self)
            self.a, self.b = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 5, 3)
            self.norm, self.fc = nn.BatchNorm2d(4), nn.Linear(5, 3)

        def forward(self, x):
            x = torch.sigmoid(self.norm(self.a(x)))
            return self.fc(nn.functional.softplus(self.b(x)).mean((2, 3)))

    net = seeded_(Net())
    masks = masks_for(net, 0.1, seed)
    expected = chain_effective(masks)
    found = PathNetwork(net, torch.zeros(1, 2, 8, 8)).effective(masks)
    assert all(torch.equal(found[name], expected[name]) for name in masks)


class Differs(nn.Module):
    """A function of the difference of two layers, read by a third."""

    def __init__(self, function):
        nn.Module.__init__(self)
        self.a, self.b, self.o = nn.Linear(6, 40), nn.Linear(6, 40), nn.Linear(40, 3)
        self.function = function

    def forward(self, x):
        return self.o(self.function(self.a(x) - self.b(x)))


@pytest.mark.parametrize(
    "function",
    [torch.relu, nn.functional.relu, torch.Tensor.relu_, nn.ReLU()],
    ids=["torch", "functional", "in place", "module"],
)
def test_a_rectified_difference_passes(function):
    net = seeded_(Differs(function))
    ticket = ticket_of(net, masks_for(net, 2.0, 0))
    found = effective_density(ticket, net, example=torch.ones(1, 6))
    assert set(found.values()) == {1.0}
    masks = masks_for(net, 2.0, 0)
    masks["a.weight"][0] = masks["b.weight"][0] = False
    found = effective_density(ticket_of(net, masks), net, example=torch.ones(1, 6))
    assert found["o.weight"] == 39 / 40


@pytest.mark.parametrize(
    "function",
    [nn.functional.relu6, lambda y: y.clamp(min=0)],
    ids=["relu6", "clamp"],
)
def test_layers_behind_a_function_that_hides_them_are_not_judged(function):
    net = seeded_(Differs(function))
    ticket = ticket_of(net, masks_for(net, 0.5, 0))
    with pytest.raises(InvalidInputError, match=r"a\.weight \(\d+ of 240.*nn\.ReLU6"):
        effective_density(ticket, net, example=torch.ones(1, 6))
    found = compare(
        [ticket, ticket_of(net, masks_for(net, 0.5, 1))],
        model=net,
        example=torch.ones(1, 6),
    )
    assert "effective_density" not in found.measures
    assert any("cannot be judged" in note for note in found.notes)


def test_parts_of_a_kernel_that_see_padding_alone_are_judged():
    net = seeded_(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()))
    ticket = ticket_of(net, masks_for(net, 2.0, 0))
    found = effective_density(ticket, net, example=torch.ones(1, 1, 1, 1))
    assert found["all"] == pytest.approx(1 / 9)


ACTIVATIONS = [
    nn.ReLU(),
    nn.LeakyReLU(0.2),
    nn.PReLU(3),
    nn.RReLU(),
    nn.ELU(),
    nn.CELU(),
    nn.SELU(),
    nn.GELU(),
    nn.SiLU(),
    nn.Mish(),
    nn.Softplus(),
    nn.ReLU6(),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.Hardtanh(),
    nn.Hardsigmoid(),
    nn.Hardswish(),
    nn.Softsign(),
    nn.LogSigmoid(),
    nn.Softshrink(),
    nn.Hardshrink(),
    nn.Tanhshrink(),
    nn.Threshold(0.1, 20.0),
]


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda a: type(a).__name__)
def test_activation_modules_pass_their_input(activation):
    with torch.random.fork_rng():
        net = seeded_(nn.Sequential(nn.Linear(2, 3), activation, nn.Linear(3, 2)))
    ticket = ticket_of(net, {"0.weight": torch.ones(3, 2).bool()})
    first, last = (net[n].weight.detach().double().abs() for n in (0, 2))
    wanted = float((last @ first).sum())
    found = path_norm(ticket, net, example=torch.ones(1, 2))
    assert found == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("ndim", [1, 2, 3, 4])
@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_a_softmax_without_a_dimension_mixes_where_torch_does(ndim):
    x = torch.randn(3, 4, 5, 2)[(0,) * (4 - ndim)]
    module = nn.Softmax(None)
    dim = _softmax_dim(module, x)
    torch.testing.assert_close(module(x).sum(dim), torch.ones_like(x.sum(dim)))
    if ndim > 2:
        two = nn.Softmax2d()
        dim = _softmax_dim(two, x)
        torch.testing.assert_close(two(x).sum(dim), torch.ones_like(x.sum(dim)))


class Pooled(nn.Module):
    """Pooling that is no plain sum over neighbours: it stays as it is."""

    def __init__(self, pool, width):
        nn.Module.__init__(self)
        self.pool, self.last = pool, nn.Linear(width, 2)

    def forward(self, x):
        found = self.pool(x)
        found = found[0] if isinstance(found, tuple) else found
        return self.last(found.flatten(1))


@pytest.mark.parametrize(
    ("pool", "width"),
    [
        (nn.MaxPool2d(2, stride=1, dilation=2), 4),
        (nn.MaxPool2d(2, return_indices=True), 4),
        (nn.AdaptiveMaxPool2d(2, return_indices=True), 4),
    ],
    ids=["dilation", "indices", "adaptive indices"],
)
def test_other_pooling_stays_as_it_is(pool, width):
    net = seeded_(Pooled(pool, width))
    mask = torch.tensor([[True, True, True, False], [False] * 4])
    ticket = ticket_of(net, {"last.weight": mask})
    found = effective_density(ticket, net, example=torch.ones(1, 1, 4, 4))
    assert found["all"] == 3 / 8


class Constant(nn.Module):
    """Units behind a function that has a value at 0, and a norm over all of them."""

    def __init__(self, norm):
        nn.Module.__init__(self)
        self.first, self.norm, self.last = nn.Linear(3, 4), norm, nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.norm(torch.sigmoid(self.first(x))))


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(4), nn.LayerNorm(4)])
def test_a_norm_makes_no_path_of_a_constant_unit(norm):
    net = seeded_(Constant(norm))
    cut = torch.ones(4, 3).bool()
    cut[1] = False
    masks = {"first.weight": cut, "last.weight": torch.ones(2, 4).bool()}
    found = effective_density(ticket_of(net, masks), net, example=torch.ones(1, 3))
    assert found == {"all": 15 / 20, "first.weight": 9 / 12, "last.weight": 6 / 8}


def test_biases_shifts_and_slopes_lie_on_no_path_and_count_as_kept():
    net = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.PReLU(4), nn.Linear(4, 2)
    )
    masks = {n: torch.ones_like(p).bool() for n, p in net.named_parameters()}
    masks["1.bias"][0] = masks["2.weight"][:2] = masks["3.weight"][0, 0] = False
    found = effective_density(ticket_of(net, masks), net, example=torch.ones(1, 3))
    assert found["1.bias"] == 3 / 4
    assert found["2.weight"] == 1 / 2
    assert found["0.weight"] == found["1.weight"] == found["0.bias"] == 1.0
    assert found["3.weight"] == 7 / 8
