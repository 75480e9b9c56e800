"""Gradual magnitude pruning: masks that tighten along a cubic while training."""

from typing import Any

from torch import Tensor

from dynprune.core import InvalidInputError
from dynprune.pruning._collapse import CollapseInTraining
from dynprune.pruning._from_scores import survivors
from dynprune.pruning._numbers import as_count, as_density
from dynprune.pruning._select import (
    Scope,
    check_choice,
    check_scope,
    check_scores,
    select,
)
from dynprune.pruning._sparse_training import (
    Masks,
    SparseTraining,
    check_dense,
    trained_with,
)
from dynprune.system import GradientSystem
from dynprune.training import Mover, Recipe


def cubic_densities(
    density: float, *, updates: int, start_density: float = 1.0
) -> tuple[float, ...]:
    r"""Return the densities of gradual pruning, one per update.

    .. math:: s_i = s_f + (s_0 - s_f) \left( 1 - \frac{i}{n} \right)^3,
              \qquad d_i = 1 - s_i, \qquad i = 0, \ldots, n

    with the sparsities :math:`s = 1 - d` of start and end.

    Args:
        density: :math:`1 - s_f`, the last one, in (0, 1].
        updates: n, at least 1.
        start_density: :math:`1 - s_0`, the first one, at least ``density``.

    Returns:
        n + 1 densities that do not increase.

    Raises:
        InvalidInputError: If a density is not in (0, 1], the first is below the last,
            or ``updates`` is below 1.

    Source:
        Zhu and Gupta, *To prune, or not to prune*, 2017, arXiv:1710.01878.

    Example:
        >>> cubic_densities(0.125, updates=2, start_density=0.625)
        (0.625, 0.1875, 0.125)
    """
    density, start_density = as_density(density), as_density(start_density)
    if start_density < density:
        raise InvalidInputError(
            f"start_density is {start_density}, below the density of {density}. Pass a "
            "higher one."
        )
    updates = as_count("updates", updates)
    gap = start_density - density
    return tuple(
        min(1.0, density + gap * (1.0 - i / updates) ** 3) for i in range(updates + 1)
    )


def gradual_magnitude(
    system: GradientSystem,
    *,
    density: float,
    train: Recipe,
    start_density: float = 1.0,
    start_step: int = 0,
    update_every: int = 100,
    updates: int | None = None,
    scope: Scope = "global",
    record_every: int | None = None,
    collapse: CollapseInTraining = "warn",
    seed: int = 0,
) -> SparseTraining:
    r"""Train, and remove the smallest weights bit by bit on the way.

    Before step :math:`t_i = t_0 + i \Delta t`, :math:`i = 0, \ldots, n`, the K weights
    of largest magnitude among the survivors are kept,

    .. math:: K = \max(1, \lfloor d_i N + \tfrac{1}{2} \rfloor), \qquad
              d_i = d_f + (d_0 - d_f) \left( 1 - \frac{i}{n} \right)^3,

    which is the source's cubic in the sparsities. Training goes on to the end with the
    last masks. Here pruned weights stay pruned and zero; what the source's
    implementation does with them it does not state in its equations.

    Args:
        system: The dense system, at the state that it is trained from.
        density: :math:`d_f`, at the end, in (0, 1].
        train: How it is trained.
        start_density: :math:`d_0`, from the first update on, in (0, 1].
        start_step: :math:`t_0`, the step of the first update.
        update_every: Δt, steps between updates, at least 1.
        updates: n, updates after the first one; by default as many as fit in the first
            three quarters of training.
        scope: ``"global"`` or ``"layer"``.
        record_every: Steps between snapshots of ``run.trajectory``, or None.
        collapse: What to do where the last masks empty a layer or cut the output off
            its input (see :func:`from_scores`): ``"warn"`` or ``"ignore"``. It is no
            error: the training is a result.
        seed: Of data order and dropout.

    Returns:
        The masks, with the state before and after training.

    Raises:
        InvalidInputError: If a density is not in (0, 1] or ``start_density`` is below
            ``density``, the updates do not fit into training, the system is masked,
            ``train`` is no Recipe or its optimiser takes a closure.

    Warns:
        NumericalWarning: See ``collapse``.

    Cost:
        One training: with batches of B examples B/N gradients a step. No further
        forward passes, no HVPs.

    Source:
        Zhu and Gupta, *To prune, or not to prune*, 2017, arXiv:1710.01878.

    Example:
        >>> import torch
        >>> x, y = torch.eye(4), torch.tensor([[4.0], [3.0], [2.0], [1.0]])
        >>> net = torch.nn.Linear(4, 1, bias=False)
        >>> system = GradientSystem(net, torch.nn.functional.mse_loss, (x, y))
        >>> recipe = Recipe(lambda params: torch.optim.SGD(params, lr=1.0), steps=9)
        >>> start = system.with_state(torch.zeros(4))
        >>> found = gradual_magnitude(
        ...     start, density=0.5, train=recipe, start_step=2, update_every=2
        ... )
        >>> found.ticket.masks
        {'weight': tensor([[ True,  True, False, False]])}
        >>> [(update.step, update.kept) for update in found.updates]
        [(2, 4), (4, 2), (6, 2)]
    """  # noqa: DOC502 - raised by the parts
    check_dense(system, train, collapse)
    density, start_density = as_density(density), as_density(start_density)
    start_step = as_count("start_step", start_step, least=0)
    update_every = as_count("update_every", update_every)
    if updates is not None:
        updates = as_count("updates", updates)
    steps = _update_steps(train.steps, start_step, update_every, updates)
    wanted = cubic_densities(
        density, updates=len(steps) - 1, start_density=start_density
    )
    check_scope(scope)
    due = dict(zip(steps, wanted, strict=True))
    masks = Masks(survivors(system))

    def move(mover: Mover, step: int, batch: Any) -> Tensor:
        masks.start(mover)
        if step in due:
            held = mover.weights()
            scores = {name: held[name].abs() for name in masks.now}
            check_scores(scores, {n: tuple(s.shape) for n, s in scores.items()})
            check_choice(scores, masks.now, due[step], scope)
            found = select(scores, masks.now, density=due[step], scope=scope)
            masks.change(mover, step, found)
        return mover.step(batch)

    return trained_with(
        system,
        train,
        masks,
        move,
        made_by="pruning.gradual_magnitude",
        settings={
            "density": density,
            "start_density": start_density,
            "start_step": start_step,
            "update_every": update_every,
            "updates": len(steps) - 1,
            "scope": scope,
        },
        sources=("gmp",),
        seed=seed,
        record_every=record_every,
        collapse=collapse,
        advice="Pass a higher density"
        + (", or scope='layer'" if scope == "global" else ""),
    )


def _update_steps(total: int, start: int, every: int, updates: int | None) -> list[int]:
    if updates is None:
        updates = max(0, 3 * total // 4 - start) // every
    last = start + updates * every
    if updates < 1 or last >= total:
        asked = max(updates, 1)
        raise InvalidInputError(
            f"{asked} updates every {every} steps from step {start} on end at step "
            f"{start + asked * every}, beyond training of {total} steps (by default "
            "they end within three quarters of it). Pass a smaller update_every, fewer "
            "updates, or train longer."
        )
    return [start + i * every for i in range(updates + 1)]
