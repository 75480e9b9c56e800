"""SparseGPT against surgery row by row with explicit inverses."""

import copy

import pytest
import torch
from problems import classes, small_net
from torch import nn

from dynprune.core import AssumptionError, Cost, InvalidInputError, cite
from dynprune.pruning import kept_count, magnitude, random, sparsegpt
from dynprune.system import GradientSystem

CE = nn.functional.cross_entropy
MSE = nn.functional.mse_loss


def normal(*shape, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def correlated(n, d, seed=0):
    return normal(n, d, seed=seed) @ (torch.eye(d) + 0.5 * normal(d, d, seed=seed + 1))


def layer(rows=4, columns=7, n=30, **kwargs):
    x = correlated(n, columns)
    net = nn.Linear(columns, rows, **kwargs).double()
    with torch.no_grad():
        net.weight.copy_(normal(rows, columns, seed=5))
    return net, x, GradientSystem(net, MSE, (x, normal(n, rows, seed=6)))


def surgery(W, X, mask_of, *, damping, block):
    """Prune column by column; the inverse of each trailing block is made afresh."""
    W = W.clone()
    H = 2 / len(X) * X.T @ X
    H = H + damping * H.diagonal().mean() * torch.eye(len(H))
    mask = torch.ones_like(W, dtype=torch.bool)
    for j in range(W.shape[1]):
        if j % block == 0:
            own = range(j, min(j + block, W.shape[1]))
            scores = torch.stack(
                [W[:, c].square() / torch.linalg.inv(H[c:, c:])[0, 0] for c in own], 1
            )
            mask[:, own] = mask_of(scores)
        inverse = torch.linalg.inv(H[j:, j:])
        for row in range(len(W)):
            if not mask[row, j]:
                W[row, j:] -= W[row, j] / inverse[0, 0] * inverse[:, 0]
    return mask, W


def keep_highest(count):
    def rule(scores):
        order = scores.reshape(-1).argsort(descending=True)
        mask = torch.zeros(scores.numel(), dtype=torch.bool)
        mask[order[:count]] = True
        return mask.view(scores.shape)

    return rule


@pytest.mark.parametrize("damping", [0.0, 0.01, 0.3], ids=str)
@pytest.mark.parametrize("density", [0.75, 0.5, 0.2], ids=str)
def test_one_block_is_surgery_with_explicit_inverses(damping, density):
    net, x, system = layer()
    ticket = sparsegpt(system, density=density, damping=damping)
    count = kept_count(density, 28)
    mask, W = surgery(
        net.weight.detach(), x, keep_highest(count), damping=damping, block=7
    )
    assert torch.equal(ticket.masks["weight"], mask)
    assert torch.allclose(ticket.masked_state["weight"], W * mask, rtol=1e-8, atol=1e-9)
    assert torch.equal(ticket.state["weight"][~mask], net.weight[~mask])
    assert torch.equal(ticket.state["bias"], net.bias)


def test_blocks_choose_their_masks_late_with_their_share_of_the_count():
    net, x, system = layer()
    ticket = sparsegpt(system, density=0.5, block_size=3)
    # 14 of 28 in blocks of 12, 12 and 4 weights
    shares = iter([6, 6, 2])
    mask, W = surgery(
        net.weight.detach(),
        x,
        lambda scores: keep_highest(next(shares))(scores),
        damping=0.01,
        block=3,
    )
    assert torch.equal(ticket.masks["weight"], mask)
    assert torch.allclose(ticket.masked_state["weight"], W * mask, rtol=1e-8, atol=1e-9)


def test_outputs_of_each_layer_change_less_than_by_magnitude():
    # a mean over draws: of a single layer with near-white inputs nothing is promised
    widths, ratios = (6, 12, 8, 3), []
    for seed in range(6):
        model, x = small_net(widths=widths, seed=seed), correlated(200, 6, seed=seed)
        system = GradientSystem(model, CE, (x, classes(200, 6, 3)[1]))
        ticket = sparsegpt(system, density=0.5, inputs="dense")
        plain = magnitude(system, density=0.5, scope="layer")
        told = dict(ticket.provenance.settings)["layer_errors"]
        for k, name in enumerate(told):
            X, W = model[: 2 * k](x).detach(), dict(model.named_parameters())[name]
            W = W.detach()
            total = (X @ W.T).square().sum()
            errors = [
                float((X @ (t.masked_state[name] - W).T).square().sum() / total)
                for t in (ticket, plain)
            ]
            assert told[name] == pytest.approx(errors[0], rel=1e-8)
            ratios.append(errors[0] / errors[1])
    ratios = torch.tensor(ratios).view(6, 3)
    assert (ratios.log().mean(0).exp() < 0.8).all(), ratios


@pytest.mark.parametrize("density", [0.9, 0.5, 0.2], ids=str)
def test_layer_error_is_below_magnitude_s_and_is_reported(density):
    net, x, system = layer(rows=8, columns=10, n=50)
    ticket = sparsegpt(system, density=density)
    W = net.weight.detach()
    total = (x @ W.T).square().sum()

    def error(found):
        return float((x @ (found.masked_state["weight"] - W).T).square().sum() / total)

    assert error(ticket) < error(magnitude(system, density=density))
    told = dict(ticket.provenance.settings)["layer_errors"]
    assert told["weight"] == pytest.approx(error(ticket), rel=1e-9)


def test_later_layers_see_what_pruned_ones_give():
    model, (x, y) = small_net(widths=(4, 6, 3)), classes(60, 4, 3)
    system = GradientSystem(model, CE, (x, y))
    for inputs in ("pruned", "dense"):
        ticket = sparsegpt(system, density=0.5, inputs=inputs)
        first = copy.deepcopy(model)
        if inputs == "pruned":
            with torch.no_grad():
                first[0].weight.copy_(ticket.masked_state["0.weight"])
        hidden = first[:2](x).detach()
        _, W = surgery(
            model[2].weight.detach(), hidden, keep_highest(9), damping=0.01, block=6
        )
        found = ticket.masked_state["2.weight"]
        assert torch.allclose(found, W * ticket.masks["2.weight"], rtol=1e-7, atol=1e-9)
    passes = {
        kind: sparsegpt(system, density=0.5, inputs=kind).cost
        for kind in ("pruned", "dense")
    }
    assert passes == {"pruned": Cost(forwards=3.0), "dense": Cost(forwards=1.0)}


CONVOLUTIONS = {
    "plain": lambda: nn.Conv2d(2, 4, 3),
    "padded": lambda: nn.Conv2d(2, 4, (3, 2), padding=(2, 1), stride=(1, 2)),
    "same, dilated": lambda: nn.Conv2d(2, 4, 3, padding="same", dilation=2),
    "circular": lambda: nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"),
    "grouped": lambda: nn.Conv2d(2, 4, 3, groups=2),
    "depthwise": lambda: nn.Conv2d(2, 2, 3, groups=2, padding=1),
    "one axis": lambda: nn.Conv1d(2, 4, 3, stride=2),
    "transposed": lambda: nn.ConvTranspose2d(2, 4, 3),
    "transposed, strided": lambda: nn.ConvTranspose2d(
        2, 4, (3, 2), stride=(2, 3), padding=(1, 0), output_padding=(1, 2)
    ),
    "transposed, grouped": lambda: nn.ConvTranspose2d(2, 4, 3, groups=2, dilation=2),
    "transposed, one axis": lambda: nn.ConvTranspose1d(2, 3, 4, stride=2, padding=5),
    "three axes": lambda: nn.Conv3d(2, 3, 2),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions_are_matrices_on_their_patches(kind):
    conv = CONVOLUTIONS[kind]().double()
    axes = len(conv.kernel_size)
    with torch.no_grad():
        conv.weight.copy_(normal(*conv.weight.shape, seed=2))
    x = normal(9, 2, *[6] * axes, seed=3)
    y = torch.zeros_like(conv(x)).detach()
    system = GradientSystem(conv, MSE, (x, y))
    ticket = sparsegpt(system, density=0.5)
    assert ticket.kept == kept_count(0.5, conv.weight.numel())
    # the reported error is that of the outputs of the convolution itself
    twin, dense = copy.deepcopy(conv), copy.deepcopy(conv)
    with torch.no_grad():
        twin.weight.copy_(ticket.masked_state["weight"])
        twin.bias.zero_()
        dense.bias.zero_()
    expected = (twin(x) - dense(x)).square().sum() / dense(x).square().sum()
    told = dict(ticket.provenance.settings)["layer_errors"]["weight"]
    assert told == pytest.approx(float(expected.detach()), rel=1e-9)


def test_convolution_s_moments_are_those_of_unfold():
    from dynprune.pruning._layer_inputs import moments
    from dynprune.pruning._layer_matrices import layers_of
    from dynprune.pruning._private_copy import private_copy

    conv = nn.Conv2d(4, 6, (3, 2), padding=(1, 2), stride=2, groups=2).double()
    x = normal(5, 4, 7, 8)
    system = GradientSystem(conv, MSE, (x, torch.zeros_like(conv(x)).detach()))
    net = private_copy(system).eval()
    (found,) = moments(net, system, layers_of(net, ["weight"]), seed=0).values()
    for group in range(2):
        own = x[:, 2 * group : 2 * group + 2]
        rows = nn.functional.unfold(own, (3, 2), padding=(1, 2), stride=2)
        X = rows.transpose(1, 2).reshape(-1, 12)
        assert torch.allclose(found[group], 2 / len(X) * X.T @ X, rtol=1e-10)


def test_slices_of_the_rows_add_up(monkeypatch):
    from dynprune.pruning import _layer_matrices

    model, (x, y) = small_net(), classes(60, 3, 3)
    system = GradientSystem(model, CE, (x, y))
    whole = sparsegpt(system, density=0.5)
    monkeypatch.setattr(_layer_matrices, "_NUMBERS", 10)
    sliced = sparsegpt(system, density=0.5)
    batches = [(x[:13], y[:13]), (x[13:], y[13:])]
    loader = sparsegpt(GradientSystem(model, CE, batches), density=0.5)
    for name, mask in whole.masks.items():
        for other in (sliced, loader):
            assert torch.equal(other.masks[name], mask)
            assert torch.allclose(other.state[name], whole.state[name], rtol=1e-9)


def test_conv1d_of_transformers_is_a_transposed_linear_layer():
    from transformers.pytorch_utils import Conv1D

    from dynprune.pruning._layer_inputs import moments
    from dynprune.pruning._layer_matrices import layers_of
    from dynprune.pruning._private_copy import private_copy

    net = nn.Sequential(Conv1D(4, 7), nn.ReLU(), nn.Linear(4, 2)).double()
    x = correlated(30, 7).view(6, 5, 7)
    system = GradientSystem(net, MSE, (x, torch.zeros(6, 5, 2)))
    twin = private_copy(system).eval()
    (own,) = layers_of(twin, ["0.weight"])
    assert own.layout == "columns"
    H = moments(twin, system, [own], seed=0)["0.weight"][0]
    X = x.view(30, 7)
    assert torch.allclose(H, 2 / 30 * X.T @ X, rtol=1e-10)
    assert "0.weight" in system.prunable
    ticket = sparsegpt(system, density=0.5)
    W = net[0].weight.detach().T
    mask, after = surgery(W, X, keep_highest(14), damping=0.01, block=7)
    assert torch.equal(ticket.masks["0.weight"].T, mask)
    found = ticket.masked_state["0.weight"].T
    assert torch.allclose(found, after * mask, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", ["self", "cross", "other widths"])
def test_projections_of_attention_see_what_they_project(kind, batch_first):
    from dynprune.pruning._layer_inputs import in_call_order, moments
    from dynprune.pruning._layer_matrices import layers_of
    from dynprune.pruning._private_copy import private_copy

    class Attends(nn.Module):
        def __init__(self):
            nn.Module.__init__(self)
            widths = {"kdim": 3, "vdim": 5} if kind == "other widths" else {}
            self.own = nn.MultiheadAttention(4, 2, batch_first=batch_first, **widths)

        def parts(self, x):
            if kind == "self":
                return x, x, x
            other = x.flip(1)[:, :3] if batch_first else x.flip(0)[:3]
            if kind == "cross":
                return x, other, 2 * other
            return x, other[..., :3], torch.cat([other, other[..., :1]], -1)

        def forward(self, x):
            x = x if batch_first else x.transpose(0, 1)
            q, k, v = self.parts(x)
            out = self.own(q, key=k, value=v, need_weights=False)[0]
            return out.mean(1 if batch_first else 0)

    x = normal(6, 5, 4, seed=1)
    net = Attends().double()
    with torch.no_grad():
        for n, part in enumerate(net.parameters()):
            part.copy_(normal(*part.shape, seed=n))
    system = GradientSystem(net, MSE, (x, normal(6, 4)))
    twin = private_copy(system).eval()
    names = [name for name, part in net.named_parameters() if part.ndim > 1]
    layers = in_call_order(twin, system, layers_of(twin, names))
    assert [layer.name for layer in layers] == names
    found = moments(twin, system, layers, seed=0)
    seen = net.parts(x if batch_first else x.transpose(0, 1))
    groups = [g for name in names[:-1] for g in found[name]]
    rows = len(seen[0].reshape(-1, 4))
    for H, part in zip(groups, seen, strict=True):
        X = part.reshape(-1, part.shape[-1])
        n = len(X) if kind == "other widths" else rows
        assert torch.allclose(H, 2 / n * X.T @ X, rtol=1e-10)
    # the heads by hand: softmax(q k' / √2) v for each of two heads of width 2
    if kind == "other widths":
        weights = [net.own.q_proj_weight, net.own.k_proj_weight, net.own.v_proj_weight]
    else:
        weights = net.own.in_proj_weight.split(4)
    q, k, v = (
        part @ w.T + b
        for part, w, b in zip(seen, weights, net.own.in_proj_bias.split(4), strict=True)
    )
    if not batch_first:
        q, k, v = (part.transpose(0, 1) for part in (q, k, v))
    q, k, v = (part.unflatten(-1, (2, 2)).transpose(1, 2) for part in (q, k, v))
    heads = (q @ k.mT / 2**0.5).softmax(-1) @ v
    X = heads.transpose(1, 2).flatten(2).reshape(-1, 4).detach()
    assert torch.allclose(found["own.out_proj.weight"][0], 2 / len(X) * X.T @ X)
    before = copy.deepcopy(twin.state_dict())
    assert all(torch.equal(before[n], t) for n, t in net.state_dict().items())
    ticket = sparsegpt(system, density=0.5)
    for name, mask in ticket.masks.items():
        assert int(mask.sum()) == kept_count(0.5, mask.numel()), name


@pytest.mark.parametrize("kind", ["shared", "tied"])
def test_shared_and_tied_weights_see_all_their_inputs(kind):
    from dynprune.pruning._layer_inputs import moments
    from dynprune.pruning._layer_matrices import layers_of
    from dynprune.pruning._private_copy import private_copy

    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    last = first if kind == "shared" else second
    net = nn.Sequential(first, nn.Tanh(), last).double()
    x, y = classes(20, 3, 3)
    system = GradientSystem(net, CE, (x, y))
    assert system.prunable == ("0.weight",)
    twin = private_copy(system).eval()
    (found,) = moments(twin, system, layers_of(twin, ["0.weight"]), seed=0).values()
    X = torch.cat([x, net[:2](x)]).detach()
    assert torch.allclose(found[0], 2 / 40 * X.T @ X, rtol=1e-10)
    ticket = sparsegpt(system, density=0.5)
    assert ticket.kept == kept_count(0.5, 9)


def test_inputs_that_are_always_zero_go_first():
    net, x, _ = layer()
    x = x.clone()
    x[:, 2] = 0.0
    system = GradientSystem(net, MSE, (x, torch.zeros(30, 4, dtype=x.dtype)))
    mask = sparsegpt(system, density=0.8, damping=0.0).masks["weight"]
    assert not mask[:, 2].any()
    assert int(mask.sum()) == kept_count(0.8, 28)
    full = sparsegpt(system, density=1.0)
    assert torch.equal(full.state["weight"], net.weight)


@pytest.mark.parametrize("block_size", [1, 2, 5, 128])
@pytest.mark.parametrize("density", [1e-9, 0.1, 0.37, 0.99, 1.0], ids=str)
def test_counts_are_exact_in_each_layer(block_size, density):
    model, (x, y) = small_net(widths=(3, 5, 3)), classes(40, 3, 3)
    system = GradientSystem(model, CE, (x, y))
    ticket = sparsegpt(
        system, density=density, block_size=block_size, collapse="ignore"
    )
    assert [int(m.sum()) for m in ticket.masks.values()] == [
        kept_count(density, 15)
    ] * 2


def test_masked_system_keeps_what_is_pruned_pruned():
    model, (x, y) = small_net(widths=(3, 8, 3)), classes(40, 3, 3)
    system = GradientSystem(model, CE, (x, y))
    first = random(system, density=0.6, scope="layer", seed=3)
    masked = system.with_ticket(first)
    ticket = sparsegpt(masked, density=0.4, block_size=2)
    assert [int(m.sum()) for m in ticket.masks.values()] == [kept_count(0.4, 24)] * 2
    for name, mask in ticket.masks.items():
        assert not (mask & ~first.masks[name]).any()
    with pytest.raises(InvalidInputError, match="but only 14 survive"):
        sparsegpt(masked, density=0.7)


def test_custom_batches_and_keyword_calls():
    class Keyword(nn.Module):
        def __init__(self):
            nn.Module.__init__(self)
            self.inner = small_net()

        def forward(self, x):
            return self.inner[2](self.inner[1](self.inner[0](input=x)))

    x, y = classes(30, 3, 3)
    batches = [{"x": x[:11], "y": y[:11]}, {"x": x[11:], "y": y[11:]}]
    system = GradientSystem(
        Keyword(), None, batches, batch_loss=lambda net, b: CE(net(b["x"]), b["y"])
    )
    plain = sparsegpt(GradientSystem(small_net(), CE, (x, y)), density=0.5)
    found = sparsegpt(system, density=0.5)
    for name, mask in plain.masks.items():
        assert torch.equal(found.masks[f"inner.{name}"], mask)
    assert found.cost.forwards == pytest.approx(2 + 11 / 30)


def test_user_keeps_everything(untouched):
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)
    )
    x, y = classes(40, 16, 3)
    system = GradientSystem(net, CE, (x.float().view(40, 1, 4, 4), y))
    net.train()
    before = copy.deepcopy(net.state_dict())
    with untouched():
        ticket = sparsegpt(system, density=0.25)
    assert net.training
    assert all(part.grad is None for part in net.parameters())
    assert all(torch.equal(net.state_dict()[n], t) for n, t in before.items())
    assert not any(part._forward_pre_hooks for part in system.module.modules())
    assert ticket.state["0.weight"].dtype == torch.float32
    assert "SparseGPT" in cite(ticket)


@pytest.mark.parametrize(
    ("knobs", "says"),
    [
        ({"block_size": 0}, "block_size is 0"),
        ({"damping": -0.1}, "damping is -0.1"),
        ({"inputs": "sparse"}, "Unknown inputs 'sparse'"),
        ({"density": 0.0}, "density of 0.0"),
    ],
    ids=str,
)
def test_bad_knobs_are_refused(knobs, says):
    _, _, system = layer()
    with pytest.raises(InvalidInputError, match=says):
        sparsegpt(system, **({"density": 0.5} | knobs))


def test_layers_that_do_not_fit_are_refused():
    x, y = classes(20, 4, 3)
    norm = nn.Sequential(nn.LayerNorm(4)).double()
    with pytest.raises(InvalidInputError, match="no prunable weight"):
        sparsegpt(GradientSystem(norm, CE, (x, y)), density=0.5)

    class Sized(nn.Module):
        def __init__(self):
            nn.Module.__init__(self)
            self.up = nn.ConvTranspose1d(1, 1, 2, stride=2)

        def forward(self, x):
            return self.up(x[:, None], output_size=(9,))[:, 0]

    system = GradientSystem(Sized().double(), CE, (x, y))
    with pytest.raises(InvalidInputError, match="called with output_size"):
        sparsegpt(system, density=0.5)

    class Unused(nn.Module):
        def __init__(self):
            nn.Module.__init__(self)
            self.used, self.other = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.used(x)

    system = GradientSystem(Unused().double(), CE, (x, y))
    with pytest.raises(
        InvalidInputError, match=r"No input of 'other\.weight' was seen"
    ):
        sparsegpt(system, density=0.5)
    net, x, _ = layer()
    same = x[:, :1].expand(30, 7)
    system = GradientSystem(net, MSE, (same, torch.zeros(30, 4, dtype=x.dtype)))
    with pytest.raises(AssumptionError, match="linearly dependent"):
        sparsegpt(system, density=0.5, damping=0.0)
    huge = GradientSystem(
        small_net(), lambda out, y: out.mean() * 0, (x[:, :3] * 1e300, x)
    )
    with pytest.raises(InvalidInputError, match="overflow"):
        sparsegpt(huge, density=0.5)


@pytest.mark.parametrize("inputs", ["pruned", "dense"])
def test_compiled_models_are_pruned_as_they_are(inputs):
    # a compiled call runs no hook that came later; and this compiler compiles nothing
    net, data = small_net(widths=(4, 5, 3)), classes(20, 4, 3)
    plain = sparsegpt(GradientSystem(net, CE, data), density=0.5, inputs=inputs)
    compiled = torch.compile(net, backend="eager")
    system = GradientSystem(compiled, CE, data)  # calls it, so that it is compiled
    found = sparsegpt(system, density=0.5, inputs=inputs)
    for name, mask in plain.masks.items():
        assert torch.equal(found.masks[f"_orig_mod.{name}"], mask)
        assert torch.equal(found.state[f"_orig_mod.{name}"], plain.state[name])
