"""MIMIC-IV: what differs from MIMIC-III, case by case, and every row of the real small tables accounted for."""

from __future__ import annotations

import pandas as pd
import pytest

from features.clean import clean, fill_available_time
from features.events import validate

DAY = "2150-03-01 "
NEXT = "2150-03-02 "


def utc(text: str) -> pd.Timestamp:
    return pd.Timestamp(text, tz="UTC")


def base(**tables) -> dict:
    """Person 1 is admitted by the emergency department at 10:00 and leaves after four days."""
    admission = {
        "subject_id": 1, "hadm_id": 100, "admittime": DAY + "10:00", "dischtime": "2150-03-05 12:00",
        "deathtime": "", "edregtime": DAY + "06:00", "edouttime": DAY + "11:00",
    }  # fmt: skip
    stay = {
        "subject_id": 1, "hadm_id": 100, "stay_id": 7, "first_careunit": "Surgical Intensive Care Unit (SICU)",
        "intime": DAY + "14:00", "outtime": "2150-03-03 09:00",
    }  # fmt: skip
    return {
        "hosp/admissions": [admission],
        "hosp/patients": [{"subject_id": 1, "gender": "M", "anchor_age": 50, "anchor_year": 2148}],
        "icu/icustays": [stay],
    } | {name.replace("__", "/"): rows for name, rows in tables.items()}


@pytest.fixture
def tell(database, tell_all):
    def read(**tables):
        return tell_all("mimic4", database(base(**tables)))

    return read


def test_age_is_the_anchor_and_the_years_since(tell):
    told = tell()
    assert told.encounters["age_years"].tolist() == [52.0]
    assert told.encounters["icu_type"].tolist() == ["surgical"]
    assert told.encounters["hospital_admission_time"].tolist() == [utc(DAY + "06:00")]


def test_care_units_become_locations(tell):
    units = {
        "Emergency Department": "ed",
        "Medicine": "ward",
        "Surgical Intensive Care Unit (SICU)": "icu",
        "Coronary Care Unit (CCU)": "icu",
        "Trauma SICU (TSICU)": "icu",
        "Neuro Intermediate": "stepdown",
        "Neuro Stepdown": "stepdown",
        "PACU": "procedural",
        "Labor & Delivery": "l&d",
        "Discharge Lounge": "other",
        "": "left",
    }
    told = tell(
        hosp__transfers=[
            {
                "subject_id": 1, "hadm_id": 100, "transfer_id": k, "eventtype": "discharge" if not unit else "transfer",
                "careunit": unit, "intime": f"{DAY}{10 + k}:00",
            }
            for k, unit in enumerate(units)
        ]
    )  # fmt: skip
    assert told.of("WARDCAST//location")["text_value"].tolist() == list(units.values())
    assert told.encounters["encounter_class"].tolist() == ["icu"]


def test_a_stay_in_the_emergency_department_alone_is_of_that_class(tell):
    ed = {"subject_id": 1, "hadm_id": 100, "transfer_id": 1, "eventtype": "ED", "intime": DAY + "06:00"}
    told = tell(
        icu__icustays=[{"hadm_id": 5, "first_careunit": "", "intime": "", "outtime": ""}],
        hosp__transfers=[
            {**ed, "careunit": "Emergency Department"},
            {**ed, "careunit": "Emergency Department Observation"},
        ],
    )
    assert told.encounters["encounter_class"].tolist() == ["ed"]


def test_charts_and_laboratory_are_visible_when_stored(tell):
    row = {"subject_id": 1, "hadm_id": 100, "charttime": DAY + "15:00", "value": "80", "valuenum": 80}
    told = tell(
        icu__chartevents=[{**row, "itemid": 220045, "storetime": DAY + "15:20", "valueuom": "bpm"}],
        hosp__labevents=[
            {**row, "labevent_id": 5, "itemid": 50912, "storetime": DAY + "16:00", "valueuom": "mg/dL"},
            {
                **row,
                "labevent_id": 6,
                "itemid": 50912,
                "storetime": DAY + "16:00",
                "valueuom": "",
                "hadm_id": "",
            },
        ],
    )
    assert told.of("MIMIC_CHART//220045")["available_time"].tolist() == [utc(DAY + "15:20")]
    labs = told.of("MIMIC_LAB//50912")
    assert labs["available_time"].tolist() == [utc(DAY + "16:00")] * 2
    assert labs["source_id"].tolist() == ["labevents:5", "labevents:6"]
    assert (
        told.events["source_id"].isin(["chartevents:0"]).sum() == 1
    )  # charts have no key: the row number is theirs


