"""The benchmark scripts run, and what they are built of measures the right thing."""

import dataclasses
import gc
import importlib
import itertools
import json
import math
import runpy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
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
        ("scoring_cost.py", None),
        ("topk.py", None),
        ("elastic_transfer.py", None),
    ],
    ids=[
        "hvp_cost",
        "hvp_cost on a device",
        "eigenpairs",
        "density",
        "stacked_training",
        "scoring_cost",
        "topk",
        "elastic_transfer",
    ],
)
def test_each_script_writes_its_tables(
    benchmarks, monkeypatch, tmp_path, script, options
):
    target = tmp_path / "found.json"
    command = [script, str(target), "--quick"]
    if options is not None:  # None has no rivals
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
    assert all(row["met"] for row in goals["rows"][:3])
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


@pytest.fixture
def pruners(benchmarks, tmp_path):
    """Call pruners_vs_imp on the digits; returns the rows of units.csv."""
    script, results = benchmarks("pruners_vs_imp"), benchmarks("_pruner_results")

    def call(*options, target=tmp_path / "found", work=tmp_path / "work"):
        script.main([str(target), "--quick", "--work", str(work), *options])
        return results.read_csv(target / "units.csv")

    return call


def test_pruners_write_rows_tables_and_figures(benchmarks, pruners, tmp_path):
    known = benchmarks("_pruner_methods").METHODS.items()
    methods = [name for name, method in known if not method.full]
    options = ("--seeds", "1")
    rows = pruners(*options)
    found = {(row["method"], row["density"]) for row in rows}
    assert found == {("dense", 1.0)} | {
        (name, density) for name in methods if name != "dense" for density in (0.5, 0.2)
    }
    for row in rows:
        assert row["kept"] == dp.pruning.kept_count(row["density"], row["prunable"])
        assert (
            row["gradients"] >= 6
        )  # 24 steps are six passes, and finding comes on top
        assert 0.0 <= row["test_accuracy"] <= 1.0
    target = tmp_path / "found"
    pairs = benchmarks("_pruner_results").read_csv(target / "similarity.csv")
    count = len(methods) - 1
    assert len(pairs) == count * (count - 1) // 2
    same = {(row["method"], row["other"]): row["excess_overlap"] for row in pairs}
    assert same["magnitude-trained", "magnitude-finetuned"] == 1.0
    text = " ".join((target / "README.md").read_text().split())
    assert "Every unit that was asked for is there." in text
    assert all(f"`{name}`" in text for name in methods)
    for figure in target.glob("*.svg"):
        assert figure.stat().st_size < 100_000
    assert len(list(target.glob("*.svg"))) == 2
    # without the work folder, committed rows count as done; what is missing from them
    # comes out the same, bit for bit
    lines = (target / "units.csv").read_text().splitlines(keepends=True)
    left = [line for line in lines if ",snip," not in line or ",0.2,0," not in line]
    assert len(left) == len(lines) - 1
    (target / "units.csv").write_text("".join(left))
    again = pruners(*options, work=tmp_path / "other")
    assert sorted(map(str, again)) == sorted(map(str, rows))
    assert len(list((tmp_path / "other" / "units").iterdir())) == 1
    assert len(benchmarks("_pruner_results").read_csv(target / "similarity.csv")) == (
        len(pairs)
    )


def test_pruners_stop_in_time_and_go_on(pruners, benchmarks, tmp_path):
    options = ("--seeds", "2", "--sanity", "--methods", "imp", "snip", "random")
    assert pruners(*options, "--minutes", "0") == []
    text = " ".join((tmp_path / "found" / "README.md").read_text().split())
    assert "**Partial:** 8 units that were asked for are missing" in text
    units = benchmarks("_pruner_units")
    one, kept = units.work, []

    def until_the_fourth(folder, unit):
        if len(kept) == 3:
            raise KeyboardInterrupt
        kept.append(unit.name)
        return one(folder, unit)

    units.work = until_the_fourth
    with pytest.raises(KeyboardInterrupt):
        pruners(*options)
    units.work = one
    rows = pruners(*options)
    assert len(kept) == 3
    assert len(rows) == 12
    checks = benchmarks("_pruner_results").read_csv(tmp_path / "found" / "sanity.csv")
    ticket = {r["seed"]: r for r in checks if r["control"] == "ticket"}
    assert len(checks) == 2 * 5 * 2
    assert {row["drop"] for row in ticket.values()} == {0.0}
    with pytest.raises(SystemExit, match="other settings"):
        benchmarks("pruners_vs_imp").main([
            str(tmp_path / "found"),
            "--quick",
            "--device",
            "cuda",
            "--methods",
            "imp",
        ])


