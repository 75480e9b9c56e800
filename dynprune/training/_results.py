"""What training and evaluation return."""

from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn

from dynprune.core import (
    Coordinates,
    Cost,
    InvalidInputError,
    Outcome,
    Provenance,
    load_result,
)
from dynprune.training import _files, _plot
from dynprune.trajectory import Trajectory

_KIND = "run"


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Run:
    """Hold where a training run ended and how it got there.

    Args:
        state: Coordinates after the last step, shape ``(P,)``.
        buffers: Buffer name to tensor after the last step.
        coordinates: Where each coordinate lies in the parameters.
        trajectory: The recorded snapshots, or None.
        history: Steps (int64) and the losses of the batches that those steps read,
            both of shape ``(steps,)``; the l2 term is part of the loss.
        cost: Gradients in full-data passes, and steps.
        outcome: How it ended.
        provenance: Where it comes from.
    """

    state: Tensor
    buffers: dict[str, Tensor]
    coordinates: Coordinates
    trajectory: Trajectory | None
    history: tuple[Tensor, Tensor]
    cost: Cost
    outcome: Outcome
    provenance: Provenance

    def __post_init__(self) -> None:
        """Copy the tensors."""
        copies = {name: part.detach().clone() for name, part in self.buffers.items()}
        steps, losses = self.history
        object.__setattr__(self, "state", self.state.detach().clone())
        object.__setattr__(self, "buffers", copies)
        object.__setattr__(self, "history", (steps.clone(), losses.detach().clone()))

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trained tensors by name, copies; pruned weights are zero."""
        named = self.coordinates.unflatten(self.state)
        return {name: part.clone() for name, part in named.items()}

    def apply_(self, model: nn.Module) -> None:
        """Write the trained state and buffers into a model.

        Args:
            model: One with the same names and shapes; it is changed.

        Raises:
            InvalidInputError: If a name is missing or a shape differs; the model is
                then unchanged.
        """
        own = dict(model.named_parameters()) | dict(model.named_buffers())
        values = self.parameters | self.buffers
        for name, value in values.items():
            if name not in own or own[name].shape != value.shape:
                found = tuple(own[name].shape) if name in own else "no such tensor"
                raise InvalidInputError(
                    f"The run has {name!r} of shape {tuple(value.shape)}, the model "
                    f"{found}. Pass the model that was trained, or one like it."
                )
        with torch.no_grad():
            for name, value in values.items():
                own[name].copy_(value)

    def save(self, path: _files.Path) -> None:
        """Write one safetensors file, atomically.

        Args:
            path: Where it shall be.
        """
        _files.save_tensors(path, *self.pack())

    @staticmethod
    def load(path: _files.Path) -> "Run":
        """Read what :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The run.

        Raises:
            InvalidInputError: If the file is missing, truncated, or no run.
        """  # noqa: DOC502 - raised by load_result
        return load_result(path, _KIND, Run.unpack, what="a run", writer="Run.save")

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and the metadata of a file, also of one with more."""
        tensors, metadata = _files.pack_coordinates(self.coordinates)
        tensors |= {f"buffer.{name}": part for name, part in self.buffers.items()}
        tensors |= {
            "state": self.state,
            "history.steps": self.history[0],
            "history.losses": self.history[1],
        }
        if self.trajectory is not None:
            tensors |= _files.pack_trajectory(self.trajectory)
        return tensors, metadata | {
            "kind": _KIND,
            "step": int(self.history[0][-1]) + 1 if len(self.history[0]) else None,
            "cost": _files.pack_cost(self.cost),
            "outcome": self.outcome.name,
            "provenance": self.provenance.to_dict(),
        }

    @staticmethod
    def unpack(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> "Run":
        """Make the run of which :meth:`pack` gave these.

        Args:
            tensors: By name.
            metadata: Plain values.

        Returns:
            The run.
        """
        coordinates = _files.unpack_coordinates(tensors, metadata)
        provenance = Provenance.from_dict(metadata["provenance"])
        return Run(
            state=tensors["state"],
            buffers=_files.unpack_prefixed(tensors, "buffer."),
            coordinates=coordinates,
            trajectory=_files.unpack_trajectory(tensors, coordinates, provenance),
            history=(tensors["history.steps"], tensors["history.losses"]),
            cost=Cost(**metadata["cost"]),
            outcome=Outcome[metadata["outcome"]],
            provenance=provenance,
        )

    def summary(self) -> str:
        """Return a few lines a person reads."""
        steps, losses = self.history
        shown = (
            f"{float(losses[0]):.4g} at step {int(steps[0])}, "
            f"{float(losses[-1]):.4g} at step {int(steps[-1])}"
            if len(steps)
            else "no step was made"
        )
        return "\n".join([
            f"Run of {self.cost.steps} steps, {len(self.state)} coordinates",
            f"loss      {shown} (one batch each)",
            f"cost      {self.cost.gradients:.4g} gradients",
            f"recorded  {self.trajectory!r}",
            f"outcome   {self.outcome.value}",
        ])

    def to_frame(self) -> Any:
        """Return a pandas frame with columns step and loss, one row per step."""
        import pandas as pd

        steps, losses = self.history
        frame = pd.DataFrame({
            "step": steps.numpy(),
            "loss": losses.cpu().double().numpy(),
        })
        frame.attrs["units"] = {"step": "optimiser steps", "loss": "loss of the batch"}
        return frame

    def plot(self, ax: Any = None) -> Any:
        """Draw the loss of each batch against the step.

        Args:
            ax: Matplotlib axes; a new figure by default.

        Returns:
            The axes.
        """
        return _plot.plot(ax, steps=self.history[0], losses=self.history[1])

    def __repr__(self) -> str:
        """Return one line."""
        return (
            f"Run(P={len(self.state)}, steps={self.cost.steps}, "
            f"gradients={self.cost.gradients:.4g}, {self.outcome.name})"
        )


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Hold the mean loss and metric over a split.

    Args:
        loss: Weighted mean loss, without l2.
        metric: Mean of the metric over examples; NaN where there is none.
        examples: Total weight of the data.
        provenance: Where it comes from.
    """

    loss: float
    metric: float
    examples: float
    provenance: Provenance = field(
        default_factory=lambda: Provenance(made_by="training.evaluate"), repr=False
    )

    def summary(self) -> str:
        """Return a few lines a person reads."""
        return (
            f"Evaluation over {self.examples:g} examples\n"
            f"loss      {self.loss:.6g}\n"
            f"metric    {self.metric:.6g}"
        )
