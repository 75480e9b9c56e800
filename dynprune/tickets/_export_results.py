"""What an export is made of and how large it is."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from dynprune.core import (
    Provenance,
    join_parts,
    load_result,
    part_of,
    save_tensors,
)
from dynprune.tickets._apply import listed
from dynprune.tickets._network import pack_network, unpack_network

_KIND = "tickets.Export"
_PLAIN = ("layers", "bytes_before", "bytes_after", "error", "scale")


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Export:
    """Hold a model that computes a pruned network, with its size.

    Args:
        module: The model; the user's own is not changed.
        layers: Name, what became of it, bytes before and after, of each layer that the
            ticket masks or that has changed.
        bytes_before: Of all parameters and buffers of the user's model.
        bytes_after: Of those of ``module``.
        error: Largest absolute difference of its output from that of the masked dense
            model on the example; None where no example was given.
        scale: Largest absolute output of the masked dense model on the example.
        provenance: What made it.
    """

    module: nn.Module
    layers: tuple[tuple[str, str, int, int], ...]
    bytes_before: int
    bytes_after: int
    error: float | None = None
    scale: float | None = None
    provenance: Provenance

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the model's tensors and its sizes to one safetensors file, atomically.

        Code is not stored: :meth:`load` needs the whole model again.

        Args:
            path: Where it shall be.
        """
        tensors, metadata = join_parts({"module": pack_network(self.module)})
        metadata |= {name: getattr(self, name) for name in _PLAIN}
        metadata |= {"kind": _KIND, "provenance": self.provenance.to_dict()}
        save_tensors(path, tensors, metadata)

    @staticmethod
    def load(path: str | os.PathLike[str], model: nn.Module) -> "Export":
        """Read what :meth:`save` wrote.

        Args:
            path: The file.
            model: The whole model that was exported, with any weights: its code, and
                where the tensors are to be. Not changed.

        Returns:
            The export, its module in the mode and with the dtypes that it had.

        Raises:
            InvalidInputError: If the file is missing, truncated, or no export, or it
                is one of another model.

        Example:
            >>> import tempfile, torch
            >>> from dynprune.tickets import Ticket, reduce
            >>> net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
            >>> kept = {"2.weight": torch.tensor([[True, False, False, True]] * 2)}
            >>> ticket = Ticket.make(kept, dict(net.named_parameters()))
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     path = f"{folder}/small"
            ...     reduce(ticket, net, example=torch.ones(1, 3)).save(path)
            ...     Export.load(path, net).module[0]
            Linear(in_features=3, out_features=2, bias=True)
        """  # noqa: DOC502 - raised by load_result
        return load_result(
            path,
            _KIND,
            lambda tensors, metadata: _unpack(tensors, metadata, model),
            what="an export",
            writer="Export.save",
        )

    def summary(self) -> str:
        """Return five lines that a person reads."""
        changed = [name for name, _, a, b in self.layers if a != b]
        grown = [name for name, _, a, b in self.layers if a < b]
        error = (
            "not compared (no example)"
            if self.error is None
            else f"{self.error:.3g} at outputs up to {self.scale:.3g}"
        )
        return "\n".join([
            f"Export by {self.provenance.made_by}",
            f"layers    {len(changed)} of {len(self.layers)} changed"
            + (f", {len(grown)} of them larger: {listed(grown)}" if grown else ""),
            f"bytes     {self.bytes_after} of {self.bytes_before} "
            f"({self.bytes_after / max(self.bytes_before, 1):.3g})",
            f"error     {error}",
            "speed     not measured here: benchmarks/sparse_export.py measures it",
        ])

    def to_frame(self) -> Any:
        """Return a pandas frame, one row per layer: layer, form, bytes."""
        import pandas as pd

        columns = ["layer", "form", "bytes_before", "bytes_after"]
        frame = pd.DataFrame(list(self.layers), columns=columns)
        frame.attrs["units"] = {"bytes_before": "bytes", "bytes_after": "bytes"}
        return frame

    def plot(self, ax: Any = None) -> Any:
        """Draw bytes before and after, one pair of bars per layer.

        Args:
            ax: Matplotlib axes; a new figure by default.

        Returns:
            The axes.
        """
        if ax is None:
            import matplotlib.pyplot as plt

            height = 1.2 + 0.3 * len(self.layers)
            _, ax = plt.subplots(figsize=(6, height), layout="constrained")
        places = list(range(len(self.layers)))
        before, after = ([layer[i] for layer in self.layers] for i in (2, 3))
        ax.barh(
            [p - 0.2 for p in places], before, 0.4, color="lightgrey", label="before"
        )
        ax.barh([p + 0.2 for p in places], after, 0.4, color="tab:blue", label="after")
        ax.set_yticks(places, [layer[0] for layer in self.layers])
        ax.invert_yaxis()
        ax.set_xlabel("weights and biases (bytes)")
        ax.legend()
        return ax

    def __repr__(self) -> str:
        """Return one line."""
        return (
            f"Export(made_by={self.provenance.made_by!r}, bytes={self.bytes_after} of "
            f"{self.bytes_before})"
        )


def _unpack(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, Any], model: nn.Module
) -> Export:
    plain = {name: metadata[name] for name in _PLAIN}
    plain["layers"] = tuple(tuple(layer) for layer in plain["layers"])
    return Export(
        module=unpack_network(*part_of(tensors, metadata, "module"), model),
        provenance=Provenance.from_dict(metadata["provenance"]),
        **plain,
    )


def size(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers, shared ones once.

    Args:
        module: Any module.

    Returns:
        Bytes.
    """
    parts = {id(part): part for part in (*module.parameters(), *module.buffers())}
    return sum(part.numel() * part.element_size() for part in parts.values())
