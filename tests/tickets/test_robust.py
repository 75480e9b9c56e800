"""Pruned models in a user's life: copies, files, resume, every kind of optimiser."""

import copy
import io

import pytest
import torch
import torch.distributed as dist
from ranks import run
from torch import nn

from dynprune.core import InvalidInputError
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket, broadcast, shuffle

CROSS = nn.functional.cross_entropy
IMPORTS = ("torch._dynamo",)


def net(seed: int = 0) -> nn.Sequential:
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        made = nn.Sequential(
            nn.Unflatten(1, (1, 4)),
            nn.Conv1d(1, 3, 2),
            nn.BatchNorm1d(3),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(9, 3),
        )
    with torch.no_grad():
        for part in made.parameters():
            part.copy_(torch.randn(part.shape, generator=draw))
    return made.double()


def data() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(16, 4, generator=draw, dtype=torch.float64)
    return x, torch.randint(0, 3, (16,), generator=draw)


def ticket(model: nn.Module | None = None, *, seed: int = 2) -> Ticket:
    model = net() if model is None else model
    draw = torch.Generator().manual_seed(seed)
    masks = {
        name: torch.rand(part.shape, generator=draw) < 0.5
        for name, part in model.named_parameters()
        if part.ndim > 1
    }
    return Ticket.make(
        masks, dict(model.named_parameters()), dict(model.named_buffers())
    )


OPTIMISERS = {
    "sgd": lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, weight_decay=0.1, foreach=False
    ),
    "nesterov": lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, foreach=True
    ),
    "fused sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, foreach=False),
    "foreach adam": lambda p: torch.optim.Adam(
        p, lr=0.1, weight_decay=0.1, amsgrad=True, foreach=True
    ),
    "fused adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(
        p, lr=0.01, momentum=0.9, weight_decay=0.1, centered=True
    ),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1, weight_decay=0.1),
    "lbfgs": lambda p: torch.optim.LBFGS(
        p, lr=0.5, max_iter=3, line_search_fn="strong_wolfe"
    ),
}
every_optimiser = pytest.mark.parametrize("name", OPTIMISERS, ids=str)


def train(model, optimizer, steps, *, look=lambda: None):
    x, y = data()

    def closure():
        look()
        optimizer.zero_grad()
        loss = CROSS(model(x), y)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)
        look()


def pruned(model: nn.Module, made: Ticket) -> torch.Tensor:
    state = model.state_dict()
    return torch.cat([state[name][~mask] for name, mask in made.masks.items()])


def same(a: dict, b: dict) -> bool:
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


@every_optimiser
def test_no_pruned_weight_is_seen_even_after_dense_steps(name):
    model, made = net(), ticket()
    optimizer = OPTIMISERS[name](model.parameters())
    train(model, optimizer, 3)  # fills the momenta, and the history of LBFGS
    seen = []
    with made.enforced(model, optimizer):
        train(model, optimizer, 4, look=lambda: seen.append(pruned(model, made)))
    assert len(seen) >= 8
    assert not any(part.any() for part in seen)
    assert all(torch.isfinite(part).all() for part in model.parameters())


@every_optimiser
def test_a_resumed_run_is_the_run_that_was_not_cut(name):
    made = ticket()

    def begin():
        model = net(seed=5)
        made.apply_(model)
        return model, OPTIMISERS[name](model.parameters())

    whole, optimizer = begin()
    with made.enforced(whole, optimizer):
        train(whole, optimizer, 3)
        buffer = io.BytesIO()
        torch.save([whole.state_dict(), optimizer.state_dict()], buffer)
        train(whole, optimizer, 3)
    second, optimizer = begin()
    saved, moments = torch.load(io.BytesIO(buffer.getvalue()))
    with made.enforced(second, optimizer):
        second.load_state_dict(saved)
        optimizer.load_state_dict(moments)
        train(second, optimizer, 3)
    assert same(second.state_dict(), whole.state_dict())
    assert not pruned(second, made).any()


