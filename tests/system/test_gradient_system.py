import math

import pytest
import torch
from problems import classes, half_squares, linear_regression, small_net
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune.core import InvalidInputError
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket, compare
from dynprune.training import Recipe, train_many

CROSS = nn.functional.cross_entropy


@pytest.mark.parametrize("sizes", [(16,), (8, 8), (15, 1)], ids=str)
def test_loss_and_gradient_are_means_over_examples(sizes):
    model, (x, y), hessian = linear_regression()
    data = list(zip(x.split(sizes), y.split(sizes), strict=True))
    system = GradientSystem(model, half_squares, data)
    theta = model.weight.detach().reshape(-1)
    residual = x @ theta[:, None] - y
    assert system.examples == 16
    assert torch.allclose(system.loss(), residual.square().mean(), rtol=1e-14)
    want = hessian @ theta - 2 / 16 * (x.T @ y).reshape(-1)
    assert torch.allclose(system.gradient(), want, rtol=1e-12)
    assert torch.equal(system.field(), -system.gradient())


def test_batch_weight_counts_tokens():
    model, (x, y), _ = linear_regression()
    weights = iter([3.0, 1.0] * 99)
    batches = [(x[:4], y[:4]), (x[4:], y[4:])]
    system = GradientSystem(
        model,
        half_squares,
        batches,
        batch_weight=lambda b: 3.0 if len(b[1]) == 4 else 1,
    )
    del weights
    parts = [GradientSystem(model, half_squares, [b]).loss() for b in batches]
    assert torch.allclose(system.loss(), (3 * parts[0] + parts[1]) / 4, rtol=1e-14)


def test_flow_of_a_quadratic_is_the_matrix_exponential():
    model, data, hessian = linear_regression()
    system = GradientSystem(model, half_squares, data)
    x, y = data
    optimum = torch.linalg.lstsq(x, y).solution.reshape(-1)
    times = [0.0, 0.3, 1.0]
    flow = system.flow(times)
    start = system.state - optimum
    for column, t in zip(flow.T, times, strict=True):
        want = optimum + torch.linalg.matrix_exp(-t * hessian) @ start
        assert torch.allclose(column, want, rtol=1e-7, atol=1e-8)


def test_l2_adds_half_the_square():
    model, data, _ = linear_regression()
    plain = GradientSystem(model, half_squares, data)
    ridge = GradientSystem(model, half_squares, data, l2=0.5)
    theta = plain.state
    assert torch.allclose(ridge.loss() - plain.loss(), 0.25 * theta.dot(theta))
    assert torch.allclose(ridge.gradient() - plain.gradient(), 0.5 * theta)


def test_masked_system_counts_survivors_and_zeroes_the_rest():
    net = small_net()
    x, y = classes(11, 3, 3)
    dense = GradientSystem(net, CROSS, (x, y))
    mask = {"0.weight": torch.rand(4, 3) > 0.5}
    masked = dense.with_mask(mask)
    assert masked.size == dense.size - int((~mask["0.weight"]).sum())
    named = masked.unflatten(masked.state)
    assert torch.equal(named["0.weight"] == 0, ~mask["0.weight"])
    by_hand = dense.with_state({**dense.unflatten(dense.state), **named})
    assert torch.equal(masked.loss(), by_hand.loss())
    kept = dense.coordinates.restrict(mask).survivors
    assert torch.allclose(masked.gradient(), by_hand.gradient()[kept], rtol=1e-13)
    assert masked.with_mask({}).size == dense.size


def test_state_follows_the_model_until_it_is_given():
    net = small_net()
    system = GradientSystem(net, CROSS, classes(9, 3, 3))
    fixed = system.with_state(system.state)
    with torch.no_grad():
        net[0].weight.zero_()
    assert torch.equal(system.unflatten(system.state)["0.weight"], torch.zeros(4, 3))
    assert not torch.equal(fixed.state, system.state)


