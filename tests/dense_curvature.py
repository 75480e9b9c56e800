"""Dense twins, row by row by plain reverse passes, of what operators multiply with."""

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def rows(values: Tensor, theta: Tensor) -> Tensor:
    """Return ∂values/∂θ, shape (m, P)."""
    found = [
        torch.autograd.grad(value, theta, retain_graph=True, allow_unused=True)[0]
        for value in values.reshape(-1)
    ]
    return torch.stack([torch.zeros_like(theta) if g is None else g for g in found])


def output_vector(system, theta: Tensor, batch) -> Tensor:
    """Return the network's outputs on a batch as a vector, leaf by leaf."""
    named = system.unflatten(theta)
    outputs = system.forward(named, system.buffers, batch[0])
    tensors = [leaf for leaf in pytree.tree_leaves(outputs) if torch.is_tensor(leaf)]
    return torch.cat([leaf.reshape(-1) for leaf in tensors if leaf.requires_grad])


def output_jacobian(system) -> Tensor:
    """Return J of all outputs, in the order of the data, shape (N C, P)."""
    theta = system.state.requires_grad_()
    return torch.cat([
        rows(output_vector(system, theta, batch), theta) for batch in system.batches()
    ])


def dense_gauss_newton(system) -> Tensor:
    """Return Σ_b (w_b/W) J_b' ∇²ℓ_b J_b + l2 I, for outputs that are one tensor."""
    theta = system.state.requires_grad_()
    total = system.l2 * torch.eye(system.size, dtype=system.dtype)
    for batch in system.batches():
        named = system.unflatten(theta)
        outputs = system.forward(named, system.buffers, batch[0])
        J = rows(outputs, theta)
        point = outputs.detach().requires_grad_()
        loss = system.loss_fn(point, batch[1])
        (slope,) = torch.autograd.grad(loss, point, create_graph=True)
        if slope.requires_grad:
            bend = rows(slope, point).reshape(point.numel(), -1)
            total = total + system.weight(batch) / system.examples * J.T @ bend @ J
    return total


def dense_residual(system) -> Tensor:
    """Return Σ_b (w_b/W) Σ_c ∂ℓ/∂f_c ∇²f_c, each ∇²f_c by double backward."""
    theta = system.state.requires_grad_()
    total = torch.zeros(system.size, system.size, dtype=system.dtype)
    for batch in system.batches():
        outputs = output_vector(system, theta, batch)
        point = outputs.detach().requires_grad_()
        named = system.unflatten(theta)
        shape = system.forward(named, system.buffers, batch[0]).shape
        loss = system.loss_fn(point.reshape(shape), batch[1])
        (slope,) = torch.autograd.grad(loss, point)
        share = system.weight(batch) / system.examples
        for weight, output in zip(slope, outputs, strict=True):
            (g,) = torch.autograd.grad(output, theta, create_graph=True)
            if g.requires_grad:
                total = total + share * weight * rows(g, theta)
    return total


def example_gradients(system) -> tuple[Tensor, Tensor]:
    """Return the gradients of the losses of single examples, (N, P), and weights."""
    theta = system.state.requires_grad_()
    found, weights = [], []
    for batch in system.batches():
        leaves = [leaf for leaf in pytree.tree_leaves(batch) if torch.is_tensor(leaf)]
        for index in range(len(leaves[-1])):
            one = pytree.tree_map(lambda leaf, i=index: leaf[i : i + 1], batch)
            named = system.unflatten(theta)
            loss = system.batch_mean(named, system.buffers, one)
            found.append(torch.autograd.grad(loss, theta)[0])
            weights.append(system.weight(one))
    return torch.stack(found), torch.tensor(weights, dtype=system.dtype)
