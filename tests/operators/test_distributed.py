import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from problems import classes, dense_hessian, small_net
from ranks import run
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dynprune.core import InvalidInputError
from dynprune.operators import HessianOperator, MatrixOperator, ShardedOperator
from dynprune.spectral import density, eigenpairs
from dynprune.system import GradientSystem

IMPORTS = ("torch._dynamo", "scipy.special")  # by a rank's first product, else
CROSS = nn.functional.cross_entropy
SIZES = {2: (5, 11), 3: (7, 1, 8), 4: (2, 6, 5, 3)}
DATA = classes(16, 3, 3)
WIDTHS = (3, 4, 3)  # P = 31: shares of 16 and 15, or 11, 11 and 9
K = 4


def make(data, **changes):
    loss = changes.pop("loss_fn", CROSS)
    return GradientSystem(small_net(widths=WIDTHS), loss, data, l2=0.05, **changes)


def shard(rank, count):
    """A pair on even ranks, a loader of batches of two on odd ones."""
    x, y = (part.split(SIZES[count])[rank] for part in DATA)
    return DataLoader(TensorDataset(x, y), 2) if rank % 2 else (x, y)


def vectors():
    make = torch.Generator().manual_seed(3)
    return torch.randn(31, 3, generator=make, dtype=torch.float64)


def recorded(call):
    """Return the result of a call, and the collectives it made, with their numbers."""
    names = ("all_reduce", "all_gather", "all_to_all_single")
    own, seen = {name: getattr(dist, name) for name in names}, []

    def watch(name):
        def collective(*tensors, **group):
            sent = tensors[0 if name == "all_reduce" else 1]
            seen.append([name, sent.numel()])
            return own[name](*tensors, **group)

        return collective

    for name in names:
        setattr(dist, name, watch(name))
    try:
        return call(), seen
    finally:
        for name in names:
            setattr(dist, name, own[name])


def job_products(rank, count):
    system = make(shard(rank, count), process_group=dist.group.WORLD)
    theta, V = 2 * system.state, vectors()
    H = HessianOperator(system)
    H @ V[:, 0]  # the first product decides how products are made
    (one, calls), (block, more) = recorded(lambda: H @ V[:, 0]), recorded(lambda: H @ V)
    pairs = eigenpairs(H, K, tol=1e-10)
    return {
        "vector": one.tolist(),
        "block": block.tolist(),
        "calls": calls + more,
        "elsewhere": (HessianOperator(system, theta) @ V).tolist(),
        "microbatched": (
            HessianOperator(system, memory_budget=3000, route="rebuilt") @ V
        ).tolist(),
        "shifted": (H.shifted(2.0) @ V).tolist(),
        "values": pairs.values.tolist(),
        "vectors": pairs.vectors.tolist(),
    }


def test_a_product_is_one_collective_and_has_the_numbers_of_one_process(tmp_path):
    system, V = make(DATA), vectors()
    H = dense_hessian(system, system.state)
    there = dense_hessian(system, 2 * system.state)
    exact = torch.linalg.eigvalsh(H).flip(0)[:K]
    wanted = {
        "vector": H @ V[:, 0],
        "block": H @ V,
        "elsewhere": there @ V,
        "microbatched": H @ V,
        "shifted": H @ V + 2 * V,
    }
    jobs = [(job_products, count) for count in SIZES]
    for count, ranks in zip(SIZES, run(tmp_path, *jobs), strict=True):
        for key in ranks[0]:
            assert len({str(found[key]) for found in ranks}) == 1, (key, count)
        found = {
            key: torch.tensor(value, dtype=torch.float64)
            for key, value in ranks[0].items()
            if key != "calls"
        }
        for key, value in wanted.items():
            assert torch.allclose(found[key], value, rtol=1e-11, atol=1e-13), key
        assert ranks[0]["calls"] == [["all_reduce", 31], ["all_reduce", 3 * 31]]
        # |H u - λ u| <= tol |λ_1|, and values are within the square of it over a gap
        assert torch.allclose(found["values"], exact, rtol=1e-9)
        residual = H @ found["vectors"] - found["vectors"] * found["values"]
        assert float(residual.norm(dim=0).max()) <= 2e-10 * float(exact[0])


def job_shards(rank, count):
    system = make(shard(rank, count), process_group=dist.group.WORLD)
    inner = HessianOperator(system)
    H, V = ShardedOperator(inner), vectors()
    own = H.rows.own(V)
    H @ own
    (mine, calls), whole = recorded(lambda: H @ own), inner @ V
    pairs = eigenpairs(H, K, tol=1e-10)
    return {
        "density": smooth_density(H).values.tolist(),
        "held": H.rows.held,
        "same": torch.allclose(mine, H.rows.own(whole), rtol=1e-12, atol=1e-14),
        "gathered": H.rows.gather(mine).tolist(),
        "calls": calls,
        "matvecs": [H.matvecs, H.shape, mine.shape[0]],
        "values": pairs.values.tolist(),
        "vectors": H.rows.gather(pairs.vectors).tolist(),
        "own": pairs.vectors.shape[0],
        "refused": refused(H.dense) + refused(lambda: H.restrict(V[:, 0] > 0)),
    }


def smooth_density(op):
    points = torch.linspace(-0.2, 1.0, 25, dtype=torch.float64)
    return density(op, probes=3, steps=8, width=0.2, grid=points, seed=1)


