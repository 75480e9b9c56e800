"""What pruners are compared on: tasks, networks, recipes, budgets of the methods."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, final

import torch
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler

import dynprune as dp
from dynprune.core import derive_seed


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """Say how the pruners are compared on one task.

    Args:
        task: What tables call it.
        title: The data and the network, for a reader.
        source: Name in ``dp.tasks.TASKS``.
        model: Name of the network.
        densities: Of the tickets, descending.
        alike: Densities at which masks are compared.
        checked: Density of the sanity checks.
        steps: Of every training.
        batch_size: Of every training.
        adam: Adam, or else SGD with momentum 0.9 and a cosine.
        learning_rate: Of either.
        decay: Weight decay.
        augment: Shift and flip the training images.
        rewind_step: Of everything that is rewound after training.
        factor: Share of the weights that a level of IMP keeps, about.
        mask_epochs: Passes of methods that train a mask.
        mask_batch: Their batch size.
        scored: Training examples that scores and curvatures are taken from.
        matvecs: Hessian products for the diagonal of OBD.
        device: Where.
        recipe: "short", "full" or "quick".
    """

    task: str
    title: str
    source: str
    model: str
    densities: tuple[float, ...] = (0.5, 0.2, 0.1, 0.05, 0.03, 0.01)
    alike: tuple[float, ...] = (0.2, 0.05)
    checked: float = 0.05
    steps: int = 5000
    batch_size: int = 60
    adam: bool = True
    learning_rate: float = 1.2e-3
    decay: float = 0.0
    augment: bool = False
    rewind_step: int = 0
    factor: float = 0.8
    mask_epochs: int = 10
    mask_batch: int = 128
    scored: int = 1024
    matvecs: int = 100
    device: str = "cpu"
    recipe: str = "short"

    def seed(self, purpose: str, seed: int, density: float = 1.0) -> int:
        """Hash what a number is for to the seed of its generator.

        Initial weights ("init") and data order ("order") depend on the seed alone, so
        that methods are compared in pairs.
        """
        return derive_seed("pruners_vs_imp", self.task, purpose, density, seed)

    def trainer(self, problem: dp.Problem) -> dp.Recipe:
        """Return how every ticket is trained."""
        data = None
        if self.augment:
            x, y = problem.train
            device = torch.device(self.device)
            data = Shifted(x.to(device), y.to(device), self.batch_size)
        return dp.Recipe(
            functools.partial(_optimizer, self),
            steps=self.steps,
            batch_size=self.batch_size,
            schedule=None if self.adam else functools.partial(_cosine, self.steps),
            data=data,
            capture=torch.device(self.device).type == "cuda",
        )

    @staticmethod
    def of(plain: Mapping[str, Any]) -> "Setting":
        """Return the setting that was written as JSON."""
        values = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in plain.items()
        }
        return Setting(**values)

    def plain(self) -> dict[str, Any]:
        """Return it as JSON holds it."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
        }


SETTINGS = {
    one.task: one
    for one in (
        Setting(
            task="mnist",
            title="MNIST, LeNet-300-100",
            source="mnist",
            model="lenet-300-100",
        ),
        Setting(
            task="fashion-mnist",
            title="Fashion-MNIST, LeNet-300-100",
            source="fashion-mnist",
            model="lenet-300-100",
        ),
        Setting(
            task="mnist-conv",
            title="MNIST, 3×3 convolutions of stride 2 (8, 16 channels), "
            "a linear layer",
            source="mnist",
            model="conv:8,16:relu:stride",
        ),
        Setting(
            task="cifar10",
            title="CIFAR-10 (JPEG-75 copy), ResNet-20",
            source="cifar10",
            model="resnet:20:16",
            densities=(0.2, 0.0372, 0.0144),
            alike=(0.2, 0.0372),
            checked=0.0372,
            steps=2000,
            batch_size=128,
            adam=False,
            learning_rate=0.1,
            decay=1e-4,
            augment=True,
            rewind_step=500,
            factor=0.6,
        ),
    )
}


