"""Checkpoints that continue bit for bit: one safetensors file, no pickle."""

import hashlib
import json
import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from dynprune.core import (
    InvalidInputError,
    derive_seed,
    isolated,
    save_tensors,
    tensors_of,
)
from dynprune.system import GradientSystem, function_signature, hashes, is_resident
from dynprune.training import _files
from dynprune.training._mover import Mover
from dynprune.training._progress import Progress

_LOSS = "loss of a batch at the start"
_FEW = 64


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Checkpoint:
    """Where a run's checkpoint lies, and what makes it this run's.

    Args:
        path: The file.
        every: Steps between writings.
        identity: JSON values, every one of which must agree for a resume.
    """

    path: _files.Path
    every: int
    identity: dict[str, Any]

    def exists(self) -> bool:
        """Say whether there is a file to continue from.

        Returns:
            True if there is one, of this run or not.
        """
        return Path(self.path).exists()

    def write(self, mover: Mover, progress: Progress) -> None:
        """Write the file anew, atomically.

        Args:
            mover: The network and optimiser.
            progress: How far the run is.
        """
        tensors, metadata = _files.pack_coordinates(mover.coordinates)
        tensors |= {f"buffer.{name}": part for name, part in mover.buffers().items()}
        tensors |= {"state": mover.state(), "losses": progress.losses()}
        if progress.snapshots:
            tensors["snapshots"] = torch.stack(progress.snapshots)
            tensors["snapshot_steps"] = torch.tensor(progress.snapshot_steps)
        tensors |= _noise(mover.device)
        structure = _encode(mover.optimizer.state_dict(), "optimizer", tensors)
        metadata |= {
            "kind": "checkpoint",
            "step": progress.step,
            "seen": progress.seen,
            "optimizer": structure,
            "identity": self.identity,
        }
        save_tensors(self.path, tensors, metadata)

    def resume(self, mover: Mover, progress: Progress, *, stop: int) -> None:
        """Continue from the file.

        Args:
            mover: A fresh one, which receives state, buffers and optimiser state.
            progress: A fresh one, which receives what was recorded.
            stop: The step at which this call stops.

        Raises:
            InvalidInputError: If the file is truncated, no checkpoint, of another
                run, or already beyond ``stop``; it is left as it is.
        """
        tensors, metadata = _files.read_kind(self.path, "checkpoint")
        _check_identity(self.path, metadata["identity"], self.identity)
        if metadata["step"] > stop:
            raise InvalidInputError(
                f"{self.path} is at step {metadata['step']}, this run stops at {stop}. "
                "Choose another path or a later stop_step; the file is unchanged."
            )
        mover.load(
            tensors["state"].to(mover.device),
            _files.unpack_prefixed(tensors, "buffer."),
        )
        # the schedule is replayed: a scheduler's next rate is a function of the last
        mover.advance_schedule(metadata["step"] - progress.step)
        _load_optimizer(mover, _decode(metadata["optimizer"], tensors, mover.device))
        progress.restore(
            step=metadata["step"],
            seen=metadata["seen"],
            losses=tensors["losses"].to(mover.device),
            snapshots=[part.to(mover.device) for part in tensors.get("snapshots", ())],
            snapshot_steps=[int(step) for step in tensors.get("snapshot_steps", ())],
        )
        _restore_noise(tensors, mover.device)


def identify(
    system: GradientSystem,
    mover: Mover,
    *,
    source: GradientSystem,
    rates: Sequence[Sequence[float]],
    seed: int,
    **settings: Any,
) -> dict[str, Any]:
    """Return what tells one run from another.

    What no description shows, as other code of the same name, is told by the loss of
    one batch at the start.

    Args:
        system: Where the run starts from.
        mover: Its optimiser and schedule.
        source: The system on what it trains on.
        rates: Learning rates of the first steps, by group.
        seed: Of the run.
        **settings: The other arguments of the run.

    Returns:
        JSON values by name.

    Cost:
        One forward pass over a batch, which a loader is asked for.
    """
    survivors = system.coordinates.survivors
    batch = _one_batch(source, seed)
    with torch.no_grad(), isolated(0):
        loss = system.batch_mean(system.unflatten(system.state), system.buffers, batch)
    found = {
        "names": list(system.names),
        "shapes": [list(shape) for shape in system.coordinates.shapes],
        "mask": None if survivors is None else _digest([survivors]),
        "dtype": str(system.dtype),
        "device": system.device.type,
        "initial state": _digest([system.state, *system.buffers.values()]),
        "data": _describe(source.data, batch),
        "rates": hashlib.sha256(
            " ".join(f"{rate:.9g}" for step in rates for rate in step).encode()
        ).hexdigest()[:16],
        _LOSS: float(loss),
        "seed": seed,
        **function_signature(system),
        **mover.describe(),
        **settings,
    }
    plain: dict[str, Any] = json.loads(json.dumps(found))
    return plain


