"""Visits from any file: names, times, contradictions, and what was known when."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from features.errors import DataError
from features.sources.visits import VISIT_COLUMNS, known_at, read, through_ed, tidy, visit_events

STORY = """arrival_time,decision_time,admission_time,discharge_time,specialty,sex,age,arrival_mode
2026-05-01T08:00Z,2026-05-01T11:00Z,2026-05-01T13:00Z,2026-05-04T15:00Z,surgery,F,71,Ambulance
2026-05-01T09:00Z,,,2026-05-01T12:00Z,,male,24,walk in
2026-05-01T10:00Z,2026-05-01T12:00Z,,,medicine,,55,
"""


def story(path: Path, text: str = STORY) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_three_visits_are_read_as_told(tmp_path: Path):
    visits, account = read(story(tmp_path / "v.csv"))
    assert list(visits.columns) == list(VISIT_COLUMNS)
    assert visits["arrival_time"].iloc[0] == pd.Timestamp("2026-05-01T08:00Z")
    assert visits["sex"].tolist() == ["female", "male", ""]
    assert visits["arrival_mode"].tolist() == ["ambulance", "walk-in", ""]
    assert visits["age_years"].tolist() == [71, 24, 55]
    assert visits["admission_time"].isna().tolist() == [False, True, True]
    assert (account.read, account.used, account.reasons) == (3, 3, {})


def test_parquet_and_csv_give_the_same_visits(tmp_path: Path):
    from_csv, _ = read(story(tmp_path / "v.csv"))
    from_csv.to_parquet(tmp_path / "v.parquet")
    again, _ = read(tmp_path / "v.parquet")
    pd.testing.assert_frame_equal(from_csv, again, check_dtype=False)


def test_a_site_names_its_own_columns(tmp_path: Path):
    text = STORY.replace("arrival_time", "CAME_AT").replace("specialty", "dept")
    visits, account = read(story(tmp_path / "v.csv", text), {"arrival_time": "CAME_AT", "specialty": "dept"})
    assert visits["specialty"].iloc[0] == "surgery"
    assert account.columns["arrival_time"] == "CAME_AT"


def test_a_missing_column_is_named_with_the_columns_there_are(tmp_path: Path):
    with pytest.raises(
        DataError, match=r"lack arrival_time .*It has CAME_AT.*arrival_datetime, .* for arrival_time"
    ):
        read(story(tmp_path / "v.csv", STORY.replace("arrival_time", "CAME_AT")))


def test_a_mapping_that_reads_nothing_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="reads when, which the file does not have"):
        read(story(tmp_path / "v.csv"), {"arrival_time": "when"})
    with pytest.raises(DataError, match="mapping names bed; known are"):
        read(story(tmp_path / "v.csv"), {"bed": "unit"})


def test_contradictions_are_set_aside_and_counted_by_their_first_reason():
    rows = [
        ("a", "2026-05-01T08:00Z", "", "2026-05-01T07:00Z"),
        ("b", "2026-05-01T08:00Z", "2026-05-01T07:00Z", ""),
        ("c", "2026-05-01T08:00Z", "2026-05-02T08:00Z", "2026-05-01T09:00Z"),
        ("d", "yesterday", "", ""),
        ("e", "", "", ""),
        ("f", "2026-05-01T08:00Z", "", ""),
        ("f", "2026-05-01T09:00Z", "", ""),
    ]
    raw = pd.DataFrame(rows, columns=["encounter_id", "arrival_time", "admission_time", "discharge_time"])
    visits, account = tidy(raw)
    assert visits["encounter_id"].tolist() == ["f"]
    assert account.reasons == {
        "discharge_before_arrival": 1,
        "decision_before_arrival": 1,
        "discharge_before_admission": 1,
        "unreadable_arrival_time": 1,
        "no_arrival_time": 1,
        "repeated_encounter_id": 1,
    }
    assert "1 set aside: discharge before arrival." in account.lines()


def test_nothing_usable_says_why():
    raw = pd.DataFrame({"arrival_time": ["12/31/2025"], "admission_time": [""], "discharge_time": [""]})
    with pytest.raises(DataError, match=r"1 unreadable_arrival_time.*ISO 8601"):
        tidy(raw)


def test_other_files_are_refused(tmp_path: Path):
    (tmp_path / "v.xlsx").write_text("x")
    (tmp_path / "v.parquet").write_text("not parquet")
    for name, why in (("v.xlsx", "neither"), ("nothing.csv", "No file"), ("v.parquet", "whole file")):
        with pytest.raises(DataError, match=why):
            read(tmp_path / name)


def test_local_times_cross_the_change_of_clocks():
    """London, 25 October 2026: 01:30 comes twice (read as the first, BST); 29 March: 01:30 never comes."""
    raw = pd.DataFrame(
        {
            "arrival_time": ["2026-10-25T01:30", "2026-03-29T01:30", "2026-07-01T09:00"],
            "admission_time": ["", "", ""],
            "discharge_time": ["", "", ""],
        }
    )
    visits, account = tidy(raw, timezone="Europe/London")
    assert visits["arrival_time"].dt.strftime("%m-%d %H:%M").tolist() == [
        "03-29 01:00",
        "07-01 08:00",
        "10-25 00:30",
    ]
    assert account.repaired == {"arrival_time_at_the_change_of_clocks": 2}


def test_known_at_hides_everything_later(tmp_path: Path):
    visits, _ = read(story(tmp_path / "v.csv"))
    seen = known_at(visits, pd.Timestamp("2026-05-01T11:30Z"))
    assert len(seen) == 3
    assert seen["admission_time"].isna().all()
    assert seen["discharge_time"].isna().all()
    assert seen["specialty"].tolist() == ["surgery", "", ""]
    assert seen["unit"].tolist() == ["ED", "ED", "ED"]
    assert len(known_at(visits, pd.Timestamp("2026-05-01T08:30Z"))) == 1


def test_visit_events_are_known_from_the_arrival_on(tmp_path: Path):
    visits, _ = read(story(tmp_path / "v.csv"))
    events = visit_events(visits)
    told = events.set_index(["encounter_id", "concept"])["numeric_value"]
    assert told["row1", "ambulance_arrival"] == 1
    assert told["row2", "ambulance_arrival"] == 0
    assert ("row3", "ambulance_arrival") not in told.index
    assert told["row2", "male"] == 1
    assert (events["time"] == events["available_time"]).all()
    assert through_ed(visits).all()
    assert len(visit_events(visits.iloc[:0])) == 0
