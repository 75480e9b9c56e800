"""The diagonal: exact cases, the definition, standard errors, refusals."""

import pytest
import torch
from spectra import Products, diagonal_operator, like_a_network, normal, turned
from torch.utils._python_dispatch import TorchDispatchMode

from dynprune.core import AssumptionError, InvalidInputError, Outcome, generator
from dynprune.spectral import Diagonal, diagonal
from dynprune.spectral._diagonal import _xdiag

METHODS = ("xdiag", "bekas")


@pytest.mark.parametrize("method", METHODS)
def test_a_budget_of_all_columns_gives_the_diagonal(method):
    op = turned(normal(130))
    found = diagonal(op, matvecs=130, method=method)
    assert torch.allclose(found.values, op.dense().diagonal(), atol=1e-12)
    assert float(found.standard_error.max()) == 0.0
    assert (found.method, found.matvecs) == ("exact", 130)
    assert torch.equal(found.interval()[:, 0], found.values)


def test_random_signs_are_exact_on_a_diagonal_operator():
    values = normal(100)
    found = diagonal(diagonal_operator(values), matvecs=10, method="bekas")
    assert torch.allclose(found.values, values, atol=1e-12)
    assert float(found.standard_error.max()) < 1e-12


def test_a_low_rank_is_found_exactly():
    values = torch.zeros(150, dtype=torch.float64)
    values[:5] = torch.tensor([5.0, -4.0, 3.0, -2.0, 1.0])
    op = turned(values)
    found = diagonal(op, matvecs=20)
    assert torch.allclose(found.values, op.dense().diagonal(), atol=1e-9)
    assert float(found.standard_error.max()) < 1e-9


def test_samples_are_the_definition():
    """The mean and spread of d_i, each from a QR of the other columns."""
    size, m = 40, 5
    op = turned(normal(size, seed=2))
    A = op.dense()
    block = op.rows.random(m, generator=generator(7), dtype=torch.float64).sign()
    samples = []
    for i in range(m):
        others = block[:, [j for j in range(m) if j != i]]
        Q = torch.linalg.qr(A @ others).Q
        off = torch.eye(size, dtype=torch.float64) - Q @ Q.T
        rest = off @ A @ off
        w = block[:, i]
        samples.append((A - rest).diagonal() + w * (rest @ w))
    exact = torch.stack(samples, 1)
    values, errors = _xdiag(op, m, seed=7)
    assert torch.allclose(values, exact.mean(1), atol=1e-10)
    assert torch.allclose(errors, exact.std(1) / m**0.5, atol=1e-10)


