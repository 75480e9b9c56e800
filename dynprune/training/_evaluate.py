"""Mean loss and metric over a split."""

import copy
import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor, nn

from dynprune.core import (
    Coordinates,
    InvalidInputError,
    Provenance,
    isolated,
    seeded_generators,
)
from dynprune.system import (
    BatchLoss,
    BatchWeight,
    LossFn,
    OnCopies,
    check_data,
    is_pair,
    length,
    read,
)
from dynprune.training._results import Evaluation, Run

Metric = Callable[[Any, Any], Tensor]
_AT_ONCE = 10_000


@runtime_checkable
class ProblemLike(Protocol):
    """A model maker with its loss, splits and metric, e.g. ``dynprune.Problem``."""

    @property
    def loss_fn(self) -> LossFn | None:
        """Mean loss of outputs and targets."""
        ...

    @property
    def metric(self) -> Metric | None:
        """Values per example of outputs and targets."""
        ...

    @property
    def batch_loss(self) -> BatchLoss | None:
        """Mean loss of a model on a batch."""
        ...

    @property
    def batch_weight(self) -> BatchWeight | None:
        """Weight of a batch."""
        ...

    def model(self, seed: int) -> nn.Module:
        """Make the model of a seed.

        Args:
            seed: Of its initial state.
        """
        ...

    def split(self, name: str) -> Any:
        """Return the data of a split.

        Args:
            name: train, validation or test.
        """
        ...


def evaluate(
    model_or_state: nn.Module | Run | Tensor | Mapping[str, Tensor],
    problem_or_data: Any,
    split: str = "validation",
    *,
    loss_fn: LossFn | None = None,
    metric: Metric | None = None,
    buffers: Mapping[str, Tensor] | None = None,
    coordinates: Coordinates | None = None,
) -> Evaluation:
    r"""Evaluate a model or a state on a split, in eval mode and without gradients.

    .. math:: \bar L = \frac{1}{W} \sum_b w_b L_b, \qquad
              \bar m = \frac{1}{N} \sum_i m_i

    with :math:`w_b` the weight of batch b. The mean is exact whatever the batch sizes
    are; the l2 term of a system is not part of it.

    The metric is of outputs and targets, which only batches (x, y) have. Of other
    batches there is none: one that was chosen, here or in the problem, is refused, and
    the default of the problem's class (accuracy) is NaN.

    Args:
        model_or_state: A module, whose mode, buffers and parameters stay as they
            were; or a :class:`Run`; or coordinates ``(P,)`` or named tensors, for
            which a problem makes the model. Parameters that a run or state lacks must
            be frozen by the problem, with one value for all seeds.
        problem_or_data: A ``Problem``; or ``(x, y)`` tensors or a loader, with
            ``loss_fn``.
        split: Which split of a problem.
        loss_fn: Mean loss of (outputs, targets); the problem's by default.
        metric: Values per example of (outputs, targets); the problem's by default,
            none for plain data.
        buffers: Of a state; those of a new model by default.
        coordinates: Of a state on a masked system: pass ``system.coordinates``.

    Returns:
        The mean loss, the mean metric (NaN without one, or where the default metric of
        a problem meets a batch that is no (x, y)) and the examples.

    Raises:
        InvalidInputError: If a state comes without a problem, a loss is missing, the
            split is empty, names and shapes do not fit the model, parameters are
            missing (those that ``parameters=`` of a system left out), or a metric was
            chosen and a batch is no pair (x, y).

    Cost:
        One forward pass over the split, 10,000 resident examples at a time.

    Example:
        >>> x, y = torch.eye(2), torch.tensor([[1.0], [0.0]])
        >>> net = nn.Linear(2, 1, bias=False)
        >>> nn.init.zeros_(net.weight).shape
        torch.Size([1, 2])
        >>> evaluate(net, (x, y), loss_fn=nn.functional.mse_loss).loss
        0.5
    """
    problem = problem_or_data if isinstance(problem_or_data, ProblemLike) else None
    data = problem_or_data if problem is None else problem.split(split)
    check_data(data)
    loss_fn = loss_fn or (None if problem is None else problem.loss_fn)
    given, metric = metric, metric or (None if problem is None else problem.metric)
    batch_loss = None if problem is None else problem.batch_loss
    weigh = None if problem is None else problem.batch_weight
    if loss_fn is None and batch_loss is None:
        raise InvalidInputError("Plain data were given without a loss. Pass loss_fn=.")
    model = _model(model_or_state, problem, buffers, coordinates)
    place = next(model.parameters(), torch.zeros(0))
    chosen = given is not None or not _is_default(metric, problem)
    measure = _Measure(model, loss_fn, batch_loss, metric, chosen=chosen)
    losses, weights, values, count = [], [], [], 0
    with (
        torch.no_grad(),
        _eval_mode(model),
        seeded_generators(data, 0),
        isolated(0),
    ):
        for batch in read(
            data, dtype=place.dtype, device=place.device, microbatch=_AT_ONCE
        ):
            loss, found = measure(batch)
            losses.append(loss.reshape(()).double())
            weights.append(float(length(batch) if weigh is None else weigh(batch)))
            if found is not None:
                scalar = found.ndim == 0
                count += length(batch) if scalar else found.numel()
                values.append(found.double().sum() * (length(batch) if scalar else 1))
    if not losses:
        raise InvalidInputError(f"The split {split!r} holds no batch. Pass some data.")
    total, whole = sum(weights), count and len(values) == len(losses)
    share = torch.tensor(weights, dtype=torch.float64) / total
    return Evaluation(
        loss=float(torch.stack(losses).cpu().dot(share)),
        metric=float(torch.stack(values).sum()) / count if whole else float("nan"),
        examples=total,
        provenance=Provenance(
            made_by="training.evaluate",
            dtype=str(place.dtype).removeprefix("torch."),
            device=str(place.device),
            examples=round(total),
            settings=(("split", split if problem is not None else None),),
        ),
    )


