"""CLIF tables become events: both versions alike, labs known when resulted, infusions by weight, nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from features.clean import clean, fill_available_time
from features.errors import DataError
from features.events import ENCOUNTER_COLUMNS, EVENT_COLUMNS, validate
from features.sources import clif
from features.sources.batch import ReadAccount

Write = Callable[..., Path]


@dataclass
class Reading:
    account: ReadAccount
    encounters: pd.DataFrame
    events: pd.DataFrame
    said: int

    def of(self, code: str) -> pd.DataFrame:
        found = self.events[self.events["code"] == code]
        return found.sort_values(["time", "source_id"], ignore_index=True)


def read(folder: Path, **how: Any) -> Reading:
    account, said = ReadAccount(), []
    found = list(clif.batches(folder, account, say=said.append, **how))
    events = pd.concat([b.events.astype(dict.fromkeys(TEXTS, "str")) for b in found], ignore_index=True)
    encounters = pd.concat([b.encounters for b in found if len(b.encounters)], ignore_index=True)
    return Reading(account, encounters, events, sum(said))


TEXTS = [c for c in EVENT_COLUMNS if c not in ("time", "available_time", "numeric_value")]


def at(hour: float, day: int = 1) -> str:
    """An instant of an invented stay that begins at hour 8 of the first of May."""
    return (pd.Timestamp(2026, 5, day, tz="UTC") + pd.Timedelta(hours=hour)).isoformat()


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Put tables into a folder, besides one patient with one hospitalization unless the test brings its own."""

    def put(suffix: str = "csv", **tables: list[dict[str, Any]]) -> Path:
        own = {
            "patient": [{"patient_id": "p", "sex_category": "Female", "death_dttm": None}],
            "hospitalization": [
                {
                    "patient_id": "p",
                    "hospitalization_id": "h",
                    "admission_dttm": at(8),
                    "discharge_dttm": at(8, 5),
                    "age_at_admission": 60,
                    "discharge_category": "Home",
                }
            ],
        }
        for name, rows in {**own, **tables}.items():
            table = pd.DataFrame(rows)
            path = tmp_path / f"clif_{name}.{suffix}"
            table.to_csv(path, index=False) if suffix == "csv" else table.to_parquet(path, index=False)
        return tmp_path

    return put


def vital(category: str, hour: float, value: float | None, stay: str = "h") -> dict[str, Any]:
    return {
        "hospitalization_id": stay,
        "recorded_dttm": at(hour),
        "vital_category": category,
        "vital_value": value,
    }


def dose(hour: float, amount: float | None, unit: str = "mcg/kg/min", **more: Any) -> dict[str, Any]:
    usual = {"med_category": "norepinephrine", "med_name": "Norepi", "mar_action_category": "dose_change"}
    row = {"hospitalization_id": "h", "admin_dttm": at(hour), "med_dose": amount, "med_dose_unit": unit}
    return {**row, **usual, **more}


def move(category: str, hour: float, until: float | None, kind: str | None = None) -> dict[str, Any]:
    return {
        "hospitalization_id": "h",
        "in_dttm": at(hour),
        "out_dttm": None if until is None else at(until),
        "location_category": category,
        "location_type": kind,
    }


def test_a_stay_tells_of_its_patient_and_its_ends(write: Write) -> None:
    found = read(write())
    stay = found.encounters.iloc[0]
    assert list(found.encounters) == list(ENCOUNTER_COLUMNS)
    assert (stay["encounter_id"], stay["subject_id"], stay["sex"], stay["age_years"]) == (
        "h",
        "p",
        "female",
        60,
    )
    assert stay["encounter_class"] == "ward"
    assert found.of("WARDCAST//hospital_discharge")["time"].tolist() == [pd.Timestamp(at(8, 5))]
    assert found.of("WARDCAST//location")["text_value"].tolist() == ["left"]


