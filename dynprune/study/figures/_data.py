"""The numbers that the figures draw, one tidy frame for each figure."""

from typing import TYPE_CHECKING

from dynprune.study._findings import Findings
from dynprune.study.figures._frames_pruning import (
    accuracy_frame,
    cost_frame,
    layer_frame,
)
from dynprune.study.figures._frames_theory import (
    example_frame,
    flow_frame,
    forecast_frame,
    spectrum_frame,
)

if TYPE_CHECKING:
    import pandas as pd


def figure_data(findings: Findings) -> "dict[str, pd.DataFrame]":
    """Return everything that the figures draw.

    Args:
        findings: What was measured.

    Returns:
        Figure name to tidy frame, in reading order: ``accuracy-density``,
        ``accuracy-cost``, ``spectrum``, ``forecast-example``, ``forecast-error``,
        ``flow``, ``layer-densities``. A figure without a single number is left out.
    """
    frames = {
        "accuracy-density": accuracy_frame(findings),
        "accuracy-cost": cost_frame(findings),
        "spectrum": spectrum_frame(findings),
        "forecast-example": example_frame(findings),
        "forecast-error": forecast_frame(findings),
        "flow": flow_frame(findings.flow),
        "layer-densities": layer_frame(findings),
    }
    for name in ("accuracy-density", "accuracy-cost"):  # a problem may have no metric
        frames[name] = frames[name][frames[name]["accuracy"].notna()]
    return {name: frame for name, frame in frames.items() if len(frame)}
