"""The one-shot ticket and its scores."""

import problems
import pytest
import torch
from hypothesis import given, strategies as st
from torch import nn

from dynprune import manifold
from dynprune.core import InvalidInputError, NumericalWarning
from dynprune.operators import MatrixOperator
from dynprune.spectral import eigenpairs
from dynprune.system import GradientSystem


def gd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def net_system(activation=nn.Tanh, widths=(4, 6, 4), mask=None) -> GradientSystem:
    net = problems.small_net(widths=widths, activation=activation)
    data = problems.classes(40, 4, 4)
    return GradientSystem(net, nn.functional.cross_entropy, data, mask=mask)


@pytest.mark.parametrize("score", manifold.SCORES)
@pytest.mark.parametrize("density", [1.0, 0.3, 1e-9], ids=str)
def test_the_count_is_exact_and_the_state_is_the_initial_one(score, density):
    system = net_system()
    ticket = manifold.prune(
        system,
        density=density,
        optimizer=gd,
        transient=2,
        score=score,
        collapse="ignore",
        warn=False,
    )
    size = 4 * 6 + 6 * 4
    assert ticket.kept == max(1, int(density * size + 0.5))
    assert torch.equal(system.flatten(ticket.state), system.state)


def test_the_highest_leverages_are_kept():
    system = net_system()
    report = manifold.analyse(system, k_max=6, optimizer=gd, transient=2, samples=0)
    ticket = manifold.prune(system, density=0.25, report=report, score="leverage+")
    lever = report.pairs.vectors[:, : report.n_fast].square().sum(1)
    named = system.unflatten(lever)
    kept = torch.cat([named[n][m] for n, m in ticket.masks.items()])
    gone = torch.cat([named[n][~m] for n, m in ticket.masks.items()])
    assert kept.min() >= gone.max()
    other = manifold.prune(system, density=0.25, report=report, score="leverage-")
    assert not any((m & other.masks[n]).any() for n, m in ticket.masks.items())


@given(seed=st.integers(0, 10**6), k=st.integers(1, 5), kept=st.integers(1, 29))
def test_leverage_keeps_the_most_of_the_fast_subspace(seed, k, kept):
    make = torch.Generator().manual_seed(seed)
    square = torch.randn(30, 30, generator=make, dtype=torch.float64)
    pairs = eigenpairs(MatrixOperator(square + square.T), k + 1)
    state = torch.ones(30, dtype=torch.float64)
    score = manifold.leverage_scores(pairs, n_fast=k, state=state, score="leverage+")
    best = score.topk(kept).indices
    rival = torch.randperm(30, generator=make)[:kept]
    U = pairs.vectors[:, :k]
    assert U[best].square().sum() >= U[rival].square().sum() - 1e-12


def test_scores_follow_their_equations():
    values = torch.tensor([4.0, 3.0, 1.0, 0.5], dtype=torch.float64)
    make = torch.Generator().manual_seed(0)
    Q = torch.linalg.qr(torch.randn(4, 4, generator=make, dtype=torch.float64)).Q
    sharp = (Q[:, :2] * values[:2]) @ Q[:, :2].T
    matrix = (Q * values) @ Q.T
    pairs = eigenpairs(MatrixOperator(0.5 * (matrix + matrix.T)), 3)
    theta = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)

    def score(name):
        return manifold.leverage_scores(pairs, n_fast=2, state=theta, score=name)

    lever = (Q[:, :2] @ Q[:, :2].T).diagonal()
    assert torch.allclose(score("leverage+"), lever)
    assert torch.allclose(score("leverage-"), -lever)
    assert torch.allclose(score("sharpness"), sharp.diagonal())
    drop = torch.stack([
        0.5 * step.dot(sharp @ step) for step in torch.diag(theta)
    ])  # ½ δ'Hδ for δ = -θ_j e_j
    assert torch.allclose(score("curvature"), drop)


def test_the_default_score_is_the_one_that_is_documented():
    system = net_system()
    report = manifold.analyse(system, k_max=6, optimizer=gd, transient=2, samples=0)
    default = manifold.prune(system, density=0.25, report=report)
    named = manifold.prune(system, density=0.25, report=report, score="curvature")
    for name, mask in named.masks.items():
        assert torch.equal(mask, default.masks[name])
    assert dict(default.provenance.settings)["score"] == "curvature"


