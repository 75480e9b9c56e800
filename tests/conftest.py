"""What every test is held to: dynprune leaves no global changed."""

import os
import random

# two test processes and their children would wait for each other's spinning threads
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None, max_examples=50)
settings.register_profile("nightly", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

torch.set_num_threads(1)


def _globals() -> tuple[object, ...]:
    numpy_state = np.random.get_state()  # noqa: NPY002
    return (
        torch.random.get_rng_state().numpy().tobytes(),
        random.getstate(),
        numpy_state[1].tobytes(),
        numpy_state[2],
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
    )


def pytest_collection_modifyitems(config, items):
    """Skip what takes minutes; refuse names of tests that differ between processes."""
    if not config.option.markexpr:
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="minutes: pytest -m slow"))
    moving = [item.nodeid for item in items if " at 0x" in item.nodeid]
    if moving:
        raise pytest.UsageError(f"addresses in the names of tests: {moving[:3]}")


@pytest.fixture
def untouched():
    """Call it for a context that fails if a global generator or setting moved."""
    import contextlib

    @contextlib.contextmanager
    def guard():
        before = _globals()
        yield
        assert _globals() == before

    return guard


@pytest.fixture(autouse=True)
def _same_settings():
    before = _globals()[-3:]
    yield
    assert _globals()[-3:] == before
