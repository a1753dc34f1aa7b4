"""Windows: what belongs to one, what may be read, and that fast, slow, batch and bedside agree."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from features import kernels
from features.clock import UTC_US
from features.errors import DataError, SpecError
from features.windows import MEANING, STATISTICS, Window, build, flatten

Tell = Callable[[list[dict[str, Any]]], pd.DataFrame]
When = Callable[..., pd.DataFrame]
HOURLY = timedelta(hours=1)


def window(text: str, concept: str = "heart_rate") -> Window:
    return Window.parse(concept, text)


def value(events: pd.DataFrame, rows: pd.DataFrame, text: str, resample: timedelta | None = None) -> float:
    return float(build(events, rows, [window(text)], resample)[0, 0])


# What belongs to a window


def test_the_prediction_time_itself_belongs_to_the_window(tell: Tell, when: When) -> None:
    events = tell([{"time": 6, "value": 90}])
    assert value(events, when(6), "last_6h") == 90


def test_what_is_exactly_one_lookback_old_has_left(tell: Tell, when: When) -> None:
    events = tell([{"time": 0, "value": 90}])
    assert value(events, when(6), "count_6h") == 0
    assert math.isnan(value(events, when(6), "last_6h"))
    assert value(events, when(6 - 1e-9 * 3600), "count_6h") == 1


def test_a_stay_lookback_reaches_the_first_event(tell: Tell, when: When) -> None:
    events = tell([{"time": -24 * 400, "value": 61}, {"time": 0, "value": 90}])
    assert value(events, when(1), "first") == 61


def test_an_encounter_without_events_has_counts_of_zero_and_nothing_else(tell: Tell, when: When) -> None:
    rows = when(1, encounter="unknown")
    for events in (tell([{"time": 0, "value": 90}]), tell([])):
        found = build(events, rows, [window(s) for s in STATISTICS])[0]
        assert found[STATISTICS.index("count")] == 0
        assert np.isnan(np.delete(found, STATISTICS.index("count"))).all()


def test_no_predictions_make_no_rows(tell: Tell, when: When) -> None:
    assert build(tell([{"time": 0, "value": 90}]), when(), [window("last")]).shape == (0, 1)


# Worked by hand


def test_a_morning_of_heart_rates(tell: Tell, when: When) -> None:
    # 80 at 09:00, 90 at 10:00, 100 at 11:30, asked at 12:00. Mean 90, deviations -10, 0, 10: std 10.
    # Hours -1.5, -0.5 (less the mean -1.1667+...): slope = 23.333 / 3.1667 = 150/19 per hour.
    # Held 1 h, 1.5 h, 0.5 h: (80 + 135 + 50) / 3.
    events = tell([{"time": 0, "value": 80}, {"time": 1, "value": 90}, {"time": 2.5, "value": 100}])
    expected = {
        "last": 100, "hours_since_last": 0.5, "count": 3, "min": 80, "max": 100, "mean": 90, "std": 10,
        "slope": 150 / 19, "first": 80, "delta": 10, "delta_from_first": 20, "sum": 270, "twmean": 265 / 3,
    }  # fmt: skip
    assert set(expected) == set(STATISTICS) == set(MEANING)
    for name, worked in expected.items():
        assert value(events, when(3), name) == pytest.approx(worked, rel=1e-7), name


def test_one_value_has_no_spread_no_trend_and_no_change(tell: Tell, when: When) -> None:
    events = tell([{"time": 0, "value": 80}])
    for name in ("std", "slope", "delta"):
        assert math.isnan(value(events, when(1), name)), name
    assert value(events, when(1), "delta_from_first") == 0


def test_values_at_one_instant_have_no_slope(tell: Tell, when: When) -> None:
    events = tell([{"time": 0, "value": 80, "source_id": "a"}, {"time": 0, "value": 90, "source_id": "b"}])
    assert math.isnan(value(events, when(1), "slope"))
    assert value(events, when(1), "twmean") == 90


def test_a_steady_value_has_a_spread_of_exactly_zero(tell: Tell, when: When) -> None:
    events = tell([{"time": k / 7, "value": 36.6} for k in range(40)])
    assert value(events, when(6), "std") == 0
    assert value(events, when(6), "mean") == np.float32(36.6)


# Ties


def test_ties_break_by_availability_then_source_then_value(tell: Tell, when: When) -> None:
    late = [{"time": 0, "available": 1, "value": 70}, {"time": 0, "available": 0, "value": 99}]
    assert value(tell(late), when(2), "last") == 70
    source = [{"time": 0, "value": 70, "source_id": "b"}, {"time": 0, "value": 99, "source_id": "a"}]
    assert value(tell(source), when(2), "last") == 70
    assert value(tell([{"time": 0, "value": 70}, {"time": 0, "value": 99}]), when(2), "last") == 99


# What may be read


def test_a_result_counts_from_when_it_was_available(tell: Tell, when: When) -> None:
    events = tell([{"time": 0, "available": 2, "value": 4.1, "concept": "lactate"}])
    asked = [Window.parse("lactate", s) for s in ("last", "hours_since_last")]
    found = build(events, when(1, 2, 3), asked)
    assert np.isnan(found[0]).all()
    assert found[1:].tolist() == [[np.float32(4.1), 2.0], [np.float32(4.1), 3.0]]


def test_a_correction_replaces_only_once_it_is_known(tell: Tell, when: When) -> None:
    events = tell(
        [
            {"time": 0, "value": 180, "source_id": "x"},
            {"time": 0, "available": 2, "value": 80, "source_id": "x", "status": "corrected"},
        ]
    )
    found = build(events, when(1, 2), [window("last"), window("count"), window("max")])
    assert found.tolist() == [[180, 1, 180], [80, 1, 80]]


def test_a_deleted_value_counts_until_its_deletion_is_known(tell: Tell, when: When) -> None:
    events = tell(
        [
            {"time": 0, "value": 180, "source_id": "x"},
            {"time": 0, "available": 2, "source_id": "x", "status": "deleted"},
        ]
    )
    assert build(events, when(1, 2), [window("count")]).tolist() == [[1], [0]]


def test_a_final_result_replaces_the_preliminary_one(tell: Tell, when: When) -> None:
    events = tell(
        [
            {"time": 0, "value": 3.0, "source_id": "x", "status": "preliminary"},
            {"time": 0, "available": 2, "value": 3.2, "source_id": "x"},
        ]
    )
    found = build(events, when(1, 3), [window("last"), window("count")])
    assert found.tolist() == [[3.0, 1], [np.float32(3.2), 1]]


@pytest.mark.parametrize("status", ["preliminary", "corrected"])
def test_a_report_sent_twice_counts_once(tell: Tell, when: When, status: str) -> None:
    report = {"time": 0, "value": 3.0, "source_id": "x", "status": status}
    assert value(tell([report, report]), when(1), "count") == 1


STORIES: dict[str, tuple[list[tuple[str, float, float]], list[float]]] = {
    "the last correction wins, not the largest": (
        [("final", 0, 3.0), ("corrected", 1, 9.0), ("corrected", 1, 2.0)],
        [2.0],
    ),
    "a correction dated before the original's release": ([("final", 1, 9.0), ("corrected", 0, 2.0)], [2.0]),
    "a deletion dated before the original's release": ([("final", 1, 9.0), ("deleted", 0, math.nan)], []),
    "a correction that comes first": ([("corrected", 1, 2.0), ("final", 1, 9.0)], [2.0]),
    "a deleted result comes back": (
        [("final", 0, 9.0), ("deleted", 1, math.nan), ("corrected", 1, 4.0)],
        [4.0],
    ),
    "a preliminary result that comes late": ([("final", 0, 3.2), ("preliminary", 1, 3.0)], [3.2]),
}


@pytest.mark.parametrize("name", list(STORIES))
def test_no_revision_comes_before_what_it_revises(tell: Tell, when: When, name: str) -> None:
    told, stand = STORIES[name]
    rows = [
        {"time": 0, "available": known, "value": v, "status": status, "source_id": "x"}
        for status, known, v in told
    ]
    found = build(tell(rows), when(2), [window("count"), window("sum")])[0].tolist()
    assert found[0] == len(stand)
    assert not stand or found[1] == np.float32(sum(stand))


def test_a_correction_may_move_the_time(tell: Tell, when: When) -> None:
    report = {"time": 2, "value": 9, "source_id": "x"}
    moved = report | {"time": 0, "available": 2, "value": 1, "status": "corrected"}
    asked = [window("count"), window("last"), window("hours_since_last")]
    assert build(tell([report, moved]), when(3), asked).tolist() == [[1, 1, 3]]


def test_two_final_facts_that_share_a_source_id_both_stand(tell: Tell, when: When) -> None:
    events = tell(
        [{"time": 0, "value": 1, "source_id": "panel"}, {"time": 1, "value": 2, "source_id": "panel"}]
    )
    assert value(events, when(1), "count") == 2


# Resampling


def test_resampling_reads_the_latest_of_each_hour_and_dates_it_to_the_hour(tell: Tell, when: When) -> None:
    # Asked at 12:00: (11, 12] holds 11:15 and 11:45, (10, 11] nothing, (9, 10] holds 10:00.
    events = tell([{"time": 1, "value": 80}, {"time": 2.25, "value": 95}, {"time": 2.75, "value": 91}])
    expected = {"last": 91, "count": 2, "hours_since_last": 0, "max": 91, "first": 80, "slope": 11 / 2}
    for name, worked in expected.items():
        assert value(events, when(3), name, HOURLY) == worked, name


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(300, 2000)), min_size=1, max_size=8),
    st.integers(0, 14),
)
def test_repeating_a_vital_every_minute_changes_nothing_that_is_hourly(
    tell: Tell, when: When, readings: list[tuple[int, int]], now: int
) -> None:
    readings = list(dict(readings).items())
    once = tell([{"time": hour, "value": v / 10} for hour, v in readings])
    minutes = [(hour - minute / 60, v) for hour, v in readings for minute in range(60)]
    often = tell([{"time": time, "value": v / 10} for time, v in minutes])
    asked = [window(f"{s}{suffix}") for s in STATISTICS for suffix in ("", "_6h", "_24h")]
    same = build(once, when(now), asked, HOURLY), build(often, when(now), asked, HOURLY)
    np.testing.assert_array_equal(*same)


# The same however it is asked; test_kernel_roads.py has the oracle and every road


def test_a_slice_that_keeps_the_categories_of_its_cohort_gives_the_same(tell: Tell, when: When) -> None:
    crowd = tell([{"time": 0, "value": k, "encounter_id": f"stay {k}"} for k in range(300)])
    coded = crowd.astype({"encounter_id": "category"})
    rows = when(1, encounter="stay 7")
    assert build(coded.iloc[[7]], rows, [window("last")])[0, 0] == 7
    assert build(coded.iloc[[7, 9]], rows, [window("last")])[0, 0] == 7
    lost = coded.iloc[[7, 9]].assign(encounter_id=coded["encounter_id"].iloc[[7, 9]].where([True, False]))
    assert build(lost, rows, [window("last")])[0, 0] == 7
    assert len(flatten(lost, ["heart_rate"])) == 1


def test_each_column_alone_equals_all_together(tell: Tell, when: When) -> None:
    rng = np.random.default_rng(7)
    events = tell(
        [{"time": t, "value": v} for t, v in zip(rng.uniform(0, 30, 80), rng.normal(80, 9, 80), strict=True)]
    )
    wanted = [window(f"{s}{suffix}") for s in STATISTICS for suffix in ("", "_1h", "_6h", "_90min")]
    together = build(events, when(3, 9, 31), wanted)
    alone = np.hstack([build(events, when(3, 9, 31), [w]) for w in wanted])
    np.testing.assert_array_equal(together, alone)


def test_threads_change_nothing_and_one_compilation_serves_all(tell: Tell) -> None:
    rng = np.random.default_rng(3)
    n = 30_000
    epoch = pd.Timestamp("2026-01-01T00:00Z")
    drawn = pd.DataFrame(
        {"encounter_id": rng.integers(0, 50, n).astype(str), "minute": rng.integers(0, 6000, n)}
    )
    stamps = (epoch + pd.to_timedelta(drawn["minute"], unit="min")).astype(UTC_US)
    events = tell([{"time": 0, "value": 1}]).iloc[[0] * n].reset_index(drop=True)
    events = events.assign(
        time=stamps,
        available_time=stamps,
        numeric_value=rng.normal(80, 9, n),
        encounter_id=drawn["encounter_id"],
    )
    rows = pd.DataFrame({"encounter_id": drawn["encounter_id"][::-1].to_numpy(), "prediction_time": stamps})
    wanted = [window(s) for s in ("last", "mean_6h", "std_24h", "slope_24h", "count")]
    one = build(events, rows, wanted)
    np.testing.assert_array_equal(build(events, rows, wanted, threads=3), one)
    frozen = flatten(events, ["heart_rate"])
    np.testing.assert_array_equal(build(frozen, rows, wanted), one)
    for function in (kernels.fill, kernels.spread, kernels.unsettled):
        # A file's columns cannot be written to, which alone makes another signature.
        kinds = {tuple(getattr(a, "dtype", a) for a in signature) for signature in function.signatures}
        assert len(kinds) == 1, function.__name__


def test_a_hundred_thousand_events_of_one_patient(tell: Tell, when: When) -> None:
    n = 100_000
    events = tell([{"time": 0, "value": 1}]).iloc[[0] * n].reset_index(drop=True)
    stamps = (pd.Timestamp("2026-05-01T09:00Z") + pd.to_timedelta(np.arange(n), unit="s")).astype(UTC_US)
    events = events.assign(time=stamps, available_time=stamps, numeric_value=np.arange(n) % 100 + 40.0)
    found = build(events, when(30), [window("count"), window("max"), window("count_1h")], None)
    assert found.tolist() == [[n, 139, 0]]


# Names and refusals


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("max_24h", "heart_rate__max_24h"),
        ("hours_since_last", "heart_rate__hours_since_last"),
        ("mean_90min", "heart_rate__mean_90min"),
        ("count_7d", "heart_rate__count_7d"),
        ("mean_36h", "heart_rate__mean_36h"),
        ("delta_from_first_6h", "heart_rate__delta_from_first_6h"),
    ],
)
def test_names_say_concept_statistic_and_lookback(text: str, name: str) -> None:
    assert window(text).name == name
    assert Window.parse("heart_rate", name.split("__")[1]) == window(text)


@pytest.mark.parametrize("text", ["median_6h", "max_6x", "max_", "", "max_0h", "6h"])
def test_an_unknown_statistic_or_lookback_is_refused_with_the_choices(text: str) -> None:
    with pytest.raises(SpecError, match=r"last|positive"):
        window(text)


def test_a_naive_or_nanosecond_time_is_refused(tell: Tell, when: When) -> None:
    events = tell([{"time": 0, "value": 90}])
    with pytest.raises(DataError, match=r"'time' is datetime64\[us\], expected"):
        flatten(events.assign(time=events["time"].dt.tz_localize(None)), ["heart_rate"])
    with pytest.raises(DataError, match="prediction_time"):
        build(events, when(1).drop(columns="prediction_time"), [window("last")])


def test_an_empty_time_is_counted_not_guessed(tell: Tell, when: When) -> None:
    events = tell([{"time": 0, "value": 90}, {"time": 1, "value": 91}])
    events.loc[1, "time"] = pd.NaT
    with pytest.raises(DataError, match="1 of 2 rows have no time"):
        build(events, when(1), [window("last")])


def test_an_infinite_value_is_refused(tell: Tell, when: When) -> None:
    with pytest.raises(DataError, match="infinite"):
        build(tell([{"time": 0, "value": "inf"}]), when(1), [window("last")])


def test_flat_events_without_a_wanted_concept_are_refused(tell: Tell, when: When) -> None:
    flat = flatten(tell([{"time": 0, "value": 90}]), ["heart_rate"])
    with pytest.raises(DataError, match="without lactate"):
        build(flat, when(1), [Window.parse("lactate", "last")])


def test_flat_events_say_whose_and_what_each_event_is(tell: Tell) -> None:
    flat = flatten(
        tell(
            [
                {"time": 1, "value": 2, "concept": "lactate"},
                {"time": 0, "value": 90},
                {"time": 0, "value": 1, "concept": "age_years"},
            ]
        ),
        ["heart_rate", "lactate"],
    )
    assert len(flat) == 2
    assert flat.concept.tolist() == [0, 1]
    assert flat.encounter.tolist() == [0, 0]
    assert flat.value.tolist() == [90, 2]
