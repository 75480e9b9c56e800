"""How an iteration ended; the value of each member is the advice."""

from enum import Enum


class Outcome(Enum):
    """How a computation ended, with what to do about it."""

    CONVERGED = "Converged to the tolerance asked for."
    FINISHED = "Ran the number of steps asked for."
    MAX_MATVECS = (
        "Stopped at max_matvecs before every pair met tol: raise max_matvecs, "
        "ask for fewer pairs, or loosen tol."
    )
    NOT_CONVERGED = "Stopped before the tolerance: allow more steps or loosen it."
    DIVERGED = "The iterate left the finite numbers: lower the step size."

    @property
    def ok(self) -> bool:
        """Whether the answer meets what was asked."""
        return self in {Outcome.CONVERGED, Outcome.FINISHED}