def _one_batch(source: GradientSystem, seed: int) -> Any:
    if is_resident(source.data):
        few = tuple(part[:_FEW] for part in source.data)
        source = source.with_data(few)
    return next(source.batches(seed=derive_seed(seed, 0)))


def _describe(data: Any, batch: Any) -> str:
    # a loader is not read to its end: that may be costly
    if is_resident(data):
        return _digest(list(data))
    tensors = {str(place): part for place, part in enumerate(tensors_of(batch))}
    length = f" of {len(data)} batches" if isinstance(data, Sized) else ""
    return f"{type(data).__name__}{length}, first batch {hashes(tensors)}"


def _check_identity(path: object, found: dict[str, Any], ours: dict[str, Any]) -> None:
    differ = [
        key
        for key in sorted(found | ours)
        if not _same(key, found.get(key), ours.get(key))
    ]
    if differ:
        shown = "; ".join(
            f"{key} (checkpoint {_short(found.get(key))}, now {_short(ours.get(key))})"
            for key in differ
        )
        raise InvalidInputError(
            f"{path} is the checkpoint of another run. These differ: {shown}. Choose "
            "another path, or delete the file to start afresh; it is unchanged."
        )


def _same(key: str, found: Any, ours: Any) -> bool:
    if key == _LOSS and isinstance(found, float) and isinstance(ours, float):
        # other chips round otherwise
        close = math.isclose(found, ours, rel_tol=1e-3)
        return close or str(found) == str(ours)
    return bool(found == ours)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _digest(tensors: list[Tensor]) -> str:
    digest = hashlib.sha256()
    for part in tensors:
        held = part.detach().cpu().contiguous()
        digest.update(f"{held.dtype}{tuple(held.shape)}".encode())
        digest.update(held.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _noise(device: torch.device) -> dict[str, Tensor]:
    found = {"noise": torch.get_rng_state()}
    if device.type == "cuda":
        found["noise_cuda"] = torch.cuda.get_rng_state(device)
    return found


def _restore_noise(tensors: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(tensors["noise"])
    if device.type == "cuda" and "noise_cuda" in tensors:
        torch.cuda.set_rng_state(tensors["noise_cuda"], device)


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    # tensors become their names, containers are marked by kind; inverse of _decode
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name, "on_host": value.device.type == "cpu"}
    if isinstance(value, list | tuple):
        parts = [_encode(part, f"{name}.{i}", tensors) for i, part in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": parts}
    if isinstance(value, dict):
        return {
            "dict": [
                [key, _encode(part, f"{name}.{key}", tensors)]
                for key, part in value.items()
            ]
        }
    raise InvalidInputError(
        f"The optimiser's {name} is a {type(value).__name__}, which a checkpoint "
        "cannot hold. Use an optimiser whose state is tensors and numbers, or train "
        "without checkpoint=."
    )


def _decode(value: Any, tensors: dict[str, Tensor], device: torch.device) -> Any:
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        found = tensors[value["tensor"]]
        return found if value["on_host"] else found.to(device)
    if "dict" in value:
        return {key: _decode(part, tensors, device) for key, part in value["dict"]}
    kind = tuple if "tuple" in value else list
    (parts,) = value.values()
    return kind(_decode(part, tensors, device) for part in parts)


def _load_optimizer(mover: Mover, held: dict[str, Any]) -> None:
    optimizer = mover.optimizer
    optimizer.load_state_dict(held)
    # which casts some of the state to the parameters' dtype: put the bits back
    groups = optimizer.param_groups
    parameters = [part for group in groups for part in group["params"]]
    for index, state in held["state"].items():
        optimizer.state[parameters[index]].update(state)
