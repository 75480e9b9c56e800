"""A captured step on a CPU: the graph is a stand-in that calls the function again.

What CUDA itself does is tested in test_gpu.py.
"""

import pytest
import torch
from problems import small_net
from torch import nn

from dynprune.core import InvalidInputError
from dynprune.system import GradientSystem
from dynprune.training import Recipe, _captured, train
from dynprune.training._captured import Captured

CROSS = nn.functional.cross_entropy


@pytest.fixture
def calls(monkeypatch):
    """Stand-in for the recording; counts what it was asked for."""
    found = []

    def recorded(function, *, device):
        for _ in range(3):
            function()
        result = function()
        parameters = found[0]["parameters"]
        slopes = [part.grad for part in parameters]

        def replay():
            found.append("replay")
            value = function()
            result.copy_(value)
            for slope, part in zip(slopes, parameters, strict=True):
                slope.copy_(part.grad)

        found.append("record")
        return replay, result

    monkeypatch.setattr(_captured, "recorded", recorded)
    return found


def net():
    first, last = small_net(widths=(4, 5))[0], small_net(widths=(5, 3), seed=1)[0]
    return nn.Sequential(first, nn.BatchNorm1d(5).double(), nn.Tanh(), last)


def captured(model, found):
    parameters = list(model.parameters())

    def gradient(batch):
        for part in parameters:
            part.grad = None
        loss = CROSS(model(batch[0]), batch[1])
        loss.backward()
        return loss.detach()

    made = Captured.__new__(Captured)
    device = torch.device("cuda")
    Captured.__init__(
        made,
        gradient,
        parameters=parameters,
        buffers=list(model.buffers()),
        device=device,
    )
    found.append({"parameters": parameters})
    return made, gradient, parameters


def batches():
    draw = torch.Generator().manual_seed(1)
    sizes = [3, 6, 6, 6, 2, 6, 6, 2, 2, 6]
    return [
        (
            torch.randn(size, 4, generator=draw, dtype=torch.float64),
            torch.randint(0, 3, (size,), generator=draw),
        )
        for size in sizes
    ]


def test_gradients_losses_and_buffers_are_those_without_recording(calls):
    model, twin = net(), net()
    made, _, parameters = captured(model, calls)
    losses = []
    for batch in batches():
        losses.append(made(batch))
        twin.zero_grad()
        loss = CROSS(twin(batch[0]), batch[1])
        loss.backward()
        assert torch.equal(losses[-1], loss.detach())
        for mine, other in zip(parameters, twin.parameters(), strict=True):
            assert torch.equal(mine.grad, other.grad)
        state = twin.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert len({float(loss) for loss in losses}) == len(losses)  # none overwritten


def test_the_first_shape_that_repeats_is_recorded_once(calls):
    made, _, _ = captured(net(), calls)
    for batch in batches():
        made(batch)
    # sizes 3, 6, 6*, 6*, 2, 6*, 6*, 2, 2, 6*: recorded at the first star
    assert calls[1:] == ["record", *["replay"] * 5]


def test_a_batch_is_not_changed(calls):
    made, _, _ = captured(net(), calls)
    given = batches()
    kept = [(x.clone(), y.clone()) for x, y in given]
    for batch in given:
        made(batch)
    for (x, y), (x0, y0) in zip(given, kept, strict=True):
        assert torch.equal(x, x0)
        assert torch.equal(y, y0)


def test_what_cannot_be_recorded_is_an_error_and_leaves_the_buffers(monkeypatch):
    def recorded(function, *, device):
        function()
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(_captured, "recorded", recorded)
    found = []
    model = net()
    made, _, _ = captured(model, found)
    first, second = batches()[1:3]
    made(first)
    kept = [part.clone() for part in model.buffers()]
    with pytest.raises(InvalidInputError, match=r"capture=True.*not permitted"):
        made(second)
    assert all(map(torch.equal, model.buffers(), kept))


@pytest.mark.parametrize("how", ["train", "recipe"])
def test_a_cpu_is_refused(how):
    model = net()
    x = torch.zeros(4, 4, dtype=torch.float64)
    system = GradientSystem(model, CROSS, (x, torch.zeros(4, dtype=torch.int64)))

    def sgd(parameters):
        return torch.optim.SGD(parameters, lr=0.1)

    def ask():
        if how == "train":
            return train(system, sgd, steps=1, capture=True)
        return Recipe(sgd, steps=1, capture=True)(system)

    with pytest.raises(InvalidInputError, match="only a GPU"):
        ask()
