"""Tickets on a GPU: the same zeros, the same exports."""

import pytest
import torch
from torch import nn

from dynprune.tickets import Ticket, reduce, to_sparse

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
    # torch 2.11 says so once a process, although check_invariants=False is passed
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),
]


def problem():
    draw = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        model = nn.Sequential(
            nn.Conv2d(2, 6, 3),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(96, 8),
            nn.Tanh(),
            nn.Linear(8, 3),
        ).double()
    masks = {
        name: torch.rand(part.shape, generator=draw) < 0.1
        for name, part in model.named_parameters()
        if part.ndim > 1
    }
    x = torch.randn(5, 2, 6, 6, generator=draw, dtype=torch.float64)
    made = Ticket.make(
        masks, dict(model.named_parameters()), dict(model.named_buffers())
    )
    return model.cuda().eval(), made, x.cuda()


@pytest.mark.parametrize("fused", [False, True], ids=["foreach", "fused"])
def test_pruned_weights_stay_zero(fused):
    model, made, x = problem()
    optimizer = torch.optim.Adam(
        model.parameters(), lr=0.1, weight_decay=0.1, fused=fused
    )
    with made.enforced(model, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            state = model.state_dict()
            assert not any(state[n][~m.cuda()].any() for n, m in made.masks.items())


@pytest.mark.parametrize("layout", ["csr", "coo"])
def test_sparse_equals_dense(layout):
    model, made, x = problem()
    sparse = to_sparse(made, model, layout=layout).module
    with torch.no_grad():
        torch.testing.assert_close(
            sparse(x), made.to_dense(model)(x), rtol=1e-12, atol=1e-12
        )


def test_units_are_removed():
    model, made, x = problem()
    found = reduce(made, model, example=x[:1])
    assert found.bytes_after < found.bytes_before
    assert next(found.module.parameters()).is_cuda
    with torch.no_grad():
        torch.testing.assert_close(
            found.module(x), made.to_dense(model)(x), rtol=1e-12, atol=1e-12
        )
