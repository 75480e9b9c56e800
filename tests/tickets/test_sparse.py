"""Exports with zeros and in torch's sparse formats compute the masked network."""

import copy
import io

import pytest
import safetensors.torch
import torch
from torch import nn

from dynprune.core import InvalidInputError
from dynprune.tickets import SparseLinear, Ticket, to_sparse

# relative, sums of at most 32 numbers in another order
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-12}


def net(dtype=torch.float64, seed: int = 0) -> nn.Sequential:
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        made = nn.Sequential(
            nn.Conv1d(2, 4, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32, 16),
            nn.Tanh(),
            nn.Linear(16, 3, bias=False),
        )
    with torch.no_grad():
        for part in made.parameters():
            part.copy_(torch.randn(part.shape, generator=draw))
    return made.to(dtype)


def pruned(model: nn.Module, density: float = 0.2, seed: int = 0) -> Ticket:
    draw = torch.Generator().manual_seed(seed)
    masks = {
        name: torch.rand(part.shape, generator=draw) < density
        for name, part in model.named_parameters()
        if part.ndim > 1
    }
    return Ticket.make(
        masks, dict(model.named_parameters()), dict(model.named_buffers())
    )


def inputs(dtype=torch.float64, *, batch: int = 5) -> torch.Tensor:
    draw = torch.Generator().manual_seed(9)
    return torch.randn(batch, 2, 10, generator=draw, dtype=dtype)


def close(found, wanted):
    scale = float(wanted.detach().abs().max())
    error = float((found - wanted).detach().abs().max())
    assert error <= ROUNDING[wanted.dtype] * scale


def test_dense_has_zeros_and_the_models_own_weights():
    made, model = pruned(net()), net(seed=3)
    before = copy.deepcopy(model.state_dict())
    dense = made.to_dense(model)
    assert type(dense) is type(model)
    for name, part in dense.named_parameters():
        mask = made.masks.get(name, torch.ones_like(part, dtype=torch.bool))
        assert torch.equal(part, model.get_parameter(name) * mask)
    assert all(torch.equal(model.state_dict()[n], t) for n, t in before.items())
    masked = copy.deepcopy(model)
    made.to_torch_prune(masked)
    with torch.no_grad():
        masked[3].weight_orig.add_(1.0)  # trained on
    plain = made.to_dense(masked)
    assert list(plain.state_dict()) == list(before)
    torch.testing.assert_close(plain(inputs()), masked(inputs()))
    assert not any(part._forward_pre_hooks for part in plain.modules())


def test_dense_of_another_model_is_refused():
    with pytest.raises(
        InvalidInputError, match=r"masks 0.weight \(4, 2, 3\), 3.weight"
    ):
        pruned(net()).to_dense(nn.Linear(2, 2))


def test_a_model_just_pruned_by_torch_can_be_exported():
    model = net()
    nn.utils.prune.l1_unstructured(model[3], "weight", amount=300)
    nn.utils.prune.random_unstructured(model[3], "bias", amount=3)
    assert not model[3].weight.is_leaf
    found = Ticket.from_torch_prune(model)
    dense = found.to_dense(model)
    assert list(dense.state_dict()) == list(net().state_dict())
    assert all(part.is_leaf for part in dense.parameters())
    assert torch.equal(dense[3].weight, model[3].weight)
    assert torch.equal(dense[3].bias, model[3].bias)
    torch.testing.assert_close(dense(inputs()), model(inputs()))
    assert nn.utils.prune.is_pruned(model)
    assert isinstance(to_sparse(found, model).module[3], SparseLinear)
    # attention reads the weight of its projection without calling it
    with torch.random.fork_rng():
        attention = nn.MultiheadAttention(4, 2).double()
        nn.utils.prune.random_unstructured(attention.out_proj, "weight", amount=5)
    x = torch.ones(3, 1, 4, dtype=torch.float64)
    plain = Ticket.from_torch_prune(attention).to_dense(attention)
    torch.testing.assert_close(plain(x, x, x), attention(x, x, x))


