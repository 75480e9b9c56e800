"""The error barrier on the segment between two trained states."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dynprune.core import (
    Cost,
    InvalidInputError,
    Provenance,
    flatten_batch,
    isolated,
    track,
    unknown,
    whole,
)
from dynprune.system import OnCopies, length, read
from dynprune.tickets._ticket import Ticket
from dynprune.tickets._torch_prune import copied
from dynprune.training import ProblemLike, Run, check_whole, evaluate

NormStatistics = Literal["interpolate", "reestimate"]
_POINTS = 30
_BATCH = 1000


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Barrier:
    r"""Hold the error on the segment between two trained states.

    Args:
        alphas: Points of the segment, 0 = the first state, shape ``(points,)``.
        errors: 1 − mean metric there; NaN where the problem has no metric.
        losses: Mean loss there.
        provenance: Where it comes from.
        cost: Forward passes over the evaluated split.
    """

    alphas: Tensor
    errors: Tensor
    losses: Tensor
    provenance: Provenance
    cost: Cost

    def __post_init__(self) -> None:
        """Copy the tensors."""
        for slot in ("alphas", "errors", "losses"):
            object.__setattr__(self, slot, getattr(self, slot).detach().clone())

    @property
    def error_barrier(self) -> float:
        r""":math:`\sup_\alpha E(\alpha) - \tfrac{1}{2} (E(0) + E(1))`; at least 0."""
        return _height(self.errors)

    @property
    def loss_barrier(self) -> float:
        """The same of the loss."""
        return _height(self.losses)

    def summary(self) -> str:
        """Return a few lines a person reads."""
        return "\n".join([
            f"Barrier over {len(self.alphas)} points",
            f"error     {self.error_barrier:.4g} above the mean of the ends "
            f"({float(self.errors[0]):.4g}, {float(self.errors[-1]):.4g})",
            f"loss      {self.loss_barrier:.4g} above the mean of the ends "
            f"({float(self.losses[0]):.4g}, {float(self.losses[-1]):.4g})",
            f"cost      {self.cost.forwards:g} forward passes",
        ])

    def to_frame(self) -> Any:
        """Return a pandas frame, one row per point: alpha, error, loss."""
        import pandas as pd

        return pd.DataFrame({
            "alpha": self.alphas.tolist(),
            "error": self.errors.tolist(),
            "loss": self.losses.tolist(),
        })

    def plot(self, ax: Any = None) -> Any:
        """Draw the error along the segment; the loss where there is no metric.

        Args:
            ax: Matplotlib axes; a new figure by default.

        Returns:
            The axes.
        """
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.subplots(figsize=(5, 3.4), layout="constrained")[1]
        scored = not bool(self.errors.isnan().any())
        values = self.errors if scored else self.losses
        ax.plot(self.alphas.tolist(), values.tolist(), "o-", ms=3, color="#0072B2")
        level = 0.5 * float(values[0] + values[-1])
        ax.axhline(level, color="0.5", ls="--", lw=1.0, label="mean of the ends")
        ax.set_xlabel("α on the segment (0: first, 1: second)")
        ax.set_ylabel("error (1 − metric)" if scored else "loss")
        ax.legend()
        return ax

    def __repr__(self) -> str:
        """Return one line."""
        return (
            f"Barrier(error={self.error_barrier:.4g}, loss={self.loss_barrier:.4g}, "
            f"points={len(self.alphas)})"
        )


def error_barrier(
    a: Any,
    b: Any,
    problem: Any,
    *,
    split: str = "test",
    points: int = _POINTS,
    buffers: NormStatistics = "interpolate",
    progress: bool = False,
) -> Barrier:
    r"""Measure the error between two trained states.

    .. math:: \theta(\alpha) = (1 - \alpha) \theta_a + \alpha \theta_b, \qquad
              B = \sup_\alpha E(\theta(\alpha))
              - \tfrac{1}{2} \big( E(\theta_a) + E(\theta_b) \big)

    over evenly spaced α, ends included, with E = 1 − the problem's metric. Runs that
    are linearly connected have B near 0 (below 2 % is called stable). Pruned weights
    are zero at their end, so the segment runs in the union of the masks; units are not
    permuted to match.

    Args:
        a: A finished :class:`dynprune.training.Run`, or anything with a ``state`` and
            ``buffers`` of named tensors, e.g. a level of ``pruning.imp``. Of a ticket
            the masked state counts. Parameters that it lacks must be frozen by the
            problem, with one value for all seeds.
        b: Another one.
        problem: A ``Problem``: its model, metric, loss and data.
        split: What is evaluated.
        points: Number of α, at least 3.
        buffers: Norm statistics between the ends: ``"interpolate"``, or
            ``"reestimate"`` from one pass over the training split in train mode, at the
            ends too: means over its batches, each weighted by its examples (batches
            must be pairs). Integer buffers are those of ``a``.
        progress: Draw a bar.

    Returns:
        The barrier.

    Raises:
        InvalidInputError: If the two differ in names or shapes or lack tensors of the
            problem's model (a run of selected parameters lacks the others), there are
            too few points, or an argument has an unknown value.

    Cost:
        ``points`` forward passes over the split, and over the training split where
        norm statistics are re-estimated.

    Source:
        Frankle et al., *Linear Mode Connectivity and the Lottery Ticket Hypothesis*,
        ICML 2020.
    """  # noqa: DOC501 - unknown() makes an InvalidInputError
    if buffers not in get_args(NormStatistics):
        raise unknown("way to treat buffers", buffers, get_args(NormStatistics))
    points = whole(points, name="points")
    if points < 3:
        raise InvalidInputError(
            f"A barrier over {points} points was asked for. Pass at least 3, e.g. 30."
        )
    if not isinstance(problem, ProblemLike):
        raise InvalidInputError(
            f"A barrier was asked for on a {type(problem).__name__}. Pass the Problem "
            "that was trained on, which makes the model and has the data."
        )
    first, second = _named(a), _named(b)
    check_ends(first, second)
    model = copied(problem.model(0))  # a maker may return its one model each time
    _fill(model, first)
    _check_buffers(model, first, buffers)
    check_whole(model, first, problem)
    found = []
    alphas = torch.linspace(0.0, 1.0, points, dtype=torch.float64)
    for alpha in track(alphas.tolist(), label="tickets.barrier", show=progress):
        _fill(model, _between(first, second, alpha))
        if buffers == "reestimate":
            _reestimate(model, problem)
        found.append(evaluate(model, problem, split))
    passes = points * (2.0 if buffers == "reestimate" else 1.0)
    return Barrier(
        alphas=alphas,
        errors=torch.tensor([1.0 - one.metric for one in found], dtype=torch.float64),
        losses=torch.tensor([one.loss for one in found], dtype=torch.float64),
        cost=Cost(forwards=passes),
        provenance=Provenance(
            made_by="tickets.error_barrier",
            dtype=found[0].provenance.dtype,
            device=found[0].provenance.device,
            examples=found[0].provenance.examples,
            settings=(("split", split), ("points", points), ("buffers", buffers)),
            sources=("rewinding",),
        ),
    )


def check_ends(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    """Refuse two states of different models.

    Args:
        first: Name to tensor.
        second: Name to tensor.

    Raises:
        InvalidInputError: If names or shapes differ; it says which.
    """
    wrong = [
        name
        for name in dict.fromkeys([*first, *second])
        if name not in first
        or name not in second
        or first[name].shape != second[name].shape
    ]
    if wrong:
        found = [
            tuple(part[wrong[0]].shape) if wrong[0] in part else "no such tensor"
            for part in (first, second)
        ]
        raise InvalidInputError(
            f"A barrier was asked for between runs of different models: {wrong[0]} is "
            f"{found[0]} in the first and {found[1]} in the second. Pass two runs of "
            "the same model."
        )


def trained_weight(run: Any, name: str) -> Tensor:
    """Return one tensor of a finished run.

    Args:
        run: See :func:`error_barrier`.
        name: Of a parameter.

    Returns:
        The tensor.

    Raises:
        InvalidInputError: If the run has none of that name.
    """
    named = _named(run)
    if name not in named:
        raise InvalidInputError(
            f"A run has no {name!r}, which the tickets mask. Pass runs of the tickets."
        )
    return named[name]


def _named(run: Any) -> dict[str, Tensor]:
    if isinstance(run, Ticket):  # its state is whole, so that shuffles find weights
        state: Any = run.masked_state
    else:
        state = run.parameters if isinstance(run, Run) else getattr(run, "state", None)
    if not isinstance(state, Mapping):
        raise InvalidInputError(
            f"A {type(run).__name__} was given as a finished run. Pass a Run, or a "
            "level of pruning.imp, with a state of named tensors."
        )
    named = {**state, **getattr(run, "buffers", {})}
    return {name: part.detach() for name, part in named.items()}


def _between(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], alpha: float
) -> dict[str, Tensor]:
    return {
        name: torch.lerp(part, second[name].to(part), alpha)
        if part.is_floating_point()
        else part
        for name, part in first.items()
    }


def _fill(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, value in values.items():
        if name not in own or own[name].shape != value.shape:
            found = tuple(own[name].shape) if name in own else "no such tensor"
            raise InvalidInputError(
                f"The runs have {name!r} of shape {tuple(value.shape)}, the problem's "
                f"model {found}. Pass the problem that was trained on."
            )
    first = next(iter(values.values()))
    model.to(device=first.device)
    if first.is_floating_point():
        model.to(dtype=first.dtype)
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, value in values.items():
            own[name].copy_(value)


def _check_buffers(
    model: nn.Module, given: Mapping[str, Tensor], way: NormStatistics
) -> None:
    missing = [name for name, _ in model.named_buffers() if name not in given]
    if missing and way == "interpolate":
        raise InvalidInputError(
            f"The runs have no buffer {missing[0]}, which the problem's model has. "
            "Pass runs with their buffers, or buffers='reestimate'."
        )


@torch.no_grad()
def _reestimate(model: nn.Module, problem: Any) -> None:
    norms = [part for part in model.modules() if isinstance(part, _BatchNorm)]
    if not norms:
        return
    place, data = next(model.parameters()), problem.split("train")
    batches = read(data, dtype=place.dtype, device=place.device, microbatch=_BATCH)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
    model.train()
    call, seen = OnCopies(model), 0
    with isolated(0):
        for batch in _joined(batches):
            seen += length(batch)
            for norm in norms:  # so that every example counts as much as any other
                norm.momentum = length(batch) / seen
            call(batch[0] if isinstance(batch, tuple | list) else batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def _joined(batches: Iterable[Any]) -> Iterator[Any]:
    # a batch of one example, which has no variance, is joined to its neighbour
    held = None
    for batch in batches:
        if held is None:
            held = batch
        elif min(length(held), length(batch)) > 1:
            yield held
            held = batch
        else:
            leaves, rebuild = flatten_batch(held)
            pairs = zip(leaves, flatten_batch(batch)[0], strict=True)
            held = rebuild([torch.cat(pair) for pair in pairs])
    if held is not None:
        yield held


def _height(values: Tensor) -> float:
    return float(values.max() - 0.5 * (values[0] + values[-1]))
