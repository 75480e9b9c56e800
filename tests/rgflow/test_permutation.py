"""Permutation tests against counting by hand, and their calibration."""

import itertools
import math

import pytest
import torch

from dynprune import rgflow
from dynprune.core import InvalidInputError


def test_all_differences_alike_give_the_smallest_paired_p():
    for seeds in (1, 2, 5, 6):
        flow = torch.ones(seeds, 3)
        statistic, p = rgflow.differs(flow, torch.zeros(seeds, 3))
        assert statistic == pytest.approx(math.sqrt(3))
        assert p == 2.0 ** (1 - seeds)  # identity and its mirror image


def test_paired_p_is_a_count_by_hand():
    # Differences 1, 2, -4: |mean| * 3 is 1 for the signs given; of |±1 ±2 ±4| =
    # 7, 1, 3, 5 twice each, all 8 are at least 1.
    control = torch.zeros(3, 1)
    statistic, p = rgflow.differs(torch.tensor([[1.0], [2.0], [-4.0]]), control)
    assert (statistic, p) == (pytest.approx(1 / 3), 1.0)
    # For 1, -2, 4 (sum 3): 3, 5, 7 twice each.
    statistic, p = rgflow.differs(torch.tensor([[1.0], [-2.0], [4.0]]), control)
    assert (statistic, p) == (pytest.approx(1.0), 6 / 8)


def test_paired_p_equals_brute_force():
    draw = torch.Generator().manual_seed(0)
    a, b = torch.randn((2, 5, 3), generator=draw, dtype=torch.float64)
    norms = [
        float((torch.tensor(signs).double()[:, None] * (a - b)).mean(0).norm())
        for signs in itertools.product((1, -1), repeat=5)
    ]
    statistic, p = rgflow.differs(a, b)
    assert statistic == pytest.approx(norms[0])
    assert p == sum(norm >= norms[0] - 1e-12 for norm in norms) / 32


def test_unpaired_p_equals_brute_force():
    draw = torch.Generator().manual_seed(1)
    a = torch.randn((4, 2), generator=draw, dtype=torch.float64)
    b = torch.randn((3, 2), generator=draw, dtype=torch.float64)
    pool = torch.cat([a, b])
    norms = []
    for chosen in itertools.combinations(range(7), 4):
        rest = [i for i in range(7) if i not in chosen]
        norms.append(float((pool[list(chosen)].mean(0) - pool[rest].mean(0)).norm()))
    statistic, p = rgflow.differs(a, b, paired=False)
    assert statistic == pytest.approx(norms[0])
    assert p == pytest.approx(sum(norm >= norms[0] - 1e-12 for norm in norms) / 35)


def test_smallest_unpaired_p():
    flow, control = torch.ones(5, 2), torch.zeros(5, 2)
    assert rgflow.differs(flow, control, paired=False)[1] == pytest.approx(2 / 252)


@pytest.mark.parametrize("paired", [True, False], ids=["paired", "labels"])
def test_no_difference_is_no_evidence(paired):
    flow = torch.rand((4, 3), generator=torch.Generator().manual_seed(0))
    assert rgflow.differs(flow, flow, paired=paired) == (pytest.approx(0.0), 1.0)


@pytest.mark.parametrize("paired", [True, False], ids=["paired", "labels"])
def test_p_values_are_calibrated_under_the_null(paired):
    draw = torch.Generator().manual_seed(5)
    repeats, seeds = 400, 6
    values = torch.randn((repeats, 2, seeds, 3), generator=draw)
    p = torch.tensor([rgflow.differs(a, b, paired=paired)[1] for a, b in values])
    steps = 2.0 ** (seeds - 1) if paired else math.comb(2 * seeds, seeds) / 2
    for level in (0.1, 0.25, 0.5, 0.75):
        exact = math.floor(level * steps) / steps  # p takes multiples of 1 / steps
        error = math.sqrt(exact * (1 - exact) / repeats)
        share = float((p <= exact + 1e-12).double().mean())
        assert abs(share - exact) <= 4 * error


def test_positively_correlated_pairs_make_labels_conservative():
    draw = torch.Generator().manual_seed(6)
    common = 2 * torch.randn((200, 1, 6, 3), generator=draw)
    values = common + torch.randn((200, 2, 6, 3), generator=draw)
    p = torch.tensor([rgflow.differs(a, b, paired=False)[1] for a, b in values])
    assert float((p <= 0.2).double().mean()) < 0.2


@pytest.mark.parametrize("paired", [True, False], ids=["paired", "labels"])
def test_drawn_permutations_count_the_identity_and_obey_the_seed(paired, untouched):
    seeds = 13 if paired else 8
    flow, control = torch.ones(seeds, 1), torch.zeros(seeds, 1)
    with untouched():
        first = rgflow.differs(flow, control, paired=paired, permutations=99, seed=1)
    assert first[1] >= 1 / 100
    assert first[1] < 0.05
    noisy = torch.randn((seeds, 1), generator=torch.Generator().manual_seed(0)) + 0.3
    results = [
        rgflow.differs(noisy, control, paired=paired, permutations=99, seed=seed)
        for seed in (1, 1, 2, 3, 4)
    ]
    assert results[0] == results[1]
    assert len({p for _, p in results}) > 1


@pytest.mark.parametrize(
    ("a", "b", "options", "message"),
    [
        (torch.ones(3, 2), torch.ones(4, 2), {}, "same seeds"),
        (torch.ones(3, 2), torch.ones(3, 1), {}, "same groups"),
        (torch.ones(3), torch.ones(3), {}, "one row per seed"),
        (torch.ones(3, 1) * torch.nan, torch.ones(3, 1), {}, "not finite"),
        (torch.ones(3, 1), torch.ones(3, 1), {"permutations": 0}, "permutations=0"),
    ],
    ids=["seeds", "groups", "dimensions", "nan", "permutations"],
)
def test_refusals(a, b, options, message):
    with pytest.raises(InvalidInputError, match=message):
        rgflow.differs(a, b, **options)
