"""The 1,797 handwritten digits that come with scikit-learn: no download."""

import numpy as np

from dynprune.tasks._images import Labelled, classification, scaled
from dynprune.tasks._model_names import MakeModel
from dynprune.tasks._problem import Problem
from dynprune.tasks._split import stratified_split

_WHITE = 16.0
_TEST, _VALIDATION = 719, 216  # 40 % of 1,797; 20 % of the 1,078 that are left
_MODEL = "mlp:64,32:tanh"


def digits(model: str | MakeModel | None = None) -> Problem:
    r"""Classify the 8×8 digits bundled with scikit-learn.

    The split is fixed, whatever the seed and the versions installed: 719 test examples
    (40 %), 216 validation (20 % of the rest), 862 training, each with the class shares
    of all, in a fixed shuffled order. Pixels p from 0 to 16 become
    :math:`x = (p / 16 - m) / s` with the mean m and standard deviation s of all
    training pixels (not of each pixel: some are always 0).

    Args:
        model: Name of a model, see ``tasks.model_maker``, or ``seed -> module``; None
            for the MLP 64-64-32-10 with tanh.

    Returns:
        The problem: x of shape ``(N, 64)`` float32, y of shape ``(N,)`` int64.

    Source:
        Alpaydin and Kaynak, *Optical Recognition of Handwritten Digits*, UCI, 1998
        (the test part, as scikit-learn's ``load_digits``).

    Example:
        >>> problem = digits()
        >>> len(problem.train[1]), len(problem.validation[1]), len(problem.test[1])
        (862, 216, 719)
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    everything = Labelled(
        images=pixels.reshape(-1, 1, 8, 8).astype(np.uint8),
        labels=labels.astype(np.int64),
        name="scikit-learn's digits",
    )
    held, rest = stratified_split(everything.labels, _TEST, salt=1)
    chosen, kept = stratified_split(everything.labels[rest], _VALIDATION, salt=2)
    train = everything.take(rest[kept])
    unit = train.images / _WHITE
    parts = (train, everything.take(rest[chosen]), everything.take(held))
    return classification(
        name="digits",
        task="digits",
        splits=[
            scaled(
                part,
                white=_WHITE,
                mean=[float(unit.mean())],
                std=[float(unit.std())],
                flat=True,
            )
            for part in parts
        ],
        image=(1, 8, 8),
        model=model or _MODEL,
    )
