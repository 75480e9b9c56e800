"""The state of an iteration in a file, so that a killed run can go on."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from dynprune.core import InvalidInputError, Rows, load_tensors, save_tensors
from dynprune.operators import AbstractOperator

_KIND = "eigenpairs checkpoint"
_SAME = 1000  # eps: two products of one vector on two machines
_SMALL = {"values", "coupling", "T", "K", "numbers"}  # on the CPU
State = dict[str, Tensor]


@final
class Checkpoint:
    """Count the products of a computation, and keep its stages in a file.

    A computation is a sequence of stages. Each finished one is stored with its result,
    the running one with its state, so that a new process gets the old results back and
    goes on where the state was written; what happens in between is made again. With
    the state lie a vector and its product: the operator of the new process must agree.

    Where vectors are sharded each rank writes the rows it holds, to two files in turn,
    so that all ranks have a common state whenever they are killed.

    Args:
        path: The file; None only counts.
        op: Gives products and rows.
        every: Products between two states.
        settings: What must agree with the file.

    Raises:
        InvalidInputError: If the file is of another computation or operator.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        op: AbstractOperator,
        *,
        every: int,
        settings: Mapping[str, Any],
    ) -> None:
        self._paths = _paths(path, op.rows)
        self._op, self._every = op, every
        self._settings = dict(settings) | {
            "size": op.size,
            "dtype": str(op.dtype).removeprefix("torch."),
            "rows": [op.rows.start, op.rows.stop],
        }
        self._written, self._stage, self._since = 0, 0, 0
        self._done: list[tuple[State, dict[str, Any]]] = []
        self._state: State | None = None
        self._probe: State = {}
        self._before = op.matvecs
        if self._paths:
            self._open()

    @property
    def spent(self) -> float:
        """Products so far; those before a kill too, but no check of the operator."""
        return float(self._op.matvecs - self._before)

    def finished(self) -> dict[str, Any] | None:
        """Return the result of the next stage if the file has it."""
        if self._stage == len(self._done):
            return None
        tensors, plain = self._done[self._stage]
        self._stage += 1
        return self._moved(tensors) | self._back(plain)

    def unfinished(self) -> State | None:
        """Return the state that the next stage goes on from if the file has one."""
        state, self._state = self._state, None
        if state is None:
            return None
        self._back({"spent": float(state.pop("spent"))})
        return self._moved(state)

    def see(self, block: Tensor, products: Tensor) -> bool:
        """Note products; tell whether the state is to be written.

        Args:
            block: V as rows, shape ``(b, held)``.
            products: A V as rows.

        Returns:
            Whether it is time.
        """
        if not self._paths:
            return False
        self._probe = {"vector": block[:1].clone(), "product": products[:1].clone()}
        self._since += len(block)
        return self._since >= self._every

    def write(self, state: State) -> None:
        """Write the state of the running stage.

        Args:
            state: Tensors by name.
        """
        spent = torch.tensor(self.spent, dtype=torch.float64)
        self._write({"spent": spent, **state})

    def finish(self, result: dict[str, Any]) -> None:
        """End the running stage.

        Args:
            result: What it found: tensors and plain values by name.
        """
        if not self._paths:
            return
        tensors = {key: v for key, v in result.items() if isinstance(v, Tensor)}
        plain = {key: v for key, v in result.items() if not isinstance(v, Tensor)}
        self._done.append((tensors, plain | {"spent": self.spent}))
        self._stage += 1
        self._write({})

    def _write(self, state: State) -> None:
        tensors = {f"state.{name}": tensor for name, tensor in state.items()}
        tensors |= {f"probe.{name}": tensor for name, tensor in self._probe.items()}
        for i, (done, _) in enumerate(self._done):
            tensors |= {f"done.{i}.{name}": part for name, part in done.items()}
        self._written += 1
        self._since = 0
        metadata = {
            "kind": _KIND,
            "settings": self._settings,
            "written": self._written,
            "done": [plain for _, plain in self._done],
        }
        path = self._paths[self._written % len(self._paths)]
        save_tensors(path, tensors, metadata)

    def _open(self) -> None:
        found: dict[int, tuple[Path, State, dict[str, Any]]] = {}
        failed: InvalidInputError | None = None
        try:
            for path in self._paths:
                if path.exists():
                    tensors, plain = load_tensors(path)
                    self._check_settings(path, plain)
                    found[plain["written"]] = (path, tensors, plain)
        except InvalidInputError as error:
            failed = error
        self._written = _common(self._op, max(found, default=0), failed)
        if not self._written:
            return
        path, tensors, plain = found[self._written]
        self._probe = _under("probe", tensors)
        self._state = _under("state", tensors) or None
        self._done = [
            (_under(f"done.{i}", tensors), values)
            for i, values in enumerate(plain["done"])
        ]
        self._check_operator(path)

    def _check_settings(self, path: Path, plain: dict[str, Any]) -> None:
        if plain.get("kind") != _KIND:
            raise InvalidInputError(
                f"{path} holds {plain.get('kind', 'an unknown thing')}, not an "
                "eigenpairs checkpoint. Pass another path."
            )
        theirs = plain["settings"]
        differ = [
            f"{name}={theirs.get(name)!r} there, {ours!r} here"
            for name, ours in self._settings.items()
            if theirs.get(name) != ours
        ]
        if differ:
            raise InvalidInputError(
                f"{path} is the checkpoint of another computation: "
                f"{'; '.join(differ)}. Pass the same arguments, or another path."
            )

    def _check_operator(self, path: Path) -> None:
        probe, op = self._moved(self._probe), self._op
        vector, product = probe["vector"].T, probe["product"].T
        difference = op @ vector - product
        sizes = [op.rows.inner(part, part) for part in (difference, product)]
        off, size = (max(float(part), 0.0) ** 0.5 for part in sizes)
        self._before = op.matvecs
        if not off <= _SAME * torch.finfo(op.dtype).eps * max(size, 1e-300):
            raise InvalidInputError(
                f"{path} is the checkpoint of another operator: its product with a "
                f"stored vector, of norm {size:.3g}, is {off:.2g} off. Make the "
                "operator at the same state and data, or pass another path."
            )

    def _moved(self, tensors: State) -> State:
        # copies, so that they lie in memory as those that were written did
        return {
            name: tensor.clone().to("cpu" if name in _SMALL else self._op.device)
            for name, tensor in tensors.items()
        }

    def _back(self, plain: dict[str, Any]) -> dict[str, Any]:
        values = dict(plain)
        self._before = self._op.matvecs - values.pop("spent")
        return values


def _paths(path: str | os.PathLike[str] | None, rows: Rows) -> tuple[Path, ...]:
    if path is None:
        return ()
    if rows.group is None:
        return (Path(path),)
    return tuple(Path(f"{path}.{rows.start}.{turn}") for turn in (0, 1))


def _common(op: AbstractOperator, latest: int, failed: InvalidInputError | None) -> int:
    # The states of two ranks are one apart at most: the mean is not below the older.
    numbers = torch.tensor([float(latest), 1.0, float(failed is not None)])
    total, ranks, failures = op.rows.sum(numbers.to(op.device)).tolist()
    if failed is not None:
        raise failed
    if failures:
        raise InvalidInputError(
            f"The checkpoint of {failures:g} other ranks cannot be used; they say why."
        )
    return int(total // ranks)


def _under(prefix: str, tensors: State) -> State:
    start = f"{prefix}."
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }


def digest(tensor: Tensor | None) -> str | None:
    """Return a hash of the numbers of a tensor.

    Args:
        tensor: Any, or None.

    Returns:
        Hexadecimal, or None.
    """
    if tensor is None:
        return None
    plain = tensor.detach().cpu().contiguous().reshape(-1)
    raw = plain.view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(raw).hexdigest()
