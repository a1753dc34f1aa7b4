"""Observations of a site's own: small invented tables, long and wide, and the mapping that explains them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from features import clean
from features.errors import DataError
from features.events import ENCOUNTER_COLUMNS, validate
from features.sources import observations
from features.sources.batch import ReadAccount

LONG = """\
shape = "long"

[columns]
subject_id = "patient_no"
encounter_id = "stay_no"
time = "taken"
available_time = "validated"
code = "test"
value = "result"
unit = "unit"
status = "state"

[codes]
HF = "heart_rate"
"K+" = "LOINC//2823-3"

[units]
"per min" = "/min"
"""
ROWS = """\
patient_no,stay_no,taken,validated,test,result,unit,state
7,70,2026-01-12 08:00,2026-01-12 08:00,HF,88,per min,F
7,70,2026-01-12 08:10,2026-01-12 09:00,K+,4.1,,
7,70,2026-01-12T08:20:00Z,,LOINC//2524-7,<0.3,mmol/L,
8,80,2026-01-13,,XYZ,many,,
"""
WIDE = """\
shape = "wide"

[columns]
subject_id = "patient_no"
encounter_id = "stay_no"
time = "taken"

[values.pulse]
concept = "heart_rate"

[values.temp]
code = "LOINC//8310-5"
unit = "[degF]"
"""
WIDE_ROWS = """\
patient_no,stay_no,taken,pulse,temp,notes
7,70,2026-01-12T08:00:00Z,88,,secret
7,70,2026-01-12T09:00:00Z,92,98.6,secret
8,80,2026-01-12T09:00:00Z,,,secret
"""
STAYS = """
[encounters]
path = "stays.csv"

