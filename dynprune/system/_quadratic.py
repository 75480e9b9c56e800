"""The quadratic loss, whose flow is a matrix exponential."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from dynprune.core import AssumptionError, InvalidInputError
from dynprune.system._exact import (
    ExactSystem,
    assemble,
    check_size,
    finite,
    number,
    numbers,
)
from dynprune.system._gradient_system import GradientSystem


def quadratic(
    matrix: Tensor | Sequence[Sequence[float]],
    start: Tensor | Sequence[float],
    *,
    fixed_point: Tensor | Sequence[float] | None = None,
    offset: float = 0.0,
) -> ExactSystem:
    r"""Return the quadratic loss of a symmetric matrix, with its flow.

    .. math:: L(\theta) = \tfrac{1}{2} (\theta - \theta^*)^\top A (\theta - \theta^*)
              + c, \qquad \theta(t) = \theta^* + e^{-At} (\theta_0 - \theta^*)

    The system is a linear network :math:`f_n = x_n \cdot (\theta - \theta^*)` with
    the loss :math:`\tfrac{1}{2} y_n f_n^2 + c` on P examples: x are the scaled
    eigenvectors of A and y = ±1 the signs of its eigenvalues. So f is affine in θ,
    and the Gauss–Newton matrix is the Hessian A.

    Args:
        matrix: A, shape ``(P, P)``, symmetric, P ≤ 64; indefinite and singular ones
            are allowed.
        start: θ₀, shape ``(P,)``.
        fixed_point: θ*, shape ``(P,)``; zero by default. It is the one fixed point
            unless A is singular: then θ* + ker A are all of them.
        offset: c, in units of the loss.

    Returns:
        The exact system; gradient descent has the multipliers 1 − ηλ.

    Raises:
        AssumptionError: If A is not symmetric; says by how much.
        InvalidInputError: If shapes do not fit or numbers are not finite.

    Example:
        >>> exact = quadratic([[2.0, 0.0], [0.0, 1.0]], [1.0, 1.0])
        >>> exact.formulas.solution.T
        Matrix([[exp(-2*t), exp(-t)]])
        >>> exact.system.gradient()
        tensor([2.0000, 1.0000], dtype=torch.float64)
    """  # noqa: DOC502 - raised by the parts
    A = finite("matrix", matrix, ndim=2)
    theta = finite("start", start, ndim=1)
    centre = torch.zeros_like(theta)
    if fixed_point is not None:
        centre = finite("fixed_point", fixed_point, ndim=1)
    constant = float(finite("offset", offset, ndim=0))
    _check(A, theta, centre)
    A = 0.5 * (A + A.T)
    values, Q = torch.linalg.eigh(A)
    root = (len(A) * values.abs()).sqrt()
    signs = torch.where(values < 0, -1.0, 1.0).double()

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * (targets * outputs.square()).mean() + constant

    data = (root[:, None] * Q.T, signs)
    system = GradientSystem(_Affine(theta, centre), loss_fn, data).with_state(theta)
    return assemble(
        system,
        fixed_points=centre[:, None],
        **_formulas(A, values, Q, theta, centre, constant),
    )


def _formulas(
    A: Tensor, values: Tensor, Q: Tensor, theta: Tensor, centre: Tensor, offset: float
) -> dict[str, Any]:
    import sympy

    names = sympy.symbols(f"theta_1:{len(A) + 1}", real=True)
    time = sympy.Symbol("t", real=True)
    away = sympy.Matrix(names) - numbers(centre)
    # entry (i, j) of Q diag(Q'(θ₀ − θ*)): how much of mode j coordinate i carries
    shares = numbers(Q * (Q.T @ (theta - centre)))
    decay = sympy.Matrix([
        sympy.exp(-number(value) * time) for value in values.tolist()
    ])
    return {
        "parameters": names,
        "time": time,
        "loss": (away.T * numbers(A) * away)[0] / 2 + number(offset),
        "solution": numbers(centre) + shares * decay,
    }


def _check(A: Tensor, theta: Tensor, centre: Tensor) -> None:
    size = len(A)
    if A.shape != (size, size) or len(theta) != size or len(centre) != size:
        raise InvalidInputError(
            f"A matrix of shape {tuple(A.shape)}, a start of {len(theta)} and a fixed "
            f"point of {len(centre)} numbers were given. Pass (P, P), P and P."
        )
    check_size(size)
    skew, scale = float((A - A.T).abs().max()), float(A.abs().max())
    if skew > 1e-12 * scale:
        raise AssumptionError(
            f"A gradient flow needs a symmetric matrix; |A − A'| reaches {skew:.3g} "
            f"where |A| reaches {scale:.3g}. Pass 0.5 * (A + A.T)."
        )


@final
class _Affine(nn.Module):
    """f = x · (θ − θ*)."""

    centre: Tensor

    def __init__(self, theta: Tensor, centre: Tensor) -> None:
        nn.Module.__init__(self)
        self.theta = nn.Parameter(theta.clone())
        self.register_buffer("centre", centre.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.theta - self.centre)
