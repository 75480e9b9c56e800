"""Which weights can be pruned, by kind of layer."""

import sys

import pytest
import torch
from torch import nn

from dynprune.system import GradientSystem


def prunable(model: nn.Module, **kwargs) -> tuple[str, ...]:
    x = torch.zeros(2, 1)
    return GradientSystem(
        model,
        None,
        [(x, x)],
        batch_loss=lambda net, batch: sum(p.sum() for p in net.parameters()) * 0 + 1.0,
        **kwargs,
    ).prunable


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 6),
        nn.Conv1d(4, 6, 3),
        nn.Conv2d(4, 6, 3, groups=2),
        nn.Conv3d(4, 6, 3),
        nn.ConvTranspose1d(4, 6, 3),
        nn.ConvTranspose2d(4, 6, 3),
        nn.ConvTranspose3d(4, 6, 3),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_linear_layers_and_convolutions(layer):
    assert prunable(nn.Sequential(layer)) == ("0.weight",)


@pytest.mark.parametrize(
    "layer",
    [nn.Embedding(4, 6), nn.LayerNorm(6), nn.BatchNorm2d(6), nn.PReLU(6)],
    ids=lambda layer: type(layer).__name__,
)
def test_norms_embeddings_and_slopes_are_not(layer):
    assert prunable(nn.Sequential(layer)) == ()


def test_attention_projections():
    assert prunable(nn.MultiheadAttention(4, 2)) == (
        "in_proj_weight",
        "out_proj.weight",
    )
    assert prunable(nn.MultiheadAttention(4, 2, kdim=3, vdim=5)) == (
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
        "out_proj.weight",
    )
    assert prunable(nn.TransformerEncoderLayer(4, 2, 8)) == (
        "self_attn.in_proj_weight",
        "self_attn.out_proj.weight",
        "linear1.weight",
        "linear2.weight",
    )


def test_tied_and_shared_weights_once():
    shared = nn.Linear(4, 4)
    assert prunable(nn.Sequential(shared, nn.ReLU(), shared)) == ("0.weight",)
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    assert prunable(tied) == ("0.weight",)


def test_an_embedding_tied_to_a_linear_layer_is_its_weight():
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 5, bias=False))
    net[1].weight = net[0].weight
    assert prunable(net) == ("0.weight",)


def test_parameters_select():
    net = nn.Sequential(nn.Linear(4, 4), nn.Conv1d(4, 4, 1))
    assert prunable(net, parameters="1.*") == ("1.weight",)
    assert prunable(net, parameters=["0.*", "1.bias"]) == ("0.weight",)
    net[0].weight.requires_grad_(False)
    assert prunable(net) == ("1.weight",)


def test_conv1d_of_transformers():
    library = pytest.importorskip("transformers.pytorch_utils")
    assert prunable(nn.Sequential(library.Conv1D(6, 4))) == ("0.weight",)


def test_transformers_is_not_imported_to_look(monkeypatch):
    # as in a process that has not imported it
    monkeypatch.delitem(sys.modules, "transformers.pytorch_utils", raising=False)
    assert prunable(nn.Sequential(nn.Linear(4, 6))) == ("0.weight",)
    assert "transformers.pytorch_utils" not in sys.modules