def test_provenance_holds_the_certified_k_beside_the_density():
    ticket = manifold.prune(
        net_system(),
        density=0.1,
        optimizer=gd,
        transient=3,
        collapse="ignore",
        warn=False,
    )
    settings = dict(ticket.provenance.settings)
    assert settings["density"] == 0.1
    assert settings["certified_k"] == 0
    assert settings["n_fast"] >= 1
    assert set(settings["readings"]) == {"slaving", "freezing", "participation"}
    assert settings["conditions"]["C1"] in {"failed", "not refuted"}
    assert ticket.provenance.made_by == "manifold.prune"
    assert ticket.cost.steps == 3
    assert ticket.cost.hvps > 10
    assert settings["spent_hvps"] > ticket.cost.hvps
    assert ticket.cost.gradients == pytest.approx(
        3.0 + 1.0 + 2 * 8 / 40
    )  # one batch; a probe of 8


def test_a_ticket_that_came_apart_is_refused():
    with pytest.raises(InvalidInputError, match="no path of kept weights leads from"):
        manifold.prune(net_system(), density=0.1, optimizer=gd, warn=False)


def test_a_file_keeps_the_provenance(tmp_path):
    from dynprune.tickets import Ticket

    ticket = manifold.prune(net_system(), density=0.3, optimizer=gd, warn=False)
    ticket.save(tmp_path / "t.safetensors")
    assert Ticket.load(tmp_path / "t.safetensors").provenance == ticket.provenance


def test_rewinding_to_the_transient_takes_its_buffers():
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 4))
    x, y = problems.classes(40, 4, 4)
    system = GradientSystem(net.double(), nn.functional.cross_entropy, (x, y))
    report = manifold.analyse(system, k_max=4, optimizer=gd, transient=4, samples=0)
    late = manifold.prune(system, density=0.5, report=report, rewind="transient")
    early = manifold.prune(system, density=0.5, report=report)
    assert torch.equal(system.flatten(late.state), report.state)
    assert torch.equal(system.flatten(early.state), system.state)
    assert not torch.equal(
        late.buffers["1.running_mean"], early.buffers["1.running_mean"]
    )


def test_a_masked_system_keeps_its_pruned_weights_pruned():
    mask = {"0.weight": torch.ones(6, 4, dtype=torch.bool)}
    mask["0.weight"][:, 0] = False
    for score in manifold.SCORES:
        ticket = manifold.prune(
            net_system(mask=mask), density=0.5, score=score, warn=False, samples=0
        )
        assert ticket.kept == 24
        assert not ticket.masks["0.weight"][:, 0].any()


def test_three_lines_work_without_an_optimiser():
    net = problems.small_net(widths=(4, 6, 4))
    system = GradientSystem(
        net, nn.functional.cross_entropy, problems.classes(40, 4, 4)
    )
    with pytest.warns(NumericalWarning, match="certified k = 0 of 58"):
        ticket = manifold.prune(system, density=0.2)
    ticket.apply_(net)
    zeros = sum(int((part == 0).sum()) for part in net.parameters())
    assert zeros == 48 - 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"density": 0.0}, "density is 0.0"),
        ({"score": "levrage+"}, r"Did you mean 'leverage\+'"),
        ({"rewind": "final"}, "Unknown state to rewind to"),
        ({"n_fast": 99}, "no gap n_fast=99"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(change, message):
    with pytest.raises(InvalidInputError, match=message):
        manifold.prune(net_system(), **({"density": 0.5} | change))


def test_a_report_of_another_system_is_refused():
    report = manifold.analyse(net_system(), k_max=3, samples=0)
    with pytest.raises(InvalidInputError, match="the system has 49"):
        manifold.prune(net_system(widths=(4, 5, 4)), density=0.5, report=report)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_gives_the_same_ticket():
    x, y = problems.classes(40, 4, 4)
    net = problems.small_net(widths=(4, 6, 4))
    loss_fn = nn.functional.cross_entropy
    here = manifold.prune(
        GradientSystem(net, loss_fn, (x, y)), density=0.3, optimizer=gd, warn=False
    )
    system = GradientSystem(net.cuda(), loss_fn, (x.cuda(), y.cuda()))
    there = manifold.prune(system, density=0.3, optimizer=gd, warn=False)
    for name, mask in here.masks.items():
        assert torch.equal(mask, there.masks[name].cpu())
