"""eICU: minutes without dates become events, case by case, and every row of the real demo is accounted for."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from features.clean import clean, fill_available_time
from features.errors import DataError
from features.events import validate
from features.sources.eicu import ages, read_numbers, units_of

UNIT_ADMISSION = pd.Timestamp("2000-01-01T00:00Z")


def after(minutes: float) -> pd.Timestamp:
    return UNIT_ADMISSION + pd.Timedelta(minutes=minutes)


def stay(**changes) -> dict:
    """Ten hours in hospital, then two days in the unit, then three on the ward."""
    return {
        "patientunitstayid": 7, "uniquepid": "002-1", "gender": "Male", "age": "61", "hospitalid": 59,
        "unittype": "MICU", "unitstaytype": "admit", "hospitaladmitoffset": -600, "hospitaldischargeoffset": 7200,
        "hospitaldischargestatus": "Alive", "unitdischargeoffset": 2880, "unitdischargelocation": "Floor",
        "unitdischargestatus": "Alive", "admissionweight": 80, "admissionheight": 170, "dischargeweight": "",
        **changes,
    }  # fmt: skip


@pytest.fixture
def tell(database, tell_all):
    def read(patient: list | None = None, **tables):
        return tell_all("eicu", database({"patient": patient or [stay()], **tables}))

    return read


def test_a_unit_stay_is_an_encounter_of_its_person(tell):
    told = tell()
    (row,) = told.encounters.to_dict("records")
    assert (row["encounter_id"], row["subject_id"], row["encounter_class"]) == ("7", "002-1", "icu")
    assert (row["unit"], row["icu_type"], row["sex"]) == ("hospital 59, MICU", "medical", "male")
    assert row["icu_admission_time"] == UNIT_ADMISSION
    assert row["hospital_admission_time"] == after(-600)
    assert told.of("WARDCAST//location")["text_value"].tolist() == ["icu", "ward", "left"]
    assert told.of("WARDCAST//icu_discharge")["time"].tolist() == [after(2880)]
    assert told.of("WARDCAST//hospital_discharge")["time"].tolist() == [after(7200)]
    assert told.of("WARDCAST//death").empty


@pytest.mark.parametrize(
    ("changes", "when"),
    [
        ({"unitdischargestatus": "Expired", "unitdischargelocation": "Death"}, 2880),
        ({"hospitaldischargestatus": "Expired"}, 7200),
    ],
)
def test_a_death_is_timed_at_the_discharge_it_ends(tell, changes, when):
    told = tell([stay(**changes)])
    assert told.of("WARDCAST//death")["time"].tolist() == [after(when)]
    assert told.of("WARDCAST//location")["text_value"].iloc[-1] == "left"


def test_a_stepdown_stay_is_not_intensive_care(tell):
    told = tell([stay(unitstaytype="stepdown/other")])
    assert told.encounters["encounter_class"].tolist() == ["ward"]
    assert told.encounters["icu_admission_time"].isna().all()
    assert told.of("WARDCAST//location")["text_value"].iloc[0] == "stepdown"
    assert told.of("WARDCAST//icu_discharge").empty


def test_a_hidden_age_is_ninety():
    assert ages(pd.Series(["61", "> 89", None, "?"])).tolist()[:2] == [61.0, 90.0]
    assert np.isnan(ages(pd.Series(["61", "> 89", None, "?"]))[2:]).all()


def test_a_result_is_visible_when_it_was_revised(tell):
    lab = {
        "patientunitstayid": 7, "labname": "creatinine", "labresult": 1.1, "labresulttext": "1.1",
        "labmeasurenamesystem": "mg/dL", "labresultoffset": 30,
    }  # fmt: skip
    told = tell(
        lab=[
            {**lab, "labid": 1, "labresultrevisedoffset": 75},
            {**lab, "labid": 2, "labresultrevisedoffset": 30},
            {**lab, "labid": 5, "labresultrevisedoffset": 20},
            {**lab, "labid": 3, "labresultrevisedoffset": 75, "labresult": "", "labresulttext": "<0.5"},
            {**lab, "labid": 4, "labresultrevisedoffset": 75, "labresult": "", "labresulttext": ""},
        ]
    )
    rows = told.of("EICU_LAB//creatinine")
    assert rows["time"].tolist() == [after(30)] * 4
    # Hospitals that send one time for both do not say when the result came: the policy of the concept decides.
    assert rows["available_time"].tolist() == [after(75), pd.NaT, after(75), pd.NaT]
    assert rows["text_value"].fillna("").tolist() == ["", "", "<0.5", ""]
    assert told.left("lab") == {"no_value": 1}


def test_each_filled_cell_of_the_vital_signs_is_an_event(tell):
    row = {"patientunitstayid": 7, "observationoffset": 5}
    told = tell(
        vitalPeriodic=[
            {**row, "vitalperiodicid": 1, "heartrate": 80, "sao2": "", "temperature": 37.1},
            {**row, "vitalperiodicid": 2, "heartrate": "", "sao2": "", "temperature": ""},
            {
                **row,
                "vitalperiodicid": 3,
                "heartrate": 81,
                "sao2": 97,
                "temperature": "",
                "observationoffset": "",
            },
        ],
        vitalAperiodic=[{**row, "vitalaperiodicid": 1, "noninvasivesystolic": 120, "noninvasivemean": ""}],
    )
    assert told.events.loc[told.events["code"].str.startswith("EICU_VITAL"), "code"].tolist() == [
        "EICU_VITAL//temperature", "EICU_VITAL//heartrate", "EICU_VITAL//noninvasivesystolic",
    ]  # fmt: skip
    assert told.left("vitalperiodic") == {"no_value": 1, "no_time": 1}


def rate(key: int, drug: str, value: object, minutes: int = 60, **changes) -> dict:
    return {
        "infusiondrugid": key, "patientunitstayid": 7, "infusionoffset": minutes, "drugname": drug, "drugrate": value,
        "patientweight": "", **changes,
    }  # fmt: skip


def test_an_infusion_carries_the_unit_its_name_ends_with(tell):
    told = tell(
        infusiondrug=[
            rate(1, "Norepinephrine (mcg/kg/min)", 0.1),
            rate(2, "Norepinephrine ()", 5),
            rate(3, "Vasopressin (units/min)", "OFF"),
            rate(4, "Vasopressin (units/min)", ""),
        ]
    )
    rows = told.events[told.events["code"].str.startswith("EICU_INFUSION")]
    assert rows["unit"].fillna("").tolist() == ["mcg/kg/min", "", "units/min"]
    assert rows["text_value"].fillna("").tolist() == ["", "", "OFF"]
    assert told.left("infusiondrug") == {"no_value": 1}


def test_a_rate_per_minute_is_divided_by_the_weight_on_its_row_or_the_latest_known(tell):
    drug = "Norepinephrine (mcg/min)"
    weight = {
        "intakeoutputid": 1,
        "patientunitstayid": 7,
        "celllabel": "Bodyweight (kg)",
        "cellvaluenumeric": 100,
    }
    told = tell(
        intakeoutput=[{**weight, "intakeoutputoffset": 90, "intakeoutputentryoffset": 100}],
        infusiondrug=[
            rate(1, drug, 8, -10),  # before anybody was weighed
            rate(2, drug, 8, 60),  # 80 kg on admission
            rate(3, drug, 8, 95),  # weighed again, not yet entered
            rate(4, drug, 8, 100),  # 100 kg from now on
            rate(5, drug, 8, 110, patientweight=50),
            rate(6, drug, 0, 120),
        ],
    )
    rows = told.of(f"EICU_INFUSION//{drug}")
    assert rows["numeric_value"].tolist() == [0.1, 0.1, 0.08, 0.16, 0.0]
    assert set(rows["unit"]) == {"mcg/kg/min"}
    assert told.left("infusiondrug") == {"no_weight": 1}


def test_urine_is_read_by_its_label_and_seen_when_entered(tell):
    row = {"intakeoutputid": 1, "patientunitstayid": 7, "celllabel": "Urine", "cellvaluenumeric": 250}
    told = tell(intakeoutput=[{**row, "intakeoutputoffset": 60, "intakeoutputentryoffset": 95}])
    (event,) = told.of("EICU_IO//Urine").to_dict("records")
    assert (event["numeric_value"], event["time"], event["available_time"]) == (250.0, after(60), after(95))


def test_written_values_are_numbers_where_they_can_be():
    number, unit = read_numbers(pd.Series(["60%", "0.6", "room air", None, "inf", "80 %"], dtype="category"))
    assert number.tolist()[:2] == [60.0, 0.6]
    assert np.isnan(number[2:5]).all()
    assert number[5] == 80.0
    assert pd.Series(unit).astype("str").fillna("").tolist() == ["%", "", "", "", "", "%"]


def test_units_stand_in_the_last_brackets():
    names = pd.Series(
        ["EPINEPHrine(Adrenalin)STD 4 mg (mcg/min)", "Heparin ()", "NS", None], dtype="category"
    )
    assert pd.Series(units_of(names)).astype("str").fillna("").tolist() == ["mcg/min", "", "", ""]


def test_charting_is_named_by_what_was_charted(tell):
    nurse = {"patientunitstayid": 7, "nursingchartoffset": 10, "nursingchartentryoffset": 12}
    named = [
        ("Temperature", "Temperature (C)", "37.5"),
        ("Pain Score/Goal", "Value", "3"),
        ("O2 Admin Device", "Value", ""),
    ]
    columns = ("nursingchartcelltypevallabel", "nursingchartcelltypevalname", "nursingchartvalue")
    told = tell(
        nurseCharting=[
            {**nurse, "nursingchartid": k, **dict(zip(columns, cells, strict=True))} for k, cells in enumerate(named)
        ],
        respiratoryCharting=[
            {
                "respchartid": 1, "patientunitstayid": 7, "respchartoffset": 10, "respchartentryoffset": 10,
                "respchartvaluelabel": "FiO2", "respchartvalue": "60%",
            }
        ],
    )  # fmt: skip
    codes = told.events["code"]
    assert codes[codes.str.startswith("EICU_NURSE")].tolist() == [
        "EICU_NURSE//Temperature (C)",
        "EICU_NURSE//Pain Score/Goal",
    ]
    assert told.left("nursecharting") == {"no_value": 1}
    cleaned, _ = clean(told.of("EICU_RESPIRATORY//FiO2"))
    assert cleaned["numeric_value"].tolist() == [0.6]


def test_an_antibiotic_order_is_visible_once_written(tell):
    drug = {
        "patientunitstayid": 7, "drugname": "VANCOMYCIN 1 G/200 ML D5W", "routeadmin": "IV", "drugordercancelled": "No",
        "drugstartoffset": 60,
    }  # fmt: skip
    told = tell(
        medication=[
            {**drug, "medicationid": 1, "drugorderoffset": 30},
            {**drug, "medicationid": 2, "drugorderoffset": 90},
            {**drug, "medicationid": 3, "drugorderoffset": 30, "drugordercancelled": "Yes"},
            {**drug, "medicationid": 4, "drugorderoffset": 30, "drugname": ""},
            {**drug, "medicationid": 5, "drugorderoffset": 30, "drugname": "FUROSEMIDE 10 MG/ML IJ SOLN"},
        ]
    )
    assert told.concept("antibiotic")["available_time"].tolist() == [pd.NaT, after(90)]
    assert told.left("medication") == {"cancelled": 1, "no_code": 1, "not_antimicrobial": 1}


def test_treatments_go_out_by_path_and_name_antibiotics(tell):
    paths = [
        "infectious diseases|medications|therapeutic antibacterials|vancomycin",
        "infectious diseases|medications|therapeutic antibacterials",
        "surgery|infection|prophylactic antibacterials|vancomycin",
        "pulmonary|ventilation and oxygenation|mechanical ventilation",
    ]
    told = tell(
        treatment=[
            {"treatmentid": k, "patientunitstayid": 7, "treatmentoffset": 10, "treatmentstring": path}
            for k, path in enumerate(paths)
        ]
    )
    assert told.concept("antibiotic")["text_value"].tolist() == [paths[0]]
    assert told.events["code"].str.startswith("EICU_TREATMENT//").sum() == 4


def test_a_specimen_is_one_culture(tell):
    row = {"patientunitstayid": 7, "culturetakenoffset": 20, "culturesite": "Blood, Venipuncture"}
    organisms = ["no growth", "Escherichia coli", "Escherichia coli"]
    told = tell(microLab=[{**row, "microlabid": k, "organism": name} for k, name in enumerate(organisms)])
    assert len(told.concept("culture")) == len(told.concept("blood_culture")) == 1
    assert told.concept("positive_culture")["text_value"].tolist() == ["Escherichia coli"]
    assert told.left("microlab") == {"same_specimen": 1}


def test_without_a_table_of_patients_stays_are_those_that_rows_name(database, tell_all):
    row = {
        "labresultrevisedoffset": 90,
        "labresulttext": "",
        "labmeasurenamesystem": "mmol/L",
        "labname": "lactate",
    }
    rows = [
        {"labid": k, "patientunitstayid": who, "labresultoffset": when, "labresult": 2.5, **row}
        for k, (who, when) in enumerate([(9, 60), (7, -30), (7, 60 * 24 * 40)])
    ]
    told = tell_all("eicu", database({"lab": rows}))
    assert told.encounters["encounter_id"].tolist() == told.encounters["subject_id"].tolist() == ["7", "9"]
    assert told.encounters["age_years"].isna().all()
    assert set(told.encounters["sex"]) == {""}
    assert sorted(told.of("EICU_LAB//lactate")["time"]) == [after(-30), after(60), after(60 * 24 * 40)]
    assert told.of("WARDCAST//hospital_discharge").empty
    assert any("Table patient is not there" in note for note in told.account.notes)


def test_what_cannot_be_read_is_refused_with_its_cure(tell, database, tell_all):
    with pytest.raises(DataError, match="lacks the tables patient"):
        tell_all("eicu", database({"admissionDx": [{"admissiondxid": 1}]}, "a"))
    with pytest.raises(DataError, match=r"lab\.\S+ has no column patientunitstayid"):
        tell_all("eicu", database({"lab": [{"labid": 1}]}, "b"))
    with pytest.raises(DataError, match=r"infusiondrug.csv has no column drugrate"):
        tell(
            infusiondrug=[{"infusiondrugid": 1, "patientunitstayid": 7, "infusionoffset": 1, "drugname": "x"}]
        )
    with pytest.raises(DataError, match="1 encounters stand in more than one row"):
        tell([stay(), stay()])


TABLES = (
    "vitalaperiodic", "respiratorycharting", "intakeoutput", "infusiondrug", "medication", "treatment", "microlab",
)  # fmt: skip


@pytest.fixture(scope="module")
def demo(data_dir, tell_all):
    return tell_all("eicu", data_dir / "eicu-demo" / "tables")


@pytest.mark.data
def test_every_row_of_the_demo_is_an_event_or_counted(demo):
    assert {t: demo.unaccounted(t) for t in TABLES} == dict.fromkeys(TABLES, 0)
    assert demo.account.rows["vitalaperiodic"] == 274_088
    assert demo.said == sum(demo.account.rows.values())
    assert len(demo.encounters) == 2520
    assert demo.encounters["age_years"].dropna().between(15, 90).all()


@pytest.mark.data
def test_events_of_the_demo_lie_in_their_stays_and_are_mostly_mapped(demo):
    cleaned, account = clean(demo.events)
    ready, _ = fill_available_time(cleaned)
    validate(ready)
    assert (ready["available_time"] >= ready["time"]).all()
    began = demo.encounters.set_index("encounter_id")["hospital_admission_time"].clip(upper=UNIT_ADMISSION)
    assert (
        ready["time"] >= began.loc[ready["encounter_id"]].reset_index(drop=True) - pd.Timedelta("1D")
    ).all()
    assert account.mapped > 0.8 * account.read
    assert len(cleaned) > 0.99 * account.mapped


@pytest.mark.data
def test_a_subset_without_patients_is_read(data_dir, tell_all):
    told = tell_all("eicu", data_dir / "eicu-demo" / "pyhealth-subset")
    assert told.account.rows["lab"] == 29_961
    assert {t: told.unaccounted(t) for t in ("lab", "medication", "treatment")} == dict.fromkeys(
        ("lab", "medication", "treatment"), 0
    )
    assert told.left("lab") == {}
    assert len(told.of("EICU_LAB//creatinine")) > 500


@pytest.mark.data
def test_the_real_laboratory_is_read_and_mapped(data_dir, tmp_path, tell_all):
    for name in ("tables/patient", "pyhealth-subset/lab"):
        source = data_dir / "eicu-demo" / f"{name}.parquet"
        (tmp_path / source.name).symlink_to(source)
    told = tell_all("eicu", tmp_path)
    assert told.account.rows["lab"] == 29_961
    assert told.unaccounted("lab") == 0
    labs = told.events[told.events["code"].str.startswith("EICU_LAB")]
    cleaned, account = clean(labs)
    assert account.mapped > 0.75 * account.read
    assert len(cleaned) > 0.98 * account.mapped
    assert (labs["available_time"] > labs["time"]).mean() > 0.8
    assert labs["available_time"].isna().mean() < 0.2
