"""A site's own data: every row accounted for, what a model lacks said with numbers, onsets and features as worked out.

The hospital of four in ``tests/golden/own_data`` says what must come out; its README works it out.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from features import archive, cohorts, streams
from features.errors import ConfigError, DataError, SpecError
from features.sources import tables as source_tables
from features.sources import visits
from features.sources.batch import ReadAccount
from features.sources.registry import READERS, reader
from models.spec import Spec
from training import building, datasets, labelling, layouts

SPEC = """
[model]
name = "small"
[scope]
encounter_classes = ["icu"]
[features]
scores = ["sirs_partial"]
[[features.group]]
concepts = ["heart_rate", "platelets", "creatinine"]
statistics = ["last", "max_24h"]
"""


@pytest.fixture(scope="module")
def hospital(repo: Path) -> Path:
    return repo / "tests" / "golden" / "own_data"


@pytest.fixture(scope="module")
def converted(hospital: Path, tmp_path_factory: pytest.TempPathFactory) -> datasets.Converted:
    return datasets.convert("mimic3", hospital, tmp_path_factory.mktemp("own") / "archive")


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(SPEC)
    return path


# ---- convert ---------------------------------------------------------------------------------------------------


def test_every_row_is_an_event_or_counted_with_its_reason(converted: datasets.Converted) -> None:
    account = converted.account
    assert (account.encounters, account.subjects, account.orphans) == (4, 4, 0)
    assert account.source.rows["chartevents"] == 27
    assert dict(account.source.left) == {
        ("chartevents", "error"): 1,
        ("labevents", "no_value"): 1,
        ("labevents", "no_encounter"): 1,
        ("prescriptions", "not_antimicrobial"): 1,
    }
    assert account.read == account.written + 1  # a heart rate of 999
    assert account.by_code[("MIMIC_CHART//223761", "temperature")]["converted"] == 1


def test_the_account_names_reasons_and_unmapped_codes_and_nobody(converted: datasets.Converted) -> None:
    said = converted.summary()
    assert "4 encounters of 4 persons, 61 events" in said
    assert "no_encounter 1" in said
    assert "MIMIC_CHART//999999  2" in said
    told = converted.to_json()
    assert told["source"] == "mimic3"
    assert {"code": "MIMIC_CHART//999999", "concept": "", "read": 2, "unknown_concept": 2} in told["by_code"]


def test_unmapped_codes_are_called_what_the_dictionary_of_the_source_calls_them(
    hospital: Path, spec: Path, tmp_path: Path
) -> None:
    extract = shutil.copytree(hospital, tmp_path / "extract")
    (extract / "D_ITEMS.csv").write_text("ROW_ID,ITEMID,LABEL\n1,999999,Heart Rhythm\n2,5,\n")
    made = datasets.convert("mimic3", extract, tmp_path / "archive")
    assert "MIMIC_CHART//999999  Heart Rhythm  2" in made.summary()
    found = datasets.check(made.folder, spec=spec)
    assert isinstance(found, datasets.Checked)
    assert "MIMIC_CHART//999999  Heart Rhythm  2" in found.summary()
    codes = pq.read_table(made.folder / "metadata" / "codes.parquet").to_pylist()
    assert [c["description"] for c in codes if c["code"] == "MIMIC_CHART//999999"] == ["Heart Rhythm"]


def test_the_account_is_saved_as_json(converted: datasets.Converted, tmp_path: Path) -> None:
    datasets.write_account(converted, tmp_path / "new" / "account.json")
    assert json.loads((tmp_path / "new" / "account.json").read_text()) == converted.to_json()


def test_the_same_source_twice_gives_the_same_bytes(
    converted: datasets.Converted, hospital: Path, tmp_path: Path
) -> None:
    again = datasets.convert("mimic3", hospital, tmp_path / "again", threads=2).folder
    files = sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    assert len(files) >= 5
    assert all((again / f).read_bytes() == (converted.folder / f).read_bytes() for f in files)


def test_parquet_and_meds_give_the_events_that_csv_gives(
    converted: datasets.Converted, hospital: Path, tmp_path: Path
) -> None:
    for file in hospital.glob("*.csv"):
        pd.read_csv(file, dtype="str").to_parquet(tmp_path / f"{file.stem.lower()}.parquet")
    same = datasets.convert("mimic3", tmp_path, tmp_path / "same").folder
    again = datasets.convert("meds", converted.folder, tmp_path / "again").folder
    first, second, third = (
        pq.read_table(folder / "data" / "00000.parquet") for folder in (converted.folder, same, again)
    )
    assert first.equals(second)
    assert first.drop_columns("arrival").equals(third.drop_columns("arrival"))


def test_only_an_archive_is_replaced_and_only_when_asked(hospital: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("ten years")
    for overwrite in (False, True):
        with pytest.raises(DataError, match="no archive"):
            datasets.convert("mimic3", hospital, mine, overwrite=overwrite)
    assert (mine / "thesis.txt").read_text() == "ten years"
    kept = tmp_path / "archive"
    datasets.convert("mimic3", hospital, kept)
    with pytest.raises(DataError, match="--overwrite"):
        datasets.convert("mimic3", hospital, kept)
    with pytest.raises(DataError, match="person, visit_occurrence"):
        datasets.convert("omop", hospital, kept, overwrite=True)
    assert archive.about(kept)["account"]["encounters"] == 4  # a failed run leaves what was there
    assert datasets.convert("mimic3", hospital, kept, overwrite=True).account.encounters == 4
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_mistakes_are_named_before_anything_is_read(hospital: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for options, match in (
        ({"source": "epic"}, "Choose one of"),
        ({"path": tmp_path / "nowhere"}, "nothing at"),
        ({"mapping": tmp_path / "nowhere.toml"}, "nothing at"),
        ({"timezone": "Mars/Olympus"}, "no time zone"),
        ({"output": hospital / "ADMISSIONS.csv"}, "is a file"),
    ):
        asked = {"source": "mimic3", "path": hospital, "output": out} | options
        with pytest.raises(DataError, match=match):
            datasets.convert(**asked)
    assert not out.exists()


# ---- check -----------------------------------------------------------------------------------------------------


def test_what_the_model_reads_is_counted_in_its_scope(converted: datasets.Converted, spec: Path) -> None:
    found = datasets.check(converted.folder, spec=spec)
    assert isinstance(found, datasets.Checked)
    assert found.classes == {"icu": 2, "ward": 2}
    assert found.encounters == 2
    table = found.table.set_index("concept")
    assert table.loc["heart_rate", ["events", "encounters", "verdict"]].tolist() == [20, 2, "ok"]
    assert table.loc["creatinine", "share"] == 0.5
    # Whatever only a partial score reads may be missing, as it may be for the score.
    assert table.loc["wbc", "verdict"] == "optional"
    assert found.ok
    assert found.verdict().startswith("Verdict: complete.")


def test_an_absent_concept_fails_the_check_and_says_how_much_it_matters(
    converted: datasets.Converted,
) -> None:
    found = datasets.check(converted.folder)
    assert isinstance(found, datasets.Checked)
    assert not found.ok
    assert found.lost == 211
    assert found.gain is not None
    assert 0.3 < found.gain < 0.9
    said = found.summary()
    assert "Verdict: incomplete." in said
    assert "211 of 259 features would always be missing" in said
    assert "MIMIC_CHART//999999" in said


def test_an_extract_is_checked_without_being_kept(
    converted: datasets.Converted, hospital: Path, spec: Path
) -> None:
    direct = datasets.check(hospital, source="mimic3", spec=spec)
    kept = datasets.check(converted.folder, spec=spec)
    assert direct.summary() == kept.summary()
    with pytest.raises(DataError, match="--source"):
        datasets.check(hospital)
    with pytest.raises(ConfigError, match="not both"):
        datasets.check(converted.folder, spec=spec, model="released:sepsis")


def visit_rows(days: int) -> pd.DataFrame:
    came = pd.date_range("2026-01-01T08:00", periods=days, freq="D")
    return pd.DataFrame(
        {"ARRIVED": came, "admitted": came + pd.Timedelta(hours=3), "Discharge": came + pd.Timedelta(days=2)}
    )


def test_visits_are_checked_for_the_bed_forecast(tmp_path: Path) -> None:
    for days, ok, verdict in ((30, False, "too short"), (100, True, "usable"), (400, True, "usable")):
        path = tmp_path / f"{days}.csv"
        visit_rows(days).to_csv(path, index=False)
        found = datasets.check(path, source="visits")
        assert found.ok is ok
        assert f"Verdict: {verdict}" in found.summary()
        assert "one forecast for the whole hospital" in found.summary()
    assert "A year" not in found.summary()


def test_missing_columns_of_visits_are_named_with_their_spellings(tmp_path: Path) -> None:
    path = tmp_path / "visits.csv"
    visit_rows(100).drop(columns="ARRIVED").to_csv(path, index=False)
    found = datasets.check(path, source="visits")
    assert not found.ok
    assert "lack arrival_time" in found.summary()
    assert "ed_arrival" in found.summary()


# ---- label -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "units", "onset"),
    [
        ("mimic_code", ["100", "200"], "2150-03-01 16:00"),
        ("ricu", ["100", "200"], "2150-03-01 16:00"),
        ("seymour_2016", ["100", "200", "400"], "2150-03-01 15:00"),
        ("physionet_2019", ["100", "200"], None),  # no course of 72 hours
    ],
)
def test_onsets_are_those_worked_out(
    converted: datasets.Converted, tmp_path: Path, preset: str, units: list[str], onset: str | None
) -> None:
    made = labelling.label(converted.folder, tmp_path / "l.parquet", preset=preset)
    table = pd.read_parquet(tmp_path / "l.parquet").sort_values("encounter_id")
    assert table["encounter_id"].tolist() == units
    assert table["subject_id"].tolist() == [u[0] for u in units]
    wanted = [] if onset is None else [pd.Timestamp(onset, tz="UTC")]
    assert table.loc[table["sepsis"], "onset_time"].tolist() == wanted
    assert str(table["sofa_at_onset"].dtype) == "float64"
    assert f"{len(wanted)} of {len(units)}" in made.summary()
    assert made.attrition.loc[1].tolist() == ["age 18 years or more", 1, 3, 3]
    last, kept = made.attrition.iloc[-1], made.attrition["encounters"].iloc[-2]
    assert last["rule"] == labelling.SCORED
    assert (last["left_out"], last["encounters"]) == (kept - len(units), len(units))
    assert labelling.SCORED in made.summary()


def test_who_was_never_scored_stands_in_the_attrition() -> None:
    table = pd.DataFrame({"encounter_id": ["1", "2", "3"], "subject_id": ["a", "a", "b"]})
    counted = pd.DataFrame([("all", 0, 3, 2)], columns=["rule", "left_out", "encounters", "subjects"])
    units = pd.DataFrame({"encounter_id": ["1", "1"], "subject_id": ["a", "a"]})
    told = labelling._with_unscored(cohorts.Cohort(table, counted), units)
    assert told.iloc[-1].tolist() == [labelling.SCORED, 2, 1, 1]


def test_coded_sepsis_stands_beside_with_intervals(
    converted: datasets.Converted, hospital: Path, tmp_path: Path
) -> None:
    made = labelling.label(converted.folder, tmp_path / "l.parquet", diagnoses=hospital)
    assert made.report is not None
    assert made.report.set_index("definition").loc["coded sepsis", ["positive", "of", "shared"]].tolist() == [
        1,
        2,
        1,
    ]
    assert "1 of 2 ICU stays, 50.0% (9.5%–90.5%)" in made.summary()


def test_without_cultures_nobody_is_called_healthy(hospital: Path, tmp_path: Path, repo: Path) -> None:
    fewer = tmp_path / "fewer"
    shutil.copytree(hospital, fewer)
    (fewer / "MICROBIOLOGYEVENTS.csv").unlink()
    datasets.convert("mimic3", fewer, tmp_path / "archive")
    with pytest.raises(DataError, match="no culture"):
        labelling.label(tmp_path / "archive", tmp_path / "l.parquet")
    assert not (tmp_path / "l.parquet").exists()


def test_labels_refuse_what_does_not_fit(
    converted: datasets.Converted, hospital: Path, tmp_path: Path
) -> None:
    out = tmp_path / "l.parquet"
    with pytest.raises(SpecError, match="mimic_code"):
        labelling.label(converted.folder, out, preset="sepsis-2")
    with pytest.raises(DataError, match="diagnoses_icd"):
        labelling.label(converted.folder, out, diagnoses=converted.folder)
    others = tmp_path / "others"
    others.mkdir()
    (others / "diagnoses_icd.csv").write_text("hadm_id,icd9_code\n7,99591\n")
    with pytest.raises(DataError, match="same source"):
        labelling.label(converted.folder, out, diagnoses=others)
    out.write_text("mine")
    with pytest.raises(DataError, match="exists"):
        labelling.label(converted.folder, out)


# ---- features --------------------------------------------------------------------------------------------------


def test_features_are_built_from_the_icu_admission_on(
    converted: datasets.Converted, spec: Path, tmp_path: Path
) -> None:
    made = building.build(converted.folder, tmp_path / "f", "hourly", start="icu", spec=spec)
    # 43 hours and 10 hours, both ends included; two were never there.
    assert (made.account.predictions, made.account.left) == (44 + 11, Counter(no_start=2))
    table = streams.read_features(tmp_path / "f").to_pandas()
    late = table[
        (table["encounter_id"] == "100") & (table["prediction_time"] == pd.Timestamp("2150-03-02T00:00Z"))
    ]
    # Charted at 23:00, stored at 23:05; 40 platelets of 16:00 known an hour later by policy.
    assert late[["heart_rate__last", "platelets__last"]].iloc[0].tolist() == [113, 40]
    manifest = json.loads((tmp_path / "f" / building.MANIFEST).read_text())
    assert manifest["names"] == list(Spec.load(spec).features.names)
    assert manifest["made"]["predictions"] == 55
    assert f"Manifest: {tmp_path / 'f' / building.MANIFEST}" in made.summary()


def test_features_at_events_and_at_a_list(converted: datasets.Converted, spec: Path, tmp_path: Path) -> None:
    assert (
        building.build(converted.folder, tmp_path / "e", "events:platelets", spec=spec).account.predictions
        == 2
    )
    times = pd.DataFrame({"encounter_id": ["200"], "prediction_time": [pd.Timestamp("2150-03-01T12:00Z")]})
    times.to_parquet(tmp_path / "at.parquet")
    made = building.build(converted.folder, tmp_path / "l", str(tmp_path / "at.parquet"), spec=spec)
    assert made.account.predictions == 1
    assert streams.read_features(tmp_path / "l")["heart_rate__last"].to_pylist() == [70]


def test_features_refuse_what_does_not_fit(converted: datasets.Converted, spec: Path, tmp_path: Path) -> None:
    def build(**options: object) -> None:
        building.build(converted.folder, tmp_path / "f", **({"at": "hourly", "spec": spec} | options))  # type: ignore[arg-type]

    for options, match in (
        ({"engine": "spark"}, "local or dask"),
        ({"scheduler": "tcp://127.0.0.1:1"}, "--engine dask"),
        ({"at": "events:lactate", "start": "icu"}, "--start"),
    ):
        with pytest.raises(ConfigError, match=match):
            build(**options)
    build()
    with pytest.raises(DataError, match="not an empty folder"):
        build()


def test_the_bed_forecast_adds_its_calendar_itself(converted: datasets.Converted, tmp_path: Path) -> None:
    made = building.build(converted.folder, tmp_path / "f", "4h", model="released:admissions")
    assert "hour_of_day" in made.summary()


# ---- layouts ---------------------------------------------------------------------------------------------------

ASKED = dict[str, list[tuple[set[str], set[str]]]]


def asked_of_tables(source: str, folder: Path, without: tuple[str, ...] = ()) -> ASKED:
    """Which columns the reader asks of each table that layouts.csv names, when all of them are there."""
    calls: ASKED = {}
    real = source_tables.Tables.stream

    def stream(self, name, columns, *, optional=(), **rest):  # type: ignore[no-untyped-def]
        calls.setdefault(name, []).append((set(columns) - set(optional), set(optional) & set(columns)))
        return real(self, name, columns, optional=optional, **rest)

    for table in layouts.tables()[source]:
        if table.name in without:
            continue
        columns = [*table.required, *table.optional]
        whole = table.must_exist or table.name == "drug_exposure"
        with (folder / f"{table.name}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([columns, *([[cell(c) for c in columns]] if whole else [])])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_tables.Tables, "stream", stream)
        for _ in reader(source)(folder, ReadAccount()):
            pass
    return calls


def cell(column: str) -> str:
    """Something that every kind of column takes."""
    dated = ("time", "date", "dttm", "dob", "datetime")
    return "2150-01-01 10:00" if column.endswith(dated) else "1"


@pytest.mark.parametrize("source", sorted(layouts.tables()))
def test_layouts_name_what_the_readers_ask_for(source: str, tmp_path: Path) -> None:
    calls = asked_of_tables(source, tmp_path)
    named = {t.name: t for t in layouts.tables()[source]}
    assert set(calls) == set(named)
    for name, asked in calls.items():
        required, _ = max(asked, key=lambda call: len(call[0] | call[1]))
        everything = set[str]().union(*(one | two for one, two in asked))
        told = {*named[name].required, *named[name].optional}
        assert set(named[name].required) == required, name
        # A pharmacy is asked for more where it stands alone; see below.
        assert everything == told or (everything < told and name == "pharmacy"), name


def test_a_pharmacy_alone_is_described_too(tmp_path: Path) -> None:
    calls = asked_of_tables("mimic4", tmp_path, without=("prescriptions",))
    pharmacy = next(t for t in layouts.tables()["mimic4"] if t.name == "pharmacy")
    assert set[str]().union(*(a | b for a, b in calls["pharmacy"])) <= {
        *pharmacy.required,
        *pharmacy.optional,
    }


@pytest.mark.parametrize("source", sorted(layouts.tables()))
def test_the_tables_that_must_exist_are_those_a_reader_insists_on(source: str, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a\n1\n")
    needed = [t.name for t in layouts.tables()[source] if t.must_exist]
    with pytest.raises(DataError, match=f"lacks the tables {', '.join(needed)}"):
        list(reader(source)(tmp_path, ReadAccount()))


@pytest.mark.parametrize("name", [*READERS, *layouts.OURS])
def test_every_layout_is_described(name: str) -> None:
    said = layouts.schema(name)
    assert said.startswith(f"{name}: ")
    assert len(said.splitlines()) > 5
    assert ":mod:" not in said
    assert "``" not in said
    assert name in layouts.schema()


def test_the_columns_of_visits_and_events_are_all_named() -> None:
    said = layouts.schema("visits")
    assert all(c in said for c in visits.VISIT_COLUMNS)
    assert all(f"{c}*" in said for c in visits.REQUIRED)
    assert all(f.name in layouts.schema("archive") for f in archive.DATA)
    with pytest.raises(DataError, match="Choose one of"):
        layouts.schema("epic")


def test_numbers_stand_to_the_right_and_nothing_is_cut() -> None:
    assert (
        layouts.aligned([("a", 1234), ("long", 5)], ("what", "n")) == "what      n\na     1,234\nlong      5"
    )


# ---- real patients ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> datasets.Converted:
    return datasets.convert(
        "mimic3", data_dir / "mimic-iii-demo", tmp_path_factory.mktemp("demo") / "m3", threads=2
    )


@pytest.mark.data
def test_the_mimic_iii_demo_from_tables_to_features(
    demo: datasets.Converted, data_dir: Path, tmp_path: Path
) -> None:
    account = demo.account
    assert (account.encounters, account.subjects) == (129, 100)
    assert account.source.rows["chartevents"] == 758_355
    assert account.source.rows["labevents"] == 76_074
    assert demo.seconds < 120
    found = datasets.check(demo.folder)
    assert isinstance(found, datasets.Checked)
    assert found.table.set_index("concept").loc["heart_rate", "share"] > 0.9
    absent = set(found.table.loc[found.table["verdict"] == "absent", "concept"])
    assert absent <= {"etco2"}
    made = labelling.label(demo.folder, tmp_path / "l.parquet", diagnoses=data_dir / "mimic-iii-demo")
    assert made.report is not None
    report = made.report.set_index("definition")
    assert report.loc["coded angus", "positive"] == 58
    assert 0.40 < report.loc["mimic_code", "share"] < 0.65
    built = building.build(demo.folder, tmp_path / "f", "hourly", start="icu", threads=2)
    assert built.account.encounters == 129
    assert 10_000 < built.account.predictions < 20_000
    assert (
        sum(pq.read_metadata(f).num_rows for f in (tmp_path / "f").glob("part-*"))
        == built.account.predictions
    )
    assert built.seconds < 120
