"""The benchmark scripts run, and what they are built of measures the right thing."""

import dataclasses
import gc
import importlib
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from problems import dense_hessian

import dynprune as dp

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmarks(monkeypatch):
    """Import modules of benchmarks/, and forget them afterwards."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module
    gc.unfreeze()
    for path in BENCHMARKS.glob("*.py"):
        if path.stem not in before:
            sys.modules.pop(path.stem, None)


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("hvp_cost.py", ()),
        ("hvp_cost.py", ("--device", "cpu", "--models", "tiny-transformer")),
        ("eigenpairs.py", ()),
        ("density.py", ()),
        ("stacked_training.py", None),
    ],
    ids=[
        "hvp_cost",
        "hvp_cost on a device",
        "eigenpairs",
        "density",
        "stacked_training",
    ],
)
def test_each_script_writes_its_tables(
    benchmarks, monkeypatch, tmp_path, script, options
):
    target = tmp_path / "found.json"
    command = [script, str(target), "--quick"]
    if options is not None:  # it has rivals
        command += ["--rivals", "PyHessian", *options]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
    found = json.loads(target.read_text())
    assert found["environment"]["threads"] == 1
    assert all(table["rows"] for table in found["tables"])
    text = target.with_suffix(".md").read_text()
    assert all(f"## {table['title']}" in text for table in found["tables"])


def test_every_installed_rival_multiplies_by_the_same_hessian(benchmarks):
    layers, rivals = benchmarks("_hvp_layers"), benchmarks("_rivals")
    case = layers.layer_case("Linear")
    case = dataclasses.replace(case, batches=[case.batches[0]] * 2)
    vector = case.vectors(1)[:, 0]
    system = case.system()
    exact = dp.HessianOperator(system) @ vector
    for name, kind in rivals.installed().items():
        for parts in (case, case.split(1)):
            with rivals.quiet():
                one = kind(parts.copy())
                found = one.flat(one.product(one.native(vector)))
            # rounding only: 14 digits of float64 over sums of 12 examples
            assert float((found - exact).norm() / exact.norm()) < 1e-13, name


def test_dense_and_differences_agree_with_the_hessian(benchmarks):
    layers, exact = benchmarks("_hvp_layers"), benchmarks("_exact")
    case = layers.layer_case("LayerNorm")
    system = case.system()
    wanted = dense_hessian(system, system.state)
    torch.testing.assert_close(exact.dense(case), wanted, rtol=1e-12, atol=1e-13)
    vector = case.vectors(1)[:, 0]
    found = layers.differences(case, vector)
    # extrapolated differences at a step of 1e-3: h⁴ and eps/h are 1e-12
    assert float((found - wanted @ vector).norm() / (wanted @ vector).norm()) < 1e-10


def test_peak_memory_counts_what_is_alive_at_once(benchmarks):
    timing = benchmarks("_timing")

    def three_at_once():
        first, second = torch.zeros(1000), torch.zeros(1000)
        del first
        third = torch.zeros(1000)
        return second + third

    assert timing.peak_memory(three_at_once, torch.device("cpu")) == 3 * 4000


def test_ratios_divide_within_a_round(benchmarks):
    timing = benchmarks("_timing")
    taken = {"gradient": [1.0, 2.0, 4.0], "ours": [2.0, 4.0, 8.0]}
    found = timing.ratios(taken, per=2.0)["ours"]
    assert found["ratio"] == {"median": 1.0, "q25": 1.0, "q75": 1.0, "runs": 3}
    assert found["seconds"] == 4.0


def test_residuals_and_errors_of_pairs(benchmarks):
    layers, rivals = benchmarks("_hvp_layers"), benchmarks("_rivals")
    pairs, exact = benchmarks("eigenpairs"), benchmarks("_exact")
    case = layers.layer_case("Linear")
    values, vectors = torch.linalg.eigh(exact.dense(case))
    best = rivals.Found(values=values[-2:], vectors=vectors[:, -2:], matvecs=0.0)
    assert pairs.worst_residual(case, best) < 1e-12
    assert pairs.worst_error(best, values.flip(0)) < 1e-14
    off = rivals.Found(values=0.9 * values[-2:], vectors=best.vectors, matvecs=0.0)
    assert pairs.worst_residual(case, off) == pytest.approx(1 / 9, rel=1e-9)
    assert pairs.worst_error(off, values.flip(0)) == pytest.approx(0.1, rel=1e-9)


def test_exports_are_measured(benchmarks, tmp_path):
    script, target = benchmarks("sparse_export"), tmp_path / "found.json"
    script.main([str(target), "--quick"])
    goals, exports = json.loads(target.read_text())["tables"]
    assert all(row["met"] for row in goals["rows"])
    assert {row["export"] for row in exports["rows"]} == {
        "dense with zeros",
        "csr",
        "coo",
        "units removed",
        "units removed, then csr",
    }
    removed = exports["rows"][-1]  # half of the channels inside the blocks
    assert removed["mask"] == "channels"
    assert removed["bytes ÷ dense"] < 0.7
    text = target.with_suffix(".md").read_text()
    assert all(f"## {table['title']}" in text for table in (goals, exports))
