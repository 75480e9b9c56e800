"""Masks with their rewind state: save, load, apply, enforce, compare, sanity checks."""

from dynprune.tickets._algebra import (
    complement,
    difference,
    intersection,
    union,
)
from dynprune.tickets._barrier import (
    Barrier,
    error_barrier,
)
from dynprune.tickets._broadcast import (
    broadcast,
)
from dynprune.tickets._compare import (
    compare,
)
from dynprune.tickets._comparison import (
    Comparison,
)
from dynprune.tickets._effective_density import (
    effective_density,
)
from dynprune.tickets._elastic import (
    squeeze,
    stretch,
)
from dynprune.tickets._export_results import (
    Export,
)
from dynprune.tickets._graph_measures import (
    GraphMeasures,
    graph_measures,
)
from dynprune.tickets._invert import (
    invert,
)
from dynprune.tickets._matched import (
    Matched,
    matched,
)
from dynprune.tickets._network import (
    pack_network,
    unpack_network,
)
from dynprune.tickets._path_norm import (
    path_norm,
)
from dynprune.tickets._readings import (
    Reading,
)
from dynprune.tickets._reduce import (
    reduce,
    remove_units,
)
from dynprune.tickets._reinitialise import (
    reinitialise,
)
from dynprune.tickets._remove_channels import (
    Reduced,
    remove_channels,
)
from dynprune.tickets._shuffle import (
    shuffle,
)
from dynprune.tickets._sparse import (
    to_sparse,
)
from dynprune.tickets._sparse_linear import (
    SparseLinear,
)
from dynprune.tickets._ticket import (
    Ticket,
)
from dynprune.tickets._zeros import (
    zeros_where_pruned,
)

__all__ = [
    "Barrier",
    "Comparison",
    "Export",
    "GraphMeasures",
    "Matched",
    "Reading",
    "Reduced",
    "SparseLinear",
    "Ticket",
    "broadcast",
    "compare",
    "complement",
    "difference",
    "effective_density",
    "error_barrier",
    "graph_measures",
    "intersection",
    "invert",
    "matched",
    "pack_network",
    "path_norm",
    "reduce",
    "reinitialise",
    "remove_channels",
    "remove_units",
    "shuffle",
    "squeeze",
    "stretch",
    "to_sparse",
    "union",
    "unpack_network",
    "zeros_where_pruned",
]
