"""The pruners that a study compares with, by name."""

from dataclasses import dataclass
from typing import Any, Protocol, final

from dynprune.pruning._erk import erk
from dynprune.pruning._force import force
from dynprune.pruning._grasp import grasp
from dynprune.pruning._iterative_snip import iterative_snip
from dynprune.pruning._lamp import lamp
from dynprune.pruning._magnitude import magnitude
from dynprune.pruning._random import random
from dynprune.pruning._snip import snip
from dynprune.pruning._synflow import synflow
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket


class Pruner(Protocol):
    """Anything that makes a ticket of a system at a density."""

    def __call__(
        self, system: GradientSystem, *, density: float, seed: int = 0
    ) -> Ticket:
        """Prune.

        Args:
            system: What is pruned.
            density: Fraction to keep, in (0, 1].
            seed: Of whatever is random.

        Returns:
            The ticket.
        """
        ...


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """Name a pruner with its default knobs.

    Args:
        name: What configs and results call it.
        pruner: The function.

    Example:
        >>> [baseline.name for baseline in BASELINES][:3]
        ['random', 'magnitude-init', 'snip']
    """

    name: str
    pruner: Pruner

    def __call__(
        self, system: GradientSystem, *, density: float, seed: int = 0, **knobs: Any
    ) -> Ticket:
        """Prune with the defaults.

        Args:
            system: What is pruned.
            density: Fraction to keep, in (0, 1].
            seed: Of whatever is random.
            **knobs: Others of this pruner's own, by name.

        Returns:
            The ticket; ``ticket.cost`` is what it took.
        """
        return self.pruner(system, density=density, seed=seed, **knobs)


BASELINES: tuple[Baseline, ...] = (
    Baseline(name="random", pruner=random),
    Baseline(name="magnitude-init", pruner=magnitude),
    Baseline(name="snip", pruner=snip),
    Baseline(name="grasp", pruner=grasp),
    Baseline(name="synflow", pruner=synflow),
    Baseline(name="erk", pruner=erk),
    Baseline(name="force", pruner=force),
    Baseline(name="iterative-snip", pruner=iterative_snip),
    Baseline(name="lamp", pruner=lamp),
)
