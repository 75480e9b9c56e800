"""RigL: sparse training that grows weights where the dense gradient is large."""

from typing import Any

from torch import Tensor

from dynprune.pruning._collapse import CollapseInTraining
from dynprune.pruning._exchange import exchange
from dynprune.pruning._layer_counts import LayerDensities
from dynprune.pruning._sparse_training import SparseTraining
from dynprune.system import GradientSystem
from dynprune.training import Mover, Recipe


def rigl(
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
    r"""Train sparsely; move weights to where the gradient of the loss is largest.

    Masks start at random. At the steps :math:`t = \Delta t, 2 \Delta t, \ldots < T`
    each layer with :math:`n_l` kept weights drops the k of smallest magnitude and
    grows the k of largest :math:`|\partial L / \partial w|` among those not kept,

    .. math:: k = \left\lfloor n_l \frac{\alpha}{2} \left( 1 + \cos \frac{\pi t}{T}
              \right) \right\rfloor ,

    with the gradient of the whole layer on the step's batch. Such a step only changes
    masks, as in the source's algorithm: weights do not move, schedule and data order
    go on. What was just dropped may grow again and keeps its weight; other grown
    weights start at zero, with zero momentum (under Adam with zero second moments,
    which makes their first steps large). The count is the same in each layer at every
    step.

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
        seed: Of the first masks, data order and dropout.

    Returns:
        The masks, with the state before and after training.

    Raises:
        InvalidInputError: If the density is not in (0, 1] or too low for a weight in
            each layer, a knob is out of its range, no update falls into training, the
            system is masked, ``train`` is no Recipe or its optimiser takes a closure.

    Warns:
        NumericalWarning: See ``collapse``.

    Cost:
        One training: with batches of B examples B/N gradients a step. At an update a
        dense gradient of one batch takes the place of a step, and is counted as one.
        No further forward passes, no HVPs.

    Source:
        Evci et al., *Rigging the Lottery: Making All Tickets Winners*, ICML 2020.
        Uniform densities include the first layer here, which the source keeps dense.

    Example:
        >>> import torch
        >>> x, y = torch.eye(4), torch.tensor([[4.0], [0.0], [0.0], [3.0]])
        >>> net = torch.nn.Linear(4, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> recipe = Recipe(lambda params: torch.optim.SGD(params, lr=1.0), steps=20)
        >>> start = system.with_state(torch.zeros(4))
        >>> found = rigl(start, density=0.5, train=recipe, update_every=1, drop=0.9)
        >>> found.ticket.masks
        {'weight': tensor([[ True, False, False,  True]])}
    """  # noqa: DOC502 - raised by the parts

    def wanted(mover: Mover, _: int, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        loss, gradients = mover.dense_gradient(batch)
        return loss, {name: part.abs() for name, part in gradients.items()}

    return exchange(
        system,
        train,
        wanted,
        made_by="pruning.rigl",
        sources=("rigl",),
        density=density,
        layers=layers,
        update_every=update_every,
        drop=drop,
        stop_step=stop_step,
        record_every=record_every,
        collapse=collapse,
        seed=seed,
    )
