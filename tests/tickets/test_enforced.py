import copy

import pytest
import torch
from torch import nn

from dynprune.core import InvalidInputError
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket


def problem(seed: int = 0):
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        for part in model.parameters():
            part.copy_(torch.randn(part.shape, generator=draw, dtype=part.dtype))
    x = torch.randn(20, 4, generator=draw, dtype=torch.float64)
    y = torch.randint(0, 3, (20,), generator=draw)
    masks = {
        name: torch.rand(part.shape, generator=draw) < 0.5
        for name, part in model.named_parameters()
        if name.endswith("weight")
    }
    return model, x, y, Ticket.make(masks, dict(model.named_parameters()))


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.1, weight_decay=0.1, amsgrad=True)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters, max_iter=3, line_search_fn="strong_wolfe")


def pruned(model, ticket):
    state = model.state_dict()
    return torch.cat([state[n][~m] for n, m in ticket.masks.items()])


def loop(model, x, y, optimizer, steps, look=lambda: None):
    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
        look()


@pytest.mark.parametrize(
    "make", [sgd, adam, adamw, lbfgs], ids=["sgd", "adam", "adamw", "lbfgs"]
)
def test_pruned_weights_are_zero_after_every_step(make):
    model, x, y, ticket = problem()
    optimizer = make(model.parameters())
    # momentum from dense training pushes pruned weights away from zero
    loop(model, x, y, optimizer, 2)
    before = model[2].bias.detach().clone()
    with ticket.enforced(model, optimizer) as same:
        assert same is model
        assert not pruned(model, ticket).any()

        def look():
            assert not pruned(model, ticket).any()
            assert not torch.signbit(pruned(model, ticket)).any()

        loop(model, x, y, optimizer, 4, look)
    assert not torch.equal(model[2].bias, before)
    assert int((model[0].weight != 0).sum()) == int(ticket.masks["0.weight"].sum())


def test_weights_drift_without_it():
    model, x, y, ticket = problem()
    optimizer = sgd(model.parameters())
    ticket.apply_(model)
    loop(model, x, y, optimizer, 1)
    assert pruned(model, ticket).any()


def test_gradients_are_masked_before_the_step():
    model, x, y, ticket = problem()
    optimizer = sgd(model.parameters())
    with ticket.enforced(model, optimizer):
        nn.functional.cross_entropy(model(x), y).backward()
        slopes = {n: p.grad for n, p in model.named_parameters()}
        for name, mask in ticket.masks.items():
            assert not slopes[name][~mask].any()
        # a unit without outgoing weights has no slope: only the last layer is sure
        assert slopes["2.weight"][ticket.masks["2.weight"]].all()
        model[0].weight.grad = torch.full_like(model[0].weight, float("inf"))
        optimizer.step()
        assert not pruned(model, ticket).any()


def test_hooks_are_removed_on_exit_and_on_error():
    model, x, y, ticket = problem()
    optimizer = sgd(model.parameters())
    with pytest.raises(RuntimeError, match="mine"), ticket.enforced(model, optimizer):
        raise RuntimeError("mine")
    assert not pruned(model, ticket).any()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    loop(model, x, y, optimizer, 1)
    assert pruned(model, ticket).any()


def test_copies_and_state_dicts_work():
    model, x, y, ticket = problem()
    optimizer = sgd(model.parameters())
    names = list(model.state_dict())
    with ticket.enforced(model, optimizer):
        loop(model, x, y, optimizer, 2)
        twin = copy.deepcopy(model)
        saved = {n: t.clone() for n, t in model.state_dict().items()}
        loop(model, x, y, optimizer, 1)
    assert list(saved) == names
    assert not pruned(twin, ticket).any()
    assert not torch.equal(twin[0].weight, model[0].weight)
    # the copy is free of hooks
    loop(twin, x, y, sgd(twin.parameters()), 1)
    assert pruned(twin, ticket).any()
    model.load_state_dict(saved)
    assert torch.equal(model[0].weight, saved["0.weight"])


def test_optimiser_of_another_model_is_refused():
    model, _, _, ticket = problem()
    other = problem()[0]
    with (
        pytest.raises(InvalidInputError, match="none of them a masked weight"),
        ticket.enforced(model, sgd(other.parameters())),
    ):
        pass


def test_model_of_other_names_is_refused():
    model, _, _, ticket = problem()
    wrapped = nn.Sequential(model)
    with (
        pytest.raises(InvalidInputError, match=r"masks 0.weight \(6, 4\), 2.weight"),
        ticket.enforced(wrapped, sgd(wrapped.parameters())),
    ):
        pass


