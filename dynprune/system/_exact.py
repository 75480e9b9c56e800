"""A gradient system beside its own closed form: formulas by SymPy, and their values."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from torch import Tensor

from dynprune.core import InvalidInputError, Snapshots, Square, Vector
from dynprune.system._gradient_system import GradientSystem

if TYPE_CHECKING:
    from sympy import Expr, Matrix, Symbol

_MOST = 64


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Formulas:
    """SymPy expressions of an exactly solvable gradient system.

    Numbers that are fractions with a denominator up to 1000 are exact rationals,
    others floats of 53 bits.

    Args:
        parameters: One symbol for each coordinate, in the order of the system's
            state.
        time: The symbol t.
        loss: L.
        gradient: ∇L, shape ``(P, 1)``.
        hessian: ∇²L, shape ``(P, P)``.
        solution: θ(t) from the system's start, shape ``(P, 1)``; None where only t
            is an explicit function of θ.
        elapsed: That function: the time t at which the first parameter is reached;
            None where ``solution`` is explicit.
    """

    parameters: "tuple[Symbol, ...]"
    time: "Symbol"
    loss: "Expr"
    gradient: "Matrix"
    hessian: "Matrix"
    solution: "Matrix | None"
    elapsed: "Expr | None" = None

    def __repr__(self) -> str:
        """Return one line."""
        return f"Formulas(L = {str(self.loss)[:60]}, P={len(self.parameters)})"


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class ExactSystem:
    r"""A gradient system whose flow θ' = −∇L(θ) is known in closed form.

    ``system`` is an ordinary :class:`GradientSystem`: a small network, a loss, and
    data. The methods here never call it; they evaluate the SymPy formulas in
    float64, so that each is an independent check of the other.

    Args:
        system: Model + loss + data with exactly the loss of ``formulas``, at the
            start θ₀ of the solution.
        formulas: The closed forms.
        fixed_points: Zeros of the gradient, shape ``(P, n)``; the function that made
            the system says which.
        path: Times ``(T,)`` to states ``(P, T)``, as arrays.
    """

    system: GradientSystem
    formulas: Formulas
    fixed_points: Tensor
    path: Callable[[Any], Any]

    def loss(self, state: Vector) -> Tensor:
        """Return L at a state, from its formula.

        Args:
            state: Coordinates, shape ``(P,)``.

        Returns:
            A 0-d tensor, float64.
        """
        return self._at(self.formulas.loss, state).reshape(())

    def gradient(self, state: Vector) -> Vector:
        """Return ∇L at a state, from its formula.

        Args:
            state: Coordinates, shape ``(P,)``.

        Returns:
            Loss per parameter, shape ``(P,)``, float64.
        """
        return self._at(self.formulas.gradient, state).reshape(-1)

    def hessian(self, state: Vector) -> Square:
        """Return ∇²L at a state, from its formula.

        Args:
            state: Coordinates, shape ``(P,)``.

        Returns:
            Loss per parameter², shape ``(P, P)``, float64.
        """
        return self._at(self.formulas.hessian, state)

    def solution(self, times: Sequence[float] | Tensor) -> Snapshots:
        """Return the states θ(t) of the flow that starts at the system's state.

        Args:
            times: T times ≥ 0, in any order; the start is at t = 0.

        Returns:
            States, shape ``(P, T)``, float64.

        Raises:
            InvalidInputError: For a negative time, or one at which an unstable mode
                has left the range of float64.
        """
        grid = torch.as_tensor(times, dtype=torch.float64).cpu()
        if grid.ndim != 1 or not len(grid) or not bool((grid >= 0).all()):
            raise InvalidInputError(
                f"A solution was asked at times {grid.tolist()}. Pass a list of "
                "numbers ≥ 0."
            )
        with np.errstate(over="ignore", invalid="ignore"):
            states = torch.as_tensor(self.path(grid.numpy()))
        if not bool(torch.isfinite(states).all()):
            first = float(grid[~torch.isfinite(states).all(0)].min())
            raise InvalidInputError(
                f"The closed form at t = {first:g} is beyond float64: an unstable mode "
                "grows exponentially. Ask for a shorter time."
            )
        return states

    def _at(self, expression: Any, state: Vector) -> Tensor:
        if state.shape != (self.system.size,):
            raise InvalidInputError(
                f"A state of shape {tuple(state.shape)} was given, the system has "
                f"({self.system.size},)."
            )
        values = compiled(self.formulas.parameters, expression)
        return torch.as_tensor(values(*state.detach().cpu().double().tolist()))

    def __repr__(self) -> str:
        """Return one line."""
        return f"ExactSystem({self.formulas!r}, {self.fixed_points.shape[1]} fixed)"


def assemble(
    system: GradientSystem,
    *,
    parameters: Sequence[Any],
    time: Any,
    loss: Any,
    fixed_points: Tensor,
    solution: Any = None,
    elapsed: Any = None,
    path: Callable[[Any], Any] | None = None,
) -> ExactSystem:
    """Differentiate a loss twice and put a closed form together.

    Args:
        system: At its start, with the same loss.
        parameters: Symbols in the order of the state.
        time: The symbol t.
        loss: L as an expression.
        fixed_points: Shape ``(P, n)``.
        solution: θ(t), or None.
        elapsed: t as a function of the first parameter, or None.
        path: Times to states; from ``solution`` by default.

    Returns:
        The exact system.
    """
    import sympy

    gradient = sympy.Matrix([loss.diff(part) for part in parameters])
    hessian = sympy.zeros(len(parameters))
    for i, row in enumerate(gradient):
        for j in range(i, len(parameters)):
            hessian[i, j] = hessian[j, i] = row.diff(parameters[j])
    formulas = Formulas(
        parameters=tuple(parameters),
        time=time,
        loss=loss,
        gradient=gradient.as_immutable(),
        hessian=hessian.as_immutable(),
        solution=None if solution is None else solution.as_immutable(),
        elapsed=elapsed,
    )
    return ExactSystem(
        system=system,
        formulas=formulas,
        fixed_points=fixed_points.clone(),
        path=path or _explicit(time, solution),
    )


@functools.lru_cache(maxsize=64)
def compiled(symbols: tuple[Any, ...], expression: Any) -> Callable[..., Any]:
    """Return a NumPy function of symbols for an expression or a matrix of them.

    Args:
        symbols: Its arguments.
        expression: What to evaluate; immutable, because the function is kept.

    Returns:
        A function of numbers or arrays to float64 arrays.
    """
    import sympy

    # scipy.special.hyp2f1 returns infinities and wrong signs near z = 1 where c − a − b
    # is zero up to rounding, as it always is here; mpmath is right to rounding
    special = sympy.sympify(expression).has(sympy.hyper)
    modules = "mpmath" if special else "numpy"
    function = sympy.lambdify(list(symbols), expression, modules=modules, cse=True)
    return lambda *values: np.asarray(function(*values), dtype=np.float64)


def number(value: float) -> Any:
    """Return a SymPy number for a float, rational where it is a simple fraction.

    Args:
        value: Any finite float.

    Returns:
        A Rational that rounds to the float, or a Float of 53 bits.
    """
    import sympy

    simple = Fraction(value).limit_denominator(1000)
    if float(simple) == value:
        return sympy.Rational(simple.numerator, simple.denominator)
    return sympy.Float(value)


def numbers(array: Tensor) -> Any:
    """Return a SymPy matrix of a tensor.

    Args:
        array: Shape ``(a,)``, which gives a column, or ``(a, b)``.

    Returns:
        The matrix, of :func:`number`.
    """
    import sympy

    rows = array.reshape(len(array), -1).tolist()
    return sympy.Matrix([[number(value) for value in row] for row in rows])


def finite(what: str, value: Any, *, ndim: int) -> Tensor:
    """Read a float64 tensor on the CPU from a user's argument.

    Args:
        what: Its name, for the message.
        value: Tensor or nested sequence.
        ndim: Number of dimensions it must have.

    Returns:
        A copy.

    Raises:
        InvalidInputError: If it is no array of numbers, empty, not finite or of
            another dimension.
    """
    try:
        tensor = torch.as_tensor(value, dtype=torch.float64).detach().cpu().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidInputError(f"{what} cannot be read as numbers: {error}") from error
    good = tensor.ndim == ndim and tensor.numel() > 0
    if not good or not bool(torch.isfinite(tensor).all()):
        raise InvalidInputError(
            f"{what} of shape {tuple(tensor.shape)} was given. Pass finite numbers "
            f"with {ndim} dimension(s), none of them empty."
        )
    return tensor


def check_size(size: int) -> None:
    """Refuse systems that SymPy would take minutes for.

    Args:
        size: P.

    Raises:
        InvalidInputError: If P > 64.
    """
    if size > _MOST:
        raise InvalidInputError(
            f"A closed form with P = {size} was asked; its symbolic Hessian is meant "
            f"for P ≤ {_MOST}. Make the system smaller."
        )


def half_squares(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean over examples of ½|f − y|².

    Args:
        outputs: f, shape ``(N, C)``.
        targets: y, shape ``(N, C)``.

    Returns:
        A 0-d tensor.
    """
    return 0.5 * (outputs - targets).square().sum(1).mean()


def _explicit(time: Any, solution: Any) -> Callable[[Any], Any]:
    function = compiled((time,), tuple(solution))

    def path(times: Any) -> Any:
        return np.stack([function(value) for value in times.tolist()], axis=1)

    return path
