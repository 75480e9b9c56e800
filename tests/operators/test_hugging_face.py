"""Other people's models, as their batches come: dictionaries, through batch_loss."""

import pytest
import torch

from dynprune.operators import HessianOperator
from dynprune.system import GradientSystem

transformers = pytest.importorskip("transformers")


def mean_loss(model, batch):
    return model(**batch).loss


def count(batch):
    return float(len(batch["labels"]))


def bert():
    config = transformers.BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
        num_labels=3,
        pad_token_id=0,
    )
    assert config._attn_implementation in {None, "sdpa"}  # the fused kernels' default
    make = torch.Generator().manual_seed(0)
    batches = [
        {
            "input_ids": torch.randint(1, 11, (n, 6), generator=make),
            "attention_mask": torch.tensor([[1] * 4 + [0] * 2] * n),
            "labels": torch.arange(n) % 3,
        }
        for n in (4, 2)
    ]
    return transformers.BertForSequenceClassification(config), batches


def resnet():
    config = transformers.ResNetConfig(
        num_channels=2,
        embedding_size=4,
        hidden_sizes=[4, 8],
        depths=[1, 1],
        layer_type="basic",
        num_labels=3,
        hidden_act="silu",
    )
    make = torch.Generator().manual_seed(0)
    batches = [
        {
            "pixel_values": torch.randn(n, 2, 8, 8, generator=make),
            "labels": torch.arange(n) % 3,
        }
        for n in (4, 2)
    ]
    return transformers.ResNetForImageClassification(config), batches


@pytest.mark.parametrize("maker", [bert, resnet], ids=lambda maker: maker.__name__)
@pytest.mark.parametrize("route", ["auto", "batched"])
def test_products_with_models_of_others(maker, route):
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        model, batches = maker()
    model.double()
    system = GradientSystem(
        model, None, batches, batch_loss=mean_loss, batch_weight=count
    )
    make = torch.Generator().manual_seed(1)
    direction = torch.randn(system.size, generator=make, dtype=torch.float64)
    named = system.unflatten(direction)
    for name, part in named.items():
        if name.endswith("word_embeddings.weight"):
            part[0] = 0.0  # the row of padding is held fixed by torch
    v = system.flatten(named)
    V = torch.stack([v, 2 * v], 1)
    found = HessianOperator(system, route=route) @ V
    step = 1e-6 / float(v.abs().max())
    ahead, behind = (system.gradient(system.state + s * v) for s in (step, -step))
    wanted = (ahead - behind) / (2 * step)
    for column, factor in ((0, 1.0), (1, 2.0)):
        error = float((found[:, column] - factor * wanted).norm())
        assert error <= 1e-6 * factor * float(wanted.norm())