def test_bridge_to_torch_prune_and_back():
    model, x, _, ticket = problem()
    made = copy.deepcopy(model)
    ticket.apply_(model)
    assert ticket.to_torch_prune(made) is made
    assert torch.equal(made(x), model(x))
    found = Ticket.from_torch_prune(made)
    assert list(found.masks) == list(ticket.masks)
    for name, mask in ticket.masks.items():
        assert torch.equal(found.masks[name], mask)
    for name, part in ticket.state.items():
        assert torch.equal(found.state[name], part)
    assert not found.buffers


def test_bridge_counts_unpruned_layers():
    model, _, _, _ = problem()
    nn.utils.prune.l1_unstructured(model[0], "weight", amount=6)
    found = Ticket.from_torch_prune(model)
    assert (found.kept, found.prunable_size) == (18 + 18, 24 + 18)


class Attends(nn.Module):
    """Attention with one stacked projection, or with three."""

    def __init__(self, width: int | None = None):
        nn.Module.__init__(self)
        self.own = nn.MultiheadAttention(4, 2, kdim=width, vdim=width)
        self.head = nn.Linear(4, 2)


def norm(model, _):
    return sum(part.square().mean() for part in model.parameters())


def gpt_block():
    library = pytest.importorskip("transformers.pytorch_utils")
    return nn.Sequential(nn.Embedding(5, 4), library.Conv1D(6, 4), nn.Linear(6, 2))


@pytest.mark.parametrize(
    "make",
    [Attends, lambda: Attends(3), gpt_block, lambda: nn.ConvTranspose2d(2, 3, 2)],
    ids=["stacked attention", "attention", "Conv1D", "transposed"],
)
def test_bridge_counts_what_a_system_prunes(make):
    with torch.random.fork_rng():
        model = make()
    prunable = GradientSystem(model, None, [torch.ones(2)], batch_loss=norm).prunable
    first = copy.deepcopy(model)
    *path, weight = prunable[-1].split(".")
    nn.utils.prune.random_unstructured(
        model.get_submodule(".".join(path)), weight, amount=0.5
    )
    found = Ticket.from_torch_prune(model)
    assert set(found.masks) == set(prunable)
    for name, mask in found.masks.items():
        assert bool(mask.all()) == (name != prunable[-1])
    found.to_torch_prune(first)
    again = Ticket.from_torch_prune(first)
    assert all(torch.equal(again.masks[n], m) for n, m in found.masks.items())


@pytest.mark.parametrize(
    ("make", "pruned"),
    [
        (lambda: nn.Linear(3, 2), ["weight"]),
        (lambda: nn.Linear(3, 2), ["bias", "weight"]),
        (lambda: nn.BatchNorm1d(3), ["bias"]),
        (lambda: nn.MultiheadAttention(4, 2), ["in_proj_weight"]),
        (lambda: nn.LSTM(3, 4, 2), ["weight_hh_l1", "weight_ih_l0", "bias_ih_l0"]),
    ],
)
def test_bridge_keeps_the_order_of_the_parameters(make, pruned):
    with torch.random.fork_rng():
        model = make()
        order = [name for name, _ in model.named_parameters()]
        for name in pruned:
            nn.utils.prune.random_unstructured(model, name, amount=0.5)
    found = Ticket.from_torch_prune(model)
    assert list(found.state) == order
    dense = found.to_dense(model)
    assert [name for name, _ in dense.named_parameters()] == order


def test_bridge_refuses_a_model_that_is_not_pruned():
    with pytest.raises(InvalidInputError, match="No tensor of the model is pruned"):
        Ticket.from_torch_prune(problem()[0])


def test_bridge_masks_tied_weights_everywhere():
    with torch.random.fork_rng():
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
    model[1].weight = model[0].weight
    mask = {"0.weight": torch.eye(3).bool()}
    ticket = Ticket.make(mask, dict(model.named_parameters()))
    ticket.to_torch_prune(model)
    assert torch.equal(model[1].weight, model[0].weight)
    assert not model[1].weight[~mask["0.weight"]].any()
    found = Ticket.from_torch_prune(model)
    assert list(found.masks) == ["0.weight"]
    assert list(found.state) == ["0.weight"]


