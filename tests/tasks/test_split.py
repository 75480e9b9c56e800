import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, strategies

from dynprune.core import InvalidInputError
from dynprune.tasks import digits
from dynprune.tasks._split import shuffled_keys, stratified_split


def splitmix64(state: int) -> tuple[int, int]:
    """The textbook step, in Python integers."""
    full = 2**64
    state = (state + 0x9E3779B97F4A7C15) % full
    z = state
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % full
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % full
    return state, z ^ (z >> 31)


@pytest.mark.parametrize("salt", [0, 1, 1 << 32])
def test_keys_are_splitmix64(salt):
    state, expected = salt, []
    for _ in range(100):
        state, key = splitmix64(state)
        expected.append(key)
    assert shuffled_keys(100, salt=salt).tolist() == expected


@given(
    strategies.lists(strategies.integers(0, 4), min_size=1, max_size=60),
    strategies.floats(0, 1),
)
def test_exact_disjoint_and_stratified(labels, share):
    labels = np.asarray(labels)
    size = round(share * len(labels))
    taken, left = stratified_split(labels, size, salt=5)
    assert len(taken) == size
    assert sorted([*taken, *left]) == list(range(len(labels)))
    for label in np.unique(labels):
        exact = size * (labels == label).mean()
        assert abs((labels[taken] == label).sum() - exact) < 1


def test_both_parts_are_shuffled_even_of_sorted_classes():
    labels = np.repeat(np.arange(10), 100)
    for part in stratified_split(labels, 100, salt=4):
        head = np.bincount(labels[part][:50], minlength=10)
        # 50 draws without replacement: 5 of each class, standard deviation 2.1.
        assert head.min() >= 0
        assert head.max() <= 12
        assert (head > 0).sum() >= 9


def test_sizes_out_of_range_are_refused():
    with pytest.raises(InvalidInputError, match="split of 4 of 3 examples"):
        stratified_split(np.zeros(3, dtype=np.int64), 4, salt=0)


def test_digits_split_has_the_documented_sizes_and_shares():
    problem = digits()
    sizes = [len(problem.split(name)[1]) for name in ("train", "validation", "test")]
    assert sizes == [862, 216, 719]
    assert sum(sizes) == 1797
    y = {name: problem.split(name)[1] for name in ("train", "validation", "test")}
    total = sum(part.bincount(minlength=10) for part in y.values())
    # Rounding moves a class by less than one example at each of the two stages.
    for part in y.values():
        exact = total * len(part) / 1797
        assert (part.bincount(minlength=10) - exact).abs().max() < 2


def test_digits_splits_are_disjoint_and_are_scikit_learns():
    from sklearn.datasets import load_digits

    problem = digits()
    x = np.concatenate([
        problem.split(name)[0].double().numpy()
        for name in ("train", "validation", "test")
    ])
    pixels = load_digits().data
    m, s = pixels.mean(), pixels.std()
    # The scale is of the training pixels only: undo it by two known pixel values.
    low, high = x.min(), x.max()
    restored = np.rint((x - low) / (high - low) * 16)
    assert sorted(map(tuple, restored)) == sorted(map(tuple, pixels))
    assert abs(low + m / s) < 0.01


def test_digits_training_pixels_are_standardised_and_of_float32():
    x, y = digits().train
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    # 55,168 float32 numbers of size 1.
    assert abs(float(x.double().mean())) < 1e-6
    assert abs(float(x.double().std(correction=0)) - 1) < 1e-6


def test_digits_split_never_changes():
    # Golden: computed by dynprune 0.1 with scikit-learn 1.9.1 and numpy 2.4.6. If it
    # changes, so does every number published with the package.
    problem = digits()
    labels = b"".join(
        bytes(problem.split(name)[1].tolist())
        for name in ("train", "validation", "test")
    )
    assert hashlib.sha256(labels).hexdigest()[:16] == "bf63af124ff4e21e"
