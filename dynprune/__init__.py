"""Training as a gradient dynamical system: which weights can go, and how early?"""

from dynprune import core
from dynprune._version import __version__

__all__ = ["__version__", "core"]
