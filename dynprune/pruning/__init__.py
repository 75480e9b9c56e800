"""Score × budget × schedule → ticket."""

from dynprune.pruning._baselines import (
    BASELINES,
    Baseline,
    Pruner,
)
from dynprune.pruning._collapse import (
    Collapse,
)
from dynprune.pruning._count_rules import (
    Rule,
    kept_count,
)
from dynprune.pruning._densities import (
    densities_by_factor,
    densities_by_share,
    densities_by_target,
)
from dynprune.pruning._early_bird import (
    early_bird,
)
from dynprune.pruning._early_bird_results import (
    EarlyBird,
)
from dynprune.pruning._edge_popup import (
    edge_popup,
)
from dynprune.pruning._erk import (
    erk,
    erk_densities,
)
from dynprune.pruning._force import (
    force,
    force_scores,
)
from dynprune.pruning._from_scores import (
    from_scores,
)
from dynprune.pruning._gem_miner import (
    gem_miner,
)
from dynprune.pruning._gradual_magnitude import (
    cubic_densities,
    gradual_magnitude,
)
from dynprune.pruning._grasp import (
    grasp,
    grasp_scores,
)
from dynprune.pruning._imp import (
    imp,
)
from dynprune.pruning._imp_results import (
    IMPLevel,
    IMPRun,
)
from dynprune.pruning._iterative_snip import (
    iterative_snip,
)
from dynprune.pruning._lamp import (
    lamp,
    lamp_scores,
)
from dynprune.pruning._magnitude import (
    magnitude,
    magnitude_scores,
)
from dynprune.pruning._obd import (
    obd,
    obd_diagonal,
    obd_scores,
)
from dynprune.pruning._obs import (
    obs,
    obs_scores,
)
from dynprune.pruning._random import (
    random,
    random_scores,
)
from dynprune.pruning._rigl import (
    rigl,
)
from dynprune.pruning._sanity_check import (
    sanity_check,
)
from dynprune.pruning._sanity_check_results import (
    SanityCheck,
)
from dynprune.pruning._snip import (
    snip,
    snip_scores,
)
from dynprune.pruning._sparse_evolution import (
    sparse_evolution,
)
from dynprune.pruning._sparse_training import (
    MaskUpdate,
    SparseTraining,
)
from dynprune.pruning._sparsegpt import (
    sparsegpt,
)
from dynprune.pruning._synflow import (
    synflow,
    synflow_scores,
)

__all__ = [
    "BASELINES",
    "Baseline",
    "Collapse",
    "EarlyBird",
    "IMPLevel",
    "IMPRun",
    "MaskUpdate",
    "Pruner",
    "Rule",
    "SanityCheck",
    "SparseTraining",
    "cubic_densities",
    "densities_by_factor",
    "densities_by_share",
    "densities_by_target",
    "early_bird",
    "edge_popup",
    "erk",
    "erk_densities",
    "force",
    "force_scores",
    "from_scores",
    "gem_miner",
    "gradual_magnitude",
    "grasp",
    "grasp_scores",
    "imp",
    "iterative_snip",
    "kept_count",
    "lamp",
    "lamp_scores",
    "magnitude",
    "magnitude_scores",
    "obd",
    "obd_diagonal",
    "obd_scores",
    "obs",
    "obs_scores",
    "random",
    "random_scores",
    "rigl",
    "sanity_check",
    "snip",
    "snip_scores",
    "sparse_evolution",
    "sparsegpt",
    "synflow",
    "synflow_scores",
]