[encounters.columns]
encounter_id = "no"
subject_id = "patient"
hospital_admission_time = "in"
hospital_discharge_time = "out"
encounter_class = "class"
age_years = "age"
sex = "sex"
"""
STAY_ROWS = """\
no,patient,in,out,class,age,sex
70,7,2026-01-12 07:00,2026-01-12 20:00,Ward,75.6,F
71,7,2026-02-12 07:00,,ED,75.7,F
80,8,2026-01-12 07:00,,ICU,,x
80,8,2026-01-12 07:00,,ICU,,x
,9,2026-01-12 07:00,,ICU,,x
"""


def lay(folder: Path, mapping: str, rows: str, stays: str = "") -> Path:
    """The files of a site; the mapping is ``site.toml``."""
    (folder / "rows.csv").write_text(rows)
    (folder / "site.toml").write_text(mapping)
    if stays:
        (folder / "stays.csv").write_text(stays)
    return folder / "rows.csv"


def read(path: Path, **options: Any) -> tuple[pd.DataFrame, pd.DataFrame, ReadAccount]:
    account = ReadAccount()
    folder = path if path.is_dir() else path.parent
    batches = list(observations.batches(path, account, **{"mapping": folder / "site.toml"} | options))
    events = pd.concat([b.events for b in batches], ignore_index=True)
    return pd.concat([b.encounters for b in batches], ignore_index=True), events, account


def test_a_long_table_becomes_events(tmp_path: Path):
    encounters, events, account = read(lay(tmp_path, LONG, ROWS), timezone="Europe/London")
    assert events["code"].tolist() == ["LOCAL//HF", "LOCAL//K+", "LOINC//2524-7", "LOCAL//XYZ"]
    assert events["concept"].tolist() == ["heart_rate", "potassium", "", ""]
    assert events["numeric_value"].tolist()[:3] == [88, 4.1, 0.3]
    assert events["text_value"].fillna("").tolist() == ["", "", "<0.3", "many"]
    assert events["unit"].fillna("").tolist() == ["/min", "mmol/L", "mmol/L", ""]
    assert events["source_id"].tolist() == [f"rows.csv:{k}" for k in (1, 2, 3, 4)]
    assert events["time"].iloc[0] == pd.Timestamp("2026-01-12T08:00Z")
    assert events["available_time"].iloc[1] == pd.Timestamp("2026-01-12T09:00Z")
    assert pd.isna(events["available_time"].iloc[2])
    assert encounters["encounter_id"].tolist() == ["70", "80"]
    assert encounters["hospital_admission_time"].tolist() == [
        events["time"].min(),
        pd.Timestamp("2026-01-13T00:00Z"),
    ]
    assert account.rows["observations"] == account.events["observations"] == 4
    assert list(encounters.columns) == list(ENCOUNTER_COLUMNS)


def test_what_the_site_maps_is_cleaned_like_anything_else(tmp_path: Path):
    _, events, _ = read(lay(tmp_path, LONG, ROWS))
    cleaned, account = clean.clean(events)
    assert cleaned["concept"].tolist() == ["heart_rate", "potassium", "lactate"]
    assert account.reasons == {"unknown_concept": 1}


def test_a_unit_that_nobody_writes_stands_in_the_mapping(tmp_path: Path):
    mapping = LONG.replace('HF = "heart_rate"', 'HF = { concept = "temperature", unit = "[degF]" }')
    _, events, _ = read(lay(tmp_path, mapping, ROWS.replace("HF,88,per min", "HF,98.6,")))
    assert clean.clean(events)[0]["numeric_value"].iloc[0] == pytest.approx(37.0)


def test_a_bare_date_is_known_the_next_day(tmp_path: Path):
    _, events, _ = read(lay(tmp_path, LONG, ROWS), timezone="America/Toronto")
    assert events["time"].iloc[3] == pd.Timestamp("2026-01-13T05:00Z")
    assert events["available_time"].iloc[3] == pd.Timestamp("2026-01-14T05:00Z")


def test_a_result_released_on_some_day_is_known_the_next(tmp_path: Path):
    _, events, _ = read(lay(tmp_path, LONG, ROWS.replace("2026-01-12 09:00", "2026-01-12")))
    assert events["available_time"].iloc[1] == pd.Timestamp("2026-01-13T00:00Z")


def test_a_result_released_before_it_was_taken_is_left_to_the_policy(tmp_path: Path):
    # One of the two times is wrong, nobody knows which; to be known at once would be the boldest guess of all.
    _, events, _ = read(lay(tmp_path, LONG, ROWS.replace("2026-01-12 09:00", "2026-01-12 07:00")))
    assert pd.isna(events["available_time"].iloc[1])
    assert (
        clean.fill_available_time(clean.clean(events)[0])[0]["available_time"].iloc[1]
        > events["time"].iloc[1]
    )


def test_the_hour_that_clocks_skip_moves_forward(tmp_path: Path):
    rows = ROWS.replace("2026-01-12 08:00,2026-01-12 08:00", "2026-03-29 01:30,")
    assert read(lay(tmp_path, LONG, rows), timezone="Europe/London")[1]["time"].iloc[0] == pd.Timestamp(
        "2026-03-29T01:00Z"
    )


def test_a_wide_table_becomes_events(tmp_path: Path):
    _, events, account = read(lay(tmp_path, WIDE, WIDE_ROWS))
    assert events["concept"].tolist() == ["heart_rate", "heart_rate", "temperature"]
    assert events["numeric_value"].tolist() == [88, 92, 98.6]
    assert events["source_id"].tolist() == ["rows.csv:1#pulse", "rows.csv:2#pulse", "rows.csv:2#temp"]
    assert clean.clean(events)[0]["numeric_value"].iloc[2] == pytest.approx(37.0)
    assert account.rows["observations"] == 3
    assert account.left == {("observations", "no_value"): 1}


def test_a_table_of_stays_says_who_was_where(tmp_path: Path):
    rows = ROWS.replace("7,70,", "7,,").replace("8,80,2026-01-13", "8,71,2026-01-13")
    encounters, events, account = read(lay(tmp_path, LONG + STAYS, rows, STAY_ROWS))
    assert encounters["encounter_class"].tolist() == ["ward", "ed", "icu"]
    assert encounters["sex"].tolist() == ["female", "female", ""]
    assert encounters["age_years"].tolist()[:2] == [75.6, 75.7]
    assert encounters["icu_admission_time"].isna().all()
    assert events["encounter_id"].tolist() == ["70", "70", "70"]
    assert account.left == {
        ("encounters", "no_identity"): 1,
        ("encounters", "repeated"): 1,
        ("observations", "encounter_of_another_subject"): 1,
    }


def test_a_stay_of_dates_is_known_the_next_day_and_lasts_the_last(tmp_path: Path):
    stays = """\
