"""Event tables and text files of the 2012 challenge become the same encounters and events."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from features.clean import clean, fill_available_time
from features.errors import DataError
from features.events import ENCOUNTER_COLUMNS, EVENT_COLUMNS, encounter_events, validate
from features.sources.batch import ReadAccount
from features.sources.physionet2012 import batches

ROWS = [
    (132501, 0, "Age", 54.0),
    (132501, 0, "Gender", 0.0),
    (132501, 0, "Height", -1.0),
    (132501, 0, "ICUType", 4.0),
    (132501, 0, "Weight", 80.5),
    (132501, 7, "HR", 73.0),
    (132501, 7, "Urine", 900.0),
    (132501, 67, "Urine", 60.0),
    (132502, 0, "Age", 71.0),
    (132502, 0, "Gender", -1.0),
    (132502, 0, "ICUType", 1.0),
    (132502, 2880, "HR", 0.0),
]
ADMISSION = pd.Timestamp("2000-01-01T00:00Z")


@dataclass
class Reading:
    account: ReadAccount
    encounters: pd.DataFrame
    events: pd.DataFrame
    said: int


def read(path: Path) -> Reading:
    account, said = ReadAccount(), []
    texts = [c for c in EVENT_COLUMNS if c not in ("time", "available_time", "numeric_value")]
    found = list(batches(path, account, say=said.append))
    events = pd.concat([b.events.astype(dict.fromkeys(texts, "str")) for b in found], ignore_index=True)
    encounters = pd.concat([b.encounters for b in found if len(b.encounters)], ignore_index=True)
    return Reading(account, encounters, events, sum(said))


def table(rows: list[tuple[Any, ...]], file: Path) -> Path:
    pd.DataFrame(rows, columns=["record_id", "minutes", "parameter", "value"]).to_parquet(file, index=False)
    return file


def texts(rows: list[tuple[Any, ...]], folder: Path) -> Path:
    for record in sorted({r[0] for r in rows}):
        lines = [f"{m // 60:02d}:{m % 60:02d},{p},{v:g}" for r, m, p, v in rows if r == record]
        head = ["Time,Parameter,Value", f"00:00,RecordID,{record}"]
        (folder / f"{record}.txt").write_text("\n".join([*head, *lines]) + "\n")
    return folder


def test_a_record_tells_of_its_stay_and_of_its_minutes(tmp_path: Path) -> None:
    found = read(table(ROWS, tmp_path / "set-a.parquet"))
    stays = found.encounters.set_index("encounter_id")
    assert list(found.encounters) == list(ENCOUNTER_COLUMNS)
    assert stays["age_years"].tolist() == [54, 71]
    assert stays["sex"].tolist() == ["female", ""]
    assert stays["icu_type"].tolist() == ["surgical", "medical"]
    assert stays["icu_admission_time"].unique().tolist() == [ADMISSION]
    urine = found.events[found.events["code"] == "PHYSIONET2012//Urine"]
    assert urine["time"].tolist() == [ADMISSION + pd.Timedelta(minutes=m) for m in (7, 67)]
    assert found.events["available_time"].isna().all(), "a laboratory value has the minute of its sample"
    assert urine["numeric_value"].tolist() == [900.0, 60.0]
    assert found.events["time"].max() == ADMISSION + pd.Timedelta(hours=48)


def test_minus_one_is_unknown_and_describing_rows_are_the_encounter(tmp_path: Path) -> None:
    found = read(table(ROWS, tmp_path / "set-a.parquet"))
    assert found.account.left == {("set-a", "unknown_marker"): 2, ("set-a", "describes_the_stay"): 5}
    assert found.account.events["set-a"] == 5
    assert found.said == found.account.rows["set-a"] == len(ROWS)
    about = encounter_events(found.encounters)
    assert (about["concept"] == "age_years").sum() == 2


def test_the_text_files_say_what_the_table_says(tmp_path: Path) -> None:
    (tmp_path / "set-a").mkdir()
    one = read(table(ROWS, tmp_path / "set-a.parquet"))
    two = read(texts(ROWS, tmp_path / "set-a"))
    pd.testing.assert_frame_equal(one.encounters, two.encounters)
    what = [c for c in EVENT_COLUMNS if c != "source_id"]
    pd.testing.assert_frame_equal(one.events[what], two.events[what])
    assert two.account.left["records", "describes_the_stay"] == 5 + 2, "and the two rows that name the record"
    assert not two.events.duplicated(["encounter_id", "source_id"]).any()


def test_one_text_file_is_one_stay(tmp_path: Path) -> None:
    found = read(texts(ROWS, tmp_path) / "132502.txt")
    assert found.encounters["encounter_id"].tolist() == ["132502"]


def test_a_minute_measured_twice_keeps_both(tmp_path: Path) -> None:
    found = read(table([*ROWS, (132501, 7, "HR", 75.0)], tmp_path / "set-a.parquet"))
    heart = found.events.query("code == 'PHYSIONET2012//HR' and encounter_id == '132501'")
    assert heart["numeric_value"].tolist() == [73.0, 75.0]
    assert heart["source_id"].is_unique


def test_rows_in_any_order_tell_the_same(tmp_path: Path) -> None:
    shuffled = [ROWS[i] for i in (5, 11, 0, 7, 3, 8, 1, 10, 2, 6, 9, 4)]
    (tmp_path / "one").mkdir()
    one, two = (
        read(table(ROWS, tmp_path / "set-a.parquet")),
        read(table(shuffled, tmp_path / "one" / "x.parquet")),
    )
    same = ["encounter_id", "code", "time", "numeric_value"]
    pd.testing.assert_frame_equal(
        one.events[same].sort_values(same, ignore_index=True),
        two.events[same].sort_values(same, ignore_index=True),
    )
    assert one.encounters.set_index("encounter_id").equals(
        two.encounters.set_index("encounter_id").loc[["132501", "132502"]]
    )


@pytest.mark.parametrize("minutes", [-5.0, None, 1e12])
def test_an_impossible_minute_is_no_time(tmp_path: Path, minutes: float | None) -> None:
    found = read(table([*ROWS, (132501, minutes, "HR", 80.0)], tmp_path / "set-a.parquet"))
    assert found.account.left["set-a", "no_time"] == 1


def test_a_record_in_two_tables_is_refused(tmp_path: Path) -> None:
    table(ROWS, tmp_path / "set-a.parquet")
    table(ROWS[:3], tmp_path / "set-b.parquet")
    with pytest.raises(DataError, match="1 stays of set-b are in an earlier table"):
        read(tmp_path)


def test_a_folder_without_event_tables_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(DataError, match="record_id, minutes, parameter, value"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "empty"),
        ("Hour,Parameter,Value\n00:07,HR,73\n", "header"),
        ("Time,Parameter,Value\n0.5 h,HR,73\n", "hours:minutes in 1 rows"),
        ("Time,Parameter,Value\n00:07,HR,Smith\n", "holds text in 1 rows"),
    ],
)
def test_a_broken_text_file_is_refused_without_its_name(tmp_path: Path, content: str, why: str) -> None:
    texts(ROWS, tmp_path)
    (tmp_path / "132503.txt").write_text(content)
    with pytest.raises(DataError, match=why) as refusal:
        read(tmp_path)
    assert "132503" not in str(refusal.value)
    assert "Smith" not in str(refusal.value)


@pytest.fixture(scope="module")
def challenge(data_dir: Path) -> Reading:
    return read(data_dir / "physionet2012")


@pytest.mark.data
def test_every_row_of_the_challenge_makes_an_event_or_is_counted(challenge: Reading) -> None:
    assert len(challenge.encounters) == 8000
    for name, rows in challenge.account.rows.items():
        left = sum(n for (table, _), n in challenge.account.left.items() if table == name)
        assert challenge.account.events[name] + left == rows
    assert challenge.said == sum(challenge.account.rows.values()) == 3_512_515
    assert len(challenge.events) == sum(challenge.account.events.values())
    assert challenge.events["source_id"].is_unique


@pytest.mark.data
def test_the_challenge_is_mapped_and_ends_at_48_hours(challenge: Reading) -> None:
    usable, account = clean(challenge.events)
    validate(fill_available_time(usable)[0])
    assert account.mapped / account.read > 0.999
    assert len(usable) / account.read > 0.998
    assert challenge.events["time"].between(ADMISSION, ADMISSION + pd.Timedelta(hours=48)).all()
