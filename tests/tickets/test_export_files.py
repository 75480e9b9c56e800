"""Exports that are kept in files come back as they were, given the whole model."""

import copy
import json
import re

import pytest
import torch
from torch import nn

from dynprune.core import InvalidInputError, load_tensors, save_tensors
from dynprune.tasks import resnet
from dynprune.tickets import (
    Export,
    Ticket,
    pack_network,
    reduce,
    remove_channels,
    to_sparse,
    unpack_network,
)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def filled(model: nn.Module) -> nn.Module:
    """Return the model in float64 and eval mode with random numbers everywhere."""
    draw = draws()
    model = model.double().eval()
    with torch.no_grad():
        for name, part in (*model.named_parameters(), *model.named_buffers()):
            if part.is_floating_point():
                part.copy_(torch.randn(part.shape, generator=draw))
            if name.endswith("running_var"):
                part.abs_().add_(0.5)
    return model


def pruned(model: nn.Module, density: float = 0.7) -> Ticket:
    """Prune weights at random, and all that leads to every third unit."""
    draw = draws(1)
    masks = {}
    for name, part in model.named_parameters():
        if part.ndim > 1:
            masks[name] = torch.rand(part.shape, generator=draw) < density
            masks[name][1::3] = len(part) <= 3
    return Ticket.make(
        masks, dict(model.named_parameters()), dict(model.named_buffers())
    )


class Shared(nn.Module):
    """One layer under two names, a tied one, and a layer without bias."""

    def __init__(self):
        nn.Module.__init__(self)
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.again = self.a
        self.b.bias = self.a.bias
        self.last = nn.Linear(4, 2, bias=False)

    def forward(self, x):
        return self.last(self.b(self.again(self.a(x).tanh()).tanh()).sigmoid())


def chain() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, 5, bias=False), nn.Linear(5, 2)
    )


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 5, 3),
        nn.BatchNorm2d(5),
        nn.PReLU(5),
        nn.Conv2d(5, 5, 3, groups=5),
        nn.Conv2d(5, 4, 2),
        nn.ConvTranspose2d(4, 4, 2),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def residual() -> nn.Module:
    return resnet(8, 4, in_shape=(1, 8, 8), classes=3)


MODELS = {
    "chain": (chain, (5, 4)),
    "shared": (Shared, (5, 4)),
    "one layer": (lambda: nn.Linear(4, 3), (5, 4)),
    "conv net": (conv_net, (2, 1, 8, 8)),
    "resnet": (residual, (2, 1, 8, 8)),
}
HOW = {
    "reduce": lambda ticket, net, x: reduce(ticket, net, example=x),
    "csr": lambda ticket, net, x: to_sparse(ticket, net, example=x),
    "coo": lambda ticket, net, x: to_sparse(ticket, net, layout="coo"),
}
EACH = pytest.mark.parametrize("how", HOW.values(), ids=HOW.keys())


def alike(net: nn.Module, other: nn.Module, x: torch.Tensor) -> bool:
    """Whether two networks compute the same, up to the order of sums."""
    with torch.no_grad():
        found, wanted = net(x), other(x)
    return float((found - wanted).abs().max()) <= 1e-12 * float(wanted.abs().max())


def exported(name: str, how) -> tuple[Export, nn.Module, torch.Tensor]:
    make, shape = MODELS[name]
    net = filled(make())
    x = torch.randn(shape, generator=draws(2), dtype=torch.float64)
    return how(pruned(net), net, x), make(), x


