import pytest
import torch
import torch.distributed as dist
from ranks import run

from dynprune.core import InvalidInputError, Rows, generator

TOTAL = 11  # shares of 6 and 5 rows, and of 4, 4 and 3


def draw(columns, seed):
    return torch.randn(TOTAL, columns, generator=generator(seed), dtype=torch.float64)


def job_rows(rank, count):
    rows = Rows.sharded(TOTAL, dist.group.WORLD)
    X, Y = rows.own(draw(2, 1)), rows.own(draw(3, 2))
    part = (rank + 1) * draw(2, 3)
    try:
        Rows.sharded(count * (count - 1), dist.group.WORLD)
        Rows.sharded(count + 1 if count > 2 else 1, dist.group.WORLD)
        refused = ""
    except InvalidInputError as error:
        refused = str(error)
    return {
        "held": rows.held,
        "inner": rows.inner(X, Y).tolist(),
        "inner of halves": rows.inner(X.half(), Y.half(), dtype=torch.float64).tolist(),
        "no columns": list(rows.inner(X[:, :0], Y).shape),
        "gathered": rows.gather(X).tolist(),
        "gathered vector": rows.gather(X[:, 0]).tolist(),
        "gathered nothing": list(rows.gather(X[:, :0]).shape),
        "scattered": rows.gather(rows.scatter_sum(part)).tolist(),
        "random": rows.gather(
            rows.random(2, generator=generator(4), dtype=torch.float64)
        ).tolist(),
        "refused": refused,
    }


def test_shards_give_the_sums_of_the_whole(tmp_path):
    X, Y, part = draw(2, 1), draw(3, 2), draw(2, 3)
    whole = Rows.whole(TOTAL)
    random = whole.random(2, generator=generator(4), dtype=torch.float64)
    for count, found in zip(
        (2, 3), run(tmp_path, (job_rows, 2), (job_rows, 3)), strict=True
    ):
        assert [rank["held"] for rank in found] == {2: [6, 5], 3: [4, 4, 3]}[count]
        for rank in found:
            assert _same(rank["inner"], X.T @ Y)
            halves = X.half().double().T @ Y.half().double()
            assert _same(rank["inner of halves"], halves)
            assert rank["no columns"] == [0, 3]
            assert rank["gathered"] == X.tolist()
            assert rank["gathered vector"] == X[:, 0].tolist()
            assert rank["gathered nothing"] == [TOTAL, 0]
            wanted = part.clone()
            for factor in range(2, count + 1):
                wanted += factor * part
            assert rank["scattered"] == wanted.tolist()
            assert rank["random"] == random.tolist()
            assert "leave a rank" in rank["refused"]
        assert len({str(rank["inner"]) for rank in found}) == 1


def test_one_process_holds_all():
    rows, X = Rows.whole(TOTAL), draw(2, 1)
    assert rows.held == TOTAL
    assert rows.gather(X) is X
    assert torch.equal(rows.own(X), X)
    assert torch.equal(rows.scatter_sum(X), X)
    assert torch.equal(rows.sum(X), X)
    assert torch.equal(rows.inner(X, X), X.T @ X)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_inner_products_accumulate_in_the_dtype_asked_for(dtype):
    X = torch.ones(70_000, 1, dtype=dtype) * 0.1
    found = Rows.whole(len(X)).inner(X, X, dtype=torch.float64)
    assert float(found) == pytest.approx(70_000 * float(X[0]) ** 2, rel=1e-12)


def _same(found, wanted):
    # eleven products are added in another order
    return torch.allclose(torch.tensor(found, dtype=torch.float64), wanted, rtol=1e-13)
