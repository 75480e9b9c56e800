import math

import pytest
import torch
import torch.distributed as dist
from problems import classes, small_net
from ranks import run
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune.core import InvalidInputError, NotDeterministicError
from dynprune.system import GradientSystem
from dynprune.system._ranks import Ranks

IMPORTS = ("scipy.integrate",)  # by each rank's first flow, else
CROSS = nn.functional.cross_entropy
SIZES = {2: (5, 11), 3: (7, 1, 8), 4: (2, 6, 5, 3)}
MASK = {"0.weight": torch.arange(12).reshape(4, 3) % 3 > 0}
DATA = classes(16, 3, 3)
TIMES = [0.0, 0.2, 0.5]


def make(data, **changes):
    given = dict(model=small_net(), loss_fn=CROSS, l2=0.1, mask=MASK) | changes
    model, loss_fn = given.pop("model"), given.pop("loss_fn")
    return GradientSystem(model, loss_fn, data, **given)


def shard(rank, count):
    """A pair on even ranks, a loader of batches of two on odd ones."""
    x, y = (part.split(SIZES[count])[rank] for part in DATA)
    return DataLoader(TensorDataset(x, y), 2) if rank % 2 else (x, y)


# -- the numbers of one process -------------------------------------------------------


def job_numbers(rank, count):
    group = dist.group.WORLD
    system = make(shard(rank, count), process_group=group)
    theta = 2 * system.state
    return {
        "examples": system.examples,
        "loss": system.loss().tolist(),
        "gradient": system.gradient().tolist(),
        "elsewhere": system.gradient(theta).tolist(),
        "field": system.field(theta).tolist(),
        "flow": system.flow(TIMES).tolist(),
        "double": make(
            shard(rank, count), model=small_net().float(), process_group=group
        )
        .double()
        .loss()
        .tolist(),
        "dense": system.with_mask({}).gradient().tolist(),
        "other data": system.with_data(shard(count - 1 - rank, count)).loss().tolist(),
        "moved": system.with_state(theta).loss().tolist(),
        "repr": repr(system),
        "calls": calls(system),
    }


def calls(system):
    """Numbers of each all-reduce and of each all-gather of some calls."""
    seen = []
    reduce, gather = dist.all_reduce, dist.all_gather

    def all_reduce(tensor, group):
        seen.append(["all_reduce", tensor.numel()])
        return reduce(tensor, group=group)

    def all_gather(parts, tensor, group):
        seen.append(["all_gather", tensor.numel()])
        return gather(parts, tensor, group=group)

    dist.all_reduce, dist.all_gather = all_reduce, all_gather
    try:
        system.gradient()
        system.loss()
        part = torch.ones(system.size, 3, dtype=torch.float64)
        system.sum_over_ranks(lambda: part, like=part)
        assert len({system.examples, system.examples}) == 1
    finally:
        dist.all_reduce, dist.all_gather = reduce, gather
    return seen


def test_any_ranks_give_the_numbers_of_one_process(tmp_path):
    one = make(DATA)
    theta = 2 * one.state
    wanted = {
        "examples": 16.0,
        "loss": one.loss(),
        "gradient": one.gradient(),
        "elsewhere": one.gradient(theta),
        "field": one.field(theta),
        "dense": one.with_mask({}).gradient(),
        "other data": one.loss(),
        "moved": one.loss(theta),
        "double": make(DATA, model=small_net().float()).double().loss(),
        "flow": one.flow(TIMES),
    }
    jobs = [(job_numbers, count) for count in SIZES]
    for count, ranks in zip(SIZES, run(tmp_path, *jobs), strict=True):
        for key, value in wanted.items():
            assert len({str(found[key]) for found in ranks}) == 1, key
            found = torch.tensor(ranks[0][key], dtype=torch.float64)
            # sums in another order; the flow's steps are chosen by its tolerance
            bound = 1e-7 if key == "flow" else 1e-13
            reference = torch.as_tensor(value, dtype=torch.float64)
            assert torch.allclose(found, reference, rtol=bound, atol=bound), key
        assert ranks[0]["repr"].endswith(f"{count} ranks)")
        exchange = ["all_gather", 16]
        assert ranks[0]["calls"] == [
            *(exchange, ["all_reduce", one.size]),
            *(exchange, ["all_reduce", 1]),
            ["all_reduce", 3 * one.size],
        ]