def test_a_gas_is_of_the_sample_that_bears_its_number(tell):
    row = {
        "subject_id": 1, "hadm_id": 100, "charttime": DAY + "15:00", "storetime": DAY + "15:30", "valueuom": "mm Hg",
    }  # fmt: skip
    rows = [
        (1, 7, 50821, 95, 95),
        (2, 8, 50821, 38, 38),
        (3, 7, 52033, "ART.", ""),
        (4, 8, 52033, "MIX.", ""),
    ]
    rows += [
        (5, 9, 50821, 70, 70),
        (6, 10, 50821, 50, 50),
        (7, 10, 52033, "VEN.", ""),
        (8, "", 50821, 80, 80),
    ]
    names = ("labevent_id", "specimen_id", "itemid", "value", "valuenum")
    told = tell(hosp__labevents=[{**row, **dict(zip(names, r, strict=True))} for r in rows])
    assert told.of("MIMIC_LAB//50821")["numeric_value"].tolist() == [95, 70, 80]
    assert told.of("MIMIC_LAB//50821/MIX")["numeric_value"].tolist() == [38]
    assert told.of("MIMIC_LAB//50821/VEN")["numeric_value"].tolist() == [50]


def test_an_infusion_and_its_weight(tell):
    row = {
        "subject_id": 1, "hadm_id": 100, "itemid": 221906, "starttime": DAY + "15:00", "endtime": DAY + "16:00",
        "storetime": DAY + "15:05", "amount": 0.5, "amountuom": "mg", "rate": 8, "rateuom": "mcg/min",
        "patientweight": 80, "statusdescription": "ChangeDose/Rate",
    }  # fmt: skip
    told = tell(
        icu__inputevents=[row, {**row, "starttime": DAY + "16:00", "endtime": DAY + "17:00", "rate": 16}]
    )
    assert told.of("MIMIC_INPUT//221906")["numeric_value"].tolist() == [0.1, 0.2, 0.0]


def test_a_culture_is_one_specimen_and_its_growth_is_known_when_stored(tell):
    row = {
        "subject_id": 1, "hadm_id": 100, "micro_specimen_id": 9, "chartdate": DAY, "charttime": DAY + "16:00",
        "storetime": "2150-03-03 10:00", "spec_type_desc": "BLOOD CULTURE",
    }  # fmt: skip
    names = ["", "CANCELLED", "ESCHERICHIA COLI", "ESCHERICHIA COLI"]
    told = tell(
        hosp__microbiologyevents=[
            {**row, "microevent_id": k, "org_name": name} for k, name in enumerate(names)
        ]
    )
    assert told.concept("culture")["source_id"].tolist() == ["microbiologyevents:0"]
    assert told.concept("positive_culture")["available_time"].tolist() == [utc("2150-03-03 10:00")]
    assert told.left("microbiologyevents") == {"same_specimen": 2}


def order(**changes) -> dict:
    return {
        "subject_id": 1, "hadm_id": 100, "pharmacy_id": 3, "starttime": DAY + "12:00", "drug": "Vancomycin",
        "route": "IV", **changes,
    }  # fmt: skip


def test_an_order_written_after_it_began_is_visible_from_its_entry(tell):
    told = tell(
        hosp__prescriptions=[order(), order(pharmacy_id=4), order(pharmacy_id=""), order(drug="Heparin")],
        hosp__pharmacy=[
            {"pharmacy_id": 3, "starttime": DAY + "12:00", "entertime": DAY + "13:30"},
            {"pharmacy_id": 4, "starttime": DAY + "12:00", "entertime": DAY + "11:30"},
        ],
    )
    rows = told.concept("antibiotic").sort_values("source_id")
    assert rows["time"].tolist() == [utc(DAY + "12:00")] * 3
    assert rows["available_time"].tolist() == [utc(DAY + "13:30"), pd.NaT, pd.NaT]
    assert told.left("pharmacy") == {"read_for_entry_times": 2}
    assert told.left("prescriptions") == {"not_antimicrobial": 1}


