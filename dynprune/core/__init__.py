"""Errors, outcomes, seeds, progress, cost, provenance, citations, files."""

from dynprune.core.citations import cite
from dynprune.core.coordinates import Coordinates
from dynprune.core.cost import Cost
from dynprune.core.errors import (
    AssumptionError,
    ConvergenceError,
    DynPruneError,
    DynPruneWarning,
    InvalidInputError,
    NotDeterministicError,
    NumericalWarning,
)
from dynprune.core.files import (
    join_parts,
    load_result,
    load_tensors,
    part_of,
    save_tensors,
    write_atomic,
)
from dynprune.core.functional import functional_call
from dynprune.core.inference import refuse_inference_mode
from dynprune.core.intervals import mean_interval
from dynprune.core.names import unknown
from dynprune.core.nests import as_plain, flatten_batch, map_leaves, tensors_of
from dynprune.core.outcome import Outcome
from dynprune.core.processes import process_pool
from dynprune.core.progress import track
from dynprune.core.provenance import Provenance
from dynprune.core.rows import Rows
from dynprune.core.scalars import plain_numbers, whole
from dynprune.core.seeds import (
    derive_seed,
    generator,
    generator_states,
    isolated,
    seeded_generators,
)
from dynprune.core.shapes import Basis, Snapshots, Square, Values, Vector

__all__ = [
    "AssumptionError",
    "Basis",
    "ConvergenceError",
    "Coordinates",
    "Cost",
    "DynPruneError",
    "DynPruneWarning",
    "InvalidInputError",
    "NotDeterministicError",
    "NumericalWarning",
    "Outcome",
    "Provenance",
    "Rows",
    "Snapshots",
    "Square",
    "Values",
    "Vector",
    "as_plain",
    "cite",
    "derive_seed",
    "flatten_batch",
    "functional_call",
    "generator",
    "generator_states",
    "isolated",
    "join_parts",
    "load_result",
    "load_tensors",
    "map_leaves",
    "mean_interval",
    "part_of",
    "plain_numbers",
    "process_pool",
    "refuse_inference_mode",
    "save_tensors",
    "seeded_generators",
    "tensors_of",
    "track",
    "unknown",
    "whole",
    "write_atomic",
]
