"""Iterative magnitude pruning: rewinding of weights, of the rate, or of neither."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from dynprune.core import Cost, InvalidInputError, track, unknown
from dynprune.pruning._collapse import (
    CollapseInTraining,
    check_collapse,
    check_known,
)
from dynprune.pruning._count_rules import Rule, check_rule
from dynprune.pruning._fine_tune import at_last_rate
from dynprune.pruning._from_scores import full_state, record, survivors
from dynprune.pruning._imp_checkpoints import Folder, check_checkpoints, kept_at
from dynprune.pruning._imp_results import IMPLevel, IMPRun
from dynprune.pruning._magnitude import magnitude_scores
from dynprune.pruning._numbers import as_count, as_density, as_number
from dynprune.pruning._pools import Groups, IMPScope, Pools
from dynprune.pruning._prunable import check_unmasked
from dynprune.pruning._select import check_scores, scope_of
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket
from dynprune.training import Recipe, Run, Trainer, check_trainer

AfterLevel = Callable[[Ticket, IMPLevel, Run], Any]
Rewind = Literal["weights", "learning-rate", "fine-tune"]


def imp(
    system: GradientSystem,
    *,
    densities: Sequence[float],
    train: Trainer,
    rewind_step: int = 0,
    rewind: Rewind = "weights",
    rule: Rule = "exact",
    scope: IMPScope | None = None,
    groups: Groups | None = None,
    rates: Mapping[str, float] | None = None,
    fine_tune: Trainer | None = None,
    collapse: CollapseInTraining = "warn",
    seed: int = 0,
    after_level: AfterLevel | None = None,
    checkpoints: Folder | None = None,
    progress: bool = False,
) -> IMPRun:
    r"""Train, remove the smallest weights, rewind the rest, and repeat.

    With k the rewind step and :math:`\theta_k` the state after the first k steps of
    dense training (the system's own state for k = 0), level n trains

    .. math:: m_n \odot \theta_k \;\to\; \theta^{(n)}, \qquad m_0 = 1,

    from step k on, and :math:`m_{n+1}` keeps the K weights of largest
    :math:`|\theta^{(n)}|` among those that :math:`m_n` keeps,
    :math:`K = \max(1, \lfloor d_{n+1} N + \tfrac{1}{2} \rfloor)`: counted from the
    target density, never compounded, ties to the lower flat index.

    ================ ================ ================= ===============================
    rewind           level n starts   norm buffers      learning rate
    ================ ================ ================= ===============================
    "weights"        at θ_k           those of θ_k      schedule from step k
    "learning-rate"  at θ⁽ⁿ⁻¹⁾        those of θ⁽ⁿ⁻¹⁾   schedule from step k
    "fine-tune"      at θ⁽ⁿ⁻¹⁾        those of θ⁽ⁿ⁻¹⁾   that of the last step, constant
    ================ ================ ================= ===============================

    In all three every level from 1 on makes T − k steps with a fresh optimiser state,
    on the data order of ``seed`` from step k on. Level 0 is the dense training: with
    ``"weights"`` its steps from k on, with an optimiser that starts afresh there; in
    the other two all T steps in one. There the ticket of level n holds
    :math:`\theta^{(n-1)}` where :math:`m_{n-1}` keeps, and each weight that went
    earlier as it was when it was last trained: training starts from
    :math:`m_n \odot \theta^{(n-1)}` all the same, and a shuffled mask uncovers values.

    With ``scope="layer"`` or ``"grouped"`` the count K holds in each tensor or group
    g for itself; ``rates`` make some of them go slower or faster:

    .. math:: d_{g,n} = \prod_{j \le n} \left( 1 - r_g (1 - d_j / d_{j-1}) \right),

    e.g. ``rates={"4.weight": 0.5}`` prunes that layer by 10 % where the densities say
    20 %. Then ``densities`` are those of parts of rate 1; the ticket's own density is
    counted.

    Other rules than ``"exact"`` are those of published codes, see :func:`from_scores`,
    each applied at every level to what the level before has kept. ``"open_lth"``,
    ``"lth2018"`` and ``"gem_miner"`` know no target: of the R weights alive in a part
    they remove the share :math:`p = r_g (1 - d_n / d_{n-1})`, rounded up, and what
    they remove beyond it adds up. ``"synflow"``, ``"grasp"`` and ``"force"`` count
    from :math:`d_{g,n}` of all N.

    Args:
        system: The dense system, at the state it is to be trained from.
        densities: One per level, 1 first, then strictly decreasing: see
            :func:`densities_by_factor`, :func:`densities_by_target` and
            :func:`densities_by_share`.
        train: Trains a system: a :class:`dynprune.training.Recipe`, or any
            :class:`dynprune.training.Trainer`.
        rewind_step: k, in optimiser steps.
        rewind: ``"weights"``, ``"learning-rate"`` or ``"fine-tune"``, as above.
        rule: ``"exact"``, as above, or that of another code.
        scope: What competes: all weights (``"global"``), those of each tensor
            (``"layer"``), or those of each group (``"grouped"``); what the rule is for
            by default: ``"layer"`` for ``"lth2018"``, else ``"global"``.
        groups: For ``"grouped"``: weight name to group name, or a function of it.
        rates: Pattern of tensor or group names to its rate r ≥ 0, 1 for those that
            match none, the first pattern that matches counts.
        fine_tune: For ``"fine-tune"``: what trains levels from 1 on, called with
            ``start_step=k``. By default ``train``, a Recipe then, without its schedule,
            at the learning rate (and momentum) of its last step.
        collapse: What to do where the mask of a level empties a layer or cuts the
            output off its input (see :func:`from_scores`): ``"warn"``, at the first
            such level and whenever it gets worse, or ``"ignore"``. It is no error: the
            levels before are what was asked for, and training of this one goes on.
        seed: Of the data order, the same for all levels.
        after_level: Called with the ticket, the level and the run of each level, also
            of those that were found in ``checkpoints``.
        checkpoints: A folder that keeps the checkpoint of each training, see
            :func:`dynprune.train`: a call that finds those of the same run goes on
            where the last one was cut off, also within a level, to the same result,
            and may have more densities than it. A Trainer that is no Recipe must
            take ``checkpoint=``.
        progress: Draw a bar.

    Returns:
        One ticket and one trained level per density.

    Raises:
        InvalidInputError: If the densities do not start at 1 and strictly decrease
            within (0, 1], the rewind step is negative or leaves no step to make, the
            system is already masked or has no prunable weight, groups or rates do not
            fit the scope or the names, a rate or a rule removes all of a layer, a
            rule prunes where the rate is 0, ``fine_tune`` is missing, not asked for or
            would not move, trained weights are not finite, or ``checkpoints`` are those
            of another run or cannot be kept.

    Warns:
        NumericalWarning: If a level keeps nothing of a layer, or no path from the
            input to the output; if fine-tuning is at a rate below a thousandth of the
            largest, as where a cosine ends.

    Cost:
        One training of :math:`T - k` steps per density, and the first k steps once:
        with batches of B examples B/N gradients a step. No further forward passes, no
        HVPs.

    Source:
        Frankle and Carbin, *The Lottery Ticket Hypothesis*, ICLR 2019; rewinding to
        k > 0: Frankle et al., *Linear Mode Connectivity and the Lottery Ticket
        Hypothesis*, ICML 2020; learning-rate rewinding: Renda et al., *Comparing
        Rewinding and Fine-tuning in Neural Network Pruning*, ICLR 2020.

    Example:
        >>> import torch
        >>> x, y = torch.eye(4), torch.tensor([[4.0], [3.0], [2.0], [1.0]])
        >>> net = torch.nn.Linear(4, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> recipe = Recipe(lambda params: torch.optim.SGD(params, lr=2.0), steps=1)
        >>> start = system.with_state(torch.zeros(4))
        >>> imp(start, densities=(1.0, 0.5), train=recipe).tickets[1].masks
        {'weight': tensor([[ True,  True, False, False]])}
    """
    densities = _densities(densities)
    rewind_step = as_count("rewind_step", rewind_step, least=0)
    check_unmasked(system, "level 0 is the dense network")
    check_known(collapse, in_training=True)
    folder = check_checkpoints(checkpoints)
    takes = ["seed", "start_step", *([] if folder is None else ["checkpoint"])]
    stops = ["stop_step"] if rewind == "weights" and rewind_step else []
    check_trainer(train, name="train", takes=takes + stops)
    if fine_tune is not None:
        check_trainer(fine_tune, name="fine_tune", takes=takes)
    if after_level is not None and not callable(after_level):
        raise InvalidInputError(f"after_level is {after_level!r}. Pass a function.")
    check_rule(rule)
    scope = scope or scope_of(rule)
    pools = Pools.of(system.prunable, scope, groups=groups, rates=rates)
    wanted = pools.densities(densities)
    again = _retrainer(system, train, rewind, fine_tune, rewind_step)
    pools.rehearse(survivors(system), wanted, rule)
    how: dict[str, Any] = {"rewind_step": rewind_step, "rewind": rewind}
    how |= {"rule": rule, "scope": scope}
    if groups is not None:
        parts = pools.names.items()
        how["groups"] = {name: part for part, names in parts for name in names}
    if rates is not None:
        how["rates"] = {pattern: float(rate) for pattern, rate in rates.items()}
    sources = _sources(rewind, rewind_step)
    start, first_step, found = system.with_state(system.state), 0, Cost()
    if rewind == "weights" and rewind_step:
        run = train(
            system,
            seed=seed,
            start_step=0,
            stop_step=rewind_step,
            **kept_at(folder, f"rewind-{rewind_step}"),
        )
        start = system.with_state(run.state, buffers=run.buffers)
        first_step, found = rewind_step, run.cost
    masks = survivors(system)
    origin = tuple(full_state(start, start.state).items())
    buffers = tuple(start.buffers.items())
    tickets: list[Ticket] = []
    looked: dict[str, Any] = {}
    levels: list[IMPLevel] = []
    for n in track(range(len(densities)), label="pruning.imp", show=progress):
        if n:
            last = {k: t.to(system.device) for k, t in levels[-1].state_items}
            scores = magnitude_scores(system, state=last)
            check_scores(scores, {name: tuple(m.shape) for name, m in masks.items()})
            masks = pools.select(
                scores, masks, wanted[n], before=wanted[n - 1], rule=rule
            )
            origin, buffers = tickets[0].state_items, tickets[0].buffer_items  # shared
            if rewind != "weights":
                origin = _last_trained(levels[-1], tickets[-1])
                buffers = levels[-1].buffer_items
        looked = check_collapse(
            start,
            masks,
            density=float(densities[n]),
            collapse=collapse,
            before=looked,
            advice="Stop at a higher density"
            + (", or pass scope='layer'" if scope == "global" else ""),
        )
        one = {"density": float(densities[n]), "level": n, "collapse": looked} | how
        ticket = Ticket(
            mask_items=tuple(masks.items()),
            state_items=origin,
            buffer_items=buffers,
            provenance=record(
                system, "pruning.imp", seed=seed, settings=one, sources=sources
            ),
            cost=found,
        )
        masked = start.with_ticket(ticket)
        move, step = (again, rewind_step) if n else (train, first_step)
        run = move(masked, seed=seed, start_step=step, **kept_at(folder, f"level-{n}"))
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
    settings = {"densities": [float(density) for density in densities]} | how
    made = record(system, "pruning.imp", seed=seed, settings=settings, sources=sources)
    return IMPRun(tickets=tuple(tickets), levels=tuple(levels), provenance=made)


def _last_trained(level: IMPLevel, ticket: Ticket) -> tuple[tuple[str, Tensor], ...]:
    masks, before = dict(ticket.mask_items), dict(ticket.state_items)
    return tuple(
        (name, torch.where(masks[name], part, before[name]) if name in masks else part)
        for name, part in level.state_items
    )


def _retrainer(
    system: GradientSystem,
    train: Trainer,
    rewind: str,
    fine_tune: Trainer | None,
    rewind_step: int,
) -> Trainer:
    if rewind not in get_args(Rewind):
        raise unknown("rewind", rewind, get_args(Rewind))
    if fine_tune is not None and rewind != "fine-tune":
        raise InvalidInputError(
            f"fine_tune came with rewind={rewind!r}, which trains by train= at every "
            "level. Pass rewind='fine-tune', or leave it out."
        )
    again = train if fine_tune is None else fine_tune
    if isinstance(again, Recipe) and rewind_step >= again.steps:
        raise InvalidInputError(
            f"rewind_step is {rewind_step} of {again.steps} steps: levels from 1 on "
            "would make none. Pass a smaller one, or a Recipe of more steps."
        )
    if rewind != "fine-tune" or fine_tune is not None:
        return again
    if not isinstance(train, Recipe):
        raise InvalidInputError(
            f"The last learning rate of a {type(train).__name__} is not known. Pass a "
            "Recipe as train=, or fine_tune= as what trains at that rate."
        )
    return at_last_rate(train, system)


def _sources(rewind: str, rewind_step: int) -> tuple[str, ...]:
    if rewind != "weights":
        return ("imp", "lr_rewinding")
    return ("imp", "rewinding") if rewind_step else ("imp",)


def _densities(given: Sequence[float]) -> tuple[float, ...]:
    try:
        found = tuple(as_number(density) for density in given)
    except TypeError:
        raise InvalidInputError(
            f"densities is {given!r}. Pass one density for each level, 1 first."
        ) from None
    if not found or found[0] != 1.0:
        raise InvalidInputError(
            f"The densities start at {found[0] if found else 'nothing'}. Start at 1.0: "
            "level 0 is the dense network."
        )
    for before, density in itertools.pairwise(found):
        if not as_density(density) < before:
            raise InvalidInputError(
                f"Density {density} follows {before}. Pass strictly decreasing ones."
            )
    return found
