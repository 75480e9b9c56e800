"""Early-Bird: draw the ticket once its mask has stopped moving."""

import copy
import itertools
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dynprune.core import (
    ConvergenceError,
    Cost,
    InvalidInputError,
    Outcome,
    derive_seed,
    isolated,
    seeded_generators,
    track,
)
from dynprune.pruning._early_bird_network import SmallerNet
from dynprune.pruning._early_bird_results import EarlyBird, Unit, distances
from dynprune.pruning._from_scores import full_state, record, survivors
from dynprune.pruning._mask_training import order_of
from dynprune.pruning._scales import scales
from dynprune.pruning._select import check_scores, kept_count, select
from dynprune.system import GradientSystem, is_resident
from dynprune.tickets import Ticket
from dynprune.training import AbstractOrder, Mover, Recipe

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
    index. The ticket is drawn when the newest mask differs from each of the
    ``window - 1`` before it in at most ``tolerance`` of the entries and keeps anything.
    Then the channels are taken out: ``result.network`` is a smaller network with the
    function of the masked one (γ = β = 0 there).

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
        seed: Of the data order, of loaders and of dropout.
        progress: Draw a bar.
        throw: Raise if no ticket is drawn; False returns the masks of the last look.

    Returns:
        The ticket, the smaller network, when it was drawn, and the distances.

    Raises:
        InvalidInputError: If there is no batch norm, the graph of the network cannot
            be followed, the system is masked, or an argument is wrong.
        ConvergenceError: If no ticket is drawn within the budget (it carries the
            result), or the state is not finite.

    Warns:
        NumericalWarning: If a norm lost all its channels (its first stays, at zero),
            or channels could not be taken out.

    Cost:
        One gradient per epoch until it is drawn; no gradient for a look.

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
    system.check_one_process("Drawing an early-bird ticket")
    look = _look(system, density, prune_ratio, unit)
    _check(system, train, unit, penalty, window, tolerance, start)
    weight = _PENALTY if penalty is None else penalty
    weight = weight if unit == "channel" else 0.0
    smaller = SmallerNet(system) if unit == "channel" else None
    search = _Search(
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
    if smaller is None:
        ticket = Ticket.make(
            search.masks, state, buffers, provenance=made, cost=search.cost
        )
        return replace(found, ticket=ticket)
    built = smaller.without(search.masks, state, buffers)
    ticket = Ticket.make(built.masks, state, buffers, provenance=made, cost=search.cost)
    return replace(
        found,
        ticket=ticket,
        network=built.network,
        parameters=(_count(system.module), _count(built.network)),
        flops=built.flops,
    )


@final
class _Search:
    def __init__(
        self,
        system: GradientSystem,
        train: Recipe,
        look: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
        *,
        penalty: float,
        window: int,
        tolerance: float,
        seed: int,
        progress: bool,
    ) -> None:
        self._look, self._window, self._tolerance = look, window, tolerance
        self._past: deque[Tensor] = deque(maxlen=window - 1)
        self.steps: list[int] = []
        self.distances: list[Tensor] = []
        self.masks: dict[str, Tensor] = {}
        self.drawn = False
        data = system.data if train.data is None else train.data
        noise = derive_seed("noise", seed, 0)
        with seeded_generators(data, seed), isolated(noise), torch.enable_grad():
            source = system if train.data is None else system.with_data(train.data)
            size = train.batch_size if is_resident(data) else None
            order = order_of(source, size, seed=seed)
            mover = Mover(
                _with_penalty(system, penalty),
                train.optimizer,
                schedule=train.schedule,
                training=train.mode == "train",
                step=0,
            )
            self.settings = mover.describe() | {
                "steps": train.steps,
                "mode": train.mode,
                "batch_size": order.batch_size,
            }
            self._system, self._mover = system, mover
            self._run(order, train.steps, source.examples, progress=progress)
            self.end = self._state(), mover.buffers()

    def _run(
        self, order: AbstractOrder, stop: int, examples: float, *, progress: bool
    ) -> None:
        step, seen = 0, 0.0
        for number in track(
            itertools.count(), label="pruning.early_bird", show=progress
        ):
            self._see(step)
            self.cost = Cost(gradients=seen / examples, steps=step)
            if self.drawn or step == stop:
                return
            first = step
            with closing(order.epoch(number)) as batches:
                for batch in batches:
                    if step == stop:  # the epoch is not over: no mask to look at
                        self.cost = Cost(gradients=seen / examples, steps=step)
                        return
                    self._mover.step(batch)
                    seen += order.weight(batch)
                    step += 1
            if step == first:
                raise InvalidInputError(
                    f"Epoch {number} of the training data holds no batch. Pass a "
                    "loader that yields some in every pass."
                )

    def _state(self) -> dict[str, Tensor]:
        return full_state(self._system, self._mover.state())

    def _see(self, step: int) -> None:
        state = self._state()
        if not all(bool(torch.isfinite(part).all()) for part in state.values()):
            raise ConvergenceError(
                f"The state is not finite after step {step}. Lower the learning rate "
                "of the recipe."
            )
        self.masks = self._look(state)
        flat = torch.cat([mask.reshape(-1) for mask in self.masks.values()])
        found = distances(flat, list(self._past), self._window)
        self._past.appendleft(flat)
        self.steps.append(step)
        self.distances.append(found)
        # a comparison with NaN is false: there must be enough masks
        near = bool((found <= self._tolerance).all())
        self.drawn = near and bool(flat.any())


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
    if density is not None:
        kept_count(density, 1)

    def masks(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sizes = {name: state[name].detach().abs() for name in names}
        if density is not None:
            return select(sizes, alive, density=density)
        assert prune_ratio is not None
        every = torch.cat([part.reshape(-1) for part in sizes.values()])
        threshold = every.sort().values[int(len(every) * prune_ratio)]
        return {name: (part > threshold).cpu() for name, part in sizes.items()}

    return masks


def _with_penalty(system: GradientSystem, penalty: float) -> GradientSystem:
    # the same system, whose batches cost the L1 norm of the scales on top
    if not penalty:
        return system
    net = copy.deepcopy(system.module)
    values = system.unflatten(system.state)
    own: dict[str, Tensor] = dict(net.named_parameters())
    with torch.no_grad():
        for name, weight in own.items():
            weight.requires_grad_(name in values)
        for name, value in values.items():
            own[name].copy_(value)
        for name, part in net.named_buffers():
            part.copy_(system.raw_buffers[name])
    modules = tuple(scales(system).values())
    loss_fn, batch_loss = system.loss_fn, system.batch_loss

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if batch_loss is not None:
            value = batch_loss(model, batch).reshape(())
        else:
            assert loss_fn is not None
            value = loss_fn(model(batch[0]), batch[1]).reshape(())
        norms = (model.get_submodule(name) for name in modules)
        sizes = [n.weight.abs().sum() for n in norms if isinstance(n, _BatchNorm)]
        return value + penalty * torch.stack(sizes).sum()

    return GradientSystem(
        net,
        None,
        system.data,
        batch_loss=loss,
        batch_weight=system.batch_weight,
        l2=system.l2,
    )


def _check(
    system: GradientSystem,
    train: Recipe,
    unit: Unit,
    penalty: float | None,
    window: int,
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
    if window < 2:
        raise InvalidInputError(f"window is {window}. Pass at least 2 masks.")
    if not 0.0 <= tolerance < 1.0:
        raise InvalidInputError(f"tolerance is {tolerance}. Pass a share in [0, 1).")
    if start not in {"drawn", "initial"}:
        raise InvalidInputError(f"start is {start!r}. Pass 'drawn' or 'initial'.")


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