def test_without_prescriptions_the_pharmacy_tells_of_orders(tell):
    row = {**order(), "medication": "Vancomycin", "entertime": DAY + "13:30"}
    told = tell(hosp__pharmacy=[row])
    assert told.concept("antibiotic")["available_time"].tolist() == [utc(DAY + "13:30")]


def test_only_doses_that_were_given_count(tell):
    dose = {"subject_id": 1, "hadm_id": 100, "charttime": DAY + "15:00", "storetime": DAY + "15:01"}
    texts = ["Administered", "Not Given", "Started", "", "Flushed"]
    told = tell(
        hosp__emar=[
            {**dose, "emar_id": f"1-{k}", "medication": "Vancomycin", "event_txt": text}
            for k, text in enumerate(texts)
        ]
    )
    assert told.concept("antibiotic")["source_id"].tolist() == ["emar:1-0", "emar:1-2"]
    assert told.left("emar") == {"not_given": 3}


def test_the_outpatient_record_of_a_day_is_known_the_next_day(tell):
    day = {"subject_id": 1, "seq_num": 1}
    told = tell(
        hosp__omr=[
            {**day, "chartdate": DAY.strip(), "result_name": "Weight (Lbs)", "result_value": "200"},
            {**day, "chartdate": NEXT.strip(), "result_name": "Blood Pressure", "result_value": "120/80"},
            {**day, "chartdate": NEXT.strip(), "result_name": "BMI (kg/m2)", "result_value": "31.2"},
            {**day, "chartdate": "2149-03-01", "result_name": "Height (Inches)", "result_value": "70"},
        ]
    )
    cleaned, account = clean(told.events[told.events["code"].str.startswith("MIMIC_OMR")])
    value = cleaned.set_index("concept")["numeric_value"]
    assert value["weight"] == pytest.approx(90.72, abs=0.01)
    assert (value["sbp"], value["dbp"]) == (120.0, 80.0)
    assert account.reasons == {"unknown_concept": 1}  # the body mass index, kept under its own code
    assert told.of("MIMIC_OMR//Weight (Lbs)")["available_time"].tolist() == [utc(NEXT)]
    assert told.left("omr") == {"no_encounter": 1}


def emergency(**changes) -> dict:
    return {
        "subject_id": 1, "hadm_id": 100, "stay_id": 30, "intime": DAY + "05:30", "outtime": DAY + "11:00",
        "gender": "M", "arrival_transport": "AMBULANCE", **changes,
    }  # fmt: skip


def test_an_attendance_without_an_identity_is_counted(tell):
    told = tell(ed__edstays=[emergency(), *[{**emergency(), "stay_id": "", "hadm_id": ""}] * 2])
    assert told.left("edstays") == {"no_encounter": 2}


def test_specimens_without_an_identity_are_told_apart_by_their_time(tell):
    row = {
        "subject_id": 1, "hadm_id": 100, "micro_specimen_id": "", "chartdate": DAY, "charttime": DAY + "16:00",
        "storetime": "", "spec_type_desc": "URINE", "org_name": "",
    }  # fmt: skip
    later = {**row, "charttime": DAY + "18:00"}
    rows = [{**r, "microevent_id": k} for k, r in enumerate((row, row, later))]
    assert len(tell(hosp__microbiologyevents=rows).concept("culture")) == 2


