"""Score × budget × schedule → ticket."""

from dynprune.pruning._baselines import BASELINES, Baseline, Pruner
from dynprune.pruning._from_scores import from_scores
from dynprune.pruning._grasp import grasp, grasp_scores
from dynprune.pruning._imp import imp
from dynprune.pruning._imp_results import IMPLevel, IMPRun
from dynprune.pruning._magnitude import magnitude, magnitude_scores
from dynprune.pruning._random import random, random_scores
from dynprune.pruning._sanity_check import sanity_check
from dynprune.pruning._sanity_check_results import SanityCheck
from dynprune.pruning._select import kept_count
from dynprune.pruning._snip import snip, snip_scores
from dynprune.pruning._synflow import synflow, synflow_scores

__all__ = [
    "BASELINES",
    "Baseline",
    "IMPLevel",
    "IMPRun",
    "Pruner",
    "SanityCheck",
    "from_scores",
    "grasp",
    "grasp_scores",
    "imp",
    "kept_count",
    "magnitude",
    "magnitude_scores",
    "random",
    "random_scores",
    "sanity_check",
    "snip",
    "snip_scores",
    "synflow",
    "synflow_scores",
]
