"""Where a result comes from, so that it can be made again."""

from dataclasses import asdict, dataclass
from typing import Any, final

import torch

from dynprune._version import __version__
from dynprune.core.scalars import plain_numbers


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Record what made a result.

    Args:
        made_by: The public function, e.g. ``"pruning.snip"``.
        seed: The seed it was given.
        dtype: The dtype of the state.
        device: The device of the state.
        examples: Number of examples N it read.
        settings: Every knob that changes the result, JSON-serialisable; numbers of
            NumPy and torch become plain ones, arrays lists.
        sources: Keys of :mod:`dynprune.core.citations`.
        dynprune_version: Filled in.
        torch_version: Filled in.
    """

    made_by: str
    seed: int = 0
    dtype: str = "float32"
    device: str = "cpu"
    examples: int = 0
    settings: tuple[tuple[str, Any], ...] = ()
    sources: tuple[str, ...] = ()
    dynprune_version: str = __version__
    torch_version: str = torch.__version__

    def __post_init__(self) -> None:
        """Make every number a plain one, which JSON can hold."""
        for name in ("seed", "examples", "settings"):
            object.__setattr__(self, name, plain_numbers(getattr(self, name)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-serialisable values."""
        plain = asdict(self)
        plain["settings"] = dict(self.settings)
        plain["sources"] = list(self.sources)
        return plain

    @staticmethod
    def from_dict(plain: dict[str, Any]) -> "Provenance":
        """Read back what :meth:`to_dict` gave.

        Args:
            plain: The dictionary.

        Returns:
            The record.
        """
        values = dict(plain)
        values["settings"] = tuple(sorted(values.get("settings", {}).items()))
        values["sources"] = tuple(values.get("sources", ()))
        return Provenance(**values)
