"""Tables of any format and spelling come out alike, piece by piece; what does not fit is named with its cure."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pytest

from features.clock import UTC_US
from features.errors import DataError
from features.sources.batch import ReadAccount
from features.sources.tables import Tables, leave

COLUMNS = {"hadm_id": "id", "charttime": "time", "valuenum": "number", "value": "text", "row_id": "key"}
CSV = (
    "ROW_ID,HADM_ID,CHARTTIME,VALUE,VALUENUM\n"
    "1,7,2150-01-01 08:00:00,80,80\n"
    "2,,2150-01-01 09:30:00.5,,\n"
    '3,7,,"a, ""b""\nand c",1e-3\n'
)


@pytest.fixture
def folder(tmp_path: Path):
    def write(content: str | bytes, name: str = "CHARTEVENTS.csv") -> Path:
        file = tmp_path / "tables" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        data = content.encode() if isinstance(content, str) else content
        file.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return tmp_path / "tables"

    return write


def read(path: Path, columns: dict = COLUMNS, **options) -> pd.DataFrame:
    return pd.concat(Tables(path).stream("chartevents", columns, **options))


def plain(frame: pd.DataFrame) -> list[list]:
    return frame.astype(object).where(frame.notna(), None).to_numpy().tolist()


def test_columns_are_typed_and_capitals_do_not_matter(folder):
    frame = read(folder(CSV))
    assert frame["charttime"].dtype == UTC_US
    assert plain(frame) == [
        ["7", pd.Timestamp("2150-01-01T08:00Z"), 80.0, "80", "1"],
        [None, pd.Timestamp("2150-01-01T09:30:00.5Z"), None, None, "2"],
        ["7", None, 0.001, 'a, "b"\nand c', "3"],
    ]


@pytest.mark.parametrize(
    "name", ["chartevents.csv.gz", "ChartEvents.CSV", "icu/chartevents.csv", "a/b/chartevents.csv"]
)
def test_a_table_is_found_in_any_spelling_and_two_folders_below(folder, name):
    assert len(read(folder(CSV, name))) == 3


def test_parquet_and_csv_agree(folder, tmp_path):
    frame = read(folder(CSV))
    other = tmp_path / "other"
    other.mkdir()
    table = pd.DataFrame(
        {
            "hadm_id": [7.0, None, 7.0],
            "charttime": pd.to_datetime(
                ["2150-01-01 08:00", "2150-01-01 09:30:00.5", None], format="ISO8601"
            ),
            "valuenum": [80, None, 0.001],
            "value": ["80", "  ", 'a, "b"\nand c'],
            "row_id": [1, 2, 3],
        }
    )
    table.to_parquet(other / "chartevents.parquet")
    assert plain(read(other)) == plain(frame)


def test_pieces_are_bounded_numbered_through_and_counted(folder):
    account, said = ReadAccount(), []
    pieces = list(
        Tables(folder(CSV)).stream("chartevents", COLUMNS, rows=2, account=account, say=said.append)
    )
    assert [piece.index.tolist() for piece in pieces] == [[0, 1], [2]]
    assert account.rows["chartevents"] == sum(said) == 3


def test_one_identifier_in_three_spellings_is_one(folder):
    frame = read(folder("hadm_id\n7\n7.0\n 7\n07\n"), {"hadm_id": "id"})
    assert frame["hadm_id"].astype(str).tolist() == ["7", "7", "7", "07"]


def test_an_optional_column_may_be_absent_and_is_then_missing(folder):
    frame = read(folder("hadm_id\n7\n"), {"hadm_id": "id", "storetime": "time"}, optional=("storetime",))
    assert frame["storetime"].isna().all()
    assert frame["storetime"].dtype == UTC_US


def test_naive_times_are_of_the_hospital_even_when_clocks_change(folder):
    text = "charttime\n2026-10-25 02:30:00\n2026-03-29 02:30:00\n2026-07-01\n"
    frame = next(Tables(folder(text), timezone="Europe/Berlin").stream("chartevents", {"charttime": "time"}))
    # Twice on the clock: the first; skipped by the clock: the next instant there is.
    assert frame["charttime"].dt.strftime("%m-%d %H:%M").tolist() == [
        "10-25 00:30",
        "03-29 01:00",
        "06-30 22:00",
    ]


def test_an_offset_is_kept_and_some_without_one_are_refused(folder):
    frame = read(
        folder("charttime\n2026-07-01T10:00:00+02:00\n2026-07-01T10:00:00Z\n"), {"charttime": "time"}
    )
    assert frame["charttime"].dt.hour.tolist() == [8, 10]
    with pytest.raises(DataError, match="offset in some rows only"):
        read(folder("charttime\n2026-07-01T10:00:00+02:00\n2026-07-01 10:00:00\n"), {"charttime": "time"})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("hadm_id,charttime\n7,2150-01-01\n", "no column valuenum, value, row_id"),
        ("hadm_id,HADM_ID\n7,8\n", "hadm_id more than once"),
        (
            CSV.replace(",80,80", ",80,eighty"),
            "Column valuenum of CHARTEVENTS.csv holds text in at least 1 rows",
        ),
        (CSV.replace("2150-01-01 08:00:00", "yesterday"), "Column charttime .* no time in at least 1 rows"),
        (CSV + "4,7,2150-01-01\n", "a row of 3 cells where the header has 5"),
        (CSV.encode("utf-16"), "CHARTEVENTS.csv"),
    ],
)
def test_what_does_not_fit_is_named_without_quoting_a_cell(folder, content, message):
    with pytest.raises(DataError, match=message) as error:
        read(folder(content))
    assert "eighty" not in str(error.value)
    assert "yesterday" not in str(error.value)


def test_a_file_cut_short_is_refused(folder, tmp_path):
    path = folder(CSV, "chartevents.csv.gz")
    file = path / "chartevents.csv.gz"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match=r"chartevents\.csv\.gz"):
        read(path)
    (path / "chartevents.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read(path)


def test_a_table_without_rows_is_noted(folder):
    account = ReadAccount()
    assert Tables(folder("hadm_id\n")).whole("chartevents", {"hadm_id": "id"}, account=account).empty
    assert account.notes == ["Table chartevents has no rows."]


def test_a_table_in_two_folders_is_refused_and_a_format_is_preferred(folder, tmp_path):
    path = folder(CSV, "icu/chartevents.csv")
    pd.DataFrame({"hadm_id": [9]}).to_parquet(path / "icu" / "chartevents.parquet")
    assert Tables(path).file("chartevents").suffix == ".parquet"
    folder(CSV, "old/chartevents.csv")
    with pytest.raises(DataError, match="stands in 2 folders"):
        Tables(path).file("chartevents")


def test_a_folder_without_tables_says_what_is_expected(tmp_path):
    with pytest.raises(DataError, match="No table in"):
        Tables(tmp_path)
    with pytest.raises(DataError, match="is no folder"):
        Tables(tmp_path / "nowhere")


def test_rows_that_are_left_are_counted():
    account = ReadAccount()
    frame = leave(pd.DataFrame({"a": [1, 2, 3]}), [True, False, True], account, "charts", "error")
    assert frame["a"].tolist() == [2]
    assert account.left == {("charts", "error"): 2}


@pytest.mark.data
def test_a_real_table_is_read_whole_in_any_pieces(data_dir):
    tables = Tables(data_dir / "mimic-iii-demo")
    columns = {"row_id": "key", "hadm_id": "id", "charttime": "time", "value": "text", "valuenum": "number"}
    one, many = (
        pd.concat(
            f.astype({"hadm_id": "str", "value": "str"}) for f in tables.stream("labevents", columns, rows=n)
        )
        for n in (100_000, 7_001)
    )
    pd.testing.assert_frame_equal(one, many)
    assert len(one) == 76_074
