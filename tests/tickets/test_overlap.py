"""Chance levels of overlap: enumerated, sampled, and against scipy."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from dynprune.tickets import Reading, Ticket, compare, shuffle
from dynprune.tickets._chance import Counts, distribution, moments, two_sided
from dynprune.tickets._overlap import PAIR_MEASURES, overlap_readings, shared_weights

LAYERS = ((5, 2, 3), (4, 1, 2), (3, 3, 1))


def masks_of(n, kept):
    for chosen in itertools.combinations(range(n), kept):
        yield [index in chosen for index in range(n)]


def enumerated(layers):
    """The shared weights of all pairs of masks with these counts, equally likely."""
    parts = []
    for n, a, b in layers:
        pairs = itertools.product(masks_of(n, a), masks_of(n, b))
        parts.append([
            sum(x and y for x, y in zip(*pair, strict=True)) for pair in pairs
        ])
    return np.array([sum(draw) for draw in itertools.product(*parts)])


def counts(layers, shared):
    """Counts that share ``shared`` weights in all, placed where there is room."""
    found, left = [], shared
    for n, a, b in layers:
        low, high = max(0, a + b - n), min(a, b)
        own = low
        left -= low
        found.append([n, a, b, own, high])
    for row in found:
        more = min(left, row[4] - row[3])
        row[3] += more
        left -= more
    assert left == 0
    return [Counts(size=n, first=a, second=b, shared=x) for n, a, b, x, _ in found]


def measured(a, b, x, size, mean, most):
    """The four measures, as their definitions say."""
    return {
        "hamming": (a + b - 2 * x) / size,
        "jaccard": x / (a + b - x),
        "overlap_coefficient": x / min(a, b),
        "excess_overlap": (x - mean) / (most - mean),
    }


@pytest.mark.parametrize("layers", [LAYERS[:1], LAYERS[1:2], LAYERS], ids=str)
def test_chance_is_that_of_all_pairs_of_masks(layers):
    shared = enumerated(layers)
    start, probabilities = distribution(counts(layers, int(shared.min())))
    for offset, p in enumerate(probabilities):
        assert p == pytest.approx(np.mean(shared == start + offset), abs=1e-14)
    mean, variance = moments(counts(layers, int(shared.min())))
    assert mean == pytest.approx(shared.mean(), rel=1e-13)
    assert variance == pytest.approx(shared.var(), rel=1e-12)


def test_every_measure_has_the_mean_deviation_and_p_of_all_pairs():
    shared = enumerated(LAYERS)
    size, a, b = (sum(row[k] for row in LAYERS) for k in range(3))
    most = sum(min(row[1:]) for row in LAYERS)
    for x in range(int(shared.min()), int(shared.max()) + 1):
        found = overlap_readings(counts(LAYERS, x), layer="all", pair=("p", "q"))
        mean = shared.mean()
        far = np.abs(shared - mean) >= abs(x - mean) - 1e-9
        for one in found:
            null = [
                measured(a, b, int(y), size, mean, most)[one.measure] for y in shared
            ]
            value = measured(a, b, x, size, mean, most)[one.measure]
            assert one.value == pytest.approx(value, abs=1e-13)
            assert one.null_mean == pytest.approx(np.mean(null), abs=1e-13)
            assert one.null_sd == pytest.approx(np.std(null), rel=1e-11)
            assert one.z == pytest.approx((value - np.mean(null)) / np.std(null))
            assert one.p == pytest.approx(far.mean(), abs=1e-13)


@pytest.mark.parametrize(
    ("n", "a", "b"),
    [(235_200, 11_760, 5_000), (1000, 1, 3), (30_000, 29_000, 28_500), (10, 10, 4)],
    ids=str,
)
def test_distribution_is_scipys(n, a, b):
    start, found = distribution([Counts(size=n, first=a, second=b, shared=0)])
    x = start + np.arange(len(found))
    expected = stats.hypergeom(n, a, b).pmf(x)
    assert float(np.abs(found - expected).max()) < 1e-9 * expected.max()
    assert found.sum() == pytest.approx(1.0, abs=1e-12)


def test_long_convolutions_are_those_of_short_ones():
    # X of two layers, by a sum over one of them; beyond 2e7 products FFT is used
    one = Counts(size=8_000_000, first=4_000_000, second=4_000_000, shared=0)
    start, found = distribution([one, one, one])
    mean, variance = moments([one, one, one])
    x = start + np.arange(len(found))
    assert float(found @ x) == pytest.approx(mean, rel=1e-12)
    assert float(found @ (x - mean) ** 2) == pytest.approx(variance, rel=1e-9)


def test_p_of_the_mean_is_one_and_far_away_is_nothing():
    layer = Counts(size=1000, first=100, second=100, shared=0)
    start, found = distribution([layer])
    assert two_sided(start, found, 10.0, 10) == pytest.approx(1.0)
    assert two_sided(start, found, 10.0, 100) == 0.0
    upper = stats.hypergeom(1000, 100, 100).sf(17) + stats.hypergeom(
        1000, 100, 100
    ).cdf(2)
    assert two_sided(start, found, 10.0, 18) == pytest.approx(upper, rel=1e-9)


def test_chance_is_what_shuffles_give():
    # 4 standard errors of the mean over 400 pairs, and of their variance
    draw = torch.Generator().manual_seed(0)
    masks = [
        {n: torch.rand(s, generator=draw) < d for n, s, d in rows}
        for rows in (
            (("a", (12, 10), 0.2), ("b", (4, 12), 0.6)),
            (("a", (12, 10), 0.3), ("b", (4, 12), 0.5)),
        )
    ]
    state = {"a": torch.ones(12, 10), "b": torch.ones(4, 12)}
    one, other = (Ticket.make(mask, state) for mask in masks)
    null = {
        reading.measure: reading
        for reading in compare(one, other, labels="pq", shuffles=0).readings
        if reading.layer == "all" and len(reading.tickets) == 2
    }
    drawn = {measure: [] for measure in PAIR_MEASURES}
    for k in range(400):
        pair = shuffle(one, seed=2 * k), shuffle(other, seed=2 * k + 1)
        for reading in compare(*pair, labels="pq", shuffles=0).readings:
            if reading.layer == "all" and reading.measure in drawn:
                drawn[reading.measure].append(reading.value)
    for measure, values in drawn.items():
        found = null[measure]
        assert len(values) == 400
        assert abs(np.mean(values) - found.null_mean) < 4 * found.null_sd / 20
        assert abs(np.std(values) / found.null_sd - 1) < 4 / math.sqrt(800)


def test_shared_weights_are_counted_exactly():
    draw = torch.Generator().manual_seed(0)
    masks = [torch.rand(1_500_000, generator=draw) < 0.7 for _ in range(3)]
    found = shared_weights(masks)
    for i in range(3):
        for j in range(3):
            assert int(found[i, j]) == int((masks[i] & masks[j]).sum())


def test_nested_is_one_and_disjoint_is_below_chance():
    nested = [Counts(size=10, first=4, second=2, shared=2)]
    found = {r.measure: r for r in overlap_readings(nested, layer="l", pair=("p", "q"))}
    assert found["excess_overlap"].value == 1.0
    assert found["overlap_coefficient"].value == 1.0
    assert found["jaccard"].value == 0.5
    assert found["hamming"].value == 0.2
    apart = [Counts(size=10, first=5, second=5, shared=0)]
    found = {r.measure: r for r in overlap_readings(apart, layer="l", pair=("p", "q"))}
    assert found["excess_overlap"].value == pytest.approx(-1.0)
    assert found["excess_overlap"].z < 0 < found["hamming"].z


@pytest.mark.parametrize(("a", "b"), [(0, 0), (0, 3), (7, 3), (7, 7)], ids=str)
def test_empty_and_full_layers_have_no_z(a, b):
    layer = [Counts(size=7, first=a, second=b, shared=min(a, b))]
    found = {r.measure: r for r in overlap_readings(layer, layer="l", pair=("p", "q"))}
    assert all(math.isnan(one.z) for one in found.values())
    assert math.isnan(found["excess_overlap"].value)
    assert math.isnan(found["jaccard"].value) == (a + b == 0)
    assert (
        found["hamming"].value
        == found["hamming"].null_mean
        == (a + b - 2 * min(a, b)) / 7
    )


def test_permutation_p_is_uniform_under_the_null():
    # exact: the rank of an exchangeable value; 19 draws, p <= 0.2 in 1 of 5
    make = np.random.default_rng(0)
    p = []
    for _ in range(2000):
        value, *null = make.normal(size=20).tolist()
        found = Reading.sampled("m", "all", ("t",), value=value, null=null)
        p.append(found.p)
    share = np.mean(np.array(p) <= 0.2 + 1e-12)
    assert abs(share - 0.2) < 4 * math.sqrt(0.2 * 0.8 / 2000)
    assert min(p) == pytest.approx(1 / 20)


def test_null_that_is_not_defined_is_left_out():
    null = [math.nan, 1.0, 3.0]
    found = Reading.sampled("m", "all", ("t",), value=2.0, null=null)
    assert (found.null_mean, found.null_sd) == (2.0, pytest.approx(math.sqrt(2)))
    none = Reading.sampled("m", "all", ("t",), value=2.0, null=[math.nan, 1.0])
    assert math.isnan(none.null_mean)
    assert math.isnan(none.p)
    vast = Reading.sampled("m", "all", ("t",), value=1e15, null=[1.0, 2.0, 3.0])
    assert vast.z == pytest.approx(1e15)
    same = Reading.sampled("m", "all", ("t",), value=2.1, null=[0.1 * 21] * 5)
    assert math.isnan(same.z)
    assert same.p == 1.0
