"""Is the nonlinear part Lipschitz? Difference quotients on shrinking steps."""

import torch
from torch import Tensor

from dynprune.core import InvalidInputError
from dynprune.operators import HessianOperator
from dynprune.system import GradientSystem

_FLOOR = 1e3
_LEAST = 6


def difference_quotients(
    system: GradientSystem,
    state: Tensor,
    displacement: Tensor,
    *,
    halvings: int = 30,
) -> Tensor:
    r"""Follow the difference quotient of F into its steepest place on a segment.

    With :math:`F(w) = A w - \nabla L(\theta_* + w)`, :math:`A = H(\theta_*)`, the
    segment from 0 to the displacement is halved again and again, keeping the half
    with the larger

    .. math:: q_j = \|F(b_j) - F(a_j)\| / \|b_j - a_j\| .

    Where F is differentiable q converges to :math:`\|(H - A)e\|` at a point, e the
    direction. Where :math:`\nabla L` jumps (a kink of ReLU) it doubles with every
    halving once the jump is isolated. Computed in float64.

    Args:
        system: The system.
        state: :math:`\theta_*`, shape ``(P,)``.
        displacement: End of the segment, relative to it, shape ``(P,)``, not zero.
        halvings: How often to halve.

    Returns:
        :math:`q_0, q_1, \dots`, float64; ends early where the differences reach the
        rounding of the gradient.

    Raises:
        InvalidInputError: If the displacement is zero or not finite.

    Cost:
        ``halvings + 2`` gradients and one HVP, of the float64 twin.
    """
    length = float(displacement.double().norm())
    if not 0.0 < length < float("inf"):
        raise InvalidInputError(
            f"The displacement has norm {length}. Pass one that is finite and not zero."
        )
    twin = system if system.dtype == torch.float64 else system.double()
    centre, w = state.double(), displacement.double()
    slope = HessianOperator(twin, centre, route="budget") @ (w / length)
    low, high, h = 0.0, 1.0, length
    at_low, at_high = twin.gradient(centre), twin.gradient(centre + w)
    rounding = _FLOOR * torch.finfo(torch.float64).eps
    found: list[float] = []
    change = float((h * slope - (at_high - at_low)).norm())
    for _ in range(halvings + 1):
        largest = max(float(at_low.norm()), float(at_high.norm()), h * slope.norm())
        if change <= rounding * largest:
            break
        found.append(change / h)
        middle, h = 0.5 * (low + high), 0.5 * h
        at_middle = twin.gradient(centre + middle * w)
        left = float((h * slope - (at_middle - at_low)).norm())
        right = float((h * slope - (at_high - at_middle)).norm())
        change = max(left, right)
        if left >= right:
            high, at_high = middle, at_middle
        else:
            low, at_low = middle, at_middle
    return torch.tensor(found, dtype=torch.float64)


def is_smooth(quotients: Tensor) -> bool:
    """Decide whether difference quotients stay bounded as the step shrinks.

    The slope of log2 q against the number of halvings, over the last half of them but
    at least 6, is 0 for a bounded quotient and 1 for a jump; above one half the answer
    is no. Fewer than 6 quotients above rounding show no growth.

    Args:
        quotients: From :func:`difference_quotients`.

    Returns:
        Whether no growth was seen.

    Example:
        >>> is_smooth(torch.ones(20)), is_smooth(2.0 ** torch.arange(20))
        (True, False)
    """
    if len(quotients) < _LEAST:
        return True
    last = quotients[-max(_LEAST, len(quotients) // 2) :].double().log2()
    steps = torch.arange(len(last), dtype=torch.float64)
    steps = steps - steps.mean()
    return bool(steps.dot(last) / steps.dot(steps) <= 0.5)
