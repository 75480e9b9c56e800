"""Masks with their rewind state: save, load, apply, enforce, compare, sanity checks."""

from dynprune.tickets._barrier import Barrier, error_barrier
from dynprune.tickets._compare import compare
from dynprune.tickets._comparison import Comparison
from dynprune.tickets._effective_density import effective_density
from dynprune.tickets._graph_measures import GraphMeasures, graph_measures
from dynprune.tickets._path_norm import path_norm
from dynprune.tickets._readings import Reading
from dynprune.tickets._reinitialise import reinitialise
from dynprune.tickets._shuffle import shuffle
from dynprune.tickets._ticket import Ticket

__all__ = [
    "Barrier",
    "Comparison",
    "GraphMeasures",
    "Reading",
    "Ticket",
    "compare",
    "effective_density",
    "error_barrier",
    "graph_measures",
    "path_norm",
    "reinitialise",
    "shuffle",
]
