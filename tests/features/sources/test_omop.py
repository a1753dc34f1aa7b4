"""OMOP tables become events: codes by their standard concept, bare dates known the next day, nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from features.clean import clean, fill_available_time
from features.concepts import loader
from features.errors import DataError
from features.events import ENCOUNTER_COLUMNS, EVENT_COLUMNS, validate
from features.sources import omop, omop_vocabulary
from features.sources.batch import ReadAccount

Write = Callable[..., Path]
Row = dict[str, Any]
TEXTS = [c for c in EVENT_COLUMNS if c not in ("time", "available_time", "numeric_value")]
HEART_RATE = 3027018
"""OMOP's identifier of LOINC 8867-4."""


@dataclass
class Reading:
    account: ReadAccount
    encounters: pd.DataFrame
    events: pd.DataFrame
    said: int

    def of(self, code: str) -> pd.DataFrame:
        found = self.events[self.events["code"] == code]
        return found.sort_values(["time", "source_id"], ignore_index=True)

    def left(self, table: str) -> dict[str, int]:
        return {reason: n for (name, reason), n in self.account.left.items() if name == table}


def read(folder: Path, **how: Any) -> Reading:
    account, said = ReadAccount(), []
    found = list(omop.batches(folder, account, say=said.append, **how))
    events = pd.concat([b.events.astype(dict.fromkeys(TEXTS, "str")) for b in found], ignore_index=True)
    encounters = pd.concat([b.encounters for b in found if len(b.encounters)], ignore_index=True)
    return Reading(account, encounters, events, sum(said))


def utc(text: str) -> pd.Timestamp:
    return pd.Timestamp(text, tz="UTC")


def visit(number: int, start: str, end: str | None, concept: int = 9201, person: int = 1, **more: Any) -> Row:
    """A visit; times such as ``2026-05-01 08:00``."""
    return {
        "visit_occurrence_id": number,
        "person_id": person,
        "visit_concept_id": concept,
        "visit_start_date": start[:10],
        "visit_start_datetime": start if len(start) > 10 else None,
        "visit_end_date": end and end[:10],
        "visit_end_datetime": end if end and len(end) > 10 else None,
        **more,
    }


def measurement(
    number: int, when: str, concept: int = HEART_RATE, value: float | None = 80.0, **more: Any
) -> Row:
    return {
        "measurement_id": number,
        "person_id": 1,
        "measurement_concept_id": concept,
        "measurement_date": when[:10],
        "measurement_datetime": when if len(when) > 10 else None,
        "value_as_number": value,
        "visit_occurrence_id": 100,
        "measurement_source_value": "theirs",
        **more,
    }


def concept(number: int, name: str, domain: str, vocabulary: str, code: str = "") -> Row:
    return {
        "concept_id": number,
        "concept_name": name,
        "domain_id": domain,
        "vocabulary_id": vocabulary,
        "concept_code": code,
    }


STAY = [visit(100, "2026-05-01 08:00", "2026-05-05 18:00")]


