"""Forecasts that cost nothing, and the measure that compares with them."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from dynprune.core import InvalidInputError, Snapshots
from dynprune.trajectory import Trajectory

BaselineForecast: TypeAlias = Callable[[Trajectory, Sequence[int]], Tensor]


def _ahead(trajectory: Trajectory, steps: Sequence[int]) -> None:
    last = int(trajectory.steps[-1])
    if not len(steps) or min(steps) < last:
        raise InvalidInputError(
            f"Forecasts at steps {list(steps)} were asked for, the window ends at step "
            f"{last}. Ask for one or more steps at or beyond it."
        )


def stay(trajectory: Trajectory, steps: Sequence[int]) -> Snapshots:
    r"""Forecast that nothing moves: :math:`\hat w(t) = w_T`.

    Args:
        trajectory: The window.
        steps: Absolute optimiser steps at or beyond its end.

    Returns:
        Shape ``(P, len(steps))``.

    Raises:
        InvalidInputError: If a step lies before the end.
    """  # noqa: DOC502 - raised by the check
    _ahead(trajectory, steps)
    return trajectory.snapshots[:, -1:].repeat(1, len(steps))


def linear_extrapolation(trajectory: Trajectory, steps: Sequence[int]) -> Snapshots:
    r"""Continue along the last increment.

    .. math:: \hat w(t) = w_T + \frac{t - t_T}{t_T - t_{T-1}} (w_T - w_{T-1}) .

    Args:
        trajectory: The window, at least two snapshots.
        steps: Absolute optimiser steps at or beyond its end.

    Returns:
        Shape ``(P, len(steps))``.

    Raises:
        InvalidInputError: If a step lies before the end, or there is one snapshot.
    """
    _ahead(trajectory, steps)
    if len(trajectory.steps) < 2:
        raise InvalidInputError(
            "A line needs two snapshots, the window has 1. Record more often."
        )
    before, last = (int(step) for step in trajectory.steps[-2:])
    final = trajectory.snapshots[:, -1:]
    factors = torch.tensor(
        [(int(step) - last) / (last - before) for step in steps],
        dtype=final.dtype,
        device=final.device,
    )
    return final + factors * (final - trajectory.snapshots[:, -2:-1])


def window_mean(trajectory: Trajectory, steps: Sequence[int]) -> Snapshots:
    r"""Forecast the mean of the window, as stochastic weight averaging does.

    .. math:: \hat w(t) = \frac1T \sum_{j} w_j .

    Args:
        trajectory: The window.
        steps: Absolute optimiser steps at or beyond its end.

    Returns:
        Shape ``(P, len(steps))``.

    Raises:
        InvalidInputError: If a step lies before the end.

    Source:
        Izmailov et al., *Averaging Weights Leads to Wider Optima and Better
        Generalization*, UAI 2018.
    """  # noqa: DOC502 - raised by the check
    _ahead(trajectory, steps)
    return trajectory.snapshots.mean(1, keepdim=True).repeat(1, len(steps))


BASELINE_FORECASTS: tuple[BaselineForecast, ...] = (
    stay,
    linear_extrapolation,
    window_mean,
)


def error2growth(predicted: Tensor, truth: Tensor, last: Tensor) -> Tensor:
    r"""Compare a forecast's error with how far the weights really moved.

    .. math:: \frac{\operatorname{median}_j |\hat p_j - p_j|}
                   {\operatorname{median}_j |p_j - p_j(t_2)|} ,

    medians over coordinates; 1 is no better than staying put. A weight whose forecast
    is not a number counts as infinitely wrong.

    Args:
        predicted: Shape ``(P,)`` or ``(P, H)``.
        truth: The same shape.
        last: The last snapshot of the window, shape ``(P,)``.

    Returns:
        Float64, 0-d or shape ``(H,)``, dimensionless.

    Raises:
        InvalidInputError: If shapes differ, or the median weight did not move.

    Source:
        Dogra and Redman, *Optimizing Neural Networks via Koopman Operator Theory*,
        NeurIPS 2020.

    Example:
        >>> last, truth = torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])
        >>> error2growth(torch.tensor([1.0, 1.0, 2.5]), truth, last)
        tensor(0.2500, dtype=torch.float64)
    """
    if predicted.shape != truth.shape or truth.shape[:1] != last.shape:
        raise InvalidInputError(
            f"Shapes {tuple(predicted.shape)} predicted, {tuple(truth.shape)} true, "
            f"{tuple(last.shape)} last. Pass (P,) or (P, H) twice, and (P,)."
        )
    start = last if truth.ndim == 1 else last[:, None]
    moved = _median((truth.double() - start.double()).abs())
    if bool((moved == 0).any()):
        raise InvalidInputError(
            "At least half of the weights did not move between the last snapshot and "
            "the truth, so there is no growth to compare with. Compare at a later "
            "step, or leave out frozen weights."
        )
    wrong = (predicted.double() - truth.double()).abs().nan_to_num(nan=torch.inf)
    return _median(wrong) / moved


def _median(values: Tensor) -> Tensor:
    # NumPy's median is the mean of the middle two for even counts, torch's is not.
    return torch.as_tensor(np.median(values.cpu().numpy(), axis=0))
