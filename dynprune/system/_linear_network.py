"""The two-layer linear network whose modes are logistic."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dynprune.core import AssumptionError, InvalidInputError, generator, isolated
from dynprune.system._exact import (
    ExactSystem,
    assemble,
    check_size,
    finite,
    half_squares,
    number,
    numbers,
)
from dynprune.system._gradient_system import GradientSystem

# weight of W2 W1 in the matrix whose singular vectors are taken: any number that no
# ratio of singular values is likely to hit
_GENERIC = 0.6180339887498949
# singular values that are zero come out of an SVD as a few eps of the largest
_ZERO = 1e-12


def linear_network(
    data: tuple[Tensor, Tensor], first: Tensor, second: Tensor, *, tol: float = 1e-8
) -> ExactSystem:
    r"""Return a two-layer linear network with its flow, mode by mode logistic.

    .. math:: L = \tfrac{1}{2N} \sum_n |W_2 W_1 x_n - y_n|^2, \qquad
              \Sigma_{yx} = \tfrac{1}{N} \sum_n y_n x_n^\top = U S V^\top

    If (1) the inputs are whitened, :math:`\frac{1}{N} \sum x x^\top = I`, (2) the start
    is balanced, :math:`W_1 W_1^\top = W_2^\top W_2`, and (3) aligned,
    :math:`W_2 W_1 = U \operatorname{diag}(a_0) V^\top` with :math:`a_0 \ge 0`, then
    :math:`W_2 W_1 = U \operatorname{diag}(a(t)) V^\top` for all t, and each mode obeys
    a logistic equation of its own:

    .. math:: a' = 2a(s - a), \qquad
              a(t) = \frac{s}{1 + (s/a_0 - 1) e^{-2st}},

    or :math:`a_0 / (1 + 2 a_0 t)` where s = 0. The layers follow by
    :math:`W_1(t) = W_1(0) V \operatorname{diag}(\sqrt{a/a_0}) V^\top` and
    :math:`W_2(t) = U \operatorname{diag}(\sqrt{a/a_0}) U^\top W_2(0)`. Without any
    one of the three it does not hold.

    Args:
        data: x of shape ``(N, n)`` and y of shape ``(N, m)``.
        first: :math:`W_1` at t = 0, shape ``(h, n)``.
        second: :math:`W_2` at t = 0, shape ``(m, h)``.
        tol: Largest relative margin by which each hypothesis may fail.

    Returns:
        The exact system, of two layers ``nn.Linear``; at most 64 weights.
        ``fixed_points`` are those in the frame of the start: each mode that is not
        zero at 0 or learnt (zeros of the whole gradient are rotations of them).

    Raises:
        AssumptionError: If the inputs are not whitened, or the start not balanced or
            not aligned; prints the margin.
        InvalidInputError: If shapes do not fit or numbers are not finite.

    Source:
        Saxe, McClelland, Ganguli, *Exact solutions to the nonlinear dynamics of
        learning in deep linear neural networks*, 2014, arXiv:1312.6120.

    Example:
        >>> data, first, second = aligned_start([2.0, 1.0], strengths=0.5)
        >>> exact = linear_network(data, first, second)
        >>> late = exact.system.unflatten(exact.solution([30.0])[:, 0])
        >>> torch.linalg.svdvals(late["1.weight"] @ late["0.weight"])
        tensor([2.0000, 1.0000], dtype=torch.float64)
    """  # noqa: DOC502 - raised by the parts
    x, y = (finite("data", part, ndim=2) for part in data)
    W1, W2 = finite("first", first, ndim=2), finite("second", second, ndim=2)
    _check_shapes(x, y, W1, W2)
    correlation = y.T @ x / len(x)
    _check_start(x, W1, W2, tol=tol)
    U, values, V, strengths = _modes(correlation, W2 @ W1, tol=tol)
    with isolated(0):
        net = nn.Sequential(
            nn.Linear(W1.shape[1], W1.shape[0], bias=False),
            nn.Linear(W2.shape[1], W2.shape[0], bias=False),
        ).double()
    theta = torch.cat([W1.reshape(-1), W2.reshape(-1)])
    system = GradientSystem(net, half_squares, (x, y)).with_state(theta)
    offset = 0.5 * float(y.square().sum() / len(y) - correlation.square().sum())
    return assemble(
        system,
        fixed_points=_fixed_points(W1, W2, U, values, V, strengths),
        **_formulas(W1, W2, U, values, V, strengths, correlation, offset),
    )


def aligned_start(
    singular_values: Sequence[float],
    *,
    strengths: float | Sequence[float] = 0.05,
    widths: tuple[int, int, int] | None = None,
    examples: int | None = None,
    seed: int = 0,
) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
    r"""Draw data and a start that satisfy the hypotheses of :func:`linear_network`.

    With U, V and R orthonormal at random, :math:`y = U S V^\top x`,
    :math:`W_1 = R \operatorname{diag}(\sqrt{a_0}) V^\top` and
    :math:`W_2 = U \operatorname{diag}(\sqrt{a_0}) R^\top`.

    Args:
        singular_values: s ≥ 0, r numbers.
        strengths: :math:`a_0` ≥ 0, one number or r.
        widths: Inputs, hidden units and outputs, each ≥ r; ``(r + 1, r, r)`` by
            default.
        examples: N ≥ number of inputs; four times that by default.
        seed: What the frames and inputs start from.

    Returns:
        ``((x, y), first, second)``, the arguments of :func:`linear_network`.

    Raises:
        InvalidInputError: If a number is negative or a width too small.

    Example:
        >>> (x, y), first, second = aligned_start([3.0, 1.0])
        >>> x.shape, y.shape, first.shape, second.shape
        (torch.Size([12, 3]), torch.Size([12, 2]), torch.Size([2, 3]), torch.Size([2, 2]))
    """  # noqa: E501
    s = finite("singular_values", singular_values, ndim=1)
    start = torch.as_tensor(strengths, dtype=torch.float64)
    r = len(s)
    fan_in, hidden, fan_out = (r + 1, r, r) if widths is None else widths
    count = 4 * fan_in if examples is None else examples
    if start.ndim > 1 or (start.ndim == 1 and len(start) != r):
        raise InvalidInputError(
            f"Strengths of shape {tuple(start.shape)} were given for {r} modes. Pass "
            "one number, or one for each mode."
        )
    if bool((s < 0).any()) or not bool((start >= 0).all()):
        raise InvalidInputError(
            f"Singular values {s.tolist()} and strengths {start.tolist()} must not be "
            "negative."
        )
    if min(fan_in, hidden, fan_out) < r or count < fan_in:
        raise InvalidInputError(
            f"{r} modes do not fit widths {(fan_in, hidden, fan_out)} with {count} "
            f"examples. Pass widths ≥ {r} and examples ≥ the number of inputs."
        )
    make = generator(seed)

    def frame(rows: int, columns: int) -> Tensor:
        drawn = torch.randn(rows, columns, generator=make, dtype=torch.float64)
        basis: Tensor = torch.linalg.qr(drawn).Q
        return basis

    x = count**0.5 * frame(count, fan_in)
    U, R, V = frame(fan_out, r), frame(hidden, r), frame(fan_in, r)
    root = start.sqrt()
    return (x, x @ (V * s) @ U.T), R * root @ V.T, U * root @ R.T


def _modes(
    correlation: Tensor, product: Tensor, *, tol: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # U, s, V, a₀ with Σ_yx = U diag(s) V' and W2 W1 = U diag(a₀) V'. Where both have
    # the same singular vectors, so has a generic positive combination, and its vectors
    # are right even where the values of one of the two are multiple.
    parts = [part / max(float(part.norm()), 1e-300) for part in (correlation, product)]
    U, _, Vh = torch.linalg.svd(parts[0] + _GENERIC * parts[1], full_matrices=False)
    V = Vh.T
    values = (U.T @ correlation @ V).diagonal().clone()
    strengths = (U.T @ product @ V).diagonal().clone()
    _check_aligned("Σ_yx", correlation, U * values @ V.T, values, tol=tol)
    _check_aligned("W2 W1", product, U * strengths @ V.T, strengths, tol=tol)
    for part in (values, strengths):
        part[part <= _ZERO * float(part.abs().max())] = 0.0
    return U, values, V, strengths


def _formulas(
    W1: Tensor,
    W2: Tensor,
    U: Tensor,
    values: Tensor,
    V: Tensor,
    strengths: Tensor,
    correlation: Tensor,
    offset: float,
) -> dict[str, Any]:
    import sympy

    def symbols(name: str, shape: tuple[int, ...]) -> Any:
        return sympy.Matrix(
            *shape, lambda i, j: sympy.Symbol(f"{name}_{i + 1}_{j + 1}", real=True)
        )

    first, second = symbols("W1", tuple(W1.shape)), symbols("W2", tuple(W2.shape))
    time = sympy.Symbol("t", real=True)
    error = second * first - numbers(correlation)
    growth = sympy.diag(
        *(
            _growth(number(s), number(a), time)
            for s, a in zip(values.tolist(), strengths.tolist(), strict=True)
        )
    )
    right = numbers(W1 @ V) * growth * numbers(V).T
    left = numbers(U) * growth * numbers(U.T @ W2)
    return {
        "parameters": (*first, *second),
        "time": time,
        "loss": sum(part**2 for part in error) / 2 + number(offset),
        "solution": sympy.Matrix([*right, *left]),
    }


def _growth(s: Any, a: Any, time: Any) -> Any:
    """Return sqrt(a(t) / a₀), written so that nothing overflows at late times."""
    import sympy

    if s == 0:
        return 1 / sympy.sqrt(1 + 2 * a * time)
    return sympy.sqrt(s / (a + (s - a) * sympy.exp(-2 * s * time)))


def _fixed_points(
    W1: Tensor, W2: Tensor, U: Tensor, values: Tensor, V: Tensor, strengths: Tensor
) -> Tensor:
    alive = strengths > 0
    free = torch.nonzero(alive & (values > 0)).reshape(-1).tolist()
    columns = []
    for code in range(2 ** len(free)):
        ratio = torch.zeros_like(values)
        for bit, mode in enumerate(free):
            if code >> bit & 1:
                ratio[mode] = (values[mode] / strengths[mode]).sqrt()
        ends = W1 @ (V * ratio) @ V.T, (U * ratio) @ U.T @ W2
        columns.append(torch.cat([part.reshape(-1) for part in ends]))
    return torch.stack(columns, dim=1)


def _check_shapes(x: Tensor, y: Tensor, W1: Tensor, W2: Tensor) -> None:
    good = len(x) == len(y) and W1.shape[1] == x.shape[1]
    if not good or W2.shape != (y.shape[1], W1.shape[0]):
        raise InvalidInputError(
            f"x {tuple(x.shape)}, y {tuple(y.shape)}, first {tuple(W1.shape)} and "
            f"second {tuple(W2.shape)} do not fit. Pass (N, n), (N, m), (h, n), (m, h)."
        )
    check_size(W1.numel() + W2.numel())


def _check_start(x: Tensor, W1: Tensor, W2: Tensor, *, tol: float) -> None:
    eye = torch.eye(x.shape[1], dtype=torch.float64)
    margin = float(torch.linalg.matrix_norm(x.T @ x / len(x) - eye, 2))
    if margin > tol:
        raise AssumptionError(
            "The logistic law needs whitened inputs; here |X'X/N − I| is "
            f"{margin:.3g} (margin {tol:g}). Whiten x, or integrate with system.flow."
        )
    scale = max(float(W1.square().sum()), float(W2.square().sum()), 1e-300)
    margin = float((W1 @ W1.T - W2.T @ W2).norm()) / scale
    if margin > tol:
        raise AssumptionError(
            "The logistic law needs a balanced start; here |W1 W1' − W2' W2| is "
            f"{margin:.3g} of |W|² (margin {tol:g}), and the flow keeps that "
            "difference. Start from aligned_start(...), or integrate with system.flow."
        )


def _check_aligned(
    what: str, matrix: Tensor, in_frame: Tensor, found: Tensor, *, tol: float
) -> None:
    scale = max(float(matrix.norm()), 1e-300)
    margin = float((matrix - in_frame).norm()) / scale
    if margin > tol:
        raise AssumptionError(
            "The logistic law needs a start W2 W1 aligned with Σ_yx, of the same "
            f"singular vectors; {what} is off a common frame by {margin:.3g} (margin "
            f"{tol:g}). Start from aligned_start(...), or integrate with system.flow."
        )
    if float(found.min()) < -tol * scale:
        raise AssumptionError(
            "The logistic law needs a start W2 W1 aligned with Σ_yx, signs included; a "
            f"mode of {what} has strength {float(found.min()):.3g} (margin "
            f"{-tol * scale:.3g}) and ends in a saddle. Flip its singular vector."
        )
