"""The whole spectrum of a small Hessian, by LAPACK in float64."""

import torch
from _models import Case
from torch import Tensor


def dense(case: Case) -> Tensor:
    """Return the Hessian row by row from plain double backward, float64, (P, P)."""
    twin = case.to(torch.float64)
    rows = torch.zeros(twin.size, twin.size, dtype=torch.float64)
    unit = torch.zeros(twin.size, dtype=torch.float64)
    for x, y in twin.batches:
        value = twin.loss(twin.model(x), y) / len(twin.batches)
        grads = torch.autograd.grad(value, twin.parameters, create_graph=True)
        flat = torch.cat([part.reshape(-1) for part in grads])
        for i, row in enumerate(rows):
            unit[i] = 1.0
            parts = torch.autograd.grad(flat, twin.parameters, unit, retain_graph=True)
            row += torch.cat([part.reshape(-1) for part in parts])
            unit[i] = 0.0
    return 0.5 * (rows + rows.T)


def spectrum(case: Case) -> Tensor:
    """Return all eigenvalues, descending."""
    return torch.linalg.eigvalsh(dense(case)).flip(0)
