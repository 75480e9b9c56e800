"""Gem-Miner: find a ticket that is accurate before its weights are trained."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dynprune.core import (
    ConvergenceError,
    InvalidInputError,
    NumericalWarning,
    derive_seed,
    generator,
    track,
)
from dynprune.pruning._collapse import Collapse, CollapseWatch, check_known
from dynprune.pruning._from_scores import survivors
from dynprune.pruning._mask_training import MaskTraining, Weights, own_generators
from dynprune.pruning._masked_net import MaskedNet, straight_through
from dynprune.pruning._numbers import as_count, as_density
from dynprune.pruning._prunable import check_start
from dynprune.pruning._select import check_room, check_scores, select
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket
from dynprune.training import OptimizerFactory, Schedule

CountRule = Literal["gem_miner", "exact"]


def gem_miner(
    system: GradientSystem,
    *,
    density: float,
    epochs: int = 150,
    freeze_every: int = 5,
    penalty: float = 1e-4,
    rule: CountRule = "gem_miner",
    optimizer: OptimizerFactory | None = None,
    schedule: Schedule | None = None,
    weights: Weights = "signed",
    plain: bool = True,
    mode: Literal["train", "eval"] = "train",
    data: Any = None,
    batch_size: int | None = None,
    collapse: Collapse = "error",
    seed: int = 0,
    progress: bool = False,
    throw: bool = True,
) -> Ticket:
    r"""Train scores on frozen weights, and freeze the lowest at zero in many rounds.

    Weights stay at :math:`w = \operatorname{sign}(\theta) \sqrt{2 / n_{in}}`. Scores
    start at :math:`p \sim U[0, 1]` and follow the gradient of

    .. math:: L(w \odot m) + \lambda |p|^2, \qquad m = 1[p > \tfrac{1}{2}]\, q

    with :math:`\partial m / \partial p = q` (straight through); p is clamped to [0, 1]
    before every batch and after an epoch. After epochs e = T, 2T, … < E (counted from
    0, T = ``freeze_every``) q becomes 0 for the :math:`\lceil r R \rceil` lowest of the
    R scores that are alive,

    .. math:: r = 1 - (d / d_0)^{1/n}, \qquad n = \lfloor (E - 1) / T \rfloor

    (:math:`d_0 = 1`, or the density of the system's mask). The ticket's mask is q; its
    state is the network that was mined: w, not θ, and with ``plain`` biases 0, scales
    1 and shifts 0, from where all of them are to be trained; buffers are as mining
    left them. λ: 1e-4 for ResNet-20 at d = .0144, 3e-5 at .0372, 1e-6 for VGG-16.

    ``rule="gem_miner"`` freezes, as the source does, all scores up to the threshold:
    those clamped at 0 tie, and a round may overshoot. Nor is its r rounded: at density
    .49 in two rounds it is .30000000000000004, and freezes 31 of 100, where the rule of
    that name in :func:`from_scores` takes the decimal. ``rule="exact"`` keeps
    :math:`\max(1, \lfloor d_0 (d / d_0)^{j/n} N + \tfrac{1}{2} \rfloor)` in round j,
    ties to the lower flat index, so that the density is the one asked for.

    Args:
        system: What is pruned. Its model is not changed.
        density: Fraction d to keep, in (0, 1].
        epochs: E, passes over the data.
        freeze_every: T, epochs between two rounds.
        penalty: λ; too large a one empties whole layers.
        rule: ``"gem_miner"`` or ``"exact"``.
        optimizer: Makes the optimiser of the scores; SGD with a learning rate of 0.1
            and momentum 0.9 by default (the source: Adam with 0.01 for VGG).
        schedule: Makes its schedule, stepped once per step; the cosine over E epochs,
            constant within each, by default.
        weights: ``"own"`` keeps θ instead of w.
        plain: Mine without biases and without scales and shifts of norms; False
            freezes them at the system's values.
        mode: Of batch norm and dropout while scores are trained.
        data: What to train on if not the system's data.
        batch_size: Examples per batch of resident data, 64 by default.
        collapse: What to do about one, of the masks at the end; see
            :func:`from_scores`. An error comes after the round that lost the input,
            for what is frozen stays so.
        seed: Of the scores, the data order and dropout.
        progress: Draw a bar.
        throw: Raise if a layer is empty while scores are trained; False warns and goes
            on, and then ``collapse="error"`` warns, too.

    Returns:
        The ticket; ``dict(ticket.provenance.settings)`` holds ``kept_counts`` after
        each round, ``losses`` of each epoch and ``active``, the number with p > ½.

    Raises:
        InvalidInputError: If an argument is wrong, no round takes place, there is
            no prunable weight, or the output loses its input (see ``collapse``).
        ConvergenceError: If after a round or at the end a layer has no weight that is
            alive with a score above ½, or a loss is not finite.

    Warns:
        NumericalWarning: If a layer is empty and ``throw`` is False.

    Cost:
        E gradients (and E passes over the data in steps), no HVPs; no further forward
        passes but the checks of one new :class:`dynprune.system.GradientSystem`.

    Source:
        Sreenivasan et al., *Rare Gems: Finding Lottery Tickets at Initialization*,
        NeurIPS 2022; when scores are clamped and frozen: the authors' code. That
        buffers come with the ticket is a reconstruction.

    Example:
        >>> x, y = torch.eye(4), torch.tensor([[1.0], [0.0], [-1.0], [0.0]])
        >>> net = torch.nn.Linear(4, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> start = system.with_state(torch.tensor([1.0, 1.0, -1.0, -1.0]))
        >>> ticket = gem_miner(start, density=0.5, epochs=40, rule="exact")
        >>> ticket.masks["weight"]
        tensor([[ True, False,  True, False]])
    """
    check_start(system, seed)
    system.check_one_process("Mining a ticket")
    check_known(collapse)
    density, epochs = as_density(density), as_count("epochs", epochs)
    freeze_every = as_count("freeze_every", freeze_every)
    rounds = _rounds(density, epochs, freeze_every)
    if rule not in {"gem_miner", "exact"}:
        raise InvalidInputError(f"rule is {rule!r}. Pass 'gem_miner' or 'exact'.")
    alive = survivors(system)
    check_scores(alive, {name: tuple(part.shape) for name, part in alive.items()})
    counts = [sum(int(part.sum()) for part in alive.values())]
    size = sum(part.numel() for part in alive.values())
    first = counts[0] / size
    check_room([part.reshape(-1) for part in alive.values()], density, "all layers")
    if collapse == "error" and not throw:
        collapse = "warn"
    watch = CollapseWatch(
        system,
        density=density,
        collapse=collapse,
        epochs=epochs,
        advice="Pass a higher density, or a smaller penalty",
    )
    empty: list[str] = []
    with own_generators(system.data if data is None else data, seed=seed):
        training = MaskTraining(
            system,
            uniform_scores(alive, seed=seed),
            rule=halves,
            epochs=epochs,
            optimizer=optimizer or _sgd,
            schedule=schedule,
            penalty=penalty,
            weights=weights,
            plain=plain,
            mode=mode,
            data=data,
            batch_size=batch_size,
            seed=seed,
        )
        for e in track(range(epochs), label="pruning.gem_miner", show=progress):
            finite = training.epoch(e, before=clamp_)
            clamp_(training.net)
            if not finite:
                raise ConvergenceError(
                    f"The loss or a score is not finite after epoch {e} at λ = "
                    f"{penalty}. Lower the learning rate or the penalty."
                )
            due = e > 0 and e % freeze_every == 0
            threshold = 0.0
            if due and first > density:
                r = 1.0 - (density / first) ** (1.0 / rounds)
                goal = first * (density / first) ** (len(counts) / rounds)
                if len(counts) == rounds:  # the last, without rounding
                    goal = density
                threshold = _freeze_(training, r, goal if rule == "exact" else None)
                counts.append(sum(int(part.sum()) for part in training.net.alive))
            if (due or e == epochs - 1) and not empty:
                empty = _empty(training.net)
                if empty:
                    _report(empty, e, penalty, density, threshold, throw=throw)
            if counts[-1] == 0:
                raise ConvergenceError(
                    f"No weight is left after epoch {e}. {_advice(penalty, threshold)}"
                )
            if due:
                watch.during(training.alive(), e)
    masks = training.alive()
    return training.ticket(
        masks,
        made_by="pruning.gem_miner",
        settings={
            "density": density,
            "collapse": watch.end(masks),
            "freeze_every": freeze_every,
            "penalty": penalty,
            "rule": rule,
            "kept_counts": counts[1:],
            "active": sum(int(part.sum()) for part in training.net.masks()),
        },
        source="gem_miner",
        seed=seed,
    )


def uniform_scores(like: Mapping[str, Tensor], *, seed: int) -> dict[str, Tensor]:
    """Draw scores uniformly from [0, 1).

    Args:
        like: Name to tensor of the shape.
        seed: Of the numbers.

    Returns:
        Name to float64 tensor; each depends on the seed and its own name only.
    """
    return {
        name: torch.rand(
            part.shape,
            generator=generator(derive_seed("gem_miner", seed, name)),
            dtype=torch.float64,
        )
        for name, part in like.items()
    }


def halves(scores: Sequence[Tensor], alive: Sequence[Tensor]) -> list[Tensor]:
    r"""Return the masks :math:`1[p > \tfrac{1}{2}]\, q`, straight through.

    Args:
        scores: Each p.
        alive: Each q, 0 or 1.

    Returns:
        Masks, 0 or 1, with the derivative q.
    """
    return [
        straight_through((p.detach() > 0.5).to(p), p) * q
        for p, q in zip(scores, alive, strict=True)
    ]


@torch.no_grad()
def clamp_(net: MaskedNet) -> None:
    """Clamp the scores to [0, 1], in place.

    Args:
        net: Whose scores.
    """
    for part in net.scores:
        part.clamp_(0.0, 1.0)


@torch.no_grad()
def _freeze_(training: MaskTraining, r: float, goal: float | None) -> float:
    # returns the threshold up to which scores were frozen
    net = training.net
    if goal is not None:
        sizes = {name: part.abs() for name, part in training.scores().items()}
        kept = select(sizes, training.alive(), density=goal)
        for name, alive in zip(net.names, net.alive, strict=True):
            alive.copy_(kept[name])
        return 0.0
    found = zip(net.scores, net.alive, strict=True)
    every = torch.cat([p.detach().abs()[q.bool()] for p, q in found])
    lowest = math.ceil(r * len(every))
    if not lowest:
        return 0.0
    threshold = every.kthvalue(lowest).values
    for p, q in zip(net.scores, net.alive, strict=True):
        q.mul_(p.abs() > threshold)
    return float(threshold)


def _empty(net: MaskedNet) -> list[str]:
    with torch.no_grad():
        masks = net.masks()
        kept = torch.stack([part.sum() for part in masks]).tolist()
    found = zip(net.names, masks, kept, strict=True)
    return [name for name, mask, count in found if mask.numel() and not count]


def _report(
    empty: list[str],
    e: int,
    penalty: float,
    density: float,
    threshold: float,
    *,
    throw: bool,
) -> None:
    message = (
        f"After epoch {e} nothing is kept of {', '.join(empty)} (no weight alive with "
        f"a score above ½) at λ = {penalty} and density {density}: the layer has "
        f"collapsed. {_advice(penalty, threshold)}; throw=False goes on while any "
        "weight is left."
    )
    if throw:
        raise ConvergenceError(message)
    warnings.warn(message, NumericalWarning, stacklevel=3)


def _advice(penalty: float, threshold: float) -> str:
    if threshold > 0.5:
        return (
            f"The scores up to {threshold:.4g} were frozen, ties included: those "
            "clamped at 1 tie. Pass rule='exact', which breaks ties, or a larger "
            f"penalty (λ is {penalty})"
        )
    smaller = f"a penalty (λ) below {penalty}, " if penalty else ""
    return f"Pass {smaller}a lower learning rate, or a higher density"


def _rounds(density: float, epochs: int, freeze_every: int) -> int:
    rounds = (epochs - 1) // freeze_every
    if rounds < 1 and density < 1.0:
        raise InvalidInputError(
            f"{epochs} epochs with a round every {freeze_every} have no round before "
            f"the last epoch, and nothing would be pruned. Pass epochs ≥ "
            f"{freeze_every + 1} or a smaller freeze_every."
        )
    return max(rounds, 1)


def _sgd(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
