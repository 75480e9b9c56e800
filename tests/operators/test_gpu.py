"""Products on a GPU: the same numbers as on the CPU, the user's settings restored."""

import pytest
import torch
from problems import classes, dense_hessian, small_net
from torch import nn

from dynprune.operators import HessianOperator
from dynprune.system import GradientSystem

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]

CROSS = nn.functional.cross_entropy


@pytest.mark.parametrize("route", ["kept", "rebuilt", "batched", "linearised"])
def test_products_equal_the_dense_twin_of_the_cpu(route):
    system = GradientSystem(small_net(), CROSS, classes(13, 3, 3))
    twin = dense_hessian(system, system.state)
    x, y = classes(13, 3, 3)
    there = GradientSystem(small_net().cuda(), CROSS, (x.cuda(), y.cuda()))
    found = HessianOperator(there, route=route).dense().cpu()
    assert torch.allclose(found, twin, rtol=1e-10, atol=1e-12)


def images(device: str, dtype: torch.dtype) -> GradientSystem:
    make = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 5),
        )
    x = torch.randn(16, 3, 8, 8, generator=make, dtype=torch.float64)
    net.to(device=device, dtype=dtype)
    return GradientSystem(net, CROSS, (x.to(dtype).to(device), torch.arange(16) % 5))


def test_float32_convolutions_do_not_lose_bits_to_tf32_unless_asked():
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = (matmul.fp32_precision, conv.fp32_precision)
    system = images("cuda", torch.float32)
    system = system.with_data((system.data[0], system.data[1].cuda()))
    assert HessianOperator(system).rounding_error() < 1e-5  # float32: some 1e-6
    lost = HessianOperator(system, precision="tf32").rounding_error()
    assert lost < 1e-1
    assert (matmul.fp32_precision, conv.fp32_precision) == before


def test_repeated_products_are_the_same_bits():
    system = images("cuda", torch.float32)
    v = torch.ones(system.size, device="cuda")
    first = HessianOperator(system, route="budget") @ v
    assert torch.equal(first, HessianOperator(system, route="budget") @ v)
