"""Counting beds: hours are UTC, days are local, snapshots know nothing of the future but their label."""

from __future__ import annotations

from datetime import UTC, date, datetime

import numpy as np
import pandas as pd

from features import census
from features.clock import UTC_US
from features.labels.admissions import random_grid, snapshots
from features.sources.visits import tidy


def instants(*texts: str) -> pd.Series:
    return pd.Series(pd.to_datetime(list(texts), utc=True)).astype(UTC_US)


def visits(*rows: tuple[str, str, str, str]) -> pd.DataFrame:
    """Arrival, decision, admission, discharge on 1 May 2026 (hours and minutes, UTC)."""
    names = ["arrival_time", "decision_time", "admission_time", "discharge_time"]
    raw = pd.DataFrame([[f"2026-05-01T{t}Z" if t else "" for t in row] for row in rows], columns=names)
    return tidy(raw.assign(specialty="medicine", encounter_id=[f"v{k}" for k in range(len(rows))]))[0]


def test_a_local_day_has_23_24_or_25_hours():
    london = "Europe/London"
    hours = [
        (
            census.local_midnight(date(2026, m, d + 1), london)
            - census.local_midnight(date(2026, m, d), london)
        )
        / pd.Timedelta(hours=1)
        for m, d in ((3, 29), (5, 1), (10, 25))
    ]
    assert hours == [23, 24, 25]


def test_arrivals_on_the_long_day_are_all_counted_on_it():
    """One arrival in each UTC hour around 25 October 2026: the local 25th has 25 of them, its neighbours 24."""
    hourly = pd.Series(pd.date_range("2026-10-23T23:30Z", "2026-10-26T23:30Z", freq="1h")).astype(UTC_US)
    counts = census.daily_counts(hourly, "Europe/London", date(2026, 10, 24), date(2026, 10, 26))
    assert counts.tolist() == [24, 25, 24]


def test_the_repeated_hour_is_two_hours_of_the_same_name():
    hours = census.hours_between(datetime(2026, 10, 25, tzinfo=UTC), datetime(2026, 10, 25, 3, tzinfo=UTC))
    calendar = census.calendar(hours, "Europe/London")
    assert calendar["hour_of_day"].tolist() == [1, 1, 2]
    assert calendar["weekday"].tolist() == [6, 6, 6]


def test_public_holidays_are_those_of_the_place():
    """Early May bank holiday 2026 (gov.uk): Monday 4 May; not a holiday in the United States."""
    day = instants("2026-05-04T10:00Z")
    assert census.calendar(day, "Europe/London", "GB-ENG")["holiday"].tolist() == [1]
    assert census.calendar(day, "America/New_York", "US")["holiday"].tolist() == [0]
    assert census.calendar(day, "Europe/London")["holiday"].tolist() == [0]


def test_an_arrival_on_the_hour_belongs_to_the_hour_it_begins():
    hours = census.hours_between(datetime(2026, 5, 1, 8, tzinfo=UTC), datetime(2026, 5, 1, 11, tzinfo=UTC))
    came = instants("2026-05-01T08:00Z", "2026-05-01T08:59Z", "2026-05-01T10:00Z", "2026-05-01T11:00Z")
    assert census.hourly_counts(came, hours).tolist() == [2, 0, 1]
    assert census.hourly_counts(came.iloc[:0], hours).tolist() == [0, 0, 0]
    assert census.hourly_counts(came, hours.iloc[:0]).tolist() == []


def test_windows_are_open_then_closed():
    came = instants("2026-05-01T08:00Z", "2026-05-01T12:00Z")
    eight, noon = pd.Timestamp("2026-05-01T08:00Z"), pd.Timestamp("2026-05-01T12:00Z")
    assert census.count_between(came, eight, noon) == 1


def test_a_bed_is_taken_from_admission_until_discharge():
    table = visits(
        ("08:00", "09:00", "10:00", "12:00"), ("08:00", "09:00", "11:00", ""), ("08:00", "", "", "09:00")
    )
    at = instants(*(f"2026-05-01T{t}Z" for t in ("09:59", "10:00", "11:30", "12:00")))
    assert census.occupancy(table, at, ["medicine"]).ravel().tolist() == [0, 1, 2, 1]
    assert len(census.inpatients(table, at.iloc[2])) == 2


def test_waiting_and_undecided_are_told_apart():
    table = visits(("08:00", "09:00", "10:00", "12:00"), ("08:00", "", "", "11:00"), ("09:45", "", "", ""))
    half_nine = pd.Timestamp("2026-05-01T09:30Z")
    assert census.waiting(table, half_nine)["encounter_id"].tolist() == ["v0"]
    assert census.undecided(table, half_nine)["encounter_id"].tolist() == ["v1"]
    assert census.undecided(table, pd.Timestamp("2026-05-01T11:00Z"))["encounter_id"].tolist() == ["v2"]


def test_snapshots_show_each_patient_until_something_is_decided():
    table = visits(("08:00", "10:00", "11:30", "20:00"), ("08:30", "", "", "09:30"), ("08:00", "", "", ""))
    grid = instants(*(f"2026-05-01T{h:02d}:00Z" for h in range(7, 12)))
    taken = snapshots(table, grid)
    seen = taken.rows[["encounter_id", "prediction_time", "admitted"]].assign(
        prediction_time=taken.rows["prediction_time"].dt.hour
    )
    assert seen.to_numpy().tolist() == [["v0", 8, True], ["v0", 9, True], ["v1", 9, False]]
    assert taken.rows["hours_to_bed"].tolist()[:2] == [3.5, 2.5]
    assert np.isnan(taken.rows["hours_to_bed"].iloc[2])
    assert taken.attrition["no_outcome_yet"] == 1
    assert taken.attrition["snapshots"] == 3


def test_the_random_grid_runs_through_every_hour_once():
    first, last = pd.Timestamp("2026-05-01T00:00Z"), pd.Timestamp("2026-05-03T00:00Z")
    grid = random_grid(first, last, np.random.default_rng(1))
    assert grid.dt.floor("h").tolist() == list(pd.date_range(first, last, freq="1h", inclusive="left"))
    assert grid.dt.minute.nunique() > 10