class Tied(nn.Module):
    """A head whose weight is that of the embedding, which comes first."""

    def __init__(self):
        nn.Module.__init__(self)
        self.e = nn.Embedding(5, 4)
        self.l = nn.Linear(4, 4)
        self.h = nn.Linear(4, 5, bias=False)
        self.h.weight = self.e.weight


@pytest.mark.parametrize(
    ("place", "kept"), [("h", 26), ("l", 28), ("e", 26)], ids=["head", "other", "first"]
)
def test_bridge_reads_the_mask_of_any_holder_of_a_tied_weight(place, kept):
    with torch.random.fork_rng():
        model = Tied()
        nn.utils.prune.random_unstructured(getattr(model, place), "weight", amount=0.5)
    found = Ticket.from_torch_prune(model)
    assert (found.kept, found.prunable_size) == (kept, 20 + 16)
    assert list(found.masks) == ["e.weight", "l.weight"]
    name = "l.weight" if place == "l" else "e.weight"
    assert torch.equal(found.masks[name], getattr(model, place).weight_mask != 0)
    assert set(found.state) == {"e.weight", "l.weight", "l.bias"}


def test_bridge_refuses_two_masks_of_one_weight():
    with torch.random.fork_rng():
        model = Tied()
    mask = torch.ones(5, 4)
    nn.utils.prune.custom_from_mask(model.e, "weight", mask)
    mask[0, 0] = 0
    nn.utils.prune.custom_from_mask(model.h, "weight", mask)
    with pytest.raises(InvalidInputError, match=r"h\.weight.*other mask.*e\.weight"):
        Ticket.from_torch_prune(model)


def grown(model):
    return {name: torch.ones_like(part) for name, part in model.state_dict().items()}


def test_weights_that_a_state_replaces_are_masked_too():
    model, _, _, ticket = problem()
    optimizer = sgd(model.parameters())
    with ticket.enforced(model, optimizer):
        old = model[0].weight
        model.load_state_dict(grown(model), assign=True)
        assert model[0].weight is not old
        assert not pruned(model, ticket).any()
        assert int((model[0].weight != 0).sum()) == int(ticket.masks["0.weight"].sum())
        with torch.no_grad():
            model[0].weight.fill_(2.0)
    assert not pruned(model, ticket).any()


def test_an_optimiser_that_lost_the_weights_is_refused_and_a_new_list_is_not():
    model, x, y, ticket = problem()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ticket.enforced(model, optimizer):
        model.load_state_dict(grown(model), assign=True)
        with pytest.raises(InvalidInputError, match=r"0\.weight, 2\.weight.*assign"):
            loop(model, x, y, optimizer, 1)
        optimizer.param_groups[0]["params"] = list(model.parameters())
        before = model[0].weight.detach().clone()
        loop(model, x, y, optimizer, 1)
        assert not torch.equal(model[0].weight, before)
        assert not pruned(model, ticket).any()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        assert not model[0].weight.grad[~ticket.masks["0.weight"]].any()
    assert not model[0].weight._post_accumulate_grad_hooks


def test_a_tie_that_a_state_unties_stays_masked():
    with torch.random.fork_rng():
        model = Tied()
    mask = torch.arange(20).view(5, 4) % 2 == 0
    ticket = Ticket.make({"e.weight": mask}, dict(model.named_parameters()))
    with ticket.enforced(model, torch.optim.SGD(model.parameters(), lr=0.1)):
        model.load_state_dict(grown(model), assign=True)
        assert model.h.weight is not model.e.weight
        for part in (model.h.weight, model.e.weight):
            assert torch.equal(part != 0, mask)


@pytest.mark.parametrize("method", [torch.optim.SGD, torch.optim.SparseAdam])
def test_sparse_gradients_are_masked(method):
    with torch.random.fork_rng():
        model = nn.Embedding(6, 4, sparse=True)
    mask = torch.arange(24).view(6, 4) % 3 == 0
    ticket = Ticket.make({"weight": mask}, dict(model.named_parameters()))
    optimizer = method(model.parameters(), lr=0.1)
    with ticket.enforced(model, optimizer):
        before = model.weight.detach().clone()
        model(torch.tensor([1, 4, 1])).sum().backward()
        slope = model.weight.grad
        assert slope.is_sparse
        wanted = torch.zeros(6, 4).index_add_(
            0, torch.tensor([1, 4, 1]), mask[[1, 4, 1]].float()
        )
        assert torch.equal(slope.to_dense(), wanted)
        optimizer.step()
        assert not torch.equal(model.weight, before)
        assert not model.weight[~mask].any()
