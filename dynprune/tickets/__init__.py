"""Masks with their rewind state: save, load, apply, enforce, algebra, checks."""

from dynprune.tickets._algebra import complement, difference, intersection, union
from dynprune.tickets._broadcast import broadcast
from dynprune.tickets._export_results import Export
from dynprune.tickets._invert import invert
from dynprune.tickets._reduce import reduce, remove_units
from dynprune.tickets._reinitialise import reinitialise
from dynprune.tickets._shuffle import shuffle
from dynprune.tickets._sparse import SparseLinear, to_sparse
from dynprune.tickets._ticket import Ticket

__all__ = [
    "Export",
    "SparseLinear",
    "Ticket",
    "broadcast",
    "complement",
    "difference",
    "intersection",
    "invert",
    "reduce",
    "reinitialise",
    "remove_units",
    "shuffle",
    "to_sparse",
    "union",
]
