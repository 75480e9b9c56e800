"""Networks, losses and data that the benchmarks measure products on."""

import copy
import itertools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

import dynprune as dp
from dynprune.core import Rows, isolated
from dynprune.operators import AbstractOperator

Batch = tuple[Tensor, Tensor]


@final
@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class Case:
    """Hold a network in eval mode, its mean loss, and batches of equal size.

    Args:
        name: What tables call it.
        model: The network.
        loss: A module with ``reduction`` "mean".
        batches: Pairs (x, y).
    """

    name: str
    model: nn.Module
    loss: nn.Module
    batches: list[Batch]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return [part for part in self.model.parameters() if part.requires_grad]

    @property
    def size(self) -> int:
        """P."""
        return sum(part.numel() for part in self.parameters)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self.parameters[0].device

    @property
    def dtype(self) -> torch.dtype:
        """Of the parameters."""
        return self.parameters[0].dtype

    @property
    def data(self) -> Batch | list[Batch]:
        """One resident batch, or the list of them."""
        return self.batches[0] if len(self.batches) == 1 else self.batches

    def system(self) -> dp.GradientSystem:
        """Return the case as dynprune sees it."""
        return dp.GradientSystem(self.model, self.loss, self.data)

    def copy(self) -> "Case":
        """Return the same with a model of its own."""
        return Case(
            name=self.name,
            model=copy.deepcopy(self.model),
            loss=self.loss,
            batches=self.batches,
        )

    def to(self, place: torch.device | torch.dtype) -> "Case":
        """Return a copy on a device or in a dtype."""
        return Case(
            name=self.name,
            model=copy.deepcopy(self.model).to(place),
            loss=self.loss,
            batches=[(_to(x, place), _to(y, place)) for x, y in self.batches],
        )

    def split(self, parts: int) -> "Case":
        """Return the same examples in so many batches."""
        x, y = (torch.cat(part) for part in zip(*self.batches, strict=True))
        pairs = zip(x.chunk(parts), y.chunk(parts), strict=True)
        return Case(
            name=self.name, model=self.model, loss=self.loss, batches=list(pairs)
        )

    def gradient(self) -> Tensor:
        """Return the gradient of the mean over the batches by plain autograd."""
        total: list[Tensor] | None = None
        for x, y in self.batches:
            value = self.loss(self.model(x), y)
            parts = torch.autograd.grad(value, self.parameters)
            total = (
                list(parts)
                if total is None
                else [a + b for a, b in zip(total, parts, strict=True)]
            )
        assert total is not None
        return torch.cat([part.reshape(-1) for part in total]) / len(self.batches)

    def vectors(self, count: int, *, seed: int = 0) -> Tensor:
        """Return Gaussian vectors, shape ``(P, count)``."""
        make = torch.Generator().manual_seed(seed)
        block = torch.randn(self.size, count, generator=make)
        return block.to(device=self.device, dtype=self.dtype)


def _to(tensor: Tensor, place: torch.device | torch.dtype) -> Tensor:
    if isinstance(place, torch.dtype) and not tensor.is_floating_point():
        return tensor
    return tensor.to(place)


def _random(
    name: str,
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    *,
    batch: int,
    batches: int,
    classes: int = 10,
    seed: int = 0,
) -> Case:
    # Gaussian inputs; running statistics of BatchNorm are those of the inputs.
    draw = torch.Generator().manual_seed(seed)
    pairs = [
        (
            torch.randn(batch, *shape, generator=draw),
            torch.randint(0, classes, (batch,), generator=draw),
        )
        for _ in range(batches)
    ]
    with isolated(seed), torch.no_grad():
        model = make()
        if any(isinstance(part, nn.BatchNorm2d) for part in model.modules()):
            model.train()
            for _ in range(3):
                model(pairs[0][0][:64])
    return Case(
        name=name, model=model.eval(), loss=nn.CrossEntropyLoss(), batches=pairs
    )


