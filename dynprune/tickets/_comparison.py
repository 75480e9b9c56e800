"""What a comparison of tickets returns."""

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor

from dynprune.core import (
    Cost,
    InvalidInputError,
    Provenance,
    load_result,
    save_tensors,
    unknown,
)
from dynprune.tickets import _plot_comparison
from dynprune.tickets._readings import ALL, Reading

_KIND = "tickets.Comparison"
_DAMAGED = "The comparison in the file is damaged: {}. Make it again."
_NUMBERS = ("value", "null_mean", "null_sd", "z", "p")
DISTANCES = ("hamming", "error_barrier", "loss_barrier")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    r"""Hold what tickets have in common; see :func:`compare`.

    Args:
        labels: Of the tickets, in the order given.
        layers: Parameter names of the masks.
        densities: For each ticket its density and those of its layers.
        readings: Every value beside its null.
        notes: What was not measured, and why; what to beware of.
        cost: Of the measures that need data.
        provenance: Where it comes from.
    """

    labels: tuple[str, ...]
    layers: tuple[str, ...]
    densities: tuple[tuple[float, ...], ...]
    readings: tuple[Reading, ...]
    notes: tuple[str, ...]
    cost: Cost
    provenance: Provenance

    @property
    def measures(self) -> tuple[str, ...]:
        """Names of all that was measured."""
        return tuple(dict.fromkeys(one.measure for one in self.readings))

    @property
    def pair_measures(self) -> tuple[str, ...]:
        """Names of what was measured between two tickets."""
        pairs = (one.measure for one in self.readings if len(one.tickets) == 2)
        return tuple(dict.fromkeys(pairs))

    def similarity(self, measure: str = "excess_overlap", *, layer: str = ALL) -> Any:
        """Return a square pandas frame of one measure between tickets.

        Args:
            measure: One of ``pair_measures``.
            layer: Parameter name, or ``"all"``.

        Returns:
            Symmetric; the diagonal is 0 for distances (``hamming`` and barriers), 1
            for the others.

        Raises:
            InvalidInputError: If nothing of that name was measured for that layer.
        """  # noqa: DOC501 - unknown() makes it
        import pandas as pd

        if measure not in self.pair_measures:
            raise unknown("measure of two tickets", measure, self.pair_measures)
        own = 0.0 if measure in DISTANCES else 1.0
        table = pd.DataFrame(own, index=list(self.labels), columns=list(self.labels))
        found = [
            one
            for one in self.readings
            if one.measure == measure and one.layer == layer and len(one.tickets) == 2
        ]
        if not found:
            there = [one.layer for one in self.readings if one.measure == measure]
            raise InvalidInputError(
                f"{measure} of layer {layer!r} was asked for, it was measured for "
                f"{', '.join(dict.fromkeys(there))}. Pass layer= one of these."
            )
        for one in found:
            a, b = one.tickets
            table.loc[a, b] = table.loc[b, a] = one.value
        return table

    def to_frame(self) -> Any:
        """Return a tidy pandas frame, one row per reading.

        Columns: measure, layer (``"all"`` for the whole), ticket, other (empty for
        measures of one ticket), value, null_mean, null_sd, z, p.
        """
        import pandas as pd

        rows = [
            {
                "measure": one.measure,
                "layer": one.layer,
                "ticket": one.tickets[0],
                "other": one.tickets[1] if len(one.tickets) > 1 else "",
                "value": one.value,
                "null_mean": one.null_mean,
                "null_sd": one.null_sd,
                "z": one.z,
                "p": one.p,
            }
            for one in self.readings
        ]
        frame = pd.DataFrame(rows)
        frame.attrs["units"] = {
            "density": "kept / prunable",
            "effective_density": "kept and connected / prunable",
            "average_path_length": "steps between groups of units",
            "gradient_flow": "(loss per parameter)²",
            "hessian_eigenvalue": "loss per parameter²",
            "error_barrier": "1 − metric",
        }
        return frame

    def plot(
        self, ax: Any = None, *, measure: str = "excess_overlap", layer: str = ALL
    ) -> Any:
        """Draw the tickets clustered by similarity, beside their layer densities.

        Args:
            ax: Matplotlib axes for the heat map alone; by default a new figure with
                the tree above it and layer densities beside it.
            measure: One of ``pair_measures``.
            layer: Parameter name, or ``"all"``.

        Returns:
            The axes of the heat map; the figure is ``.figure``.
        """
        return _plot_comparison.plot(
            self.similarity(measure, layer=layer),
            measure=measure,
            where="" if layer == ALL else f", {layer}",
            distance=measure in DISTANCES,
            densities=self.densities,
            layers=(ALL, *self.layers),
            ax=ax,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically.

        Args:
            path: Where it shall be.
        """
        numbers = [[getattr(one, name) for name in _NUMBERS] for one in self.readings]
        tensors = {
            "readings": torch.tensor(numbers, dtype=torch.float64),
            "densities": torch.tensor(self.densities, dtype=torch.float64),
        }
        words = [[one.measure, one.layer, *one.tickets] for one in self.readings]
        metadata = {
            "kind": _KIND,
            "labels": list(self.labels),
            "layers": list(self.layers),
            "readings": words,
            "notes": list(self.notes),
            "cost": asdict(self.cost),
            "provenance": self.provenance.to_dict(),
        }
        save_tensors(path, tensors, metadata)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Comparison":
        """Read what :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The comparison.

        Raises:
            InvalidInputError: If the file is missing, truncated, or no comparison.
        """  # noqa: DOC502 - raised by load_result
        return load_result(
            path, _KIND, _unpack, what="a comparison", writer="Comparison.save"
        )

    def summary(self) -> str:
        """Return a few lines a person reads."""
        pairs = [
            one
            for one in self.readings
            if one.measure == "excess_overlap" and one.layer == ALL
        ]
        defined = [one for one in pairs if not math.isnan(one.value)]
        lines = [
            f"Comparison of {len(self.labels)} tickets, {len(self.layers)} layers",
            f"density   {_span([own[0] for own in self.densities])}",
        ]
        if len(defined) == 1:
            lines.append(f"overlap   beyond chance, {_told(defined[0])}")
        elif defined:
            nearest = max(defined, key=lambda one: one.value)
            furthest = min(defined, key=lambda one: one.value)
            lines += [
                f"overlap   beyond chance (0 = chance, 1 = nested): "
                f"{_span([one.value for one in defined])}",
                f"nearest   {_told(nearest)}",
                f"furthest  {_told(furthest)}",
            ]
        return "\n".join([*lines, *(f"note      {note}" for note in self.notes)])

    def __repr__(self) -> str:
        """Return one line."""
        return (
            f"Comparison({len(self.labels)} tickets, {len(self.layers)} layers, "
            f"{len(self.measures)} measures)"
        )


def _unpack(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Comparison:
    _check(tensors, metadata)
    rows = zip(metadata["readings"], tensors["readings"].tolist(), strict=True)
    return Comparison(
        labels=tuple(metadata["labels"]),
        layers=tuple(metadata["layers"]),
        densities=tuple(tuple(row) for row in tensors["densities"].tolist()),
        readings=tuple(
            Reading(
                measure=words[0],
                layer=words[1],
                tickets=tuple(words[2:]),
                **dict(zip(_NUMBERS, numbers, strict=True)),
            )
            for words, numbers in rows
        ),
        notes=tuple(metadata["notes"]),
        cost=Cost(**metadata["cost"]),
        provenance=Provenance.from_dict(metadata["provenance"]),
    )


def _check(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    # of a damaged file: what is not refused below would be read as something else
    labels, layers = metadata["labels"], metadata["layers"]
    readings, notes = metadata["readings"], metadata["notes"]
    words = [labels, layers, notes, *readings]
    if not all(isinstance(own, list) and _are_words(own) for own in words):
        raise InvalidInputError(_DAMAGED.format("its names are no lists of words"))
    if any(len(own) not in {3, 4} or set(own[2:]) - {*labels} for own in readings):
        raise InvalidInputError(
            _DAMAGED.format("a reading is of no ticket that it has")
        )
    for name, shape in (
        ("densities", (len(labels), 1 + len(layers))),
        ("readings", (len(readings), len(_NUMBERS))),
    ):
        found = tuple(tensors[name].shape)
        if found != shape and (readings or name != "readings"):
            raise InvalidInputError(
                _DAMAGED.format(f"its {name} are {found} instead of {shape}")
            )


def _are_words(own: list[Any]) -> bool:
    return all(isinstance(word, str) for word in own)


def _span(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def _told(one: Reading) -> str:
    a, b = one.tickets
    return f"{a} and {b}: {one.value:.3g} (z = {one.z:.3g})"
