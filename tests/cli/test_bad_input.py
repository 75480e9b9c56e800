"""Whatever a user gets wrong: one clear line, exit code 2, nothing half-written."""

import concurrent.futures
import os
import resource
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from torch import nn

import dynprune as dp
from dynprune.cli import main
from dynprune.core import InvalidInputError

OWN = """
import torch
from torch import nn
from torch.nn import functional as F


def net():
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))


def frozen():
    return net().requires_grad_(False)


def nothing():
    return nn.Identity()


def scales():
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return x[:, :2] * self.scale

    return Scales()


def noisy():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return F.dropout(self.net(x), 0.5, True)

    return Noisy()


def line():
    return nn.Linear(3, 2)


def part(seed):
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 3, generator=make)
    return x, (x.sum(1) > 0).long()


def splits():
    return part(1), part(2), part(3)


def one_hot():
    return tuple((x, F.one_hot(y, 2).float()) for x, y in splits())


def once():
    x, y = part(1)
    return (b for b in [(x, y)]), part(2), part(3)


def nan_inputs():
    (x, y), *others = splits()
    x[45] = float("nan")
    return (x, y), *others


def nan_test():
    train, validation, (x, y) = splits()
    return train, validation, (x / 0, y)


def nan_batch():
    (x, y), *others = splits()
    x[45] = float("nan")
    return [(x[i : i + 16], y[i : i + 16]) for i in range(0, 60, 16)], *others


def large_labels():
    (x, y), *others = splits()
    return (x, y + 5), *others


def large_label_in_a_later_batch():
    (x, y), *others = splits()
    y[45] = 5
    return [(x[i : i + 16], y[i : i + 16]) for i in range(0, 60, 16)], *others


def narrow_test():
    train, validation, (x, y) = splits()
    return train, validation, (x[:, :2], y)


def each(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="none")


def summed(outputs, targets):
    return F.cross_entropy(outputs, targets, reduction="sum")


def weighted(outputs, targets):
    return F.cross_entropy(outputs, targets, weight=torch.tensor([1.0, 5.0]))


def nan(outputs, targets):
    return F.cross_entropy(outputs, targets) * float("nan")


def text(outputs, targets):
    return "0.5"


def broken(outputs, targets):
    return 1 / 0
"""
MINE = ["--task", "mine", "--model", "own_input:net", "--data", "own_input:splits"]
SMALL = ["--seeds", "1", "--steps", "30", "--densities", "1", "0.3", "--jobs", "1"]
FEW = ["--methods", "imp", "random", "--analyses", "multipliers", "--out", "s"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "own_input.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def refused(capsys, *arguments):
    """Run a study that must be refused; return what it says."""
    assert main(["study", *MINE, *SMALL, *FEW, *arguments]) == 2
    said = capsys.readouterr().err.replace("\r", "\n").strip().splitlines()
    assert said[-1].startswith("dynprune: ")
    assert not any("Traceback" in line for line in said)
    return said[-1]


REFUSED = {
    "no trainable weight": ("--model", "frozen", "no trainable parameter"),
    "no weight": ("--model", "nothing", "no trainable parameter"),
    "no prunable weight": ("--model", "scales", "no prunable weight"),
    "generator": ("--data", "once", "can be read only once"),
    "NaN input": ("--data", "nan_inputs", "is nan"),
    "NaN in test": ("--data", "nan_test", "test split is nan"),
    "labels beyond the outputs": ("--data", "large_labels", "out of bounds). The"),
    "test split of another width": ("--data", "narrow_test", "the test split failed"),
    "non-scalar loss": ("--loss", "each", "not a scalar tensor (found (32,))"),
    "summed loss": ("--loss", "summed", "not a mean over examples"),
    "class-weighted loss": ("--loss", "weighted", "not a mean over examples"),
    "NaN loss": ("--loss", "nan", "(step 0, batch 0)"),
    "loss is text": ("--loss", "text", "not a scalar tensor"),
    "loss fails": ("--loss", "broken", "ZeroDivisionError: division by zero"),
    "misspelt loss": ("--loss", "sumed", "Did you mean 'summed'"),
}


@pytest.mark.parametrize("case", REFUSED, ids=str)
def test_own_problems_are_refused_before_a_file_is_written(case, folder, capsys):
    option, name, message = REFUSED[case]
    assert message in refused(capsys, option, f"own_input:{name}")
    assert not (folder / "s").exists()


@pytest.mark.parametrize("jobs", ["0", "-2"])
def test_jobs_below_one(jobs, folder, capsys):
    assert f"jobs is {jobs}" in refused(capsys, "--jobs", jobs)
    assert not (folder / "s").exists()


CONFIGS = {
    "unknown key": (b"densties = [1.0, 0.5]", "Did you mean 'densities'"),
    "no TOML": (b"steps = = 3", "not valid TOML"),
    "wrong type": (b'steps = "many"', "'many', expected int"),
    "no text": (b"\xff\xfe\x00\xdd", "Cannot read the config"),
}


@pytest.mark.parametrize("case", CONFIGS, ids=str)
def test_bad_config_files(case, folder, capsys):
    content, message = CONFIGS[case]
    (folder / "c.toml").write_bytes(content)
    assert message in refused(capsys, "--config", "c.toml")


@pytest.mark.parametrize("size", [100, 4542], ids=["truncated", "wrong checksum"])
def test_damaged_task_files(size, folder, monkeypatch, capsys):
    monkeypatch.setenv("DYNPRUNE_DATA", str(folder))
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(bytes(size))
    assert main(["study", "--task", "mnist", "--out", "s"]) == 2
    error = capsys.readouterr().err
    word = "is truncated: 100 of 4542" if size == 100 else "has a wrong checksum"
    assert f"t10k-labels-idx1-ubyte.gz {word}" in error
    assert "--download" in error
    assert not (folder / "s").exists()


def test_a_study_that_diverges_says_where(capsys):
    said = refused(
        *(capsys, "--model", "own_input:line", "--data", "own_input:one_hot"),
        *("--loss", "mse", "--learning-rate", "1e6"),
    )
    assert "imp-s0" in said
    assert "at step" in said
    assert "Lower the learning rate" in said


def test_nan_in_a_later_batch_says_which(capsys):
    said = refused(capsys, "--data", "own_input:nan_batch")
    assert "nan at step 2 (epoch 0, batch 2)" in said


def test_a_user_function_that_fails_later_is_no_traceback(capsys):
    said = refused(capsys, "--data", "own_input:large_label_in_a_later_batch")
    assert "imp-s0" in said
    assert "out of bounds" in said


def test_a_file_in_place_of_the_folder(folder, capsys):
    (folder / "s").write_text("mine")
    assert "Choose another --out" in refused(capsys)
    assert (folder / "s").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(folder, capsys):
    (folder / "s").mkdir(mode=0o555)
    assert "Permission denied" in refused(capsys)


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "dynprune", "study", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        **options,
    )


