import shutil
import warnings

import pytest
import torch
from problems import classes, dense_hessian, small_net
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, TensorDataset

from dynprune.core import InvalidInputError, NumericalWarning
from dynprune.operators import HessianOperator, _graphs, _hessian, _kernels, _self_check
from dynprune.system import GradientSystem

CROSS = nn.functional.cross_entropy


def system_of(n: int = 13, **arguments) -> GradientSystem:
    return GradientSystem(small_net(), CROSS, classes(n, 3, 3), **arguments)


def images(n: int = 6, *, dtype=torch.float64) -> GradientSystem:
    make = torch.Generator().manual_seed(3)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Softplus(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        ).to(dtype)
    net[1].running_mean.normal_(generator=make)
    net[1].running_var.uniform_(0.5, 2.0, generator=make)
    x = torch.randn(n, 2, 8, 8, generator=make, dtype=torch.float64).to(dtype)
    return GradientSystem(net, CROSS, (x, torch.arange(n) % 3))


@pytest.mark.parametrize(
    "route", ["auto", "budget", "kept", "rebuilt", "batched", "linearised"]
)
def test_routes_make_the_products_of_the_dense_twin(route):
    system = system_of(l2=0.1)
    twin = dense_hessian(system, system.state)
    H = HessianOperator(system, route=route)
    V = torch.randn(system.size, 3, generator=torch.Generator().manual_seed(0)).double()
    for _ in range(2):  # the first product builds, the next ones reuse
        assert torch.allclose(H @ V, twin @ V, rtol=1e-11, atol=1e-13)
        assert torch.allclose(H @ V[:, 0], twin @ V[:, 0], rtol=1e-11, atol=1e-13)
    assert H.plan.kept == (route != "rebuilt")


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_compiled_route_makes_the_same_products():
    system = system_of()
    with warnings.catch_warnings():
        # the compiler's own: not dynprune's to mend
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        H = HessianOperator(system, route="compiled")
        found = H.dense()
    assert torch.allclose(found, dense_hessian(system, system.state), atol=1e-12)


def test_replaced_kernels_and_folded_norms_equal_plain_ones():
    system = images()
    V = torch.randn(system.size, 3, generator=torch.Generator().manual_seed(0)).double()
    plain = _graphs.build(system, system.data, substitute=False, weigh=True)
    lean = _graphs.build(system, system.data, weigh=True)
    assert lean.substituted == {"conv2d", "batch_norm"}
    assert not plain.substituted
    wanted = _graphs.one_by_one(plain)(V)
    assert torch.allclose(_graphs.one_by_one(lean)(V), wanted, rtol=1e-11, atol=1e-14)
    assert torch.allclose(
        _graphs.at_once(lean, columns=2)(V), wanted, rtol=1e-11, atol=1e-14
    )
    assert lean.nbytes < 0.8 * plain.nbytes


def test_a_folded_norm_may_be_changed_in_place():
    net = nn.Sequential(
        nn.Conv2d(2, 3, 1),
        nn.BatchNorm2d(3),
        nn.SiLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ).double()
    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    system = GradientSystem(net, CROSS, (x, torch.tensor([0, 1, 2, 0])))
    H = HessianOperator(system)
    assert H.plan.substitute
    twin = dense_hessian(system, system.state)
    assert torch.allclose(H.dense(), twin, atol=1e-12)


def test_a_convolution_that_is_changed_before_the_norm_is_not_folded():
    net = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(3))
    net.eval()

    class Touched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x):
            y = self.net[0](x)
            y.add_(1.0)
            return self.net[2](y).mean((2, 3))

    net.double()
    x = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    system = GradientSystem(Touched(), CROSS, (x, torch.tensor([0, 1, 2, 0])))
    twin = dense_hessian(system, system.state)
    assert torch.allclose(HessianOperator(system).dense(), twin, atol=1e-12)


