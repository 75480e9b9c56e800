"""Sanity checks: is it the mask and its own weights that make a ticket?"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dynprune.core import InvalidInputError, mean_interval, whole
from dynprune.pruning._from_scores import record
from dynprune.pruning._numbers import as_count, as_number
from dynprune.pruning._prunable import check_start
from dynprune.pruning._sanity_check_controls import (
    CONTROLS,
    TICKET,
    MakeModel,
    check_ticket,
    make_controls,
)
from dynprune.pruning._sanity_check_results import SanityCheck
from dynprune.system import GradientSystem
from dynprune.tasks import Problem
from dynprune.tickets import Ticket
from dynprune.training import Evaluation, Recipe, Trainer, evaluate, train_many

Scores = Mapping[str, Tensor]
Metric = Callable[[Tensor, Tensor], Tensor]


def sanity_check(
    ticket: Ticket | Sequence[Ticket],
    system: GradientSystem,
    *,
    train: Trainer,
    problem: Problem | None = None,
    held_out: Any = None,
    make_model: MakeModel | None = None,
    metric: Metric | None = None,
    split: Literal["train", "validation", "test"] = "validation",
    scores: Scores | Sequence[Scores] | None = None,
    seeds: Sequence[int] = (0, 1, 2, 3, 4),
    start_step: int = 0,
    confidence: float = 0.95,
    margin: float = 0.0,
    how: Literal["auto", "stacked", "processes", "serial"] = "auto",
    stack: int | None = None,
    jobs: int | None = None,
    progress: bool = False,
) -> SanityCheck:
    r"""Train a ticket beside copies that forget part of it, and compare over seeds.

    With masks m, state θ and the number of weights kept in each layer the same for all:

    - ``shuffled``: :math:`(m \circ \pi, \theta)`, the mask of each layer permuted at
      random; forgets which weights are kept;
    - ``reinitialised``: :math:`(m, \theta')`, θ' a new initial state; forgets the
      weights' values;
    - ``inverted``: in each layer the weights of lowest score; without scores, weights
      that the ticket removes, drawn at random (all of them and some others where a
      layer removes fewer than it keeps), see :func:`dynprune.tickets.invert`;
    - ``random``: :math:`(m \circ \pi', \theta')`, forgets both. (A random mask with
      the ticket's own state would be another draw of ``shuffled``.)

    What the system does not train, as a frozen backbone and its running statistics, is
    the ticket's in all of them. With ``start_step=k > 0`` all five make the steps from
    k on, the ticket from :math:`\theta_k`, but θ' is an initial state: the drops of
    ``reinitialised`` and ``random`` include what k missing steps of training cost.

    Every seed is one data order, shared by the ticket and its controls, and one draw of
    each control, so that differences pair. A ticket *uses its mask* only if the
    shuffled and the re-initialised copies are both worse by more than the seed noise:
    if both Student intervals of the mean paired difference lie above ``margin``.
    Anything else is no proof of the contrary.

    The state must have values where the ticket prunes. One that was trained under the
    mask has zeros there: then ``shuffled`` and ``inverted`` lack most of the weights
    that they keep, and are worse whatever the mask is.

    Args:
        ticket: What is checked; or one ticket for each seed, which also counts the
            noise of finding one.
        system: The dense system that it was made of.
        train: Trains a system: a :class:`dynprune.training.Recipe`, or any
            :class:`dynprune.training.Trainer`.
        problem: Gives new models, held-out data, loss and metric.
        held_out: Without a problem: ``(x, y)`` or a loader to compare on.
        make_model: Without a problem: seed to a newly initialised model, called under
            generators of its own.
        metric: Without a problem: values per example of (outputs, targets), larger is
            better; None compares losses.
        split: Which split of the problem to compare on.
        scores: What the masks were made of, for ``inverted``; one for each ticket.
        seeds: At least two.
        start_step: Step k of a ticket rewound to k, where training starts, of all
            copies.
        confidence: Coverage of the intervals, in (0, 1).
        margin: Smallest drop that counts, in units of the metric or loss.
        how: See :func:`dynprune.training.train_many`; ``"auto"`` decides by a
            stopwatch, which changes rounding only.
        stack: Largest number of networks in one stack.
        jobs: Largest number of processes.
        progress: Draw a bar.

    Returns:
        The table, the differences with their intervals, and a verdict for each control.

    Raises:
        InvalidInputError: For a ticket without pruned weights or of another system,
            fewer than two seeds, no step from ``start_step`` on, neither a problem nor
            data and a model maker, or a metric or data that evaluation refuses.
        ConvergenceError: If a training diverges.

    Warns:
        NumericalWarning: If the state is zero where the ticket prunes.

    Cost:
        Five trainings a seed, and as many evaluations; one more before the first.

    Source:
        Su et al., *Sanity-Checking Pruning Methods: Random Tickets can Win the
        Jackpot*, NeurIPS 2020; Frankle et al., *Pruning Neural Networks at
        Initialization: Why Are We Missing the Mark?*, ICLR 2021. The intervals and
        ``random`` with a new state are ours.

    Example:
        >>> from dynprune.pruning import from_scores
        >>> from dynprune.training import Recipe
        >>> x, y = torch.eye(4), torch.tensor([[4.0], [4.0], [0.0], [0.0]])
        >>> net = torch.nn.Linear(4, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> near = system.with_state(torch.tensor([3.9, 3.9, 0.1, 0.1]))
        >>> kept = from_scores(near, {"weight": torch.tensor([[4, 3, 2, 1.0]])},
        ...                    density=0.5)
        >>> found = sanity_check(
        ...     kept,
        ...     near,
        ...     train=Recipe(lambda params: torch.optim.SGD(params, lr=0.1), steps=1),
        ...     held_out=(x, y),
        ...     make_model=lambda seed: torch.nn.Linear(4, 1, bias=False),
        ...     seeds=range(4),
        ...     how="serial",
        ... )
        >>> found.verdicts["reinitialised"], found.verdicts["inverted"]
        ('worse', 'worse')
    """  # noqa: DOC502 - raised by the parts
    check_start(system)
    seeds = _different(seeds)
    tickets = _one_each(ticket, seeds)
    found = _one_each(scores, seeds, what="scores")
    confidence = as_number(confidence)
    mean_interval((0.0, 1.0), confidence=confidence)  # refuses what is no coverage
    least = as_number(margin)
    if not least >= 0.0:
        raise InvalidInputError(f"margin is {margin!r}. Pass 0 or more.")
    start_step = as_count("start_step", start_step, least=0)
    if isinstance(train, Recipe) and start_step >= train.steps:
        raise InvalidInputError(
            f"start_step is {start_step} of {train.steps} steps: nothing would be "
            "trained. Pass a smaller one, or a Recipe of more steps."
        )
    judge = _problem(system, problem, held_out, make_model, metric)
    for one in {id(one): one for one in tickets}.values():
        check_ticket(one)
    arms = [
        {TICKET: one} | make_controls(one, system, judge.model, scores=score, seed=seed)
        for one, score, seed in zip(tickets, found, seeds, strict=True)
    ]
    net = copy.deepcopy(system.module)
    evaluate(net, judge, split, metric=metric)  # what it refuses is not trained first
    runs = train_many(
        [system.with_ticket(one) for arm in arms for one in arm.values()],
        train,
        seeds=[seed for seed in seeds for _ in arms[0]],
        start_step=start_step,
        how=how,
        stack=stack,
        jobs=jobs,
        progress=progress,
    )
    judged: list[Evaluation] = []
    for run in runs:
        run.apply_(net)
        judged.append(evaluate(net, judge, split, metric=metric))
    shape = (len(seeds), 1 + len(CONTROLS))
    losses = torch.tensor([one.loss for one in judged], dtype=torch.float64)
    metrics = torch.tensor([one.metric for one in judged], dtype=torch.float64)
    made = record(
        system,
        "pruning.sanity_check",
        seed=seeds[0],
        settings={
            "seeds": list(seeds),
            "start_step": start_step,
            "confidence": confidence,
            "margin": least,
            "split": split if problem is not None else None,
            "scores": scores is not None,
            "tickets": 1 if isinstance(ticket, Ticket) else len(tickets),
            "how": runs.how,
        },
        sources=tuple(
            dict.fromkeys((*tickets[0].provenance.sources, "su2020", "sanity"))
        ),
    )
    return SanityCheck(
        measure="loss" if bool(metrics.isnan().any()) else "metric",
        seeds=tuple(seeds),
        losses=losses.view(shape).T,
        metrics=metrics.view(shape).T,
        confidence=confidence,
        margin=least,
        densities=tuple(
            sum(arm[name].density for arm in arms) / len(arms)
            for name in (TICKET, *CONTROLS)
        ),
        how=runs.how,
        cost=runs.cost,
        provenance=made,
    )


def _different(seeds: Any) -> tuple[int, ...]:
    try:
        found = tuple(whole(seed, name="a seed") for seed in seeds)
    except TypeError:
        found = ()
    if len(found) < 2 or len(set(found)) < len(found):
        raise InvalidInputError(
            f"A sanity check was asked with seeds {seeds}. Pass at least two different "
            "ones: without seed noise there is no verdict."
        )
    return found


def _one_each(given: Any, seeds: Sequence[int], *, what: str = "tickets") -> list[Any]:
    if given is None or isinstance(given, Ticket | Mapping):
        return [given] * len(seeds)
    if not isinstance(given, Sequence):
        raise InvalidInputError(
            f"{what} came as a {type(given).__name__}. Pass one for all, or one for "
            "each seed."
        )
    if len(given) != len(seeds):
        raise InvalidInputError(
            f"{len(given)} {what} and {len(seeds)} seeds were given. Pass one for all, "
            "or one for each seed."
        )
    return list(given)


def _problem(
    system: GradientSystem,
    problem: Problem | None,
    held_out: Any,
    make_model: MakeModel | None,
    metric: Metric | None,
) -> Problem:
    parts = {"held_out": held_out, "make_model": make_model, "metric": metric}
    given = [name for name, part in parts.items() if part is not None]
    if problem is not None:
        if given:
            raise InvalidInputError(
                f"problem and {', '.join(given)} were given. Pass the problem, or what "
                "stands for it; dataclasses.replace(problem, ...) changes one."
            )
        return problem
    if held_out is None or make_model is None:
        raise InvalidInputError(
            f"A sanity check was asked with {', '.join(given) or 'no problem'} only. "
            "Pass problem=, or held_out= (data to compare on) and make_model= (seed to "
            "a new model, for the re-initialised copies)."
        )
    if isinstance(make_model, nn.Module) or not callable(make_model):
        raise InvalidInputError(
            f"make_model is a {type(make_model).__name__}. Pass a function from a seed "
            "to a new model."
        )
    return Problem(
        make_model=make_model,
        loss_fn=system.loss_fn,
        train=held_out,
        validation=held_out,
        test=held_out,
        metric=metric,
        batch_loss=system.batch_loss,
        batch_weight=system.batch_weight,
    )