def test_a_disk_that_takes_no_more(folder, capsys):
    """A limit on the size of files stands for a full disk: the same OSError."""

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))

    process = command(*MINE, *SMALL, *FEW, preexec_fn=limit)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 2, said
    assert "dynprune: Cannot write" in said
    assert "Free some space" in said
    assert "Traceback" not in said
    assert not list((folder / "s").rglob(".*.tmp"))
    assert main(["study", *MINE, *SMALL, *FEW]) == 0  # room was made: it goes on
    capsys.readouterr()
    before = (folder / "s" / "results.csv").read_bytes()
    ticket = folder / "s" / "tickets" / "random-d0.3-s0.safetensors"
    whole = ticket.read_bytes()
    ticket.write_bytes(whole[:-9])
    assert main(["study", *MINE, *SMALL, *FEW]) == 0  # a truncated ticket is remade
    assert "3 of 3" not in capsys.readouterr().out
    assert ticket.read_bytes() == whole
    assert (folder / "s" / "results.csv").read_bytes() == before
    (folder / "s" / "config.toml").write_bytes(b"\xff\xfe")
    assert main(["report", "s"]) == 2
    assert "config.toml" in capsys.readouterr().err
    assert "another config" in refused(capsys, "--steps", "31")
    (folder / "s" / "provenance.json").write_text("{")
    assert "is damaged" in refused(capsys)
    assert (folder / "s" / "results.csv").read_bytes() == before