def test_a_dense_state_is_masked_as_it_is_loaded():
    model, made = net(), ticket()
    dense = copy.deepcopy(model.state_dict())
    optimizer = OPTIMISERS["sgd"](model.parameters())
    with made.enforced(model, optimizer):
        twin = copy.deepcopy(model)
        model.load_state_dict(dense)
        assert not pruned(model, made).any()
        twin.load_state_dict(dense)
        assert pruned(twin, made).any()  # a copy is free
    model.load_state_dict(dense)
    assert pruned(model, made).any()
    assert not model._load_state_dict_post_hooks


def test_a_whole_model_can_be_pickled_inside():
    model, made = net(), ticket()
    optimizer = OPTIMISERS["sgd"](model.parameters())
    with made.enforced(model, optimizer):
        train(model, optimizer, 1)
        buffer = io.BytesIO()
        torch.save(model, buffer)
    found = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert same(found.state_dict(), model.state_dict())
    found.load_state_dict(net().state_dict())
    assert pruned(found, made).any()


def test_two_optimisers_share_a_model():
    model, made = net(), ticket()
    x, y = data()
    first = OPTIMISERS["nesterov"](model[1].parameters())
    second = OPTIMISERS["adam"]([*model[2].parameters(), *model[5].parameters()])
    for optimizer in (first, second):
        CROSS(model(x), y).backward()
        optimizer.step()
    with made.enforced(model, first), made.enforced(model, second):
        for _ in range(3):
            for optimizer in (first, second):
                optimizer.zero_grad()
                CROSS(model(x), y).backward()
                optimizer.step()
                assert not pruned(model, made).any()
    assert not first._optimizer_step_post_hooks
    assert not second._optimizer_step_post_hooks


def test_averaged_copies_have_the_same_zeros():
    model, made = net(), ticket()
    optimizer = OPTIMISERS["sgd"](model.parameters())
    with made.enforced(model, optimizer):
        average = torch.optim.swa_utils.AveragedModel(model)
        for _ in range(3):
            train(model, optimizer, 1)
            average.update_parameters(model)
    assert not pruned(average.module, made).any()
    assert not torch.equal(average.module[5].weight, model[5].weight)


def test_a_system_of_a_torch_pruned_model_has_its_masked_loss():
    x, y = data()
    model = ticket().to_torch_prune(net()).eval()
    model(x)
    found = GradientSystem(model, CROSS, (x, y))
    plain = GradientSystem(ticket().to_dense(model), CROSS, (x, y))
    assert float(found.loss()) == pytest.approx(float(plain.loss()), rel=1e-14)
    slopes = found.unflatten(found.gradient())
    for name, mask in ticket().masks.items():
        assert not slopes[f"{name}_orig"][~mask].any()
        assert slopes[f"{name}_orig"][mask].any()


