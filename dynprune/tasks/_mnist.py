"""MNIST and Fashion-MNIST from their official idx files."""

import numpy as np

from dynprune.tasks._files import KnownFile, fetch, read_known
from dynprune.tasks._idx import read_idx
from dynprune.tasks._images import Labelled, classification, scaled
from dynprune.tasks._model_names import MakeModel
from dynprune.tasks._problem import Problem
from dynprune.tasks._split import stratified_split

_VALIDATION = 5000
_MODEL = "lenet-300-100"
_NAMES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)
MNIST_FILES = tuple(
    KnownFile(name=name, sha256=sha256, size=size)
    for name, sha256, size in zip(
        _NAMES,
        (
            "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        ),
        (9_912_422, 28_881, 1_648_877, 4_542),
        strict=True,
    )
)
FASHION_MNIST_FILES = tuple(
    KnownFile(name=name, sha256=sha256, size=size)
    for name, sha256, size in zip(
        _NAMES,
        (
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
        (26_421_880, 29_515, 4_422_102, 5_148),
        strict=True,
    )
)
MNIST_MIRRORS = (
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
)
FASHION_MNIST_MIRRORS = (
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
)


def mnist(model: str | MakeModel | None = None, *, download: bool = False) -> Problem:
    r"""Classify the handwritten digits of MNIST.

    5,000 of the 60,000 training images are the validation split, with the class
    shares of all; the choice is fixed, whatever the seed. Pixels become
    :math:`x = (p / 255 - 0.1307) / 0.3081`, flattened. Files are read from
    ``$DYNPRUNE_DATA/mnist``, ``$DYNPRUNE_DATA`` or the user's cache, checksums
    verified.

    Args:
        model: Name of a model, see ``tasks.model_maker``, or ``seed -> module``; None
            for LeNet-300-100.
        download: Fetch missing files to the user's cache first.

    Returns:
        The problem: x of shape ``(N, 784)`` float32, y of shape ``(N,)`` int64; N is
        55,000, 5,000 and 10,000.

    Raises:
        InvalidInputError: If a file is missing, truncated or of another checksum.

    Source:
        LeCun et al., *Gradient-based learning applied to document recognition*, 1998.
    """  # noqa: DOC502 - raised by the readers
    if download:
        fetch("mnist", MNIST_FILES, MNIST_MIRRORS)
    return _problem("mnist", MNIST_FILES, model, mean=0.1307, std=0.3081)


def fashion_mnist(
    model: str | MakeModel | None = None, *, download: bool = False
) -> Problem:
    r"""Classify the clothes of Fashion-MNIST.

    As :func:`mnist`, from the folder ``fashion-mnist``, with
    :math:`x = (p / 255 - 0.2860) / 0.3530`.

    Args:
        model: Name of a model, see ``tasks.model_maker``, or ``seed -> module``; None
            for LeNet-300-100.
        download: Fetch missing files to the user's cache first.

    Returns:
        The problem: x of shape ``(N, 784)`` float32, y of shape ``(N,)`` int64; N is
        55,000, 5,000 and 10,000.

    Raises:
        InvalidInputError: If a file is missing, truncated or of another checksum.

    Source:
        Xiao, Rasul and Vollgraf, *Fashion-MNIST*, 2017, arXiv:1708.07747.
    """  # noqa: DOC502 - raised by the readers
    name = "fashion-mnist"
    if download:
        fetch(name, FASHION_MNIST_FILES, FASHION_MNIST_MIRRORS)
    return _problem(name, FASHION_MNIST_FILES, model, mean=0.2860, std=0.3530)


def _problem(
    task: str,
    files: tuple[KnownFile, ...],
    model: str | MakeModel | None,
    *,
    mean: float,
    std: float,
) -> Problem:
    raw = read_known(task, files)
    train, test = (
        Labelled(
            images=read_idx(raw[images], name=images, ndim=3)[:, None],
            labels=read_idx(raw[labels], name=labels, ndim=1).astype(np.int64),
            name=f"{images} with {labels}",
        )
        for images, labels in (_NAMES[:2], _NAMES[2:])
    )
    held, kept = stratified_split(train.labels, _VALIDATION, salt=3)
    _, _, height, width = train.images.shape
    return classification(
        name=task,
        task=task,
        splits=[
            scaled(part, white=255.0, mean=[mean], std=[std], flat=True)
            for part in (train.take(kept), train.take(held), test)
        ],
        image=(1, height, width),
        model=model or _MODEL,
    )
