"""Edge-popup: train scores, keep the highest of each layer, never train a weight."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dynprune.core import (
    ConvergenceError,
    derive_seed,
    generator,
    track,
)
from dynprune.pruning._collapse import Collapse, CollapseWatch, check_known
from dynprune.pruning._from_scores import survivors
from dynprune.pruning._mask_training import MaskTraining, Weights, own_generators
from dynprune.pruning._masked_net import Rule, straight_through
from dynprune.pruning._numbers import as_count, as_density
from dynprune.pruning._prunable import check_start
from dynprune.pruning._select import Scope, check_scores, kept_count, select
from dynprune.pruning._signed_weights import fans
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket
from dynprune.training import OptimizerFactory, Schedule

_AT_REST = 100  # steps after which _sgd's momentum has died away, to 1 in 40,000


def edge_popup(
    system: GradientSystem,
    *,
    density: float,
    epochs: int = 100,
    scope: Scope = "layer",
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
) -> Ticket:
    r"""Train scores s on frozen weights; every forward pass keeps the highest |s|.

    The scores follow the gradient of :math:`L(w \odot m)` where m is 1 for the
    K highest |s| of a layer, and straight through

    .. math:: \frac{\partial L}{\partial s} = \frac{\partial L}{\partial m}
              \operatorname{sign}(s),

    for all s, kept or not, so that an edge may pop up again. K is
    :math:`\max(1, \lfloor d n + \tfrac{1}{2} \rfloor)`, ties to the lower flat index
    (the source's code keeps :math:`n - \lfloor (1 - d) n \rfloor`). Weights stay at
    :math:`w = \operatorname{sign}(\theta) \sqrt{2 / n_{in}}`. Scores start uniform in
    :math:`\pm 1 / \sqrt{n_{in}}`. The ticket's state is the frozen network, its
    buffers are as the training left them.

    Args:
        system: What is pruned. Its model is not changed.
        density: Fraction d to keep, in (0, 1].
        epochs: Passes over the data.
        scope: ``"layer"`` as in the source, or ``"global"`` for the K highest of all.
        optimizer: Makes the optimiser of the scores; SGD with a learning rate of 0.1,
            momentum 0.9 and weight decay 1e-4 by default.
        schedule: Makes its schedule, stepped once per step; the cosine over all
            epochs, constant within each, by default.
        weights: ``"own"`` keeps θ instead of w.
        plain: Without biases and without scales and shifts of norms; False freezes
            them at the system's values.
        mode: Of batch norm and dropout while scores are trained.
        data: What to train on if not the system's data.
        batch_size: Examples per batch of resident data, 64 by default.
        collapse: What to do about one, of the masks at the end; see
            :func:`from_scores`. An error comes as soon as the masks can no longer
            change: where, for an epoch and 100 steps, no score had a derivative. With
            an optimizer or schedule of your own it comes at the end, for how long its
            momentum lasts is not known.
        seed: Of the scores, the data order and dropout.
        progress: Draw a bar.

    Returns:
        The ticket; ``losses`` of each epoch are in its provenance.

    Raises:
        InvalidInputError: If an argument is wrong, there is no prunable weight, or
            the output loses its input (see ``collapse``).
        ConvergenceError: If the loss or a score is not finite.

    Cost:
        One gradient per epoch, no HVPs, no further forward passes but the checks of
        one new :class:`dynprune.system.GradientSystem`; a selection among the scores
        per step.

    Source:
        Ramanujan et al., *What's Hidden in a Randomly Weighted Neural Network?*, CVPR
        2020; the sign comes from the authors' code, which scores by \|s\|.

    Example:
        >>> x, y = torch.eye(4), torch.tensor([[1.0], [0.0], [-1.0], [0.0]])
        >>> net = torch.nn.Linear(4, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> start = system.with_state(torch.tensor([1.0, 1.0, -1.0, -1.0]))
        >>> edge_popup(start, density=0.5, epochs=40).masks["weight"]
        tensor([[ True, False,  True, False]])
    """  # noqa: DOC502 - raised by the parts
    check_start(system, seed)
    system.check_one_process("Edge-popup")
    check_known(collapse)
    density, epochs = as_density(density), as_count("epochs", epochs)
    alive = survivors(system)
    check_scores(alive, {name: tuple(part.shape) for name, part in alive.items()})
    ones = {name: part.double() for name, part in alive.items()}
    select(ones, alive, density=density, scope=scope)  # refuses what cannot be kept
    watch = CollapseWatch(
        system,
        density=density,
        collapse=collapse,
        epochs=epochs,
        advice="Pass a higher density"
        + (", or scope='layer'" if scope == "global" else ""),
    )
    own = optimizer is not None or schedule is not None  # a cycle moves momentum, too
    resting = 0  # since which step no score was seen to have a derivative
    with own_generators(system.data if data is None else data, seed=seed):
        training = MaskTraining(
            system,
            _start(system, seed=seed),
            rule=highest(density, scope),
            epochs=epochs,
            optimizer=optimizer or _sgd,
            schedule=schedule,
            penalty=0.0,
            weights=weights,
            plain=plain,
            mode=mode,
            data=data,
            batch_size=batch_size,
            seed=seed,
        )
        for e in track(range(epochs), label="pruning.edge_popup", show=progress):
            if not training.epoch(e):
                raise ConvergenceError(
                    f"The loss or a score is not finite after epoch {e}. Lower the "
                    "learning rate."
                )
            steps = training.cost.steps
            resting = (resting or steps) if not own and training.idle else 0
            if resting and steps - resting >= _AT_REST:
                watch.during(training.masks(), e)
    sizes = {name: part.abs() for name, part in training.scores().items()}
    masks = select(sizes, alive, density=density, scope=scope)
    return training.ticket(
        masks,
        made_by="pruning.edge_popup",
        settings={"density": density, "scope": scope, "collapse": watch.end(masks)},
        source="edge_popup",
        seed=seed,
    )


def highest(density: float, scope: Scope) -> Rule:
    """Return the rule that keeps the highest scores by size, straight through.

    Args:
        density: Fraction to keep.
        scope: Over all scores together, or in each tensor.

    Returns:
        Makes masks of scores and of what is alive, on their device.
    """

    def masks(scores: Sequence[Tensor], alive: Sequence[Tensor]) -> list[Tensor]:
        sizes = [part.abs() for part in scores]
        with torch.no_grad():
            ranked = [
                part.masked_fill(q == 0, -1.0).reshape(-1)
                for part, q in zip(sizes, alive, strict=True)
            ]
            if scope == "layer":
                hard = [_top(part, density) for part in ranked]
            else:
                lengths = [len(part) for part in ranked]
                hard = list(_top(torch.cat(ranked), density).split(lengths))
        return [
            straight_through(top.view(part.shape), part) * q
            for top, part, q in zip(hard, sizes, alive, strict=True)
        ]

    return masks


def _top(flat: Tensor, density: float) -> Tensor:
    # ties to the lower index, as select() has it; a selection, for a sort of every
    # layer at every step would cost more than the step
    if not len(flat):
        return torch.zeros_like(flat)
    count = kept_count(density, len(flat))
    threshold = flat.kthvalue(len(flat) - count + 1).values
    above, level = flat > threshold, flat == threshold
    return (above | (level & (level.cumsum(0) <= count - above.sum()))).to(flat)


def _start(system: GradientSystem, *, seed: int) -> dict[str, Tensor]:
    shapes = dict(zip(system.names, system.coordinates.shapes, strict=True))
    found = {}
    for name, number in fans(system).items():
        source = generator(derive_seed("edge_popup", seed, name))
        unit = torch.rand(shapes[name], generator=source, dtype=torch.float64)
        found[name] = (2.0 * unit - 1.0) / math.sqrt(max(number, 1))
    return found


def _sgd(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-4)
