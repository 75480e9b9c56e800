"""The commands: parse, call the rooms, print."""

import sys
from pathlib import Path
from typing import Annotated

import tyro

from dynprune import study as studies, tasks
from dynprune._version import __version__
from dynprune.core import DynPruneError


def study(
    *,
    task: str | None = None,
    model: str | None = None,
    data: str | None = None,
    loss: str | None = None,
    seeds: int | None = None,
    seed: int | None = None,
    densities: tuple[float, ...] | None = None,
    compare_densities: tuple[float, ...] | None = None,
    methods: tuple[str, ...] | None = None,
    analyses: tuple[str, ...] | None = None,
    optimizer: str | None = None,
    learning_rate: float | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    steps: int | None = None,
    batch_size: int | None = None,
    rewind_step: int | None = None,
    transient: int | None = None,
    k_max: int | None = None,
    hessian_examples: int | None = None,
    samples: int | None = None,
    device: str | None = None,
    config: Path | None = None,
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    download: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    out: Path | None = None,
    jobs: int | None = None,
) -> int:
    """Train, prune, forecast, and hold each theory to what was measured.

    What is left out is the task's preset. The same command made again goes on where
    it was stopped, or says that nothing is to do.

    Args:
        task: A bundled task: digits (no files needed), mnist, fashion-mnist, cifar10.
        model: A model's name (mlp:64,32:tanh, lenet-300-100, conv, resnet:20:16), or
            your own as package.module:function.
        data: Your own data: package.module:function that gives train, validation and
            test, or an .npz file.
        loss: Your own loss: cross_entropy, mse, or package.module:function.
        seeds: Number of seeds.
        seed: The first seed.
        densities: IMP levels, fractions kept, from 1 down.
        compare_densities: Those at which the other methods are trained.
        methods: Which methods run; all by default.
        analyses: Which analyses run; all by default.
        optimizer: sgd, adam or adamw.
        learning_rate: Step size.
        momentum: Momentum of sgd.
        weight_decay: Weight decay.
        steps: Optimiser steps of one training.
        batch_size: Examples per step.
        rewind_step: Step whose state survivors return to.
        transient: Steps before the manifold analysis.
        k_max: Largest number of sharp eigenpairs.
        hessian_examples: Training examples of the Hessian; 0 for all.
        samples: Points at which the gap conditions are sampled.
        device: cpu, cuda, cuda:1.
        config: Read a config.toml; other options override it.
        quick: A config of seconds, for a first look.
        download: Fetch the task's files if they are missing.
        out: Folder of the results.
        jobs: Number of processes; all cores by default.

    Returns:
        The exit code.
    """
    given = {
        name: value
        for name, value in locals().items()
        if name not in {"config", "quick", "download", "out", "jobs"}
    }
    if config is not None:
        chosen = {k: v for k, v in given.items() if v is not None}
        given = studies.read_config(config).to_dict() | chosen
    wanted = studies.configure(quick=quick, **given)
    if download:
        tasks.download(wanted.task)
    _say(f"dynprune {__version__}: a study of {wanted.task}, {wanted.seeds} seeds.")
    done = studies.run(wanted, out=out, jobs=jobs, progress=True, say=_say)
    _say(done.summary())
    return 0


def report(folder: tyro.conf.Positional[Path]) -> int:
    """Build the ledger and the report of a finished study again.

    Args:
        folder: The study's folder.

    Returns:
        The exit code.
    """
    _say(f"report: {studies.report(folder)}")
    return 0


def doctor() -> int:
    """Print versions, devices, threads, what is missing and how to get it.

    Returns:
        The exit code.
    """
    _say(studies.doctor())
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: The command line; ``sys.argv[1:]`` if None.

    Returns:
        The exit code: 0, 2 for an error that a user can mend, 130 if interrupted.
    """
    try:
        return int(
            tyro.extras.subcommand_cli_from_dict(
                {"study": study, "report": report, "doctor": doctor},
                prog="dynprune",
                description="Which weights can go, and how early can we know?",
                args=arguments,
            )
        )
    except DynPruneError as error:
        print(f"dynprune: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        print(  # noqa: T201
            "dynprune: stopped; the same command goes on from here.", file=sys.stderr
        )
        return 130


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
