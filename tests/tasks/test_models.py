import pytest
import torch
from torch import nn

from dynprune.core import InvalidInputError
from dynprune.tasks import (
    ACTIVATIONS,
    MODELS,
    digits,
    lenet_300_100,
    mlp,
    model_maker,
    resnet,
    small_conv_net,
)


def size(model: nn.Module) -> int:
    return sum(part.numel() for part in model.parameters())


def weights(model: nn.Module) -> int:
    return sum(
        part.weight.numel()
        for part in model.modules()
        if isinstance(part, nn.Linear | nn.Conv2d)
    )


def test_lenet_300_100_has_the_published_size():
    model = lenet_300_100()
    assert size(model) == 266_610
    assert weights(model) == 266_200
    assert model(torch.zeros(2, 784)).shape == (2, 10)


# By hand: stem 432 + 32; stage 1: 6 (2304 + 32); stage 2: 4608 + 5·9216 + 6·64;
# stage 3: 18432 + 5·36864 + 6·128; shortcuts (option B) 512 + 64 + 2048 + 128; fc 650.
@pytest.mark.parametrize(
    ("shortcut", "parameters", "prunable"),
    [("B", 272_474, 270_896), ("A", 269_722, 268_336)],
    ids=["option B", "option A"],
)
def test_resnet_20_has_the_published_size(shortcut, parameters, prunable):
    model = resnet(20, 16, shortcut=shortcut)
    assert size(model) == parameters
    assert weights(model) == prunable
    assert model.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("depth", [8, 14, 32], ids=str)
def test_resnet_counts_its_layers(depth):
    model = resnet(depth, 2, shortcut="A")
    kinds = [type(part) for part in model.modules()]
    assert kinds.count(nn.Conv2d) + kinds.count(nn.Linear) == depth


def test_option_a_shortcut_keeps_every_second_pixel():
    block = resnet(8, 2, shortcut="A").stage2_block1
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    made = block.shortcut(x)
    assert made.shape == (1, 4, 2, 2)
    assert torch.equal(made[:, 1:3], x[:, :, ::2, ::2])
    assert made[:, [0, 3]].eq(0).all()


def test_glorot_variance_and_zero_biases():
    model = mlp((300, 500, 10), "relu", seed=2)
    found, n = model.fc1.weight.detach(), 300 * 500
    expected = 2 / (300 + 500)
    # The variance of a sample variance of normals is 2σ⁴/n: four standard errors.
    assert abs(float(found.var()) - expected) < 4 * expected * (2 / n) ** 0.5
    assert model.fc1.bias.eq(0).all()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_is_the_equation(activation):
    model = mlp((3, 4, 2), activation, seed=1).double()
    x = torch.linspace(-1, 1, 15, dtype=torch.float64).reshape(5, 3)
    hidden = ACTIVATIONS[activation]()(x @ model.fc1.weight.T + model.fc1.bias)
    expected = hidden @ model.fc2.weight.T + model.fc2.bias
    torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-14)


def test_conv_net_takes_rows_and_images():
    model = small_conv_net((1, 8, 8), channels=(3, 4), activation="tanh")
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x), model(x.flatten(1)))
    assert weights(model) == 27 + 108 + 4 * 2 * 2 * 10