# -- ranks that differ, and errors on one of them -------------------------------------


class Noisy(nn.Module):
    def __init__(self, *, loud):
        nn.Module.__init__(self)
        self.net, self.loud = small_net(), loud

    def forward(self, x):
        y = self.net(x)
        return y + torch.randn(y.shape) if self.loud else y


def changed(name, odd):
    """What a rank passes to the constructor; the odd one something else."""
    x, y = DATA
    norm = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).double()
    with torch.no_grad():
        for part in norm.parameters():
            part.fill_(0.5)
        norm[1].running_mean.fill_(float(odd))
    frozen = small_net(seed=int(odd))
    frozen[0].load_state_dict(small_net()[0].state_dict())
    frozen[2].requires_grad_(False)
    return {
        "state": dict(model=small_net(seed=int(odd))),
        "widths": dict(model=small_net(widths=(3, 5 if odd else 4, 3)), mask=None),
        "activation": dict(model=small_net(activation=nn.ReLU if odd else nn.Tanh)),
        "dtype": dict(model=small_net().float() if odd else small_net()),
        "mask": dict(mask={"0.weight": MASK["0.weight"].flip(1)} if odd else MASK),
        "frozen": dict(model=frozen),
        "prunable": dict(prunable="0.*" if odd else "2.*"),
        "buffers": dict(model=norm, mask=None),
        "l2": dict(l2=0.2 if odd else 0.1),
        "loss": dict(
            loss_fn=nn.CrossEntropyLoss(label_smoothing=0.1 * odd), data=(x, y)
        ),
        "trailing shape": dict(
            data=[(x[:, :, None] if odd else x, y)],
            loss_fn=lambda outputs, y: outputs.mean(),
            model=nn.Sequential(nn.Flatten(), *small_net()),
            mask=None,
        ),
        "target dtype": dict(data=(x, y.double() if odd else y), loss_fn=_by_index),
        "a generator": dict(data=(b for b in [DATA]) if odd else DATA),
        "no examples": dict(data=[] if odd else DATA),
        "a NaN loss": dict(data=(x * math.nan, y) if odd else DATA),
        "two of three": dict(l2=-1.0 if odd else 0.1),
    }[name]


def _by_index(outputs, targets):
    return CROSS(outputs, targets.long())


REFUSED = {
    "state": ["not share one system", "differ in the state", "rank 1", "0.weight="],
    "widths": ["differ in the parameters", "rank 1", "[5, 3]"],
    "activation": ["differ in the model", "rank 1", "ReLU"],
    "dtype": ["differ in the parameters", "float32"],
    "mask": ["differ in the mask", "rank 1"],
    "prunable": ["differ in the prunable on request", "rank 1 0.weight, 0.bias"],
    "frozen": ["differ in the frozen parameters", "2.weight="],
    "buffers": ["differ in the buffers", "1.running_mean="],
    "l2": ["differ in the l2 coefficient", "ranks 0, 2 0.1; rank 1 0.2"],
    "loss": ["differ in the loss", "label_smoothing"],
    "trailing shape": ["differ in the data", "(N, 3, 1)"],
    "target dtype": ["differ in the data", "float64", "int64"],
    "a generator": ["read only once"],
    "no examples": ["hold no batch"],
    "a NaN loss": ["loss of the first batch", "nan"],
    "two of three": ["l2 is -1"],
}
LATER = {
    "gradient at another state": ["differ in the state", "rank 1"],
    "loss with another buffer": ["differ in the state", "rank 1"],
    "gradient of another shape": ["InvalidInputError", "state of shape (2,)"],
    "operator at another state": ["differ in the state", "rank 1"],
    "other data": ["same positive number"],
    "an exception in the loss": ["ValueError", "rank 1's own trouble"],
    "an exception in a product": ["KeyError: 1"],
    "noise on one rank": ["the forward pass itself is random"],
}