def test_an_attendance_begins_its_admission_and_one_without_is_an_encounter(tell):
    away = emergency(
        stay_id=31,
        hadm_id="",
        intime="2150-07-01 08:00",
        outtime="2150-07-01 12:00",
        arrival_transport="WALK IN",
    )
    told = tell(ed__edstays=[emergency(), away])
    assert told.encounters["encounter_id"].tolist() == ["100", "ed-31"]
    assert told.encounters["encounter_class"].tolist() == ["icu", "ed"]
    assert told.encounters["age_years"].tolist() == [52.0, 52.0]
    assert told.encounters["hospital_admission_time"][0] == utc(DAY + "05:30")
    alone = told.events[told.events["encounter_id"] == "ed-31"].set_index("code")
    assert "WARDCAST//hospital_admission" not in alone.index
    assert alone.loc["WARDCAST//ambulance_arrival", "numeric_value"] == 0.0
    assert alone.loc["WARDCAST//hospital_discharge", "time"] == utc("2150-07-01 12:00")
    assert set(alone.loc["WARDCAST//location", "text_value"]) == {"ed", "left"}


def test_triage_and_vital_signs_are_of_their_attendance(tell):
    signs = {"temperature": 98.6, "heartrate": 90, "resprate": 18, "o2sat": 97, "sbp": 120, "dbp": ""}
    told = tell(
        ed__edstays=[emergency()],
        ed__triage=[{"subject_id": 1, "stay_id": 30, **signs, "acuity": 2, "pain": "denied"}],
        ed__vitalsign=[
            {"stay_id": 30, "charttime": DAY + "07:00", **signs},
            {"stay_id": 30, "charttime": DAY + "07:30", **dict.fromkeys(signs, "")},
            {"stay_id": 99, "charttime": DAY + "07:30", **signs},
        ],
    )
    cleaned, account = clean(told.events[told.events["code"].str.startswith("MIMIC_ED")])
    assert account.reasons == {}
    assert len(cleaned) == 6 + 5
    assert cleaned.loc[cleaned["concept"] == "temperature", "numeric_value"].tolist() == pytest.approx(
        [37.0, 37.0]
    )
    assert cleaned.loc[cleaned["concept"] == "triage_category", "time"].tolist() == [utc(DAY + "05:30")]
    assert told.left("vitalsign") == {"no_value": 1, "no_encounter": 1}


def test_every_absent_table_is_noted(tell):
    notes = " ".join(tell().account.notes)
    for table in ("chartevents", "labevents", "inputevents", "emar", "omr", "prescriptions"):
        assert f"Table {table} is not there" in notes


EVENT_TABLES = ("outputevents", "procedureevents", "microbiologyevents", "prescriptions", "transfers", "omr")


@pytest.fixture(scope="module")
def demo(data_dir, tell_all):
    return tell_all("mimic4", data_dir / "tinyehr" / "tinyehr_mimic_format")


@pytest.mark.data
def test_every_row_of_the_small_tables_is_an_event_or_counted(demo):
    assert {t: demo.unaccounted(t) for t in EVENT_TABLES} == dict.fromkeys(EVENT_TABLES, 0)
    assert demo.account.rows["outputevents"] == demo.account.events["outputevents"] == 9362
    assert demo.said == sum(demo.account.rows.values())
    assert demo.encounters["encounter_class"].value_counts().to_dict() == {"icu": 128, "ward": 124, "ed": 23}
    assert demo.encounters["age_years"].between(18, 101).all()


@pytest.mark.data
def test_events_of_the_small_tables_lie_in_their_stays(demo):
    cleaned, account = clean(demo.events)
    ready, _ = fill_available_time(cleaned)
    validate(ready)
    assert (ready["available_time"] >= ready["time"]).all()
    began = demo.encounters.set_index("encounter_id")["hospital_admission_time"]
    assert (
        ready["time"] >= began.loc[ready["encounter_id"]].reset_index(drop=True) - pd.Timedelta("1D")
    ).all()
    assert account.mapped > 0.7 * account.read
    assert not demo.events.duplicated(["encounter_id", "concept", "code", "source_id"]).any()


@pytest.mark.data
def test_reading_the_small_tables_again_says_the_same(demo, data_dir, tell_all):
    again = tell_all("mimic4", data_dir / "tinyehr" / "tinyehr_mimic_format")
    pd.testing.assert_frame_equal(again.events, demo.events)
    assert again.account == demo.account
