"""Whether two networks, or two losses, are one: part by part."""

import functools
import types
import weakref
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations

_PLAIN = (bool, int, float, complex, str, bytes, np.generic, range, slice)
_PLAIN_TORCH = (torch.dtype, torch.device, torch.layout, torch.memory_format)
_ATOMS = (type, Enum, torch.Generator, types.BuiltinFunctionType, types.ModuleType)
_HOOKS = ("_hooks", "_hooks_with_kwargs", "_hooks_always_called")


def difference(one: Any, other: Any, *, stacked: bool) -> str | None:
    """Name the first part in which two objects differ.

    Modules are compared submodule by submodule, in order: types, hooks and every
    attribute; other objects by type and attributes. Functions made by one piece of code
    are alike if what they enclose is. What cannot be looked into (an object without
    attributes that is not the same one) differs.

    Args:
        one: A network, a loss, or any part of them.
        other: Another one.
        stacked: Whether parameters and buffers become slices of a stack, so that only
            their shapes and dtypes must agree; otherwise their values must.

    Returns:
        Its path, e.g. ``"blocks.0.factor"``, empty for the object itself; None if
        nothing differs.
    """
    return _Comparison(one, other, stacked=stacked).of(one, other, "")


@final
class _Comparison:
    """Walk through two objects side by side.

    Args:
        one: Where the walk starts.
        other: Where it starts on the other side.
        stacked: Whether values of parameters and buffers may differ.
    """

    def __init__(self, one: Any, other: Any, *, stacked: bool) -> None:
        self._stacked = [
            _tensor_names(part) if stacked else {} for part in (one, other)
        ]
        self._met: list[Any] = []  # kept alive, so that no other object takes their ids
        self._pairs: set[tuple[int, int]] = set()

    def of(self, a: Any, b: Any, path: str) -> str | None:
        """Return the path of the first difference from here on, or None.

        Args:
            a: A part of the one.
            b: The same part of the other.
            path: Of both.

        Returns:
            The path.
        """
        if a is b or (id(a), id(b)) in self._pairs:
            return None
        if _kind(a) is not _kind(b) or isinstance(a, _ATOMS):
            return path
        if isinstance(a, Tensor | np.ndarray):
            return None if self._alike(a, b) else path
        if isinstance(a, _PLAIN + _PLAIN_TORCH):
            return None if repr(a) == repr(b) else path
        if isinstance(a, set | frozenset):
            return None if a == b else path
        self._met += [a, b]
        self._pairs.add((id(a), id(b)))
        mine, theirs = _parts(a), _parts(b)
        if mine is None or theirs is None:
            return path
        start = f"{path}." if path else ""
        if mine.keys() != theirs.keys():
            return start + min(mine.keys() ^ theirs.keys())
        for name, part in mine.items():
            found = self.of(part, theirs[name], f"{start}{name}")
            if found is not None:
                return found
        return None

    def _alike(self, a: Any, b: Any) -> bool:
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if isinstance(a, np.ndarray):
            return bool(np.array_equal(a, b))
        mine, theirs = (
            names.get(id(part))
            for names, part in zip(self._stacked, (a, b), strict=True)
        )
        if mine is not None and mine == theirs:
            return True
        return a.device == b.device and torch.equal(a, b)


def _tensor_names(root: Any) -> dict[int, str]:
    if not isinstance(root, nn.Module):
        return {}
    return {
        id(tensor): name
        for named in (root.named_parameters(), root.named_buffers())
        for name, tensor in named
    }


def _kind(a: Any) -> type:
    # parametrize gives every module a class of its own
    return type_before_parametrizations(a) if isinstance(a, nn.Module) else type(a)


def _parts(a: Any) -> dict[str, Any] | None:
    # what an object is made of, by name; None if it cannot be seen
    if isinstance(a, nn.Module):
        return dict(_of_module(a))
    if isinstance(a, types.FunctionType):
        return _of_function(a)
    if isinstance(a, types.MethodType):
        return {"__func__": a.__func__, "__self__": a.__self__}
    if isinstance(a, functools.partial):
        return {"func": a.func, "args": a.args, "keywords": a.keywords}
    if isinstance(a, weakref.ref):
        return {"target": a()}
    held = _attributes(a)
    if isinstance(a, Mapping):
        named = {f"[{key!r}]": part for key, part in a.items()}
        return named | {"order": list(named)} | (held or {})
    if isinstance(a, list | tuple):
        return {str(place): part for place, part in enumerate(a)} | (held or {})
    return {} if type(a) is object else held


def _of_module(module: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, part in vars(module).items():
        if name == "training" or "state_dict" in name:
            continue  # the mode is the recipe's
        if name == "_modules":
            yield "order", list(part)
            yield from part.items()
        elif name.endswith(_HOOKS):
            yield name, list(part.values())  # keys count all hooks that were ever made
        else:
            yield name, part


def _of_function(a: types.FunctionType) -> dict[str, Any]:
    return {
        "__code__": a.__code__,
        "__globals__": id(a.__globals__),
        "__defaults__": a.__defaults__,
        "__kwdefaults__": a.__kwdefaults__,
        "__dict__": vars(a),
        **{
            name: _content(cell)
            for name, cell in zip(
                a.__code__.co_freevars, a.__closure__ or (), strict=True
            )
        },
    }


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet filled
        return None


def _attributes(a: Any) -> dict[str, Any] | None:
    slots = [
        name
        for kind in type(a).__mro__
        for name in _names(vars(kind).get("__slots__", ()))
        if name not in {"__dict__", "__weakref__"}
    ]
    held = getattr(a, "__dict__", None)
    if held is None and not slots:
        return None
    absent = object()
    found = {name: getattr(a, name, absent) for name in slots}
    seen = {name: part for name, part in found.items() if part is not absent}
    return seen | dict(held or {})


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)
