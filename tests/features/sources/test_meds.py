"""MEDS data sets of anybody, and our own read again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import archive
from features.clean import clean
from features.clock import UTC_US
from features.errors import DataError
from features.events import EVENT_COLUMNS
from features.sources import meds
from features.sources.batch import Batch, ReadAccount, no_encounters
from features.sources.registry import reader

NINE = pd.Timestamp("2026-05-01T09:00")
DAY = pd.Timedelta("1D")


def data_set(folder: Path, rows: Sequence[dict[str, Any]], name: str = "0", **more: pa.Array) -> Path:
    """A data set as another house would write it: ``time`` in hours after 09:00 or an instant."""
    times = [
        None if r.get("time") is None else NINE + pd.Timedelta(hours=r["time"])
        if isinstance(r["time"], int | float)
        else pd.Timestamp(r["time"])
        for r in rows
    ]  # fmt: skip
    columns: dict[str, Any] = {
        "subject_id": pa.array([r.get("subject", 1) for r in rows], pa.int64()),
        "time": pa.array(times, pa.timestamp("us")),
        "code": pa.array([r["code"] for r in rows], pa.string()),
        "numeric_value": pa.array([r.get("value") for r in rows], pa.float32()),
        "text_value": pa.array([r.get("text") for r in rows], pa.large_string()),
    }
    if any("hadm" in r for r in rows):
        columns["hadm_id"] = pa.array([r.get("hadm") for r in rows], pa.int64())
    (folder / "data" / "train").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns | more), folder / "data" / "train" / f"{name}.parquet", row_group_size=3)
    return folder


def read(folder: Path, **how: Any) -> tuple[pd.DataFrame, pd.DataFrame, ReadAccount]:
    """Everything in one table of encounters and one of events."""
    account = ReadAccount()
    found = list(reader("meds")(folder, account, **how))
    text = dict.fromkeys(["subject_id", "encounter_id", "code", "concept", "text_value", "unit"], "object")
    events = pd.concat([b.events.astype(text) for b in found], ignore_index=True)
    stays = pd.concat([b.encounters for b in found], ignore_index=True)
    assert account.rows["data"] >= account.events["data"] > 0
    return stays.set_index("encounter_id"), events, account


MIMIC_LIKE = [
    {"time": None, "code": "GENDER//F"},
    {"time": "1960-05-01T09:00", "code": "MEDS_BIRTH"},
    {"time": 0, "code": "HOSPITAL_ADMISSION//URGENT", "hadm": 10},
    {"time": 1, "code": "LAB//50912//mg/dL", "value": 1.5, "hadm": 10},
    {"time": 2, "code": "LOINC/8867-4", "value": 88.0},
    {"time": 3, "code": "ICU_ADMISSION//MICU", "hadm": 10},
    {"time": 30, "code": "ICU_DISCHARGE//MICU", "hadm": 10},
    {"time": 50, "code": "HOSPITAL_DISCHARGE//HOME", "hadm": 10},
    {"time": 900, "code": "LOINC/8867-4", "value": 70.0},
    {"time": 1000, "code": "HOSPITAL_ADMISSION//URGENT", "hadm": 11},
    {"time": 1010, "code": "MEDS_DEATH", "hadm": 11},
]


def test_a_foreign_data_set_says_who_and_when(tmp_path: Path) -> None:
    stays, events, account = read(data_set(tmp_path, MIMIC_LIKE))
    assert list(stays.index) == ["10", "11"]
    assert stays["subject_id"].tolist() == ["1", "1"]
    assert stays["sex"].tolist() == ["female", "female"]
    assert stays["age_years"].round(2).tolist() == [66.0, 66.11]
    assert stays["encounter_class"].tolist() == ["icu", "ward"]
    assert stays["hospital_admission_time"].iloc[0] == NINE.tz_localize("UTC")
    assert stays["icu_admission_time"].iloc[0] == (NINE + pd.Timedelta("3h")).tz_localize("UTC")
    assert stays["icu_admission_time"].isna().tolist() == [False, True]
    assert account.left == {
        ("data", "birth_told_by_the_encounter"): 1,
        ("data", "sex_told_by_the_encounter"): 1,
        ("data", "no_encounter"): 1,
    }
    assert len(events) == len(MIMIC_LIKE) - 3
    assert any("span their time" in note for note in account.notes)


def test_codes_with_units_and_milestones_are_understood(tmp_path: Path) -> None:
    _, events, _ = read(data_set(tmp_path, MIMIC_LIKE))
    cleaned, account = clean(events)
    got = cleaned.sort_values("time")[["encounter_id", "concept", "numeric_value"]].astype(
        {"concept": "object"}
    )
    places = {"ed": 1.0, "ward": 2.0}
    assert got.query("concept != 'location'").to_numpy().tolist() == [
        ["10", "hospital_admission", 1.0],
        ["10", "creatinine", 1.5],
        ["10", "heart_rate", 88.0],
        ["10", "icu_discharge", 1.0],
        ["10", "hospital_discharge", 1.0],
        ["11", "hospital_admission", 1.0],
        ["11", "death", 1.0],
    ]
    moved = got.query("concept == 'location'")["numeric_value"].tolist()
    assert len(moved) == 1
    assert moved[0] not in places.values()
    assert not account.reasons


def test_values_of_a_narrow_float_are_read_as_they_stand(tmp_path: Path) -> None:
    _, events, _ = read(data_set(tmp_path, [{"time": 0, "code": "LOINC//8310-5", "value": 36.6}]))
    assert events["numeric_value"].tolist() == [float(np.float32(36.6))]


def test_without_an_encounter_column_the_record_is_the_encounter(tmp_path: Path) -> None:
    rows = [{"subject": s, "time": s, "code": "LOINC//8867-4", "value": 80} for s in (1, 1, 2, 3, 3, 3, 3, 4)]
    stays, events, account = read(data_set(tmp_path, rows))
    assert list(stays.index) == ["1", "2", "3", "4"]
    assert events["encounter_id"].tolist() == [str(r["subject"]) for r in rows]
    assert any("whole record is one encounter" in note for note in account.notes)


def test_rows_without_a_time_are_known_from_admission_of_every_stay(tmp_path: Path) -> None:
    rows = [
        {"time": None, "code": "ETHNICITY//X"},
        {"time": 0, "code": "LOINC//8867-4", "value": 80, "hadm": 1},
        {"time": 99, "code": "LOINC//8867-4", "value": 80, "hadm": 2},
        {"subject": 2, "time": None, "code": "ETHNICITY//X"},
    ]
    _, events, account = read(data_set(tmp_path, rows))
    fixed = events[events["code"] == "ETHNICITY//X"].sort_values("time")
    assert fixed["encounter_id"].tolist() == ["1", "2"]
    assert fixed["time"].tolist() == [(NINE + pd.Timedelta(hours=h)).tz_localize("UTC") for h in (0, 99)]
    assert account.left["data", "no_time_and_no_encounter"] == 1


def test_a_bare_date_of_an_unknown_code_is_known_the_next_day(tmp_path: Path) -> None:
    rows = [
        {"time": "2026-05-02", "code": "DIAGNOSIS//ICD//10//A41"},
        {"time": "2026-05-02", "code": "LOINC//8867-4", "value": 80},
        {"time": "2026-05-02T01:00", "code": "DIAGNOSIS//ICD//10//A41"},
    ]
    _, events, _ = read(data_set(tmp_path, rows))
    known = (events["available_time"] - events["time"]).tolist()
    assert known[0] == DAY
    assert pd.isna(known[1:]).all()


def test_times_are_read_in_the_zone_of_the_site(tmp_path: Path) -> None:
    rows = [
        {"time": "2026-07-01T12:00", "code": "LOINC//8867-4", "value": 80},
        {"time": "2026-03-29T01:30", "code": "LOINC//8867-4", "value": 80},  # an hour that clocks skip
        {"time": "2026-10-25T01:30", "code": "LOINC//8867-4", "value": 80},  # an hour that comes twice
    ]
    _, events, _ = read(data_set(tmp_path, rows), timezone="Europe/London")
    assert [t.isoformat() for t in events["time"]] == [
        "2026-07-01T11:00:00+00:00",
        "2026-03-29T01:00:00+00:00",
        "2026-10-25T00:30:00+00:00",
    ]


def test_a_subject_is_never_cut_in_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meds, "ROWS", 4)
    rows = [
        {"subject": s, "time": k, "code": "LOINC//8867-4", "value": 80}
        for s, n in ((1, 3), (2, 11), (3, 1), (4, 5))
        for k in range(n)
    ]
    found = list(meds.batches(data_set(tmp_path, rows), ReadAccount()))
    stays = pd.concat([b.encounters for b in found])
    assert stays["encounter_id"].tolist() == ["1", "2", "3", "4"]
    assert sum(len(b.events) for b in found) == len(rows)


# ------------------------------------------------------------ our own


def test_our_own_archive_read_again_is_the_same_archive(
    tell: Callable[..., pd.DataFrame], tmp_path: Path
) -> None:
    rng = np.random.default_rng(5)
    rows = [
        {
            "encounter_id": f"stay {k % 6}",
            "time": float(rng.integers(0, 40)),
            "available": float(rng.integers(40, 50)),
            "concept": "" if k % 7 == 0 else "lactate",
            "code": "LOCAL//x" if k % 7 == 0 else "WARDCAST//lactate",
            "value": float(rng.random() * 10),
            "text": "as written" if k % 3 else None,
            "source_id": f"result {k}",
        }
        for k in range(90)
    ]
    stays = (
        no_encounters()
        .reindex(range(6))
        .assign(encounter_id=[f"stay {k}" for k in range(6)], encounter_class="ward")
    )
    stays = stays.assign(subject_id=[f"person of stay {k}" for k in range(6)], age_years=50.5, sex="male")
    nine = pd.Series(pd.DatetimeIndex([NINE] * 6, tz="UTC")).astype(UTC_US)
    stays = stays.assign(hospital_admission_time=nine, icu_admission_time=nine)
    first, again = tmp_path / "first", tmp_path / "again"
    archive.write([Batch(stays, tell(rows))], first, ReadAccount(), group_rows=20)
    account = ReadAccount()
    archive.write(meds.batches(first, account), again, account, group_rows=20)
    for part in ("data", "encounters"):
        for file in (first / part).iterdir():
            one, two = (pq.read_table(f / part / file.name) for f in (first, again))
            by = [(name, "ascending") for name in one.column_names]
            assert one.sort_by(by).equals(two.sort_by(by))
    assert account.left == {("data", "told_by_the_encounter"): 6 * 4}


def test_batches_have_the_columns_of_every_reader(tmp_path: Path) -> None:
    (batch,) = meds.batches(data_set(tmp_path, MIMIC_LIKE), ReadAccount())
    assert list(batch.events) == list(EVENT_COLUMNS)
    assert list(batch.encounters) == list(no_encounters())
    assert batch.events["time"].dtype == batch.events["available_time"].dtype == UTC_US


# ------------------------------------------------------------ refusals


def test_a_folder_without_data_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Give the folder of a MEDS data set"):
        list(meds.batches(tmp_path, ReadAccount()))


def test_a_missing_column_and_a_wrong_type_are_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    table = pa.table({"subject_id": pa.array([1]), "code": ["x"]})
    pq.write_table(table, tmp_path / "data" / "0.parquet")
    with pytest.raises(DataError, match=r"0\.parquet lacks time"):
        list(meds.batches(tmp_path, ReadAccount()))
    table = table.append_column("time", pa.array(["2026"])).append_column("numeric_value", pa.array(["1"]))
    pq.write_table(table, tmp_path / "data" / "0.parquet")
    with pytest.raises(DataError, match=r"Column time of 0\.parquet is string"):
        list(meds.batches(tmp_path, ReadAccount()))


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "0.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"0\.parquet cannot be read as Parquet"):
        list(meds.batches(tmp_path, ReadAccount()))


def test_an_empty_file_makes_nothing(tmp_path: Path) -> None:
    data_set(tmp_path, [{"time": 0, "code": "x"}])
    file = tmp_path / "data" / "train" / "0.parquet"
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    account = ReadAccount()
    assert list(meds.batches(tmp_path, account)) == []
