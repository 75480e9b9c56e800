"""Ritz pairs of an operator with residual norms and enclosures, and its gaps."""

from dynprune.spectral._eigenpairs import eigenpairs
from dynprune.spectral._gaps import gaps
from dynprune.spectral._results import Eigenpairs, Gaps

__all__ = ["Eigenpairs", "Gaps", "eigenpairs", "gaps"]
