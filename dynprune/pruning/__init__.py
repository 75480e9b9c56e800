"""Score × budget × schedule → ticket."""

from dynprune.pruning._baselines import BASELINES, Baseline, Pruner
from dynprune.pruning._collapse import Collapse
from dynprune.pruning._count_rules import Rule, kept_count
from dynprune.pruning._erk import erk, erk_densities
from dynprune.pruning._force import force, force_scores
from dynprune.pruning._from_scores import from_scores
from dynprune.pruning._grasp import grasp, grasp_scores
from dynprune.pruning._imp import imp
from dynprune.pruning._imp_results import IMPLevel, IMPRun
from dynprune.pruning._iterative_snip import iterative_snip
from dynprune.pruning._lamp import lamp, lamp_scores
from dynprune.pruning._magnitude import magnitude, magnitude_scores
from dynprune.pruning._random import random, random_scores
from dynprune.pruning._snip import snip, snip_scores
from dynprune.pruning._synflow import synflow, synflow_scores

__all__ = [
    "BASELINES",
    "Baseline",
    "Collapse",
    "IMPLevel",
    "IMPRun",
    "Pruner",
    "Rule",
    "erk",
    "erk_densities",
    "force",
    "force_scores",
    "from_scores",
    "grasp",
    "grasp_scores",
    "imp",
    "iterative_snip",
    "kept_count",
    "lamp",
    "lamp_scores",
    "magnitude",
    "magnitude_scores",
    "random",
    "random_scores",
    "snip",
    "snip_scores",
    "synflow",
    "synflow_scores",
]
