"""How many examples there are, whatever their weight in the loss."""

from typing import Any
from weakref import WeakKeyDictionary

from dynprune.core import InvalidInputError
from dynprune.system import GradientSystem, is_resident, length

_COUNTS: WeakKeyDictionary[GradientSystem, float] = WeakKeyDictionary()


def examples_in(system: GradientSystem, batch: Any) -> float:
    """Return the number of examples of a batch, which costs are counted by.

    Args:
        system: The system.
        batch: One of its batches.

    Returns:
        The length of its tensors; its weight where it has none to count by.
    """
    try:
        return float(length(batch))
    except InvalidInputError:
        return system.weight(batch)


def example_count(system: GradientSystem) -> float:
    """Return the number N of examples of all data of a system.

    Args:
        system: The system.

    Returns:
        The number; the total weight where several processes share the data.

    Cost:
        No passes of the network; with ``batch_weight`` and data that are not resident,
        the data are read once.
    """
    if system.batch_weight is None or system.ranks.group is not None:
        return system.examples
    if is_resident(system.data):
        return examples_in(system, system.data)
    if system not in _COUNTS:
        _COUNTS[system] = sum(examples_in(system, b) for b in system.batches())
    return _COUNTS[system]
