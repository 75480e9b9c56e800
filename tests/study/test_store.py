import dataclasses

import pytest
import torch
from in_process import Here

from dynprune.core import InvalidInputError
from dynprune.study import _run, _store, configure, run
from dynprune.tasks import digits

CONFIG = configure(
    task="digits",
    seeds=1,
    densities=(1.0, 0.3, 0.1),
    methods=("imp",),
    analyses=(),
    steps=25,
)


@pytest.fixture(autouse=True)
def _plain_report(monkeypatch):
    monkeypatch.setattr(_run, "write_report", lambda *args, **kwargs: "<html></html>")


def study(folder=None, config=CONFIG, problem=None):
    said: list[str] = []
    done = run(config, problem, out=folder, executor=Here, say=said.append)
    return done, " ".join(said)


def test_a_second_run_computes_nothing_and_says_so(tmp_path):
    first, _ = study(tmp_path / "s")
    second, said = study(tmp_path / "s")
    assert (first.computed, second.computed) == (1, 0)
    assert "Nothing to do" in said
    assert second.to_frame().equals(first.to_frame())


def _another_source(monkeypatch):
    monkeypatch.setattr(_store, "source_hash", lambda: "another")


def _another_torch(monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.99.0")


CHANGES = {"package source": _another_source, "torch version": _another_torch}


@pytest.mark.parametrize("what", CHANGES, ids=str)
def test_a_changed_dependency_computes_again_and_says_so(what, tmp_path, monkeypatch):
    study(tmp_path / "s")
    CHANGES[what](monkeypatch)
    done, said = study(tmp_path / "s")
    assert done.computed == 1
    assert f"The {what} changed" in said
    assert (tmp_path / "s" / "superseded-1" / "results.csv").exists()


def test_changed_data_compute_again_and_say_so(tmp_path):
    problem = digits()
    study(tmp_path / "s", problem=problem)
    x, y = problem.train
    other = dataclasses.replace(problem, train=(x + 0.1, y))
    done, said = study(tmp_path / "s", problem=other)
    assert done.computed == 1
    assert "The data changed" in said


def test_a_changed_config_goes_to_a_folder_of_its_own_and_says_so(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    first, said = study()
    assert "differs" not in said
    second, said = study(config=dataclasses.replace(CONFIG, seed=4))
    assert second.folder != first.folder
    assert second.computed == 1
    assert "seed is 0 there, 4 here" in said
    assert study()[0].computed == 0


def test_a_folder_of_another_config_is_refused_untouched(tmp_path):
    study(tmp_path / "s")
    before = {p: p.read_bytes() for p in (tmp_path / "s").rglob("*.*")}
    with pytest.raises(InvalidInputError, match="seed is 0 there, 4 here"):
        study(tmp_path / "s", dataclasses.replace(CONFIG, seed=4))
    assert {p: p.read_bytes() for p in (tmp_path / "s").rglob("*.*")} == before


def test_damaged_provenance_is_refused(tmp_path):
    study(tmp_path / "s")
    (tmp_path / "s" / "provenance.json").write_text("{")
    with pytest.raises(InvalidInputError, match="is damaged"):
        study(tmp_path / "s")


def test_two_studies_do_not_share_a_folder(tmp_path):
    with (
        _store.locked(tmp_path / "s"),
        pytest.raises(InvalidInputError, match="Another dynprune study is writing"),
    ):
        study(tmp_path / "s")


def test_results_are_tidy_and_deterministic(tmp_path):
    study(tmp_path / "a")
    study(tmp_path / "b")
    one = (tmp_path / "a" / "results.csv").read_text()
    assert one == (tmp_path / "b" / "results.csv").read_text()
    header = "task,model,method,density,seed,accuracy,loss,validation_accuracy"
    assert one.splitlines()[0] == f"{header},gradients,hvps,forwards,steps"
    assert len(one.splitlines()) == 1 + 4
