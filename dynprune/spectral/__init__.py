"""Spectra with error bars: eigenpairs, gaps, density, traces, diagonal."""

from dynprune.spectral._density import density
from dynprune.spectral._density_results import Density
from dynprune.spectral._diagonal import diagonal
from dynprune.spectral._diagonal_results import Diagonal
from dynprune.spectral._effective_dimension import effective_dimension
from dynprune.spectral._eigenpairs import eigenpairs
from dynprune.spectral._frobenius_norm import frobenius_norm
from dynprune.spectral._gaps import gaps
from dynprune.spectral._log_determinant import log_determinant
from dynprune.spectral._results import Eigenpairs, Gaps
from dynprune.spectral._spectral_sum import spectral_sum
from dynprune.spectral._trace import trace
from dynprune.spectral._trace_results import Trace
from dynprune.spectral._track import track
from dynprune.spectral._track_results import SpectrumTrack

__all__ = [
    "Density",
    "Diagonal",
    "Eigenpairs",
    "Gaps",
    "SpectrumTrack",
    "Trace",
    "density",
    "diagonal",
    "effective_dimension",
    "eigenpairs",
    "frobenius_norm",
    "gaps",
    "log_determinant",
    "spectral_sum",
    "trace",
    "track",
]
