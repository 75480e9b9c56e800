"""Masks with their rewind state: apply, enforce, algebra, exports, transfer."""

from dynprune.tickets._algebra import complement, difference, intersection, union
from dynprune.tickets._broadcast import broadcast
from dynprune.tickets._elastic import squeeze, stretch
from dynprune.tickets._export_results import Export
from dynprune.tickets._invert import invert
from dynprune.tickets._matched import Matched, matched
from dynprune.tickets._reduce import reduce, remove_units
from dynprune.tickets._reinitialise import reinitialise
from dynprune.tickets._shuffle import shuffle
from dynprune.tickets._sparse import SparseLinear, to_sparse
from dynprune.tickets._ticket import Ticket

__all__ = [
    "Export",
    "Matched",
    "SparseLinear",
    "Ticket",
    "broadcast",
    "complement",
    "difference",
    "intersection",
    "invert",
    "matched",
    "reduce",
    "reinitialise",
    "remove_units",
    "shuffle",
    "squeeze",
    "stretch",
    "to_sparse",
    "union",
]
