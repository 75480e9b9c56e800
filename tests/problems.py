"""Problems with closed forms, shared by the tests of all rooms."""

import itertools

import torch
from torch import Tensor, nn

from dynprune.tasks import Problem


def half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean over examples of the squared error; its Hessian is (2/N) X'X."""
    return (outputs - targets).square().sum(1).mean()


def linear_regression(n: int = 16, d: int = 3, *, seed: int = 0):
    """Return a linear model, data, and the Hessian (2/N) X'X."""
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=make, dtype=torch.float64)
    y = torch.randn(n, 1, generator=make, dtype=torch.float64)
    model = nn.Linear(d, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.randn(1, d, generator=make, dtype=torch.float64))
    return model, (x, y), 2 / n * x.T @ x


def small_net(*, seed: int = 0, widths=(3, 4, 3), activation=nn.Tanh) -> nn.Sequential:
    """Return a float64 network with weights from its own generator."""
    make = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    net = nn.Sequential(*layers[:-1]).double()
    with torch.no_grad():
        for part in net.parameters():
            shape = part.shape
            part.copy_(torch.randn(shape, generator=make, dtype=torch.float64))
    return net


def classes(n: int, d: int, k: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return random inputs and class labels."""
    make = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=make, dtype=torch.float64)
    return x, torch.randint(0, k, (n,), generator=make)


def problem_of(make_model, data, batch_loss) -> Problem:
    """Return a problem whose three parts are the same data."""
    return Problem(
        make_model=lambda _seed: make_model(),
        loss_fn=None,
        train=data,
        validation=data,
        test=data,
        metric=None,
        batch_loss=batch_loss,
    )


def dense_hessian(system, state: Tensor) -> Tensor:
    """Return ∇²L row by row by double backward, batch by batch."""
    theta = state.clone().requires_grad_()
    total = 0.5 * system.l2 * theta.dot(theta)
    for batch in system.batches():
        share = system.weight(batch) / system.examples
        named = system.unflatten(theta)
        total = total + share * system.batch_mean(named, system.buffers, batch)
    (gradient,) = torch.autograd.grad(total, theta, create_graph=True)
    rows = [torch.autograd.grad(g, theta, retain_graph=True)[0] for g in gradient]
    return torch.stack(rows)
