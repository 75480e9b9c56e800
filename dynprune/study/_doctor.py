"""What is installed, what is missing, how to get it."""

import importlib.metadata
import os
import platform

import torch

from dynprune._version import __version__
from dynprune.core import InvalidInputError
from dynprune.tasks import TASKS, check_files

_PACKAGES = (
    "numpy",
    "scipy",
    "pandas",
    "scikit-learn",
    "matplotlib",
    "safetensors",
    "tyro",
    "jinja2",
    "tqdm",
    "loky",
    "pillow",
    "tomli-w",
)
_OPTIONAL = {
    "xarray": "frames with named axes (.to_xarray)",
    "pydmd": "the rival test of the DMD",
}


def doctor() -> str:
    """Describe this machine and installation.

    Returns:
        A few lines: versions, devices, threads, tasks whose files are missing.

    Cost:
        Reads the files of every bundled task.
    """
    lines = [
        f"dynprune {__version__}, Python {platform.python_version()}, torch "
        f"{torch.__version__}, {platform.system()} {platform.machine()}",
        f"cores {os.cpu_count()}, torch threads {torch.get_num_threads()} "
        "(a study gives each unit one thread and runs one unit per core)",
        f"devices: {', '.join(_devices())}",
    ]
    for name in _PACKAGES:
        version = _version(name)
        lines.append(f"{name}: {version or f'MISSING; pip install {name}'}")
    for name, purpose in _OPTIONAL.items():
        version = _version(name) or f"not installed; pip install {name} for {purpose}"
        lines.append(f"{name} (optional): {version}")
    for task in TASKS:
        lines.append(f"task {task}: {_ready(task)}")
    return "\n".join(lines)


def _devices() -> list[str]:
    found = ["cpu"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        memory = properties.total_memory / 2**30
        found.append(f"cuda:{index} ({properties.name}, {memory:.0f} GiB)")
    if len(found) == 1:
        found.append("no CUDA device (a CUDA build of torch and a driver give one)")
    return found


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _ready(task: str) -> str:
    try:
        check_files(task)
    except InvalidInputError as error:
        return f"not ready. {error}"
    return "ready"
