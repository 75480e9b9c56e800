import sys
import textwrap
import uuid

import numpy as np
import pytest
import torch
from torch import nn

from dynprune import tasks
from dynprune.core import InvalidInputError
from dynprune.tasks import load_user, make, remake

MODULE = """
    import numpy as np, torch
    from torch import nn

    def splits():
        x = torch.randn(30, 4)
        y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
        return (x[:10], y[:10]), (x[10:20], y[10:20]), (x[20:], y[20:])

    def named():
        train, validation, test = splits()
        return {"test": test, "train": train, "validation": validation}

    def loaders():
        from torch.utils.data import DataLoader, TensorDataset
        return [DataLoader(TensorDataset(*part), batch_size=4) for part in splits()]

    def arrays():
        return [(x.double().numpy(), y.numpy()) for x, y in splits()]

    def regression():
        return [(x, x[:, :1]) for x, _ in splits()]

    def one_hot():
        return [(x, nn.functional.one_hot(y, 3).float()) for x, y in splits()]

    def net(): return nn.Linear(4, 3)
    def seeded(seed): return nn.Linear(4, 3 + 0 * seed)
    def seed_by_default(width=3, seed=0): return nn.Linear(4, width)
    def anything(init_seed): return nn.Linear(4, 3)
    class Net(nn.Module):
        def __init__(self):
            nn.Module.__init__(self)
            self.fc = nn.Linear(4, 3)
        def forward(self, x): return self.fc(x)

    def loss(outputs, targets): return outputs.square().mean()
    def metric(outputs, targets): return outputs.sum(1)
    def two(): return splits()[:2]
    def misnamed(): return {"train": 1, "valid": 2, "test": 3}
    def without(): return {"train": 1, "test": 3}
    def number(): return 3
    def generators(): return tuple((part for part in [part]) for part in splits())
    def empty(): return [], [], []
    def dicts(): return ([{"x": 1}],) * 3
    def broken(): return [1] + [][0]
    def lengths(): return [(x, y[1:]) for x, y in splits()]
    def needs(a, b): return nn.Linear(a, b)
    def bad_net(): raise RuntimeError("no net today")
    def no_net(): return "net"
    constant = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module in the current folder, which is not on the path; returns its name."""
    name = f"mine_{uuid.uuid4().hex[:8]}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(MODULE))
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield name
    assert sys.path == before
    sys.modules.pop(name, None)


@pytest.mark.parametrize("data", ["splits", "named", "loaders", "arrays"])
def test_data_functions(mine, data, untouched):
    with untouched():
        problem = load_user(model=f"{mine}:net", data=f"{mine}:{data}")
    first = next(iter(problem.train)) if data == "loaders" else problem.train
    assert first[0].shape[1] == 4
    assert problem.metric is tasks.accuracy
    assert problem.loss_fn is nn.functional.cross_entropy
    assert problem.name == "user"


@pytest.mark.parametrize(
    "model", ["net", "seeded", "seed_by_default", "anything", "Net"]
)
def test_model_functions(mine, model, untouched):
    with untouched():
        problem = load_user(model=f"{mine}:{model}", data=f"{mine}:splits")
        nets = [problem.model(seed).state_dict() for seed in (0, 0, 1)]
    first = [next(iter(net.values())) for net in nets]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])


def test_made_again_in_a_worker(mine):
    problem = load_user(model=f"{mine}:net", data=f"{mine}:splits", loss=f"{mine}:loss")
    assert dict(problem.origin)["loss"] == f"{mine}:loss"
    assert remake(problem.origin).fingerprint() == problem.fingerprint()


def test_bundled_models_are_sized_to_the_data(mine):
    problem = load_user(model="mlp:5", data=f"{mine}:loaders")
    assert [tuple(p.shape) for p in problem.model(0).parameters()] == [
        *((5, 4), (5,), (3, 5), (3,))
    ]
    problem = load_user(data=f"{mine}:regression")
    assert problem.model(0)(torch.zeros(2, 4)).shape == (2, 1)


def test_loss_and_metric_follow_the_targets(mine):
    problem = load_user(data=f"{mine}:regression")
    assert (problem.loss_fn, problem.metric) == (tasks.mse, None)
    problem = load_user(data=f"{mine}:one_hot", loss="mse")
    assert (problem.loss_fn, problem.metric) == (tasks.mse, tasks.accuracy)
    problem = load_user(
        data=f"{mine}:splits", loss="torch.nn:CrossEntropyLoss", metric=f"{mine}:metric"
    )
    assert isinstance(problem.loss_fn, nn.CrossEntropyLoss)
    assert problem.metric(torch.ones(2, 3), None).tolist() == [3.0, 3.0]