def refused(call):
    with pytest.raises(InvalidInputError, match="sharded") as caught:
        call()
    return str(caught.value)


def test_sharded_vectors_give_the_same_and_are_divided(tmp_path):
    system, V = make(DATA), vectors()
    H = dense_hessian(system, system.state)
    exact = torch.linalg.eigvalsh(H).flip(0)[:K]
    smooth = smooth_density(HessianOperator(system)).values
    shares = {2: [16, 15], 3: [11, 11, 9]}
    for ranks in run(tmp_path, (job_shards, 2), (job_shards, 3)):
        for rank, found in enumerate(ranks):
            held = shares[len(ranks)][rank]
            assert found["held"] == found["own"] == found["matvecs"][2] == held
            assert found["same"]
            assert found["calls"] == [
                ["all_gather", 3 * shares[len(ranks)][0]],
                ["all_to_all_single", 3 * 31],
            ]
            assert found["gathered"] == ranks[0]["gathered"]
            assert found["values"] == ranks[0]["values"]
            assert found["density"] == ranks[0]["density"]
        product = torch.tensor(ranks[0]["gathered"], dtype=torch.float64)
        assert torch.allclose(product, H @ V, rtol=1e-11, atol=1e-13)
        values = torch.tensor(ranks[0]["values"], dtype=torch.float64)
        basis = torch.tensor(ranks[0]["vectors"], dtype=torch.float64)
        assert torch.allclose(values, exact, rtol=1e-9)
        # the same probes; Lanczos is backward stable, so nodes move by rounding
        estimate = torch.tensor(ranks[0]["density"], dtype=torch.float64)
        assert torch.allclose(estimate, smooth, rtol=1e-9, atol=1e-9)
        residual = H @ basis - basis * values
        assert float(residual.norm(dim=0).max()) <= 2e-10 * float(exact[0])


def job_errors(rank, count):
    trouble = {"on": False}

    def loss(outputs, targets):
        if trouble["on"] and rank == 1:
            raise ValueError("rank 1's own trouble")
        return CROSS(outputs, targets)

    def poisoned(outputs, targets):
        value = CROSS(outputs, targets)
        return value * torch.nan if trouble["on"] and rank == 1 else value

    said, V = {}, vectors()
    for name, function in {"an exception": loss, "a NaN": poisoned}.items():
        data = list(zip(*(part.split(4) for part in DATA), strict=True))
        system = make(data, loss_fn=function, process_group=dist.group.WORLD)
        H = HessianOperator(system)
        S = ShardedOperator(H)
        trouble["on"] = True
        said[name] = [caught(lambda H=H: H @ V[:, 0]), caught(lambda H=H: H @ V)]
        said[f"{name}, sharded"] = [caught(lambda S=S: S @ S.rows.own(V))]
        trouble["on"] = False
        said[f"{name}, afterwards"] = [(H @ V).isfinite().all().item()]
        said[f"{name}, afterwards"] += [(S @ S.rows.own(V)).isfinite().all().item()]
    short = V[:5] if rank == 1 else V
    said["another size"] = [caught(lambda: HessianOperator(system, short[:, 0]))]
    far = V[:, 0] * (2 if rank == 1 else 1)
    said["another state"] = [caught(lambda: HessianOperator(system, far))]
    return said


def caught(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def test_an_error_on_one_rank_is_raised_on_all(tmp_path):
    (ranks,) = run(tmp_path, (job_errors, 3))
    for rank, said in enumerate(ranks):
        for name, texts in said.items():
            for text in texts:
                if name.endswith("afterwards"):
                    assert text is True
                    continue
                part = {
                    "an exception": "ValueError: rank 1's own trouble",
                    "a NaN": "not finite",
                    "another size": "state of shape (5,)",
                    "another state": "differ in the state",
                }[name.split(",")[0]]
                assert part in text, (name, rank, text)
                if rank != 1 and name != "another state":
                    assert text.startswith("InvalidInputError: Rank 1 of 3 failed")


def test_only_what_is_shared_by_ranks_can_be_sharded():
    with pytest.raises(InvalidInputError, match="no process group"):
        ShardedOperator(HessianOperator(make(DATA)))
    with pytest.raises(InvalidInputError, match="no part that belongs to one rank"):
        ShardedOperator(MatrixOperator(torch.eye(3)))


SCRIPT = """
import os, torch, torch.distributed as dist
import dynprune as dp

dist.init_process_group("gloo")
rank, ranks = dist.get_rank(), dist.get_world_size()
x = torch.linspace(-1, 1, 24).reshape(12, 2)
y = x.sum(1, keepdim=True)
net = torch.nn.Linear(2, 1, bias=False)
torch.nn.init.ones_(net.weight)
system = dp.GradientSystem(
    net,
    torch.nn.functional.mse_loss,
    (x[rank::ranks], y[rank::ranks]),
    process_group=dist.group.WORLD,
)
H = dp.HessianOperator(system)
error = (H @ torch.ones(2) - 2 / 12 * x.T @ x @ torch.ones(2)).abs().max()
assert float(error) < 1e-5, error
assert system.examples == 12
dist.barrier()
dist.destroy_process_group()
"""


def test_it_runs_under_torchrun(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node=2", str(tmp_path / "script.py")),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=58,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
