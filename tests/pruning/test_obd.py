"""Optimal brain damage against dense Hessians and exact removal costs."""

import copy
import warnings

import pytest
import torch
from problems import classes, dense_hessian, linear_regression, small_net
from torch import nn

from dynprune.core import Cost, InvalidInputError, NumericalWarning, cite
from dynprune.pruning import kept_count, obd, obd_diagonal, obd_scores, random
from dynprune.system import GradientSystem

CE = nn.functional.cross_entropy


def problem(**kwargs):
    model = small_net()
    return model, GradientSystem(model, CE, classes(12, 3, 3), **kwargs)


def flat(scores):
    return torch.cat([part.reshape(-1) for part in scores.values()])


def weight_places(system):
    named = {
        name: torch.full(shape, name.endswith("weight"))
        for name, shape in zip(system.names, system.coordinates.shapes, strict=True)
    }
    return system.flatten(named)


def test_quadratic_loss_without_correlations_is_the_exact_cost_of_removal():
    # x'x diagonal: removing w_j from the minimum raises the loss by exactly ½ h_j w_j²
    x = torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    y = torch.tensor([[3.0], [-1.0], [0.5]], dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False).double()
    system = GradientSystem(model, nn.functional.mse_loss, (x, y))
    best = torch.linalg.solve(x, y).T
    system = system.with_state(best.reshape(-1))
    found = flat(obd_scores(system))
    for j in range(3):
        without = best.reshape(-1).clone()
        without[j] = 0.0
        rise = system.loss(without) - system.loss(best.reshape(-1))
        assert float((found[j] - rise).abs()) < 1e-14


@pytest.mark.parametrize(
    ("negative", "rule"),
    [("absolute", torch.abs), ("zero", lambda h: h.clamp(min=0.0))],
)
def test_scores_are_half_h_w_squared_of_the_dense_hessian(negative, rule):
    _, system = problem(l2=0.1)
    H = dense_hessian(system, system.state)
    kept = weight_places(system)
    h = H.diagonal()[kept]
    assert (h < 0).any(), "the case that matters is not in this problem"
    expected = 0.5 * rule(h) * system.state[kept].square()
    found = flat(obd_scores(system, negative=negative))
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-14)
    assert (found >= 0).all()


def test_gauss_newton_of_squares_is_the_hessian_and_of_a_net_is_not():
    model, data, H = linear_regression()
    system = GradientSystem(model, nn.functional.mse_loss, data)
    found = obd_diagonal(system, curvature="gauss-newton").values
    assert torch.allclose(found, H.diagonal(), rtol=1e-12)
    _, other = problem()
    raw = obd_diagonal(other).values
    convex = obd_diagonal(other, curvature="gauss-newton").values
    assert (convex >= 0).all()
    assert not torch.allclose(convex, raw, rtol=0.1)


def test_masked_system_scores_the_block_of_survivors():
    _, system = problem()
    ticket = random(system, density=0.5, seed=1)
    masked = system.with_ticket(ticket)
    found = obd_scores(masked)
    dense = dense_hessian(masked, masked.state).diagonal()
    expected = masked.unflatten(0.5 * dense.abs() * masked.state.square())
    for name, mask in ticket.masks.items():
        assert torch.allclose(found[name], expected[name], rtol=1e-10)
        assert not found[name][~mask].any()
    second = obd(masked, density=0.25)
    assert second.kept == kept_count(0.25, 24)
    assert all(not (m & ~ticket.masks[n]).any() for n, m in second.masks.items())


def test_estimate_lies_within_its_standard_errors_and_says_so():
    _, system = problem()
    exact = obd_diagonal(system).values
    found = obd_diagonal(system, matvecs=16, seed=3)
    assert found.method == "xdiag"
    # 24 entries of 8 samples each: 6 standard errors
    assert ((found.values - exact).abs() <= 6 * found.standard_error + 1e-12).all()
    ticket = obd(system, density=0.5, matvecs=16, seed=3)
    settings = dict(ticket.provenance.settings)
    assert settings["relative_error"] == found.relative_error > 0
    assert settings["method"] == "xdiag"
    assert "Optimal Brain Damage" in cite(ticket)


def test_the_estimate_may_be_that_of_little_memory():
    _, system = problem()
    knobs = {"matvecs": 16, "method": "bekas", "seed": 3}
    found = obd_diagonal(system, **knobs)
    assert (found.method, found.matvecs) == ("bekas", 16)
    exact = obd_diagonal(system, method="bekas").values
    assert torch.equal(exact, obd_diagonal(system).values)  # 100 products of 24 weights
    assert ((found.values - exact).abs() <= 6 * found.standard_error + 1e-12).all()
    state = system.state[weight_places(system)]
    expected = 0.5 * found.values.abs() * state.square()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The diagonal from", NumericalWarning)
        assert torch.equal(flat(obd_scores(system, **knobs)), expected)
        ticket = obd(system, density=0.5, **knobs)
    assert dict(ticket.provenance.settings)["method"] == "bekas"
    assert "estimator for the diagonal" in cite(ticket).lower()


def test_noise_is_announced():
    _, system = problem()
    with pytest.warns(NumericalWarning, match="24 would make it exact"):
        obd(system, density=0.5, matvecs=4)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_counts_cost_and_order(scope):
    _, system = problem()
    ticket = obd(system, density=0.3, scope=scope)
    expected = 24 * 0.3 if scope == "global" else 2 * kept_count(0.3, 12)
    assert ticket.kept == round(expected)
    assert ticket.cost == Cost(gradients=system.probe_gradients, hvps=24.0)
    scores = obd_scores(system)
    groups = [scores] if scope == "global" else [{n: s} for n, s in scores.items()]
    for group in groups:
        kept = torch.cat([group[n][ticket.masks[n]] for n in group])
        gone = torch.cat([group[n][~ticket.masks[n]] for n in group])
        assert kept.min() >= gone.max()


def test_user_keeps_everything(untouched):
    model, system = problem()
    model.train()
    before = copy.deepcopy(model.state_dict())
    with untouched():
        obd(system, density=0.5, seed=2)
    assert model.training
    assert all(part.grad is None for part in model.parameters())
    assert all(torch.equal(model.state_dict()[n], t) for n, t in before.items())


def test_bad_knobs_are_refused():
    _, system = problem()
    with pytest.raises(InvalidInputError, match="Unknown curvature 'fisher'"):
        obd(system, density=0.5, curvature="fisher")
    with pytest.raises(InvalidInputError, match="Unknown negative 'raw'"):
        obd(system, density=0.5, negative="raw")
    with pytest.raises(InvalidInputError, match="Unknown method 'hutchinson'"):
        obd(system, density=0.5, method="hutchinson")
    with pytest.raises(InvalidInputError, match="Unknown negative 'raw'"):
        obd_scores(system, negative="raw")
    with pytest.raises(InvalidInputError, match="matvecs"):
        obd(system, density=0.5, matvecs=2)
    with pytest.raises(InvalidInputError, match=r"density of 1\.5"):
        obd(system, density=1.5)
    _, frozen = problem(parameters="*.bias")
    with pytest.raises(InvalidInputError, match="no prunable weight"):
        obd(frozen, density=0.5)
