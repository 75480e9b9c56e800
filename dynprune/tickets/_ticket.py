"""A mask and the state it is to be trained from."""

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dynprune.core import (
    Cost,
    InvalidInputError,
    Provenance,
    load_result,
    save_tensors,
)
from dynprune.tickets import _apply, _dense, _enforce, _plot, _torch_prune
from dynprune.tickets._wrapped import named_inside, unwrapped

Items = tuple[tuple[str, Tensor], ...]
_KIND = "ticket"


@final
class _Owned(Items):
    """Hold what a ticket has copied; tickets made of it share the tensors."""

    __slots__ = ()


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True, weakref_slot=True)
class Ticket:
    r"""Hold masks m with the state θ that the survivors are to be trained from.

    The network of a ticket is :math:`m \odot \theta`; its density is
    :math:`d = \sum m / N` over the N prunable weights. The state is kept whole, so
    that a shuffled mask finds the weights it uncovers; one that was trained under the
    mask has zeros there (:func:`zeros_where_pruned`). Tensors are copies on the CPU.
    Make one with :meth:`make`, a pruner, or :meth:`load`. A ticket that is made of
    another one's ``state_items``, as by ``dataclasses.replace``, shares its tensors:
    do not write into items, ``state`` and ``masks`` are copies.

    Args:
        mask_items: Parameter name and boolean tensor, True = kept.
        state_items: Parameter name and tensor, all parameters of the model.
        buffer_items: Buffer name and tensor.
        provenance: What made it.
        cost: What it took to find it, training of earlier levels included.

    Raises:
        InvalidInputError: If there is no mask, a name comes twice, a mask is not
            boolean, keeps nothing anywhere, has no parameter of its shape, a parameter
            is not finite, or something is no tensor with data (NumPy, the meta device,
            float8).

    Example:
        >>> ticket = Ticket.make(
        ...     {"w": torch.tensor([True, False])}, {"w": torch.tensor([1.0, 2.0])}
        ... )
        >>> ticket.density, ticket.kept, ticket.prunable_size
        (0.5, 1, 2)
    """

    mask_items: Items
    state_items: Items
    buffer_items: Items = ()
    provenance: Provenance = field(
        default_factory=lambda: Provenance(made_by="tickets.Ticket")
    )
    cost: Cost = field(default_factory=Cost)

    def __post_init__(self) -> None:
        """Copy and check the tensors.

        Raises:
            InvalidInputError: See the class.
        """
        for slot in ("mask_items", "state_items", "buffer_items"):
            object.__setattr__(self, slot, _copies(getattr(self, slot)))
        for slot in ("mask_items", "state_items", "buffer_items"):
            names = [name for name, _ in getattr(self, slot)]
            if len(set(names)) < len(names):
                twice = sorted({name for name in names if names.count(name) > 1})
                raise InvalidInputError(
                    f"The ticket's {slot} name {_apply.listed(twice)} more than once. "
                    "Pass every tensor once."
                )
        state = dict(self.state_items)
        for name, mask in self.mask_items:
            if mask.dtype != torch.bool:
                raise InvalidInputError(
                    f"The mask of {name!r} is {mask.dtype}. Pass booleans, True = kept."
                )
            if name not in state or state[name].shape != mask.shape:
                found = tuple(state[name].shape) if name in state else "no tensor"
                raise InvalidInputError(
                    f"The mask of {name!r} has shape {tuple(mask.shape)}, the state "
                    f"{found}. Pass a parameter for every mask."
                )
        for name, part in self.state_items:
            if not bool(torch.isfinite(part).all()):
                raise InvalidInputError(
                    f"The state of {name!r} holds NaN or infinity. Pass a finite state "
                    "to train from."
                )
        if not self.mask_items or self.kept == 0:
            raise InvalidInputError(
                f"The ticket has {len(self.mask_items)} masks that keep 0 weights. "
                "Keep at least one."
            )

    @staticmethod
    def make(
        masks: Mapping[str, Tensor],
        state: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor] | None = None,
        *,
        provenance: Provenance | None = None,
        cost: Cost | None = None,
    ) -> "Ticket":
        """Make a ticket of dictionaries.

        Args:
            masks: Parameter name to boolean tensor, True = kept.
            state: Parameter name to tensor, all parameters, not masked.
            buffers: Buffer name to tensor.
            provenance: What made it.
            cost: What it took to find it.

        Returns:
            The ticket.
        """
        return Ticket(
            mask_items=tuple(masks.items()),
            state_items=tuple(state.items()),
            buffer_items=tuple((buffers or {}).items()),
            provenance=provenance or Provenance(made_by="tickets.Ticket.make"),
            cost=cost or Cost(),
        )

    @property
    def masks(self) -> dict[str, Tensor]:
        """Parameter name to boolean tensor, fresh copies; True = kept."""
        return {name: part.clone() for name, part in self.mask_items}

    @property
    def state(self) -> dict[str, Tensor]:
        """Parameter name to tensor, fresh copies, not masked."""
        return {name: part.clone() for name, part in self.state_items}

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Buffer name to tensor, fresh copies."""
        return {name: part.clone() for name, part in self.buffer_items}

    @property
    def masked_state(self) -> dict[str, Tensor]:
        """Parameter name to tensor, pruned weights exactly zero."""
        masks = dict(self.mask_items)
        return {
            name: part.masked_fill(~masks[name], 0.0) if name in masks else part.clone()
            for name, part in self.state_items
        }

    @property
    def kept(self) -> int:
        """Number of weights that the masks keep."""
        return sum(int(mask.sum()) for _, mask in self.mask_items)

    @property
    def prunable_size(self) -> int:
        """Number N of prunable weights."""
        return sum(mask.numel() for _, mask in self.mask_items)

    @property
    def density(self) -> float:
        """Kept / prunable weights, counted from the masks, in (0, 1]."""
        return self.kept / self.prunable_size

    @property
    def layer_densities(self) -> dict[str, float]:
        """Parameter name to the density of its mask."""
        return {
            name: int(mask.sum()) / mask.numel() if mask.numel() else 1.0
            for name, mask in self.mask_items
        }

    def apply_(self, model: nn.Module) -> None:
        r"""Write :math:`m \odot \theta` and the buffers into a model, in place.

        Args:
            model: The user's model, on any device, also inside ``torch.compile`` or a
                data-parallel wrapper.

        Raises:
            InvalidInputError: If names, shapes or dtypes differ; it says which, and
                nothing is changed.
        """  # noqa: DOC502 - raised by write
        inner = unwrapped(model)
        state = dict(named_inside(self.masked_state.items(), inner))
        _apply.write(inner, state, dict(named_inside(self.buffer_items, inner)))

    def enforced(
        self, model: nn.Module, optimizer: Optimizer
    ) -> AbstractContextManager[nn.Module]:
        """Keep pruned weights exactly zero inside a ``with`` block.

        On entry pruned weights of ``model`` are set to zero. Inside, their gradients
        are zero after every backward pass and they themselves after every
        ``optimizer.step()``, whatever momentum and weight decay do, and after every
        ``model.load_state_dict()``. On exit the hooks are removed. Where several
        optimisers move masked weights, enter one block for each. Weights that
        ``load_state_dict(assign=True)`` replaces are masked too, but a step of an
        optimiser that still holds the old ones is refused.

        A ``DistributedDataParallel`` or compiled model is unwrapped, and ranks with
        different masks are refused (``dp.tickets.broadcast`` hands one ticket to all).

        Args:
            model: The user's model; call :meth:`apply_` first to start from θ.
            optimizer: Of the model's parameters.

        Returns:
            A context manager that yields the model.

        Raises:
            InvalidInputError: On entry, if a mask does not fit the model, the
                optimiser moves none of the masked weights, or data-parallel ranks
                have different masks; at a step, if the optimiser no longer holds
                the model's weights.

        Example:
            >>> net = nn.Linear(2, 1)
            >>> kept = {"weight": torch.tensor([[True, False]])}
            >>> ticket = Ticket.make(kept, dict(net.named_parameters()))
            >>> ticket.apply_(net)
            >>> sgd = torch.optim.SGD(net.parameters(), lr=0.1)
            >>> with ticket.enforced(net, sgd):
            ...     _ = net(torch.ones(3, 2)).sum().backward()
            ...     _ = sgd.step()
            >>> net.weight[0, 1].item()
            0.0
        """  # noqa: DOC502 - raised by enforced
        return _enforce.enforced(self.mask_items, model, optimizer)

    def to_dense(self, model: nn.Module) -> nn.Module:
        r"""Return a plain copy of a model with exact zeros where the ticket prunes.

        Its weights are :math:`m \odot \theta` with θ the model's own, trained ones, not
        the ticket's state. Masks of ``torch.nn.utils.prune`` are made permanent.

        Args:
            model: The user's model; not changed.

        Returns:
            The copy.

        Raises:
            InvalidInputError: If a mask does not fit the model, or it cannot be copied.
        """  # noqa: DOC502 - raised by check_masks
        return _dense.to_dense(self.mask_items, model)

    def to_torch_prune(self, model: nn.Module) -> nn.Module:
        """Write the state into a model and mask it with ``torch.nn.utils.prune``.

        Each masked ``weight`` becomes ``weight_orig`` (θ, not masked) and
        ``weight_mask``, so that the mask is part of the forward pass. The model can
        still be copied with ``copy.deepcopy``. As ever with torch's prune, the masked
        weight is computed when its module is called: one that is read without that call
        (``F.linear(x, self.a.weight)``) is the one of the last call.

        Args:
            model: The user's model; it is changed.

        Returns:
            The same model.

        Raises:
            InvalidInputError: If it does not fit; nothing is changed then.
        """  # noqa: DOC502 - raised by write
        inner = unwrapped(model)
        masks, state, buffers = (
            dict(named_inside(items, inner))
            for items in (self.mask_items, self.state_items, self.buffer_items)
        )
        _apply.check_masks(masks.items(), inner)
        _apply.write(inner, state, buffers)
        _torch_prune.reparametrise(inner, masks)
        return model

    @staticmethod
    def from_torch_prune(model: nn.Module) -> "Ticket":
        """Read a ticket from a model pruned with ``torch.nn.utils.prune``.

        Prunable weights (of ``system.prunable``) without a mask count as kept. A tied
        weight that is pruned at any of its places counts as pruned.

        Args:
            model: A model with ``*_orig`` parameters and ``*_mask`` buffers.

        Returns:
            Its masks, the parameters before masking, and the other buffers.

        Raises:
            InvalidInputError: If nothing of the model is pruned that way, or a tied
                weight has different masks.
        """  # noqa: DOC502 - raised by read
        masks, state, buffers = _torch_prune.read(unwrapped(model))
        first = next(iter(state.values()))
        record = Provenance(
            made_by="tickets.Ticket.from_torch_prune",
            dtype=str(first.dtype).removeprefix("torch."),
            device=str(first.device),
        )
        return Ticket.make(masks, state, buffers, provenance=record)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ticket to one safetensors file; equal tickets, equal bytes.

        Args:
            path: Where; the file is whole or absent.
        """
        save_tensors(path, *self.pack())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> "Ticket":
        """Read a ticket that :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The ticket.

        Raises:
            InvalidInputError: If the file is missing, truncated, or no ticket.
        """  # noqa: DOC502 - raised by load_result
        return load_result(
            path, _KIND, Ticket.unpack, what="a ticket", writer="Ticket.save"
        )

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the tensors and the metadata of a file, also of one with more."""
        groups = self._groups()
        tensors = {
            f"{kind}.{name}": part
            for kind, items in groups.items()
            for name, part in items
        }
        return tensors, {
            "kind": _KIND,
            "names": {kind: [n for n, _ in items] for kind, items in groups.items()},
            "cost": asdict(self.cost),
            "provenance": self.provenance.to_dict(),
        }

    @staticmethod
    def unpack(tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> "Ticket":
        """Make the ticket of which :meth:`pack` gave these.

        Args:
            tensors: By name.
            metadata: Plain values.

        Returns:
            The ticket.
        """
        items = {
            kind: tuple((name, tensors[f"{kind}.{name}"]) for name in names)
            for kind, names in metadata["names"].items()
        }
        return Ticket(
            mask_items=items["mask"],
            state_items=items["state"],
            buffer_items=items["buffer"],
            cost=Cost(**metadata["cost"]),
            provenance=Provenance.from_dict(metadata["provenance"]),
        )

    def summary(self) -> str:
        """Return five lines that a person reads."""
        densities = self.layer_densities
        low = min(densities, key=lambda name: densities[name])
        high = max(densities, key=lambda name: densities[name])
        made = self.provenance
        size = sum(part.numel() for _, part in self.state_items)
        return "\n".join([
            f"Ticket by {made.made_by}, seed {made.seed}",
            f"kept      {self.kept} of {self.prunable_size} prunable weights "
            f"(density {self.density:.4g}), of {size} parameters in all",
            f"layers    {len(densities)}; thinnest {low} {densities[low]:.3g}, "
            f"fullest {high} {densities[high]:.3g}",
            f"state     {len(self.state_items)} parameters, {made.dtype}; "
            f"{len(self.buffer_items)} buffers",
            f"cost      {self.cost.gradients:.4g} gradients, {self.cost.hvps:.4g} "
            f"HVPs, {self.cost.forwards:.4g} forwards, {self.cost.steps} steps",
        ])

    def to_frame(self) -> Any:
        """Return a pandas frame, one row per layer: layer, kept, size, density."""
        import pandas as pd

        rows = [
            {"layer": name, "kept": int(mask.sum()), "size": mask.numel()}
            for name, mask in self.mask_items
        ]
        frame = pd.DataFrame(rows)
        frame["density"] = list(self.layer_densities.values())
        frame.attrs["units"] = {
            "kept": "weights",
            "size": "weights",
            "density": "kept / prunable",
        }
        return frame

    def plot(self, ax: Any = None) -> Any:
        """Draw the density of each layer.

        Args:
            ax: Matplotlib axes; a new figure by default.

        Returns:
            The axes.
        """
        return _plot.plot(self.layer_densities, self.density, ax)

    def __repr__(self) -> str:
        """Return one line."""
        return (
            f"Ticket(density={self.density:.4g}, kept={self.kept} of "
            f"{self.prunable_size}, made_by={self.provenance.made_by!r})"
        )

    def _groups(self) -> dict[str, Items]:
        return {
            "mask": self.mask_items,
            "state": self.state_items,
            "buffer": self.buffer_items,
        }


def _copies(items: Iterable[tuple[str, Tensor]]) -> Items:
    if isinstance(items, _Owned):
        return items
    found = []
    for name, part in items:
        if not isinstance(part, Tensor) or part.is_meta or _is_float8(part.dtype):
            kind = type(part).__name__
            if isinstance(part, Tensor):
                kind = "tensor without data (meta)" if part.is_meta else str(part.dtype)
            raise InvalidInputError(
                f"{name!r} was given to a ticket as a {kind}. Pass a torch tensor with "
                "data, of at least 16 bits where it is floating-point."
            )
        found.append((name, part.detach().to("cpu", copy=True).contiguous()))
    return _Owned(found)


def _is_float8(dtype: torch.dtype) -> bool:
    # float8 has no arithmetic
    return dtype.is_floating_point and dtype.itemsize == 1
