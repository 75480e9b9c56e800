"""The whole study on a GPU; skipped where there is none."""

import pytest
import torch
from in_process import Here

from dynprune.study import configure, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA"),
]


def test_every_method_and_analysis_runs_on_cuda(tmp_path):
    config = configure(
        task="digits",
        seeds=2,
        densities=(1.0, 0.4, 0.16),
        steps=60,
        k_max=6,
        samples=1,
        device="cuda",
    )
    done = run(config, out=tmp_path / "gpu", executor=Here)
    assert not done.failures
    twin = configure(**{**config.to_dict(), "device": "cpu"})
    other = run(twin, out=tmp_path / "cpu", executor=Here)
    mine, theirs = done.to_frame(), other.to_frame()
    assert mine[["method", "density", "seed"]].equals(
        theirs[["method", "density", "seed"]]
    )
    dense = mine.method == "dense"
    assert (mine.accuracy - theirs.accuracy)[dense].abs().max() < 0.05
