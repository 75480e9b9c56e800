"""Ordinary models and batches that cannot make a system, or only in one way."""

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from dynprune.core import InvalidInputError, NumericalWarning
from dynprune.operators import HessianOperator
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket

MSE = nn.functional.mse_loss


def data(n=20, *, seed=0):
    source = torch.Generator().manual_seed(seed)
    x, y = torch.randn(n, 3, generator=source), torch.randn(n, 1, generator=source)
    return x, y


def small(norm=nn.ReLU):
    net = nn.Sequential(nn.Linear(3, 8), norm(), nn.Linear(8, 1))
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in net.parameters():
            part.uniform_(-1, 1, generator=source)
    return net


def whole_batch(net, batch):
    return MSE(net(batch[0]), batch[1])


def one_each(_batch):
    return 1.0


# -- a loss of rounding only ----------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 1e-3, 10.0])
def test_a_perfect_fit_makes_a_system(dtype, size):
    net = small(nn.Tanh).to(dtype)
    for n in range(5, 20):
        x = size * data(n, seed=n)[0].to(dtype)
        system = GradientSystem(net, MSE, (x, net(x).detach()))
        assert float(system.loss()) < torch.finfo(dtype).eps ** 1.5


def test_a_small_sum_is_no_mean():
    x, y = data()
    with pytest.raises(InvalidInputError, match="not a mean over examples"):
        GradientSystem(small(), lambda out, y: 1e-8 * MSE(out, y) * len(y), (x, y))


# -- weights that hooks compute -------------------------------------------------------


def hooked(kind):
    net = small()
    if kind == "prune":
        prune.l1_unstructured(net[0], "weight", amount=0.5)
    else:
        with warnings.catch_warnings():  # deprecated, and still in use
            warnings.simplefilter("ignore", FutureWarning)
            getattr(nn.utils, kind)(net[0])
    return net


@pytest.mark.parametrize("kind", ["prune", "weight_norm", "spectral_norm"])
@pytest.mark.parametrize("use", ["fresh", "used", "used without graph"])
def test_weights_that_hooks_compute_are_refused_by_name(kind, use):
    net = hooked(kind)
    if use != "fresh":
        with torch.set_grad_enabled(use == "used"):
            net(data()[0])
    with pytest.raises(InvalidInputError, match=r"0\.weight .*from_torch_prune"):
        GradientSystem(net, MSE, data())


def test_the_remedy_for_a_pruned_model():
    net = hooked("prune")
    ticket = Ticket.from_torch_prune(net)
    prune.remove(net[0], "weight")
    system = GradientSystem(net, MSE, data(), mask=ticket.masks)
    assert system.size == 41 - 12
    assert system.gradient().isfinite().all()


def test_a_model_that_a_ticket_pruned_is_taken():
    net = small()
    system = GradientSystem(copy.deepcopy(net), MSE, data())
    masks = {"0.weight": torch.arange(24).view(8, 3) % 2 == 0}
    ticket = Ticket.make(masks, dict(net.named_parameters()), {})
    ticket.to_torch_prune(net)
    found = GradientSystem(net, MSE, data())
    assert float(found.loss()) == pytest.approx(
        float(system.with_mask(masks).loss()), rel=1e-6
    )


def test_a_tensor_kept_in_a_graph_is_named():
    net = small()
    net[1].seen = net[0](data()[0])
    with pytest.raises(InvalidInputError, match=r"1\.seen.*detach"):
        GradientSystem(net, MSE, data())


def test_a_lazy_layer_is_refused_until_it_has_run():
    net = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(1))
    with pytest.raises(InvalidInputError, match=r"0\.weight.*2\.weight.*forward pass"):
        GradientSystem(net, MSE, data())
    net(data()[0])
    assert GradientSystem(net, MSE, data()).size == 21


# -- batches that cannot be cut -------------------------------------------------------


def of_batch():
    return nn.BatchNorm1d(8, track_running_stats=False)


