"""Which colour, marker and line each series has, to be told apart by everyone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

BLACK, GREY, LIGHT = "#000000", "#767676", "#c8c8c8"
BLUE, SKY, GREEN = "#0072B2", "#56B4E9", "#009E73"
RED, ORANGE, PURPLE, BROWN = "#D55E00", "#E69F00", "#AA4499", "#8C5A2B"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Stroke:
    """Say how one series is drawn.

    Args:
        label: Its name in legends.
        colour: Of line and marker.
        marker: Of its points.
        line: Line style.
        width: Line width in points.
        hollow: Whether markers are filled with white: controls.
    """

    label: str
    colour: str
    marker: str = "o"
    line: str = "-"
    width: float = 1.3
    hollow: bool = False

    @property
    def keywords(self) -> dict[str, Any]:
        """What matplotlib calls them."""
        return {
            "color": self.colour,
            "marker": self.marker,
            "linestyle": self.line,
            "linewidth": self.width,
            "markersize": 5.0,
            "markerfacecolor": "white" if self.hollow else self.colour,
            "markeredgecolor": self.colour,
            "label": self.label,
        }


METHOD_STROKES = {
    "dense": Stroke(label="dense", colour=GREY, marker="", line="-", width=1.6),
    "imp": Stroke(label="IMP", colour=BLACK, marker="o", width=2.4),
    "imp-shuffled": Stroke(
        label="IMP shuffled", colour=BLACK, marker="s", line="--", hollow=True
    ),
    "imp-reinitialised": Stroke(
        label="IMP re-initialised", colour=GREY, marker="o", line="--", hollow=True
    ),
    "manifold": Stroke(label="manifold (one-shot)", colour=RED, marker="D", width=2.0),
    "manifold-shuffled": Stroke(
        label="manifold shuffled", colour=RED, marker="s", line="--", hollow=True
    ),
    "magnitude-trained": Stroke(
        label="magnitude (trained)", colour=BLUE, marker="^", width=1.6
    ),
    "magnitude-init": Stroke(label="magnitude (at init)", colour=SKY, marker="v"),
    "snip": Stroke(label="SNIP", colour=GREEN, marker="P"),
    "grasp": Stroke(label="GraSP", colour=PURPLE, marker="X"),
    "synflow": Stroke(label="SynFlow", colour=ORANGE, marker="*"),
    "random": Stroke(label="random", colour=BROWN, marker="<", line=":"),
}
FORECAST_STROKES = {
    "truth": Stroke(label="trained (truth)", colour=BLACK, marker="", width=2.0),
    "dmd-network": Stroke(label="DMD (network)", colour=RED, marker="D", width=1.8),
    "dmd-layer": Stroke(label="DMD (layer)", colour=BLUE, marker="^"),
    "dmd-node": Stroke(label="DMD (node)", colour=GREEN, marker="P"),
    "stay": Stroke(label="stay", colour=GREY, marker="s", line="--", hollow=True),
    "linear-extrapolation": Stroke(
        label="linear extrapolation", colour=ORANGE, marker="v", line="--", hollow=True
    ),
    "window-mean": Stroke(
        label="window mean", colour=PURPLE, marker="o", line="--", hollow=True
    ),
}
_SPARE = (("#332288", "d"), ("#117733", ">"), ("#882255", "h"), ("#44AA99", "p"))


def strokes_of(
    names: Sequence[str], known: "dict[str, Stroke]"
) -> "list[tuple[str, Stroke]]":
    """Give each series its stroke; unknown ones, a user's own, get a spare.

    Args:
        names: Names, in drawing order.
        known: The named strokes.

    Returns:
        Pairs of name and stroke.
    """
    own = [name for name in names if name not in known]
    spare = {
        name: Stroke(label=name, colour=colour, marker=marker)
        for name, (colour, marker) in zip(
            own, (_SPARE[i % len(_SPARE)] for i in range(len(own))), strict=True
        )
    }
    return [(name, known.get(name) or spare[name]) for name in names]


def label_of(method: str) -> str:
    """Return how the report writes a method.

    Args:
        method: Its name in results.csv.

    Returns:
        Its label.

    Example:
        >>> label_of("grasp")
        'GraSP'
    """
    return METHOD_STROKES[method].label if method in METHOD_STROKES else method
