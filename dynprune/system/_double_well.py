"""The quartic double well: two minima and the saddle between them."""

import math
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from dynprune.core import InvalidInputError
from dynprune.system._exact import ExactSystem, assemble, finite, number
from dynprune.system._gradient_system import GradientSystem


def double_well(
    start: Tensor | Sequence[float] = (0.05, 1.0),
    *,
    width: float = 1.0,
    depth: float = 0.25,
    stiffness: float = 1.0,
    angle: float = 0.0,
) -> ExactSystem:
    r"""Return a quartic double well in the plane, with its flow.

    With p along the line of the wells, which stands at an angle to the first
    parameter, and q across it,

    .. math:: L = d \, (p^2 / w^2 - 1)^2 + \tfrac{1}{2} \kappa q^2, \qquad
              p(t) = \frac{p_0}{\sqrt{p_0^2/w^2 + (1 - p_0^2/w^2) e^{-2 k t}}},
              \quad q(t) = q_0 e^{-\kappa t}, \quad k = 4d/w^2.

    The Hessian has eigenvalues (−k, κ) at the saddle and (2k, κ) at the minima.

    Args:
        start: θ₀, two numbers.
        width: w > 0, from the saddle to a minimum, in units of the parameters.
        depth: d > 0, loss of the saddle above the minima.
        stiffness: κ > 0, curvature across, loss per parameter².
        angle: Of the line of the wells, in radians.

    Returns:
        The exact system; ``fixed_points`` are the saddle at zero and the minima at
        +w and −w along the line: all there are.

    Raises:
        InvalidInputError: If width, depth or stiffness is not positive, or the start
            is not two finite numbers.

    Example:
        >>> exact = double_well([0.1, 0.0])
        >>> exact.hessian(exact.fixed_points[:, 0])
        tensor([[-1.,  0.],
                [ 0.,  1.]], dtype=torch.float64)
        >>> exact.solution([0.0, 20.0])[0]
        tensor([0.1000, 1.0000], dtype=torch.float64)
    """
    theta = finite("start", start, ndim=1)
    constants = finite("A constant", [width, depth, stiffness, angle], ndim=1)
    if len(theta) != 2 or not bool((constants[:3] > 0).all()):
        raise InvalidInputError(
            f"A start of {len(theta)} numbers, width {width:g}, depth {depth:g} and "
            f"stiffness {stiffness:g} were given. Pass two numbers and positive ones."
        )
    along = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    net = _Well(theta, along, width)

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        squares = (outputs - targets).square().mean(0)
        return depth * squares[0] + 0.5 * stiffness * squares[1]

    data = (torch.ones(1, 1).double(), torch.zeros(1, 2).double())
    system = GradientSystem(net, loss_fn, data).with_state(theta)
    return assemble(
        system,
        fixed_points=torch.stack([0 * along, width * along, -width * along], dim=1),
        **_formulas(theta, along, width, depth, stiffness),
    )


def _formulas(
    theta: Tensor, along: Tensor, width: float, depth: float, stiffness: float
) -> dict[str, Any]:
    import sympy

    names = sympy.symbols("theta_1 theta_2", real=True)
    time = sympy.Symbol("t", real=True)
    c, s = (number(value) for value in along.tolist())
    w, d, kappa = (number(value) for value in (width, depth, stiffness))
    first, second = (number(value) for value in theta.tolist())
    p, q = c * names[0] + s * names[1], c * names[1] - s * names[0]
    p0, q0 = c * first + s * second, c * second - s * first
    part, rate = (p0 / w) ** 2, 4 * d / w**2
    slow = p0 / sympy.sqrt(part + (1 - part) * sympy.exp(-2 * rate * time))
    fast = q0 * sympy.exp(-kappa * time)
    return {
        "parameters": names,
        "time": time,
        "loss": d * (p**2 / w**2 - 1) ** 2 + kappa * q**2 / 2,
        "solution": sympy.Matrix([c * slow - s * fast, s * slow + c * fast]),
    }


@final
class _Well(nn.Module):
    """f = x (p²/w² − 1, q): the first output is a product of tied weights."""

    frame: Tensor

    def __init__(self, theta: Tensor, along: Tensor, width: float) -> None:
        nn.Module.__init__(self)
        self.theta = nn.Parameter(theta.clone())
        across = torch.stack([-along[1], along[0]])
        self.register_buffer("frame", torch.stack([along, across]))
        self.width = float(width)

    def forward(self, x: Tensor) -> Tensor:
        p, q = (self.frame @ self.theta).unbind()
        return x * torch.stack([(p / self.width).square() - 1, q])