@EACH
@pytest.mark.parametrize("name", MODELS)
def test_it_comes_back_as_it_was(name, how, tmp_path):
    before, model, x = exported(name, how)  # the new model has other weights
    model.train()
    first = copy.deepcopy(model.state_dict())
    before.save(tmp_path / "a")
    after = Export.load(tmp_path / "a", model)
    assert str(after.module) == str(before.module)
    assert after.summary() == before.summary()
    assert after.layers == before.layers
    assert after.provenance == before.provenance
    assert after.to_frame().equals(before.to_frame())
    assert alike(after.module, before.module, x)
    pairs = zip(
        before.module.named_modules(), after.module.named_modules(), strict=True
    )
    for (a, one), (b, other) in pairs:
        assert (a, type(one), one.training) == (b, type(other), other.training)
    wanted = before.module.state_dict()
    found = after.module.state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(found[key], part) for key, part in wanted.items())
    assert all(found[key].dtype == part.dtype for key, part in wanted.items())
    after.save(tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert model.training
    assert all(torch.equal(model.state_dict()[n], part) for n, part in first.items())


def test_tied_tensors_frozen_ones_and_the_mode_come_back(tmp_path):
    before, model, _ = exported("shared", HOW["reduce"])
    before.module.last.weight.requires_grad_(False)
    before.module.b.train()
    before.save(tmp_path / "a")
    net = Export.load(tmp_path / "a", model).module
    assert net.a is net.again
    assert net.a.bias is net.b.bias
    assert not net.last.weight.requires_grad
    assert net.a.weight.requires_grad
    assert (net.training, net.b.training, net.a.training) == (False, True, False)
    net.a.bias.sum().backward()  # leaves of no graph


def test_a_model_masked_by_torch_gives_its_code_too(tmp_path):
    before, model, x = exported("chain", HOW["reduce"])
    nn.utils.prune.l1_unstructured(model[0], "weight", amount=3)
    before.save(tmp_path / "a")
    after = Export.load(tmp_path / "a", model)
    assert alike(after.module, before.module, x)
    assert nn.utils.prune.is_pruned(model)


def wider() -> nn.Module:
    return nn.Sequential(
        nn.Linear(7, 6), nn.Sigmoid(), nn.Linear(6, 5, bias=False), nn.Linear(5, 2)
    )


def narrower() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 1), nn.Sigmoid(), nn.Linear(1, 5, bias=False), nn.Linear(5, 2)
    )


def deeper() -> nn.Module:
    return nn.Sequential(*chain(), nn.Linear(2, 2))


def other_function() -> nn.Module:
    net = chain()
    net[1] = nn.Tanh()
    return net


@pytest.mark.parametrize(
    ("how", "other", "message"),
    [
        (HOW["csr"], wider, "0 has .*7.* instead of .*4"),
        (HOW["reduce"], narrower, "0 has .*1.* instead of"),
        (HOW["reduce"], deeper, "4 is Linear instead of missing"),
        (HOW["csr"], other_function, "1 is Tanh instead of Sigmoid"),
        (HOW["reduce"], Shared, "the model itself is Shared instead of Sequential"),
        (HOW["reduce"], lambda: chain().to("meta"), "without data"),
    ],
    ids=["wider", "narrower", "deeper", "function", "class", "meta"],
)
def test_another_model_is_refused(how, other, message, tmp_path):
    before, _, _ = exported("chain", how)
    before.save(tmp_path / "a")
    with pytest.raises(InvalidInputError, match=f"another model than .*{message}"):
        Export.load(tmp_path / "a", other())


class Settled(nn.Module):
    """A network whose settings are arguments, one of them its own."""

    def __init__(self, kernel=3, stride=1, fill="zeros", eps=1e-5, slope=0.1, power=1):
        nn.Module.__init__(self)
        self.conv = nn.Conv2d(1, 5, kernel, stride, padding=1, padding_mode=fill)
        self.norm, self.act = nn.BatchNorm2d(5, eps=eps), nn.LeakyReLU(slope)
        self.pool, self.last = nn.AdaptiveAvgPool2d(2), nn.Linear(20, 3)
        self.power, self.nothing = power, float("nan")

    def forward(self, x):
        h = self.pool(self.act(self.norm(self.conv(x))))
        return self.last(h.flatten(1) ** self.power)


@EACH
@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"kernel": 5}, "conv has kernel_size=[5, 5] instead of [3, 3]"),
        ({"stride": 2}, "conv has stride=[2, 2] instead of [1, 1]"),
        ({"fill": "circular"}, "conv has padding_mode='circular' instead of 'zeros'"),
        ({"eps": 0.5}, "norm has eps=0.5 instead of 1e-05"),
        ({"slope": 0.9}, "act has negative_slope=0.9 instead of 0.1"),
        ({"power": 2}, "the model itself has power=2 instead of 1"),
    ],
    ids=lambda part: next(iter(part)) if isinstance(part, dict) else "",
)
def test_a_model_of_other_settings_is_refused(other, message, how, tmp_path):
    net = filled(Settled())
    x = torch.randn((2, 1, 8, 8), generator=draws(2), dtype=torch.float64)
    before = how(pruned(net), net, x)
    before.save(tmp_path / "a")
    assert alike(Export.load(tmp_path / "a", Settled()).module, before.module, x)
    with pytest.raises(InvalidInputError, match=re.escape(message)):
        Export.load(tmp_path / "a", Settled(**other))


