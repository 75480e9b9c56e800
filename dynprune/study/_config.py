"""One frozen, validated config: everything that changes a study's numbers."""

import dataclasses
import itertools
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from dynprune.core import InvalidInputError, unknown

METHODS = (
    "imp",
    "imp-shuffled",
    "imp-reinitialised",
    "manifold",
    "manifold-shuffled",
    "magnitude-trained",
    "magnitude-init",
    "snip",
    "grasp",
    "synflow",
    "random",
)
ANALYSES = ("manifold-analysis", "forecast", "multipliers")
OPTIMIZERS = ("sgd", "adam", "adamw")


def geometric(lowest: float, levels: int) -> tuple[float, ...]:
    """Return ``levels`` densities from 1 down to ``lowest``, in equal ratios.

    Args:
        lowest: The last density, in (0, 1).
        levels: How many, at least 2.

    Returns:
        Densities, rounded to six digits.

    Example:
        >>> geometric(0.25, 3)
        (1.0, 0.5, 0.25)
    """
    ratio = lowest ** (1 / (levels - 1))
    return tuple(float(f"{ratio**n:.6g}") for n in range(levels))


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Say what a study runs; two studies of one config give the same numbers.

    Args:
        task: Name of a task in ``dp.tasks.TASKS``, or any name for a problem of
            one's own.
        model: Name of a model, ``"package.module:function"``, or empty for the
            task's own.
        data: Where a user's own data come from; see ``dp.tasks.load_user``.
        loss: Name of a user's own loss; see ``dp.tasks.load_user``.
        seed: The first seed.
        seeds: Number of seeds; they are ``seed, seed + 1, …``.
        densities: IMP levels, fractions kept: 1 first, then decreasing.
        compare_densities: Those of them at which the other methods are trained;
            empty for all below 1.
        methods: Which methods run.
        analyses: Which analyses run.
        optimizer: "sgd", "adam" or "adamw".
        learning_rate: Its step size.
        momentum: Of "sgd".
        weight_decay: Of the optimiser.
        steps: Optimiser steps of one training.
        batch_size: Examples per step.
        rewind_step: Step k whose state the survivors return to.
        transient: Optimiser steps before the manifold analysis.
        k_max: Largest number of sharp eigenpairs.
        hessian_examples: Training examples of the Hessian (the first so many of the
            training split); 0 for all.
        samples: Points at which the gap conditions are sampled.
        device: Where units compute: "cpu", "cuda" or "cuda:1" …

    Raises:
        InvalidInputError: For any value that cannot be run; says what to use.

    Example:
        >>> Config(seeds=2).seed_values
        (0, 1)
    """

    task: str = "digits"
    model: str = ""
    data: str = ""
    loss: str = ""
    seed: int = 0
    seeds: int = 5
    densities: tuple[float, ...] = geometric(0.02, 10)
    compare_densities: tuple[float, ...] = ()
    methods: tuple[str, ...] = METHODS
    analyses: tuple[str, ...] = ANALYSES
    optimizer: str = "sgd"
    learning_rate: float = 0.2
    momentum: float = 0.0
    weight_decay: float = 0.0
    steps: int = 600
    batch_size: int = 64
    rewind_step: int = 0
    transient: int = 10
    k_max: int = 20
    hessian_examples: int = 0
    samples: int = 5
    device: str = "cpu"

    def __post_init__(self) -> None:
        """Check every field.

        Raises:
            InvalidInputError: If one cannot be run.
        """  # noqa: DOC501, DOC502 - raised by the checks
        _check_densities(self.densities, self.compare_densities)
        for kind, chosen, known in (
            ("method", self.methods, METHODS),
            ("analysis", self.analyses, ANALYSES),
            ("optimizer", (self.optimizer,), OPTIMIZERS),
        ):
            for name in chosen:
                if name not in known:
                    raise unknown(kind, name, known)
        _check_numbers(self)
        _check_dependencies(self.methods)

    @property
    def seed_values(self) -> tuple[int, ...]:
        """The seeds of the study."""
        return tuple(range(self.seed, self.seed + self.seeds))

    @property
    def compared(self) -> tuple[float, ...]:
        """Densities at which the methods beside IMP are trained."""
        return self.compare_densities or self.densities[1:]

    @property
    def record_every(self) -> int:
        """Steps between the snapshots of the forecast window."""
        return max(1, self.steps // 600)

    @property
    def koopman_window(self) -> tuple[int, int]:
        """First and last step of the snapshots that forecasts are fitted to.

        From half of the training on, a sixth of it long.
        """
        every = self.record_every
        start = self.steps // 2 // every * every
        return start, start + max(8, self.steps // 6 // every) * every

    @property
    def koopman_horizons(self) -> tuple[int, ...]:
        """Steps ahead at which forecasts are compared with the truth.

        One sixtieth, one twelfth, a sixth and a third of the training.
        """
        every = self.record_every
        last = self.steps - self.koopman_window[1]
        wanted = (self.steps // part // every * every for part in (60, 12, 6, 3))
        return tuple(sorted({min(max(every, h), last) for h in wanted}))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for TOML and JSON.

        Returns:
            Field name to value, tuples as lists.
        """
        return {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in dataclasses.fields(self)
            for value in (getattr(self, field.name),)
        }


