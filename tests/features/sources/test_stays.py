"""Whole columns are placed, weighed and followed as a slow loop over rows would do it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features.errors import DataError
from features.events import ENCOUNTER_COLUMNS
from features.sources.infusions import Running, Weights, per_kilogram, weighed
from features.sources.stays import Seen, Stays, marked

HOUR = 3_600_000_000
hours = st.integers(0, 40)
spans = st.lists(st.tuples(st.integers(0, 2), hours, st.integers(0, 20)), min_size=1, max_size=8)


def stays_of(rows: list[tuple[int, int, int]]) -> Stays:
    """Stays from (person, first hour, length in hours)."""
    table = pd.DataFrame(dict.fromkeys(ENCOUNTER_COLUMNS, ""), index=range(len(rows)))
    table["encounter_id"] = [f"e{k}" for k in range(len(rows))]
    table["subject_id"] = [f"s{person}" for person, _, _ in rows]
    start = np.array([first * HOUR for _, first, _ in rows], dtype=np.int64)
    return Stays(table, start, start + np.array([length * HOUR for _, _, length in rows], dtype=np.int64))


@given(spans, st.lists(st.tuples(st.integers(0, 3), hours), min_size=1, max_size=20))
def test_a_row_goes_to_the_latest_stay_that_spans_it(rows, asked):
    place = stays_of(rows).place_in_time(
        pd.Series([f"s{person}" for person, _ in asked], dtype="category"),
        np.array([hour * HOUR for _, hour in asked], dtype=np.int64),
    )
    for (person, hour), found in zip(asked, place, strict=True):
        spanning = [
            (first, k) for k, (p, first, n) in enumerate(rows) if p == person and first <= hour <= first + n
        ]
        latest = max(spanning)[0] if spanning else None
        assert (rows[found][1] if found >= 0 else None) == latest
        assert found < 0 or (latest, found) in spanning


@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["a", "b", ""]), hours, st.integers(0, 9)), max_size=12
    )
)
def test_an_end_is_no_end_while_the_same_therapy_runs_on(rows):
    place = np.array([r[0] for r in rows], dtype=np.int64)
    what = np.array([r[1] for r in rows], dtype=object)
    start = np.array([r[2] for r in rows], dtype=np.int64) * HOUR
    end = start + np.array([r[3] for r in rows], dtype=np.int64) * HOUR
    running = Running()
    half = len(rows) // 2
    for part in (slice(0, half), slice(half, None)):
        running.add(place[part], what[part], start[part], end[part])
    expected = [
        bool(what[k])
        and any(
            place[j] == place[k] and what[j] == what[k] and start[j] <= end[k] < end[j]
            for j in range(len(rows))
        )
        for k in range(len(rows))
    ]
    assert running.goes_on(place, what, end).tolist() == expected


@given(
    st.lists(st.tuples(st.integers(0, 2), hours, st.integers(40, 120)), max_size=10),
    st.lists(st.tuples(st.integers(0, 3), hours), min_size=1, max_size=10),
)
def test_the_latest_weight_known_counts(weighings, asked):
    weights = Weights()
    for place, hour, kg in weighings:
        weights.add(np.array([place]), np.array([hour * HOUR]), np.array([float(kg)]))
    found = weights.at(np.array([a[0] for a in asked]), np.array([a[1] * HOUR for a in asked]))
    for (place, hour), kg in zip(asked, found, strict=True):
        known = [(h, k) for k, (p, h, _) in enumerate(weighings) if p == place and h <= hour]
        assert kg == weighings[max(known)[1]][2] if known else np.isnan(kg)


def test_an_impossible_weight_is_not_used():
    weights = Weights()
    weights.add(np.array([0, 0]), np.array([0, 1]), np.array([80.0, 8000.0]))
    assert weights.at(np.array([0]), np.array([HOUR])).tolist() == [80.0]


@pytest.mark.parametrize(
    ("unit", "by_weight"),
    [
        ("mcg/min", "mcg/kg/min"),
        ("mg/hour", "mg/kg/hour"),
        ("mcg/kg/min", None),
        ("units/min", None),
        ("mL/hour", None),
    ],
)
def test_only_a_mass_per_time_is_divided(unit, by_weight):
    assert per_kilogram(unit) == by_weight


def test_a_rate_is_divided_only_where_the_concept_is_per_kilogram():
    rate, unit, weightless = weighed(
        np.array([8.0, 8.0, 0.0, 8.0]),
        pd.Series(["mcg/min"] * 3 + [None], dtype="category"),
        np.array(["ug/kg/min", "", "ug/kg/min", "ug/kg/min"], dtype=object),
        np.array([80.0, 80.0, np.nan, 80.0]),
    )
    assert rate.tolist() == [0.1, 8.0, 0.0, 8.0]
    assert unit.astype("str").fillna("").tolist() == ["mcg/kg/min", "mcg/min", "mcg/kg/min", ""]
    assert not weightless.any()


def test_what_was_seen_in_an_earlier_piece_is_not_new():
    seen = Seen()
    first, second = (
        marked(np.array(place), pd.Series(kind))
        for place, kind in (([1, 1, 2], list("aab")), ([2, 3], list("bb")))
    )
    assert seen.new(first).tolist() == [True, False, True]
    assert seen.new(second).tolist() == [False, True]
    assert seen.new(second, among=np.array([False, False])).tolist() == [False, False]


def test_an_encounter_stands_once():
    stays = stays_of([(0, 0, 1)])
    with pytest.raises(DataError, match="1 encounters stand in more than one row"):
        Stays(pd.concat([stays.encounters] * 2), np.zeros(2, np.int64), np.zeros(2, np.int64))