@final
class _Measure:
    """Measure one batch: none of the user's functions writes into the data.

    Args:
        model: The network, in eval mode.
        loss_fn: Mean loss of outputs and targets, or None with ``batch_loss``.
        batch_loss: Mean loss of a network on a batch, or None.
        metric: Values per example, or None.
        chosen: Whether the metric is refused for a batch that cannot have it.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn | None,
        batch_loss: BatchLoss | None,
        metric: Metric | None,
        *,
        chosen: bool,
    ) -> None:
        self._model, self._loss_fn, self._metric = model, loss_fn, metric
        self._chosen = chosen
        self._apart = (
            None
            if batch_loss is None
            else OnCopies(functools.partial(batch_loss, model))
        )
        self._outputs: OnCopies[Any] = OnCopies(model)
        self._together = OnCopies(self._loss_and_outputs)
        self._values = OnCopies(self._metric_of)

    def __call__(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """Measure a batch.

        Args:
            batch: Any batch.

        Returns:
            Its mean loss, and the metric where there is one.

        Raises:
            InvalidInputError: If it is no pair, and a metric was chosen or there is no
                ``batch_loss``.
        """  # noqa: DOC502 - raised by the parts
        if self._apart is None:
            loss, outputs = self._together(batch)
            if self._metric is None:
                return loss, None
        else:
            if not self._has_metric(batch):
                return self._apart(batch), None
            loss, outputs = self._apart(batch), self._outputs(batch[0])
        return loss, torch.as_tensor(self._values(batch[1], outputs=outputs))

    def _has_metric(self, batch: Any) -> bool:
        if self._metric is None or is_pair(batch):
            return self._metric is not None
        if not self._chosen:
            return False
        raise InvalidInputError(
            f"A metric was asked of a batch of type {type(batch).__name__}, which is "
            "not a pair (x, y) and has no outputs and targets to compare. Pass batches "
            "(x, y), or no metric (a Problem: metric=None), which leaves the loss."
        )

    def _loss_and_outputs(self, batch: Any) -> tuple[Tensor, Any]:
        if not is_pair(batch):
            raise InvalidInputError(
                f"A batch of type {type(batch).__name__} is not a pair (x, y). Give "
                "the problem a batch_loss for other batches."
            )
        assert self._loss_fn is not None
        outputs = self._model(batch[0])
        return self._loss_fn(outputs, batch[1]), outputs

    def _metric_of(self, targets: Any, *, outputs: Any) -> Tensor:
        assert self._metric is not None
        return self._metric(outputs, targets)


def _is_default(metric: Metric | None, problem: object) -> bool:
    return dataclasses.is_dataclass(problem) and any(
        field.name == "metric" and field.default is metric
        for field in dataclasses.fields(problem)
    )


def _model(
    given: nn.Module | Run | Tensor | Mapping[str, Tensor],
    problem: ProblemLike | None,
    buffers: Mapping[str, Tensor] | None,
    coordinates: Coordinates | None,
) -> nn.Module:
    if isinstance(given, nn.Module):
        return given
    if problem is None:
        raise InvalidInputError(
            f"A {type(given).__name__} was given with plain data, which have no model "
            "for it. Pass a Problem, or a module that holds the state."
        )
    if isinstance(given, Run):
        return _model(given.parameters, problem, given.buffers, None)
    model = copy.deepcopy(problem.model(0))  # it may be one that the user keeps
    if isinstance(given, Tensor):
        own = model.named_parameters()
        trainable = {name: part for name, part in own if part.requires_grad}
        where = coordinates or Coordinates(
            names=tuple(trainable),
            shapes=tuple(tuple(part.shape) for part in trainable.values()),
        )
        model.to(device=given.device, dtype=given.dtype)
        given = where.unflatten(given)
    else:
        first = next(iter(given.values()))
        model.to(device=first.device, dtype=first.dtype)
    _fill(model, {**given, **(buffers or {})})
    check_whole(model, given, problem)
    return model


def check_whole(model: nn.Module, given: Collection[str], problem: ProblemLike) -> None:
    """Refuse a state that leaves parameters of a problem's model as they were made.

    Args:
        model: What the problem made.
        given: Names of what the state gives.
        problem: The problem; what it freezes with one value for all seeds need not be
            given.

    Raises:
        InvalidInputError: If some are missing; it says which.
    """
    missing = {n: p for n, p in model.named_parameters() if n not in given}
    if missing:
        other = dict(problem.model(1).named_parameters())
        missing = {
            name: part
            for name, part in missing.items()
            if part.requires_grad or not torch.equal(part, other[name].to(part))
        }
    if missing:
        names = list(missing)
        raise InvalidInputError(
            f"The state has no {', '.join(names[:4])}{', …' if names[4:] else ''}, "
            f"{len(names)} of the parameters of the problem's model, which would be as "
            "they are made for seed 0. With net the one that was trained, pass the "
            "state {**dict(net.named_parameters()), **run.parameters}, or evaluate net "
            "itself, after run.apply_(net)."
        )


def _fill(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, value in values.items():
            if name not in own or own[name].shape != value.shape:
                found = tuple(own[name].shape) if name in own else "no such tensor"
                raise InvalidInputError(
                    f"The state has {name!r} of shape {tuple(value.shape)}, the "
                    f"problem's model {found}. Pass the problem that was trained on."
                )
            own[name].copy_(value)


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for part, training in modes:
            part.training = training