no,patient,in,out,icu
1,7,2026-01-12,2026-01-14,2026-01-13
2,7,2026-02-12,2026-02-12 15:00,2026-02-12
3,7,2026-03-12,,2026-03-12 10:00
4,7,2026-04-12 09:00,2026-04-12,2026-04-12
"""
    rows = "patient_no,stay_no,taken,validated,test,result,unit,state\n" + "".join(
        f"7,,{taken},,HF,88,,\n" for taken in ("2026-01-12 03:00", "2026-01-14 23:00", "2026-04-12 20:00")
    )
    columns = STAYS.split("encounter_class")[0] + 'icu_admission_time = "icu"\n'
    encounters, events, _ = read(lay(tmp_path, LONG + columns, rows, stays))
    admitted = ["2026-01-13", "2026-02-12 15:00", "2026-03-12 10:00", "2026-04-12 09:00"]
    icu = ["2026-01-14", "2026-02-12 15:00", "2026-03-12 10:00", "2026-04-13"]
    for column, known in (("hospital_admission_time", admitted), ("icu_admission_time", icu)):
        assert encounters[column].tolist() == [pd.Timestamp(t, tz="UTC") for t in known]
    assert events["encounter_id"].tolist() == ["1", "1", "4"], "the days themselves belong to the stay"


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path):
    rows = (
        ROWS.replace("7,70,2026-01-12 08:00,", ",70,2026-01-12 08:00,")
        .replace("2026-01-12 08:10", "soon")
        .replace("LOINC//2524-7", "")
        .replace("many", "")
    )
    _, events, account = read(
        lay(tmp_path, LONG, rows + "8,80,2026-01-13,,HF,1,,maybe\n8,,2026-01-13,,HF,1,,\n")
    )
    assert events.empty
    assert account.left == {
        ("observations", reason): 1
        for reason in ("no_subject", "no_time", "no_code", "no_value", "unknown_status", "no_encounter")
    }


def test_a_withdrawn_row_needs_no_value(tmp_path: Path):
    _, events, _ = read(lay(tmp_path, LONG, ROWS.replace("4.1,,", ",,deleted")))
    assert events["status"].tolist()[1] == "deleted"


@pytest.mark.parametrize("form", ["parquet", "csv.gz", "folder", "typed"])
def test_one_table_in_every_form_is_the_same(tmp_path: Path, form: str):
    path = lay(tmp_path, WIDE, WIDE_ROWS)
    stays, events, _ = read(path)
    table = pd.read_csv(path)
    if form == "csv.gz":
        (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(WIDE_ROWS.encode()))
    elif form == "typed":
        table.assign(taken=pd.to_datetime(table["taken"])).to_parquet(tmp_path / "rows.parquet")
    elif form == "parquet":
        pd.read_csv(path, dtype="str").to_parquet(tmp_path / "rows.parquet")
    other = {"folder": tmp_path, "csv.gz": tmp_path / "rows.csv.gz"}.get(form, tmp_path / "rows.parquet")
    same_stays, same, _ = read(other)
    pd.testing.assert_frame_equal(same_stays, stays)
    pd.testing.assert_frame_equal(same.drop(columns="source_id"), events.drop(columns="source_id"))


def test_pieces_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = lay(tmp_path, LONG + STAYS, ROWS, STAY_ROWS)
    _, whole, account = read(path)
    monkeypatch.setattr(observations, "ROWS", 1)
    told: list[int] = []
    _, pieces, same = read(path, say=told.append)
    assert told == [1, 1, 1, 1]
    pd.testing.assert_frame_equal(pieces, whole)
    assert (account.rows, account.events, account.left) == (same.rows, same.events, same.left)


def test_the_example_of_the_documentation_is_a_mapping(tmp_path: Path):
    blocks = (observations.__doc__ or "").split("::\n")
    said = [
        "\n".join(line[4:] for line in b.splitlines() if line.startswith("    ") or not line)
        for b in blocks[1:]
    ]
    (tmp_path / "stays.csv").write_text("no\n")
    for text in (said[0] + said[2], said[1] + said[2]):
        (tmp_path / "site.toml").write_text(text)
        plan = observations.layout(tmp_path / "site.toml", tmp_path)
        assert plan.stays == tmp_path / "stays.csv"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('time = "taken"\n', "", r"lacks time"),
        ('encounter_id = "stay_no"\n', "", r"lacks encounter_id"),
        (
            'time = "taken"\n',
            'time = "zeit"\n',
            r"rows\.csv lacks zeit \(\[columns\] time\)\. It has patient_no",
        ),
        ('code = "test"\n', 'code = "test"\ncolour = "x"\n', r"\[columns\] holds colour; known are"),
        ('"heart_rate"', '"heart_rat"', r"neither a concept of concepts\.csv"),
        ('"long"', '"tall"', r"shape 'tall'. Write long or wide"),
        ("[columns]", "[columns", r"site\.toml is not TOML"),
        ("[codes]", "[code]", r"holds code; known are"),
        ('HF = "heart_rate"', "HF = 3", r"\[codes\] HF of the mapping lacks concept"),
        (
            'HF = "heart_rate"',
            'HF = { concept = "heart_rate", u = "x" }',
            r"\[codes\] HF of the mapping holds u",
        ),
        ("[units]", "[units]\nx = 3", r"\[units\] of the mapping must hold lines"),
    ],
)
def test_a_wrong_mapping_is_refused_with_its_remedy(tmp_path: Path, old: str, new: str, message: str):
    assert old in LONG
    with pytest.raises(DataError, match=message):
        read(lay(tmp_path, LONG.replace(old, new), ROWS))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('concept = "heart_rate"', "", r"\[values\.pulse\] of the mapping lacks concept"),
        ("[values.pulse]", "[values.puls]", r"lacks puls \(\[values\]\)"),
        (
            'concept = "heart_rate"',
            'concept = "heart_rate"\nkind = "x"',
            r"\[values\.pulse\] of the mapping holds kind",
        ),
        ('path = "stays.csv"', 'path = "beds.csv"', r"No table of stays at beds\.csv"),
        ('path = "stays.csv"', "", r"\[encounters\] of the mapping lacks path"),
        ('subject_id = "patient"\n', "", r"\[encounters\.columns\] of the mapping lacks subject_id"),
        (
            'age_years = "age"',
            'age_years = "old"',
            r"stays\.csv lacks old \(\[encounters\.columns\] age_years\)",
        ),
    ],
)
def test_wrong_columns_and_stays_are_refused_with_their_remedy(
    tmp_path: Path, old: str, new: str, message: str
):
    assert old in WIDE + STAYS
    with pytest.raises(DataError, match=message):
        read(lay(tmp_path, (WIDE + STAYS).replace(old, new), WIDE_ROWS, STAY_ROWS))


def test_wrong_files_are_refused(tmp_path: Path):
    path = lay(tmp_path, LONG, ROWS)
    with pytest.raises(DataError, match="need a mapping"):
        read(path, mapping=None)
    with pytest.raises(DataError, match="No observations at"):
        read(tmp_path / "none.csv")
    with pytest.raises(DataError, match="no time zone"):
        read(path, timezone="Mars/Olympus")
    path.write_text("")
    with pytest.raises(DataError, match="is empty"):
        read(path)
    path.write_text(ROWS.splitlines()[0])
    with pytest.raises(DataError, match="no row"):
        read(path)
    path.write_bytes(ROWS.encode() + b"\xff\xfe,,,,\n")
    with pytest.raises(DataError, match="could not be read"):
        read(path)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="could not be read"):
        read(tmp_path / "rows.parquet")


def test_the_events_are_valid_once_their_policy_is_applied(tmp_path: Path):
    _, events, _ = read(lay(tmp_path, LONG, ROWS))
    validate(clean.fill_available_time(clean.clean(events)[0])[0])


LABS = {
    "system": "MIMIC_LAB",
    "columns": {
        "subject_id": "subject_id",
        "time": "charttime",
        "code": "itemid",
        "value": "value",
        "unit": "valueuom",
        "source_id": "row_id",
    },
    "encounters": {
        "path": "admissions.parquet",
        "columns": {
            "encounter_id": "hadm_id",
            "subject_id": "subject_id",
            "hospital_admission_time": "admittime",
            "hospital_discharge_time": "dischtime",
        },
    },
}
"""The laboratory of the MIMIC-III demo as if it were a site's own, without its encounters, which the times give."""


@pytest.mark.data
def test_the_laboratory_of_a_real_hospital_finds_its_stays_by_time(data_dir: Path):
    path = data_dir / "mimic-iii-demo" / "labevents.parquet"
    _, events, account = read(path, mapping=LABS)
    truth = pd.read_parquet(path, columns=["row_id", "hadm_id"]).dropna()
    truth = truth.assign(
        source_id=truth["row_id"].astype("str"), hadm_id=truth["hadm_id"].astype("int64").astype("str")
    )
    both = events.merge(truth, on="source_id")
    assert (both["encounter_id"] == both["hadm_id"]).mean() > 0.99
    assert account.rows["observations"] == len(events) + sum(account.left.values())
    assert clean.clean(events)[1].mapped > 0.5 * len(events)
