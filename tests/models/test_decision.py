"""When a ward is paged: edges of the policy, and one answer on both roads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.clock import HOUR_US
from features.errors import SpecError
from models.decision import AlertPolicy, AlertState, pages, walk

POLICY = AlertPolicy(threshold=0.1, snooze_h=8, reraise=2, release=0.5)


def paged(*probabilities: float | None, policy: AlertPolicy = POLICY) -> list[int]:
    """Hours at which a stay with these hourly probabilities pages, step by step."""
    state, hours = AlertState(), []
    for hour, p in enumerate(probabilities):
        state, decision = policy.step(state, p, hour * HOUR_US)
        if decision.page:
            hours.append(hour)
    return hours


def test_exactly_at_the_threshold_pages():
    assert paged(0.0999, 0.1) == [1]


def test_a_standing_alert_pages_once():
    assert paged(*[0.12] * 30) == [0]


def test_quiet_after_a_page_even_when_the_episode_ends_and_returns():
    assert paged(0.12, 0.01, 0.12, 0.12) == [0]


def test_an_episode_that_opened_in_the_quiet_pages_when_quiet_ends():
    assert paged(0.12, 0.01, *[0.12] * 10) == [0, 8]


def test_doubling_breaks_the_quiet():
    assert paged(0.12, 0.2, 0.24) == [0, 2]


def test_hovering_above_release_keeps_the_episode_and_pages_no_more():
    assert paged(0.12, *[0.06] * 20, 0.12) == [0]


def test_a_fall_below_release_ends_the_episode():
    assert paged(0.12, *[0.049] * 20, 0.12) == [0, 21]


def test_hours_without_a_score_change_nothing():
    assert paged(0.12, None, float("nan"), 0.12, 0.24) == [0, 4]
    _, decision = POLICY.step(AlertState(active=True), None, 0)
    assert decision.active
    assert not decision.alert


def test_alert_is_the_threshold_and_active_is_the_episode():
    state, decision = POLICY.step(AlertState(), 0.12, 0)
    state, decision = POLICY.step(state, 0.06, HOUR_US)
    assert (decision.alert, decision.page, decision.active) == (False, False, True)


probability = st.one_of(st.just(float("nan")), st.floats(0, 0.5))
rows = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), probability), unique_by=lambda r: r[:2])


@given(rows, st.randoms(use_true_random=False))
def test_a_batch_in_any_order_equals_step_by_step(rows, chance):
    chance.shuffle(rows)
    encounter = np.array([r[0] for r in rows], dtype=np.int64)
    hour = np.array([r[1] for r in rows], dtype=np.int64)
    p = np.array([r[2] for r in rows], dtype=np.float64)
    expected, stands = np.zeros(len(rows), dtype=bool), np.zeros(len(rows), dtype=bool)
    for e in set(encounter.tolist()):
        state = AlertState()
        for i in sorted(np.flatnonzero(encounter == e), key=lambda i: hour[i]):
            state, decision = POLICY.step(state, p[i], int(hour[i]) * HOUR_US)
            expected[i], stands[i] = decision.page, decision.active
    page, standing = walk(encounter, hour * HOUR_US, p, POLICY)
    assert page.tolist() == expected.tolist() == pages(encounter, hour * HOUR_US, p, POLICY).tolist()
    assert standing.tolist() == stands.tolist()


@given(st.lists(probability, min_size=1, max_size=40), st.integers(1, 39))
def test_what_comes_later_changes_no_earlier_page(ps, cut):
    p = np.array(ps)
    zeros, hours = np.zeros(len(p), dtype=np.int64), np.arange(len(p)) * HOUR_US
    whole = pages(zeros, hours, p, POLICY)
    assert whole[:cut].tolist() == pages(zeros[:cut], hours[:cut], p[:cut], POLICY).tolist()


def test_a_policy_survives_its_dictionary():
    assert AlertPolicy.from_dict(POLICY.to_dict()) == POLICY


def test_impossible_policies_are_refused():
    with pytest.raises(SpecError, match="reraise > 1"):
        AlertPolicy(0.1, 8, 1.0, 0.5)
    with pytest.raises(SpecError, match="lacks snooze_h"):
        AlertPolicy.from_dict({"threshold": 0.1, "reraise": 2, "release": 0.5})