def quick(setting: Setting) -> Setting:
    """Return the same comparison in miniature, on the digits."""
    conv = "conv:4:relu" if setting.model.startswith("conv") else "mlp:16:relu"
    return replace(
        setting,
        title=f"{setting.title}: in miniature, on the digits",
        source="digits",
        model=conv if setting.adam else "resnet:8:4",
        densities=(0.5, 0.2),
        alike=(0.2,),
        checked=0.2,
        steps=24 if setting.adam else 12,
        batch_size=256 if setting.adam else 512,
        rewind_step=min(setting.rewind_step, 2),
        mask_epochs=2,
        mask_batch=256,
        scored=64,
        matvecs=8,
        recipe="quick",
    )


def full(setting: Setting) -> Setting:
    """Return the recipe of the source, 50,000 steps, at 3 %; in miniature as well."""
    if setting.recipe == "quick":
        least, steps = setting.densities[-1:], 2 * setting.steps
        return replace(setting, densities=least, alike=(), steps=steps, recipe="full")
    return replace(setting, densities=(0.03,), alike=(), steps=50_000, recipe="full")


def imp_densities(targets: Sequence[float], *, factor: float = 0.8) -> list[float]:
    """Return densities from 1 down by about a factor, exactly through the targets.

    Between two targets the levels are a geometric sequence, as many as make its ratio
    nearest to the factor.
    """
    found = [1.0]
    for target in targets:
        start = found[-1]
        count = max(1, round(math.log(target / start) / math.log(factor)))
        found += [start * (target / start) ** (i / count) for i in range(1, count)]
        found.append(target)
    return found


@functools.lru_cache(maxsize=1)
def problem_of(source: str, model: str) -> dp.Problem:
    """Return a problem; the same object on a second call in one process."""
    return dp.tasks.make(source, model)


@final
class Shifted:
    """Batches of images shifted by up to 4 pixels and flipped, afresh in every pass.

    Draws come from torch's global CPU generator, which training seeds and restores.

    Args:
        x: Images, shape ``(N, C, H, W)``, or flat square ones of one channel; batches
            have the same shape.
        y: Labels.
        batch_size: Examples per batch; the last one may be smaller.
    """

    def __init__(self, x: Tensor, y: Tensor, batch_size: int) -> None:
        side = math.isqrt(x[0].numel())
        self._shape = x.shape[1:]
        self._x = x.view(-1, 1, side, side) if x.ndim == 2 else x
        self._y, self._size = y, batch_size

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self._y) // self._size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of a pass."""
        x, pad = self._x, 4
        height, width = x.shape[-2:]
        for part in torch.randperm(len(x)).split(self._size):
            count = len(part)
            down, right = torch.randint(0, 2 * pad + 1, (2, count, 1))
            flip = torch.rand(count, 1) < 0.5
            rows = torch.arange(height) + down
            columns = torch.arange(width).expand(count, -1)
            columns = torch.where(flip, width - 1 - columns, columns) + right
            where = (rows.to(x.device), columns.to(x.device))
            images = torch.nn.functional.pad(x[part.to(x.device)], (pad,) * 4)
            found = images[
                torch.arange(count, device=x.device)[:, None, None],
                :,
                where[0][:, :, None],
                where[1][:, None, :],
            ]
            turned = found.permute(0, 3, 1, 2).reshape(count, *self._shape)
            yield turned, self._y[part.to(x.device)]


def _optimizer(setting: Setting, parameters: list[Tensor]) -> torch.optim.Optimizer:
    if setting.adam:
        return torch.optim.Adam(
            parameters,
            lr=setting.learning_rate,
            weight_decay=setting.decay,
            fused=True,
        )
    return torch.optim.SGD(
        parameters,
        lr=setting.learning_rate,
        momentum=0.9,
        weight_decay=setting.decay,
        fused=True,
    )


def _cosine(steps: int, optimizer: torch.optim.Optimizer) -> LRScheduler:
    return CosineAnnealingLR(optimizer, steps)