def test_pruners_of_the_whole_recipe_prune_layer_by_layer(pruners, tmp_path):
    names = ("imp", "imp-layer", "magnitude-layer", "snip", "random")
    rows = pruners("--seeds", "1", "--full", "mnist", "--methods", *names)
    assert len(rows) == 2 * 3 + 5
    found = {row["method"]: row for row in rows if row["recipe"] == "full"}
    assert set(found) == set(names)
    output = {"imp-layer": 1.0, "magnitude-layer": 1.0 - 0.5 * 0.8}
    levels = round(math.log(0.2) / math.log(0.8))
    for _ in range(levels):  # as often as eight tenths make a fifth
        output["imp-layer"] *= 1.0 - 0.5 * (1.0 - 0.2 ** (1.0 / levels))
    for name, wanted in output.items():
        *hidden, last = (
            float(part.partition("=")[2])
            for part in found[name]["layer_densities"].split(";")
        )
        assert hidden == [pytest.approx(0.2, abs=1e-3)] * len(hidden)
        assert last == pytest.approx(wanted, abs=1e-2)
    assert found["imp-layer"]["steps"] == 48 * (levels + 1)
    assert found["magnitude-layer"]["steps"] == 48 * 2
    text = " ".join((tmp_path / "found" / "README.md").read_text().split())
    assert "Layer by layer, as in the source: of 2 pairs" in text


def test_pruners_find_the_masks_of_missing_pairs_again(pruners, tmp_path):
    options = ("--seeds", "2", "--methods", "random", "snip", "set")
    pruners(*options)
    path, other = tmp_path / "found" / "similarity.csv", tmp_path / "other"
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    left = [line for line in lines if ",1,1,random,set," not in line]
    assert len(left) == len(lines) - 1
    path.write_text("".join(left))
    pruners(*options, "--masks", "missing", work=other)
    assert path.read_text() == whole
    found = {file.stem for file in (other / "tickets").iterdir()}
    assert found == {f"mnist-quick-{m}-d0.2-s1" for m in ("random", "snip", "set")}
    pruners(*options, "--masks", "missing", work=tmp_path / "none")
    assert not (tmp_path / "none" / "tickets").exists()


def test_pruners_take_in_what_another_machine_found(benchmarks, pruners, tmp_path):
    mine, other = tmp_path / "mine", tmp_path / "other"
    options = ("--seeds", "1", "--methods", "dense", "snip")
    pruners(*options, target=mine, work=tmp_path / "a")
    pruners("--seeds", "1", "--methods", "random", "erk", target=other)
    path = other / "provenance.json"
    path.write_text(path.read_text().replace(", cpu, ", ", another cpu, "))
    rows = pruners(*options, "--merge", str(other), target=mine, work=tmp_path / "a")
    assert {row["method"] for row in rows} == {"dense", "snip", "random", "erk"}
    pairs = benchmarks("_pruner_results").read_csv(mine / "similarity.csv")
    assert {(row["method"], row["other"]) for row in pairs} == {("random", "erk")}
    machines = json.loads((mine / "provenance.json").read_text())["machines"]
    assert len(machines["mnist-quick"]) == 2
    with pytest.raises(SystemExit):
        pruners("--merge", str(tmp_path / "nothing"))


