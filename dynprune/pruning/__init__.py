r"""Score × budget × schedule → ticket.

Every pruner takes a system and returns a ticket, or a training with its tickets:

=================== ============================== ======== ========= =================
pruner              score, the highest are kept    when     count     cost
=================== ============================== ======== ========= =================
random              u ~ U[0, 1)                    start    exact     0
erk                 u ~ U[0, 1)                    start    ERK       0
magnitude           \|w\|                          start    exact     0
lamp                w² / Σ{w'² : w'² ≥ w²}         start    exact     0
snip                \|w ∇L(w)\|                    start    exact     1 G
iterative_snip      \|mw ∇L(mw)\|, in T rounds     start    exact     T G
force               \|w ∇L(mw)\|, in T rounds      start    exact     T G
grasp               w ∇²L ∇L                       start    exact     1 G + 1 H
synflow             \|w ∂R/∂w\|, in T rounds       start    exact     (T + 1)/N G
gem_miner           trained p, clamped to [0, 1]   masks    overshoot E G
edge_popup          \|s\|, trained s               masks    by layer  E G
obd                 ½ h w²                         trained  exact     M H + probe
obs                 w² / (2 [F⁻¹]_qq)              trained  exact     n/N G, or N_w H
sparsegpt           w² / [H⁻¹]_jj, by columns      trained  by layer  L F + first batch
imp                 \|w\| after each level         trained  exact     R + 1 trainings
early_bird          \|γ\| of norms, or \|w\|       training channels  1 G an epoch
gradual_magnitude   \|w\|, in rounds               training exact     1 training
rigl                drops \|w\|, grows \|∇L\|      training ERK       1 training
sparse_evolution    drops \|w\|, grows at random   training ERK       1 training
=================== ============================== ======== ========= =================

- **When**: at the *start* (also on a trained state: then pass it and its cost), as
  *masks* that are trained on frozen weights, on *trained* weights, or in *training*.
- **Count**, of N_w prunable weights: *exact* keeps max(1, ⌊d N_w + ½⌋) of all together
  (``scope="layer"`` or ``layer_densities``, where there is such a knob: of each layer);
  *by layer* the same of each layer; *ERK* the same total, layers at Erdős–Rényi-kernel
  densities (``"uniform"`` for the last two); *overshoot* drops whatever ties with its
  threshold, as the source does (``rule="exact"`` does not); *channels* of batch norms
  (``unit="weight"``: exact). The rules of published codes are those of ``rule=``:
  once in from_scores, in every round of iterative_snip, force and synflow, and at every
  level of imp.
- **Cost** over N examples: G gradients, F forward passes, H Hessian–vector products,
  each over all data; what is not named is not needed. A training counts B/N G a step.
  T rounds, E epochs, M ``matvecs``, n ``samples``, L layers, R + 1 densities; obd and
  the exact curvatures of obs need the determinism probe of a new system besides.
  Whether a ticket's output still depends on its input is tested by a gradient of at
  most 8 examples, which is in its provenance, not in its cost.
- **collapse**: what to do if it does not. A ticket that cannot learn from its input is
  refused (``"error"``) unless ``"warn"`` or ``"ignore"`` is passed; those that return
  trainings warn at most. See :func:`from_scores`.

What any of them gives is turned into another ticket by ``dynprune.tickets``; any other
score becomes one by :func:`from_scores`; :func:`sanity_check` says whether the mask
matters.
"""

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
