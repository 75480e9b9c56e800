"""Fixed stratified splits that no library version and no seed can change."""

import numpy as np
from numpy.typing import NDArray

from dynprune.core import InvalidInputError

Integers = NDArray[np.int64]
_FRESH = 1 << 32


def shuffled_keys(n: int, *, salt: int) -> NDArray[np.uint64]:
    r"""Return n fixed pseudo-random 64-bit keys, one for each example.

    The (i + 1)-th output of the SplitMix64 generator started at ``salt``; defined by
    three multiplications modulo :math:`2^{64}`, hence the same for ever.

    Args:
        n: Number of examples.
        salt: Which sequence.

    Returns:
        Keys, shape ``(n,)``.

    Source:
        Steele, Lea and Flood, *Fast splittable pseudorandom number generators*, 2014.

    Example:
        >>> [f"{key:016x}" for key in shuffled_keys(2, salt=0)]
        ['e220a8397b1dcdaf', '6e789e6aa1b965f4']
    """
    index = np.arange(1, n + 1, dtype=np.uint64)
    key = np.uint64(salt) + index * np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


def stratified_split(
    labels: Integers, size: int, *, salt: int
) -> tuple[Integers, Integers]:
    r"""Take ``size`` examples with the class shares of all, and leave the rest.

    Class c of :math:`n_c` gives :math:`\lfloor s\, n_c / n \rfloor` examples, and the
    classes of the largest remainders one more until there are s (ties to the lower
    class). Within a class those with the smallest keys are taken. Both parts come in
    the order of a second sequence of keys, i.e. shuffled, so that the first so many
    of a part are a random sample of it even where a file is sorted by class.

    Args:
        labels: Class numbers, shape ``(n,)``.
        size: How many to take, between 0 and n.
        salt: Which of the fixed splits.

    Returns:
        Indices of the ``size`` taken and of the others; disjoint, together all.

    Raises:
        InvalidInputError: If ``size`` is not between 0 and n.

    Example:
        >>> taken, left = stratified_split(np.array([0, 0, 1, 1]), 2, salt=0)
        >>> sorted(np.array([0, 0, 1, 1])[taken].tolist()), len(left)
        ([0, 1], 2)
    """
    if not 0 <= size <= len(labels):
        raise InvalidInputError(
            f"A split of {size} of {len(labels)} examples was asked for. Take between "
            "0 and all of them."
        )
    order = np.argsort(shuffled_keys(len(labels), salt=salt), kind="stable")
    classes, counts = np.unique(labels, return_counts=True)
    # Integers only, so that no rounding of floats decides a remainder.
    quota, remainder = np.divmod(size * counts.astype(np.int64), max(len(labels), 1))
    extra = np.argsort(-remainder, kind="stable")[: size - int(quota.sum())]
    quota[extra] += 1
    taken = np.zeros(len(labels), dtype=bool)
    for label, count in zip(classes, quota, strict=True):
        taken[order[labels[order] == label][:count]] = True
    # Fresh keys: those of the choice would put the others of some class first.
    order = np.argsort(shuffled_keys(len(labels), salt=salt + _FRESH), kind="stable")
    return order[taken[order]], order[~taken[order]]
