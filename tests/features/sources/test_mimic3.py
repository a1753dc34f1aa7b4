"""MIMIC-III: every rule on a patient small enough to read, and every row of the real demo accounted for."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from features.clean import clean, fill_available_time
from features.errors import DataError
from features.events import validate
from features.sources import mimic3
from features.sources.tables import Tables

DAY = "2150-03-01 "
NEXT = "2150-03-02 "


def utc(text: str) -> pd.Timestamp:
    return pd.Timestamp(text, tz="UTC")


def admission(**changes) -> dict:
    """Person 1 comes by the emergency department at 06:00, is admitted at 10:00 and leaves after four days."""
    return {
        "row_id": 1, "subject_id": 1, "hadm_id": 100, "admittime": DAY + "10:00", "dischtime": "2150-03-05 12:00",
        "deathtime": "", "edregtime": DAY + "06:00", "edouttime": DAY + "11:00", **changes,
    }  # fmt: skip


def patient(**changes) -> dict:
    return {"row_id": 1, "subject_id": 1, "gender": "F", "dob": "2090-03-01", **changes}


def base(**tables) -> dict:
    return {
        "ADMISSIONS": [admission()],
        "PATIENTS": [patient()],
        "ICUSTAYS": [
            {"hadm_id": 100, "first_careunit": "MICU", "intime": DAY + "14:00", "outtime": "2150-03-03 09:00"}
        ],
        **tables,
    }


def chart(row_id: int, **changes) -> dict:
    return {
        "row_id": row_id, "subject_id": 1, "hadm_id": 100, "itemid": 220045, "charttime": DAY + "15:00",
        "storetime": DAY + "15:10", "value": "80", "valuenum": 80, "valueuom": "bpm", "error": "", **changes,
    }  # fmt: skip


def infusion(row_id: int, **changes) -> dict:
    """Norepinephrine, 0.1 microgram per kilogram and minute from 15:00 to 16:00."""
    return {
        "row_id": row_id, "subject_id": 1, "hadm_id": 100, "itemid": 221906, "starttime": DAY + "15:00",
        "endtime": DAY + "16:00", "storetime": DAY + "15:05", "amount": 0.5, "amountuom": "mg", "rate": 0.1,
        "rateuom": "mcg/kg/min", "patientweight": 80, "statusdescription": "FinishedRunning", "cancelreason": 0,
        **changes,
    }  # fmt: skip


@pytest.fixture
def tell(database, tell_all):
    def read(**tables):
        return tell_all("mimic3", database(base(**tables)))

    return read


def test_an_encounter_begins_in_the_emergency_department(tell):
    told = tell()
    (row,) = told.encounters.to_dict("records")
    assert (row["encounter_id"], row["subject_id"], row["encounter_class"]) == ("100", "1", "icu")
    assert (row["sex"], row["icu_type"], row["unit"]) == ("female", "medical", "MICU")
    assert row["hospital_admission_time"] == utc(DAY + "06:00")
    assert row["icu_admission_time"] == utc(DAY + "14:00")
    assert row["age_years"] == pytest.approx(60, abs=0.01)
    moments = told.events[told.events["numeric_value"] == 1].set_index("code")["time"]
    assert moments["WARDCAST//ed_arrival"] == utc(DAY + "06:00")
    assert moments["WARDCAST//hospital_admission"] == utc(DAY + "10:00")
    assert moments["WARDCAST//icu_discharge"] == utc("2150-03-03 09:00")
    assert moments["WARDCAST//hospital_discharge"] == utc("2150-03-05 12:00")
    assert "WARDCAST//death" not in moments


def test_who_never_was_in_intensive_care_is_of_the_ward(tell):
    told = tell(ICUSTAYS=[{"hadm_id": 999, "first_careunit": "MICU", "intime": DAY + "14:00", "outtime": ""}])
    assert told.encounters["encounter_class"].tolist() == ["ward"]
    assert told.encounters["icu_admission_time"].isna().all()
    assert told.left("icustays") == {"no_encounter": 1}


def test_a_hidden_age_is_the_median_of_those_over_89(tell):
    told = tell(PATIENTS=[patient(dob="1850-03-01")])
    assert told.encounters["age_years"].tolist() == [91.4]
    assert any("91.4" in note for note in told.account.notes)


def test_age_of_a_newborn_is_zero_and_of_the_unborn_unknown():
    admitted = pd.Series(pd.to_datetime(["2150-03-01 10:00"] * 3, utc=True))
    born = pd.Series(pd.to_datetime(["2150-03-01", "2150-04-01", None], utc=True))
    assert mimic3.ages(born, admitted).tolist()[0] == pytest.approx(0, abs=0.01)
    assert np.isnan(mimic3.ages(born, admitted)[1:]).all()


def test_a_death_is_an_event(tell):
    told = tell(ADMISSIONS=[admission(deathtime="2150-03-05 12:00")])
    assert told.of("WARDCAST//death")["time"].tolist() == [utc("2150-03-05 12:00")]


def test_moves_become_locations(tell):
    moves = [("admit", "", DAY + "10:00"), ("transfer", "MICU", DAY + "14:00"), ("transfer", "", "2150-03-03 09:00"),
             ("discharge", "", "2150-03-05 12:00"), ("transfer", "NWARD", "")]  # fmt: skip
    told = tell(
        TRANSFERS=[
            {
                "row_id": k,
                "subject_id": 1,
                "hadm_id": 100,
                "eventtype": kind,
                "curr_careunit": unit,
                "intime": when,
            }
            for k, (kind, unit, when) in enumerate(moves)
        ]
    )
    assert told.of("WARDCAST//location")["text_value"].tolist() == ["ed", "ward", "icu", "ward", "left"]
    assert told.left("transfers") == {"no_time": 1}


def test_without_transfers_the_great_moves_are_known_still(tell):
    assert tell().of("WARDCAST//location")["text_value"].tolist() == ["ed", "icu", "left"]


def test_a_chart_row_is_visible_when_it_was_stored_but_never_before_it_happened(tell):
    told = tell(CHARTEVENTS=[chart(1), chart(2, storetime=DAY + "14:50"), chart(3, storetime="")])
    rows = told.of("MIMIC_CHART//220045")
    assert rows["available_time"].isna().tolist() == [False, True, True]
    assert rows["available_time"][0] == utc(DAY + "15:10")
    assert rows["unit"].tolist() == ["bpm"] * 3
    assert rows["source_id"].tolist() == ["chartevents:1", "chartevents:2", "chartevents:3"]


def test_words_are_kept_where_there_is_no_number(tell):
    told = tell(CHARTEVENTS=[chart(1, value="Sinus", valuenum=""), chart(2, value="80", valuenum=80)])
    assert told.of("MIMIC_CHART//220045")["text_value"].fillna("").tolist() == ["Sinus", ""]


def test_what_cannot_be_used_is_counted_by_reason(tell):
    told = tell(
        CHARTEVENTS=[
            chart(1),
            chart(2, error=1),
            chart(3, value="", valuenum=""),
            chart(4, charttime=""),
            chart(5, hadm_id=999),
            chart(6, charttime="2151-03-01 15:00"),
            chart(7, itemid=""),
        ]
    )
    expected = ("error", "no_value", "no_time", "no_encounter", "outside_stay", "no_code")
    assert told.left("chartevents") == dict.fromkeys(expected, 1)
    assert told.account.rows["chartevents"] == 7
    assert told.account.events["chartevents"] == 1


def test_a_result_without_admission_goes_to_the_stay_that_spans_it(tell):
    lab = {
        "subject_id": 1,
        "hadm_id": "",
        "itemid": 50912,
        "value": "1.1",
        "valuenum": 1.1,
        "valueuom": "mg/dL",
    }
    times = [DAY + "05:59", DAY + "06:00", "2150-03-05 12:00", "2150-03-05 12:01"]
    told = tell(LABEVENTS=[{**lab, "row_id": k, "charttime": when} for k, when in enumerate(times)])
    rows = told.of("MIMIC_LAB//50912")
    assert rows["time"].tolist() == [utc(DAY + "06:00"), utc("2150-03-05 12:00")]
    assert rows["available_time"].isna().all()  # III has no result time: the policy of the concept decides
    assert told.left("labevents") == {"no_encounter": 2}


def test_of_two_stays_the_spanning_one_is_found(tell):
    second = admission(
        hadm_id=101, admittime="2150-06-01 10:00", dischtime="2150-06-02 10:00", edregtime="", edouttime=""
    )
    other = admission(hadm_id=102, subject_id=2, edregtime="", edouttime="")
    lab = {
        "row_id": 1,
        "subject_id": 1,
        "hadm_id": "",
        "itemid": 50912,
        "value": "1",
        "valuenum": 1,
        "valueuom": "",
    }
    told = tell(
        ADMISSIONS=[second, other, admission()],
        PATIENTS=[patient(), patient(subject_id=2, gender="M")],
        LABEVENTS=[
            {**lab, "charttime": "2150-06-01 12:00"},
            {**lab, "row_id": 2, "charttime": DAY + "12:00"},
        ],
    )
    assert told.of("MIMIC_LAB//50912")["encounter_id"].tolist() == ["100", "101"]


def test_an_infusion_has_its_rate_at_the_start_and_nought_at_the_end(tell):
    rows = tell(INPUTEVENTS_MV=[infusion(1)]).of("MIMIC_INPUT//221906")
    assert rows["numeric_value"].tolist() == [0.1, 0.0]
    assert rows["time"].tolist() == [utc(DAY + "15:00"), utc(DAY + "16:00")]
    assert rows["available_time"].tolist() == [utc(DAY + "15:05"), utc(DAY + "16:00")]


def test_a_change_of_rate_is_no_end(tell):
    told = tell(
        INPUTEVENTS_MV=[
            infusion(1, statusdescription="Changed"),
            infusion(2, rate=0.2, starttime=DAY + "16:00", endtime=DAY + "18:00"),
            infusion(3, rate=0.3, starttime=DAY + "17:00", endtime=DAY + "17:30"),
        ]
    )
    rows = told.of("MIMIC_INPUT//221906")
    assert rows["numeric_value"].tolist() == [0.1, 0.2, 0.3, 0.0]
    assert rows["time"].iloc[-1] == utc(DAY + "18:00")


def test_cancelled_and_rewritten_rows_are_left(tell):
    told = tell(
        INPUTEVENTS_MV=[
            infusion(1, statusdescription="Rewritten"),
            infusion(2, cancelreason=2),
            infusion(3, rate="", amount=""),
            infusion(4, starttime=""),
        ]
    )
    assert told.left("inputevents_mv") == {"rewritten": 1, "cancelled": 1, "no_value": 1, "no_time": 1}
    assert told.account.events["inputevents_mv"] == 0


def test_a_rate_per_minute_is_divided_by_the_weight_on_its_row(tell):
    told = tell(INPUTEVENTS_MV=[infusion(1, rate=8, rateuom="mcg/min")])
    assert told.of("MIMIC_INPUT//221906")["numeric_value"].tolist() == [0.1, 0.0]
    assert told.of("MIMIC_INPUT//221906")["unit"].tolist() == ["mcg/kg/min"] * 2
    cleaned, account = clean(told.events)
    assert cleaned.loc[cleaned["concept"] == "norepinephrine", "numeric_value"].tolist() == [0.1, 0.0]
    assert account.reasons == {}


def test_without_a_weight_on_the_row_the_latest_known_one_counts(tell):
    def weight(row_id: int, kg: float, store: str) -> dict:
        return chart(
            row_id,
            itemid=763,
            value=str(kg),
            valuenum=kg,
            valueuom="kg",
            charttime=DAY + "14:00",
            storetime=store,
        )

    heavy = infusion(1, rate=8, rateuom="mcg/min", patientweight="")
    told = tell(
        CHARTEVENTS=[weight(1, 80, DAY + "14:30"), weight(2, 100, DAY + "15:30")],
        INPUTEVENTS_MV=[
            heavy,
            {**heavy, "row_id": 2, "starttime": NEXT + "15:00", "endtime": ""},
            {**heavy, "row_id": 3, "starttime": DAY + "14:10", "endtime": ""},
        ],
    )
    rows = told.of("MIMIC_INPUT//221906")
    # The second weight was stored after the first infusion had begun; before 14:30 nobody had been weighed.
    assert rows["numeric_value"].tolist() == [0.1, 0.0, 0.08]
    assert told.left("inputevents_mv") == {"no_weight": 1}


def test_a_fluid_is_an_amount_once_it_has_been_given(tell):
    fluid = infusion(1, itemid=225158, amount=500, amountuom="ml", rate=500, rateuom="mL/hour")
    rows = tell(INPUTEVENTS_MV=[fluid]).of("MIMIC_INPUT//225158")
    assert rows[["numeric_value", "unit"]].to_numpy().tolist() == [[500.0, "ml"]]
    assert rows["time"].tolist() == rows["available_time"].tolist() == [utc(DAY + "16:00")]


def test_an_antibiotic_among_the_input_is_an_antibiotic_at_its_hour(tell):
    items = [("225798", "Vancomycin", "inputevents_mv"), ("221906", "Norepinephrine", "inputevents_mv")]
    dose = infusion(1, itemid=225798, amount=1, amountuom="dose", rate="", rateuom="")
    told = tell(
        D_ITEMS=[dict(zip(("itemid", "label", "linksto"), item, strict=True)) for item in items],
        INPUTEVENTS_MV=[dose, infusion(2)],
    )
    (row,) = told.concept("antibiotic").to_dict("records")
    assert (row["code"], row["text_value"], row["numeric_value"]) == (
        "MIMIC_DRUG//Vancomycin",
        "Vancomycin",
        1.0,
    )
    assert (row["time"], row["available_time"]) == (utc(DAY + "15:00"), utc(DAY + "15:05"))
    assert len(told.of("MIMIC_INPUT//221906")) == 2


def test_dates_are_days_of_the_hospital(database, tell_all):
    drug = {
        "row_id": 1,
        "subject_id": 1,
        "hadm_id": 100,
        "startdate": DAY.strip(),
        "drug": "Vancomycin",
        "route": "IV",
    }
    told = tell_all("mimic3", database(base(PRESCRIPTIONS=[drug])), timezone="America/New_York")
    (row,) = told.concept("antibiotic").to_dict("records")
    assert (row["time"], row["available_time"]) == (utc(DAY + "05:00"), utc(NEXT + "05:00"))


def test_pieces_of_two_rows_tell_the_same(database, tell_all, monkeypatch):
    path = database(
        base(
            CHARTEVENTS=[chart(k, charttime=f"{DAY}15:{k:02}") for k in range(7)],
            INPUTEVENTS_MV=[
                infusion(k, starttime=f"{DAY}{15 + k}:00", endtime=f"{DAY}{16 + k}:00") for k in range(5)
            ],
            MICROBIOLOGYEVENTS=[culture(k, org_name="YEAST" if k % 2 else "") for k in range(5)],
        )
    )
    whole, stream = tell_all("mimic3", path), Tables.stream
    monkeypatch.setattr(Tables, "stream", lambda *a, **o: stream(*a, **{**o, "rows": 2}))
    pd.testing.assert_frame_equal(
        *(
            t.events.sort_values(["source_id", "concept"], ignore_index=True)
            for t in (whole, tell_all("mimic3", path))
        )
    )


def test_carevue_rates_are_charted_and_stopped(tell):
    cv = {
        "subject_id": 1, "hadm_id": 100, "itemid": 30120, "storetime": "", "amount": "", "amountuom": "",
        "rateuom": "mcgkgmin",
    }  # fmt: skip
    told = tell(
        INPUTEVENTS_CV=[
            {**cv, "row_id": 1, "charttime": DAY + "15:00", "rate": 0.1, "stopped": ""},
            {**cv, "row_id": 2, "charttime": DAY + "16:00", "rate": 0.2, "stopped": "NotStopd"},
            {**cv, "row_id": 3, "charttime": DAY + "17:00", "rate": "", "stopped": "D/C'd"},
            {**cv, "row_id": 4, "charttime": DAY + "18:00", "rate": "", "stopped": ""},
            {**cv, "row_id": 5, "charttime": DAY + "18:00", "rate": 8, "stopped": "", "rateuom": "mcgmin"},
        ]
    )
    rows = told.of("MIMIC_INPUT//30120")
    assert rows["numeric_value"].tolist() == [0.1, 0.2, 0.0]
    assert rows["unit"].tolist() == ["mcg/kg/min"] * 3
    assert told.left("inputevents_cv") == {"no_value": 1, "no_weight": 1}
    fluid = {
        **cv,
        "itemid": 30018,
        "charttime": DAY + "15:00",
        "amount": 250,
        "amountuom": "ml",
        "stopped": "",
    }
    amount = {"rate": "", "rateuom": "", "stopped": ""}
    told = tell(
        INPUTEVENTS_CV=[
            {**fluid, **amount, "row_id": 1},
            {**cv, **amount, "row_id": 2, "charttime": DAY + "15:00", "amount": 0.4, "amountuom": "mg"},
        ]
    )
    assert told.of("MIMIC_INPUT//30018")["numeric_value"].tolist() == [250]
    # What the pump gave in an hour says again what its rate said.
    assert told.of("MIMIC_INPUT//30120").empty
    assert told.left("inputevents_cv") == {"amount_of_a_rate": 1}


def gas(row_id: int, item: int, value: object, **changes) -> dict:
    return {
        "row_id": row_id, "subject_id": 1, "hadm_id": 100, "itemid": item, "charttime": DAY + "16:00",
        "value": value, "valuenum": value if isinstance(value, int | float) else "", "valueuom": "", **changes,
    }  # fmt: skip


@pytest.mark.parametrize("naming_first", [True, False])
def test_only_an_arterial_gas_is_arterial(tell, monkeypatch, naming_first):
    stream = Tables.stream
    monkeypatch.setattr(Tables, "stream", lambda *a, **o: stream(*a, **{**o, "rows": 3}))
    rows = []
    for hour, sample in enumerate(["ART", "VEN", "MIX", "CENTRAL VENOUS", ""], start=15):
        at = {"charttime": f"{DAY}{hour}:00"}
        results = [
            gas(hour * 10 + k, item, 40 + hour, **at) for k, item in enumerate((50821, 50818, 50820, 50817))
        ]
        naming = [gas(hour * 10 + 9, 50800, sample, **at)] if sample else []
        rows += (
            [*naming, *results, gas(hour * 10 + 8, 50813, 2.0, **at)] if naming_first else [*results, *naming]
        )
    told = tell(LABEVENTS=rows)
    for item in (50821, 50818, 50820):
        assert told.of(f"MIMIC_LAB//{item}")["numeric_value"].tolist() == [55, 59]
        assert told.of(f"MIMIC_LAB//{item}/VEN")["numeric_value"].tolist() == [56]
        assert told.of(f"MIMIC_LAB//{item}/MIX")["numeric_value"].tolist() == [57, 58]
    cleaned, account = clean(told.events)
    found = cleaned.astype({"concept": "str"}).groupby("concept")["numeric_value"].apply(list)
    assert (found["pao2"], found["sao2"], found["svo2"]) == ([55, 59], [55, 59], [57, 58])
    assert account.reasons["left_out"] == 10
    assert told.unaccounted("labevents") == 0


def test_a_sample_of_somebody_else_at_that_time_says_nothing(tell):
    other = {"subject_id": 2, "hadm_id": 200}
    told = tell(LABEVENTS=[gas(1, 50821, 90), gas(2, 50800, "VEN", **other)])
    assert told.of("MIMIC_LAB//50821")["numeric_value"].tolist() == [90]


def test_carevue_charts_tell_of_ventilation(tell):
    mode = {"itemid": 720, "valuenum": "", "valueuom": ""}
    told = tell(
        CHARTEVENTS=[
            chart(1, **mode, value="Assist Control"),
            chart(2, **mode, value="CPAP+PS", charttime=DAY + "20:00", storetime=DAY + "20:05"),
            chart(
                3,
                **{**mode, "itemid": 467},
                value="Nasal Cannula",
                charttime=DAY + "22:00",
                storetime=DAY + "22:30",
            ),
        ]
    )
    cleaned, _ = clean(told.events)
    states = cleaned[cleaned["concept"] == "invasive_ventilation"].sort_values("time")
    assert states["numeric_value"].tolist() == [1, 0]
    assert states["code"].tolist() == ["MIMIC_CHART//720/VENT", "MIMIC_CHART//467/VENT"]
    assert states["time"].tolist() == [utc(DAY + "15:00"), utc(DAY + "22:00")]
    assert states["available_time"].tolist() == [utc(DAY + "15:10"), utc(DAY + "22:30")]
    # The device is told as well, as before.
    assert cleaned["concept"].tolist().count("oxygen_device") == 1


def test_ventilation_begins_and_ends(tell):
    procedure = {
        "row_id": 1, "subject_id": 1, "hadm_id": 100, "itemid": 225792, "starttime": DAY + "15:00",
        "endtime": NEXT + "15:00", "storetime": NEXT + "16:00", "statusdescription": "FinishedRunning",
        "cancelreason": 0,
    }  # fmt: skip
    told = tell(PROCEDUREEVENTS_MV=[procedure, {**procedure, "row_id": 2, "statusdescription": "Rewritten"}])
    rows = told.of("MIMIC_PROCEDURE//225792")
    assert rows["numeric_value"].tolist() == [1.0, 0.0]
    # Only the time of the last change is stored: the start is known late rather than early.
    assert rows["available_time"].tolist() == [utc(NEXT + "16:00")] * 2
    assert told.left("procedureevents_mv") == {"rewritten": 1}


def culture(row_id: int, **changes) -> dict:
    return {
        "row_id": row_id, "subject_id": 1, "hadm_id": 100, "chartdate": DAY.strip(), "charttime": DAY + "16:00",
        "spec_type_desc": "BLOOD CULTURE", "org_name": "", **changes,
    }  # fmt: skip


def test_a_specimen_is_one_culture_and_each_organism_one_positive(tell):
    told = tell(
        MICROBIOLOGYEVENTS=[
            culture(1, org_name="ESCHERICHIA COLI"),
            culture(2, org_name="ESCHERICHIA COLI"),
            culture(3, org_name="YEAST"),
            culture(4, spec_type_desc="URINE"),
        ]
    )
    assert told.concept("culture")["code"].tolist() == ["MIMIC_SPEC//BLOOD CULTURE", "MIMIC_SPEC//URINE"]
    assert len(told.concept("blood_culture")) == 1
    positive = told.concept("positive_culture")
    assert positive["text_value"].tolist() == ["ESCHERICHIA COLI", "YEAST"]
    assert (
        positive["available_time"].isna().all()
    )  # growth takes days: the policy of the concept says how many
    assert told.left("microbiologyevents") == {"same_specimen": 1}


def test_a_culture_with_a_date_only_is_known_the_next_day(tell):
    rows = tell(MICROBIOLOGYEVENTS=[culture(1, charttime="")]).concept("culture")
    assert rows["time"].tolist() == [utc(DAY)]
    assert rows["available_time"].tolist() == [utc(NEXT)]


def test_the_growth_of_a_culture_with_a_date_only_is_waited_for_from_the_end_of_its_day(tell):
    rows = tell(MICROBIOLOGYEVENTS=[culture(1, charttime="", org_name="YEAST")]).concept("positive_culture")
    assert rows["available_time"].tolist() == [utc(NEXT) + pd.Timedelta(days=2)]


def test_an_antibiotic_is_known_the_day_after_its_date_and_other_drugs_are_left(tell):
    drug = {"subject_id": 1, "hadm_id": 100, "startdate": DAY.strip(), "enddate": NEXT.strip()}
    told = tell(
        PRESCRIPTIONS=[
            {**drug, "row_id": 1, "drug": "Vancomycin", "route": "IV"},
            {**drug, "row_id": 2, "drug": "Furosemide", "route": "IV"},
            {**drug, "row_id": 3, "drug": "Vancomycin", "route": "IV", "startdate": ""},
        ]
    )
    (row,) = told.concept("antibiotic").to_dict("records")
    assert (row["code"], row["text_value"], row["numeric_value"]) == (
        "MIMIC_DRUG//Vancomycin",
        "Vancomycin",
        1.0,
    )
    assert (row["time"], row["available_time"]) == (utc(DAY), utc(NEXT))
    assert told.left("prescriptions") == {"not_antimicrobial": 1, "no_time": 1}


def test_absent_tables_are_noted_and_needed_ones_demanded(tell, database, tell_all):
    assert "Table chartevents is not there: nothing of it was read." in tell().account.notes
    with pytest.raises(DataError, match="lacks the tables patients"):
        tell_all("mimic3", database({"ADMISSIONS": [admission()]}, "half"))


def test_malformed_tables_are_refused_with_their_cure(database, tell_all):
    with pytest.raises(DataError, match=r"CHARTEVENTS.csv has no column .*charttime"):
        tell_all("mimic3", database(base(CHARTEVENTS=[{"row_id": 1, "subject_id": 1, "hadm_id": 100}]), "a"))
    with pytest.raises(DataError, match=r"Column valuenum .* holds text"):
        tell_all("mimic3", database(base(CHARTEVENTS=[chart(1, valuenum="high")]), "b"))
    with pytest.raises(DataError, match="repeats hadm_id in 1 rows"):
        tell_all("mimic3", database(base(ADMISSIONS=[admission(), admission()]), "c"))
    with pytest.raises(DataError, match="no admission with hadm_id"):
        tell_all("mimic3", database(base(ADMISSIONS=[admission(admittime="")]), "d"))
    with pytest.raises(DataError, match="need no mapping file"):
        tell_all("mimic3", database(base(), "e"), mapping="map.toml")


def test_compressed_tables_read_the_same(database, tell_all):
    tables = base(CHARTEVENTS=[chart(1), chart(2)], INPUTEVENTS_MV=[infusion(1)])
    one, two = (tell_all("mimic3", database(tables, s, suffix=s)) for s in (".csv", ".csv.gz"))
    pd.testing.assert_frame_equal(one.events, two.events)
    assert one.said == two.said == sum(one.account.rows.values())


@pytest.fixture(scope="module")
def demo(data_dir, tell_all):
    return tell_all("mimic3", data_dir / "mimic-iii-demo")


EVENT_TABLES = (
    "chartevents", "labevents", "outputevents", "inputevents_mv", "inputevents_cv", "procedureevents_mv",
    "microbiologyevents", "prescriptions", "transfers",
)  # fmt: skip


@pytest.mark.data
def test_every_row_of_the_demo_is_an_event_or_counted(demo):
    assert {t: demo.unaccounted(t) for t in EVENT_TABLES} == dict.fromkeys(EVENT_TABLES, 0)
    assert demo.account.rows["chartevents"] == 758_355
    assert demo.left("chartevents") == {"no_value": 2725, "error": 648, "outside_stay": 69}
    assert sum(demo.account.events.values()) == len(demo.events)
    assert demo.said == sum(demo.account.rows.values())


@pytest.mark.data
def test_encounters_of_the_demo_are_plausible(demo):
    assert len(demo.encounters) == 129
    assert demo.encounters["subject_id"].nunique() == 100
    assert demo.encounters["age_years"].between(15, 91.4).all()
    assert (demo.encounters["encounter_class"] == "icu").all()
    assert (
        demo.encounters["icu_admission_time"]
        >= demo.encounters["hospital_admission_time"] - pd.Timedelta("1D")
    ).all()


@pytest.mark.data
def test_events_of_the_demo_lie_in_their_stays_and_never_precede_themselves(demo):
    cleaned, account = clean(demo.events)
    ready, _ = fill_available_time(cleaned)
    validate(ready)
    assert (ready["available_time"] >= ready["time"]).all()
    began = demo.encounters.set_index("encounter_id")["hospital_admission_time"]
    before = began.loc[ready["encounter_id"]].reset_index(drop=True) - ready["time"]
    assert (before <= pd.Timedelta("1D")).all()
    assert not demo.events.duplicated(["encounter_id", "concept", "code", "source_id"]).any()
    # A quarter of all charted rows is of a concept; of what has one, all but a few in a hundred can be used.
    assert account.mapped > 0.2 * account.read
    assert len(cleaned) > 0.95 * account.mapped


@pytest.mark.data
def test_reading_the_demo_again_says_the_same(demo, data_dir, tell_all):
    again = tell_all("mimic3", data_dir / "mimic-iii-demo")
    pd.testing.assert_frame_equal(again.events, demo.events)
    pd.testing.assert_frame_equal(again.encounters, demo.encounters)
    assert again.account == demo.account


@pytest.mark.data
def test_gases_of_the_demo_that_are_not_arterial_are_told_apart(demo):
    """Of 1,155 oxygen pressures within a stay 48 are of mixed or venous blood; their mean is 46, not 124 mm[Hg]."""
    pressures = {kind: demo.of(f"MIMIC_LAB//50821{kind}")["numeric_value"] for kind in ("", "/VEN", "/MIX")}
    assert {kind: len(values) for kind, values in pressures.items()} == {"": 1107, "/VEN": 10, "/MIX": 38}
    assert pressures["/MIX"].mean() < 45 < 120 < pressures[""].mean()


@pytest.mark.data
def test_carevue_patients_of_the_demo_come_off_the_ventilator(demo):
    states = demo.events[demo.events["code"].str.endswith("/VENT")].sort_values(["encounter_id", "time"])
    again = states.groupby("encounter_id")["numeric_value"].diff() == 0
    assert not again.any()
    assert states["numeric_value"].value_counts().to_dict() == {0.0: 66, 1.0: 44}
