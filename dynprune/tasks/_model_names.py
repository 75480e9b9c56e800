"""From the name of a model to its maker: "mlp:128,64:relu", "resnet:20:16"."""

import functools
import inspect
import re
from collections.abc import Callable, Sequence

from torch import nn

from dynprune.core import InvalidInputError, unknown
from dynprune.tasks._import import call, is_import_path, load_callable
from dynprune.tasks._models import lenet_300_100, mlp, small_conv_net
from dynprune.tasks._resnet import Shortcut, resnet

MakeModel = Callable[[int], nn.Module]
Shape = tuple[int, ...]


def _mlp(
    in_shape: Shape,
    classes: int,
    *,
    hidden: Sequence[int] = (64, 32),
    activation: str = "tanh",
    seed: int = 0,
) -> nn.Module:
    widths = (_size(in_shape), *hidden, classes)
    return mlp(widths, activation, seed=seed)


def _lenet_300_100(
    in_shape: Shape, classes: int, *, activation: str = "relu", seed: int = 0
) -> nn.Module:
    return lenet_300_100(_size(in_shape), classes, activation=activation, seed=seed)


def _conv(
    in_shape: Shape,
    classes: int,
    *,
    channels: Sequence[int] = (16, 32),
    activation: str = "relu",
    halve: str = "pool",
    seed: int = 0,
) -> nn.Module:
    return small_conv_net(
        in_shape,
        classes,
        channels=channels,
        activation=activation,
        halve=halve,
        seed=seed,
    )


def _resnet(
    in_shape: Shape,
    classes: int,
    *,
    depth: int = 20,
    width: int = 16,
    shortcut: Shortcut = "B",
    seed: int = 0,
) -> nn.Module:
    return resnet(
        depth,
        width,
        in_shape=in_shape,
        classes=classes,
        shortcut=shortcut,
        seed=seed,
    )


# What a config may name. Each is called as maker(in_shape, classes, seed=..., **knobs);
# the knobs are those of _KNOBS, in the order in which a name gives them.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": _mlp,
    "lenet-300-100": _lenet_300_100,
    "conv": _conv,
    "resnet": _resnet,
}
_KNOBS: dict[str, tuple[tuple[str, str], ...]] = {
    "mlp": (("hidden", "integers"), ("activation", "word")),
    "lenet-300-100": (("activation", "word"),),
    "conv": (("channels", "integers"), ("activation", "word"), ("halve", "word")),
    "resnet": (("depth", "integer"), ("width", "integer"), ("shortcut", "word")),
}
_FORMS = (
    "mlp, mlp:128,64:relu, lenet-300-100, conv, conv:16,32:tanh, resnet:20:16, "
    "resnet-20, or package.module:function"
)


def model_maker(name: str, *, in_shape: Shape, classes: int) -> MakeModel:
    """Read the name of a model.

    A name is a key of ``tasks.MODELS``, with its knobs after colons:
    ``mlp[:hidden widths[:activation]]``, ``lenet-300-100[:activation]``,
    ``conv[:channels[:activation[:halve]]]``, ``resnet[:depth[:width[:A or B]]]``;
    ``resnet-20`` is ``resnet:20``. Anything else with a colon is
    ``package.module:function``.

    Args:
        name: The name.
        in_shape: Shape of one example.
        classes: Number of outputs.

    Returns:
        ``seed -> module``; the knobs have been checked by making one.

    Raises:
        InvalidInputError: If the name cannot be read, or a knob is wrong.

    Example:
        >>> make = model_maker("mlp:5:relu", in_shape=(3,), classes=2)
        >>> [tuple(p.shape) for p in make(0).parameters()]
        [(5, 3), (5,), (2, 5), (2,)]
    """
    head, *values = re.sub(r"^resnet-(?=\d)", "resnet:", name).split(":")
    if head not in MODELS:
        if is_import_path(name):
            return user_model(name)
        error = unknown("model", head, MODELS)
        raise InvalidInputError(f"{error} A model is {_FORMS}.")
    knobs = _KNOBS[head]
    if len(values) > len(knobs):
        order = ":".join([head, *(knob for knob, _ in knobs)])
        raise InvalidInputError(
            f"The model {name!r} has {len(values)} knobs, {head} has {len(knobs)}. "
            f"Write {order}."
        )
    given = {
        knob: _read(value, kind, name=name, knob=knob)
        for (knob, kind), value in zip(knobs, values, strict=False)
        if value
    }
    maker = functools.partial(
        _seeded, head, tuple(in_shape), classes, tuple(given.items())
    )
    maker(0)
    return maker


def user_model(path: str) -> MakeModel:
    """Return a maker for a user's ``package.module:function``.

    The function is called with ``seed=…`` if it has a parameter of that name, without
    arguments if it needs none, with the seed if it needs exactly one.

    Args:
        path: The import path.

    Returns:
        ``seed -> module``.

    Raises:
        InvalidInputError: If it cannot be imported or needs other arguments.
    """
    function = load_callable(path, what="model")
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        parameters = inspect.signature(lambda: None).parameters
    required = [
        part.name
        for part in parameters.values()
        if part.default is part.empty
        and part.kind not in {part.VAR_POSITIONAL, part.VAR_KEYWORD}
    ]
    style = "none"
    if "seed" in parameters and required in ([], ["seed"]):
        style = "keyword"
    elif len(required) == 1:
        style = "positional"
    elif required:
        raise InvalidInputError(
            f"The model function {path!r} needs the arguments {', '.join(required)}. "
            "dynprune calls it with no argument or with a seed: give the others "
            "defaults."
        )
    return functools.partial(_call_user, path, style)


def _call_user(path: str, style: str, seed: int) -> nn.Module:
    function = load_callable(path, what="model")
    args = (seed,) if style == "positional" else ()
    kwargs = {"seed": seed} if style == "keyword" else {}
    made = call(function, *args, what="model", **kwargs)
    if not isinstance(made, nn.Module):
        raise InvalidInputError(
            f"The model function {path!r} returned a {type(made).__name__}, expected "
            "an nn.Module. Return the model."
        )
    return made


def _seeded(
    head: str,
    in_shape: Shape,
    classes: int,
    knobs: tuple[tuple[str, object], ...],
    seed: int,
) -> nn.Module:
    return MODELS[head](in_shape, classes, seed=seed, **dict(knobs))


def _read(value: str, kind: str, *, name: str, knob: str) -> object:
    if kind == "word":
        return value
    parts = value.split(",")
    if not all(re.fullmatch(r"\s*\d+\s*", part) for part in parts) or (
        kind == "integer" and len(parts) > 1
    ):
        wanted = "integers such as 128,64" if kind == "integers" else "an integer"
        raise InvalidInputError(
            f"The model {name!r} has {knob} = {value!r}, expected {wanted}. Models are "
            f"{_FORMS}."
        )
    numbers = tuple(int(part) for part in parts)
    return numbers if kind == "integers" else numbers[0]


def _size(in_shape: Shape) -> int:
    size = 1
    for n in in_shape:
        size *= n
    return size
