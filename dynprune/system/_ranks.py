"""The processes that share a system's data: they agree, or an error reaches all."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dynprune.core import (
    AssumptionError,
    ConvergenceError,
    InvalidInputError,
    NotDeterministicError,
    derive_seed,
)

_CPU = torch.device("cpu")
_SLOTS = 16  # numbers of the first exchange: a flag, then a hash of each field
_LETTERS = 2**16  # bytes of further ones, which are made only when something is wrong
_KINDS = (InvalidInputError, NotDeterministicError, AssumptionError, ConvergenceError)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Hold the processes that each have a shard of the data; by default this one.

    Args:
        group: The process group, or None for one process.
        device: Where the small tensors of an agreement are exchanged.
    """

    group: "dist.ProcessGroup | None" = None
    device: torch.device = _CPU

    @staticmethod
    def of(group: object | None, model: object) -> "Ranks":
        """Return the ranks of a group that a user gave.

        Args:
            group: A torch.distributed process group, or None.
            model: Gives the device of an exchange where the group has no CPU backend.

        Returns:
            The ranks.

        Raises:
            InvalidInputError: If it is no process group that this process is in.
        """
        if group is None:
            return Ranks()
        if not dist.is_available() or not isinstance(group, dist.ProcessGroup):
            raise InvalidInputError(
                f"process_group is {group!r}. Pass a torch.distributed process group "
                "that this process is in, e.g. torch.distributed.group.WORLD after "
                "init_process_group()."
            )
        if "cpu" in _backends(group):
            return Ranks(group=group)
        own = next(model.parameters(), None) if isinstance(model, nn.Module) else None
        place = torch.device("cuda", torch.cuda.current_device())
        if own is not None and own.device.type == "cuda":
            place = own.device
        return Ranks(group=group, device=place)

    @property
    def count(self) -> int:
        """Number of processes."""
        return 1 if self.group is None else dist.get_world_size(self.group)

    @property
    def rank(self) -> int:
        """Which of them this is, from 0."""
        return 0 if self.group is None else dist.get_rank(self.group)

    def check_device(self, device: torch.device) -> None:
        """Refuse a device that the group cannot reduce tensors on.

        Args:
            device: Of the parameters.

        Raises:
            InvalidInputError: If the group has no backend for it.
        """
        if self.group is not None and device.type not in _backends(self.group):
            raise InvalidInputError(
                f"The parameters are on {device}, the process group reduces on "
                f"{', '.join(_backends(self.group))}. Move the model, or make a group "
                "with init_process_group('cpu:gloo,cuda:nccl')."
            )

    @contextmanager
    def together(self, signature: Callable[[], Mapping[str, str]]) -> Iterator[None]:
        """Run a block on every rank; if one rank fails or differs, all raise.

        Args:
            signature: Returns what must be the same on all ranks, at most 15 fields,
                once the block is done.

        Yields:
            Nothing.

        Raises:
            InvalidInputError: If the ranks differ; names them and the fields.

        Cost:
            One all-gather of 16 numbers; more, of text, before an error.
        """  # noqa: DOC502 - raised by the exchange
        if self.group is None:
            yield
            return
        fields: Mapping[str, str] = {}
        failed: Exception | None = None
        try:
            yield
            fields = signature()
        except Exception as error:  # whatever it is, the others must hear of it
            failed = error
        self._exchange(fields, failed)

    def sum(self, tensor: Tensor, failed: Exception | None = None) -> Tensor:
        """Return the sum of a floating-point tensor over the ranks.

        A rank that failed sends NaN in place of its part, so that no number is spent
        on saying so; where the sum is NaN the ranks ask each other why, and all raise:
        the one that failed its own error, the others one that quotes it.

        Args:
            tensor: This rank's part, changed in place where there are several.
            failed: Why this rank has none.

        Returns:
            The sum, the same bits on every rank.

        Cost:
            One all-reduce.
        """
        if failed is not None and self.group is None:
            raise failed
        if self.group is None or not tensor.numel():
            return tensor
        whole = tensor.detach().contiguous()
        if failed is not None:
            whole.fill_(torch.nan)
        dist.all_reduce(whole, group=self.group)
        if bool(torch.isnan(whole.reshape(-1)[0])):
            self.tell(failed)
        return whole

    def sum_of(self, part: Callable[[], Tensor], *, like: Tensor) -> Tensor:
        """Return the sum of what each rank computes; an error reaches all of them.

        Args:
            part: Computes this rank's part.
            like: Any tensor of its shape and dtype.

        Returns:
            The sum, the same bits on every rank.

        Cost:
            One all-reduce.
        """
        if self.group is None:
            return part()
        failed: Exception | None = None
        try:
            own = part()
        except Exception as error:  # whatever it is, the others must hear of it
            own, failed = torch.empty_like(like), error
        return self.sum(own, failed)

    def tell(self, failed: Exception | None) -> None:
        """Raise on all ranks if one of them failed; every rank must call it.

        Args:
            failed: Why this rank failed, or None.
        """
        if self.group is None and failed is not None:
            raise failed
        if self.group is not None:
            self._exchange({}, failed)

    def _exchange(self, fields: Mapping[str, str], failed: Exception | None) -> None:
        own = torch.zeros(_SLOTS, dtype=torch.int64)
        own[0] = failed is not None
        for slot, (name, text) in enumerate(fields.items(), start=1):
            own[slot] = derive_seed(name, text)
        heads = self._gather(own)
        broken = heads[:, 0].nonzero().reshape(-1).tolist()
        if broken:
            words = self._letters(f"{type(failed).__name__}: {failed}")
            raise failed if failed is not None else _quoted(broken, words, self.count)
        unlike = (heads != heads[0]).any(0).nonzero().reshape(-1).tolist()
        if not unlike:
            return
        # other versions may have other fields, so the first difference comes alone
        name, text = [*fields.items(), *[("call", "")] * _SLOTS][unlike[0] - 1]
        found = _difference(name, self._letters(text))
        raise InvalidInputError(
            f"The {self.count} ranks do not share one system. {found} Make "
            "the same model and load the same state on every rank; only the examples "
            "may differ."
        )

    def _gather(self, own: Tensor) -> Tensor:
        mine = own.to(self.device)
        parts = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(parts, mine, group=self.group)
        return torch.stack(parts).cpu()

    def _letters(self, text: str) -> list[str]:
        raw = text.encode()[:_LETTERS].ljust(_LETTERS, b"\0")
        own = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        return [
            bytes(row.tolist()).rstrip(b"\0").decode(errors="ignore")
            for row in self._gather(own)
        ]


