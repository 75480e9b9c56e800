"""The product of D scalars: the smallest deep network."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dynprune.core import AssumptionError, InvalidInputError, isolated
from dynprune.system._exact import (
    ExactSystem,
    assemble,
    check_size,
    compiled,
    finite,
    half_squares,
    number,
)
from dynprune.system._gradient_system import GradientSystem

_TOLERANCE = 1e-8


def deep_scalar(target: float, start: Tensor | Sequence[float]) -> ExactSystem:
    r"""Return a deep linear network of width one, with its flow from a balanced start.

    .. math:: L(\theta) = \tfrac{1}{2} (\theta_1 \cdots \theta_D - a)^2

    The flow keeps every :math:`\theta_i^2 - \theta_j^2`. From a balanced start, all
    :math:`|\theta_i| = x`, with a product of the sign of a, it is
    :math:`x' = (|a| - x^D) x^{D-1}`. For D = 2 the product is logistic,

    .. math:: x^2(t) = \frac{|a|}{1 + (|a|/x_0^2 - 1) e^{-2|a|t}},

    and for D ≥ 3 the time is explicit: with :math:`r = x / |a|^{1/D} < 1`

    .. math:: |a|^{2-2/D} \, t = \Big[ \tfrac{r^2}{2}
              {}_2F_1(1, \tfrac{2}{D}; 1 + \tfrac{2}{D}; r^D)
              - \tfrac{r^{2-D}}{D-2} \Big]_{r_0}^{r},

    which is inverted by bracketing, without an integrator; for r > 1 the bracket
    holds :math:`\tfrac{r^{2-2D}}{2D-2} {}_2F_1(1, 2-\tfrac{2}{D}; 3-\tfrac{2}{D};
    r^{-D})`.

    Args:
        target: a ≠ 0.
        start: θ₀, D ≥ 2 numbers of one modulus, whose product has the sign of a.

    Returns:
        The exact system, of D layers ``nn.Linear(1, 1)``. ``fixed_points`` are the
        saddle at zero and the minimum with the signs of the start; the other minima
        are all θ whose product is a.

    Raises:
        AssumptionError: If the start is not balanced or its product does not have
            the sign of a; prints the margin.
        InvalidInputError: If numbers are missing or not finite.

    Source:
        Saxe et al., *Exact solutions to the nonlinear dynamics of learning in deep
        linear neural networks*, 2014, arXiv:1312.6120; the hypergeometric form of
        the time is ours.

    Example:
        >>> exact = deep_scalar(1.0, [0.1, 0.1])
        >>> exact.formulas.solution[0]
        1/sqrt(1 + 99*exp(-2*t))
        >>> deep_scalar(1.0, [0.5, 0.5, 0.5]).solution([0.0, 9.0])[0]
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """  # noqa: DOC502 - raised by the parts
    theta = finite("start", start, ndim=1)
    a = float(finite("target", target, ndim=0))
    _check(a, theta)
    depth, signs = len(theta), theta.sign()
    with isolated(0):
        layers = [nn.Linear(1, 1, bias=False).double() for _ in range(depth)]
    x = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    system = GradientSystem(nn.Sequential(*layers), half_squares, (x, a * x))
    end = abs(a) ** (1 / depth)
    return assemble(
        system.with_state(theta),
        fixed_points=torch.stack([0 * theta, end * signs], dim=1),
        **_formulas(a, theta),
    )


def _formulas(a: float, theta: Tensor) -> dict[str, Any]:
    import sympy

    depth, signs = len(theta), [int(sign) for sign in theta.sign().tolist()]
    names = sympy.symbols(f"theta_1:{depth + 1}", real=True)
    time = sympy.Symbol("t", real=True)
    size, x0 = number(abs(a)), number(float(theta.abs().mean()))
    found = {
        "parameters": names,
        "time": time,
        "loss": (sympy.prod(names) - number(a)) ** 2 / 2,
    }
    if depth == 2:
        x = sympy.sqrt(size / (1 + (size / x0**2 - 1) * sympy.exp(-2 * size * time)))
        return found | {"solution": sympy.Matrix([sign * x for sign in signs])}
    r, start = sympy.Symbol("r", positive=True), float(theta.abs().mean())
    ratio = start / abs(a) ** (1 / depth)
    integral = _integral(r, depth, below=ratio < 1)
    time_of = (integral - integral.subs(r, number(ratio))) / abs(a) ** (2 - 2 / depth)
    end = size ** sympy.Rational(1, depth)
    return found | {
        "elapsed": time_of.subs(r, signs[0] * names[0] / end),
        "path": _inverted(compiled((r,), time_of), ratio, float(end), theta.sign()),
    }


def _integral(r: Any, depth: int, *, below: bool) -> Any:
    """Return ∫ dr / ((1 − r^D) r^(D−1)).

    Below 1 the integrand is r^(1−D) + r / (1 − r^D), above it −Σ r^(1−D(k+2)), k ≥ 0;
    both are summed term by term, and 1/(2 + Dk) and 1/(D(k+2) − 2) are ratios of
    rising factorials.
    """
    import sympy

    b = sympy.Rational(2, depth)
    if below:
        series = sympy.hyper((1, b), (1 + b,), r**depth)
        return r**2 * series / 2 - r ** (2 - depth) / (depth - 2)
    series = sympy.hyper((1, 2 - b), (3 - b,), r**-depth)
    return r ** (2 - 2 * depth) * series / (2 * depth - 2)


def _inverted(
    time_of: Callable[[Any], Any], start: float, end: float, signs: Tensor
) -> Callable[[Any], Any]:
    from scipy.optimize import brentq

    # the last float before the fixed point r = 1 is reached at a finite time
    last = float(np.nextafter(1.0, start))
    while not np.isfinite(time_of(last)):
        last = 1.0 + 2.0 * (last - 1.0)

    def ratio(t: float) -> float:
        if t <= 0.0 or start == 1.0:
            return start
        if t >= float(time_of(last)):
            return 1.0
        root = brentq(lambda r: float(time_of(r)) - t, start, last, xtol=1e-15)
        return float(root)

    def path(times: Any) -> Any:
        radii = np.array([ratio(t) * end for t in times.tolist()])
        return signs.numpy()[:, None] * radii

    return path


def _check(a: float, theta: Tensor) -> None:
    depth = len(theta)
    check_size(depth)
    if depth < 2 or a == 0.0:
        raise InvalidInputError(
            f"A product of {depth} scalars with target {a:g} was asked. Pass at least "
            "two numbers and a target that is not zero."
        )
    squares = theta.square()
    spread = float(squares.max() - squares.min())
    if spread > _TOLERANCE * float(squares.max()):
        raise AssumptionError(
            "The closed form holds from a balanced start, all |θ_i| alike; here θ_i² "
            f"spread over {spread:.3g} (margin {_TOLERANCE:g} of their largest, "
            f"{float(squares.max()):.3g}), and the flow keeps that. Start all from one "
            "modulus, or integrate with system.flow."
        )
    product = float(theta.sign().prod())
    if product * a <= 0.0:
        raise AssumptionError(
            f"The start has a product of sign {product:g} and the target is {a:g}: its "
            "flow ends in the saddle at zero, outside the closed form. Change the "
            "sign of one number, or of the target."
        )
