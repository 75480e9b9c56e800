"""The multiplier experiment on a problem of a few features, and what does not fit."""

import dataclasses
import itertools
import math
import types

import pytest
import torch

from dynprune import koopman, spectral
from dynprune.core import AssumptionError, generator
from dynprune.operators import HessianOperator
from dynprune.study.units import _multipliers
from dynprune.study.units._multiplier_net import small_system
from dynprune.study.units._multipliers import multipliers

EPS = torch.finfo(torch.float64).eps


def problem(x, y):
    # the experiment reads nothing else of a Problem
    return types.SimpleNamespace(train=(x, y))


def blobs(*, examples=80, features=6, classes=4):
    draw = generator(0)
    y = torch.arange(examples) % classes
    centres = 2.0 * torch.randn(classes, features, generator=draw)
    return centres[y] + torch.randn(examples, features, generator=draw), y


@pytest.fixture(scope="module")
def facts():
    return multipliers(problem(*blobs()), seed=1)


@pytest.fixture(scope="module")
def minimum():
    system = small_system(problem(*blobs()), seed=0)
    return system, _multipliers._minimise(system)


def dense_hessian(system, state):
    """Row by row: central differences of the gradient, checked nowhere else."""
    step = EPS ** (1 / 3)
    rows = [
        (system.gradient(state + step * e) - system.gradient(state - step * e))
        / (2 * step)
        for e in torch.eye(system.size, dtype=torch.float64)
    ]
    H = torch.stack(rows)
    return 0.5 * (H + H.T)


def test_facts_follow_the_schema(facts):
    assert set(facts) == {
        "learning_rate",
        "gradient_norm",
        "modes",
        "testable",
        "note",
    }
    assert facts["gradient_norm"] < 1e-8
    assert len(facts["modes"]) >= 5
    assert facts["testable"] == sum(mode["testable"] for mode in facts["modes"])
    for mode in facts["modes"]:
        assert mode["predicted"] == 1 - facts["learning_rate"] * mode["eigenvalue"]
        low, high = mode["enclosure"]
        assert low <= mode["eigenvalue"] <= high


def test_every_testable_mode_is_inside_both_intervals(facts):
    tested = [mode for mode in facts["modes"] if mode["testable"]]
    assert len(tested) >= 5
    for mode in tested:
        assert mode["inside"]
        assert mode["dmd_interval"][0] <= mode["dmd"] <= mode["dmd_interval"][1]


def test_multipliers_are_those_of_the_dense_hessian(minimum):
    system, state = minimum
    values = torch.linalg.eigvalsh(dense_hessian(system, state)).flip(0)
    rate, modes = _multipliers._compare(system, state, seed=0)
    assert rate == pytest.approx(1.5 / float(values[0]), rel=1e-7)
    for mode in modes:
        # differences of gradients are accurate to about eps^(2/3) of their size
        nearest = float((values - mode["eigenvalue"]).abs().min())
        assert nearest < 100 * EPS ** (2 / 3)
        assert mode["dmd_interval"][0] <= 1 - rate * mode["eigenvalue"]
        assert 1 - rate * mode["eigenvalue"] <= mode["dmd_interval"][1]


def test_chosen_modes_are_separated_and_their_rule_is_the_sharpest_first(minimum):
    system, state = minimum
    pairs = spectral.eigenpairs(
        HessianOperator(system, state), 24, tol=1e-9, completeness=True
    )
    top = float(pairs.values[0])
    top = float(pairs.values[0])
    modes, distances = _multipliers._modes(pairs, 1.5 / top)
    assert 5 <= len(modes) <= 6
    chosen = [mode["eigenvalue"] / top for mode in modes]
    gaps = [a - b for a, b in itertools.pairwise(chosen)]
    apart = max(a for a in (0.04, 0.02, 0.01) if min(gaps) >= a)
    assert min(distances) >= 1.5 * 0.1 * apart
    for wider in (a for a in (0.04, 0.02) if a > apart):
        assert len(_multipliers._separated(pairs, 1.5 / top, wider)[0]) < 5
    incomplete = dataclasses.replace(pairs, complete=None)
    assert _multipliers._modes(incomplete, 1.0) == ([], [])


def test_minimum_has_no_descent_left(minimum):
    system, state = minimum
    assert float(system.gradient(state).norm()) < 1e-8
    assert system.l2 == 1e-2
    assert system.dtype == torch.float64


