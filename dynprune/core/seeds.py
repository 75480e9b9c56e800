"""Randomness as an argument: generators, derived seeds, isolation."""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import DataLoader

from dynprune.core.scalars import plain_numbers, whole


def generator(seed: int) -> torch.Generator:
    """Return a CPU generator that starts at ``seed``.

    Args:
        seed: Any integer; only its residue modulo 2**63 counts.

    Returns:
        A fresh CPU generator; the global one is not touched.

    Raises:
        InvalidInputError: If ``seed`` is no integer.
    """  # noqa: DOC502 - raised by whole
    return torch.Generator().manual_seed(whole(seed, name="seed") % 2**63)


def derive_seed(*parts: object) -> int:
    """Hash a tuple of plain values to a seed in [0, 2**63).

    The seed is the first 8 bytes of SHA-256 of the ``repr`` of the parts, modulo
    2**63; it is the same on every machine and in every process. A number of NumPy or
    torch stands for the plain one that it equals: ``np.int64(1)`` is 1 here, too.

    Args:
        *parts: Strings, numbers or tuples of them.

    Returns:
        The seed.

    Example:
        >>> derive_seed("digits", 0) == derive_seed("digits", 0)
        True
    """
    digest = hashlib.sha256(repr(plain_numbers(parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") % 2**63


@contextmanager
def isolated(seed: int) -> Iterator[None]:
    """Seed the global generators inside the block, restore them after it.

    The one place in dynprune that touches the generators of Python, NumPy and torch
    (all CUDA devices included, once CUDA is in use): model making, a user's loader
    and dropout read them and leave no choice.

    Args:
        seed: Any integer.

    Yields:
        Nothing.

    Raises:
        InvalidInputError: If ``seed`` is no integer.
    """  # noqa: DOC502 - raised by whole
    seed = whole(seed, name="seed")
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 - saved to be restored
    devices = (
        list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    )
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002, TID251
        if devices:
            torch.manual_seed(seed % 2**63)  # noqa: TID251
        else:  # that would replace the user's seed that waits for an unused GPU
            torch.default_generator.manual_seed(seed % 2**63)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


def generator_states() -> tuple[object, ...]:
    """Return where the global generators are, to see whether something draws.

    Returns:
        States of Python's, NumPy's and torch's generators (all CUDA devices included,
        once CUDA is in use); equal if nothing was drawn in between.
    """
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    states = [state.numpy().tobytes() for state in (torch.get_rng_state(), *cuda)]
    return (random.getstate(), name, np.asarray(keys).tobytes(), *rest, *states)


@contextmanager
def seeded_generators(data: object, seed: int) -> Iterator[None]:
    """Seed the generators that a user gave a loader, restore them after the block.

    Args:
        data: Anything; only a DataLoader has such generators.
        seed: What they start from.

    Yields:
        Nothing.
    """
    parts: list[object] = []
    if isinstance(data, DataLoader):
        batcher = data.batch_sampler
        parts = [data, data.sampler, batcher, getattr(batcher, "sampler", None)]
    found = [getattr(part, "generator", None) for part in parts]
    sources = [source for source in found if isinstance(source, torch.Generator)]
    states = [source.get_state() for source in sources]
    try:
        for source in sources:
            source.manual_seed(whole(seed, name="seed"))
        yield
    finally:
        for source, state in zip(sources, states, strict=True):
            source.set_state(state)
