"""Every figure and ledger line moves with the data, and falls with its kernel."""

import dataclasses
import math

import pytest
import torch
from in_process import Here
from torch import nn

from dynprune.core import generator
from dynprune.study import configure, ledger, run
from dynprune.study.figures._data import figure_data
from dynprune.tasks import Problem

SMALL = configure(
    task="digits",
    seeds=2,
    densities=(1.0, 0.4, 0.16, 0.064),
    compare_densities=(0.16, 0.064),
    steps=150,
    k_max=8,
    samples=1,
)


def study(folder, config=SMALL, problem=None, **changes):
    from dynprune.study import _run

    with pytest.MonkeyPatch.context() as patch:
        # drawing takes longer than computing, and the figures' data are read below
        patch.setattr(_run, "write_report", lambda *args, **kwargs: "<html></html>")
        return run(
            dataclasses.replace(config, **changes), problem, out=folder, executor=Here
        )


def verdicts(done) -> dict[str, str]:
    return {line.key: line.verdict for line in done.ledger}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return study(tmp_path_factory.mktemp("base") / "study")


def test_everything_was_computed(base):
    assert not base.failures
    assert set(base.findings.results["method"]) == {"dense", *SMALL.methods}
    assert len(base.findings.analyses) == len(base.findings.multipliers) == 2


def test_another_seed_changes_every_figure_and_every_number(base, tmp_path):
    other = study(tmp_path / "study", seed=50)
    before, after = figure_data(base.findings), figure_data(other.findings)
    assert before.keys() == after.keys()
    for name, frame in before.items():
        assert not frame.reset_index(drop=True).equals(
            after[name].reset_index(drop=True)
        ), f"the data of figure {name} did not change"
    for one, two in zip(base.ledger, other.ledger, strict=True):
        assert one.key == two.key
        numbers = [
            [line.measured, *line.interval, line.predicted] for line in (one, two)
        ]
        if all(math.isnan(number) for part in numbers for number in part):
            assert one.verdict == "not testable"
            continue
        assert numbers[0] != numbers[1], f"{one.key} did not change: {numbers[0]}"


DRAWS = [0]


def noise(like: torch.Tensor) -> torch.Tensor:
    DRAWS[0] += 1
    drawn = torch.randn(like.shape, generator=generator(DRAWS[0]), dtype=torch.float64)
    return drawn.to(like)


@pytest.fixture(autouse=True)
def _same_noise():
    """Without it each test's verdicts would hang on the draws of those before it."""
    DRAWS[0] = 0


def _products(monkeypatch):
    from dynprune.operators import _graphs

    monkeypatch.setattr(_graphs, "_reverse", lambda graph, v: noise(v))


def _ritz(monkeypatch):
    from dynprune.spectral import _eigenpairs

    true = _eigenpairs.rayleigh_ritz

    def random(vectors, products, outside):
        found = true(vectors, products, outside)
        values = 9 * noise(found.values).abs().sort(descending=True).values
        return dataclasses.replace(found, values=values, gram=0 * found.gram)

    monkeypatch.setattr(_eigenpairs, "rayleigh_ritz", random)


def _decomposition(monkeypatch):
    from dynprune.koopman import _dmd

    true = _dmd.svd

    def random(X):
        U, S, V = true(X)
        return torch.linalg.qr(noise(U)).Q, S, V

    monkeypatch.setattr(_dmd, "svd", random)


def _shares(monkeypatch):
    from dynprune.rgflow import _observables

    true = _observables.tensor_sums
    monkeypatch.setattr(
        _observables, "tensor_sums", lambda *a, **k: noise(true(*a, **k)).exp()
    )


def _selection(monkeypatch):
    from dynprune.pruning import _select

    true = _select.keep
    monkeypatch.setattr(
        _select,
        "keep",
        lambda scores, *rest: true([noise(part) for part in scores], *rest),
    )


def _optimiser(monkeypatch):
    from dynprune.study.units import _setup

    true = _setup.evaluate

    def random(*args, **kwargs):
        found = true(*args, **kwargs)
        return dataclasses.replace(found, metric=float(noise(torch.zeros(1))))

    monkeypatch.setattr(_setup, "evaluate", random)


KERNELS = {
    "operators": (_products, "multipliers", {"analyses": ("multipliers",)}),
    "spectral": (_ritz, "multipliers", {"analyses": ("multipliers",)}),
    "koopman": (_decomposition, "multipliers", {"analyses": ("multipliers",)}),
    "rgflow": (_shares, "exponents-predict", {"analyses": ()}),
    "pruning": (
        _selection,
        "imp-mask",
        {"analyses": (), "methods": ("imp", "imp-shuffled")},
    ),
    "training": (
        _optimiser,
        "imp-mask",
        {"analyses": (), "methods": ("imp", "imp-shuffled")},
    ),
}


@pytest.mark.parametrize("room", KERNELS, ids=str)
def test_a_random_kernel_turns_a_line_to_failed(room, base, tmp_path, monkeypatch):
    replace, key, changes = KERNELS[room]
    assert verdicts(base)[key] in {"held", "not refuted"}
    replace(monkeypatch)
    found = verdicts(study(tmp_path / room, **({"methods": ("imp",)} | changes)))
    assert found[key] == "failed"


def _half_squares(outputs, targets):
    return (outputs - targets).square().mean()


def _quadratic() -> Problem:
    """A linear network: its Hessian is constant, so the gap conditions hold."""
    make = generator(3)
    scale = torch.tensor([9.0, 8.0, 7.5, 1.0, 0.9, 0.8]).sqrt()
    x = torch.randn(90, 6, generator=make, dtype=torch.float64) * scale
    y = x @ torch.randn(6, 1, generator=make, dtype=torch.float64)
    parts = [(x[a : a + 30], y[a : a + 30]) for a in (0, 30, 60)]
    return Problem(
        make_model=lambda seed: nn.Linear(6, 1, bias=False).double(),
        loss_fn=_half_squares,
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        metric=None,
        name="quadratic",
    )


def test_random_curvature_turns_the_gap_conditions_to_failed(tmp_path, monkeypatch):
    from dynprune.manifold import _conditions

    changes = {
        "task": "quadratic",
        "methods": ("imp",),
        "analyses": ("manifold-analysis",),
        "learning_rate": 0.01,
        "k_max": 4,
        "compare_densities": (),
        "densities": (1.0, 0.5),
    }
    found = verdicts(study(tmp_path / "true", problem=_quadratic(), **changes))
    assert [found[f"{name}-100"] for name in ("C1", "C3")] == ["not refuted"] * 2
    true = _conditions.eigenpairs

    def random(op, k, **kwargs):
        pairs = true(op, k, **kwargs)
        return dataclasses.replace(
            pairs, values=pairs.values + 99 * noise(pairs.values)
        )

    monkeypatch.setattr(_conditions, "eigenpairs", random)
    found = verdicts(study(tmp_path / "random", problem=_quadratic(), **changes))
    assert found["C1-100"] == "failed"


def test_the_ledger_is_a_function_of_the_findings(base):
    assert ledger(base.findings) == base.ledger or all(
        repr(one) == repr(two)
        for one, two in zip(ledger(base.findings), base.ledger, strict=True)
    )
