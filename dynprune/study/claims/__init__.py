"""The claims of each theory, as drafts that the ledger decides."""

from dynprune.study.claims._draft import Draft, decide
from dynprune.study.claims._koopman import FORECAST, horizon_of, koopman_claims
from dynprune.study.claims._lossless import Lossless, lossless_density
from dynprune.study.claims._manifold import manifold_claims
from dynprune.study.claims._pruning import pruning_claims
from dynprune.study.claims._rgflow import rgflow_claims

__all__ = [
    "FORECAST",
    "Draft",
    "Lossless",
    "decide",
    "horizon_of",
    "koopman_claims",
    "lossless_density",
    "manifold_claims",
    "pruning_claims",
    "rgflow_claims",
]
