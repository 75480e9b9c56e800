"""Second order and sparse training on models that are no plain chain."""

import copy

import pytest
import torch
from problems import classes, small_net
from torch import nn

from dynprune.pruning import (
    gradual_magnitude,
    imp,
    kept_count,
    obd,
    obs,
    rigl,
    sparse_evolution,
    sparsegpt,
)
from dynprune.system import GradientSystem
from dynprune.training import Recipe

CE = nn.functional.cross_entropy


def recipe(**knobs) -> Recipe:
    return Recipe(lambda p: torch.optim.Adam(p, lr=1e-2), steps=6, **knobs)


def filled(net: nn.Module) -> nn.Module:
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, part in net.named_parameters():
            noise = torch.randn(part.shape, generator=draw) * 0.3
            part.copy_(1.0 + noise if "norm" in name.lower() else noise)
    return net


def tied() -> GradientSystem:
    net = small_net(widths=(4, 4, 4, 3))
    net[2].weight = net[0].weight
    return GradientSystem(net, CE, classes(24, 4, 3))


def shared() -> GradientSystem:
    part, head = small_net(widths=(4, 4))[0], small_net(widths=(4, 3), seed=1)[0]
    net = nn.Sequential(part, nn.Tanh(), part, nn.Tanh(), head)
    return GradientSystem(net, CE, classes(24, 4, 3))


def transposed() -> GradientSystem:
    net = nn.Sequential(
        nn.Conv1d(1, 3, 3), nn.Tanh(), nn.ConvTranspose1d(3, 2, 4), nn.Flatten()
    )
    net.append(nn.Linear(18, 3))
    x, y = classes(24, 8, 3)
    return GradientSystem(filled(net.double()), CE, (x[:, None], y))


def attention() -> GradientSystem:
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3)).double()
    x, y = classes(24, 12, 3)
    return GradientSystem(filled(net), CE, (x.view(24, 3, 4), y))


def hugging_face(kind: str) -> GradientSystem:
    transformers = pytest.importorskip("transformers")
    if kind == "bert":
        config = transformers.BertConfig(
            vocab_size=11,
            hidden_size=4,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=6,
            max_position_embeddings=8,
            num_labels=3,
            pad_token_id=0,
        )
        net = transformers.BertForSequenceClassification(config)
    else:
        config = transformers.GPT2Config(
            vocab_size=11,
            n_positions=8,
            n_embd=4,
            n_layer=1,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
        )
        net = transformers.GPT2LMHeadModel(config)
    draw = torch.Generator().manual_seed(1)
    batches = [
        {
            "input_ids": part,
            "labels": torch.arange(len(part)) % 3 if kind == "bert" else part,
        }
        for part in (torch.randint(1, 11, (n, 6), generator=draw) for n in (12, 5))
    ]
    return GradientSystem(
        filled(net),
        None,
        batches,
        batch_loss=lambda model, batch: model(**batch).loss,
        batch_weight=lambda batch: float(len(batch["input_ids"])),
    )


SYSTEMS = {
    "tied": tied,
    "shared": shared,
    "transposed": transposed,
    "attention": attention,
    "bert": lambda: hugging_face("bert"),
    "gpt2": lambda: hugging_face("gpt2"),
}
SOON = {"train": recipe(), "update_every": 2}
METHODS = {
    "obd": lambda s, d: obd(s, density=d, matvecs=2000),
    "obs": lambda s, d: obs(s, density=d, block_size=8),
    "obs, sequential": lambda s, d: obs(
        s, density=d, block_size=8, order="sequential", scope="layer"
    ),
    "sparsegpt": lambda s, d: sparsegpt(s, density=d),
    "gradual": lambda s, d: gradual_magnitude(s, density=d, **SOON).trained,
    "rigl": lambda s, d: rigl(s, density=d, **SOON).trained,
    "set": lambda s, d: sparse_evolution(s, density=d, **SOON).trained,
    "imp": lambda s, d: imp(
        s, densities=(1.0, d), train=recipe(), rewind="learning-rate"
    ).tickets[-1],
}
BY_LAYER = {"obs, sequential", "sparsegpt"}


@pytest.fixture(scope="module", params=SYSTEMS.values(), ids=SYSTEMS.keys())
def system(request):
    return request.param()


@pytest.mark.parametrize("method", METHODS)
def test_counts_are_exact_and_the_user_keeps_everything(system, method, untouched):
    before = copy.deepcopy(system.model.state_dict())
    with untouched():
        ticket = METHODS[method](system, 0.6)
    sizes = {name: mask.numel() for name, mask in ticket.masks.items()}
    assert tuple(sizes) == system.prunable
    if method in BY_LAYER:
        counts = {name: int(mask.sum()) for name, mask in ticket.masks.items()}
        assert counts == {name: kept_count(0.6, size) for name, size in sizes.items()}
    else:
        assert ticket.kept == kept_count(0.6, sum(sizes.values()))
    for name, part in system.model.state_dict().items():
        assert torch.equal(part, before[name]), name
    other = copy.deepcopy(system.model)
    ticket.apply_(other)
    own = dict(other.named_parameters())
    for name, mask in ticket.masks.items():
        assert not own[name][~mask].any()
    assert torch.isfinite(system.with_ticket(ticket).loss())