def test_mse_does_not_broadcast():
    with pytest.raises(InvalidInputError, match=r"outputs \(3, 1\) and targets \(3,\)"):
        tasks.mse(torch.ones(3, 1), torch.ones(3))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"data": "no_such_pkg.data:f"}, "No module 'no_such_pkg' for the data"),
        ({"data": "torch.no_such:f"}, "No module 'torch.no_such' for the data"),
        ({"data": "{}:split"}, "Did you mean 'splits'"),
        ({"data": "{}:constant"}, "data '.*:constant' is a int, which cannot be"),
        ({"data": "{}.py"}, "not of the form package.module:function"),
        ({"data": "./{}:splits"}, "not of the form package.module:function"),
        ({"data": ""}, "No data were named"),
        ({"data": "{}:two"}, r"returned 2 parts, expected \(train, validation, test"),
        ({"data": "{}:misnamed"}, "'valid'. Did you mean 'validation'"),
        ({"data": "{}:without"}, "returned a dict without validation"),
        ({"data": "{}:number"}, "returned a int, expected"),
        ({"data": "{}:generators"}, "train split is a generator, which can be read"),
        ({"data": "{}:empty"}, "train split yields no batch"),
        ({"data": "{}:dicts"}, "train split yields a dict, expected batches"),
        ({"data": "{}:lengths"}, r"shapes \(10, 4\) and \(9,\)"),
        ({"data": "{}:broken"}, r"broken failed: IndexError: .*\.py, line \d+"),
        ({"model": "{}:Nett"}, "Did you mean 'Net'"),
        ({"model": "{}:needs"}, "needs the arguments a, b"),
        ({"model": "{}:constant"}, "model '.*:constant' is a int"),
        ({"model": "{}:bad_net"}, "failed: RuntimeError: no net today"),
        ({"model": "{}:no_net"}, "returned a str, expected an nn.Module"),
        ({"model": "mpl"}, "Unknown model 'mpl'. Did you mean 'mlp'"),
        ({"loss": "cross-entropy"}, "Did you mean 'cross_entropy'"),
        ({"loss": "{}:los"}, "Did you mean 'loss'"),
        ({"metric": "{}:metrik"}, "Did you mean 'metric'"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(next(iter(value))),
)
def test_failures_say_what_to_do(mine, names, message):
    good = {"model": f"{mine}:net", "data": f"{mine}:splits"}
    given = good | {key: value.format(mine) for key, value in names.items()}
    with pytest.raises(InvalidInputError, match=message):
        load_user(**given).model(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def f(:", "failed: SyntaxError"),
        ("1 / 0", r"failed: ZeroDivisionError: division by zero \(.*line 1\)"),
        ("import no_such_dependency", "No module named 'no_such_dependency'"),
    ],
    ids=["syntax", "exception", "dependency"],
)
def test_modules_that_fail(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    name = f"broken_{uuid.uuid4().hex[:8]}"
    (tmp_path / f"{name}.py").write_text(text)
    with pytest.raises(InvalidInputError, match=message):
        load_user(data=f"{name}:f")


def arrays(**changes) -> dict[str, np.ndarray]:
    found = {}
    for split in ("train", "validation", "test"):
        found[f"x_{split}"] = np.linspace(0, 1, 24).reshape(6, 4)
        found[f"y_{split}"] = np.arange(6, dtype=np.uint8) % 3
    return {k: v for k, v in (found | changes).items() if v is not None}


def test_npz_of_arrays(tmp_path):
    np.savez(tmp_path / "my.npz", **arrays())
    problem = load_user(model="mlp:5", data=str(tmp_path / "my.npz"))
    x, y = problem.train
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert y.tolist() == [0, 1, 2, 0, 1, 2]
    assert problem.loss_fn(problem.model(0)(x), y).isfinite()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_validation": None}, "lacks the arrays y_validation; it holds"),
        ({"x_test": np.ones((6, 4), np.uint8)}, "x_test of .* is uint8. Save inputs"),
        ({"y_test": np.array(["a"] * 6)}, "y_test of .* is <U1"),
        ({"y_train": np.array([{}] * 6)}, "holds Python objects"),
        ({"x_train": np.ones((5, 4))}, "same positive number of examples"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_bad_npz(tmp_path, changes, message):
    np.savez(tmp_path / "my.npz", **arrays(**changes))
    with pytest.raises(InvalidInputError, match=message):
        load_user(data=str(tmp_path / "my.npz"))


def test_missing_and_truncated_npz(tmp_path):
    with pytest.raises(InvalidInputError, match="No file"):
        load_user(data=str(tmp_path / "none.npz"))
    np.save(tmp_path / "array.npy", np.ones(3))
    for raw in (b"PK\x03\x04", b"", (tmp_path / "array.npy").read_bytes()):
        (tmp_path / "cut.npz").write_bytes(raw)
        with pytest.raises(InvalidInputError, match="truncated, no"):
            load_user(data=str(tmp_path / "cut.npz"))


def test_make_by_name():
    problem = make("digits", "mlp:4")
    assert problem.origin == (("task", "digits"), ("model", "mlp:4"))
    assert make("digits").name == "digits"
    with pytest.raises(InvalidInputError, match="Did you mean 'digits'"):
        make("digit")
    with pytest.raises(InvalidInputError, match="Did you mean 'mlp'"):
        make("digits", "mpl")


def test_make_with_own_model_and_loss_on_a_bundled_task(mine, tmp_path):
    path = tmp_path / f"{mine}.py"
    path.write_text(path.read_text() + "\ndef big(): return nn.Linear(64, 10)\n")
    problem = make("digits", f"{mine}:big", loss=f"{mine}:loss")
    assert problem.model(0).weight.shape == (10, 64)
    assert problem.loss_fn(torch.ones(2, 2), None) == 1
    assert remake(problem.origin).fingerprint() == problem.fingerprint()
    assert make("digits", f"{mine}:big", data=f"{mine}:splits").name == "user"


def test_a_problem_made_by_hand_has_no_names():
    problem = tasks.digits(lambda seed: nn.Linear(64, 10))
    assert problem.model(0).weight.shape == (10, 64)
    with pytest.raises(InvalidInputError, match="made by hand"):
        remake(problem.origin)


@pytest.mark.parametrize("ask", [tasks.download, tasks.check_files])
def test_files_of_an_unknown_task(ask):
    with pytest.raises(InvalidInputError, match="Did you mean 'mnist'"):
        ask("mnits")
    assert ask("digits") is None