def job_refusals(rank, count):
    said = {}
    for name in REFUSED:
        odd = rank == 1 or (name == "two of three" and rank == 2)
        given = dict(data=DATA, process_group=dist.group.WORLD) | changed(name, odd)
        said[name] = caught(lambda given=given: make(**given))
    trouble = {"on": False}

    def loss(outputs, targets):
        if trouble["on"] and rank == 1:
            raise ValueError("rank 1's own trouble")
        return CROSS(outputs, targets)

    data = shard(0, count)
    system = make(data, process_group=dist.group.WORLD, loss_fn=loss)
    other = system.state * (2 if rank == 1 else 1)
    said["gradient at another state"] = caught(lambda: system.gradient(other))
    said["loss with another buffer"] = caught(lambda: system.with_state(other).loss())
    short = other[:2] if rank == 1 else other
    said["gradient of another shape"] = caught(lambda: system.gradient(short))
    system.check_deterministic()
    said["operator at another state"] = caught(
        lambda: system.check_deterministic(other)
    )
    cut = (data[0][:1], data[1]) if rank == 1 else data
    said["other data"] = caught(lambda: system.with_data(cut))
    trouble["on"] = True
    said["an exception in the loss"] = caught(system.gradient)
    trouble["on"] = False

    said["an exception in a product"] = caught(
        lambda: system.sum_over_ranks(
            lambda: {0: other, 2: other, "rank": 1}[rank], like=other
        )
    )
    noisy = make(
        data, model=Noisy(loud=rank == 1), process_group=dist.group.WORLD, mask=None
    )
    said["noise on one rank"] = caught(noisy.check_deterministic)
    said["one process only"] = caught(lambda: system.check_one_process("A flow"))
    # the same group still works, so that no rank was left behind
    said["after all"] = system.loss().item()
    infinite = torch.full((2,), math.inf if rank else -math.inf)
    said["a sum that is NaN"] = str(system.all_reduce(infinite).tolist())
    return said


def caught(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def test_ranks_that_differ_or_fail_are_refused_on_all(tmp_path):
    (ranks,) = run(tmp_path, (job_refusals, 3))
    for name, parts in (REFUSED | LATER).items():
        for rank, found in enumerate(ranks):
            kind, message = found[name]
            assert kind != "nothing", (name, rank)
            text = f"{kind}: {message}"
            assert all(part in text for part in parts), (name, rank, text)
        if "differ" not in parts[0] and "share" not in parts[0]:
            who = "Ranks 1, 2 of 3" if name == "two of three" else "Rank 1 of 3"
            assert ranks[0][name][1].startswith(f"{who} failed"), name
    assert ranks[0]["noise on one rank"][0] == NotDeterministicError.__name__
    assert ranks[1]["an exception in the loss"] == [
        "ValueError",
        "rank 1's own trouble",
    ]
    for rank in ranks:
        assert "A flow was asked of a system" in rank["one process only"][1]
    assert len({rank["after all"] for rank in ranks}) == 1
    assert all(rank["a sum that is NaN"] == "[nan, nan]" for rank in ranks)


# -- one process ----------------------------------------------------------------------


def test_one_process_makes_no_difference_between_sums():
    system = make(DATA)
    part = torch.ones(3)
    assert system.all_reduce(part) is part
    assert system.sum_over_ranks(lambda: part, like=part) is part
    assert system.own_l2 == 0.1
    with pytest.raises(ZeroDivisionError):
        system.sum_over_ranks(lambda: part / (1 // 0), like=part)
    with pytest.raises(ZeroDivisionError):
        Ranks().tell(ZeroDivisionError())
    system.check_one_process("A flow")


def test_resident_data_are_probed_by_their_first_examples():
    x, y = classes(1000, 3, 3)
    seen = []

    def loss(outputs, targets):
        seen.append(len(targets))
        return CROSS(outputs, targets)

    system = make((x, y), loss_fn=loss)
    loader = make([(x[:600], y[:600]), (x[600:], y[600:])], loss_fn=loss)
    seen.clear()
    system.check_deterministic()
    assert seen == [8, 8]
    assert system.probe_gradients == pytest.approx(2 * 8 / 1000)
    seen.clear()
    system.check_deterministic()
    assert seen == []
    loader.check_deterministic()
    assert seen == [600, 400, 600, 400]
    assert loader.probe_gradients == 2.0


def test_a_flow_from_a_gradient_beyond_the_probe_that_is_nan_is_refused():
    x, y = classes(100, 3, 3)
    system = make((x, y))
    x[-1] = math.nan  # the constructor would have seen it
    with pytest.raises(InvalidInputError, match="gradient is not finite"):
        system.flow(TIMES)
