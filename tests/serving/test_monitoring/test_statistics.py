"""The arithmetic, against other people's numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from serving.monitoring.statistics import (
    design_effect,
    false_discovery,
    ks_probability,
    onset,
    poisson_probability,
    population_stability,
    proportion_probability,
)


def test_benjamini_and_hochberg_reject_their_own_four():
    # Benjamini & Hochberg, J R Stat Soc B 1995;57:289, section 4: at 0.05 the four smallest of fifteen are rejected.
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459]
    p += [0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    assert (false_discovery(np.array(p)) <= 0.05).sum() == 4


def test_what_was_not_tested_is_no_test():
    q = false_discovery(np.array([0.01, np.nan, 0.04]))
    assert q[[0, 2]].tolist() == pytest.approx([0.02, 0.04])
    assert np.isnan(q[1])
    assert np.isnan(false_discovery(np.array([np.nan]))).all()


def test_rows_of_one_stay_that_never_change_weigh_as_one():
    stays = np.repeat(np.arange(30), 10)
    values = np.repeat(np.random.default_rng(0).normal(size=30), 10)[:, None]
    assert design_effect(values, stays)[0] == pytest.approx(10)


def test_rows_that_do_not_resemble_each_other_count_nearly_in_full():
    stays = np.repeat(np.arange(300), 10)
    values = np.random.default_rng(0).normal(size=(3000, 1))
    assert design_effect(values, stays, at_least=0.0)[0] == pytest.approx(1, abs=0.2)


def test_a_single_stay_is_one_witness():
    assert design_effect(np.arange(8.0)[:, None], np.zeros(8, np.int64))[0] == 8
    assert design_effect(np.empty((0, 2)), np.empty(0, np.int64)).tolist() == [1, 1]


def test_one_row_a_stay_has_no_design_effect():
    values = np.random.default_rng(0).normal(size=(50, 1))
    assert design_effect(values, np.arange(50))[0] == 1


def test_kolmogorov_smirnov_agrees_with_scipy():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=400), rng.normal(0.15, 1, size=900)
    expected = stats.ks_2samp(a, b, method="asymp")
    assert ks_probability(expected.statistic, 400, 900) == pytest.approx(expected.pvalue, rel=0.15)
    assert ks_probability(0.5, 0, 900) == 1


def test_two_proportions_agree_with_the_g_test_of_scipy():
    table = np.array([[60, 40], [450, 550]])
    expected = stats.chi2_contingency(table, correction=False, lambda_="log-likelihood").pvalue
    assert proportion_probability(0.6, 100, 0.45, 1000) == pytest.approx(expected)
    assert proportion_probability(0.0, 50, 0.0, 1000) == 1
    assert proportion_probability(1.0, 50, 0.05, 1000) < 1e-20


@pytest.mark.parametrize(
    ("count", "expected", "p"), [(0, 5, 2 * np.exp(-5)), (5, 5, 1.0), (20, 5, None), (0, 0, 1), (3, 0, 0)]
)
def test_poisson_looks_both_ways(count, expected, p):
    if p is None:
        p = 2 * stats.poisson.sf(count - 1, expected)
    assert poisson_probability(count, expected) == pytest.approx(p)


def test_stability_of_equal_histograms_is_nothing():
    even = np.full(10, 0.1)
    assert population_stability(even, even, 500, 1e6) == 0
    assert np.isnan(population_stability(even, even, 0, 1e6))


def test_stability_is_the_textbook_sum_when_samples_are_large():
    now, then = np.array([0.2, 0.3, 0.5]), np.array([0.3, 0.3, 0.4])
    by_hand = (0.2 - 0.3) * np.log(0.2 / 0.3) + (0.5 - 0.4) * np.log(0.5 / 0.4)
    assert population_stability(now, then, 1e9, 1e9) == pytest.approx(by_hand)


def test_a_change_is_placed_where_it_happened():
    hit = np.r_[np.tile([True, False, False, False, False], 20), np.ones(40, bool)]
    assert onset(hit, 0.2) == 100
    assert onset(np.ones(10, bool), 0.05) == 0
    assert onset(np.empty(0, bool), 0.05) is None


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.floats(0, 1))
def test_a_change_is_always_placed_inside_the_sequence(hits, usual):
    place = onset(np.array(hits), usual)
    assert place is None or 0 <= place < len(hits)
