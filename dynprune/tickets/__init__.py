"""Masks with their rewind state: save, load, apply, enforce, sanity checks."""

from dynprune.tickets._reinitialise import reinitialise
from dynprune.tickets._shuffle import shuffle
from dynprune.tickets._ticket import Ticket

__all__ = ["Ticket", "reinitialise", "shuffle"]
