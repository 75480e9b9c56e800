"""Tickets pass between a model and its compiled or data-parallel wrapper."""

import pytest
import torch
from torch import nn

from dynprune.pruning import magnitude
from dynprune.system import GradientSystem
from dynprune.tickets import SparseLinear, Ticket, reduce, to_sparse


def net():
    with torch.random.fork_rng():
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))


def ticket_of(model, start="", first="0.weight"):
    draw = torch.Generator().manual_seed(1)
    state = {start + name: part + 1.0 for name, part in model.named_parameters()}
    masks = {
        name: torch.rand(part.shape, generator=draw) < 0.5
        for name, part in state.items()
        if part.ndim > 1
    }
    masks[start + first][0] = False
    buffers = {start + name: part for name, part in model.named_buffers()}
    return Ticket.make(masks, state, buffers)


def compiled(model):
    return torch.compile(model, backend="eager")


WRAPPERS = {
    "plain": lambda model: model,
    "compiled": compiled,
    "parallel": nn.DataParallel,
    "compiled parallel": lambda model: compiled(nn.DataParallel(model)),
    "parallel compiled": lambda model: nn.DataParallel(compiled(model)),
}
every_wrapper = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
every_name = pytest.mark.parametrize(
    "start", ["", "_orig_mod.", "module.", "module._orig_mod."]
)


@every_wrapper
@every_name
def test_a_ticket_is_applied_and_enforced(wrap, start):
    model = net()
    ticket, wrapped = ticket_of(model, start), wrap(model)
    ticket.apply_(wrapped)
    mask = ticket.masks[f"{start}0.weight"]
    expected = ticket.masked_state[f"{start}0.weight"]
    assert torch.equal(model[0].weight, expected)
    sgd = torch.optim.SGD(wrapped.parameters(), lr=0.1, momentum=0.9)
    with ticket.enforced(wrapped, sgd) as given:
        assert given is wrapped
        for _ in range(2):
            wrapped(torch.randn(5, 4)).square().sum().backward()
            sgd.step()
        wrapped.load_state_dict({k: v + 1.0 for k, v in wrapped.state_dict().items()})
        assert bool((model[0].weight[~mask] == 0.0).all())
    assert bool((model[0].weight[mask] != expected[mask]).all())


@every_wrapper
@every_name
def test_a_ticket_is_exported(wrap, start):
    model = net().eval()
    ticket, wrapped = ticket_of(model, start), wrap(model)
    dense = ticket.to_dense(wrapped)
    assert type(dense) is nn.Sequential
    mask = ticket.masks[f"{start}0.weight"]
    assert torch.equal(dense[0].weight, model[0].weight * mask)
    sparse = to_sparse(ticket, wrapped)
    assert isinstance(sparse.module[0], SparseLinear)
    assert [layer[0] for layer in sparse.layers] == ["0.weight", "2.weight"]
    assert reduce(ticket, wrapped, example=torch.ones(1, 4)).module[0].out_features < 6


@every_wrapper
def test_a_model_that_torch_prunes_is_read(wrap):
    model = net()
    ticket, wrapped = ticket_of(model), wrap(model)
    assert ticket.to_torch_prune(wrapped) is wrapped
    found = Ticket.from_torch_prune(wrapped)
    assert found.masks.keys() == ticket.masks.keys()
    assert all(torch.equal(found.masks[n], mask) for n, mask in ticket.mask_items)
    assert all(torch.equal(found.state[n], part) for n, part in ticket.state_items)


def test_a_ticket_of_a_compiled_system_fits_the_plain_model():
    model = net().eval()
    data = (torch.ones(3, 4), torch.zeros(3, 2))
    ticket = magnitude(
        GradientSystem(compiled(model), nn.functional.mse_loss, data), density=0.5
    )
    before = model[0].weight.detach().clone()
    ticket.apply_(model)
    zeros = sum(int((model[index].weight == 0.0).sum()) for index in (0, 2))
    assert zeros == ticket.prunable_size - ticket.kept
    assert torch.equal(model[0].weight, before * (model[0].weight != 0.0))


def test_a_submodule_of_that_name_is_no_wrapper():
    model = nn.Module()
    model.module = net()
    ticket = ticket_of(model, first="module.0.weight")
    ticket.apply_(model)
    assert torch.equal(model.module[0].weight, ticket.masked_state["module.0.weight"])
