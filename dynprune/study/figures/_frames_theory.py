"""What the figures of the theories draw: spectrum, forecasts, flow."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from dynprune.study._findings import Findings
from dynprune.study.figures._seed_intervals import (
    frame_of,
    interval,
    log_interval,
    number,
)

if TYPE_CHECKING:
    import pandas as pd

    from dynprune.rgflow import RGFlow

EXAMPLE_WEIGHTS = 4


def spectrum_frame(findings: Findings) -> "pd.DataFrame":
    """Return the sharpest Ritz values of each seed, with enclosures and gaps.

    Args:
        findings: What was measured.

    Returns:
        Columns seed, index (1 is the sharpest), value, low, high; relative_gap and
        relative_gap_low between this value and the next, resolved; n_fast,
        sharpness_product and learning_rate of the seed.
    """
    rows = []
    for seed, facts in sorted(findings.analyses.items()):
        gaps = {gap.get("n_fast"): gap for gap in facts.get("gaps") or ()}
        pairs = zip(
            facts.get("values") or (), facts.get("enclosures") or (), strict=True
        )
        for index, (value, (low, high)) in enumerate(pairs, start=1):
            gap = gaps.get(index, {})
            scale = number(value) or math.nan
            rows.append((
                seed,
                index,
                number(value),
                number(low),
                number(high),
                number(gap.get("spectral_gap")) / scale,
                number(gap.get("lower_bound")) / scale,
                bool(gap.get("resolved", False)),
                number(facts.get("n_fast")),
                number(facts.get("sharpness_product")),
                number(facts.get("learning_rate")),
            ))
    columns = ("seed", "index", "value", "low", "high", "relative_gap")
    more = ("relative_gap_low", "resolved", "n_fast", "sharpness_product")
    return frame_of(rows, (*columns, *more, "learning_rate"))


def example_frame(findings: Findings) -> "pd.DataFrame":
    """Return a few weights of the first seed: what they did and each forecast.

    Args:
        findings: What was measured.

    Returns:
        Columns seed, weight, series ("truth" or a forecast's name), step, value,
        window_start, window_stop.
    """
    rows: list[tuple[Any, ...]] = []
    for seed, facts in sorted(findings.forecasts.items())[:1]:
        example = facts.get("example") or {}
        window = tuple(facts.get("window") or (math.nan, math.nan))
        for i, weight in enumerate((example.get("weights") or ())[:EXAMPLE_WEIGHTS]):
            lines = {"truth": (example["steps"], example["truth"][i])}
            for name, values in (example.get("forecast") or {}).items():
                lines[name] = (example["future_steps"], values[i])
            for series, (steps, values) in lines.items():
                rows.extend(
                    (seed, weight, series, step, number(value), *window)
                    for step, value in zip(steps, values, strict=True)
                )
    columns = ("seed", "weight", "series", "step", "value")
    return frame_of(rows, (*columns, "window_start", "window_stop"))


def forecast_frame(findings: Findings) -> "pd.DataFrame":
    """Return how good each forecast is at each horizon.

    Args:
        findings: What was measured.

    Returns:
        Columns quantity, series, horizon (steps), value, low, high, seeds. Quantities:
        ``error2growth`` of each forecast, ``bound`` (the bound and the measured error,
        parameter 2-norm), ``accuracy`` (forecast weights minus trained ones, points).
        The first two are geometric means.
    """
    collected: dict[tuple[str, str, int], list[Any]] = {}
    for _, facts in sorted(findings.forecasts.items()):
        for key, value in _forecast_values(facts):
            collected.setdefault(key, []).append(value)
    rows = []
    for (quantity, series, horizon), values in collected.items():
        average = interval if quantity == "accuracy" else log_interval
        mean, low, high, seeds = average(values)
        if seeds:
            rows.append((quantity, series, horizon, mean, low, high, seeds))
    columns = ("quantity", "series", "horizon", "value", "low", "high", "seeds")
    return frame_of(rows, columns)


def _forecast_values(
    facts: Mapping[str, Any],
) -> Iterable[tuple[tuple[str, str, int], Any]]:
    truth = (facts.get("truth") or {}).get("accuracy") or ()
    for i, horizon in enumerate(facts.get("horizons") or ()):
        for name, measures in (facts.get("methods") or {}).items():
            if i < len(measures.get("error2growth") or ()):
                yield ("error2growth", name, horizon), measures["error2growth"][i]
            if i < min(len(measures.get("accuracy") or ()), len(truth)):
                points = 100.0 * (number(measures["accuracy"][i]) - number(truth[i]))
                yield ("accuracy", name, horizon), points
        for series in ("measured", "bound"):
            if i < len(facts.get(series) or ()):
                yield ("bound", series, horizon), facts[series][i]


def flow_frame(flow: "RGFlow | None") -> "pd.DataFrame":
    """Return the share of magnitude in each group at each level, with the controls.

    Args:
        flow: The flow, or None.

    Returns:
        Columns series ("IMP", "no retraining" or "random"), group, density, share,
        low, high (geometric mean and its 95 % t-interval), seeds, exponent and
        exponent_half (mean over seeds and half its interval); r2 and group_class for
        IMP only.
    """
    rows: list[tuple[Any, ...]] = []
    if flow is not None:
        for series, shares, slopes in (
            ("IMP", flow.shares, flow.slopes),
            ("no retraining", flow.no_retraining, flow.no_retraining_slopes),
            ("random", flow.random, flow.random_slopes),
        ):
            if shares is None or slopes is None:
                continue
            for i, group in enumerate(flow.groups):
                exponent, low, high, _ = interval(slopes.exponents[:, i].tolist())
                half = (high - low) / 2.0
                own = series == "IMP"
                r2 = float(flow.r2[i]) if own else math.nan
                kind = flow.classes[i] if own else ""
                for n, density in enumerate(flow.densities.tolist()):
                    share = log_interval(shares[:, n, i].tolist())
                    rows.append((
                        series,
                        group,
                        density,
                        *share,
                        exponent,
                        half,
                        r2,
                        kind,
                    ))
    columns = ("series", "group", "density", "share", "low", "high", "seeds")
    return frame_of(rows, (*columns, "exponent", "exponent_half", "r2", "group_class"))
