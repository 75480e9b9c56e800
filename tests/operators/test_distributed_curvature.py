"""Gauss-Newton, residual and empirical Fisher over ranks with unequal shards."""

import torch
import torch.distributed as dist
from dense_curvature import dense_gauss_newton, dense_residual, example_gradients
from problems import classes, small_net
from ranks import run
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune.core import InvalidInputError
from dynprune.operators import (
    EmpiricalFisherOperator,
    GaussNewtonOperator,
    NTKOperator,
    ResidualOperator,
)
from dynprune.system import GradientSystem

CROSS = nn.functional.cross_entropy
DATA = classes(16, 3, 3)


def make(data, **changes):
    return GradientSystem(small_net(), CROSS, data, l2=0.05, **changes)


def vectors():
    make = torch.Generator().manual_seed(3)
    return torch.randn(31, 3, generator=make, dtype=torch.float64)


def job(rank, count):
    x, y = (part.split((5, 11))[rank] for part in DATA)
    data = DataLoader(TensorDataset(x, y), 2) if rank else (x, y)
    system, V = make(data, process_group=dist.group.WORLD), vectors()
    kinds = GaussNewtonOperator, ResidualOperator, EmpiricalFisherOperator
    found = {kind.__name__: (kind(system) @ V).tolist() for kind in kinds}
    try:
        NTKOperator(system)
    except InvalidInputError as error:
        found["refused"] = str(error)
    return found


def test_products_have_the_numbers_of_one_process(tmp_path):
    system, V = make(DATA), vectors()
    g, _ = example_gradients(system)
    wanted = {
        "GaussNewtonOperator": dense_gauss_newton(system) @ V,
        "ResidualOperator": dense_residual(system) @ V,
        "EmpiricalFisherOperator": g.T @ g @ V / 16,
    }
    (ranks,) = run(tmp_path, (job, 2))
    for name, product in wanted.items():
        assert ranks[0][name] == ranks[1][name]
        found = torch.tensor(ranks[0][name], dtype=torch.float64)
        assert torch.allclose(found, product, rtol=1e-11, atol=1e-13), name
    assert all("NTKOperator was asked" in found["refused"] for found in ranks)
