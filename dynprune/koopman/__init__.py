"""Fits linear evolution operators to a trajectory and forecasts the weights."""

from dynprune.koopman._baselines import (
    BASELINE_FORECASTS,
    BaselineForecast,
    error2growth,
    linear_extrapolation,
    stay,
    window_mean,
)
from dynprune.koopman._fit import fit
from dynprune.koopman._rates import growth_rates, rates
from dynprune.koopman._results import KoopmanModel
from dynprune.koopman._trust import dmd_intervals, forecast_bound

__all__ = [
    "BASELINE_FORECASTS",
    "BaselineForecast",
    "KoopmanModel",
    "dmd_intervals",
    "error2growth",
    "fit",
    "forecast_bound",
    "growth_rates",
    "linear_extrapolation",
    "rates",
    "stay",
    "window_mean",
]