def perceptron(widths: tuple[int, ...], activation: type[nn.Module]) -> nn.Sequential:
    """Return fully connected layers with an activation between them."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])


def mlp(*, batch: int = 512, batches: int = 1, width: int = 300) -> Case:
    """Return the MLP 784-300-100-10 (ReLU) on Gaussian inputs."""
    widths = (784, width, max(10, width // 3), 10)
    return _random(
        "MLP " + "-".join(map(str, widths)),
        lambda: perceptron(widths, nn.ReLU),
        (784,),
        batch=batch,
        batches=batches,
    )


def resnet20(*, batch: int = 64, batches: int = 1, width: int = 16) -> Case:
    """Return the CIFAR ResNet-20 with BatchNorm on Gaussian images."""
    return _random(
        "ResNet-20",
        lambda: dp.tasks.resnet(20, width),
        (3, 32, 32),
        batch=batch,
        batches=batches,
    )


def tiny_conv(*, batch: int = 8, batches: int = 1) -> Case:
    """Return a small convolutional net with BatchNorm, for runs of seconds."""
    return _random(
        "small conv net",
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 10),
        ),
        (3, 8, 8),
        batch=batch,
        batches=batches,
    )


DIGITS = (64, 64, 32, 10)
MIDDLE_DIGITS = (64, 16, 10)
SMALL_DIGITS = (64, 4, 10)


def digits_mlp(
    *, steps: int = 300, seed: int = 0, widths: tuple[int, ...] = DIGITS
) -> Case:
    """Return the digits MLP 64-64-32-10 (tanh) after so many steps of SGD."""
    return _trained("digits MLP", perceptron(widths, nn.Tanh), steps=steps, seed=seed)


def digits_conv(*, steps: int = 300, seed: int = 0) -> Case:
    """Return a small convolutional net (ReLU) on the digits after so many steps."""
    net = nn.Sequential(
        OrderedDict(
            image=nn.Unflatten(1, (1, 8, 8)),
            conv1=nn.Conv2d(1, 8, 3, padding=1),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(8, 16, 3, stride=2, padding=1),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc=nn.Linear(256, 10),
        )
    )
    return _trained("digits conv net", net, steps=steps, seed=seed)


def _trained(name: str, net: nn.Module, *, steps: int, seed: int) -> Case:
    with isolated(seed):
        for part in net.modules():
            if isinstance(part, nn.Linear | nn.Conv2d):
                part.reset_parameters()
    problem = dp.tasks.digits()
    system = dp.GradientSystem(net, nn.CrossEntropyLoss(), problem.train)
    recipe = dp.Recipe(lambda p: torch.optim.SGD(p, lr=0.2), steps=max(steps, 1))
    run = recipe(system, seed=seed, stop_step=steps)
    with torch.no_grad():
        values = system.unflatten(run.state)
        for key, part in net.named_parameters():
            part.copy_(values[key])
    when = "init" if steps == 0 else f"{steps} steps"
    return Case(
        name=f"{name}, {when}",
        model=net.eval(),
        loss=nn.CrossEntropyLoss(),
        batches=[problem.train],
    )


@final
class Bottleneck(nn.Module):
    """Add a 1×1, 3×3, 1×1 bottleneck with BatchNorm to its input."""

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        nn.Module.__init__(self)
        n_out = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(n_in, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, n_out, 1, bias=False),
            nn.BatchNorm2d(n_out),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride=stride, bias=False),
                nn.BatchNorm2d(n_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return torch.relu(self.body(x) + self.shortcut(x))


def _bottlenecks(depths: tuple[int, ...], width: int, classes: int) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    n_in = width
    for stage, depth in enumerate(depths):
        for block in range(depth):
            stride = 2 if stage and not block else 1
            layers.append(Bottleneck(n_in, width * 2**stage, stride))
            n_in = 4 * width * 2**stage
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, classes)]
    return nn.Sequential(*layers, *head)


def resnet50(*, batch: int = 32, batches: int = 1) -> Case:
    """Return a network of ResNet-50's size (25.6 M parameters) on 224×224 images."""
    return _random(
        "ResNet-50 size",
        lambda: _bottlenecks((3, 4, 6, 3), 64, 1000),
        (3, 224, 224),
        batch=batch,
        batches=batches,
        classes=1000,
    )


