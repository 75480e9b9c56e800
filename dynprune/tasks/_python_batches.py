"""A reader of CIFAR's python batches that builds plain values and runs nothing."""

import pickletools
import re
from collections.abc import Callable
from typing import Any, final

import numpy as np

from dynprune.core import InvalidInputError

_RECONSTRUCT = {
    "numpy.core.multiarray _reconstruct",
    "numpy._core.multiarray _reconstruct",
}
_ARRAY, _DTYPE, _ENCODE = "numpy ndarray", "numpy dtype", "_codecs encode"
_ALLOWED = _RECONSTRUCT | {_ARRAY, _DTYPE, _ENCODE}
_NUMBER = re.compile(r"[<>|=]?[biuf][1248]")
_MARK = object()
# The opcodes that carry their value as an argument, and those that are one value.
_ARGUMENT = {
    *("BININT", "BININT1", "BININT2", "LONG1", "INT", "LONG", "BINFLOAT"),
    *("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"),
    *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
}
_LATIN = {"SHORT_BINSTRING", "BINSTRING"}
_CONSTANT: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NOTHING = {"PROTO", "FRAME", "STOP"}


class _Refused(Exception):  # noqa: N818 - never leaves this module
    pass


@final
class _Named:
    """A name of the allow list; it stands for nothing but itself."""

    def __init__(self, name: str) -> None:
        self.name = name


@final
class _Built:
    """An array or dtype under construction, shared by all that refer to it."""

    def __init__(self, kind: str, value: Any = None) -> None:
        self.kind = kind
        self.value = value


def read_plain(raw: bytes, *, name: str) -> Any:
    r"""Decode the pickle format to plain values, executing nothing.

    The opcodes are read by ``pickletools.genops``, which only parses. Dictionaries,
    lists, tuples, text, bytes, numbers and numeric arrays are built; any other name
    or opcode is refused before anything is made of it. Text of Python 2 becomes bytes.

    Args:
        raw: Content of the file.
        name: What to call it.

    Returns:
        The value.

    Raises:
        InvalidInputError: If the file is truncated, damaged, or holds anything else.

    Example:
        >>> read_plain(b"\x80\x02]K\x07a.", name="a list of one integer")
        [7]
    """
    try:
        return _plain(_run(raw))
    except _Refused as error:
        raise InvalidInputError(
            f"{name} holds {error}, which a batch of images does not need; nothing of "
            "it was executed. Get the official file."
        ) from error
    except Exception as error:
        raise InvalidInputError(
            f"{name} is truncated or damaged ({type(error).__name__}: {error}). Get "
            "it again."
        ) from error


def _run(raw: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for opcode, found, _ in pickletools.genops(raw):
        argument: Any = found
        kind = opcode.name
        if kind in _NOTHING:
            continue
        if kind in _ARGUMENT:
            stack.append(argument)
        elif kind in _LATIN:
            stack.append(argument.encode("latin-1"))
        elif kind in _CONSTANT:
            stack.append(_CONSTANT[kind])
        elif kind in {"BINPUT", "LONG_BINPUT", "PUT"}:
            memo[argument] = stack[-1]
        elif kind == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif kind in {"BINGET", "LONG_BINGET", "GET"}:
            stack.append(memo[argument])
        elif kind == "GLOBAL":
            stack.append(_named(argument))
        elif kind in _STACK:
            _STACK[kind](stack)
        else:
            raise _Refused(f"the opcode {kind}")
    (value,) = stack
    return value


def _named(name: str) -> _Named:
    if name not in _ALLOWED:
        raise _Refused(f"the name {name.replace(' ', '.')!r}")
    return _Named(name)


def _since_mark(stack: list[Any]) -> list[Any]:
    start = max(index for index, item in enumerate(stack) if item is _MARK)
    items = stack[start + 1 :]
    del stack[start:]
    return items


def _last(count: int) -> Callable[[list[Any]], None]:
    def build(stack: list[Any]) -> None:
        items = tuple(stack[len(stack) - count :])
        if len(items) != count:
            raise IndexError("too few values")
        del stack[len(stack) - count :]
        stack.append(items)

    return build


def _stack_global(stack: list[Any]) -> None:
    attribute, module = stack.pop(), stack.pop()
    stack.append(_named(f"{module} {attribute}"))


def _reduce(stack: list[Any]) -> None:
    arguments, function = stack.pop(), stack.pop()
    if not isinstance(function, _Named):
        raise _Refused(f"a call of a {type(function).__name__}")
    if function.name in _RECONSTRUCT:
        made: Any = _Built("array")
    elif function.name == _DTYPE:
        code = _text(arguments[0])
        if not _NUMBER.fullmatch(code):
            raise _Refused(f"the dtype {code!r}")
        made = _Built("dtype", np.dtype(code))
    elif function.name == _ENCODE:
        made = _text(arguments[0]).encode("latin-1")
    else:
        raise _Refused(f"a call of {function.name.replace(' ', '.')}")
    stack.append(made)


def _build(stack: list[Any]) -> None:
    state, made = stack.pop(), stack[-1]
    if not isinstance(made, _Built):
        raise _Refused(f"a state for a {type(made).__name__}")
    if made.kind == "dtype":
        order = _text(state[1])
        made.value = made.value.newbyteorder(order) if order in "<>" else made.value
        return
    _, shape, dtype, fortran, data = state
    flat = np.frombuffer(data, dtype=dtype.value)
    made.value = flat.reshape(shape, order="F" if fortran else "C")


def _append(stack: list[Any]) -> None:
    item = stack.pop()
    _list(stack[-1]).append(item)


def _appends(stack: list[Any]) -> None:
    items = _since_mark(stack)
    _list(stack[-1]).extend(items)


def _set_item(stack: list[Any]) -> None:
    value, key = stack.pop(), stack.pop()
    _dict(stack[-1])[key] = value


def _set_items(stack: list[Any]) -> None:
    items = _since_mark(stack)
    _dict(stack[-1]).update(zip(items[::2], items[1::2], strict=True))


def _dict(value: Any) -> dict[Any, Any]:
    if type(value) is not dict:
        raise _Refused(f"items of a {type(value).__name__}")
    return value


def _list(value: Any) -> list[Any]:
    if type(value) is not list:
        raise _Refused(f"elements of a {type(value).__name__}")
    return value


def _text(value: Any) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else str(value)


_STACK: dict[str, Callable[[list[Any]], None]] = {
    "MARK": lambda stack: stack.append(_MARK),
    "EMPTY_DICT": lambda stack: stack.append({}),
    "EMPTY_LIST": lambda stack: stack.append([]),
    "EMPTY_TUPLE": lambda stack: stack.append(()),
    "LIST": lambda stack: stack.append(_since_mark(stack)),
    "TUPLE": lambda stack: stack.append(tuple(_since_mark(stack))),
    "TUPLE1": _last(1),
    "TUPLE2": _last(2),
    "TUPLE3": _last(3),
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _build,
}


def _plain(value: Any) -> Any:
    if isinstance(value, _Built):
        if value.value is None:
            raise ValueError("an array without data")
        return value.value
    if isinstance(value, _Named):
        raise _Refused(f"the name {value.name.replace(' ', '.')!r}")
    if type(value) is dict:
        return {key: _plain(item) for key, item in value.items()}
    if type(value) in {list, tuple}:
        return type(value)(_plain(item) for item in value)
    return value