def test_moves_make_locations_and_one_end_of_intensive_care(write: Write) -> None:
    moves = [
        move("ED", 2, 8),
        move("ICU", 8, 20, "medical_icu"),
        move("icu", 20, 40, "surgical_icu"),
        move("L&D", 40, 60),
        move("psych", 60, None),
    ]
    found = read(write(adt=moves))
    stay = found.encounters.iloc[0]
    assert found.of("WARDCAST//location")["text_value"].tolist() == [
        "ed",
        "icu",
        "icu",
        "l&d",
        "other",
        "left",
    ]
    assert found.of("WARDCAST//icu_discharge")["time"].tolist() == [pd.Timestamp(at(40))]
    assert found.of("WARDCAST//ed_arrival")["time"].tolist() == [pd.Timestamp(at(2))]
    assert stay["encounter_class"] == "icu"
    assert stay["icu_type"] == "medical"
    assert stay["icu_admission_time"] == pd.Timestamp(at(8))
    assert stay["hospital_admission_time"] == pd.Timestamp(at(2)), (
        "the wait before the admission is part of it"
    )


def test_intensive_care_to_the_end_of_the_stay_ends_with_it(write: Write) -> None:
    found = read(write(adt=[move("icu", 8, None)]))
    assert found.of("WARDCAST//icu_discharge")["time"].tolist() == [pd.Timestamp(at(8, 5))]


def test_intensive_care_without_an_end_ends_as_the_next_place_begins(write: Write) -> None:
    found = read(write(adt=[move("icu", 8, None), move("icu", 12, None), move("ward", 20, None)]))
    assert found.of("WARDCAST//icu_discharge")["time"].tolist() == [pd.Timestamp(at(20))]


def test_who_was_in_the_emergency_department_only_is_of_that_class(write: Write) -> None:
    assert read(write(adt=[move("ed", 8, 12)])).encounters["encounter_class"].tolist() == ["ed"]


def test_a_lab_happens_when_collected_and_is_known_when_resulted(write: Write) -> None:
    def lab(collect: float | None, result: float | None, value: Any, number: Any) -> dict[str, Any]:
        return {
            "hospitalization_id": "h",
            "lab_order_dttm": at(9),
            "lab_collect_dttm": None if collect is None else at(collect),
            "lab_result_dttm": None if result is None else at(result),
            "lab_category": "lactate",
            "lab_value": value,
            "lab_value_numeric": number,
            "reference_unit": "mmol/L",
        }

    rows = [lab(10, 12, "2.1", 2.1), lab(11, 10.5, "3", 3.0), lab(12, None, "4", 4.0)]
    rows += [lab(13, 14, "hemolyzed", None), lab(14, 15, None, None), lab(None, 15, "5", 5.0)]
    found = read(write(labs=rows))
    lactate = found.of("CLIF//lactate")
    assert lactate["time"].tolist() == [pd.Timestamp(at(h)) for h in (10, 11, 12, 13)]
    known = lactate["available_time"]
    assert known.iloc[0] == pd.Timestamp(at(12))
    assert known.iloc[1:3].isna().all(), (
        "result before collection, or none: the policy of the concept decides"
    )
    assert lactate["text_value"].iloc[3] == "hemolyzed"
    assert lactate["unit"].tolist() == ["mmol/L"] * 4
    assert found.account.left["clif_labs", "no_value"] == 1
    assert found.account.left["clif_labs", "no_time"] == 1


def test_rates_are_divided_by_the_last_weight_known_then(write: Write) -> None:
    vitals = [vital("weight_kg", 9, 80.0), vital("weight_kg", 12, 100.0), vital("weight_kg", 9.5, 0.0)]
    doses = [
        dose(8.5, 8, "mcg/min"),
        dose(10, 8, "mcg/min"),
        dose(13, 8, "mcg/min"),
        dose(14, 0.1),
        dose(15, None, "mcg/min", mar_action_category="stop"),
    ]
    found = read(write(vitals=vitals, medication_admin_continuous=doses))
    rates = found.of("CLIF_DRUG//norepinephrine")
    assert rates["numeric_value"].tolist() == pytest.approx([0.1, 0.08, 0.1, 0.0])
    assert rates["unit"].tolist() == ["mcg/kg/min"] * 4
    assert rates["concept"].tolist() == ["norepinephrine"] * 4
    assert found.account.left["clif_medication_admin_continuous", "no_weight"] == 1


