"""Small networks: multilayer perceptrons, LeNet-300-100, a convolutional net."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import final

from torch import Tensor, nn

from dynprune.core import InvalidInputError, isolated, unknown


@final
class AsImages(nn.Module):
    """Reshape each example to an image; images pass as they are.

    Args:
        in_shape: Channels, height, width.
    """

    def __init__(self, in_shape: tuple[int, int, int]) -> None:
        nn.Module.__init__(self)
        self.in_shape = in_shape

    def forward(self, x: Tensor) -> Tensor:
        """Reshape a batch.

        Args:
            x: Shape ``(N, channels * height * width)`` or ``(N, channels, …)``.

        Returns:
            Shape ``(N, channels, height, width)``.
        """
        return x.reshape(len(x), *self.in_shape)

    def extra_repr(self) -> str:
        """Return the shape, for ``repr``."""
        return str(self.in_shape)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "identity": nn.Identity,
}


def mlp(
    widths: Sequence[int], activation: str = "tanh", *, seed: int = 0
) -> nn.Sequential:
    r"""Make a multilayer perceptron.

    .. math:: h_{l} = \sigma(W_l h_{l-1} + b_l), \qquad f(x) = W_L h_{L-1} + b_L

    Weights start Glorot-normal, :math:`W_{ij} \sim N(0, 2/(n_{in} + n_{out}))`,
    biases at zero. Layers are called ``fc1``, ``fc2``, …; inputs are flattened.

    Args:
        widths: Numbers of units from the inputs to the outputs, two or more.
        activation: Name in ``tasks.ACTIVATIONS``; the last layer has none.
        seed: Of the initial weights.

    Returns:
        The network, float32, on the CPU.

    Raises:
        InvalidInputError: If a width is not positive or the activation is unknown.

    Source:
        Glorot and Bengio, *Understanding the difficulty of training deep feedforward
        neural networks*, 2010.

    Example:
        >>> sum(p.numel() for p in mlp((64, 64, 32, 10)).parameters())
        6570
    """
    make_activation = check_activation(activation)
    if len(widths) < 2:
        raise InvalidInputError(
            f"An mlp of widths {tuple(widths)} has no layer. Give the inputs, any "
            "hidden widths, and the outputs, e.g. (784, 300, 100, 10)."
        )
    check_positive("widths", widths)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    last = len(widths) - 1
    with isolated(seed):
        for index, (n_in, n_out) in enumerate(itertools.pairwise(widths), start=1):
            layers[f"fc{index}"] = _glorot(nn.Linear(n_in, n_out))
            if index < last:
                layers[f"activation{index}"] = make_activation()
    return nn.Sequential(layers)


def lenet_300_100(
    n_in: int = 784, classes: int = 10, *, activation: str = "relu", seed: int = 0
) -> nn.Sequential:
    """Make LeNet-300-100: an MLP with 300 and 100 hidden units, Glorot-normal.

    266,610 parameters on MNIST, of which 266,200 weights.

    Args:
        n_in: Number of inputs.
        classes: Number of outputs.
        activation: Name in ``tasks.ACTIVATIONS``.
        seed: Of the initial weights.

    Returns:
        The network, float32, on the CPU.

    Source:
        LeCun et al., *Gradient-based learning applied to document recognition*, 1998;
        initialisation of Frankle and Carbin, *The Lottery Ticket Hypothesis*, 2019,
        arXiv:1803.03635.

    Example:
        >>> sum(p.numel() for p in lenet_300_100().parameters())
        266610
    """
    return mlp((n_in, 300, 100, classes), activation, seed=seed)


def small_conv_net(
    in_shape: Sequence[int] = (1, 28, 28),
    classes: int = 10,
    *,
    channels: Sequence[int] = (16, 32),
    activation: str = "relu",
    halve: str = "pool",
    seed: int = 0,
) -> nn.Sequential:
    """Make a convolutional net: 3×3 convolutions, each halved by pooling or a stride.

    Convolutions ``conv1``, ``conv2``, … with padding 1 and bias, activation, 2×2 mean
    pooling (smooth, so that a smooth activation gives a smooth loss), then one linear
    layer ``fc``; with ``halve="stride"`` the convolutions have stride 2 and there is
    no pooling: a quarter of the arithmetic. Weights start Glorot-normal, biases at
    zero.

    Args:
        in_shape: Channels, height and width of one image; rows of their product are
            reshaped to images.
        classes: Number of outputs.
        channels: Of the convolutions.
        activation: Name in ``tasks.ACTIVATIONS``.
        halve: "pool" or "stride".
        seed: Of the initial weights.

    Returns:
        The network, float32, on the CPU.

    Raises:
        InvalidInputError: If ``in_shape`` is no image shape, or too small to be
            halved that often, or ``halve`` is neither.

    Example:
        >>> net = small_conv_net((1, 8, 8), channels=(4,))
        >>> [name for name, _ in net.named_parameters()]
        ['conv1.weight', 'conv1.bias', 'fc.weight', 'fc.bias']
    """
    depth, height, width = check_image(in_shape, model="A conv net")
    make_activation = check_activation(activation)
    check_positive("channels", channels)
    if halve not in {"pool", "stride"}:
        raise InvalidInputError(f"Unknown halve {halve!r}. Use 'pool' or 'stride'.")
    stride = 2 if halve == "stride" else 1
    if min(height, width) >> len(channels) < 1:
        raise InvalidInputError(
            f"Images of {height}×{width} cannot be halved {len(channels)} times. Give "
            f"at most {int(math.log2(min(height, width)))} channels."
        )
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["unflatten"] = AsImages((depth, height, width))
    with isolated(seed):
        for index, (n_in, n_out) in enumerate(
            itertools.pairwise((depth, *channels)), start=1
        ):
            layers[f"conv{index}"] = _glorot(
                nn.Conv2d(n_in, n_out, 3, stride=stride, padding=1)
            )
            layers[f"activation{index}"] = make_activation()
            if stride == 1:
                layers[f"pool{index}"] = nn.AvgPool2d(2)
            # pooling leaves an odd last row out, a stride does not
            height, width = ((side + stride - 1) // 2 for side in (height, width))
        layers["flatten"] = nn.Flatten()
        n_last = (depth, *channels)[-1] * height * width
        layers["fc"] = _glorot(nn.Linear(n_last, classes))
    return nn.Sequential(layers)


def check_activation(name: str) -> Callable[[], nn.Module]:
    """Look an activation up.

    Args:
        name: Its name.

    Returns:
        What makes the module.

    Raises:
        InvalidInputError: If it is unknown; suggests the nearest.
    """  # noqa: DOC501, DOC502 - unknown() makes it
    if name not in ACTIVATIONS:
        raise unknown("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]


def check_positive(what: str, numbers: Sequence[int]) -> None:
    """Refuse numbers of units that are not positive integers.

    Args:
        what: What they are.
        numbers: The numbers.

    Raises:
        InvalidInputError: If one is below 1.
    """
    if any(not isinstance(n, int) or n < 1 for n in numbers):
        raise InvalidInputError(
            f"{what} are {tuple(numbers)}; use positive integers only."
        )


def check_image(in_shape: Sequence[int], *, model: str) -> tuple[int, int, int]:
    """Check that examples are images.

    Args:
        in_shape: Shape of one example.
        model: Who needs images.

    Returns:
        Channels, height, width.

    Raises:
        InvalidInputError: If the shape has not three positive sizes.
    """
    if len(in_shape) != 3 or any(n < 1 for n in in_shape):
        raise InvalidInputError(
            f"{model} needs images of shape (channels, height, width), found examples "
            f"of shape {tuple(in_shape)}. Reshape the data, or use an mlp."
        )
    depth, height, width = in_shape
    return depth, height, width


def _glorot(layer: nn.Linear | nn.Conv2d) -> nn.Module:
    nn.init.xavier_normal_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
