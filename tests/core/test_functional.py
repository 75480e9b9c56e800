"""Calls with other tensors leave a module as it was, however its tensors are tied."""

import copy
import gc
import weakref

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


def chain() -> nn.Sequential:
    return nn.Sequential(*[nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3)]).double()


def tie(net):
    net[2].weight = net[0].weight


def untie(net):
    net[2].weight = nn.Parameter(net[2].weight.detach() + 1.0)


def tie_in_another_module(net):
    other = nn.Linear(3, 3).double()
    other.weight = net[0].weight
    net[2] = other


def tie_in_a_module_of_the_same_address(net):
    del net[2]
    gc.collect()
    net.append(nn.Linear(3, 3).double())
    tie(net)


def tie_where_nothing_was(net):
    net[1].weight = net[0].weight


def tie_by_a_new_module(net):
    net[1].inner = net[2]


def tie_in_a_store_of_its_own(net):
    net[2]._parameters = {**net[2]._parameters, "weight": net[0].weight}


def tie_a_buffer(net):
    net[0].register_buffer("mean", torch.ones(3).double())
    net[2].register_buffer("mean", net[0].mean)


CHANGES = {
    change.__name__: change
    for change in (
        tie,
        tie_in_another_module,
        tie_in_a_module_of_the_same_address,
        tie_where_nothing_was,
        tie_by_a_new_module,
        tie_in_a_store_of_its_own,
        tie_a_buffer,
    )
}


def tensors(net):
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


def places(net):
    """What each module finds at each of its places while a network is called."""
    seen = {}

    def look(module, *_):
        for name, part in net.named_modules(remove_duplicate=False):
            for store in (part._parameters, part._buffers):
                seen.update({f"{name}.{key}": value for key, value in store.items()})

    handle = net.register_forward_pre_hook(look)
    return seen, handle


def check_filled(net):
    """Every place gets the value of its tensor's first name."""
    values = {name: part.detach() + 1.0 for name, part in tensors(net).items()}
    firsts = {id(part): name for name, part in tensors(net).items()}
    wanted = {
        f"{name}.{key}": values[firsts[id(value)]]
        for name, part in net.named_modules(remove_duplicate=False)
        for store in (part._parameters, part._buffers)
        for key, value in store.items()
    }
    seen, handle = places(net)
    before = dict(tensors(net))
    functional_call(net, values, (torch.ones(2, 3, dtype=torch.float64),))
    handle.remove()
    assert {name for name in wanted if seen[name] is not wanted[name]} == set()
    assert all(tensors(net)[name] is part for name, part in before.items())


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_is_tied_after_a_call_is_tied_in_the_next(change):
    net = chain()
    check_filled(net)
    change(net)
    check_filled(net)


def test_what_is_untied_after_a_call_is_not_tied_in_the_next():
    net = chain()
    tie(net)
    check_filled(net)
    untie(net)
    check_filled(net)
    # the value of the other one alone leaves it as it is
    seen, handle = places(net)
    x = torch.ones(2, 3, dtype=torch.float64)
    functional_call(net, {"0.weight": net[0].weight.detach() + 1.0}, (x,))
    handle.remove()
    assert seen["2.weight"] is net[2].weight


def test_ties_are_looked_up_once_while_nothing_changes(monkeypatch):
    from dynprune.core import functional

    count = []
    lookup = functional._places

    def counted(module):
        count.append(module)
        return lookup(module)

    monkeypatch.setattr(functional, "_places", counted)
    net, x = chain(), torch.ones(2, 3, dtype=torch.float64)
    values = dict(net.named_parameters())
    for _ in range(3):
        functional_call(net, values, (x,))
        torch.optim.SGD(net.parameters(), lr=0.1).step()
        net.load_state_dict(net.state_dict())
        net.train(not net.training)
    assert len(count) == 1
    functional_call(copy.deepcopy(net), values, (x,))
    assert len(count) == 2


def test_a_module_that_was_called_can_go():
    class Child(nn.Module):
        def __init__(self, parent):
            nn.Module.__init__(self)
            self.parent = [parent]
            self.inner = nn.Linear(3, 3)

        def forward(self, x):
            return self.inner(x)

    net = nn.Sequential()
    net.append(Child(net))
    functional_call(net, dict(net.named_parameters()), (torch.ones(2, 3),))
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_a_module_whose_tensors_have_hooks_on_it_can_go():
    net = chain()
    net[0].weight.register_hook(lambda slope, net=net: slope)
    values = {name: part.detach() for name, part in net.named_parameters()}
    functional_call(net, values, (torch.ones(2, 3, dtype=torch.float64),))
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


# torch.jit is deprecated and says so
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    "compiled",
    [torch.jit.script, lambda part: torch.jit.trace(part, torch.ones(2, 3))],
    ids=["script", "trace"],
)
def test_a_compiled_part_is_called_with_other_tensors(compiled, monkeypatch):
    from dynprune.core import functional

    inner = compiled(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)).eval())
    net = nn.Sequential(nn.Linear(3, 3), inner).double().eval()
    x = torch.ones(2, 3, dtype=torch.float64)
    values = {name: part.detach() + 1.0 for name, part in net.named_parameters()}
    found = functional_call(net, values, (x,))
    monkeypatch.delattr(functional, "_places")  # nor are ties looked up again
    assert torch.equal(functional_call(net, values, (x,)), found)
    with torch.no_grad():
        for part in net.parameters():
            part += 1.0
    assert torch.equal(found, net(x))
