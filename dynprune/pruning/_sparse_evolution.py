"""SET: sparse training that grows weights at random."""

from typing import Any

import torch
from torch import Tensor

from dynprune.core import derive_seed, generator
from dynprune.pruning._collapse import CollapseInTraining
from dynprune.pruning._exchange import exchange
from dynprune.pruning._layer_counts import LayerDensities
from dynprune.pruning._sparse_training import SparseTraining
from dynprune.system import GradientSystem
from dynprune.training import Mover, Recipe


def sparse_evolution(
    system: GradientSystem,
    *,
    density: float,
    train: Recipe,
    layers: LayerDensities = "erk",
    update_every: int = 100,
    drop: float = 0.3,
    stop_step: int | None = None,
    record_every: int | None = None,
    collapse: CollapseInTraining = "warn",
    seed: int = 0,
) -> SparseTraining:
    r"""Train sparsely; move small weights to places drawn at random.

    As :func:`rigl`, but the k weights to grow are drawn uniformly among those that are
    not kept, which needs no gradient: the step is then made, too, with the new masks.
    Updates have the form in which the source of RigL compares with this method: the
    smallest magnitudes are dropped whatever their sign, the share decays by a cosine,
    and grown weights start at zero. The original drops a fixed share of the smallest
    positive and of the largest negative weights after every epoch, and draws the
    grown ones.

    Args:
        system: The dense system, at the state that the kept weights start from.
        density: Kept / prunable weights throughout, in (0, 1].
        train: How it is trained.
        layers: Densities of the layers: ``"erk"`` or ``"uniform"``; the counts add up
            to exactly :math:`\max(1, \lfloor d N + \tfrac{1}{2} \rfloor)`.
        update_every: Δt, steps between updates, at least 1.
        drop: α, in (0, 1).
        stop_step: T, no update from here on; three quarters of training by default.
        record_every: Steps between snapshots of ``run.trajectory``, or None.
        collapse: What to do where the last masks empty a layer or cut the output off
            its input (see :func:`from_scores`): ``"warn"`` or ``"ignore"``. It is no
            error: the training is a result.
        seed: Of the masks, data order and dropout.

    Returns:
        The masks, with the state before and after training.

    Raises:
        InvalidInputError: See :func:`rigl`.

    Warns:
        NumericalWarning: See ``collapse``.

    Cost:
        One training: with batches of B examples B/N gradients a step. No further
        forward passes, no HVPs.

    Source:
        Mocanu et al., *Scalable training of artificial neural networks with adaptive
        sparse connectivity inspired by network science*, Nature Communications, 2018;
        Evci et al., *Rigging the Lottery: Making All Tickets Winners*, ICML 2020.

    Example:
        >>> x, y = torch.eye(4), torch.tensor([[4.0], [0.0], [0.0], [3.0]])
        >>> net = torch.nn.Linear(4, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> recipe = Recipe(lambda params: torch.optim.SGD(params, lr=1.0), steps=20)
        >>> found = sparse_evolution(system, density=0.5, train=recipe, update_every=2)
        >>> found.ticket.kept, int((found.trained.masked_state["weight"] != 0).sum())
        (2, 2)
    """  # noqa: DOC502 - raised by the parts

    def wanted(mover: Mover, step: int, _: Any) -> tuple[None, dict[str, Tensor]]:
        held, scores = mover.weights(), {}
        for name in system.prunable:
            draw = generator(derive_seed("pruning.sparse growth", seed, step, name))
            shape = held[name].shape
            scores[name] = torch.rand(shape, generator=draw, dtype=torch.float64)
        return None, scores

    return exchange(
        system,
        train,
        wanted,
        made_by="pruning.sparse_evolution",
        sources=("set", "rigl"),
        density=density,
        layers=layers,
        update_every=update_every,
        drop=drop,
        stop_step=stop_step,
        record_every=record_every,
        collapse=collapse,
        seed=seed,
    )