def test_a_change_of_bag_is_no_end(write: Write) -> None:
    doses = [
        dose(10, 0.1, mar_action_category="start"),
        dose(12, 0.2, mar_action_category="start"),
        dose(12, 0.0, mar_action_category="stop"),
    ]
    rates = read(write(medication_admin_continuous=doses)).of("CLIF_DRUG//norepinephrine")
    assert rates["numeric_value"].tolist() == [0.1, 0.0, 0.2], (
        "of one instant, the end stands first by its name"
    )


def test_entries_that_state_no_rate_and_other_drugs_are_counted(write: Write) -> None:
    doses = [
        dose(10, 0.1, mar_action_category="verify"),
        dose(11, None),
        dose(12, 5, "mL/hour", med_category="sodium chloride", med_name="NaCl"),
    ]
    found = read(write(medication_admin_continuous=doses))
    left = found.account.left
    table = "clif_medication_admin_continuous"
    assert (left[table, "states_no_rate"], left[table, "no_value"], left[table, "other_drug"]) == (1, 1, 1)


def test_antibiotics_given_are_events(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        clif, "antimicrobial", lambda name, route=None: "cure" if name == "cure" and route != "ear" else None
    )
    row = {"hospitalization_id": "h", "admin_dttm": at(10), "med_name": "Cure 1 g", "med_category": "Cure"}
    rows = [
        {**row, "mar_action_category": "given", "med_route_category": "iv"},
        {**row, "mar_action_category": "not_given", "med_route_category": "iv"},
        {**row, "mar_action_category": "given", "med_route_category": "ear"},
        {
            **row,
            "mar_action_category": "given",
            "med_route_category": "iv",
            "med_category": "salt",
            "med_name": "S",
        },
    ]
    running = [
        dose(11, 5, "mg/hour", med_category="cure", med_name="Cure drip", mar_action_category="start"),
        dose(12, 6, "mg/hour", med_category="cure", med_name="Cure drip"),
    ]
    found = read(write(medication_admin_intermittent=rows, medication_admin_continuous=running))
    given = found.of("CLIF_DRUG//cure")
    assert given["text_value"].tolist() == ["Cure 1 g", "Cure drip"]
    assert given["concept"].tolist() == ["antibiotic"] * 2
    assert given["numeric_value"].tolist() == [1.0, 1.0]
    left = found.account.left
    assert left["clif_medication_admin_intermittent", "not_given"] == 1
    assert left["clif_medication_admin_intermittent", "other_drug"] == 2
    assert left["clif_medication_admin_continuous", "antibiotic_goes_on"] == 1


