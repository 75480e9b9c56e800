"""The figures of a report and the frames that they draw."""

from dynprune.study.figures._data import figure_data
from dynprune.study.figures._figures import Figure, figures

__all__ = ["Figure", "figure_data", "figures"]
