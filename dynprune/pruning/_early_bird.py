"""Early-Bird: draw the ticket once its mask has stopped moving."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from dynprune.core import (
    ConvergenceError,
    InvalidInputError,
    Outcome,
)
from dynprune.pruning._collapse import Collapse, check_collapse, check_known
from dynprune.pruning._early_bird_network import SmallerNet
from dynprune.pruning._early_bird_results import EarlyBird, Unit
from dynprune.pruning._early_bird_search import Search
from dynprune.pruning._from_scores import full_state, record, survivors
from dynprune.pruning._numbers import as_count, as_density, as_number
from dynprune.pruning._prunable import check_finite, check_start
from dynprune.pruning._scales import scales
from dynprune.pruning._select import check_scores, chooses, kept_count, select
from dynprune.pruning._warn import warn
from dynprune.system import GradientSystem
from dynprune.tickets import Ticket
from dynprune.training import Recipe

Start = Literal["drawn", "initial"]
_PENALTY = 1e-4


def early_bird(
    system: GradientSystem,
    *,
    train: Recipe,
    density: float | None = None,
    prune_ratio: float | None = None,
    unit: Unit = "channel",
    penalty: float | None = None,
    window: int = 5,
    tolerance: float = 0.1,
    start: Start = "drawn",
    collapse: Collapse = "error",
    seed: int = 0,
    progress: bool = False,
    throw: bool = True,
) -> EarlyBird:
    r"""Train until the mask of the largest norm scales stops moving, and draw it.

    With γ the scales of all C channels of the batch norms, training minimises

    .. math:: L(\theta) + \lambda \sum_c |\gamma_c|, \qquad \lambda = 10^{-4}

    and before each epoch (and at the end) looks at a mask of channels. With
    ``prune_ratio=p`` it is the source's

    .. math:: m_c = 1[\, |\gamma_c| > t \,], \qquad
              t = \mathrm{sort}(|\gamma|)_{\lfloor C p \rfloor}

    (counted from 0, ascending: ⌊Cp⌋ + 1 and all ties go); with ``density=d`` exactly
    :math:`\max(1, \lfloor d C + \tfrac{1}{2} \rfloor)` are kept, ties to the lower
    index, and none where all are equal and some must go. The ticket is drawn when the
    newest mask differs from each of the ``window - 1`` before it in at most
    ``tolerance`` of the entries and keeps anything. Two masks that keep K of N entries
    differ in at most :math:`2 \min(K, N - K) / N` of them: where that is within the
    tolerance, the rule cannot fail and says nothing of training, which is warned of.
    Then :func:`dynprune.tickets.remove_channels` takes the channels out:
    ``result.network`` is a smaller network with the function of the masked one
    (γ = β = 0 there, in the ticket's state also where β is frozen or not selected), in
    the mode of the model, but for what is ``kept_in_eval``.

    ``unit="weight"`` applies the same stopping rule to the masks of largest weights,
    over all layers, without penalty: our extension, for networks without batch norm.

    Args:
        system: What is trained and pruned; dense. Its model is not changed.
        train: The recipe; ``train.steps`` is the budget.
        density: Fraction of the channels (weights) to keep, in (0, 1].
        prune_ratio: p, in (0, 1), for channels, instead of ``density``.
        unit: ``"channel"`` or ``"weight"``.
        penalty: λ, on norm scales; 1e-4 by default, none for weights.
        window: Number of masks that are compared, 5 in the source.
        tolerance: Largest share of the entries that may differ, 0.1 in the source.
        start: Whether the ticket is at the state where it was ``"drawn"``, or at the
            ``"initial"`` one.
        collapse: As for :func:`dynprune.pruning.from_scores`, of the ticket drawn.
        seed: Of the data order, of loaders and of dropout.
        progress: Draw a bar.
        throw: Raise if no ticket is drawn; False returns the masks of the last look.

    Returns:
        The ticket, the smaller network, when it was drawn, and the distances.

    Raises:
        InvalidInputError: If there is no batch norm, the graph of the network cannot
            be followed, the system is masked, its state is not finite, an argument is
            wrong, or no path of kept weights leads from the input to the output (see
            ``collapse``).
        ConvergenceError: If no ticket is drawn within the budget (it carries the
            result), or the state is not finite.

    Warns:
        NumericalWarning: If the stopping rule cannot fail, a norm lost all its channels
            (its first stays, at zero), a layer keeps nothing, or channels could not be
            taken out.

    Cost:
        One gradient per epoch until it is drawn; no gradient for a look. No further
        forward passes that count, no HVPs.

    Source:
        You et al., *Drawing Early-Bird Tickets*, ICLR 2020, and the authors' code.
        Taking channels out by following the graph is a reconstruction.

    Example:
        >>> x, y = torch.arange(12.0).view(4, 3).sin(), torch.zeros(4, 1)
        >>> net = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        >>> system = GradientSystem(net, nn.functional.mse_loss, (x, y))
        >>> recipe = Recipe(lambda params: torch.optim.SGD(params, lr=1e-3), steps=8)
        >>> early_bird(system, train=recipe, density=0.5).network.get_submodule("0")
        Linear(in_features=3, out_features=4, bias=True)
    """  # noqa: DOC502 - some are raised by the parts
    check_start(system, seed)
    system.check_one_process("Drawing an early-bird ticket")
    density = None if density is None else as_density(density)
    window = as_count("window", window, least=2)
    tolerance = as_number(tolerance)
    penalty = None if penalty is None else as_number(penalty)
    prune_ratio = None if prune_ratio is None else as_number(prune_ratio)
    check_known(collapse)
    look = _look(system, density, prune_ratio, unit)
    _check(system, train, unit, penalty, tolerance, start)
    check_finite(system)
    _check_rule(system, density, prune_ratio, unit, tolerance)
    weight = _PENALTY if penalty is None else penalty
    weight = weight if unit == "channel" else 0.0
    smaller = SmallerNet(system) if unit == "channel" else None
    search = Search(
        system,
        train,
        look,
        penalty=weight,
        window=window,
        tolerance=tolerance,
        seed=seed,
        progress=progress,
    )
    settings = search.settings | {
        "density": density,
        "prune_ratio": prune_ratio,
        "unit": unit,
        "penalty": weight,
        "window": window,
        "tolerance": tolerance,
        "start": start,
    }
    made = record(
        system,
        "pruning.early_bird",
        seed=seed,
        settings=settings,
        sources=("early_bird",),
    )
    found = EarlyBird(
        unit=unit,
        mask_items=tuple(search.masks.items()),
        ticket=None,
        network=None,
        parameters=(_count(system.module),) * 2,
        flops=(float("nan"),) * 2,
        drawn_epoch=len(search.steps) - 1 if search.drawn else None,
        drawn_step=search.steps[-1] if search.drawn else None,
        look_steps=tuple(search.steps),
        distances=torch.stack(search.distances),
        tolerance=tolerance,
        outcome=Outcome.CONVERGED if search.drawn else Outcome.NOT_CONVERGED,
        cost=search.cost,
        provenance=made,
    )
    if not search.drawn:
        if throw:
            raise ConvergenceError(_advice(found, train.steps, window), found)
        return found
    state, buffers = search.end
    if start == "initial":
        state, buffers = full_state(system, system.state), system.buffers
    masks = search.masks
    if smaller is not None:
        built = smaller.without(search.masks, state, buffers)
        masks, state = built.masks, built.state
        found = replace(
            found,
            network=built.network,
            parameters=(_count(system.module), _count(built.network)),
            flops=built.flops,
        )
    looked = check_collapse(
        system,
        masks,
        density=found.density if density is None else density,
        collapse=collapse,
        advice="Pass a higher density (a lower prune_ratio), or another recipe",
    )
    settings = dict(made.settings) | {"collapse": looked}
    made = replace(made, settings=tuple(sorted(settings.items())))
    ticket = Ticket.make(masks, state, buffers, provenance=made, cost=search.cost)
    return replace(found, ticket=ticket, provenance=made)


def _look(
    system: GradientSystem,
    density: float | None,
    prune_ratio: float | None,
    unit: Unit,
) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
    if (density is None) == (prune_ratio is None):
        raise InvalidInputError(
            f"density={density} and prune_ratio={prune_ratio} were given. Pass one."
        )
    if unit not in {"channel", "weight"}:
        raise InvalidInputError(f"unit is {unit!r}. Pass 'channel' or 'weight'.")
    if unit == "weight" and prune_ratio is not None:
        raise InvalidInputError(
            f"prune_ratio={prune_ratio} is the source's rule for channels. Pass "
            "density= for weights."
        )
    if prune_ratio is not None and not 0.0 < prune_ratio < 1.0:
        raise InvalidInputError(
            f"prune_ratio is {prune_ratio}. Pass the share of the channels to remove, "
            "in (0, 1)."
        )
    names = tuple(scales(system)) if unit == "channel" else system.prunable
    if unit == "channel" and not names:
        raise InvalidInputError(
            "Channels were to be pruned by the scales of batch norms, and the network "
            "has no trainable one. Pass unit='weight', which prunes single weights by "
            "the same stopping rule."
        )
    shapes = dict(zip(system.names, system.coordinates.shapes, strict=True))
    alive = {name: torch.ones(shapes[name], dtype=torch.bool) for name in names}
    check_scores(alive, {name: shapes[name] for name in names})

    def masks(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sizes = {name: state[name].detach().abs() for name in names}
        if density is not None:
            if chooses(sizes, alive, density):
                return select(sizes, alive, density=density)
            return {name: ~mask for name, mask in alive.items()}  # the index would
        assert prune_ratio is not None
        every = torch.cat([part.reshape(-1) for part in sizes.values()])
        threshold = every.sort().values[int(len(every) * prune_ratio)]
        return {name: (part > threshold).cpu() for name, part in sizes.items()}

    return masks


def _check(
    system: GradientSystem,
    train: Recipe,
    unit: Unit,
    penalty: float | None,
    tolerance: float,
    start: str,
) -> None:
    if not isinstance(train, Recipe):
        raise InvalidInputError(
            f"train is a {type(train).__name__}. Pass a dynprune.Recipe: the search "
            "stops training in the middle, which a function cannot."
        )
    if any(not bool(mask.all()) for mask in survivors(system).values()):
        raise InvalidInputError(
            "The system is masked already. Pass the dense one, system.with_mask({})."
        )
    if unit == "weight" and penalty is not None:
        raise InvalidInputError(
            f"penalty={penalty} is on the scales of batch norms. Leave it out for "
            "weights; weight decay is the optimiser's."
        )
    if penalty is not None and not 0.0 <= penalty < float("inf"):
        raise InvalidInputError(f"penalty (λ) is {penalty}. Pass a finite number ≥ 0.")
    if not 0.0 <= tolerance < 1.0:
        raise InvalidInputError(f"tolerance is {tolerance}. Pass a share in [0, 1).")
    if start not in {"drawn", "initial"}:
        raise InvalidInputError(f"start is {start!r}. Pass 'drawn' or 'initial'.")


def _check_rule(
    system: GradientSystem,
    density: float | None,
    prune_ratio: float | None,
    unit: Unit,
    tolerance: float,
) -> None:
    names = scales(system) if unit == "channel" else system.prunable
    shapes = dict(zip(system.names, system.coordinates.shapes, strict=True))
    total = sum(math.prod(shapes[name]) for name in names)
    if density is not None:
        kept = kept_count(density, total)
    else:
        assert prune_ratio is not None
        kept = total - int(total * prune_ratio) - 1
    most = 2 * min(kept, total - kept) / total
    if 0.0 < most <= tolerance:
        warn(
            f"The rule cannot fail: any two masks that keep {kept} of {total} {unit}s "
            f"differ in at most {most:.3g} of them, and the tolerance is "
            f"{tolerance:g}: a ticket is drawn as soon as there are masks to compare, "
            f"whatever training does. Pass a smaller tolerance, far below {most:.3g}."
        )


def _advice(found: EarlyBird, steps: int, window: int) -> str:
    looks = len(found.look_steps)
    last = float(found.farthest[-1])
    seen = (
        f"the last mask differs from one of the {window - 1} before it in {last:.3g} "
        f"of the {found.unit}s"
        if last == last
        else f"{looks} masks were seen"
    )
    empty = "" if found.density else " It keeps nothing: all scales tie."
    return (
        f"No early-bird ticket was drawn in {steps} steps: {seen}, the tolerance is "
        f"{found.tolerance}.{empty} Give the recipe more steps ({window} looks, one "
        "before each epoch, are the least), loosen the tolerance, or pass throw=False "
        "for the masks of the last look."
    )


def _count(net: nn.Module) -> int:
    return sum(part.numel() for part in net.parameters())