def test_a_device_says_how_the_patient_breathes(write: Write) -> None:
    def row(hour: float, device: str | None, **more: Any) -> dict[str, Any]:
        usual = {"mode_category": None, "peep_set": None, "peep_obs": None}
        return {
            "hospitalization_id": "h",
            "recorded_dttm": at(hour),
            "device_category": device,
            **usual,
            **more,
        }

    rows = [
        row(9, "Room Air"),
        row(10, "NIPPV"),
        row(11, "IMV", peep_set=8.0, peep_obs=9.0),
        row(12, None, peep_set=10.0),
        row(13, "High Flow NC"),
        row(14, "Other"),
        row(15, None),
    ]
    found = read(write(respiratory_support=rows))
    device = found.of("CLIF//device_category")
    assert device["text_value"].tolist() == ["room air", "nippv", "imv", "high flow nc", "other"]
    assert device["concept"].unique().tolist() == ["oxygen_device"]
    assert found.of("WARDCAST//invasive_ventilation")["numeric_value"].tolist() == [0, 0, 1, 0]
    assert found.of("WARDCAST//noninvasive_ventilation")["numeric_value"].tolist() == [0, 1, 0, 0]
    assert found.of("WARDCAST//supplemental_oxygen")["numeric_value"].tolist() == [0, 1, 1, 1]
    assert found.of("CLIF//peep_set")["numeric_value"].tolist() == [8.0, 10.0]
    peep = pd.concat([found.of("CLIF//peep_set"), found.of("CLIF//peep_obs")])
    assert peep["source_id"].is_unique, "set and observed may be one concept"
    assert found.account.left["clif_respiratory_support", "no_value"] == 1


def test_assessments_keep_numbers_or_words(write: Write) -> None:
    row = {"hospitalization_id": "h", "recorded_dttm": at(10), "categorical_value": None, "text_value": None}
    rows = [
        {**row, "assessment_category": "RASS", "numerical_value": -2.0, "text_value": "-2 light sedation"},
        {**row, "assessment_category": "cam_total", "numerical_value": None, "categorical_value": "Positive"},
        {**row, "assessment_category": "gcs_eye", "numerical_value": None},
        {**row, "assessment_category": None, "numerical_value": 3.0},
    ]
    found = read(write(patient_assessments=rows))
    assert found.of("CLIF//rass")["numeric_value"].tolist() == [-2.0]
    assert found.of("CLIF//cam_total")["text_value"].tolist() == ["Positive"]
    assert found.account.left["clif_patient_assessments", "no_value"] == 1
    assert found.account.left["clif_patient_assessments", "no_code"] == 1


def test_growth_is_known_when_resulted(write: Write) -> None:
    def row(fluid: str, organism: str, method: str = "culture", result: float = 60) -> dict[str, Any]:
        return {
            "hospitalization_id": "h",
            "order_dttm": at(9),
            "collect_dttm": at(10),
            "result_dttm": at(result),
            "fluid_category": fluid,
            "method_category": method,
            "organism_category": organism,
        }

    rows = [
        row("blood_buffy", "escherichia_coli"),
        row("blood_buffy", "yeast", result=70),
        row("Feces/Stool", "no_growth"),
        row("feces_or_stool", "No Growth"),
        row("blood_buffy", "gram_negative_rod", method="gram_stain"),
    ]
    found = read(write(microbiology_culture=rows))
    by = {
        c: found.events[found.events["concept"] == c]
        for c in ("culture", "blood_culture", "positive_culture")
    }
    assert by["culture"]["text_value"].tolist() == ["blood_buffy", "feces_or_stool"], "once a specimen"
    assert len(by["blood_culture"]) == 1
    assert by["positive_culture"]["available_time"].tolist() == [pd.Timestamp(at(60)), pd.Timestamp(at(70))]
    assert by["positive_culture"]["time"].unique().tolist() == [pd.Timestamp(at(10))]
    left = found.account.left
    assert left["clif_microbiology_culture", "no_culture"] == 1
    assert left["clif_microbiology_culture", "same_specimen"] == 1


def test_a_specimen_is_one_in_pieces_of_any_length(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"hospitalization_id": "h", "collect_dttm": at(10), "result_dttm": at(60), "fluid_category": "csf"}
    rows = [{**row, "method_category": "culture", "organism_category": "no_growth"} for _ in range(3)]
    folder = write(suffix="parquet", microbiology_culture=rows)
    stream = clif.Tables.stream
    monkeypatch.setattr(
        clif.Tables,
        "stream",
        lambda self, name, columns, **how: stream(self, name, columns, **{**how, "rows": 1}),
    )
    found = read(folder)
    assert (found.events["concept"] == "culture").sum() == 1
    assert found.account.left["clif_microbiology_culture", "same_specimen"] == 2


