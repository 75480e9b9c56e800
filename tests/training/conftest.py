"""Small systems that training is tried on."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dynprune.core import isolated
from dynprune.system import GradientSystem

Data = tuple[Tensor, Tensor]


@pytest.fixture
def data() -> Data:
    """Return 22 examples of three numbers and one target, float64."""
    source = torch.Generator().manual_seed(1)
    x = torch.randn(22, 3, generator=source, dtype=torch.float64)
    return x, torch.randn(22, 1, generator=source, dtype=torch.float64)


@pytest.fixture
def linear(data: Data) -> GradientSystem:
    """Return least squares in three unknowns."""
    with isolated(0):
        net = nn.Linear(3, 1, bias=False).double()
    return GradientSystem(net, nn.functional.mse_loss, data)


@pytest.fixture
def make_net() -> Callable[[], nn.Module]:
    """Return a maker of a net with everything that has a state."""

    def make() -> nn.Module:
        with isolated(0):
            return nn.Sequential(
                nn.Linear(3, 8),
                nn.BatchNorm1d(8),
                nn.Tanh(),
                nn.Dropout(0.3),
                nn.Linear(8, 1),
            ).double()

    return make
