"""Train the scores of a mask; the weights behind it stay as they are."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dynprune.core import (
    Cost,
    InvalidInputError,
    derive_seed,
    isolated,
    seeded_generators,
)
from dynprune.pruning._from_scores import full_state, record, survivors
from dynprune.pruning._masked_net import MaskedNet, Rule
from dynprune.pruning._numbers import as_count, as_number
from dynprune.pruning._private_copy import private_copy
from dynprune.pruning._prunable import check_finite
from dynprune.pruning._signed_weights import plain_values, signed_weights
from dynprune.system import GradientSystem, MeanLoss, is_resident
from dynprune.tickets import Ticket
from dynprune.training import (
    AbstractOrder,
    LoaderOrder,
    Mover,
    OptimizerFactory,
    ResidentOrder,
    Schedule,
    check_lone,
)

Weights = Literal["signed", "own"]
_BATCH_SIZE = 64


@final
class MaskTraining:
    r"""Move the scores of a mask on frozen weights, batch by batch.

    The loss is the system's mean loss, without its l2 term, plus
    :math:`\lambda |p|^2`. Scores are in the dtype of the weights, but of a network in
    half precision in float32: eight bits would tie them, and swallow their steps.

    Args:
        system: Whose network is masked; neither it nor the user's model is changed.
        scores: Name to scores at the start, for each of ``system.prunable``.
        rule: Makes masks of scores.
        epochs: Passes over the data; what the default schedule reaches zero after.
        optimizer: Makes the optimiser of the scores.
        schedule: Makes its schedule; None for a cosine over the epochs.
        penalty: λ.
        weights: ``"signed"`` for signs times one magnitude per layer, ``"own"`` for
            those of the system.
        plain: Whether biases are 0 and norms without scale and shift.
        mode: Whether the network is in train or in eval mode.
        data: What to train on if not the system's data.
        batch_size: Examples per batch of resident data.
        seed: Of the data order.

    Raises:
        InvalidInputError: If an argument is wrong.
    """

    def __init__(
        self,
        system: GradientSystem,
        scores: Mapping[str, Tensor],
        *,
        rule: Rule,
        epochs: int,
        optimizer: OptimizerFactory,
        schedule: Schedule | None,
        penalty: float,
        weights: Weights,
        plain: bool,
        mode: str,
        data: Any,
        batch_size: int | None,
        seed: int,
    ) -> None:
        _check(epochs, penalty, weights, mode)
        check_finite(system)
        if batch_size is not None:
            batch_size = as_count("batch_size", batch_size)
        source = system if data is None else system.with_data(data)
        self.order = order_of(source, batch_size, seed=seed)
        chosen = signed_weights(system) if weights == "signed" else None
        self.state = full_state(system, system.state)
        self.state |= plain_values(system) if plain else {}
        self.state |= chosen or {}
        net = system.set_mode_(private_copy(system), training=True)
        own: dict[str, Tensor] = dict(net.named_parameters())
        with torch.no_grad():
            for name, value in self.state.items():
                own[name].copy_(value)
        names = list(system.prunable)
        alive = survivors(system)
        masked = MaskedNet(
            MeanLoss(net, system.loss_fn, system.batch_loss),
            {name: self.state[name].detach() for name in names},
            {name: _at_least_single(scores[name], self.state[name]) for name in names},
            {name: alive[name] for name in names},
            rule,
        )
        scored = GradientSystem(
            masked,
            None,
            source.data,
            batch_loss=_with_penalty(penalty),
            batch_weight=system.batch_weight,
        )
        check_lone(
            scored,
            source.data,
            self.order.batch_size,
            training=mode == "train",
            start=0,
            stop=self.order.per_epoch or 0,
        )
        self._mover = Mover(
            scored,
            optimizer,
            schedule=schedule or cosine(self.order, epochs),
            training=mode == "train",
            step=0,
        )
        self._system = system
        self._settings = {
            "epochs": epochs,
            "weights": weights,
            "plain": plain,
            "mode": mode,
        }
        self._seen, self._steps = 0.0, 0
        found = self._mover.net
        assert isinstance(found, MaskedNet)
        self.net = found
        self._losses: list[Tensor] = []
        self._idle = torch.tensor(False)

    def epoch(
        self, number: int, *, before: Callable[[MaskedNet], None] | None = None
    ) -> bool:
        """Make one pass over the data.

        Args:
            number: The epoch, from 0.
            before: Called before every batch.

        Returns:
            Whether all losses and scores are finite.

        Raises:
            InvalidInputError: If the pass holds no batch.
        """
        losses, moved = [], []
        for batch in self.order.epoch(number):
            if before is not None:
                before(self.net)
            asked = self._mover.evaluations
            losses.append(self._mover.step(batch))
            moved.append(self._moved())
            self._seen += self.order.weight(batch) * (self._mover.evaluations - asked)
            self._steps += 1
        if not losses:
            raise InvalidInputError(
                f"Epoch {number} of the training data holds no batch. Pass a loader "
                "that yields some in every pass."
            )
        found = torch.stack(losses)
        self._losses.append(found.mean())
        self._idle = ~torch.stack(moved).any()
        finite = [torch.isfinite(part).all() for part in (found, *self.net.scores)]
        return bool(torch.stack([part.to(found.device) for part in finite]).all())

    @property
    def idle(self) -> bool:
        """Whether no score had a derivative in any batch of the last pass."""
        return bool(self._idle)

    def _moved(self) -> Tensor:
        # left on the device: nothing waits for it within a pass
        slopes = [part.grad for part in self.net.scores if part.grad is not None]
        return torch.stack([slope.any() for slope in slopes]).any()

    @property
    def cost(self) -> Cost:
        """What it took so far."""
        return Cost(gradients=self._seen / self._system.examples, steps=self._steps)

    def scores(self) -> dict[str, Tensor]:
        """Return copies of the scores now, by name."""
        found = zip(self.net.names, self.net.scores, strict=True)
        return {name: part.detach().clone() for name, part in found}

    def alive(self) -> dict[str, Tensor]:
        """Return what may be kept now, boolean, by name, on the CPU."""
        found = zip(self.net.names, self.net.alive, strict=True)
        return {name: part.bool().cpu() for name, part in found}

    def masks(self) -> dict[str, Tensor]:
        """Return the masks of the scores now, boolean, by name, on the CPU."""
        with torch.no_grad():
            found = zip(self.net.names, self.net.masks(), strict=True)
            return {name: part.bool().cpu() for name, part in found}

    def buffers(self) -> dict[str, Tensor]:
        """Return the network's buffers now, e.g. its running statistics."""
        inner = self.net.loss.get_submodule("net")
        return {name: part.detach().clone() for name, part in inner.named_buffers()}

    def ticket(
        self,
        masks: Mapping[str, Tensor],
        *,
        made_by: str,
        settings: Mapping[str, Any],
        source: str,
        seed: int,
    ) -> Ticket:
        """Return the ticket of masks on the frozen network.

        Args:
            masks: Name to boolean tensor.
            made_by: The public function.
            settings: Its own knobs and findings, beside those of this training.
            source: Key of the citation.
            seed: Its seed.

        Returns:
            The ticket, with what the training took.
        """
        own = self._mover.describe() | {"batch_size": self.order.batch_size}
        own |= self._settings | {"losses": [float(part) for part in self._losses]}
        return Ticket.make(
            masks,
            self.state,
            self.buffers(),
            provenance=record(
                self._system,
                made_by,
                seed=seed,
                settings=own | dict(settings),
                sources=(source,),
            ),
            cost=self.cost,
        )