def test_dialysis_and_urine(write: Write) -> None:
    crrt = [{"hospitalization_id": "h", "recorded_dttm": at(10), "crrt_mode_category": "CVVHDF"}]
    out = {"hospitalization_id": "h", "recorded_dttm": at(11), "output_value": 300.0}
    outputs = [
        {**out, "output_category": "urethral", "output_group": "urine", "output_unit": "mL"},
        {**out, "output_category": "stool", "output_group": "gi", "output_unit": "occurrences"},
    ]
    found = read(write(crrt_therapy=crrt, output=outputs))
    assert found.of("CLIF//crrt_therapy")[["concept", "numeric_value", "text_value"]].values.tolist() == [
        ["renal_replacement", 1.0, "cvvhdf"]
    ]
    assert found.of("CLIF//urethral")["concept"].tolist() == ["urine_output"]
    assert found.of("CLIF//stool")["concept"].isna().all()


def test_death_in_hospital_is_at_its_end_and_a_later_one_is_none(write: Write) -> None:
    stay = {"patient_id": "p", "age_at_admission": 60}
    stays = [
        {
            **stay,
            "hospitalization_id": "h1",
            "admission_dttm": at(8),
            "discharge_dttm": at(20),
            "discharge_category": "Home",
        },
        {
            **stay,
            "hospitalization_id": "h2",
            "admission_dttm": at(8, 9),
            "discharge_dttm": at(20, 9),
            "discharge_category": "Expired",
        },
    ]
    people = [{"patient_id": "p", "sex_category": "male", "death_dttm": at(5, 9)}]
    death = read(write(patient=people, hospitalization=stays)).of("WARDCAST//death")
    assert death["encounter_id"].tolist() == ["h2"]
    assert death["time"].tolist() == [pd.Timestamp(at(20, 9))], (
        "a date alone would put it before his last facts"
    )


def test_rows_of_nobody_of_no_time_and_of_other_years_are_counted(write: Write) -> None:
    rows = [
        vital("heart_rate", 10, 80.0),
        vital("heart_rate", 10, 80.0, stay="nobody"),
        vital("heart_rate", 10, None),
        {**vital("heart_rate", 10, 80.0), "recorded_dttm": None},
        {**vital("heart_rate", 10, 80.0), "recorded_dttm": "1926-05-01T10:00:00Z"},
        {**vital("heart_rate", 10, 80.0), "vital_category": None},
    ]
    found = read(write(vitals=rows))
    left = {reason: n for (table, reason), n in found.account.left.items() if table == "clif_vitals"}
    assert left == {"no_encounter": 1, "no_value": 1, "no_time": 1, "outside_stay": 1, "no_code": 1}
    assert found.account.events["clif_vitals"] == 1
    assert found.said == sum(found.account.rows.values())


def test_tables_that_are_not_read_are_named(write: Write) -> None:
    position = [{"hospitalization_id": "h", "recorded_dttm": at(9), "position_category": "prone"}]
    notes = " ".join(read(write(position=position)).account.notes)
    assert "Not read, as no concept needs them: position." in notes
    assert "vitals" in notes


@pytest.mark.parametrize("words", ["High Flow NC", "hfnc", " high_flow_nc"])
def test_both_spellings_are_one_category(words: str) -> None:
    assert clif.unified(words) == "hfnc"


def test_csv_and_parquet_give_the_same(write: Write, tmp_path: Path) -> None:
    rows = [vital("heart_rate", h, 60.0 + h) for h in range(9, 20)]
    one = read(write(vitals=rows))
    for file in tmp_path.iterdir():
        file.unlink()
    two = read(write(suffix="parquet", vitals=rows))
    pd.testing.assert_frame_equal(one.events, two.events)
    pd.testing.assert_frame_equal(one.encounters, two.encounters)