def test_pruners_find_the_masks_again_that_a_work_folder_lost(
    benchmarks, pruners, tmp_path, monkeypatch
):
    monkeypatch.setattr(benchmarks("_pruner_units"), "process_pool", ThreadPoolExecutor)
    options = ("--seeds", "1", "--methods", "imp", "snip", "rigl", "erk")
    pruners(*options)
    path = tmp_path / "found" / "similarity.csv"
    before = path.read_bytes()
    path.unlink()
    new = {"work": tmp_path / "other"}
    rows = pruners(*options, "--masks", "cheap", **new)
    pairs = benchmarks("_pruner_results").read_csv(path)
    assert [(row["method"], row["other"]) for row in pairs] == [("snip", "erk")]
    assert pruners(*options, "--masks", "all", **new) == rows
    assert path.read_bytes() == before


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_unit_that_fails_does_not_stop_the_others(
    benchmarks, pruners, tmp_path, capsys, monkeypatch, jobs
):
    def fails(bench, density):
        raise RuntimeError("no such kernel")

    methods, units = benchmarks("_pruner_methods").METHODS, benchmarks("_pruner_units")
    broken = dataclasses.replace(methods["snip"], find=fails)
    monkeypatch.setitem(methods, "snip", broken)
    # threads see the method that fails, processes would not
    monkeypatch.setattr(units, "process_pool", ThreadPoolExecutor)
    with pytest.raises(SystemExit, match="Failed: mnist-quick-snip-s0"):
        pruners("--seeds", "1", "--jobs", jobs, "--methods", "dense", "snip", "random")
    rows = benchmarks("_pruner_results").read_csv(tmp_path / "found" / "units.csv")
    assert {row["method"] for row in rows} == {"dense", "random"}
    assert "no such kernel" in capsys.readouterr().err


def test_a_work_folder_of_other_settings_is_refused(benchmarks, pruners, tmp_path):
    options = ("--seeds", "1", "--methods", "dense")
    pruners(*options)
    path = tmp_path / "work" / "settings" / "mnist-quick.json"
    path.write_text(path.read_text().replace('"steps": 24', '"steps": 25'))
    with pytest.raises(SystemExit, match="other settings made"):
        pruners(*options)


def test_an_imp_run_that_diverges_is_tried_once(benchmarks, pruners, monkeypatch):
    units, calls = benchmarks("_pruner_units"), []

    def diverges(bench, keep):
        calls.append(bench.seed)

        def half(density, found):
            if density < 0.5:
                raise dp.core.ConvergenceError("weights are not finite")
            keep(density, found)

        return run(bench, half)

    run = units.imp_run
    monkeypatch.setattr(units, "imp_run", diverges)
    options = ("--seeds", "1", "--methods", "imp")
    rows = {row["density"]: row for row in pruners(*options)}
    assert calls == [0]
    assert rows[0.5]["kept"] > 0
    assert "not finite" in rows[0.2]["note"]
    assert pruners(*options) == list(rows.values())
    assert calls == [0]


def test_a_signed_ticket_is_reinitialised_by_signs(benchmarks):
    units, settings = benchmarks("_pruner_units"), benchmarks("_pruner_settings")
    problem = settings.problem_of("digits", "mlp:16:relu")
    own = {
        name: 0.3 * part.sign() for name, part in problem.model(0).named_parameters()
    }
    masks = {n: torch.ones_like(p).bool() for n, p in own.items() if p.ndim > 1}
    net = units._signed(problem, dp.Ticket.make(masks, own), 7)
    for name, part in net.named_parameters():
        torch.testing.assert_close(part.abs(), own[name].abs(), rtol=0, atol=0)
    first = next(iter(masks))
    share = (net.get_parameter(first) == own[first]).double().mean()
    assert 0.4 < float(share) < 0.6


def test_pruners_on_a_residual_network_in_miniature(pruners):
    names = ("dense", "imp", "gem-miner")
    rows = pruners("--tasks", "cifar10", "--seeds", "1", "--methods", *names)
    assert {row["method"] for row in rows} == set(names)
    assert all("nothing found" not in row.get("note", "") for row in rows)


def test_imp_levels_pass_through_the_densities(benchmarks):
    levels = benchmarks("_pruner_settings").imp_densities((
        0.5,
        0.2,
        0.1,
        0.05,
        0.03,
        0.01,
    ))
    assert len(levels) == 21
    assert {0.5, 0.2, 0.1, 0.05, 0.03, 0.01} <= set(levels)
    factors = [b / a for a, b in itertools.pairwise(levels)]
    assert min(factors) > 0.77
    assert max(factors) < 0.81


