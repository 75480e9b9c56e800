"""The report's figures, each in a wide and a narrow rendering with its caption."""

from dataclasses import dataclass
from typing import final

from dynprune.study._findings import Findings
from dynprune.study.figures._captions import TITLES, caption_of, description_of
from dynprune.study.figures._data import figure_data
from dynprune.study.figures._forecast import draw_example, draw_forecast
from dynprune.study.figures._pruning import draw_accuracy, draw_cost, draw_layers
from dynprune.study.figures._style import NARROW, WIDE, Draw, render
from dynprune.study.figures._theory import draw_flow, draw_spectrum

_DRAW: dict[str, Draw] = {
    "accuracy-density": draw_accuracy,
    "accuracy-cost": draw_cost,
    "spectrum": draw_spectrum,
    "forecast-example": draw_example,
    "forecast-error": draw_forecast,
    "flow": draw_flow,
    "layer-densities": draw_layers,
}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A figure of the report.

    Args:
        name: Its name in ``figure_data``.
        title: Its heading.
        caption: What is drawn, over how many seeds, what the bars are.
        description: Its alt text.
        wide: An ``<svg>`` element for screens of 800 pixels and more.
        narrow: One for phones.
    """

    name: str
    title: str
    caption: str
    description: str
    wide: str
    narrow: str


def figures(findings: Findings) -> dict[str, Figure]:
    """Draw every figure that there are numbers for.

    Args:
        findings: What was measured.

    Returns:
        Name to figure, in reading order; see :func:`figure_data` for what is drawn.

    Cost:
        About a second a figure.
    """
    return {
        name: Figure(
            name=name,
            title=TITLES[name],
            caption=caption_of(name, frame, findings),
            description=description_of(name, frame),
            wide=render(_DRAW[name], frame, WIDE),
            narrow=render(_DRAW[name], frame, NARROW),
        )
        for name, frame in figure_data(findings).items()
    }
