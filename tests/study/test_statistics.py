"""Intervals and tests over seeds, against scipy and closed forms."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from dynprune.core import InvalidInputError, mean_interval
from dynprune.study._statistics import (
    holm,
    paired_interval,
    paired_p,
    ratio_interval,
)

VALUES = [0.3, -0.1, 0.8, 0.45, 0.2]


def test_interval_of_two_values_in_closed_form():
    # n = 2: s / sqrt(n) = |a - b| / 2 and t(1) = tan(pi c / 2), the Cauchy quantile
    reach = math.tan(math.pi * 0.95 / 2)
    mean, low, high = mean_interval([1.0, 3.0])
    assert mean == 2.0
    assert low == pytest.approx(2.0 - reach, rel=1e-10)
    assert high == pytest.approx(2.0 + reach, rel=1e-10)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.99])
def test_interval_agrees_with_scipy(confidence):
    found = paired_interval(VALUES, confidence=confidence)
    wanted = stats.t.interval(
        confidence, len(VALUES) - 1, loc=np.mean(VALUES), scale=stats.sem(VALUES)
    )
    assert found == pytest.approx((np.mean(VALUES), *wanted), rel=1e-10)


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
@pytest.mark.parametrize("null", [0.0, 0.5])
def test_p_value_agrees_with_scipy(alternative, null):
    wanted = stats.ttest_1samp(VALUES, null, alternative=alternative).pvalue
    assert paired_p(VALUES, null=null, alternative=alternative) == pytest.approx(
        wanted, rel=1e-10
    )


def test_p_value_and_interval_say_the_same():
    # the 1 - p interval ends exactly at the null
    p = paired_p(VALUES)
    _, low, _ = mean_interval(VALUES, confidence=1.0 - p)
    assert low == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("values", [[], [0.7]], ids=["none", "one"])
def test_fewer_than_two_values_have_no_interval(values):
    mean, low, high = mean_interval(values)
    assert math.isnan(mean) == (not values)
    assert math.isnan(low)
    assert math.isnan(high)
    assert math.isnan(paired_p(values))
    assert math.isnan(ratio_interval(values, values)[1])


@pytest.mark.parametrize(
    ("alternative", "p"), [("two-sided", 0.0), ("greater", 0.0), ("less", 1.0)]
)
def test_equal_values_have_no_spread(alternative, p):
    values = [0.1 + 0.2, 0.3, 0.1 + 0.2]  # 0.30000000000000004 is rounding, no spread
    assert mean_interval(values)[1] == mean_interval(values)[2]
    assert paired_p(values, alternative=alternative) == p
    assert paired_p([0.0, 0.0], alternative=alternative) == 1.0


def test_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for draw in rng.normal(1.0, 2.0, (2000, 5)):
        _, low, high = mean_interval(draw)
        covered += low <= 1.0 <= high
    # 4 standard errors of a share of .95 over 2000 draws
    assert abs(covered / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_holm_by_hand():
    # sorted .01 .02 .03 .04: 4 x .01, 3 x .02, then max(2 x .03, .06), max(.04, .06)
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx((0.06, 0.04, 0.06, 0.06))
    assert holm([0.6, 0.7]) == (1.0, 1.0)
    assert holm([]) == ()


def test_holm_passes_nan_through_and_does_not_count_it():
    found = holm([math.nan, 0.02, math.nan, 0.03])
    assert math.isnan(found[0])
    assert math.isnan(found[2])
    assert found[1] == pytest.approx(0.04)
    assert found[3] == pytest.approx(0.04)


def test_holm_rejects_what_step_down_rejects():
    rng = np.random.default_rng(1)
    for _ in range(50):
        p = rng.uniform(0, 0.1, 7)
        order = np.argsort(p)
        rejected = np.zeros(7, bool)
        for k, i in enumerate(order):  # the textbook's loop
            if p[i] > 0.05 / (7 - k):
                break
            rejected[i] = True
        assert (np.array(holm(p)) <= 0.05).tolist() == rejected.tolist()


def test_ratio_interval_inverts_the_paired_test():
    rng = np.random.default_rng(2)
    x, y = rng.normal(1.0, 0.3, 6), rng.normal(2.0, 0.3, 6)
    ratio, low, high = ratio_interval(x, y)
    assert ratio == pytest.approx(x.mean() / y.mean())
    for end in (low, high):
        assert paired_p(x - end * y) == pytest.approx(0.05, rel=1e-8)


def test_ratio_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(3)
    covered = total = 0
    for _ in range(2000):
        y = rng.normal(2.0, 0.4, 5)
        x = 0.7 * y + rng.normal(0.0, 0.2, 5)  # paired: the ratio of means is .7
        _, low, high = ratio_interval(x, y)
        total += not math.isnan(low)
        covered += low <= 0.7 <= high
    assert total > 1950  # bounded nearly always: the denominator is far from 0
    assert abs(covered / total - 0.95) < 4 * math.sqrt(0.95 * 0.05 / total)


def test_ratio_without_a_denominator_has_no_interval():
    _, low, high = ratio_interval([1.0, 2.0, 3.0], [0.1, -0.2, 0.3])
    assert math.isnan(low)
    assert math.isnan(high)
    assert all(math.isnan(x) for x in ratio_interval([1.0, 2.0], [1.0, -1.0]))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: mean_interval([1.0, math.nan]), "finite"),
        (lambda: mean_interval([1.0, 2.0], confidence=95), "0.95"),
        (lambda: paired_p([1.0, 2.0], alternative="grater"), "greater"),
        (lambda: holm([0.5, 1.5]), r"\[0, 1\]"),
        (lambda: ratio_interval([1.0], [1.0, 2.0]), "one pair a seed"),
    ],
    ids=["nan", "confidence", "alternative", "p-value", "lengths"],
)
def test_refusals(call, match):
    with pytest.raises(InvalidInputError, match=match):
        call()


def test_all_signs_of_a_paired_test_are_symmetric():
    signs = itertools.product((1, -1), repeat=3)
    p = [paired_p(np.array(s) * [1.0, 1.1, 1.2], alternative="greater") for s in signs]
    assert sum(p) == pytest.approx(len(p) / 2)  # p(x) + p(-x) = 1
