"""Residual networks for small images, after the CIFAR-10 section of the paper."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from dynprune.core import InvalidInputError, isolated
from dynprune.tasks._models import AsImages, check_image, check_positive

Shortcut = Literal["A", "B"]


def resnet(
    depth: int = 20,
    width: int = 16,
    *,
    in_shape: Sequence[int] = (3, 32, 32),
    classes: int = 10,
    shortcut: Shortcut = "B",
    seed: int = 0,
) -> nn.Sequential:
    r"""Make a CIFAR ResNet of depth 6n + 2 with BatchNorm.

    A 3×3 convolution, three stages of n blocks at widths w, 2w and 4w (the second and
    third stage start with stride 2), global mean pooling, one linear layer:
    :math:`6n + 1` convolutions and one linear layer, not counting shortcuts. A block
    is

    .. math:: h' = \mathrm{relu}(\mathrm{bn}_2(W_2\,\mathrm{relu}(\mathrm{bn}_1(W_1 h)))
              + s(h)).

    Where the shape changes, s is option B, a 1×1 convolution of stride 2 with
    BatchNorm (as in open_lth and Rare Gems; 272,474 parameters for ResNet-20), or
    option A, every second pixel and zero channels (as in the paper's CIFAR
    experiments; no parameters, 269,722). Convolutions have no bias. Weights start
    He-normal (fan in), biases at zero, BatchNorm scales at one.

    Args:
        depth: 8, 14, 20, 26, 32, …
        width: Channels w of the first stage; 16 in the paper.
        in_shape: Channels, height and width of one image.
        classes: Number of outputs.
        shortcut: "A" or "B".
        seed: Of the initial weights.

    Returns:
        The network, float32, on the CPU, in training mode.

    Raises:
        InvalidInputError: If the depth is not 6n + 2, or another argument is wrong.

    Source:
        He et al., *Deep Residual Learning for Image Recognition*, 2016, section 4.2,
        arXiv:1512.03385.

    Example:
        >>> sum(p.numel() for p in resnet(20, 16).parameters())
        272474
    """
    channels, height, widths = check_image(in_shape, model="A resnet")
    check_positive("width and classes", (width, classes))
    if not isinstance(depth, int) or depth < 8 or (depth - 2) % 6:
        near = max(1, round((depth - 2) / 6)) * 6 + 2
        raise InvalidInputError(
            f"A CIFAR ResNet has depth 6n + 2 (8, 14, 20, 26, 32, 38, 44, …), found "
            f"{depth}. Use {near}."
        )
    if shortcut not in {"A", "B"}:
        raise InvalidInputError(
            f"Unknown shortcut {shortcut!r}. Use 'B' (1×1 convolution) or 'A' (none)."
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["unflatten"] = AsImages((channels, height, widths))
    with isolated(seed):
        layers["stem"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        layers["stem_norm"] = nn.BatchNorm2d(width)
        layers["stem_relu"] = nn.ReLU()
        n_in = width
        for stage in range(3):
            for block in range((depth - 2) // 6):
                n_out = width * 2**stage
                stride = 2 if stage and not block else 1
                name = f"stage{stage + 1}_block{block + 1}"
                layers[name] = Block(n_in, n_out, stride=stride, shortcut=shortcut)
                n_in = n_out
        layers["pool"] = nn.AdaptiveAvgPool2d(1)
        layers["flatten"] = nn.Flatten()
        layers["fc"] = nn.Linear(n_in, classes)
        net = nn.Sequential(layers)
        net.apply(_he)
    return net


@final
class Block(nn.Module):
    """Add two 3×3 convolutions with BatchNorm to their input.

    Args:
        n_in: Input channels.
        n_out: Output channels.
        stride: Of the first convolution.
        shortcut: "A" or "B", used where the shape changes.
    """

    def __init__(
        self, n_in: int, n_out: int, *, stride: int, shortcut: Shortcut
    ) -> None:
        nn.Module.__init__(self)
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = (
                Padding(n_out - n_in, stride=stride)
                if shortcut == "A"
                else nn.Sequential(
                    OrderedDict(
                        conv=nn.Conv2d(n_in, n_out, 1, stride=stride, bias=False),
                        norm=nn.BatchNorm2d(n_out),
                    )
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: Shape ``(N, n_in, height, width)``.

        Returns:
            Shape ``(N, n_out, height / stride, width / stride)``, rounded up.
        """
        inner = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


@final
class Padding(nn.Module):
    """Take every so many-th pixel and add channels of zeros: the option A shortcut.

    Args:
        channels: How many to add, half of them in front.
        stride: Which pixels to take.
    """

    def __init__(self, channels: int, *, stride: int) -> None:
        nn.Module.__init__(self)
        self.channels = channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Apply the shortcut.

        Args:
            x: Shape ``(N, n_in, height, width)``.

        Returns:
            Shape ``(N, n_in + channels, height / stride, width / stride)``.
        """
        front = self.channels // 2
        taken = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(taken, (0, 0, 0, 0, front, self.channels - front))

    def extra_repr(self) -> str:
        """Return the arguments, for ``repr``."""
        return f"{self.channels}, stride={self.stride}"


def _he(part: nn.Module) -> None:
    if isinstance(part, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(part.weight)
        if part.bias is not None:
            nn.init.zeros_(part.bias)