def _backends(group: "dist.ProcessGroup") -> list[str]:
    # "cpu:gloo,cuda:nccl" says which devices have one
    return re.findall(r"(\w+):\w+", dist.get_backend_config(group))


def _quoted(broken: list[int], words: list[str], count: int) -> Exception:
    first = words[broken[0]]
    who = f"Rank {broken[0]} of {count}"
    if len(broken) > 1:
        who = f"Ranks {_listed(broken)} of {count}"
    kinds = {kind.__name__: kind for kind in _KINDS}
    return kinds.get(first.split(":")[0], InvalidInputError)(
        f"{who} failed, and this one stopped with it: {first}"
    )


def _difference(name: str, texts: list[str]) -> str:
    """Return a sentence that says which ranks have what, from where they differ."""
    letters = enumerate(zip(*texts, strict=False))
    same = next((at for at, found in letters if len(set(found)) > 1), 0)
    holders: dict[str, list[int]] = {}
    for rank, text in enumerate(texts):
        holders.setdefault(text, []).append(rank)
    cut = max(0, same - 40)
    said = [
        f"rank{'s' if len(ranks) > 1 else ''} {_listed(ranks)} "
        f"{'…' if cut else ''}{text[cut : same + 80] or 'nothing'}"
        for text, ranks in sorted(holders.items(), key=lambda item: -len(item[1]))
    ]
    return f"They differ in the {name}: {'; '.join(said)}."


def _listed(ranks: list[int]) -> str:
    return ", ".join(map(str, ranks))