def tiny_resnet50(*, batch: int = 2, batches: int = 1) -> Case:
    """Return the same blocks, few and narrow, to run anywhere."""
    return _random(
        "tiny bottleneck net",
        lambda: _bottlenecks((1, 1), 4, 10),
        (3, 32, 32),
        batch=batch,
        batches=batches,
    )


@final
class Attention(nn.Module):
    """Attend causally, then apply a two-layer perceptron, each with LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        nn.Module.__init__(self)
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.inward, self.outward = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.body = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to tokens of shape ``(N, T, width)``."""
        n, t, width = x.shape
        packed = self.inward(self.norm1(x)).view(n, t, 3, self.heads, -1)
        q, k, v = packed.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.outward(mixed.transpose(1, 2).reshape(n, t, width))
        return x + self.body(self.norm2(x))


@final
class Transformer(nn.Module):
    """Predict the next token; the output layer is the embedding (tied)."""

    def __init__(self, *, width: int, layers: int, words: int, length: int) -> None:
        nn.Module.__init__(self)
        self.words, self.places = (
            nn.Embedding(words, width),
            nn.Embedding(length, width),
        )
        blocks = [Attention(width, max(1, width // 64)) for _ in range(layers)]
        self.blocks, self.norm = nn.Sequential(*blocks), nn.LayerNorm(width)
        for part in (self.words, self.places):
            nn.init.normal_(part.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return scores, words second, shape ``(N, words, T)``."""
        h = self.words(tokens) + self.places.weight[: tokens.shape[1]]
        scores = functional.linear(self.norm(self.blocks(h)), self.words.weight)
        return scores.transpose(1, 2)


def _tokens(
    name: str, *, width: int, layers: int, words: int, length: int, batch: int
) -> Case:
    draw = torch.Generator().manual_seed(0)
    text = torch.randint(0, words, (batch, length + 1), generator=draw)
    with isolated(0):
        model = Transformer(width=width, layers=layers, words=words, length=length)
    return Case(
        name=name,
        model=model.eval(),
        loss=nn.CrossEntropyLoss(),
        batches=[(text[:, :-1].contiguous(), text[:, 1:].contiguous())],
    )


def transformer(*, batch: int = 8) -> Case:
    """Return a GPT-like transformer of 100 M parameters, 512 tokens a sequence."""
    return _tokens(
        "transformer 100 M",
        width=768,
        layers=12,
        words=18_944,
        length=512,
        batch=batch,
    )


def tiny_transformer(*, batch: int = 2) -> Case:
    """Return the same transformer, two narrow layers, to run anywhere."""
    return _tokens(
        "tiny transformer", width=32, layers=2, words=64, length=16, batch=batch
    )


@final
class DiagonalOperator(AbstractOperator):
    """The operator diag(d): a spectrum that is known."""

    def __init__(self, diagonal: Tensor) -> None:
        self._diagonal = diagonal
        self._count = 0.0

    @property
    def rows(self) -> Rows:
        """All coordinates."""
        return Rows.whole(len(self._diagonal))

    @property
    def coordinates(self) -> None:
        """None: the rows are no parameters."""
        return

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of products."""
        return self._diagonal.dtype

    @property
    def device(self) -> torch.device:
        """The device of products."""
        return self._diagonal.device

    @property
    def matvecs(self) -> float:
        """Number of products so far."""
        return self._count

    def _product(self, block: Tensor) -> Tensor:
        self._count += block.shape[1]
        return self._diagonal[:, None] * block