def test_a_model_that_cannot_be_copied_is_refused():
    model = net()
    model[3].seen = model[3].weight * 2.0
    with pytest.raises(InvalidInputError, match=r"cannot be copied.*leaves"):
        pruned(net()).to_dense(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", ["csr", "coo"])
@pytest.mark.parametrize("batch", [1, 5], ids=str)
def test_sparse_equals_dense(layout, dtype, batch):
    model = net(dtype)
    made = pruned(model)
    found = to_sparse(made, model, layout=layout)
    x = inputs(dtype, batch=batch)
    close(found.module(x), made.to_dense(model)(x))
    assert [type(part) for part in found.module][3::2] == [SparseLinear] * 2
    assert found.module[3].kept == int(made.masks["3.weight"].sum())
    assert found.module[3].matrix.layout == getattr(torch, f"sparse_{layout}")


def test_inputs_with_more_dimensions_and_gradients_of_them():
    model = nn.Linear(6, 4).double()
    made = pruned(model, 0.4)
    sparse = to_sparse(made, model).module
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    close(sparse(x), made.to_dense(model)(x))
    (found,) = torch.autograd.grad(sparse(x).square().sum(), x)
    (wanted,) = torch.autograd.grad(made.to_dense(model)(x).square().sum(), x)
    close(found, wanted)


def test_an_empty_matrix_gives_the_bias():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    masks = {
        "0.weight": torch.zeros(3, 4).bool(),
        "1.weight": torch.ones(2, 3).bool(),
    }
    made = Ticket.make(masks, dict(model.named_parameters()))
    for layout in ("csr", "coo"):
        sparse = to_sparse(made, model, layout=layout).module
        assert torch.equal(sparse[0](torch.ones(1, 4).double())[0], model[0].bias)


@pytest.mark.parametrize("layout", ["csr", "coo"])
def test_it_can_be_saved_copied_and_cast(layout):
    model = net()
    made = pruned(model)
    sparse = to_sparse(made, model, layout=layout).module
    raw = safetensors.torch.save(sparse.state_dict())
    other = to_sparse(made, net(seed=5), layout=layout).module
    other.load_state_dict(safetensors.torch.load(raw))
    assert torch.equal(other(inputs()), sparse(inputs()))
    assert torch.equal(copy.deepcopy(sparse)(inputs()), sparse(inputs()))
    buffer = io.BytesIO()
    torch.save(sparse, buffer)
    found = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert torch.equal(found(inputs()), sparse(inputs()))
    assert sparse.float()(inputs(torch.float32)).dtype == torch.float32


def test_sizes_are_counted():
    model = net(torch.float32)
    made = pruned(model)
    found = to_sparse(made, model)
    kept = int(made.masks["3.weight"].sum())
    form, before, after = found.layers[1][1:]
    assert form == f"csr, {kept} kept"
    assert before == 4 * (32 * 16 + 16)
    assert after == 8 * kept + 4 * (16 + 1) + 4 * 16
    assert found.layers[0][1:] == ("dense Conv1d", 4 * 28, 4 * 28)
    total = sum(part.numel() * 4 for part in model.parameters())
    assert found.bytes_before == total
    assert found.bytes_before - found.bytes_after == sum(
        b - a for _, _, b, a in found.layers
    )
    assert found.provenance.made_by == "tickets.to_sparse"
    assert "not compared" in found.summary()


def test_what_reads_weights_itself_stays_dense():
    with torch.random.fork_rng():
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        model = nn.Sequential(nn.Linear(4, 8), layer).double().eval()
    made = pruned(model)
    found = to_sparse(made, model)
    forms = {name: form for name, form, *_ in found.layers}
    assert forms["0.weight"].startswith("csr")
    assert forms["1.self_attn.out_proj.weight"].startswith("dense")
    assert forms["1.linear1.weight"] == "dense Linear"
    x = torch.randn(2, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        close(found.module(x), made.to_dense(model)(x))


def test_hugging_face_conv1d():
    utils = pytest.importorskip("transformers.pytorch_utils")
    with torch.random.fork_rng():
        model = nn.Sequential(utils.Conv1D(6, 4), nn.GELU()).double()
    made = pruned(model, 0.4)
    found = to_sparse(made, model)
    assert found.module[0].out_features == 6
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    close(found.module(x), made.to_dense(model)(x))


def test_nothing_to_make_sparse_is_refused():
    model = net()
    made = Ticket.make(
        {"0.weight": torch.ones(4, 2, 3).bool()}, dict(model.named_parameters())
    )
    with pytest.raises(InvalidInputError, match="No weight that the ticket masks"):
        to_sparse(made, model)
    with pytest.raises(InvalidInputError, match="layout is 'bsr'"):
        to_sparse(pruned(model), model, layout="bsr")


def test_a_module_of_two_names_is_one_sparse_module():
    with torch.random.fork_rng():
        shared = nn.Linear(6, 6).double()
    whole = nn.Sequential(shared, nn.Tanh(), shared)
    made = pruned(whole, 0.3)
    found = to_sparse(made, whole)
    assert isinstance(found.module[0], SparseLinear)
    assert found.module[2] is found.module[0]
    x = torch.ones(2, 6, dtype=torch.float64)
    close(found.module(x), made.to_dense(whole)(x))
    assert found.bytes_after < found.bytes_before


@pytest.mark.parametrize("layout", ["csr", "coo"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_equals_dense(layout, dtype):
    model = net(torch.float32).to(dtype)
    made = pruned(model)
    x = inputs(torch.float32).to(dtype)
    found = to_sparse(made, model, layout=layout).module
    with torch.no_grad():
        wanted, y = made.to_dense(model)(x), found(x)
    assert y.dtype == dtype
    assert found[3].values.dtype == dtype
    # sums of 32 products, in float32 or rounded at every one
    bound = 32 * torch.finfo(dtype).eps * float(wanted.abs().max())
    assert float((y - wanted).abs().max()) <= bound
    # a model that is cast afterwards
    cast = to_sparse(pruned(net()), net(), layout=layout).module.to(dtype)
    assert cast(x).dtype == dtype


def test_a_weight_that_is_asked_for_its_dtype_and_shape():
    model = nn.Linear(6, 4).double()
    made = pruned(model, 0.4)
    sparse = to_sparse(made, model).module
    assert sparse.weight.dtype == torch.float64
    assert sparse.weight.shape == (4, 6)
    assert sparse.weight.device == model.weight.device
    assert torch.equal(sparse.weight.to_dense(), made.to_dense(model).weight)
    assert "weight" not in sparse.state_dict()


def test_hugging_face_t5():
    transformers = pytest.importorskip("transformers")
    settings = transformers.T5Config(
        vocab_size=20, d_model=16, d_kv=4, d_ff=32, num_layers=1, num_heads=2
    )
    with torch.random.fork_rng():
        model = transformers.T5EncoderModel(settings).eval()
    made = pruned(model, 0.3)
    found = to_sparse(made, model)
    ids = torch.arange(6)[None]
    forms = {name: form for name, form, *_ in found.layers}
    name = "encoder.block.0.layer.1.DenseReluDense.wo.weight"
    assert forms[name].startswith("csr")
    with torch.no_grad():
        wanted = made.to_dense(model)(input_ids=ids).last_hidden_state
        close(found.module(input_ids=ids).last_hidden_state, wanted)


class Reads(nn.Module):
    """A layer that is read without calling it."""

    def __init__(self, read):
        nn.Module.__init__(self)
        self.read = read
        with torch.random.fork_rng():
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.two(x) * self.read(self.one)


def test_outputs_are_compared_where_an_example_is_given():
    model = net()
    made = pruned(model)
    model.train()
    found = to_sparse(made, model, example=inputs())
    assert 0.0 <= found.error <= 1e-12 * found.scale
    assert found.scale == float(made.to_dense(model)(inputs()).detach().abs().max())
    assert all(part.training for part in found.module.modules())
    assert "not compared" not in found.summary()
    # an error, and in silence another number
    for read in (
        lambda one: one.weight.view(-1)[0],
        lambda one: len([*one.parameters()]),
    ):
        other = Reads(read)
        with pytest.raises(InvalidInputError, match=r"matrices changed.*to_dense"):
            to_sparse(pruned(other, 0.5), other, example=torch.ones(1, 4))
    with pytest.raises(InvalidInputError, match="cannot be called with this example"):
        to_sparse(made, model, example=torch.ones(1, 3))


def test_layers_with_hooks_keep_them_and_stay_dense():
    model = net()
    model[5].register_forward_pre_hook(lambda _module, inputs: (2.0 * inputs[0],))
    made = pruned(model)
    found = to_sparse(made, model)
    assert [type(part) for part in found.module][3::2] == [SparseLinear, nn.Linear]
    assert found.layers[2][1] == "dense Linear, has hooks"
    close(found.module(inputs()), made.to_dense(model)(inputs()))
    model[3].register_forward_hook(lambda _module, _inputs, output: output + 1.0)
    with pytest.raises(InvalidInputError, match=r"3\.weight \(dense Linear, has hooks"):
        to_sparse(made, model)


def test_layers_that_become_larger_are_named():
    model = net(torch.float32)
    made = pruned(model)
    masks = made.masks
    masks["5.weight"][:] = True
    found = to_sparse(Ticket.make(masks, made.state), model)
    assert found.layers[1][1] == f"csr, {int(masks['3.weight'].sum())} kept"
    assert found.layers[2][1] == "csr, 48 kept, larger than dense"
    assert "2 of 3 changed, 1 of them larger: 5.weight" in found.summary()
    assert "larger" not in to_sparse(made, model).summary()
