"""Find what a user names as ``package.module:function``."""

import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from dynprune.core import InvalidInputError, unknown

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_import_path(text: str) -> bool:
    """Say whether a text has the form ``package.module:function``.

    Args:
        text: The text.

    Returns:
        Whether it has.

    Example:
        >>> is_import_path("nets.small:make"), is_import_path("mlp:128,64:relu")
        (True, False)
    """
    return _PATH.fullmatch(text) is not None


def load_callable(path: str, *, what: str) -> Callable[..., Any]:
    """Import what a path names; the current folder is searched first.

    Args:
        path: ``package.module:function``.
        what: What the option is called, for messages: "model", "data", "loss".

    Returns:
        The function or class.

    Raises:
        InvalidInputError: If the path is malformed, the module is not found or fails,
            the attribute is missing, or it cannot be called.

    Example:
        >>> load_callable("math:sqrt", what="loss")(4.0)
        2.0
    """  # noqa: DOC501 - unknown() makes it
    if not is_import_path(path):
        raise InvalidInputError(
            f"The {what} {path!r} is not of the form package.module:function. Write "
            "e.g. mymodels:make_net for the function make_net in mymodels.py of the "
            "current folder."
        )
    module, _, attribute = path.partition(":")
    with here_first():
        found = _import_module(module, what=what)
        for name in attribute.split("."):
            if name not in dir(found):
                public = [n for n in dir(found) if not n.startswith("_")]
                raise unknown(f"{what} function in {module}:", name, public)
            found = getattr(found, name)
    if not callable(found):
        raise InvalidInputError(
            f"The {what} {path!r} is a {type(found).__name__}, which cannot be called. "
            "Name a function (or class) that makes it."
        )
    function: Callable[..., Any] = found
    return function


def call(function: Callable[..., Any], *args: Any, what: str, **kwargs: Any) -> Any:
    """Call a user's function; say where it failed if it did.

    Args:
        function: The function.
        *args: Its arguments.
        what: What it is for.
        **kwargs: Its keyword arguments.

    Returns:
        What it returns.

    Raises:
        InvalidInputError: If it raises; its own exception is the cause.
    """
    with here_first():
        try:
            return function(*args, **kwargs)
        except InvalidInputError:
            raise
        except Exception as error:
            name = getattr(function, "__qualname__", repr(function))
            raise InvalidInputError(
                f"The {what} function {name} failed: {_where(error)}. Correct it, or "
                "call it in Python to see the whole traceback."
            ) from error


@contextmanager
def here_first() -> Iterator[None]:
    """Search the current folder for modules inside the block, as ``python -m`` does.

    Yields:
        Nothing.
    """
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _import_module(name: str, *, what: str) -> Any:
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name + ".").startswith(error.name + "."):
            raise InvalidInputError(
                f"No module {error.name!r} for the {what} {name!r}. Run from the "
                f"folder that holds it (now {os.getcwd()}), install it, or add its "
                "folder to PYTHONPATH."
            ) from error
        raise _failed(name, what, error) from error
    except Exception as error:
        raise _failed(name, what, error) from error


def _failed(name: str, what: str, error: Exception) -> InvalidInputError:
    return InvalidInputError(
        f"Importing {name!r} for the {what} failed: {_where(error)}. Correct it; "
        f"`python -c 'import {name}'` shows the whole traceback."
    )


def _where(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        return text
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})"