def test_selection_frozen_and_tied_parameters():
    net = small_net(widths=(3, 3, 3))
    net[2].weight = net[0].weight
    net[0].bias.requires_grad_(False)
    data = classes(9, 3, 3)
    system = GradientSystem(net, CROSS, data)
    assert system.names == ("0.weight", "2.bias")
    assert system.prunable == ("0.weight",)
    assert GradientSystem(net, CROSS, data, parameters="*.bias").names == ("2.bias",)
    with pytest.raises(InvalidInputError, match="No trainable parameter matches"):
        GradientSystem(net, CROSS, data, parameters="nothing")


def test_float64_twin_agrees():
    net = small_net().float()
    x, y = classes(9, 3, 3)
    system = GradientSystem(net, CROSS, (x.float(), y), l2=0.1)
    twin = system.double()
    assert twin.dtype == torch.float64
    assert twin.data[0].dtype == torch.float32  # placed when it is read
    assert torch.allclose(twin.gradient().float(), system.gradient(), atol=1e-6)


class Counted(nn.Module):
    """Buffers of three dtypes, all of them used."""

    def __init__(self):
        nn.Module.__init__(self)
        self.norm = nn.BatchNorm1d(3)  # two of a float dtype and a count
        self.layer = nn.Linear(3, 3)
        self.register_buffer("order", torch.tensor([2, 0, 1]))
        self.register_buffer("used", torch.tensor([True, True, False]))

    def forward(self, x):
        return self.layer(self.norm(x)[:, self.order] * self.used)


def ticket_in(dtype):
    net = Counted().to(dtype)
    with torch.no_grad():
        net.layer.weight.copy_(torch.arange(9.0).view(3, 3) / 9)
    net.norm.running_var.fill_(0.5)
    masks = {"layer.weight": ~torch.eye(3, dtype=torch.bool)}
    return Ticket.make(masks, dict(net.named_parameters()), dict(net.named_buffers()))


@pytest.mark.parametrize("of", [torch.float32, torch.float64])
@pytest.mark.parametrize("own_state", [False, True])
def test_buffers_of_a_ticket_take_the_dtype_of_the_system(of, own_state):
    ticket = ticket_in(of)
    x, y = _float(classes(9, 3, 3))
    narrow = GradientSystem(Counted(), CROSS, (x, y))
    if own_state:
        narrow = narrow.with_state(narrow.state, buffers=ticket.buffers)
    wide = narrow.double()
    found = wide.with_ticket(ticket)
    assert {name: part.dtype for name, part in found.buffers.items()} == {
        "norm.running_mean": torch.float64,
        "norm.running_var": torch.float64,
        "norm.num_batches_tracked": torch.int64,
        "order": torch.int64,
        "used": torch.bool,
    }
    small = narrow.with_ticket(ticket)
    assert small.buffers["norm.running_var"].dtype == torch.float32
    assert torch.equal(
        found.buffers["norm.running_var"], torch.full((3,), 0.5).double()
    )
    assert float(found.loss()) == pytest.approx(float(small.loss()), rel=1e-6)
    assert torch.allclose(found.gradient().float(), small.gradient(), atol=1e-6)
    found.flow([0.0, 0.1])


def test_what_is_done_with_tickets_is_done_in_float64():
    tickets = [ticket_in(torch.float32), ticket_in(torch.float32)]
    system = GradientSystem(Counted(), CROSS, _float(classes(9, 3, 3))).double()
    recipe = Recipe(lambda part: torch.optim.SGD(part, lr=0.1), steps=2)
    runs = train_many(
        [system.with_ticket(ticket) for ticket in tickets], recipe, how="stacked"
    )
    assert runs[0].state.dtype == torch.float64
    assert compare(tickets, system=system) is not None