def test_the_order_of_methods_is_read_from_paired_differences(benchmarks):
    words, rows = benchmarks("_pruner_words"), []
    for seed in range(3):
        for method, accuracy in (
            ("imp", 0.97),
            ("magnitude-trained", 0.95),
            ("snip", 0.96),
            ("random", 0.90 + 0.06 * seed),
            ("erk", 0.97),
        ):
            rows.append({
                "method": method,
                "density": 0.03,
                "seed": seed,
                "test_accuracy": accuracy + 0.01 * seed,  # shared: pairing removes it
            })
    said, table = words.ordering(pd.DataFrame(rows), 0.03)
    verdicts = {row["expected"]: row["the expectation"] for row in table}
    assert verdicts == {
        "imp > magnitude-trained": "held",
        "magnitude-trained > snip": "reversed",
        "snip > random": "not decided",
        "snip > erk": "reversed",
    }
    assert "Of 3 pairs 1 held, 1 not decided, 1 reversed" in said
    assert "(magnitude-trained > snip): the whole order is not shown" in said
    assert "ERK layer densities: of 1 pairs 0 held, 0 not decided, 1 reversed" in said
    one = pd.DataFrame([row for row in rows if row["seed"] == 0])
    assert (
        "Of 3 pairs 2 have the expected sign on one seed"
        in (words.ordering(one, 0.03)[0])
    )


def pairs_near_imp(near):
    names = ["imp", *near]
    return pd.DataFrame([
        {
            "seed": seed,
            "other_seed": seed,
            "method": a,
            "other": b,
            "excess_overlap": near[b] if a == "imp" else 0.0,
            "z": 5.0,
        }
        for seed in range(3)
        for a, b in itertools.combinations(names, 2)
    ])


def test_likeness_to_imp_is_judged_without_its_relatives(benchmarks):
    words = benchmarks("_pruner_words")
    others = ("snip", "grasp", "synflow", "force", "manifold", "rigl", "set")
    near = dict.fromkeys(words.RELATIVES, 0.4)
    near |= {name: 0.01 * place for place, name in enumerate(others)}
    pairs = pairs_near_imp(near)

    def said(accuracies):
        rows = [
            {"method": name, "seed": seed, "test_accuracy": value}
            for seed in range(3)
            for name, value in accuracies.items()
        ]
        return words._does_it_matter(pairs, pd.DataFrame(rows))[0]

    relatives = {name: 0.98 + 0.001 * i for i, name in enumerate(words.RELATIVES)}
    bump = (3, 1, 4, 6, 5, 0, 2)
    flat = {name: 0.9 + 0.001 * i for i, name in zip(bump, others, strict=True)}
    assert "matters beyond them is not shown" in said(relatives | flat)
    rising = {name: 0.9 + 0.001 * i for i, name in enumerate(others)}
    assert "higher accuracy, its relatives apart" in said(relatives | rising)
    falling = {name: 0.9 - 0.001 * i for i, name in enumerate(others)}
    assert "lower accuracy, its relatives apart" in said(relatives | falling)
    nothing = {name: 0.9 + 0.001 * (i % 3) for i, name in enumerate(near)}
    assert "is not shown" in said(nothing)


def test_means_over_seeds_are_of_the_same_pairs(benchmarks):
    words = benchmarks("_pruner_words")
    pairs = pairs_near_imp({"snip": 0.1, "gmp": 0.5})
    pairs.loc[pairs.seed == 1, "excess_overlap"] = 0.9
    lacking = pairs[(pairs.seed != 1) | (pairs.other != "gmp")]
    left = words.complete(lacking)
    assert words.seeds_of(left) == "seeds 0, 2"
    assert left.excess_overlap.max() == 0.5
    assert words.seeds_of(words.complete(pairs)) == "seeds 0, 1, 2"


def test_shifted_images_are_the_images_shifted_and_flipped(benchmarks):
    x = torch.arange(1.0, 2 * 3 * 6 * 6 + 1).view(2, 3, 6, 6)
    batches = benchmarks("_pruner_settings").Shifted(x, torch.arange(2), 2)
    padded = torch.nn.functional.pad(x, (4, 4, 4, 4))
    with dp.core.isolated(0):
        seen = [next(iter(batches)) for _ in range(20)]
    flips = 0
    for images, labels in seen:
        for image, label in zip(images, labels, strict=True):
            windows = padded[label].unfold(1, 6, 1).unfold(2, 6, 1)
            plain = (windows.permute(1, 2, 0, 3, 4) == image).flatten(2).all(2).any()
            turned = image.flip(-1)
            flip = (windows.permute(1, 2, 0, 3, 4) == turned).flatten(2).all(2).any()
            assert plain or flip
            flips += int(flip)
    assert 8 < flips < 32  # 40 draws of one half