def test_statistics_of_the_batch_are_no_mean_over_examples():
    with pytest.raises(InvalidInputError, match=r"batch_weight=lambda batch: 1\.0"):
        GradientSystem(small(of_batch), MSE, data())
    with pytest.raises(InvalidInputError, match=r"1 value per channel.*track_running"):
        GradientSystem(small(of_batch), MSE, data(2))
    x, y = data(64)
    batches = [(x[:32], y[:32]), (x[32:], y[32:])]
    with pytest.raises(InvalidInputError, match=r"batch_weight=lambda batch: 1\.0"):
        GradientSystem(small(of_batch), None, batches, batch_loss=whole_batch)


def test_batches_that_weigh_one_each_are_not_cut():
    net = small(of_batch)
    x, y = data(64)
    system = GradientSystem(
        net,
        None,
        [(x[:32], y[:32]), (x[32:], y[32:])],
        batch_loss=whole_batch,
        batch_weight=one_each,
    )
    expected = (MSE(net(x[:32]), y[:32]) + MSE(net(x[32:]), y[32:])) / 2
    assert torch.allclose(system.loss(), expected)
    v = torch.ones(system.size)
    eps = 1e-3
    rise = system.gradient(system.state + eps * v) - system.gradient(
        system.state - eps * v
    )
    assert torch.allclose(
        HessianOperator(system) @ v, rise / (2 * eps), rtol=1e-2, atol=1e-3
    )


@pytest.mark.parametrize("n", [20, 50])
def test_a_pair_that_only_looks_like_examples(n):
    x, edges = torch.randn(n, 3), torch.stack([torch.arange(n)] * 2, 1).flip(0)

    def over_edges(net, batch):
        nodes = net(batch[0])
        return (nodes[batch[1][:, 0]] * nodes[batch[1][:, 1]]).mean()

    def make(**kwargs):
        return GradientSystem(
            small(), None, [(x, edges)], batch_loss=over_edges, **kwargs
        )

    with pytest.warns(
        NumericalWarning, match=r"parts cannot \(IndexError.*batch_weight"
    ):
        system = make()
    assert system.gradient().isfinite().all()
    assert make(batch_weight=lambda batch: len(batch[0])).examples == n
    assert make(batch_weight=one_each).examples == 1


# -- layers whose weights are computed ------------------------------------------------


def test_parametrised_layers_are_left_out_with_a_word():
    net = small()
    parametrizations.weight_norm(net[0])
    system = GradientSystem(net, MSE, data())
    system.gradient()  # nothing to say to who prunes nothing
    with pytest.warns(NumericalWarning, match=r"0\.weight.*remove_parametrizations"):
        assert system.prunable == ("2.weight",)
    assert system.with_state(system.state).prunable == ("2.weight",)  # said once


def test_selected_otherwise_nothing_is_said():
    net = small()
    parametrizations.orthogonal(net[0])
    system = GradientSystem(net, MSE, data(), parameters=["0.bias", "2.*"])
    assert system.prunable == ("2.weight",)


def test_weights_that_a_hook_of_a_ticket_computes_are_left_out_with_a_word():
    net = small()
    masks = {"0.weight": torch.ones(8, 3, dtype=torch.bool)}
    Ticket.make(masks, dict(net.named_parameters()), {}).to_torch_prune(net)
    with pytest.warns(NumericalWarning, match=r": 0\.weight, .*prune\.remove") as said:
        assert GradientSystem(net, MSE, data()).prunable == ("2.weight",)
    assert "Ticket.from_torch_prune(model).masks" in str(said[0].message)
    assert "remove_parametrizations" not in str(said[0].message)
    kept = Ticket.from_torch_prune(net).masks
    prune.remove(net[0], "weight")
    system = GradientSystem(net, MSE, data(), mask=kept)
    assert system.prunable == ("0.weight", "2.weight")
    assert system.gradient().isfinite().all()