def test_a_scaler_that_skips_steps_leaves_zeros():
    model, made = net().float(), ticket(net().float())
    x, y = data()
    optimizer = OPTIMISERS["sgd"](model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scales = []
    with made.enforced(model, optimizer):
        for step in range(4):
            optimizer.zero_grad()
            loss = CROSS(model(x.float()), y)
            scaler.scale(loss * (torch.inf if step == 2 else 1.0)).backward()
            scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
            assert not pruned(model, made).any()
    assert scales[2] < scales[1]  # it was skipped
    assert all(torch.isfinite(part).all() for part in model.parameters())


def test_an_overflow_in_a_pruned_weight_skips_no_step():
    model = nn.Linear(2, 1, bias=False)
    made = Ticket.make(
        {"weight": torch.tensor([[True, False]])}, dict(model.named_parameters())
    )
    made.apply_(model)
    optimizer = OPTIMISERS["sgd"](model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = model.weight[0, 0].item()
    with made.enforced(model, optimizer):
        # the slope of the pruned weight is inf, that of the other one 1
        weight = model.weight[0]
        scaler.scale(weight[0] + weight[1] * torch.inf * 0.5).backward()
        scaler.step(optimizer)
    assert model.weight[0, 0].item() != before
    assert model.weight[0, 1].item() == 0.0


@pytest.mark.parametrize("ran", [False, True], ids=["fresh", "after a forward pass"])
def test_torch_pruned_models_can_be_copied(ran):
    x, _ = data()
    model = ticket().to_torch_prune(net(seed=5))
    if ran:
        model(x)
    twin = copy.deepcopy(model)
    twice = copy.deepcopy(twin)
    assert same(twice.state_dict(), model.state_dict())
    assert torch.equal(twice(x), model(x))
    # the copy is its own: its gradients and weights do not touch the first
    optimizer = OPTIMISERS["sgd"](twin.parameters())
    train(twin, optimizer, 2)
    assert all(part.grad is None for part in model.parameters())
    assert not torch.equal(twin[1].weight_orig, model[1].weight_orig)
    twin(x)
    penalty = sum(part.weight.square().sum() for part in (twin[1], twin[5]))
    penalty.backward()
    assert twin[5].weight_orig.grad[ticket().masks["5.weight"]].all()
    removed = nn.utils.prune.remove(twin[5], "weight")
    assert not removed.weight[~ticket().masks["5.weight"]].any()
    assert torch.equal(copy.deepcopy(removed).weight, removed.weight)


class Recurrent(nn.Module):
    def __init__(self, kind):
        nn.Module.__init__(self)
        self.rnn, self.out = kind(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_torch_pruned_recurrent_models_can_be_copied(kind):
    with torch.random.fork_rng():
        model = Recurrent(kind)
    draw = torch.Generator().manual_seed(0)
    masks = {
        name: torch.rand(part.shape, generator=draw) < 0.5
        for name, part in model.named_parameters()
        if "weight" in name
    }
    made = Ticket.make(masks, dict(model.named_parameters()))
    made.to_torch_prune(model)
    x = torch.randn(2, 5, 3, generator=draw)
    before = model(x)
    twin = copy.deepcopy(copy.deepcopy(model))
    assert torch.equal(twin(x), before)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(2):
        twin(x).square().sum().backward()
        optimizer.step()
    assert not torch.equal(twin(x), before)
    assert torch.equal(model(x), before)
    before.sum().backward()
    plain = made.to_dense(twin)
    assert torch.equal(plain(x), twin(x))
    assert not plain.rnn.weight_hh_l0[~masks["rnn.weight_hh_l0"]].any()


@every_optimiser
def test_torch_pruned_models_resume(name):
    made = ticket()

    def begin():
        model = made.to_torch_prune(net(seed=5))
        return model, OPTIMISERS[name](model.parameters())

    whole, optimizer = begin()
    train(whole, optimizer, 3)
    saved = copy.deepcopy([whole.state_dict(), optimizer.state_dict()])
    train(whole, optimizer, 2)
    second, optimizer = begin()
    second.load_state_dict(saved[0])
    # fresh at once, not only after a forward pass
    assert torch.equal(
        second[5].weight, saved[0]["5.weight_orig"] * saved[0]["5.weight_mask"]
    )
    optimizer.load_state_dict(saved[1])
    train(second, optimizer, 2)
    assert same(second.state_dict(), whole.state_dict())
    found = Ticket.from_torch_prune(second)
    assert same(found.masks, made.masks)
    x, _ = data()
    plain = net()
    found.apply_(plain)
    assert torch.equal(plain.eval()(x), second.eval()(x))


def test_a_torch_pruned_model_can_be_pickled():
    x, _ = data()
    model = ticket().to_torch_prune(net())
    model(x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    found = torch.load(io.BytesIO(buffer.getvalue()), weights_only=False)
    assert torch.equal(found.eval()(x), model.eval()(x))
    assert torch.equal(copy.deepcopy(found)(x), model(x))


def test_the_projection_of_attention_is_trained_under_its_mask():
    # it is read as attention.out_proj.weight, its module is never called
    with torch.random.fork_rng():
        model = nn.MultiheadAttention(4, 2, batch_first=True).double()
    draw = torch.Generator().manual_seed(0)
    mask = torch.rand(4, 4, generator=draw) < 0.5
    made = Ticket.make({"out_proj.weight": mask}, dict(model.named_parameters()))
    twin = copy.deepcopy(model)
    made.apply_(twin)
    made.to_torch_prune(model)
    model = copy.deepcopy(model)
    x = torch.randn(3, 5, 4, generator=draw, dtype=torch.float64)
    a, b = (torch.optim.SGD(part.parameters(), lr=0.1) for part in (model, twin))
    with made.enforced(twin, b):
        for _ in range(3):
            for part, optimizer in ((model, a), (twin, b)):
                optimizer.zero_grad()
                part(x, x, x)[0].square().sum().backward()
                optimizer.step()
    with torch.no_grad():
        torch.testing.assert_close(model(x, x, x)[0], twin(x, x, x)[0])
    plain = made.to_dense(model)
    assert not plain._forward_pre_hooks
    assert not plain.out_proj._load_state_dict_post_hooks
    assert "__deepcopy__" not in vars(plain.out_proj)
    with torch.no_grad():
        torch.testing.assert_close(plain(x, x, x)[0], twin(x, x, x)[0])
    moved = model.out_proj.weight_orig.detach() - made.state["out_proj.weight"]
    assert moved[mask].all()
    assert not moved[~mask].any()


@pytest.mark.parametrize("way", ["enforced", "to_torch_prune", "apply_"])
@pytest.mark.parametrize("wrong", ["shape", "name"])
def test_a_ticket_of_another_model_changes_nothing(way, wrong):
    model = net()
    if wrong == "shape":
        model[5] = nn.Linear(9, 4).double()
        says = r"5\.weight.*\(4, 9\)"
    else:
        model = nn.Sequential(model)
        says = r"1\.weight"
    before = copy.deepcopy(model.state_dict())
    optimizer = OPTIMISERS["sgd"](model.parameters())
    ways = {
        "enforced": lambda: ticket().enforced(model, optimizer).__enter__(),
        "to_torch_prune": lambda: ticket().to_torch_prune(model),
        "apply_": lambda: ticket().apply_(model),
    }
    with pytest.raises(InvalidInputError, match=says):
        ways[way]()
    assert same(dict(model.state_dict()), dict(before))
    assert not optimizer._optimizer_step_post_hooks
    assert not any(part._forward_pre_hooks for part in model.modules())


# -- several processes ----------------------------------------------------------------


def train_data_parallel(rank, count):
    """Every rank makes its own ticket; rank 1's goes to all; train on own data."""
    model = net()
    made = broadcast(ticket(seed=rank) if rank == 1 else None, source=1)
    made.apply_(model)
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = OPTIMISERS["nesterov"](model.parameters())
    x, y = (part[rank::count] for part in data())
    zeros = True
    with made.enforced(parallel, optimizer) as given:
        for _ in range(3):
            optimizer.zero_grad()
            CROSS(given(x), y).backward()
            optimizer.step()
            zeros &= not pruned(model, made).any()
    wanted = ticket(seed=1)
    states = torch.cat([part.detach().reshape(-1) for part in model.parameters()])
    return {
        "same": same(made.masks, wanted.masks) and same(made.state, wanted.state),
        "provenance": made.provenance == wanted.provenance,
        "zeros": zeros,
        "states": states.tolist(),
    }


def refuse_other_masks(rank, count):
    parallel = nn.parallel.DistributedDataParallel(net())
    optimizer = OPTIMISERS["sgd"](parallel.parameters())
    messages = []
    own = shuffle(ticket(), seed=rank)
    try:
        with own.enforced(parallel, optimizer):
            pass
    except InvalidInputError as error:
        messages.append(str(error))
    for given in ({"source": 0}, {"source": 2}):
        try:
            broadcast(None if rank == 0 else own, **given)
        except InvalidInputError as error:
            messages.append(str(error))
    dist.barrier()
    return messages


def test_ranks_have_one_mask(tmp_path):
    found, refused = run(tmp_path, (train_data_parallel, 2), (refuse_other_masks, 2))
    for one in found:
        assert one["same"]
        assert one["provenance"]
        assert one["zeros"]
    assert found[0]["states"] == found[1]["states"]
    for messages in refused:
        assert len(messages) == 3
        assert "rank(s) 1 differ from those of rank 0" in messages[0]
        assert "Rank 0 passed" in messages[1]
        assert "source is 2, the group has ranks 0 to 1" in messages[2]


def test_one_process_has_nothing_to_broadcast():
    with pytest.raises(InvalidInputError, match="There is no process group"):
        broadcast(ticket())
