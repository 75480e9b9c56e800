"""Units that prune and train: IMP, its controls, and every other method."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynprune import manifold, pruning
from dynprune.core import InvalidInputError
from dynprune.pruning import IMPRun, imp
from dynprune.study._config import Config
from dynprune.study.units._setup import (
    hessian_data,
    recipe_of,
    row_of,
    seed_of,
    system_of,
    train_ticket,
)
from dynprune.system import GradientSystem, is_resident
from dynprune.tasks import Problem
from dynprune.tickets import Ticket, reinitialise, shuffle

Left = tuple[list[dict[str, Any]], dict[str, Any], list[Path]]


def ticket_path(folder: Path, method: str, density: float, seed: int) -> Path:
    """Return where a ticket lies.

    Args:
        folder: The study's folder.
        method: Its method.
        density: Its density.
        seed: Its seed.

    Returns:
        The path.
    """
    return folder / "tickets" / f"{method}-d{density:g}-s{seed}.safetensors"


def run_path(folder: Path, seed: int) -> Path:
    """Return where an IMP run lies.

    Args:
        folder: The study's folder.
        seed: Its seed.

    Returns:
        The path.
    """
    return folder / "units" / f"imp-s{seed}.safetensors"


def imp_unit(problem: Problem, config: Config, seed: int, folder: Path) -> Left:
    """Run IMP down all densities; level 0 is the dense network.

    Args:
        problem: The problem.
        config: The config.
        seed: The study's seed.
        folder: The study's folder.

    Returns:
        Rows, facts and files.
    """
    system = system_of(problem, config, seed)
    run = imp(
        system,
        densities=config.densities,
        rewind_step=config.rewind_step,
        train=recipe_of(config),
        seed=seed_of(config, "order", seed),
    )
    rows, files = [], [run_path(folder, seed)]
    run.save(files[0])
    for density, ticket, level in zip(
        config.densities, run.tickets, run.levels, strict=True
    ):
        names = ("imp", "dense") if density == 1.0 else ("imp",)
        for method in names:
            rows.append(
                row_of(
                    problem,
                    config,
                    level.state,
                    level.buffers,
                    method=method,
                    density=density,
                    seed=seed,
                    cost=ticket.cost + level.cost,
                )
            )
        files.append(ticket_path(folder, "imp", density, seed))
        ticket.save(files[-1])
    layers = _layers("imp", zip(config.densities, run.tickets, strict=True), seed)
    return rows, {"layers": layers}, files


def method_unit(
    problem: Problem, config: Config, method: str, seed: int, folder: Path
) -> Left:
    """Prune with one method to every compared density and train the tickets.

    Args:
        problem: The problem.
        config: The config.
        method: The method's name.
        seed: The study's seed.
        folder: The study's folder; other units' tickets are read from it.

    Returns:
        Rows, facts and files.
    """
    system = system_of(problem, config, seed)
    maker = _maker(problem, config, method, seed, folder, system)
    rows, files, made = [], [], []
    for density in config.compared:
        ticket = maker(density)
        start = config.rewind_step if method == "imp-shuffled" else 0
        rows.append(
            train_ticket(
                problem,
                config,
                system,
                ticket,
                method=method,
                density=density,
                seed=seed,
                start_step=start,
            )
        )
        files.append(ticket_path(folder, method, density, seed))
        ticket.save(files[-1])
        made.append((density, ticket))
    return rows, {"layers": _layers(method, made, seed)}, files


def _maker(
    problem: Problem,
    config: Config,
    method: str,
    seed: int,
    folder: Path,
    system: GradientSystem,
) -> Callable[[float], Ticket]:
    # density -> ticket; what does not depend on the density runs once, here. A ticket
    # that came apart is a finding, in the table of layers; it is trained all the same
    if method.endswith("-shuffled"):
        origin = method.removesuffix("-shuffled")
        return lambda density: shuffle(
            Ticket.load(ticket_path(folder, origin, density, seed)),
            seed=seed_of(config, method, seed, density),
        )
    if method == "imp-reinitialised":
        fresh = problem.model(seed_of(config, method, seed))
        state = {name: part.detach() for name, part in fresh.named_parameters()}
        buffers = {name: part.detach() for name, part in fresh.named_buffers()}
        return lambda density: reinitialise(
            Ticket.load(ticket_path(folder, "imp", density, seed)), state, buffers
        )
    if method == "magnitude-trained":
        run = IMPRun.load(run_path(folder, seed))
        state = run.levels[0].state
        spent = run.tickets[0].cost + run.levels[0].cost  # to the rewind step, and on
        return lambda density: pruning.magnitude(
            system, density=density, state=state, cost=spent, collapse="ignore"
        )
    if method == "manifold":
        report = manifold.analyse(
            system,
            k_max=config.k_max,
            samples=0,
            optimizer=recipe_of(config).optimizer,
            transient=config.transient,
            batch_size=config.batch_size if is_resident(system.data) else None,
            hessian_data=hessian_data(system, config),
            seed=seed_of(config, "order", seed),
            warn=False,
        )
        return lambda density: manifold.prune(
            system, density=density, report=report, collapse="ignore", warn=False
        )
    for baseline in pruning.BASELINES:
        if baseline.name == method:
            return lambda density: baseline(
                system,
                density=density,
                seed=seed_of(config, method, seed, density),
                collapse="ignore",
            )
    raise InvalidInputError(f"No method {method!r}.")


def _layers(method: str, made: Any, seed: int) -> list[dict[str, Any]]:
    return [
        {
            "method": method,
            "density": density,
            "seed": seed,
            "layer": layer,
            "layer_density": value,
        }
        for density, ticket in made
        for layer, value in ticket.layer_densities.items()
    ]