@contextmanager
def own_generators(data: Any, *, seed: int) -> Iterator[None]:
    """Let a training draw from generators of its own, with gradients on.

    Args:
        data: What it reads.
        seed: Of loaders and of dropout.

    Yields:
        Nothing.
    """
    noise = derive_seed("noise", seed, 0)
    with seeded_generators(data, seed), isolated(noise), torch.enable_grad():
        yield


def order_of(
    system: GradientSystem, batch_size: int | None, *, seed: int
) -> AbstractOrder:
    """Return the order in which batches are visited, as in ``training.train``.

    Args:
        system: A system on the data.
        batch_size: Examples per batch of resident data, 64 by default.
        seed: Of the order.

    Returns:
        The order.

    Raises:
        InvalidInputError: If the size is not positive, or given with a loader.
    """
    size = _BATCH_SIZE if batch_size is None else batch_size
    if size < 1:
        raise InvalidInputError(f"batch_size is {batch_size}. Pass at least 1.")
    data = system.data
    if is_resident(data):
        return ResidentOrder(system, data, batch_size=size, seed=seed)
    if batch_size is not None:
        raise InvalidInputError(
            f"batch_size={batch_size} was given with a {type(data).__name__}, which "
            "makes its own batches. Set it there, or pass (x, y) tensors."
        )
    return LoaderOrder(system, seed=seed)


def cosine(order: AbstractOrder, epochs: int) -> Schedule:
    r"""Return the schedule :math:`\tfrac{1}{2}(1 + \cos(\pi e / E))` in epoch e.

    Args:
        order: Whose epochs.
        epochs: E.

    Returns:
        What makes the schedule of an optimiser.

    Raises:
        InvalidInputError: If the data have no length.
    """
    length = order.per_epoch
    if length is None:
        raise InvalidInputError(
            "The default schedule falls from epoch to epoch, and the data have no "
            "length to count steps by. Pass schedule=, or data with a length."
        )

    def factor(step: int) -> float:
        return 0.5 * (1.0 + math.cos(math.pi * (step // length) / epochs))

    def made(optimizer: Optimizer) -> LambdaLR:
        return LambdaLR(optimizer, factor)

    return made


def _at_least_single(scores: Tensor, weight: Tensor) -> Tensor:
    dtype = torch.promote_types(weight.dtype, torch.float32)
    return scores.to(device=weight.device, dtype=dtype)


def _with_penalty(penalty: float) -> Callable[[nn.Module, Any], Tensor]:
    def loss(net: nn.Module, batch: Any) -> Tensor:
        value: Tensor = net(batch)
        if penalty:
            assert isinstance(net, MaskedNet)
            norms = [part.square().sum() for part in net.scores]
            value = value + (penalty * torch.stack(norms).sum()).to(value.dtype)
        return value

    return loss


def _check(epochs: int, penalty: float, weights: str, mode: str) -> None:
    as_count("epochs", epochs)
    if not 0.0 <= as_number(penalty) < float("inf"):
        raise InvalidInputError(
            f"penalty (λ) is {penalty!r}. Pass a finite number ≥ 0, e.g. 1e-4."
        )
    if weights not in {"signed", "own"}:
        raise InvalidInputError(f"weights is {weights!r}. Pass 'signed' or 'own'.")
    if mode not in {"train", "eval"}:
        raise InvalidInputError(f"mode is {mode!r}. Pass 'train' or 'eval'.")
