"""Calls with other tensors leave a module as it was, however its tensors are tied."""

import pytest
import torch
from torch import nn

from dynprune.core import functional_call
from dynprune.system import GradientSystem


def tied_and_used_twice() -> nn.Module:
    twice, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.weight = twice.weight
    return nn.Sequential(twice, nn.Tanh(), twice, nn.Tanh(), other).double()


def used_twice() -> nn.Module:
    norm, twice = nn.BatchNorm1d(3), nn.Linear(3, 3)
    return nn.Sequential(twice, norm, twice, norm).double()


@pytest.mark.parametrize("make", [tied_and_used_twice, used_twice])
def test_a_call_leaves_the_module_as_it_was(make):
    net = make().eval()
    before = {
        **dict(net.named_parameters(remove_duplicate=False)),
        **dict(net.named_buffers(remove_duplicate=False)),
    }
    values = {name: part + 1.0 for name, part in net.named_parameters()}
    x = torch.ones(4, 3, dtype=torch.float64)
    found = functional_call(net, values, (x,))
    after = {
        **dict(net.named_parameters(remove_duplicate=False)),
        **dict(net.named_buffers(remove_duplicate=False)),
    }
    assert list(before) == list(after)
    assert all(before[name] is after[name] for name in before)
    with torch.no_grad():
        for part in net.parameters():
            part += 1.0
    assert torch.equal(found, net(x))


@pytest.mark.parametrize("make", [tied_and_used_twice, used_twice])
def test_gradients_of_a_layer_used_twice_are_those_of_autograd(make):
    net = make().eval()
    x, y = torch.eye(3).double(), torch.ones(3, 3).double()
    system = GradientSystem(net, nn.functional.mse_loss, (x, y))
    loss = nn.functional.mse_loss(net(x), y)
    true = torch.autograd.grad(loss, list(net.parameters()))
    wanted = torch.cat([part.reshape(-1) for part in true])
    for _ in range(2):  # the second call sees what the first one left
        assert torch.allclose(system.gradient(), wanted, rtol=1e-12, atol=0.0)
    assert len(list(system.module.parameters())) == len(list(net.parameters()))
