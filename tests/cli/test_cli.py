import subprocess
import sys

import pytest

from dynprune.cli import main


def command(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "dynprune", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        check=False,
    )


def test_doctor_names_versions_devices_and_missing_files(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DYNPRUNE_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for word in ("torch", "cpu", "threads", "task digits: ready", "train-images-idx3"):
        assert word in said


REFUSED = {
    "unknown task": (["--task", "digts"], "Did you mean 'digits'"),
    "unknown method": (["--methods", "imp", "snp"], "Did you mean 'snip'"),
    "unknown model": (["--model", "mpl"], "nknown model"),
    "density": (["--densities", "1", "2"], "in (0, 1]"),
    "rising densities": (["--densities", "1", "0.1", "0.5"], "start at 1 and decrease"),
    "no config file": (["--config", "nowhere.toml"], "Cannot read the config"),
    "no module": (["--model", "nowhere.nets:make"], "No module 'nowhere'"),
    "no CUDA": (["--device", "cuda:9"], "CUDA"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_bad_input_ends_with_2_and_one_clear_line(case, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments, message = REFUSED[case]
    assert main(["study", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("results.csv"))


def test_missing_task_files_are_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DYNPRUNE_DATA", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["study", "--task", "mnist"]) == 2
    error = capsys.readouterr().err
    assert "train-images-idx3-ubyte.gz" in error
    assert str(tmp_path) in error


def test_unknown_option_ends_with_2(tmp_path):
    done = command("study", "--densty", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_report_of_no_study(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds no dynprune study" in capsys.readouterr().err


def test_a_folder_of_strangers_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("mine")
    assert main(["study", "--quick", "--out", str(tmp_path)]) == 2
    assert "holds no study" in capsys.readouterr().err
    assert (tmp_path / "thesis.tex").read_text() == "mine"


def test_quick_study_repeats_as_a_no_op_and_refuses_another_config(tmp_path, capsys):
    small = ["--seeds", "1", "--steps", "30", "--densities", "1", "0.2", "--jobs", "1"]
    small += ["--methods", "imp", "random", "--analyses", "multipliers"]
    out = ["--out", str(tmp_path / "s")]
    assert main(["study", *small, *out]) == 0
    assert "report.html" in capsys.readouterr().out
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*.*")}
    assert main(["study", *small, *out]) == 0
    assert "Nothing to do" in capsys.readouterr().out
    after = {p: p.stat().st_mtime_ns for p in (tmp_path / "s").rglob("*.*")}
    assert {p.name for p in before if before[p] != after[p]} <= {".lock"}
    assert main(["study", *small, "--seed", "7", *out]) == 2
    error = capsys.readouterr().err
    assert "another config" in error
    assert "seed is 0 there, 7 here" in error
    assert main(["report", str(tmp_path / "s")]) == 0
    assert (tmp_path / "s" / "report.html").exists()


OWN = """
import torch
from torch import nn


def net():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


def part(seed):
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 3, generator=make)
    return x, (x.sum(1) > 0).long()


def splits():
    return part(1), part(2), part(3)


def loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)
"""


def test_a_study_of_ones_own_model_data_and_loss(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    done = command(
        *("study", "--task", "mine", "--model", "mine:net", "--data", "mine:splits"),
        *("--loss", "mine:loss", "--seeds", "1", "--steps", "40", "--k-max", "3"),
        *("--densities", "1", "0.5", "0.25", "--samples", "1", "--out", "s"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "not computed" not in done.stdout
    rows = (tmp_path / "s" / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + (1 + 3 + 10 * 2)
    assert rows[1].startswith("mine,mine:net,dense,1.0,0,")