def test_a_wrong_kernel_is_found_out_and_its_layer_named(monkeypatch):
    right = _kernels._batch_norm

    def wrong(last, input, mean, var, *rest, **more):
        return right(last, input, mean, 1.01 * var, *rest, **more)

    monkeypatch.setattr(_kernels, "_batch_norm", wrong)
    system = images()
    with pytest.warns(NumericalWarning, match=r"conv2d.*differ.*BatchNorm2d"):
        found = HessianOperator(system).dense()
    H = HessianOperator(system)
    assert not H.plan.substitute
    assert torch.allclose(found, dense_hessian(system, system.state), atol=1e-12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once per model
        assert HessianOperator(system).plan


def test_a_wrong_batched_product_falls_back(monkeypatch):
    def wrong(graph, *, columns):
        return lambda block: 1.001 * _graphs.one_by_one(graph)(block)

    for module in (_self_check, _hessian):
        monkeypatch.setattr(module, "at_once", wrong)
    system = system_of()
    with pytest.warns(NumericalWarning, match=r"at once are not used.*Linear"):
        found = HessianOperator(system, route="batched").dense()
    H = HessianOperator(system, route="batched")
    assert H.plan.way == "kept"
    assert torch.allclose(found, dense_hessian(system, system.state), atol=1e-12)


def test_a_wrong_list_of_operations_falls_back(monkeypatch):
    right = _hessian.traced

    def wrong(graph, *, compiled):
        push = right(graph, compiled=compiled)
        return lambda block: push(block) + 1e-3

    monkeypatch.setattr(_hessian, "traced", wrong)
    system = system_of()
    with pytest.warns(NumericalWarning, match="list of operations are not used"):
        found = HessianOperator(system, route="linearised").dense()
    assert torch.allclose(found, dense_hessian(system, system.state), atol=1e-12)


@pytest.mark.parametrize("fast", ["kept", "batched"])
def test_auto_uses_the_faster_way_of_a_block(monkeypatch, fast):
    timed = []

    def seconds(self, push, block):
        timed.append(block.shape[1])
        cheaper = (block.shape[1] > 1) == (fast == "batched")
        return 1e-3 if cheaper else 1e-2

    used = []
    right = _hessian.at_once
    monkeypatch.setattr(_hessian.HessianOperator, "_seconds", seconds)
    monkeypatch.setattr(
        _hessian, "at_once", lambda *a, **k: used.append(1) or right(*a, **k)
    )
    system = system_of()
    V = torch.eye(system.size).double()[:, :4]
    found = HessianOperator(system) @ V
    assert torch.allclose(found, dense_hessian(system, system.state) @ V, atol=1e-12)
    assert len(used) == (2 if fast == "batched" else 1)  # the race itself makes one
    assert timed
    timed.clear()
    HessianOperator(system) @ V
    assert not timed  # known for this model


def test_budget_is_deterministic_and_never_races(monkeypatch):
    monkeypatch.setattr(
        _hessian.HessianOperator, "_seconds", lambda *_: pytest.fail("stopwatch")
    )
    system = system_of()
    HessianOperator(system, route="budget") @ torch.eye(system.size).double()


@pytest.mark.parametrize("share", [0.3, 0.6])
def test_microbatches_stay_under_the_budget_and_are_exact(share):
    system = images(40, dtype=torch.float32)
    v = torch.randn(system.size, generator=torch.Generator().manual_seed(0))
    whole = peak(lambda: HessianOperator(system, route="rebuilt") @ v)
    budget = int(share * whole)
    H = HessianOperator(system, route="rebuilt", memory_budget=budget)
    assert H.plan.microbatch is not None
    assert H.plan.microbatch < 40
    assert peak(lambda: H @ v) <= budget
    exact = HessianOperator(system.double(), route="kept") @ v.double()
    assert torch.allclose((H @ v).double(), exact, rtol=1e-3, atol=1e-5)


def peak(run) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    now = most = 0
    for event in sorted(
        (
            event
            for event in record.profiler.kineto_results.events()
            if event.name() == "[memory]"
        ),
        key=lambda event: event.start_ns(),
    ):
        now += event.nbytes()
        most = max(most, now)
    return most


def test_a_loader_is_read_once_per_block():
    x, y = classes(13, 3, 3)
    reads = []

    class Counted(TensorDataset):
        def __getitem__(self, index):
            reads.append(index)
            return super().__getitem__(index)

    system = GradientSystem(small_net(), CROSS, DataLoader(Counted(x, y), 5))
    H = HessianOperator(system)
    H @ torch.ones(system.size, 2, dtype=torch.float64)  # decides
    reads.clear()
    H @ torch.ones(system.size, 7, dtype=torch.float64)
    assert len(reads) == 13
    assert not H.plan.kept


def test_what_cannot_be_is_refused():
    system = system_of()
    loader = DataLoader(TensorDataset(*classes(13, 3, 3)), 5)
    with pytest.raises(InvalidInputError, match="fastest"):
        HessianOperator(system, route="fastest")
    with pytest.raises(InvalidInputError, match="fp8"):
        HessianOperator(system, precision="fp8")
    with pytest.raises(InvalidInputError, match="read batch by batch"):
        assert HessianOperator(system.with_data(loader), route="linearised").plan
    need = HessianOperator(system).plan.nbytes
    with pytest.raises(InvalidInputError, match=r"kept.*microbatches of"):
        assert HessianOperator(system, route="kept", memory_budget=need).plan
    with pytest.raises(InvalidInputError, match="one example needs"):
        assert HessianOperator(system, memory_budget=100).plan


def test_memory_that_runs_out_is_said_with_what_would_fit(monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    system = system_of()
    H = HessianOperator(system)
    H.plan  # noqa: B018 - decided before memory is gone
    monkeypatch.setattr(_hessian, "one_by_one", full)
    with pytest.raises(InvalidInputError, match=r"One example needs.*route='rebuilt'"):
        H @ torch.ones(system.size, dtype=torch.float64)


def test_products_that_are_not_finite_name_the_parameter():
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fine = nn.Linear(3, 3)
            self.scale = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            # |s|^1.5 has gradient 0 and second derivative ∞ at 0
            return self.fine(x) + self.scale.abs().pow(1.5)

    x, y = classes(5, 3, 3)
    system = GradientSystem(Root().double(), CROSS, (x, y))
    with pytest.raises(InvalidInputError, match=r"not finite.*'scale'"):
        HessianOperator(system) @ torch.ones(system.size, dtype=torch.float64)


def test_unused_parameters_have_zero_rows_and_a_warning():
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.never = nn.Linear(3, 3), nn.Linear(2, 1)

        def forward(self, x):
            return self.used(x)

    system = GradientSystem(Half().double(), CROSS, classes(5, 3, 3))
    with pytest.warns(NumericalWarning, match=r"never\.weight, never\.bias"):
        dense = HessianOperator(system).dense()
    assert bool((dense[-3:] == 0).all())
    assert bool((dense[:, -3:] == 0).all())
    assert bool((dense[:-3] != 0).any())


def test_the_users_settings_are_as_they_were():
    from torch.backends import cuda

    before = (cuda.flash_sdp_enabled(), cuda.math_sdp_enabled())
    cuda.enable_math_sdp(False)
    try:
        H = HessianOperator(images())
        H @ torch.ones(H.size, dtype=torch.float64)
        assert (cuda.flash_sdp_enabled(), cuda.math_sdp_enabled()) == (before[0], False)
        assert not torch.overrides._get_current_function_mode_stack()
    finally:
        cuda.enable_math_sdp(before[1])


def test_the_accuracy_of_an_arithmetic_is_reported():
    double, single = images(), images(dtype=torch.float32)
    exact = HessianOperator(double).rounding_error()
    native = HessianOperator(single).rounding_error()
    coarse = HessianOperator(single, precision="bf16").rounding_error()
    assert exact < 1e-13  # a few hundred roundings of 2e-16
    assert 1e-9 < native < 1e-4
    assert 1e-4 < coarse < 0.3
