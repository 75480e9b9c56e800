"""What a study measured: everything that the ledger and the report read."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from dynprune.core import InvalidInputError
from dynprune.rgflow import RGFlow
from dynprune.study._config import Config

if TYPE_CHECKING:
    import pandas as pd

VERDICTS = (
    "held",
    "failed",
    "vacuous",
    "not refuted",
    "not applicable",
    "not testable",
)


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Findings:
    """Hold the measurements of one study.

    Args:
        config: The study's config.
        problem: The problem's own name; it says which copy of a data set was used.
        results: One row per (method, density, seed), the columns of results.csv.
        layers: One row per (method, density, seed, layer): ``layer_density``.
        flow: The renormalization-group flow over the seeds' IMP runs, or None.
        flow_seeds: The seeds of the flow, in its order.
        analyses: Seed to the facts of the manifold analysis.
        forecasts: Seed to the facts of the Koopman forecasts.
        multipliers: Seed to the facts of the multiplier experiment.
    """

    config: Config
    problem: str
    results: "pd.DataFrame"
    layers: "pd.DataFrame"
    flow: RGFlow | None
    flow_seeds: tuple[int, ...]
    analyses: dict[int, dict[str, Any]]
    forecasts: dict[int, dict[str, Any]]
    multipliers: dict[int, dict[str, Any]]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerLine:
    """State one claim next to what was measured.

    Args:
        key: Short name, e.g. ``"multipliers"``.
        theory: Whose claim it is.
        claim: The claim with its tolerance, one sentence.
        predicted: What the theory says, as a number, or NaN where the claim is an
            inequality.
        measured: What was measured.
        interval: Its 95 % interval; NaNs where there is none.
        p_value: Of the test behind the verdict, or NaN.
        p_holm: The same after Holm's correction over the ledger.
        verdict: One of ``VERDICTS``.
        seeds: Number of seeds behind it.
        unit: Unit of ``predicted`` and ``measured``.
        note: How the verdict came about.

    Raises:
        InvalidInputError: If the verdict is not one of ``VERDICTS``.
    """

    key: str
    theory: str
    claim: str
    predicted: float
    measured: float
    interval: tuple[float, float]
    p_value: float
    p_holm: float
    verdict: str
    seeds: int
    unit: str
    note: str

    def __post_init__(self) -> None:
        """Check the verdict.

        Raises:
            InvalidInputError: If it is unknown.
        """
        if self.verdict not in VERDICTS:
            raise InvalidInputError(
                f"Verdict {self.verdict!r} is none of {', '.join(VERDICTS)}."
            )
