"""Score × budget × schedule → ticket."""

from dynprune.pruning._baselines import BASELINES, Baseline, Pruner
from dynprune.pruning._early_bird import early_bird
from dynprune.pruning._early_bird_results import EarlyBird
from dynprune.pruning._edge_popup import edge_popup
from dynprune.pruning._from_scores import from_scores
from dynprune.pruning._gem_miner import gem_miner
from dynprune.pruning._grasp import grasp, grasp_scores
from dynprune.pruning._imp import imp
from dynprune.pruning._imp_results import IMPLevel, IMPRun
from dynprune.pruning._magnitude import magnitude, magnitude_scores
from dynprune.pruning._random import random, random_scores
from dynprune.pruning._select import kept_count
from dynprune.pruning._snip import snip, snip_scores
from dynprune.pruning._synflow import synflow, synflow_scores

__all__ = [
    "BASELINES",
    "Baseline",
    "EarlyBird",
    "IMPLevel",
    "IMPRun",
    "Pruner",
    "early_bird",
    "edge_popup",
    "from_scores",
    "gem_miner",
    "grasp",
    "grasp_scores",
    "imp",
    "kept_count",
    "magnitude",
    "magnitude_scores",
    "random",
    "random_scores",
    "snip",
    "snip_scores",
    "synflow",
    "synflow_scores",
]
