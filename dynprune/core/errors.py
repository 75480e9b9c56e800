"""What can go wrong, by name."""


class DynPruneError(Exception):
    """Base of every error that dynprune raises on purpose."""


class InvalidInputError(DynPruneError, ValueError):
    """A wrong value, shape, dtype, device, name or file."""


class NotDeterministicError(DynPruneError, RuntimeError):
    """A loss or gradient moved between two passes over the same data."""


class ConvergenceError(DynPruneError, RuntimeError):
    """An iteration stopped before its tolerance; carries the partial result.

    Args:
        message: What was asked, what was found, what to try.
        partial: The result as far as it went, or None.
    """

    def __init__(self, message: str, partial: object = None) -> None:
        Exception.__init__(self, message)
        self.partial = partial


class AssumptionError(DynPruneError, ValueError):
    """A theorem was asserted where its hypothesis fails."""


class DynPruneWarning(UserWarning):
    """Base of every warning that dynprune gives."""


class NumericalWarning(DynPruneWarning):
    """A number is returned, but with less accuracy or meaning than hoped."""