def test_a_stride_halves_as_pooling_does_but_rounds_odd_sides_up():
    model = small_conv_net((1, 7, 10), channels=(3, 4), halve="stride")
    x = torch.randn(2, 1, 7, 10, generator=torch.Generator().manual_seed(0))
    assert model[:-2](x).shape == (2, 4, 2, 3)
    assert model(x).shape == (2, 10)
    assert not any(isinstance(part, nn.AvgPool2d) for part in model.modules())
    pooled = small_conv_net((1, 7, 10), channels=(3, 4))
    assert pooled[:-2](x).shape == (2, 4, 1, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: mlp((3, 4, 2), seed=seed),
        lambda seed: small_conv_net((1, 4, 4), channels=(2,), seed=seed),
        lambda seed: resnet(8, 2, seed=seed),
    ],
    ids=["mlp", "conv", "resnet"],
)
def test_makers_depend_on_the_seed_and_touch_no_generator(make, untouched):
    with untouched():
        first, again, other = make(1), make(1), make(2)
    pairs = zip(first.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(
        first.fc.weight if hasattr(first, "fc") else first.fc1.weight,
        other.fc.weight if hasattr(other, "fc") else other.fc1.weight,
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: resnet(21), r"depth 6n \+ 2 .* found 21. Use 20"),
        (lambda: resnet(2), "found 2. Use 8"),
        (lambda: resnet(20, 0), "width and classes are"),
        (lambda: resnet(20, shortcut="C"), "Unknown shortcut 'C'"),
        (lambda: resnet(in_shape=(784,)), r"A resnet needs images .* \(784,\)"),
        (lambda: mlp((3,)), "has no layer"),
        (lambda: mlp((3, 0, 2)), "positive integers"),
        (lambda: mlp((3, 2), "tahn"), "Did you mean 'tanh'"),
        (lambda: small_conv_net((1, 4, 4), channels=(2, 2, 2)), "at most 2 channels"),
        (lambda: small_conv_net((64,)), "A conv net needs images"),
        (lambda: small_conv_net((1, 8, 8), halve="max"), "Unknown halve 'max'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_sizes_are_refused(make, message):
    with pytest.raises(InvalidInputError, match=message):
        make()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp", lambda: mlp((64, 64, 32, 10), seed=3)),
        ("mlp:7", lambda: mlp((64, 7, 10), seed=3)),
        ("mlp:12,5:relu", lambda: mlp((64, 12, 5, 10), "relu", seed=3)),
        ("mlp::gelu", lambda: mlp((64, 64, 32, 10), "gelu", seed=3)),
        ("lenet-300-100", lambda: lenet_300_100(64, seed=3)),
        ("lenet-300-100:tanh", lambda: lenet_300_100(64, activation="tanh", seed=3)),
        ("conv:4", lambda: small_conv_net((1, 8, 8), channels=(4,), seed=3)),
        (
            "conv:4:tanh:stride",
            lambda: small_conv_net(
                (1, 8, 8), channels=(4,), activation="tanh", halve="stride", seed=3
            ),
        ),
        ("resnet:8:2", lambda: resnet(8, 2, in_shape=(1, 8, 8), seed=3)),
        ("resnet-8:2", lambda: resnet(8, 2, in_shape=(1, 8, 8), seed=3)),
        (
            "resnet:8:2:A",
            lambda: resnet(8, 2, in_shape=(1, 8, 8), shortcut="A", seed=3),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_names_of_models(name, expected):
    found = model_maker(name, in_shape=(1, 8, 8), classes=10)(3)
    wanted = expected()
    assert repr(found) == repr(wanted)
    states = found.state_dict(), wanted.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[1])


@pytest.mark.parametrize("name", ["mlp:4", "lenet-300-100", "conv:2,2", "resnet:8:2"])
def test_every_family_fits_digits(name):
    problem = digits(name)
    x, y = problem.train
    loss = problem.loss_fn(problem.model(0)(x[:8]), y[:8])
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mpl", "Did you mean 'mlp'.*resnet:20:16"),
        ("mlp:64,x", "hidden = '64,x', expected integers"),
        ("mlp:64:relu:3", "has 3 knobs, mlp has 2. Write mlp:hidden:activation"),
        ("mlp:64:rleu", "Did you mean 'relu'"),
        ("mlp:0", "positive integers"),
        ("resnet:20,3", "depth = '20,3', expected an integer"),
        ("resnet-21", "found 21. Use 20"),
        ("resnet:8:2:x", "Unknown shortcut 'x'"),
        ("", "Unknown model ''"),
    ],
    ids=str,
)
def test_bad_names_are_refused(name, message):
    with pytest.raises(InvalidInputError, match=message):
        model_maker(name, in_shape=(1, 8, 8), classes=10)


def test_registry_makes_each_model():
    assert set(MODELS) == {"mlp", "lenet-300-100", "conv", "resnet"}
    for maker in MODELS.values():
        assert maker((1, 8, 8), 3, seed=0)(torch.zeros(2, 1, 8, 8)).shape == (2, 3)
