"""Units that measure a theory on the dense run, by name."""

from typing import Any

from dynprune.core import InvalidInputError
from dynprune.study._config import Config
from dynprune.study.units._forecast import forecast_unit
from dynprune.study.units._manifold import manifold_unit
from dynprune.study.units._multipliers import multipliers
from dynprune.study.units._setup import seed_of
from dynprune.tasks import Problem


def analysis_unit(
    problem: Problem, config: Config, kind: str, seed: int
) -> dict[str, Any]:
    """Run one analysis.

    Args:
        problem: The problem.
        config: The config.
        kind: One of ``ANALYSES``.
        seed: The study's seed.

    Returns:
        The facts.

    Raises:
        InvalidInputError: If there is no such analysis.
    """
    if kind == "manifold-analysis":
        return manifold_unit(problem, config, seed)
    if kind == "forecast":
        return forecast_unit(problem, config, seed)
    if kind == "multipliers":
        return multipliers(problem, seed=seed_of(config, "multipliers", seed))
    raise InvalidInputError(f"No analysis {kind!r}.")