def workers(of):
    """Return the ids of the worker processes that a process has now."""
    listed = subprocess.run(
        ["ps", "-ww", "-eo", "pid,ppid,args"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    rows = [line.split(maxsplit=2) for line in listed[1:]]
    return [int(r[0]) for r in rows if int(r[1]) == of and "LokyProcess" in r[2]]


def gone(pids):
    listed = subprocess.run(
        ["ps", "-o", "pid,stat", "-p", ",".join(map(str, pids))],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.splitlines()
    return all("Z" in line.split()[1] for line in listed[1:])


def until(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


LONG = ["--seeds", "2", "--steps", "3000", "--densities", "1", "0.3", "0.1"]
LONG += ["--jobs", "1", *FEW]


def test_interrupted_at_the_keyboard(folder):
    process = command(*MINE, *LONG)
    assert until(lambda: workers(process.pid))
    time.sleep(1.0)
    started = workers(process.pid)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    said = process.communicate(timeout=30)[0]
    assert process.returncode == 130, said
    assert "the same command goes on from here" in said
    assert "Traceback" not in said
    assert started
    assert until(lambda: gone(started), 5.0)
    assert not list((folder / "s").rglob(".*.tmp"))


def test_workers_do_not_outlive_a_killed_study():
    process = command(*MINE, *LONG)
    assert until(lambda: workers(process.pid))
    time.sleep(2.0)
    started = workers(process.pid)
    process.kill()
    process.communicate()
    assert started
    assert until(lambda: gone(started), 5.0)


def test_a_killed_worker_is_replaced(folder):
    process = command(*MINE, *SMALL, "--steps", "600", *FEW)
    assert until(lambda: list((folder / "s").glob("units/*.json")))
    os.kill(workers(process.pid)[0], signal.SIGKILL)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 0, said
    assert (folder / "s" / "report.html").exists()
    assert "Traceback" not in said


class Here(concurrent.futures.Executor):
    """Runs each unit at once, in this process."""

    def submit(self, function, /, *args, **kwargs):
        future = concurrent.futures.Future()
        try:
            future.set_result(function(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def part(seed):
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 3, generator=make)
    return x, (x.sum(1) > 0).long()


def problem(loss, model=None):
    return dp.Problem(
        make_model=lambda seed: model or nn.Linear(3, 2),
        loss_fn=loss,
        train=part(1),
        validation=part(2),
        test=part(3),
        metric=lambda outputs, targets: (outputs.argmax(1) == targets).float(),
    )


CONFIG = dp.study.configure(
    task="mine",
    seeds=1,
    steps=30,
    densities=(1.0, 0.5),
    methods=("imp", "random"),
    analyses=("multipliers",),
)


def test_lambdas_reach_the_workers(folder):
    own = problem(
        lambda outputs, targets: nn.functional.cross_entropy(outputs, targets)
    )
    done = dp.study.run(CONFIG, problem=own, jobs=2, out="s")
    assert done.computed == 3
    assert not done.failures


def test_what_cannot_be_sent_to_the_workers_is_named(folder):
    lock = threading.Lock()

    def loss(outputs, targets):
        with lock:
            return nn.functional.cross_entropy(outputs, targets)

    message = r"cannot be sent to worker processes \(TypeError: cannot pickle '_thread"
    with pytest.raises(InvalidInputError, match=message):
        dp.study.run(CONFIG, problem=problem(loss), jobs=1, out="s")


def test_what_needs_a_failed_unit_names_it(folder):
    config = dp.study.configure(
        task="mine",
        model="own_input:noisy",
        data="own_input:splits",
        seeds=1,
        steps=30,
        densities=(1.0, 0.5),
        methods=("imp", "manifold", "manifold-shuffled"),
        analyses=("multipliers",),
    )
    done = dp.study.run(config, executor=Here, out="s")
    assert "the forward pass itself is random" in done.failures["manifold-s0"]
    assert "starts from manifold-s0" in done.failures["manifold-shuffled-s0"]