class Scaled(nn.Module):
    """A parameter that no layer has, and a setting that a call leaves behind."""

    def __init__(self, width):
        nn.Module.__init__(self)
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)
        self.scale = nn.Parameter(torch.ones(1, 1, width))

    def forward(self, x):
        self.shape = x.shape
        return self.last(self.first(x)) * self.scale.mean()


def test_a_size_that_no_removal_changes_is_that_of_the_model(tmp_path):
    net = filled(Scaled(3))
    net(torch.ones(2, 4).double())
    to_sparse(pruned(net), net, layout="coo").save(tmp_path / "a")
    assert Export.load(tmp_path / "a", Scaled(3)).module.scale.shape == (1, 1, 3)
    message = re.escape("scale (1, 1, 5) instead of (1, 1, 3)")
    with pytest.raises(InvalidInputError, match=message):
        Export.load(tmp_path / "a", Scaled(5))


@pytest.mark.parametrize("name", MODELS)
def test_a_network_and_its_tensors_share_no_memory(name):
    before, model, _ = exported(name, HOW["reduce"])
    wanted = copy.deepcopy(before.module.state_dict())
    packed = pack_network(before.module)
    after = unpack_network(*packed, model)
    with torch.no_grad():
        for part in (*before.module.parameters(), *before.module.buffers()):
            part.zero_()
    again = unpack_network(*packed, model)
    with torch.no_grad():
        for part in (*after.parameters(), *after.buffers()):
            part.fill_(7)
    found = again.state_dict()
    assert all(torch.equal(found[key], part) for key, part in wanted.items())


def test_another_graph_is_refused_with_the_versions_that_wrote_it():
    net = filled(residual())
    norm = net.get_submodule("stage2_block1.norm2")
    keep = torch.arange(norm.num_features) > 0
    norm.weight.data.mul_(keep)
    norm.bias.data.mul_(keep)
    x = torch.ones((2, 1, 8, 8), dtype=torch.float64)
    small = remove_channels(net, {"stage2_block1.norm2": keep}, example=x).network
    tensors, metadata = pack_network(small)
    metadata["graphs"][""] |= {"code": "", "torch": "1.0"}
    message = re.escape(f"another graph under torch {torch.__version__} (file: 1.0)")
    with pytest.raises(InvalidInputError, match=message):
        unpack_network(tensors, metadata, residual())


@EACH
def test_what_is_no_such_file_is_refused(how, tmp_path):
    before, model, _ = exported("chain", how)
    pruned(chain()).save(tmp_path / "ticket")
    with pytest.raises(InvalidInputError, match=r"not an export.*Export\.save"):
        Export.load(tmp_path / "ticket", model)
    with pytest.raises(InvalidInputError, match="No file"):
        Export.load(tmp_path / "none", model)
    before.save(tmp_path / "whole")
    raw = (tmp_path / "whole").read_bytes()
    (tmp_path / "half").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InvalidInputError, match="truncated"):
        Export.load(tmp_path / "half", model)
    tensors, metadata = load_tensors(tmp_path / "whole")
    save_tensors(tmp_path / "part", tensors, metadata | {"parts": {}})
    with pytest.raises(InvalidInputError, match="lacks part of an export"):
        Export.load(tmp_path / "part", model)
    save_tensors(tmp_path / "empty", {}, metadata)
    with pytest.raises(InvalidInputError, match=r"lacks part of|missing in the file"):
        Export.load(tmp_path / "empty", model)


def test_the_file_holds_tensors_and_plain_values_only(tmp_path):
    before, _, _ = exported("chain", HOW["csr"])
    before.save(tmp_path / "a")
    raw = (tmp_path / "a").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    plain = json.loads(header.pop("__metadata__")["dynprune"])
    assert plain["kind"] == "tickets.Export"
    assert {name.split(".")[0] for name in header} == {"module"}