def test_a_folder_without_hospitalizations_is_refused(tmp_path: Path) -> None:
    pd.DataFrame({"patient_id": ["p"]}).to_csv(tmp_path / "clif_patient.csv", index=False)
    with pytest.raises(DataError, match="clif_hospitalization"):
        read(tmp_path)


def test_words_among_the_numbers_are_refused_without_showing_them(write: Write) -> None:
    rows = [vital("heart_rate", 9, 80.0), {**vital("heart_rate", 10, None), "vital_value": "Smith"}]
    with pytest.raises(DataError, match=r"vital_value.*numbers were expected") as refusal:
        read(write(vitals=rows))
    assert "Smith" not in str(refusal.value)


def test_a_missing_column_is_named(write: Write) -> None:
    with pytest.raises(DataError, match="vital_category"):
        read(write(vitals=[{"hospitalization_id": "h", "recorded_dttm": at(9), "vital_value": 1.0}]))


def test_a_hospitalization_stands_once(write: Write) -> None:
    row = {
        "patient_id": "p",
        "hospitalization_id": "h",
        "admission_dttm": at(8),
        "discharge_dttm": at(9),
        "age_at_admission": 1,
        "discharge_category": "Home",
    }
    with pytest.raises(DataError, match="repeats an identifier in 1 rows"):
        read(write(hospitalization=[row, row]))


def test_an_unknown_time_zone_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match="no time zone 'Mars/Olympus'"):
        read(write(), timezone="Mars/Olympus")


@pytest.fixture(scope="module")
def demo(data_dir: Path) -> tuple[Reading, Reading]:
    """The MIMIC-IV demo in both versions."""
    folder = data_dir / "mimic-iv-demo-clif"
    return read(folder / "clif-2.1"), read(folder / "clif-3.0")


@pytest.mark.data
def test_both_versions_of_the_same_patients_give_the_same_events(demo: tuple[Reading, Reading]) -> None:
    old, new = demo
    pd.testing.assert_frame_equal(old.events, new.events)
    pd.testing.assert_frame_equal(old.encounters, new.encounters)
    assert old.account.left == new.account.left


@pytest.mark.data
def test_every_row_of_the_demo_makes_events_or_is_counted(demo: tuple[Reading, Reading]) -> None:
    found = demo[0]
    named = found.events["source_id"].str.extract(
        r"^(?P<table>clif_[a-z_]+)(?:\.[a-z0-9_]+)?(?::[01])?:(?P<row>\d+)$"
    )
    assert named.notna().all(axis=None)
    used = named.drop_duplicates().groupby("table").size()
    for table, rows in found.account.rows.items():
        left = sum(n for (name, _), n in found.account.left.items() if name == table)
        assert used.get(table, 0) + left == rows, table
    assert found.said == sum(found.account.rows.values())
    assert sum(found.account.events.values()) == len(found.events)


@pytest.mark.data
def test_the_demo_is_mapped_and_lies_inside_its_stays(demo: tuple[Reading, Reading]) -> None:
    found = demo[1]
    usable, account = clean(found.events)
    assert account.mapped / account.read > 0.85
    assert account.reasons.get("unit_unknown", 0) == 0
    filled, _ = fill_available_time(usable)
    validate(filled)
    assert (filled["available_time"] >= filled["time"]).all()
    begun = found.encounters.set_index("encounter_id")["hospital_admission_time"]
    before = found.events["time"] < found.events["encounter_id"].map(begun)
    assert before.mean() < 1e-4
    assert found.events["subject_id"].nunique() == 100
    assert not found.events.duplicated(["encounter_id", "code", "concept", "source_id"]).any()


@pytest.mark.data
def test_reading_the_demo_again_gives_the_same(demo: tuple[Reading, Reading], data_dir: Path) -> None:
    again = read(data_dir / "mimic-iv-demo-clif" / "clif-2.1")
    pd.testing.assert_frame_equal(again.events, demo[0].events)