def test_the_user_sees_no_change(untouched):
    net = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3)
    )
    net.train()
    loss = nn.CrossEntropyLoss()
    loader = DataLoader(TensorDataset(*_float(classes(9, 3, 3))), 4, shuffle=True)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with untouched():
        system = GradientSystem(net, loss, loader)
        system.loss()
        system.gradient()
        system.flow([0.0, 0.01])
    assert net.training
    assert loss.training
    assert all(part.training for part in net.modules())
    assert all(part.grad is None for part in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_dictionary_batches_through_batch_loss():
    net = small_net()
    x, y = classes(9, 3, 3)
    batches = [{"x": x[:5], "y": y[:5]}, {"x": x[5:], "y": y[5:]}]
    system = GradientSystem(
        net, None, batches, batch_loss=lambda model, b: CROSS(model(b["x"]), b["y"])
    )
    assert torch.allclose(system.loss(), CROSS(net(x), y))


def _float(pair):
    return pair[0].float(), pair[1]


X, Y = classes(9, 3, 3)
REFUSED = {
    "a generator": (dict(data=(b for b in [(X, Y)])), "read only once"),
    "no iterable": (dict(data=3), "no iterable of batches"),
    "an empty loader": (dict(data=[]), "hold no batch"),
    "other lengths": (dict(data=(X, Y[:3])), "same positive number"),
    "a summed loss": (dict(loss_fn=nn.CrossEntropyLoss(reduction="sum")), "not a mean"),
    "class weights": (
        dict(loss_fn=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 5]).double())),
        "not a mean",
    ),
    "no scalar": (dict(loss_fn=nn.CrossEntropyLoss(reduction="none")), "not a scalar"),
    "a NaN loss": (dict(loss_fn=lambda f, y: f.sum() * math.nan), "is nan"),
    "no loss": (dict(loss_fn=None), "No loss was given"),
    "no module": (dict(model=lambda x: x), "Pass a torch.nn.Module"),
    "negative l2": (dict(l2=-1.0), "l2 is -1"),
    "a process group": (dict(process_group=1), "process group that this process is"),
    "no microbatch": (dict(microbatch=0), "microbatch is 0"),
    "a lone tensor batch": (dict(data=[X]), "not a pair"),
    "mixed dtypes": (
        dict(model=nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3).double())),
        "one dtype and device",
    ),
    "nothing trainable": (
        dict(model=nn.Linear(3, 3).double().requires_grad_(False)),
        "no trainable parameter",
    ),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_bad_input_is_refused(case):
    change, message = REFUSED[case]
    given = dict(model=small_net(), loss_fn=CROSS, data=(X, Y)) | change
    model, loss_fn, data = (given.pop(key) for key in ("model", "loss_fn", "data"))
    with pytest.raises(InvalidInputError, match=message):
        GradientSystem(model, loss_fn, data, **given)


def test_flow_refuses_times_and_states():
    model, data, _ = linear_regression()
    system = GradientSystem(model, half_squares, data)
    with pytest.raises(InvalidInputError, match="do not increase"):
        system.flow([1.0, 0.0])
    with pytest.raises(InvalidInputError, match="state of shape"):
        system.loss(torch.zeros(7))


def test_no_class_weights_slip_through():
    x = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    data = x, (x.sum(1) > 0).long()
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 1.5]))
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))
        for part in net.parameters():
            nn.init.uniform_(part.data, -0.5, 0.5, generator=generator)
        with pytest.raises(InvalidInputError, match="not a mean over examples"):
            GradientSystem(net, loss, data)
        GradientSystem(net, CROSS, data)


def test_nan_in_a_later_batch_is_named_and_no_loader_blamed():
    model, (x, y), _ = linear_regression()
    x = x.clone()
    x[-1] = math.nan
    system = GradientSystem(model, half_squares, [(x[:8], y[:8]), (x[8:], y[8:])])
    with pytest.raises(InvalidInputError, match="the loss of batch 1 is nan"):
        system.flow(torch.tensor([0.0, 1.0]))


def test_class_weights_go_through_batch_loss_and_batch_weight():
    weights = torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)
    x, y = classes(12, 3, 3)

    def mean(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], weight=weights)

    def total(batch):
        return float(weights[batch[1]].sum())

    net = small_net()
    with pytest.raises(InvalidInputError, match="sum of the weights"):
        GradientSystem(net, None, (x, y), batch_loss=mean)
    whole = GradientSystem(net, None, (x, y), batch_loss=mean, batch_weight=total)
    cut = GradientSystem(
        net, None, (x, y), batch_loss=mean, batch_weight=total, microbatch=5
    )
    assert float(whole.loss()) == pytest.approx(float(cut.loss()), rel=1e-12)
    assert torch.allclose(whole.gradient(), cut.gradient(), rtol=1e-11, atol=1e-14)
