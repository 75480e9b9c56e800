"""Ramanujan measures and the relational graph, closed forms first."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from dynprune.core import InvalidInputError, cite
from dynprune.tickets import Ticket, graph_measures
from dynprune.tickets._ramanujan import ramanujan
from dynprune.tickets._relational_graph import (
    average_path_length,
    clustering,
    relational_graph,
)


def made(**masks):
    return Ticket.make(masks, {name: torch.ones(m.shape) for name, m in masks.items()})


@pytest.mark.parametrize(("m", "n"), [(3, 3), (4, 9), (30, 7)], ids=str)
def test_complete_bipartite_graph(m, n):
    # λ₁ = √(mn), λ₂ = 0, row sums n, column sums m
    delta_s, delta_r = ramanujan(torch.ones(m, n, dtype=torch.bool))
    slack = 1e-6 * math.sqrt(m * n)
    assert delta_s == pytest.approx(2 * math.sqrt(math.sqrt(m * n) - 1), abs=slack)
    assert delta_r == pytest.approx(math.sqrt(n - 1) + math.sqrt(m - 1), abs=slack)


def test_two_complete_graphs_are_no_expander():
    # λ₁ = λ₂ = d, all degrees d: δ_S = δ_R = 2√(d − 1) − d < 0 for d > 2
    block = torch.block_diag(*[torch.ones(5, 5)] * 2).bool()
    for found in ramanujan(block):
        assert found == pytest.approx(2 * 2 - 5, abs=1e-6)


def test_complement_of_a_matching():
    # J − I of size n: singular values n − 1 and 1
    found = ramanujan(~torch.eye(6, dtype=torch.bool))
    assert found == pytest.approx((2 * 2.0 - 1.0, 2 * 2.0 - 1.0), abs=1e-6)


@pytest.mark.parametrize("shape", [(20, 31), (18, 4, 3, 3), (600, 700)], ids=str)
def test_ramanujan_is_its_definition_by_dense_svd(shape):
    draw = torch.Generator().manual_seed(1)
    mask = torch.rand(shape, generator=draw) < 0.25
    mask[0] = False  # a unit without a weight
    rows = mask.flatten(1).double().numpy()
    rows = rows[rows.sum(1) > 0][:, rows.sum(0) > 0]
    first, second = np.linalg.svd(rows, compute_uv=False)[:2]
    left, right = rows.sum(1).mean(), rows.sum(0).mean()
    found = ramanujan(mask)
    assert found[0] == pytest.approx(2 * math.sqrt(first - 1) - second, abs=1e-4)
    expected = math.sqrt(left - 1) + math.sqrt(right - 1) - second
    assert found[1] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(2, 9).bool(),  # mean column sum 2
        torch.eye(8).bool(),
        torch.zeros(4, 4).bool(),
        torch.ones(9).bool(),
    ],
    ids=["thin", "matching", "empty", "bias"],
)
def test_no_ramanujan_measure_below_mean_degree_three(mask):
    assert all(math.isnan(part) for part in ramanujan(mask))


def test_ramanujan_ignores_units_without_weights():
    whole = torch.zeros(12, 20, dtype=torch.bool)
    whole[:5, 3:9] = True
    whole[4, 3] = False
    assert ramanujan(whole) == pytest.approx(ramanujan(whole[:5, 3:9]))


def ring(n, reach):
    graph = np.zeros((n, n), dtype=bool)
    for i, step in itertools.product(range(n), range(1, reach + 1)):
        graph[i, (i + step) % n] = graph[(i + step) % n, i] = True
    return graph


@pytest.mark.parametrize("reach", [1, 2, 3], ids=str)
def test_ring_lattice(reach):
    # Watts and Strogatz: C = 3(k − 2) / 4(k − 1) with k = 2·reach neighbours
    n, k = 24, 2 * reach
    graph = ring(n, reach)
    assert clustering(graph) == pytest.approx(3 * (k - 2) / (4 * (k - 1)))
    steps = [math.ceil(min(d, n - d) / reach) for d in range(1, n)]
    assert average_path_length(graph) == pytest.approx(np.mean(steps))


def test_plain_layered_graph_has_no_triangle():
    # units of 4-5-3 as nodes, all weights kept
    widths = (4, 5, 3)
    starts = np.cumsum((0, *widths))
    graph = np.zeros((12, 12), dtype=bool)
    for layer in range(2):
        rows = slice(starts[layer], starts[layer + 1])
        columns = slice(starts[layer + 1], starts[layer + 2])
        graph[rows, columns] = graph.T[rows, columns] = True
    assert clustering(graph) == 0.0


def test_dense_network_is_a_complete_relational_graph():
    masks = [torch.ones(64, 128).bool(), torch.ones(64, 64).bool()]
    graph = relational_graph(masks)
    assert int(graph.sum()) == 64 * 63
    assert (clustering(graph), average_path_length(graph)) == (1.0, 1.0)


def test_star_has_no_triangle_and_known_distances():
    mask = torch.zeros(64, 64, dtype=torch.bool)
    mask[0] = True
    graph = relational_graph([mask])
    assert clustering(graph) == 0.0
    # 63 pairs at 1, C(63, 2) at 2
    expected = (63 + 2 * 63 * 31) / (64 * 63 / 2)
    assert average_path_length(graph) == pytest.approx(expected)


@pytest.mark.parametrize("groups", [3, 8, 64], ids=str)
def test_relational_graph_is_its_definition(groups):
    draw = torch.Generator().manual_seed(2)
    masks = [
        torch.rand(shape, generator=draw) < 0.4
        for shape in ((20, 9, 3, 3), (33, 20), (10, 66))
    ]
    weights = np.zeros((groups, groups))
    for mask in masks:
        out, wide = mask.shape[:2]
        for where in mask.nonzero().tolist():
            h, k = where[0] * groups // out, where[1] * groups // wide
            weights[h, k] += 1
            weights[k, h] += 1
    pairs = [weights[h, k] for h in range(groups) for k in range(h)]
    expected = (weights > 0) & (weights >= np.median(pairs))
    expected[np.diag_indices(groups)] = False
    assert (relational_graph(masks, groups=groups) == expected).all()


def test_clustering_and_distance_are_their_definitions():
    draw = np.random.default_rng(0)
    graph = draw.random((14, 14)) < 0.2
    graph = np.triu(graph, 1) | np.triu(graph, 1).T
    shares = []
    for i in range(14):
        near = np.flatnonzero(graph[i])
        pairs = list(itertools.combinations(near, 2))
        shares.append(np.mean([graph[p] for p in pairs]) if pairs else 0.0)
    assert clustering(graph) == pytest.approx(np.mean(shares))
    steps = np.where(graph, 1.0, np.inf)
    for k in range(14):  # Floyd and Warshall
        steps = np.minimum(steps, steps[:, [k]] + steps[[k]])
    np.fill_diagonal(steps, np.inf)
    assert average_path_length(graph) == pytest.approx(steps[np.isfinite(steps)].mean())


def test_empty_graph_has_no_measure():
    assert math.isnan(clustering(np.zeros((5, 5), dtype=bool)))
    assert math.isnan(average_path_length(np.zeros((5, 5), dtype=bool)))


def test_graph_measures_of_a_ticket():
    bias, thin = torch.ones(4).bool(), torch.ones(2, 9).bool()
    ticket = made(a=torch.ones(4, 9).bool(), bias=bias, thin=thin)
    found = graph_measures(ticket, groups=4)
    assert found.layers == ("a", "bias", "thin")
    assert found.ramanujan_s[0] == pytest.approx(2 * math.sqrt(5), abs=1e-5)
    assert [math.isnan(part) for part in found.ramanujan_r] == [False, True, True]
    frame = found.to_frame()
    assert len(frame) == 8
    assert set(frame.columns) == {"measure", "layer", "value"}
    assert "1 of 1 layers" in found.summary()
    assert "Ramanujan" in cite(found).replace("{R}", "R")
    ax = found.plot()
    assert found.plot(ax) is ax


def test_too_few_groups_are_refused():
    with pytest.raises(InvalidInputError, match="relational graph of 2 groups"):
        graph_measures(made(a=torch.ones(4, 9).bool()), groups=2)


def test_the_default_dtype_does_not_matter():
    # set in another process: it is the whole process's
    code = (
        "import torch\n"
        "torch.set_default_dtype(torch.float64)\n"
        "from dynprune.tickets import Ticket, graph_measures\n"
        "mask = torch.arange(63).reshape(9, 7) % 3 == 0\n"
        "state = {'a': torch.ones(9, 7)}\n"
        "print(graph_measures(Ticket.make({'a': mask}, state), groups=4))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    mask = torch.arange(63).reshape(9, 7) % 3 == 0
    ticket = Ticket.make({"a": mask}, {"a": torch.ones(9, 7)})
    assert done.stdout.strip() == repr(graph_measures(ticket, groups=4))
