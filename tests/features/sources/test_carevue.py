"""CareVue ventilation: on by modes and settings; off by oxygen, extubation or eight hours without a word."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.sources.batch import event_table
from features.sources.carevue import SILENCE_US, Ventilator

HOUR = 3_600_000_000
BEGAN = pd.Timestamp("2150-03-01T00:00Z")
FOREVER = np.full(9, np.iinfo(np.int64).max)
ON = {"MIMIC_CHART//720": "Assist Control", "MIMIC_CHART//506": 5.0, "MIMIC_CHART//467": "Ventilator"}
OFF = {"MIMIC_CHART//640": "Extubated", "MIMIC_CHART//467": "Nasal Cannula"}
Said = tuple[int, str, Any]


def charts(rows: list[Said], late_h: float = 0) -> pd.DataFrame:
    """Uncleaned chart events: hour, code, number or word; stored ``late_h`` hours after."""
    time = pd.Series([BEGAN + pd.Timedelta(hours=h) for h, _, _ in rows], dtype="datetime64[us, UTC]")
    words = [v if isinstance(v, str) else None for _, _, v in rows]
    return event_table(
        time=time,
        available_time=time + pd.Timedelta(hours=late_h),
        code=pd.Categorical([c for _, c, _ in rows]),
        numeric_value=pd.Series([np.nan if isinstance(v, str) else float(v) for _, _, v in rows]),
        text_value=pd.Categorical(words),
    )


def told(rows: list[Said], ends: np.ndarray = FOREVER, late_h: float = 0) -> list[tuple[float, int]]:
    """(hour, on or off) of one stay."""
    seen = Ventilator()
    seen.watch(charts(rows, late_h), np.zeros(len(rows), np.int64))
    found = seen.states(ends)
    began = BEGAN.value // 1000
    return sorted(zip(((found.time - began) / HOUR).tolist(), found.value.astype(int).tolist(), strict=True))


MODE, CANNULA = (
    (lambda h: (h, "MIMIC_CHART//720", "Assist Control")),
    (lambda h: (h, "MIMIC_CHART//467", "Nasal Cannula")),
)


def test_oxygen_ends_what_a_mode_began():
    assert told([MODE(1), MODE(5), CANNULA(6), CANNULA(7)]) == [(1, 1), (6, 0)]


def test_an_extubation_ends_it_and_a_setting_begins_it_again():
    story = [MODE(1), (2, "MIMIC_CHART//640", "Extubated"), (4, "MIMIC_CHART//506", 5)]
    assert told(story)[:3] == [(1, 1), (2, 0), (4, 1)]


def test_eight_hours_without_a_word_end_it_and_not_a_minute_earlier():
    assert told([MODE(1), MODE(9)]) == [(1, 1), (17, 0)]
    assert told([MODE(1), MODE(10)]) == [(1, 1), (9, 0), (10, 1), (18, 0)]


def test_silence_after_the_stay_says_nothing():
    ends = np.array([BEGAN.value // 1000 + 5 * HOUR])
    assert told([MODE(1)], ends) == [(1, 1)]


def test_a_ventilator_and_oxygen_at_one_instant_are_a_ventilator():
    assert told([CANNULA(1), MODE(1)])[0] == (1, 1)


def test_who_has_oxygen_only_is_told_to_be_off_once():
    assert told([CANNULA(1), CANNULA(2)]) == [(1, 0)]


@pytest.mark.parametrize(
    "said",
    [
        ("MIMIC_CHART//720", "Other/Remarks"),
        ("MIMIC_CHART//640", "Fluid Bolus"),
        ("MIMIC_CHART//467", "None"),
        ("MIMIC_CHART//211", 80),
        ("MIMIC_CHART//220339", 5),
    ],
)
def test_what_says_nothing_of_a_ventilator_changes_nothing(said):
    assert told([(1, *said)]) == []


def test_nothing_is_known_before_it_was_stored():
    seen = Ventilator()
    seen.watch(charts([MODE(1), CANNULA(3)], late_h=0.5), np.zeros(2, np.int64))
    found = seen.states(FOREVER)
    assert ((found.known - found.time) == HOUR / 2).all()
    # Of silence one knows when it has lasted eight hours.
    seen = Ventilator()
    seen.watch(charts([MODE(1)], late_h=0.5), np.zeros(1, np.int64))
    found = seen.states(FOREVER)
    assert found.known.tolist()[1] == found.time.tolist()[1]


def test_stays_are_told_apart():
    seen = Ventilator()
    seen.watch(charts([MODE(1), CANNULA(2), MODE(3)]), np.array([0, 1, 1]))
    found = seen.states(FOREVER)
    by = sorted(zip(found.place.tolist(), found.time.tolist(), found.value.tolist(), strict=True))
    assert [(p, v) for p, _, v in by] == [(0, 1), (0, 0), (1, 0), (1, 1), (1, 0)]


hours = st.integers(0, 40)
fact = st.one_of(
    st.tuples(hours, st.sampled_from(sorted(ON))).map(lambda p: (*p, ON[p[1]])),
    st.tuples(hours, st.sampled_from(sorted(OFF))).map(lambda p: (*p, OFF[p[1]])),
)


def by_hand(rows: list[Said]) -> list[tuple[float, int]]:
    """The rules as a loop over hours."""
    state, last, changes = None, None, []
    for hour in range(60):
        says = [v == ON.get(c) for h, c, v in rows if h == hour]
        if state == 1 and last is not None and hour - last == 8 and not says:
            state = 0
            changes.append((hour, 0))
        if not says:
            continue
        now = int(any(says))
        last = hour if now else last
        if now != state:
            changes.append((hour, now))
        state = now
    return changes


@given(st.lists(fact, min_size=1, max_size=20), st.integers(0, 20))
def test_states_are_those_of_a_slow_loop_whatever_the_pieces(rows, cut):
    seen = Ventilator()
    for part in (rows[cut:], rows[:cut]):
        if part:
            seen.watch(charts(part), np.zeros(len(part), np.int64))
    found = seen.states(FOREVER)
    began = BEGAN.value // 1000
    assert sorted(zip(((found.time - began) / HOUR).tolist(), found.value.tolist(), strict=True)) == by_hand(
        rows
    )
    assert SILENCE_US == 8 * HOUR
