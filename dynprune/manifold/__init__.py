"""Splits a gradient system at a spectral gap, tests conditions, prunes in one shot."""

from dynprune.manifold._analyse import analyse
from dynprune.manifold._conditions import (
    cone_condition,
    gap_condition,
    step_condition,
)
from dynprune.manifold._prune import prune
from dynprune.manifold._readings import (
    SCORES,
    leverage,
    leverage_scores,
    participation_density,
)
from dynprune.manifold._results import ConditionCheck, ManifoldReport
from dynprune.manifold._samples import sample_displacements
from dynprune.manifold._smooth import difference_quotients, is_smooth

__all__ = [
    "SCORES",
    "ConditionCheck",
    "ManifoldReport",
    "analyse",
    "cone_condition",
    "difference_quotients",
    "gap_condition",
    "is_smooth",
    "leverage",
    "leverage_scores",
    "participation_density",
    "prune",
    "sample_displacements",
    "step_condition",
]