def _column(cells: list[Any]) -> Any:
    """Whole numbers stay whole though some are missing."""
    whole = all(cell is None or isinstance(cell, int) for cell in cells)
    return pd.array(cells, dtype="Int64") if whole else cells


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Put tables into a folder, besides one person with one visit unless the test brings its own."""

    def put(suffix: str = "csv", **tables: list[Row]) -> Path:
        own = {"person": [{"person_id": 1, "gender_concept_id": 8532, "year_of_birth": 1966}]}
        for name, rows in {**own, "visit_occurrence": STAY, **tables}.items():
            frame = pd.DataFrame({column: _column([row.get(column) for row in rows]) for column in rows[0]})
            path = tmp_path / f"{name}.{suffix}"
            frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path, index=False)
        return tmp_path

    return put


def test_a_visit_is_an_encounter_with_its_person(write: Write) -> None:
    found = read(write())
    stay = found.encounters.iloc[0]
    assert list(found.encounters) == list(ENCOUNTER_COLUMNS)
    assert (stay["encounter_id"], stay["subject_id"], stay["sex"]) == ("100", "1", "female")
    assert stay["age_years"] == pytest.approx(59.83, abs=0.01), "first of July 1966 to first of May 2026"
    assert stay["encounter_class"] == "ward"
    assert stay["hospital_admission_time"] == utc("2026-05-01 08:00")
    assert found.of("WARDCAST//hospital_discharge")["time"].tolist() == [utc("2026-05-05 18:00")]
    assert found.of("WARDCAST//location")["text_value"].tolist() == ["ward", "left"]
    assert found.account.left["person", "describes_the_person"] == 1


def test_times_are_local_to_the_site(write: Write) -> None:
    found = read(write(measurement=[measurement(1, "2026-05-02 10:00")]), timezone="Europe/Vienna")
    assert found.of(f"OMOP//{HEART_RATE}")["time"].tolist() == [utc("2026-05-02 08:00")]


def test_outpatients_are_no_encounters(write: Write) -> None:
    visits = [*STAY, visit(200, "2026-04-01 09:00", "2026-04-01 09:00", concept=9202)]
    found = read(
        write(
            visit_occurrence=visits, measurement=[measurement(1, "2026-04-01 09:00", visit_occurrence_id=200)]
        )
    )
    assert found.encounters["encounter_id"].tolist() == ["100"]
    assert found.left("visit_occurrence") == {"outpatient_visit": 1}
    assert found.left("measurement") == {"no_encounter": 1}


def test_an_emergency_visit_is_one_unless_it_led_to_a_bed(write: Write) -> None:
    visits = [
        visit(1, "2026-05-01 08:00", "2026-05-01 12:00", 9203),
        visit(2, "2026-05-03 08:00", "2026-05-09 12:00", 262),
    ]
    found = read(write(visit_occurrence=visits))
    assert found.encounters["encounter_class"].tolist() == ["ed", "ward"]
    assert len(found.of("WARDCAST//ed_arrival")) == 2


def detail(number: int, start: str, end: str, concept: int = 9201, site: int | None = None) -> Row:
    return {
        "visit_detail_id": number,
        "person_id": 1,
        "visit_occurrence_id": 100,
        "visit_detail_concept_id": concept,
        "visit_detail_start_date": start[:10],
        "visit_detail_start_datetime": start,
        "visit_detail_end_date": end[:10],
        "visit_detail_end_datetime": end,
        "care_site_id": site,
    }


def test_visit_details_say_where_the_patient_was(write: Write) -> None:
    details = [
        detail(1, "2026-05-01 08:00", "2026-05-01 10:00", 9203),
        detail(2, "2026-05-01 10:00", "2026-05-02 10:00", 32037),
        detail(3, "2026-05-02 10:00", "2026-05-03 10:00", 9201, site=7),
        detail(4, "2026-05-03 10:00", "2026-05-05 18:00", 9201, site=8),
        detail(5, "2026-05-01 08:00", "2026-05-05 18:00", 8870),
        detail(6, "2026-05-02 10:00", "2026-05-03 10:00", 4150083),
    ]
    sites = [
        {"care_site_id": 7, "care_site_name": "Surgical ICU"},
        {"care_site_id": 8, "care_site_name": "4 West"},
    ]
    found = read(write(visit_detail=details, care_site=sites))
    moves = found.of("WARDCAST//location")
    assert moves["text_value"].tolist() == ["ed", "icu", "icu", "ward", "left"]
    assert found.of("WARDCAST//icu_discharge")["time"].tolist() == [utc("2026-05-03 10:00")]
    assert found.left("visit_detail") == {"whole_visit": 1, "no_place": 1}
    stay = found.encounters.iloc[0]
    assert stay["encounter_class"] == "icu"
    assert stay["icu_admission_time"] == utc("2026-05-01 10:00")


def test_a_site_says_what_its_care_sites_are(write: Write) -> None:
    details = [detail(1, "2026-05-01 08:00", "2026-05-05 18:00", 9201, site=8)]
    folder = write(visit_detail=details, care_site=[{"care_site_id": 8, "care_site_name": "4 West"}])
    assert read(folder, mapping={"places": {"4 West": "icu"}}).encounters["encounter_class"].tolist() == [
        "icu"
    ]


def test_codes_prefer_what_the_concept_tables_know(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {f"OMOP//{HEART_RATE}", "OMOP//2000030001", "LOINC//8867-4"}
    table = {c: r for c, r in loader.codes().items() if c in known}
    monkeypatch.setattr(omop_vocabulary.loader, "codes", lambda: table)
    words = omop_vocabulary.Vocabulary(loinc={"11": "8867-4", "12": "1-8"})
    assert words.code(str(HEART_RATE), "", "HR") == f"OMOP//{HEART_RATE}"
    assert words.code("99", "2000030001", "HR") == "OMOP//2000030001", (
        "the source concept is known, the standard not"
    )
    assert words.code("11", "", "HR") == "LOINC//8867-4"
    assert words.code("12", "", "HR") == "LOINC//1-8", "a LOINC code says more than a number"
    assert words.code("99", "98", "HR") == "OMOP//99"
    assert words.code("0", "0", "HR") == "OMOP_SOURCE//HR"
    assert words.code("", "", "") == ""


def test_a_site_says_what_its_own_codes_and_units_mean(write: Write) -> None:
    rows = [
        measurement(
            1, "2026-05-02 10:00", 0, 90.0, measurement_source_value="Krea", unit_source_value="UMOLL"
        ),
        measurement(2, "2026-05-02 11:00", 0, 1.5, measurement_source_value="Laktat", unit_source_value=None),
        measurement(
            3, "2026-05-02 12:00", HEART_RATE, 9.0, measurement_source_value="odd", unit_source_value=None
        ),
    ]
    codes = {
        "OMOP_SOURCE//Krea": "creatinine",
        "OMOP_SOURCE//Laktat": "LOINC//32693-4",
        f"OMOP//{HEART_RATE}": "gcs_total",
    }
    found = read(write(measurement=rows), mapping={"codes": codes, "units": {"UMOLL": "umol/L"}})
    usable, _ = clean(found.events[found.events["source_id"].str.startswith("measurement")])
    usable = usable.set_index(usable["concept"].astype(str))["numeric_value"]
    assert usable["creatinine"] == pytest.approx(90 * 0.011312)
    assert usable["lactate"] == 1.5
    assert usable["gcs_total"] == 9, "what the site says goes before the tables"


def test_a_concept_table_brings_loinc_and_units(write: Write) -> None:
    concepts = [
        concept(55, "Lactate in Blood", "Measurement", "LOINC", "32693-4"),
        concept(66, "a unit", "Unit", "UCUM", "mmol/L"),
    ]
    rows = [measurement(1, "2026-05-02 10:00", 55, 2.0, unit_concept_id=66, unit_source_value="theirs")]
    found = read(write(concept=concepts, measurement=rows))
    lactate = found.of("LOINC//32693-4")
    assert lactate["unit"].tolist() == ["mmol/L"]
    usable, _ = clean(found.events)
    assert "lactate" in set(usable["concept"])


def test_units_come_from_the_concept_or_from_the_source(write: Write) -> None:
    rows = [
        measurement(1, "2026-05-02 10:00", unit_concept_id=8541, unit_source_value="bpm"),
        measurement(2, "2026-05-02 11:00", unit_concept_id=0, unit_source_value="bpm"),
        measurement(3, "2026-05-02 12:00", unit_concept_id=None, unit_source_value=None),
    ]
    units = read(write(measurement=rows)).of(f"OMOP//{HEART_RATE}")["unit"]
    assert units.iloc[:2].tolist() == ["/min", "bpm"]
    assert pd.isna(units.iloc[2])


def test_a_date_alone_is_known_the_next_day(write: Write) -> None:
    rows = [measurement(1, "2026-05-02"), measurement(2, "2026-05-02 10:00")]
    found = read(write(measurement=rows), timezone="Europe/Vienna").of(f"OMOP//{HEART_RATE}")
    assert found["time"].tolist() == [utc("2026-05-01 22:00"), utc("2026-05-02 08:00")]
    assert found["available_time"].iloc[0] == utc("2026-05-02 22:00"), "as the third begins in Vienna"
    assert pd.isna(found["available_time"].iloc[1]), "the policy of the concept decides"


def test_many_midnights_are_dates_and_a_few_are_not(write: Write) -> None:
    rows = [measurement(k, f"2026-05-0{2 + k % 2} 00:00:00") for k in range(4)]
    dates = read(write(measurement=rows))
    assert dates.of(f"OMOP//{HEART_RATE}")["available_time"].notna().all()
    assert any("midnights" in note for note in dates.account.notes)
    rows += [measurement(9 + k, f"2026-05-02 {k:02d}:30:00") for k in range(24)]
    hours = read(write(measurement=rows))
    assert hours.of(f"OMOP//{HEART_RATE}")["available_time"].isna().all()


def test_a_fact_without_a_visit_belongs_to_the_one_that_spans_it(write: Write) -> None:
    rows = [
        measurement(1, "2026-05-02 10:00", visit_occurrence_id=None),
        measurement(2, "2026-06-02 10:00", visit_occurrence_id=None),
        measurement(3, "2026-05-02 10:00", visit_occurrence_id=999),
        measurement(4, "2026-07-02 10:00"),
    ]
    found = read(write(measurement=rows))
    assert found.of(f"OMOP//{HEART_RATE}")["source_id"].tolist() == ["measurement:1"]
    assert found.left("measurement") == {"no_encounter": 2, "outside_stay": 1}


def test_limits_and_words_are_kept_as_text(write: Write) -> None:
    concepts = [concept(77, "Positive", "Meas Value", "SNOMED")]
    usual = {"operator_concept_id": None, "value_as_concept_id": None, "value_source_value": None}
    rows = [
        measurement(1, "2026-05-02 10:00", value=0.01, **{**usual, "operator_concept_id": 4171756}),
        measurement(2, "2026-05-02 11:00", value=5.0, **{**usual, "operator_concept_id": 4172703}),
        measurement(3, "2026-05-02 12:00", value=None, **{**usual, "value_as_concept_id": 77}),
        measurement(4, "2026-05-02 13:00", value=None, **{**usual, "value_source_value": " clotted "}),
        measurement(5, "2026-05-02 14:00", value=None, **usual),
    ]
    found = read(write(concept=concepts, measurement=rows))
    heart = found.of(f"OMOP//{HEART_RATE}")
    assert heart["numeric_value"].tolist()[:2] == [0.01, 5.0]
    assert heart["text_value"].fillna("").tolist() == ["<0.01", "", "Positive", "clotted"]
    assert found.left("measurement") == {"no_value": 1}


def test_a_measurement_of_nothing_is_counted(write: Write) -> None:
    rows = [
        measurement(1, "2026-05-02 10:00", 0, measurement_source_value=None),
        measurement(2, "2026-05-02 10:00", 0),
    ]
    found = read(write(measurement=rows))
    assert found.left("measurement") == {"no_code": 1}
    assert found.of("OMOP_SOURCE//theirs")["numeric_value"].tolist() == [80.0]


def test_observations_are_read_alike(write: Write) -> None:
    row = {
        "person_id": 1,
        "visit_occurrence_id": 100,
        "observation_date": "2026-05-02",
        "observation_concept_id": 88,
    }
    rows = [
        {**row, "observation_id": 1, "observation_datetime": "2026-05-02 10:00", "value_as_string": "yes"},
        {**row, "observation_id": 2, "observation_datetime": None, "value_as_string": None},
    ]
    found = read(write(observation=rows))
    assert found.of("OMOP//88")["text_value"].tolist() == ["yes"]
    assert found.left("observation") == {"no_value": 1}


def drug(number: int, start: str, concept_id: int = 0, value: str | None = None, **more: Any) -> Row:
    usual = {
        "route_source_value": "IV",
        "drug_exposure_end_datetime": None,
        "drug_type_concept_id": 32818,
        "quantity": None,
        "dose_unit_source_value": None,
    }
    return {
        "drug_exposure_id": number,
        "person_id": 1,
        "visit_occurrence_id": 100,
        "drug_concept_id": concept_id,
        "drug_exposure_start_date": start[:10],
        "drug_exposure_start_datetime": start if len(start) > 10 else None,
        "drug_source_value": value,
        **usual,
        **more,
    }


@pytest.fixture
def curing(monkeypatch: pytest.MonkeyPatch) -> None:
    """One drug cures infections, but in the ear, and one raises the blood pressure."""
    monkeypatch.setattr(
        omop_vocabulary,
        "antimicrobial",
        lambda name, route=None: "cure" if "cure" in name.lower() and route != "OTIC" else None,
    )
    monkeypatch.setattr(
        omop_vocabulary, "vasoactive", lambda name: "norepinephrine" if "norepi" in name.lower() else ""
    )


@pytest.mark.usefixtures("curing")
def test_antibiotics_are_named_by_concept_or_source(write: Write) -> None:
    concepts = [
        concept(5, "cure 1 GM Injection", "Drug", "RxNorm"),
        concept(6, "salt 1 GM", "Drug", "RxNorm"),
    ]
    rows = [
        drug(1, "2026-05-02 10:00", 5, "00093"),
        drug(2, "2026-05-02 11:00", 0, "CURE tablet"),
        drug(3, "2026-05-02", 5),
        drug(4, "2026-05-02 11:00", 0, "cure drops", route_source_value="OTIC"),
        drug(5, "2026-05-02 11:00", 6, "00094"),
        drug(6, "2026-05-02 11:00", 7, "00095"),
    ]
    found = read(write(concept=concepts, drug_exposure=rows))
    given = found.events[found.events["concept"] == "antibiotic"].sort_values("source_id")
    assert given["text_value"].tolist() == ["cure 1 GM Injection", "CURE tablet", "cure 1 GM Injection"]
    assert given["code"].iloc[1] == "OMOP_DRUG//CURE tablet"
    assert given["available_time"].iloc[2] == utc("2026-05-03"), "a date alone"
    assert found.left("drug_exposure") == {"other_drug": 2, "no_drug_name": 1}


@pytest.mark.usefixtures("curing")
def test_a_standard_drug_without_a_row_is_named_by_the_local_one_that_maps_to_it(write: Write) -> None:
    concepts = [concept(2_000_000_005, "Cure 1g bag", "Drug", "local")]
    maps = [{"concept_id_1": 2_000_000_005, "concept_id_2": 5, "relationship_id": "Maps to"}]
    folder = write(
        **{
            "2b_concept": concepts,
            "2b_concept_relationship": maps,
            "drug_exposure": [drug(1, "2026-05-02 10:00", 5)],
        }
    )
    found = read(folder)
    assert found.of("OMOP_DRUG//Cure 1g bag")["concept"].tolist() == ["antibiotic"]


@pytest.mark.usefixtures("curing")
def test_rates_are_spread_over_the_time_and_the_weight(write: Write) -> None:
    weight = [measurement(1, "2026-05-01 09:00", 3025315, 80.0, unit_concept_id=9529)]
    end = {"drug_exposure_end_datetime": "2026-05-02 12:00"}
    rows = [
        drug(1, "2026-05-02 10:00", 0, "Norepi", quantity=0.96, dose_unit_source_value="mg", **end),
        drug(2, "2026-05-02 12:00", 0, "Norepi", quantity=0.2, dose_unit_source_value="mcg/kg/min",
             drug_exposure_end_datetime="2026-05-02 13:00"),
        drug(3, "2026-05-02 10:00", 0, "Norepi", quantity=1, dose_unit_source_value="VIAL", **end),
        drug(4, "2026-05-02 10:00", 0, "Norepi", quantity=1, dose_unit_source_value="mg"),
        drug(5, "2026-05-02 10:00", 0, "Norepi", quantity=1, dose_unit_source_value="mg", drug_type_concept_id=32838,
             **end),
        drug(6, "2026-05-01 08:30", 0, "Norepi", quantity=1, dose_unit_source_value="mg",
             drug_exposure_end_datetime="2026-05-01 08:45"),
    ]  # fmt: skip
    found = read(write(measurement=weight, drug_exposure=rows))
    rates = found.of("OMOP_DRUG//Norepi")
    usable, _ = clean(rates)
    assert usable["numeric_value"].tolist() == pytest.approx([0.1, 0.0, 0.2, 0.0]), "0.96 mg in 2 h at 80 kg"
    assert rates["concept"].unique().tolist() == ["norepinephrine"]
    known = rates.sort_values(["time", "numeric_value"])["available_time"].tolist()
    assert known[0] == utc("2026-05-02 12:00"), "a mean over the time is known when the time is over"
    assert all(pd.isna(k) for k in known[1:])
    assert "known when the infusion ends" in " ".join(found.account.notes)
    assert found.left("drug_exposure") == {"no_rate": 2, "order_without_rate": 1, "no_weight": 1}


@pytest.mark.usefixtures("curing")
def test_an_infusion_that_ends_on_a_date_runs_until_its_end_and_has_no_mean(write: Write) -> None:
    end = {"drug_exposure_end_date": "2026-05-02"}
    rows = [
        drug(1, "2026-05-02 10:00", 0, "Norepi", quantity=0.2, dose_unit_source_value="mcg/kg/min", **end),
        drug(2, "2026-05-02 10:00", 0, "Norepi", quantity=1, dose_unit_source_value="mg", **end),
    ]
    found = read(write(drug_exposure=rows))
    rates = found.of("OMOP_DRUG//Norepi")
    assert rates["time"].tolist() == [utc("2026-05-02 10:00"), utc("2026-05-03")]
    assert rates["numeric_value"].tolist() == [0.2, 0]
    assert found.left("drug_exposure") == {"no_rate": 1}


def test_ventilation_runs_from_start_to_end(write: Write) -> None:
    row = {"person_id": 1, "visit_occurrence_id": 100, "procedure_date": "2026-05-02"}
    rows = [
        {
            **row,
            "procedure_occurrence_id": 1,
            "procedure_concept_id": 4177224,
            "procedure_datetime": "2026-05-02 10:00",
            "procedure_end_datetime": "2026-05-03 10:00",
        },
        {
            **row,
            "procedure_occurrence_id": 2,
            "procedure_concept_id": 12345,
            "procedure_datetime": "2026-05-02 11:00",
            "procedure_end_datetime": None,
        },
    ]
    found = read(write(procedure_occurrence=rows))
    assert found.of("OMOP//4177224")["numeric_value"].tolist() == [1.0, 0.0]
    assert found.of("OMOP//4177224")["time"].tolist() == [utc("2026-05-02 10:00"), utc("2026-05-03 10:00")]
    assert found.left("procedure_occurrence") == {"other_procedure": 1}


def test_specimens_are_cultures(write: Write) -> None:
    row = {"person_id": 1, "specimen_date": "2026-05-02", "specimen_datetime": "2026-05-02 10:00"}
    rows = [
        {**row, "specimen_id": 1, "specimen_concept_id": 4001225, "specimen_source_value": "70012"},
        {**row, "specimen_id": 2, "specimen_concept_id": 0, "specimen_source_value": "URINE"},
        {**row, "specimen_id": 3, "specimen_concept_id": 0, "specimen_source_value": None},
        {
            **row,
            "specimen_id": 4,
            "specimen_concept_id": 5,
            "specimen_source_value": "x",
            "specimen_datetime": None,
        },
    ]
    found = read(write(specimen=rows))
    cultures = found.events[found.events["concept"] == "culture"].sort_values("source_id")
    assert cultures["code"].tolist() == ["OMOP_SPEC//4001225", "OMOP_SPEC//URINE", "OMOP_SPEC//5"]
    assert (found.events["concept"] == "blood_culture").sum() == 1
    assert cultures["available_time"].iloc[2] == utc("2026-05-03")
    assert found.left("specimen") == {"no_code": 1}


@pytest.mark.parametrize(
    ("when", "hour", "reason"),
    [
        ("2026-05-05 12:00", "2026-05-05 12:00", None),
        ("2026-05-05", "2026-05-05 18:00", None),
        ("2026-05-05 00:00", "2026-05-05 18:00", None),
        ("2026-05-06", None, "after_discharge"),
        ("2026-05-05 19:00", None, "after_discharge"),
        ("2026-04-30", None, "after_discharge"),
    ],
)
def test_death_in_hospital_of_an_unknown_hour_is_at_its_end(
    write: Write, when: str, hour: str | None, reason: str | None
) -> None:
    row = {"person_id": 1, "death_date": when[:10], "death_datetime": when if len(when) > 10 else None}
    found = read(write(death=[row]))
    death = found.of("WARDCAST//death")
    assert death["time"].tolist() == ([utc(hour)] if hour else [])
    assert found.left("death") == ({reason: 1} if reason else {})


@pytest.mark.parametrize("column", ["discharged_to_concept_id", "discharge_to_concept_id"])
def test_a_discharge_may_say_that_the_patient_died(write: Write, column: str) -> None:
    visits = [visit(100, "2026-05-01 08:00", "2026-05-05 18:00", **{column: 4216643})]
    found = read(write(visit_occurrence=visits, death=[{"person_id": 1, "death_date": "2026-05-05"}]))
    assert found.of("WARDCAST//death")["time"].tolist() == [utc("2026-05-05 18:00")]
    assert found.left("death") == {"told_by_discharge": 1}


def test_a_visit_that_ends_on_a_date_lasts_the_day(write: Write) -> None:
    rows = [measurement(1, "2026-05-05 20:00", visit_occurrence_id=None)]
    found = read(write(visit_occurrence=[visit(100, "2026-05-01", "2026-05-05")], measurement=rows))
    assert found.of("WARDCAST//hospital_discharge")["available_time"].tolist() == [utc("2026-05-06")]
    assert found.account.events["measurement"] == 1


def test_a_visit_that_begins_on_a_date_is_known_the_next_day(write: Write) -> None:
    visits = [
        visit(1, "2026-05-01", "2026-05-04", concept=32037),
        visit(2, "2026-06-01", "2026-06-01 15:00", concept=32037),
        visit(3, "2026-07-01", None),
    ]
    found = read(
        write(
            visit_occurrence=visits,
            visit_detail=[{**detail(9, "2026-07-01 10:00", "2026-07-02 10:00"), "visit_occurrence_id": 3}],
            measurement=[measurement(1, "2026-05-01 20:00", visit_occurrence_id=None)],
        )
    )
    known = [utc("2026-05-02"), utc("2026-06-01 15:00")]
    for column in ("hospital_admission_time", "icu_admission_time"):
        assert found.encounters[column].tolist()[:2] == known
    assert found.encounters["hospital_admission_time"].iloc[2] == utc("2026-07-01 10:00"), "by its first move"
    assert found.of("WARDCAST//hospital_admission")["available_time"].tolist()[:2] == known
    assert found.account.events["measurement"] == 1, "the day itself belongs to the visit"


def test_therapy_that_ends_on_a_date_runs_until_its_end(write: Write) -> None:
    row = {
        "person_id": 1,
        "visit_occurrence_id": 100,
        "procedure_occurrence_id": 1,
        "procedure_concept_id": 4177224,
        "procedure_date": "2026-05-02",
        "procedure_datetime": "2026-05-02 10:00",
        "procedure_end_date": "2026-05-03",
        "procedure_end_datetime": None,
    }
    found = read(write(procedure_occurrence=[row])).of("OMOP//4177224")
    assert found["time"].tolist() == [utc("2026-05-02 10:00"), utc("2026-05-04")]


def test_identifiers_keep_all_their_digits(write: Write) -> None:
    big = -5_779_522_865_065_417_426
    rows = [
        measurement(1, "2026-05-02 10:00", visit_occurrence_id=big),
        measurement(2, "2026-05-02 11:00", visit_occurrence_id=None),
    ]
    visits = [visit(big, "2026-05-01 08:00", "2026-05-05 18:00")]
    found = read(write(suffix="parquet", visit_occurrence=visits, measurement=rows))
    assert found.events["encounter_id"].unique().tolist() == [str(big)]
    assert found.account.events["measurement"] == 2


def test_pieces_of_any_length_tell_the_same(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [measurement(k, f"2026-05-0{1 + k % 4} {10 + k % 12}:{k % 60:02d}") for k in range(50)]
    folder = write(suffix="parquet", measurement=rows)
    whole = read(folder)
    stream = omop.Tables.stream
    monkeypatch.setattr(
        omop.Tables,
        "stream",
        lambda self, name, columns, **how: stream(self, name, columns, **{**how, "rows": 7}),
    )
    pd.testing.assert_frame_equal(read(folder).events, whole.events)


def test_a_table_that_is_missing_or_lacks_a_column_is_named(write: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="measurement_concept_id"):
        read(write(measurement=[{"measurement_id": 1, "person_id": 1, "measurement_date": "2026-05-02"}]))
    (tmp_path / "visit_occurrence.csv").unlink()
    with pytest.raises(DataError, match="visit_occurrence"):
        read(tmp_path)


def test_words_among_the_numbers_are_refused_without_showing_them(write: Write) -> None:
    rows = [
        measurement(1, "2026-05-02 10:00"),
        {**measurement(2, "2026-05-02 10:00"), "value_as_number": "Smith"},
    ]
    with pytest.raises(DataError, match="value_as_number") as refusal:
        read(write(measurement=rows))
    assert "Smith" not in str(refusal.value)


def test_our_own_table_of_concepts_is_in_order() -> None:
    for kind in (
        "place",
        "emergency",
        "outpatient",
        "sex",
        "died",
        "administered",
        "operator",
        "blood",
        "unit",
    ):
        assert omop_vocabulary.known(kind), kind
    canonical = {c.unit for c in loader.concepts().values()}
    convertible = {u for c in loader.concepts() for u in loader.conversions(c)}
    assert set(omop_vocabulary.known("unit").values()) <= canonical | convertible


def test_an_unknown_time_zone_is_refused(write: Write) -> None:
    with pytest.raises(DataError, match="no time zone 'Mars/Olympus'"):
        read(write(), timezone="Mars/Olympus")


@pytest.fixture(scope="module")
def demo(data_dir: Path) -> Reading:
    """The MIMIC-IV demo in OMOP, without its large tables."""
    return read(data_dir / "tinyehr" / "tinyehr_omop_format")


@pytest.mark.data
def test_every_row_of_the_demo_makes_events_or_is_counted(demo: Reading) -> None:
    named = demo.events["source_id"].str.extract(r"^(?:[01]:)?(?P<table>[a-z_]+):(?P<key>-?\d+)$")
    assert named.notna().all(axis=None)
    used = named.drop_duplicates().groupby("table").size()
    for table, rows in demo.account.rows.items():
        left = sum(demo.left(table).values())
        assert used.get(table, 0) + left == rows, table
    assert demo.said == sum(demo.account.rows.values())
    assert sum(demo.account.events.values()) == len(demo.events)


@pytest.mark.data
def test_the_demo_is_the_patients_of_the_other_formats(demo: Reading) -> None:
    assert demo.encounters["subject_id"].nunique() == 100
    assert (demo.encounters["encounter_class"] == "icu").sum() == 128, "as in CLIF"
    assert len(demo.of("WARDCAST//death")) == 15, "as in CLIF"
    usable, account = clean(demo.events)
    assert account.mapped == account.read
    filled, _ = fill_available_time(usable)
    validate(filled)
    begun = demo.encounters.set_index("encounter_id")["hospital_admission_time"]
    early = demo.events["encounter_id"].map(begun) - demo.events["time"]
    assert (early <= pd.Timedelta(days=1)).all()
    assert not demo.events.duplicated(["encounter_id", "code", "concept", "source_id"]).any()


@pytest.mark.data
def test_specimens_of_the_demo_are_named_by_the_local_concepts_that_map_to_them(demo: Reading) -> None:
    assert len(demo.of("OMOP_SPEC//URINE")) > 0


@pytest.mark.data
def test_local_codes_of_the_demo_are_known_by_their_own_concepts(data_dir: Path) -> None:
    """The large tables are absent, but the codes that they hold stand in the concept table."""
    table = pd.read_parquet(data_dir / "tinyehr" / "tinyehr_omop_format" / "2b_concept.parquet")
    local = table[table["vocabulary_id"].isin(["mimiciv_meas_lab_loinc", "mimiciv_meas_chart"])]
    words = omop_vocabulary.Vocabulary()
    codes = [words.code("0", str(c), "") for c in local["concept_id"]]
    assert sum(c in loader.codes() for c in codes) > 60
