"""Iterative magnitude pruning with weight rewinding."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dynprune.core import Cost, InvalidInputError, track
from dynprune.pruning._from_scores import full_state, record, survivors
from dynprune.pruning._imp_results import IMPLevel, IMPRun
from dynprune.pruning._magnitude import magnitude_scores
from dynprune.pruning._select import Scope, check_scores, kept_count, select
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket
from dynprune.training import Run, Trainer

AfterLevel = Callable[[Ticket, IMPLevel, Run], Any]


def imp(
    system: GradientSystem,
    *,
    densities: Sequence[float],
    train: Trainer,
    rewind_step: int = 0,
    scope: Scope = "global",
    seed: int = 0,
    after_level: AfterLevel | None = None,
    progress: bool = False,
) -> IMPRun:
    r"""Train, remove the smallest weights, rewind the rest, and repeat.

    With k the rewind step and :math:`\theta_k` the state after the first k steps of
    dense training (the system's own state for k = 0), level n trains

    .. math:: m_n \odot \theta_k \;\to\; \theta^{(n)}, \qquad m_0 = 1,

    from step k on, and :math:`m_{n+1}` keeps the K weights of largest
    :math:`|\theta^{(n)}|` among those that :math:`m_n` keeps,
    :math:`K = \max(1, \lfloor d_{n+1} N + \tfrac{1}{2} \rfloor)`: counted from the
    target density, never compounded, ties to the lower flat index. Buffers are
    rewound to :math:`\theta_k`'s. Every level sees the same data order, a function of
    ``seed``, continued from step k; its optimiser starts fresh.

    Args:
        system: The dense system, at the state it is to be trained from.
        densities: One per level, 1 first, then strictly decreasing.
        train: Trains a system: a :class:`dynprune.training.Recipe`, or any
            :class:`dynprune.training.Trainer`.
        rewind_step: k, in optimiser steps.
        scope: ``"global"``, or ``"layer"`` for the same density in each tensor.
        seed: Of the data order, the same for all levels.
        after_level: Called with the ticket, the level and the run of each level.
        progress: Draw a bar.

    Returns:
        One ticket and one trained level per density.

    Raises:
        InvalidInputError: If the densities do not start at 1 and strictly decrease
            within (0, 1], the rewind step is negative, the system is already masked
            or has no prunable weight, or trained weights are not finite.

    Cost:
        One training of :math:`T - k` steps per density, and the first k steps once.

    Source:
        Frankle and Carbin, *The Lottery Ticket Hypothesis*, ICLR 2019; rewinding to
        k > 0: Frankle et al., *Linear Mode Connectivity and the Lottery Ticket
        Hypothesis*, ICML 2020.

    Example:
        >>> from dynprune.training import Recipe
        >>> x, y = torch.eye(4), torch.tensor([[4.0], [3.0], [2.0], [1.0]])
        >>> net = torch.nn.Linear(4, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> recipe = Recipe(lambda params: torch.optim.SGD(params, lr=2.0), steps=1)
        >>> start = system.with_state(torch.zeros(4))
        >>> imp(start, densities=(1.0, 0.5), train=recipe).tickets[1].masks
        {'weight': tensor([[ True,  True, False, False]])}
    """  # noqa: DOC502 - raised by _check and check_scores
    _check(system, densities, rewind_step, scope)
    start, found = _rewound(system, train, rewind_step, seed)
    masks = survivors(system)
    settings = {
        "densities": [float(density) for density in densities],
        "rewind_step": rewind_step,
        "scope": scope,
    }
    sources = ("imp", "rewinding") if rewind_step else ("imp",)
    made = record(system, "pruning.imp", seed=seed, settings=settings, sources=sources)
    rewind_state, rewind_buffers = full_state(start, start.state), start.buffers
    tickets: list[Ticket] = []
    levels: list[IMPLevel] = []
    for n in track(range(len(densities)), label="pruning.imp", show=progress):
        if n:
            masks = _next_masks(system, levels[-1], masks, densities[n], scope)
        one = {"density": float(densities[n]), "level": n} | {
            key: settings[key] for key in ("rewind_step", "scope")
        }
        ticket = Ticket.make(
            masks,
            rewind_state,
            rewind_buffers,
            provenance=record(
                system, "pruning.imp", seed=seed, settings=one, sources=sources
            ),
            cost=found,
        )
        masked = start.with_ticket(ticket)
        run = train(masked, seed=seed, start_step=rewind_step)
        level = IMPLevel.make(
            full_state(masked, run.state),
            run.buffers,
            level=n,
            density=ticket.density,
            cost=run.cost,
        )
        found += run.cost
        tickets.append(ticket)
        levels.append(level)
        if after_level is not None:
            after_level(ticket, level, run)
    return IMPRun(tickets=tuple(tickets), levels=tuple(levels), provenance=made)


def _rewound(
    system: GradientSystem, train: Trainer, rewind_step: int, seed: int
) -> tuple[GradientSystem, Cost]:
    if rewind_step == 0:
        return system.with_state(system.state, buffers=system.buffers), Cost()
    run = train(system, seed=seed, start_step=0, stop_step=rewind_step)
    return system.with_state(run.state, buffers=run.buffers), run.cost


def _next_masks(
    system: GradientSystem,
    level: IMPLevel,
    masks: dict[str, torch.Tensor],
    density: float,
    scope: Scope,
) -> dict[str, torch.Tensor]:
    scores = magnitude_scores(system, state=dict(level.state_items))
    check_scores(scores, {name: tuple(mask.shape) for name, mask in masks.items()})
    return select(scores, masks, density=density, scope=scope)


def _check(
    system: GradientSystem, densities: Sequence[float], rewind_step: int, scope: str
) -> None:
    if scope not in {"global", "layer"}:
        raise InvalidInputError(f"scope is {scope!r}. Pass 'global' or 'layer'.")
    if not densities or densities[0] != 1.0:
        raise InvalidInputError(
            f"The densities start at {densities[0] if densities else 'nothing'}. Start "
            "at 1.0: level 0 is the dense network."
        )
    for before, density in itertools.pairwise(densities):
        kept_count(density, 1)
        if not density < before:
            raise InvalidInputError(
                f"Density {density} follows {before}. Pass strictly decreasing ones."
            )
    if rewind_step < 0:
        raise InvalidInputError(f"rewind_step is {rewind_step}. Pass 0 or more.")
    if not system.prunable:
        raise InvalidInputError(
            "The system has no prunable weight (no trainable Linear or Conv layer "
            "among its parameters). Pass a model that has one, or select others."
        )
    pruned = sum(int((~mask).sum()) for mask in survivors(system).values())
    if pruned:
        raise InvalidInputError(
            f"{pruned} weights of the system are already pruned, and level 0 is the "
            "dense network. Pass system.with_mask({})."
        )