# What a study of each task runs unless told otherwise. The training recipes were
# chosen on validation accuracy with seeds 100-103, which no committed table uses.
PRESETS: dict[str, dict[str, Any]] = {
    "digits": {},
    "mnist": {
        "densities": tuple(float(f"{0.8**n:.6g}") for n in range(16)),
        "compare_densities": tuple(float(f"{0.8**n:.6g}") for n in (4, 7, 12, 15)),
        "learning_rate": 0.1,
        "steps": 5500,
        "batch_size": 60,
        "hessian_examples": 1024,
        "k_max": 15,
        "seeds": 3,
    },
}
PRESETS["fashion-mnist"] = dict(PRESETS["mnist"])
PRESETS["cifar10"] = {
    "model": "resnet-20",
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "steps": 20_000,
    "batch_size": 128,
    "rewind_step": 1000,
    "hessian_examples": 512,
    "seeds": 3,
}
QUICK: dict[str, Any] = {
    "seeds": 3,
    "densities": geometric(0.05, 4),
    "steps": 150,
    "k_max": 10,
    "samples": 1,
}


def configure(*, quick: bool = False, **choices: Any) -> Config:
    """Make a config from a task's preset and explicit choices.

    Args:
        quick: Start from a config of a few seconds, for a first look.
        **choices: Fields of :class:`Config`; None means "as the preset has it".

    Returns:
        The config.

    Raises:
        InvalidInputError: For an unknown field or a value that cannot be run.
    """  # noqa: DOC501, DOC502 - unknown() makes it
    known = [field.name for field in dataclasses.fields(Config)]
    for name in choices:
        if name not in known:
            raise unknown("config key", name, known)
    chosen = {name: value for name, value in choices.items() if value is not None}
    preset = dict(PRESETS.get(str(chosen.get("task", "digits")), {}))
    if quick:
        preset |= {**QUICK, "compare_densities": ()}
    values = preset | chosen
    if "densities" in chosen and "compare_densities" not in chosen:
        values["compare_densities"] = ()
    for name, value in values.items():
        values[name] = _coerce(name, value)
    return Config(**values)


def parse_config(text: str) -> Config:
    """Read a config.toml.

    Args:
        text: TOML, one key per field; missing ones have their defaults.

    Returns:
        The config.

    Raises:
        InvalidInputError: If the text is not TOML or a key is unknown.
    """
    try:
        plain: Mapping[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInputError(f"The config is not valid TOML: {error}.") from error
    return configure(**plain)


def read_config(path: Path) -> Config:
    """Read a config.toml from a file.

    Args:
        path: The file.

    Returns:
        The config.

    Raises:
        InvalidInputError: If it cannot be read, is not TOML or has an unknown key.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise InvalidInputError(
            f"Cannot read the config {path}: {why}. Check the path."
        ) from error
    return parse_config(text)


def _coerce(name: str, value: Any) -> Any:
    kind = Config.__dataclass_fields__[name].type
    try:
        if kind == tuple[float, ...]:
            return tuple(float(part) for part in value)
        if kind == tuple[str, ...]:
            if isinstance(value, str):
                raise TypeError
            return tuple(str(part) for part in value)
        if kind is int and (isinstance(value, bool) or int(value) != float(value)):
            raise TypeError
        return {"int": int, "float": float}.get(_name(kind), str)(value)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"Config key {name!r} is {value!r}, expected {_name(kind)}. Correct it."
        ) from error


def _name(kind: Any) -> str:
    return kind.__name__ if kind in {int, float, str} else str(kind)


def _check_densities(densities: tuple[float, ...], compared: tuple[float, ...]) -> None:
    text = ", ".join(f"{density:g}" for density in densities)
    if not densities or any(not 0.0 < density <= 1.0 for density in densities):
        raise InvalidInputError(
            f"Densities are fractions kept, in (0, 1]; found: {text or 'none'}."
        )
    if densities[0] != 1.0 or any(
        after >= before for before, after in itertools.pairwise(densities)
    ):
        raise InvalidInputError(
            f"Densities must start at 1 and decrease; found: {text}. Sort them from "
            "dense to sparse."
        )
    if len({f"{density:g}" for density in densities}) < len(densities):
        raise InvalidInputError(
            f"Densities {text} agree in six digits, which name the tickets' files. "
            "Space them wider."
        )
    if len(densities) < 2:
        raise InvalidInputError("A study needs at least one density below 1.")
    for density in compared:
        if density not in densities or density == 1.0:
            raise InvalidInputError(
                f"compare_densities holds {density:g}, which is no density of IMP "
                f"below 1: {text}. Take some of those."
            )


def _check_numbers(config: Config) -> None:
    least = {
        "seed": 0,
        "seeds": 1,
        "steps": 20,
        "batch_size": 1,
        "rewind_step": 0,
        "transient": 0,
        "k_max": 2,
        "hessian_examples": 0,
        "samples": 1,
    }
    for name, low in least.items():
        if getattr(config, name) < low:
            raise InvalidInputError(
                f"{name} is {getattr(config, name)}; use at least {low}."
            )
    for name in ("learning_rate", "momentum", "weight_decay"):
        value = getattr(config, name)
        if not math.isfinite(value) or value < 0 or (name[0] == "l" and value == 0):
            raise InvalidInputError(f"{name} is {value}; use a positive number.")
    for name in ("rewind_step", "transient"):
        if getattr(config, name) >= config.steps:
            raise InvalidInputError(
                f"{name} is {getattr(config, name)}, not below steps = {config.steps}."
            )
    kind, _, index = config.device.partition(":")
    if kind not in {"cpu", "cuda"} or (index and not index.isdigit()):
        raise InvalidInputError(
            f"Unknown device {config.device!r}. Use cpu, cuda or cuda:0."
        )


def _check_dependencies(methods: tuple[str, ...]) -> None:
    if "imp" not in methods:
        raise InvalidInputError(
            f"The methods {', '.join(methods) or 'none'} lack 'imp', which gives the "
            "dense network, the flow and the yardstick. Add it."
        )
    if "manifold-shuffled" in methods and "manifold" not in methods:
        raise InvalidInputError(
            "'manifold-shuffled' needs 'manifold'. Add it to the methods."
        )
