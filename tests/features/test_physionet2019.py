"""Hourly ICU rows become encounters and events, whatever shape the file has; and nothing looks ahead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.clean import clean
from features.clock import UTC_US
from features.errors import DataError
from features.events import ENCOUNTER_COLUMNS, validate
from features.labels.physionet2019 import read_labels
from features.sources.batch import ReadAccount
from features.sources.physionet2019 import Chunk, batches, read


def story() -> pd.DataFrame:
    """Two patients: one in intensive care from hour 3 on, one surgical, hospital first for 1.5 hours."""
    return pd.DataFrame(
        {
            "patient_id": ["p000001"] * 3 + ["p100002"] * 2,
            "hour": np.array([0, 1, 2, 0, 1], dtype=np.int16),
            "HR": [80.0, np.nan, 95.0, 70.0, 71.0],
            "Temp": [np.nan, 38.5, np.nan, np.nan, np.nan],
            "Lactate": [np.nan, np.nan, 4.2, np.nan, np.nan],
            "Age": [64.5] * 3 + [17.0] * 2,
            "Gender": [1] * 3 + [0] * 2,
            "Unit1": [np.nan] * 3 + [0.0] * 2,
            "Unit2": [np.nan] * 3 + [1.0] * 2,
            "HospAdmTime": [-0.03] * 3 + [-1.5] * 2,
            "ICULOS": np.array([3, 4, 5, 1, 2], dtype=np.int16),
            "SepsisLabel": [0, 1, 1, 0, 0],
        }
    )


@pytest.fixture
def write(tmp_path: Path):
    def put(table: pd.DataFrame, name: str = "rows.parquet") -> Path:
        path = tmp_path / name
        table.to_parquet(path, index=False)
        return path

    return put


def chunks(path: Path, patients: int = 4000) -> list[Chunk]:
    return list(read(path, patients))


def facts(chunk: Chunk) -> pd.DataFrame:
    return chunk.events[["encounter_id", "time", "code", "numeric_value"]].astype(
        {"encounter_id": str, "code": str}
    )


def test_a_row_is_timed_by_its_hour_in_intensive_care(write):
    (chunk,) = chunks(write(story()))
    row = facts(chunk).query("code == 'PHYSIONET2019//Lactate'")
    assert row["time"].tolist() == [pd.Timestamp("2000-01-01T05:00Z")]
    assert row["numeric_value"].tolist() == [4.2]
    assert (chunk.events["available_time"] == chunk.events["time"]).all()
    assert chunk.rows["prediction_time"].iloc[2] == pd.Timestamp("2000-01-01T05:00Z")
    assert chunk.rows["hour"].tolist() == [0, 1, 2, 0, 1]


def test_an_empty_cell_makes_no_event(write):
    (chunk,) = chunks(write(story()))
    measured = facts(chunk)["code"].str.startswith("PHYSIONET2019//")
    assert measured.sum() == 4 + 1 + 1


def test_encounters_are_canonical_and_so_are_events(write):
    (chunk,) = chunks(write(story()))
    assert list(chunk.encounters.columns) == list(ENCOUNTER_COLUMNS)
    assert chunk.encounters["sex"].tolist() == ["male", "female"]
    assert chunk.encounters["icu_type"].tolist() == ["", "surgical"]
    assert chunk.encounters["hospital_admission_time"].dtype == UTC_US
    assert chunk.encounters["hospital_admission_time"].iloc[1] == pd.Timestamp("1999-12-31T22:30Z")
    assert len(validate(chunk.events)) == len(chunk.events)
    cleaned, account = clean(chunk.events)
    assert account.reasons == {}
    before = cleaned.loc[cleaned["concept"] == "hours_before_icu", "numeric_value"].tolist()
    assert before == [0.03, 1.5]


def test_labels_are_not_read_with_the_patients(write):
    with_labels, without = (
        write(story(), "a.parquet"),
        write(story().drop(columns="SepsisLabel"), "b.parquet"),
    )
    (one,), (two,) = chunks(with_labels), chunks(without)
    pd.testing.assert_frame_equal(one.events, two.events)
    assert "SepsisLabel" not in one.rows
    assert read_labels(with_labels).tolist() == [0, 1, 1, 0, 0]
    with pytest.raises(DataError, match="has no SepsisLabel"):
        read_labels(without)


def test_rows_in_any_order_give_the_same_facts(write):
    shuffled = story().sample(frac=1, random_state=3)
    (chunk,) = chunks(write(shuffled))
    assert sorted(facts(chunk).itertuples(index=False)) == sorted(
        facts(chunks(write(story()))[0]).itertuples(index=False)
    )
    back = chunk.rows.sort_index()
    assert back["patient_id"].tolist() == shuffled["patient_id"].tolist()
    assert back["hour"].tolist() == shuffled["hour"].tolist()


def test_chunks_hold_whole_patients_and_number_rows_through(write):
    parts = chunks(write(story()), patients=1)
    assert [len(p.rows) for p in parts] == [3, 2]
    assert np.concatenate([p.rows.index for p in parts]).tolist() == [0, 1, 2, 3, 4]


def test_a_folder_is_read_file_by_file(tmp_path, write):
    first, second = story().iloc[:3], story().iloc[3:]
    write(second, "setB.parquet")
    write(first, "setA.parquet")
    parts = chunks(tmp_path)
    assert [p.rows["site"].iloc[0] for p in parts] == ["A", "B"]
    assert parts[1].rows.index.tolist() == [3, 4]
    assert read_labels(tmp_path).tolist() == [0, 1, 1, 0, 0]


def test_a_patient_in_two_files_is_refused(tmp_path, write):
    write(story(), "setA.parquet")
    write(story(), "setB.parquet")
    with pytest.raises(DataError, match=r"2 patients of setB\.parquet"):
        chunks(tmp_path)


def test_a_laboratory_that_was_never_measured_may_be_absent(write):
    (chunk,) = chunks(write(story()[["patient_id", "hour", "ICULOS", "HR", "Age"]]))
    assert chunk.encounters["sex"].tolist() == ["", ""]
    assert "never measured" in chunk.notes[0]


def test_without_iculos_the_hour_stands_in_and_it_is_said(write):
    (chunk,) = chunks(write(story().drop(columns="ICULOS")))
    assert chunk.rows["iculos"].tolist() == [1, 2, 3, 1, 2]
    assert any("hour + 1" in note for note in chunk.notes)


def test_without_hour_rows_are_numbered_by_iculos(write):
    (chunk,) = chunks(write(story().drop(columns="hour").sample(frac=1, random_state=1)))
    assert chunk.rows.sort_values(["patient_id", "iculos"])["hour"].tolist() == [0, 1, 2, 0, 1]


def test_whole_number_identifiers_come_back_as_they_were(write):
    table = story().assign(patient_id=[7, 7, 7, 9, 9])
    (chunk,) = chunks(write(table))
    assert chunk.rows["patient_id"].tolist() == [7, 7, 7, 9, 9]
    assert chunk.encounters["encounter_id"].tolist() == ["7", "9"]


@pytest.mark.parametrize("kind", [pa.int32(), pa.float32(), pa.decimal128(24, 2), pa.bool_()])
def test_any_kind_of_number_will_do(tmp_path, kind):
    table = pa.Table.from_pandas(story().assign(HR=[1, 0, 1, 1, 1]), preserve_index=False)
    place = table.schema.get_field_index("HR")
    pq.write_table(table.set_column(place, "HR", table["HR"].cast(kind)), tmp_path / "x.parquet")
    (chunk,) = chunks(tmp_path / "x.parquet")
    assert facts(chunk).query("code == 'PHYSIONET2019//HR'")["numeric_value"].tolist() == [1, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="patient_id"), "no column patient_id"),
        (lambda t: t.drop(columns=["hour", "ICULOS"]), "neither ICULOS nor hour"),
        (lambda t: t.assign(HR=["80", None, "95", "70", "71"]), "Column HR .* numbers were expected"),
        (lambda t: t.assign(ICULOS=["1", "2", "3", "1", "2"]), "Column ICULOS .* numbers were expected"),
        (lambda t: t.assign(ICULOS=[3, 4, np.nan, 1, 2]), "Column ICULOS .* 1 of 5 rows"),
        (lambda t: t.assign(ICULOS=[3, 4, 5.5, 1, 2]), "no whole number of hours in 1 of 5"),
        (lambda t: t.assign(ICULOS=[-3, 4, 5, 1, 2]), "negative"),
        (lambda t: t.assign(ICULOS=[3, 4, 4, 1, 2]), "repeats a patient's hour in 1 rows"),
        (lambda t: t.assign(ICULOS=[5, 4, 3, 1, 2]), "order 2 rows differently"),
        (lambda t: t.assign(patient_id=["p1", None, "p1", "p2", "p2"]), "patient_id .* empty in 1 rows"),
        (lambda t: t.assign(patient_id=[0.5] * 3 + [1.5] * 2), "text or whole numbers"),
    ],
)
def test_what_cannot_be_read_is_named(write, change, message):
    with pytest.raises(DataError, match=message):
        chunks(write(change(story())))


def test_no_file_is_said(tmp_path):
    with pytest.raises(DataError, match="No Parquet file"):
        chunks(tmp_path)


def test_infinity_is_set_aside_and_counted(write):
    (chunk,) = chunks(write(story().assign(HR=[np.inf, np.nan, 95.0, 70.0, -np.inf])))
    assert clean(chunk.events)[1].reasons == {"not_a_number": 2}


def test_an_hour_far_outside_any_clock_is_refused(write):
    with pytest.raises(DataError, match="ICULOS"):
        chunks(write(story().assign(ICULOS=[1e12, 2e12, 3e12, 1, 2])))


def test_no_message_names_a_patient(write):
    with pytest.raises(DataError) as refused:
        chunks(write(story().assign(ICULOS=[3, 4, 4, 1, 2])))
    assert "p000001" not in str(refused.value)


def test_later_rows_say_nothing_of_earlier_ones(write):
    """A unit written only from the second hour on is not looked ahead to."""
    table = story().assign(Age=[np.nan, 64.5, 64.5, 40.0, 40.0])
    whole = chunks(write(table))[0].encounters
    cut = chunks(write(table.iloc[[0, 3]]))[0].encounters
    pd.testing.assert_frame_equal(whole, cut)


@pytest.mark.data
def test_real_files_are_read_whole(data_dir):
    parts = chunks(data_dir / "physionet2019" / "setA.parquet")
    assert sum(len(p.encounters) for p in parts) == 16_268
    assert sum(len(p.rows) for p in parts) == 631_156
    assert int(read_labels(data_dir / "physionet2019" / "setA.parquet").sum()) == 13_726


@pytest.mark.parametrize("content", [b"", b"not a table", b"patient_id,ICULOS\np000001,1\n", b"PAR1PAR1"])
def test_what_is_no_parquet_is_named_with_its_remedy(tmp_path: Path, content):
    path = tmp_path / "rows.parquet"
    path.write_bytes(content)
    for attempt in (chunks, read_labels):
        with pytest.raises(DataError, match=r"rows\.parquet (is empty|cannot be read as Parquet)\. Give"):
            attempt(path)


def test_a_file_cut_short_is_named_with_its_remedy(write):
    path = write(story())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        chunks(path)


def test_batches_give_the_measured_cells_and_count_the_empty_hours(write) -> None:
    table = story()
    table.loc[1, ["HR", "Temp"]] = np.nan
    account, said = ReadAccount(), []
    found = list(batches(write(table), account, say=said.append))
    events = pd.concat([b.events for b in found])
    assert sorted(events["code"].astype(str)) == ["PHYSIONET2019//HR"] * 4 + ["PHYSIONET2019//Lactate"]
    assert pd.concat([b.encounters for b in found])["encounter_id"].tolist() == ["p000001", "p100002"]
    assert dict(account.left) == {("hours", "nothing_measured"): 1}
    assert (account.rows["hours"], account.events["hours"], sum(said)) == (5, 5, 5)
    assert any("EtCO2" in note for note in account.notes)


@pytest.mark.data
def test_batches_give_what_read_gives(data_dir: Path) -> None:
    path = data_dir / "physionet2019" / "setB.parquet"
    account = ReadAccount()
    events = encounters = 0
    for batch in batches(path, account):
        events, encounters = events + len(batch.events), encounters + len(batch.encounters)
    chunks_ = list(read(path))
    measured = sum(int((c.events["source_id"] != "encounter").sum()) for c in chunks_)
    assert (events, encounters) == (measured, sum(len(c.encounters) for c in chunks_))
    assert account.rows["hours"] == sum(len(c.rows) for c in chunks_)