def test_mirrored_runs_obey_the_linear_map(minimum):
    system, state = minimum
    pairs = spectral.eigenpairs(HessianOperator(system, state), 3, tol=1e-9)
    rate = 0.5 / float(pairs.values[0])
    modes = [{"index": 0}, {"index": 2}]
    path = _multipliers._mirrored(system, state, pairs, modes, rate).snapshots
    u = pairs.vectors[:, [0, 2]]
    size = (EPS * float(state.norm())) ** (1 / 3)
    t = torch.arange(path.shape[1])
    wanted = (1 - rate * pairs.values[[0, 2]])[:, None] ** t
    # a third-order term of relative size ~ size^2, and rounding ~ eps |theta| / size
    assert torch.allclose(u.T @ path / size, wanted, rtol=0, atol=1e3 * size**2)


def test_same_seed_same_facts_other_seed_others(facts):
    assert multipliers(problem(*blobs()), seed=1) == facts
    assert multipliers(problem(*blobs()), seed=2)["modes"] != facts["modes"]


def test_nothing_of_the_user_moves(untouched):
    x, y = blobs()
    before = x.clone(), y.clone()
    with untouched():
        multipliers(problem(x, y))
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])


def test_regression_targets_and_loaders_fit():
    x, _ = blobs()
    data = torch.utils.data.TensorDataset(x, torch.stack([x[:, 0], x[:, 1].sin()], 1))
    loader = torch.utils.data.DataLoader(data, batch_size=32)
    found = multipliers(types.SimpleNamespace(train=loader))
    assert found["gradient_norm"] < 1e-8
    assert found["learning_rate"] > 0


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        (torch.ones(80, 7, dtype=torch.int64), torch.arange(80) % 2, "dtype"),
        (torch.rand(80, 3, 4), torch.ones(80, 4, dtype=torch.int64), "no labels"),
        (torch.rand(80, 3), torch.zeros(80, dtype=torch.int64), "one class"),
        (torch.ones(80, 3), torch.arange(80) % 2, "deviation 0"),
        (torch.rand(9, 3), torch.arange(9) % 2, "9 examples"),
        (torch.rand(80, 3), torch.rand(80, 10, 10), "too wide"),
        (torch.rand(80, 3).log().clamp(max=-1) * math.inf, torch.arange(80) % 2, "nan"),
    ],
    ids=["tokens", "pixels", "one-class", "constant", "few", "wide", "infinite"],
)
def test_what_does_not_fit_gives_no_modes_and_says_why(x, y, why):
    found = multipliers(problem(x, y))
    assert found["modes"] == []
    assert found["testable"] == 0
    assert found["gradient_norm"] is None
    assert why in found["note"]


def test_batches_that_are_no_pairs_do_not_fit():
    found = multipliers(types.SimpleNamespace(train=[{"x": torch.ones(2)}]))
    assert "no pairs" in found["note"]


def random_eigenpairs(*args, **kwargs):
    pairs = eigenpairs(*args, **kwargs)
    values = torch.rand(len(pairs.values), generator=generator(3)).double()
    values = values.sort(descending=True).values
    widths = (pairs.enclosures[:, 1] - pairs.enclosures[:, 0])[:, None] / 2
    signs = torch.tensor([-1.0, 1.0], dtype=torch.float64)
    return dataclasses.replace(
        pairs, values=values, enclosures=values[:, None] + widths * signs
    )


def random_vectors(*args, **kwargs):
    pairs = eigenpairs(*args, **kwargs)
    draw = torch.randn(pairs.vectors.shape, generator=generator(3))
    return dataclasses.replace(pairs, vectors=torch.linalg.qr(draw.double())[0])


def random_fit(*args, **kwargs):
    model = fit(*args, **kwargs)
    values = torch.rand(len(model.eigenvalues), generator=generator(4))
    return dataclasses.replace(model, eigenvalues=values.to(torch.complex128))


def random_product(self, block):
    self._count += block.shape[1]
    return torch.randn(block.shape, generator=generator(5)).double()


eigenpairs, fit = spectral.eigenpairs, koopman.fit


@pytest.mark.parametrize(
    ("where", "name", "kernel"),
    [
        (spectral, "eigenpairs", random_eigenpairs),
        (spectral, "eigenpairs", random_vectors),
        (koopman, "fit", random_fit),
        (HessianOperator, "_product", random_product),
    ],
    ids=["values", "vectors", "koopman", "products"],
)
def test_random_numbers_in_a_kernel_are_found_out(monkeypatch, where, name, kernel):
    monkeypatch.setattr(where, name, kernel)
    found = multipliers(problem(*blobs()), seed=1)
    tested = [mode for mode in found["modes"] if mode["testable"]]
    assert found["gradient_norm"] < 1e-8  # so the ledger counts it
    assert len(tested) < 5 or not all(mode["inside"] for mode in tested)


def test_an_error_of_a_room_is_a_note_not_a_crash(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssumptionError("no.")

    monkeypatch.setattr(koopman, "fit", refuse)
    found = multipliers(problem(*blobs()), seed=1)
    assert found["note"] == "AssumptionError: no."
    assert found["testable"] == 0