@pytest.mark.parametrize("matvecs", [12, 60], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_standard_errors_are_calibrated(method, matvecs):
    """200 seeds, all entries; 95 % nominal."""
    op = turned(like_a_network(120))
    exact = op.dense().diagonal()
    held = square = said = 0.0
    for seed in range(200):
        found = diagonal(op, matvecs=matvecs, method=method, seed=seed)
        ends = found.interval()
        inside = (ends[:, 0] <= exact) & (exact <= ends[:, 1])
        held += float(inside.double().mean()) / 200
        square += float((found.values - exact).square().sum())
        said += float(found.standard_error.square().sum())
    assert 0.90 <= held <= 0.99
    assert 0.8 < square / said < 1.25


def test_the_sketch_pays_and_the_symmetric_form_more():
    """Against random signs alone, and against the published one-sided estimator."""
    op = turned(like_a_network(200))
    A, exact = op.dense(), op.dense().diagonal()
    m, errors = 20, {"xdiag": 0.0, "bekas": 0.0, "published": 0.0}
    for seed in range(10):
        for method in METHODS:
            found = diagonal(op, matvecs=2 * m, method=method, seed=seed)
            errors[method] += float((found.values - exact).norm())
        block = op.rows.random(m, generator=generator(seed), dtype=torch.float64)
        block = block.sign()
        Q, R = torch.linalg.qr(A @ block)
        S = torch.linalg.inv(R).T
        S /= S.norm(dim=0)
        mean = torch.zeros_like(exact)
        for i in range(m):
            Qi = Q - torch.outer(Q @ S[:, i], S[:, i])
            inside, w = Qi @ (Qi.T @ A), block[:, i]
            mean += (inside.diagonal() + w * ((A - inside) @ w)) / m
        errors["published"] += float((mean - exact).norm())
    assert errors["xdiag"] < 0.9 * errors["published"] < 0.5 * errors["bekas"]


def test_single_precision_agrees_and_slices_do_not_matter(monkeypatch, untouched):
    from dynprune.spectral import _diagonal

    op = turned(like_a_network(150))
    with untouched():
        wide = diagonal(op, matvecs=30)
    single = Products(150, lambda block: op.dense().float() @ block, torch.float32)
    found = diagonal(single, matvecs=30)
    assert found.values.dtype == torch.float32
    assert torch.allclose(found.values.double(), wide.values, atol=1e-5)
    assert torch.allclose(
        found.standard_error.double(), wide.standard_error, rtol=0.05, atol=1e-5
    )
    monkeypatch.setattr(_diagonal, "_SLICE", 37)
    assert torch.allclose(diagonal(op, matvecs=30).values, wide.values, atol=1e-14)


def test_random_signs_are_averaged_one_at_a_time():
    """The mean and spread of v ⊙ Av, and no block of the samples."""
    op = turned(normal(40, seed=2))
    A, make, seen = op.dense(), generator(7), []
    draw = lambda: op.rows.random(1, generator=make, dtype=torch.float64)  # noqa: E731
    block = torch.cat([draw().sign() for _ in range(12)], 1)
    samples = block * (A @ block)
    alone = Products(40, lambda part: seen.append(part.shape[1]) or A @ part)
    found = diagonal(alone, matvecs=12, method="bekas", seed=7)
    assert torch.allclose(found.values, samples.mean(1), atol=1e-12, rtol=0)
    expected = samples.std(1) / 12**0.5
    assert torch.allclose(found.standard_error, expected, atol=1e-12, rtol=0)
    assert seen == [1] * 12


class Largest(TorchDispatchMode):
    """Note how many numbers the largest floating-point tensor holds."""

    def __init__(self):
        TorchDispatchMode.__init__(self)
        self.seen = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.is_floating_point():
            self.seen = max(self.seen, out.numel())
        return out


def test_memory():
    blocks = []
    op = Products(2000, lambda part: blocks.append(part.shape[1]) or 2.0 * part)
    with Largest() as held:
        found = diagonal(op, matvecs=100, method="bekas")
    assert held.seen == 2000
    assert torch.equal(found.values, torch.full((2000,), 2.0).double())
    blocks.clear()
    with Largest() as held:
        diagonal(op, matvecs=100)
    assert held.seen == 50 * 2000
    assert blocks == [8, 8, 8, 8, 8, 8, 2] * 2


def test_what_is_out_of_range_is_refused():
    op = diagonal_operator(normal(30))
    with pytest.raises(InvalidInputError, match="Pass at least 4"):
        diagonal(op, matvecs=3)
    with pytest.raises(InvalidInputError, match=r"xdiag.*bekas"):
        diagonal(op, method="hutchinson")
    with pytest.raises(InvalidInputError, match="Pass 0 < level < 1"):
        diagonal(op, matvecs=10).interval(1.5)
    with pytest.raises(InvalidInputError, match="not finite"):
        diagonal(Products(30, lambda block: block / 0.0), matvecs=10)
    square = normal(900).view(30, 30)
    with pytest.raises(AssumptionError, match="not symmetric"):
        diagonal(Products(30, lambda block: square @ block), matvecs=10)


def test_it_shows_itself_and_survives_a_file(tmp_path):
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    found = diagonal(turned(like_a_network(100)), matvecs=20)
    path = tmp_path / "diagonal.safetensors"
    found.save(path)
    back = Diagonal.load(path)
    assert torch.equal(back.values, found.values)
    assert torch.equal(back.standard_error, found.standard_error)
    assert repr(back) == repr(found)
    assert (back.samples, back.provenance) == (found.samples, found.provenance)
    assert back.outcome is Outcome.FINISHED
    assert len(found.summary().split("\n")) == 5
    assert len(found.to_frame()) == len(found) == 100
    ax = found.plot()
    assert "diagonal entry" in ax.get_ylabel()
    plt.close(ax.figure)
    from dynprune.spectral import Trace

    with pytest.raises(InvalidInputError, match="not a trace"):
        Trace.load(path)
    (tmp_path / "broken").write_bytes(b"")
    with pytest.raises(InvalidInputError, match="truncated"):
        Diagonal.load(tmp_path / "broken")
