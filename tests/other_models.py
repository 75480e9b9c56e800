"""Systems of models that are no plain chain: tied, shared, others'."""

import pytest
import torch
from problems import classes, small_net
from torch import nn

from dynprune.system import GradientSystem

CE = nn.functional.cross_entropy


def filled(net: nn.Module) -> nn.Module:
    """Fill a network with numbers from its own generator, norms about one."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, part in net.named_parameters():
            noise = torch.randn(part.shape, generator=draw) * 0.3
            part.copy_(1.0 + noise if "norm" in name.lower() else noise)
    return net


def tied() -> GradientSystem:
    """Two layers of one weight."""
    net = small_net(widths=(4, 4, 4, 3))
    net[2].weight = net[0].weight
    return GradientSystem(net, CE, classes(24, 4, 3))


def shared() -> GradientSystem:
    """One layer that is used twice."""
    part, head = small_net(widths=(4, 4))[0], small_net(widths=(4, 3), seed=1)[0]
    net = nn.Sequential(part, nn.Tanh(), part, nn.Tanh(), head)
    return GradientSystem(net, CE, classes(24, 4, 3))


def transposed() -> GradientSystem:
    """A transposed convolution."""
    net = nn.Sequential(
        nn.Conv1d(1, 3, 3), nn.Tanh(), nn.ConvTranspose1d(3, 2, 4), nn.Flatten()
    )
    net.append(nn.Linear(18, 3))
    x, y = classes(24, 8, 3)
    return GradientSystem(filled(net.double()), CE, (x[:, None], y))


def attention() -> GradientSystem:
    """A transformer's layer."""
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
    net = nn.Sequential(layer, nn.Flatten(), nn.Linear(12, 3)).double()
    x, y = classes(24, 12, 3)
    return GradientSystem(filled(net), CE, (x.view(24, 3, 4), y))


class Skip(nn.Module):
    """A layer with a connection around it, which may lose all its weights."""

    def __init__(self):
        nn.Module.__init__(self)
        self.inner = nn.Linear(4, 4).double()
        self.head = nn.Linear(4, 3).double()

    def forward(self, x):
        return self.head(x + self.inner(x))


def hugging_face(kind: str, *, layers: int = 1) -> GradientSystem:
    """A small BERT or GPT-2 on batches of two lengths."""
    transformers = pytest.importorskip("transformers")
    if kind == "bert":
        config = transformers.BertConfig(
            vocab_size=11,
            hidden_size=8,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=12,
            max_position_embeddings=8,
            num_labels=3,
            pad_token_id=0,
        )
        net = transformers.BertForSequenceClassification(config)
    else:
        config = transformers.GPT2Config(
            vocab_size=11,
            n_positions=8,
            n_embd=8,
            n_layer=layers,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
        )
        net = transformers.GPT2LMHeadModel(config)
    draw = torch.Generator().manual_seed(1)
    batches = [
        {
            "input_ids": part,
            "attention_mask": torch.ones_like(part),
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
