"""FHIR R4: one invented stay as resources, bundles and bulk export."""

from __future__ import annotations

import copy
import gzip
import json
import math
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import DataError
from features.events import NAT, validate
from features.sources import fhir
from features.sources.batch import ReadAccount
from features.sources.facts import Fact, Merge
from features.sources.fhir_elements import Known

Json = dict[str, Any]


def coded(code: str, system: str = "http://loinc.org", display: str = "") -> Json:
    return {"coding": [{"system": system, "code": code, "display": display}]}


def observation(**changes: Any) -> Json:
    whole = {
        "resourceType": "Observation",
        "id": "o1",
        "status": "final",
        "code": coded("2524-7", display="Lactate"),
        "subject": {"reference": "Patient/p1"},
        "encounter": {"reference": "Encounter/e1"},
        "effectiveDateTime": "2026-01-12T08:00:00Z",
        "issued": "2026-01-12T08:40:00Z",
        "valueQuantity": {
            "value": 2.1,
            "unit": "mmol/l",
            "code": "mmol/L",
            "system": "http://unitsofmeasure.org",
        },
    }
    whole.update(changes)
    return {k: v for k, v in whole.items() if v is not None}


def encounter(**changes: Any) -> Json:
    return {
        "resourceType": "Encounter",
        "id": "e1",
        "status": "finished",
        "class": {"code": "IMP"},
        "subject": {"reference": "Patient/p1"},
        "period": {"start": "2026-01-10T09:00:00Z", "end": "2026-01-13T11:30:00Z"},
    } | changes


PATIENT: Json = {"resourceType": "Patient", "id": "p1", "gender": "female", "birthDate": "1950-06-01"}


def only(resource: Json, **options: Any) -> Fact:
    said = fhir.facts(resource, **options)
    assert len(said.events) == 1, said
    return said.events[0]


def reasons(resource: Json) -> list[str]:
    said = fhir.facts(resource)
    assert said.events == []
    return [problem.reason for problem in said.problems]


def at(text: str) -> int:
    return int(pd.Timestamp(text).value // 1000)


def bundle(*resources: Json, kind: str = "collection") -> Json:
    return {"resourceType": "Bundle", "type": kind, "entry": [{"resource": r} for r in resources]}


def read(path: Path, **options: Any) -> tuple[pd.DataFrame, pd.DataFrame, ReadAccount]:
    account = ReadAccount()
    batches = list(fhir.batches(path, account, **options))
    events = pd.concat([b.events for b in batches], ignore_index=True)
    return pd.concat([b.encounters for b in batches], ignore_index=True), events, account


def lost(account: ReadAccount) -> dict[tuple[str, str], int]:
    """What was left, apart from resources that only describe the stay or its patient."""
    return {key: n for key, n in account.left.items() if key[1] not in ("about_the_stay", "referred_to")}


def read_these(
    folder: Path, *documents: Json, **options: Any
) -> tuple[pd.DataFrame, pd.DataFrame, ReadAccount]:
    for k, document in enumerate(documents):
        (folder / f"{k}.json").write_text(json.dumps(document))
    return read(folder, **options)


def test_an_observation_has_both_clocks_its_code_unit_and_identity():
    fact = only(observation())
    assert (fact.subject_id, fact.encounter_id, fact.source_id) == ("p1", "e1", "Observation/o1")
    assert (fact.code, fact.numeric_value, fact.unit, fact.status) == (
        "LOINC//2524-7",
        2.1,
        "mmol/L",
        "final",
    )
    assert (fact.time, fact.available_time) == (at("2026-01-12T08:00Z"), at("2026-01-12T08:40Z"))


def test_nothing_is_known_before_it_happened():
    assert only(observation(issued="2026-01-12T07:00:00Z")).available_time == at("2026-01-12T08:00Z")


def test_without_an_issue_the_policy_decides():
    assert only(observation(issued=None)).available_time == NAT


def test_a_bare_date_is_known_the_next_day():
    fact = only(observation(issued=None, effectiveDateTime="2026-01-12"), timezone="America/Toronto")
    assert (fact.time, fact.available_time) == (at("2026-01-12T05:00Z"), at("2026-01-13T05:00Z"))


def test_what_was_measured_over_a_period_is_dated_to_its_end():
    period = {"start": "2026-01-11T08:00:00Z", "end": "2026-01-12T08:00:00Z"}
    assert only(observation(effectiveDateTime=None, effectivePeriod=period)).time == at("2026-01-12T08:00Z")


@pytest.mark.parametrize("when", ["2026", "2026-01", "yesterday", "2026-13-45T00:00:00Z", 7, None])
def test_a_time_that_says_too_little_is_none(when: Any):
    assert reasons(observation(effectiveDateTime=when, issued=None)) == ["no_time"]


def test_naive_times_are_local():
    fact = only(observation(effectiveDateTime="2026-01-12T08:00:00", issued=None), timezone="Asia/Kathmandu")
    assert fact.time == at("2026-01-12T02:15Z")


@pytest.mark.parametrize(
    ("status", "ours"),
    [("final", "final"), ("preliminary", "preliminary"), ("registered", "preliminary"), ("amended", "corrected"),
     ("corrected", "corrected"), ("entered-in-error", "deleted"), ("cancelled", "deleted")],
)  # fmt: skip
def test_the_status_is_ours(status: str, ours: str):
    assert only(observation(status=status)).status == ours


def test_an_unknown_status_is_counted():
    assert reasons(observation(status="unknown")) == ["unknown_status"]


def test_a_deletion_needs_no_value_and_is_known_when_it_was_made():
    gone = observation(
        status="entered-in-error", valueQuantity=None, meta={"lastUpdated": "2026-01-12T12:00:00Z"}
    )
    fact = only(gone)
    assert fact.source_id == only(observation()).source_id
    assert fact.available_time == at("2026-01-12T12:00Z")


@pytest.mark.parametrize(
    ("value", "number", "words"),
    [
        ({"valueQuantity": {"value": 0.3, "comparator": "<"}}, 0.3, "<0.3"),
        ({"valueQuantity": {"value": "2.5"}}, 2.5, None),
        ({"valueInteger": 3}, 3, None),
        ({"valueBoolean": True}, 1, None),
        ({"valueString": " 98 "}, 98, None),
        ({"valueString": "Venturi"}, math.nan, "Venturi"),
        ({"valueCodeableConcept": {"text": "Voice"}}, math.nan, "Voice"),
        ({"valueCodeableConcept": coded("1", display="Alert")}, math.nan, "Alert"),
    ],
)
def test_values_of_every_kind(value: Json, number: float, words: str | None):
    fact = only(observation(valueQuantity=None) | value)
    assert fact.numeric_value == pytest.approx(number, nan_ok=True)
    assert fact.text_value == words


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dataAbsentReason": {"text": "not performed"}}, "data_absent"),
        ({"valueRatio": {}}, "value_type_unsupported"),
        ({"valueSampledData": {"data": "1 2"}}, "value_type_unsupported"),
        ({"valueQuantity": {"unit": "mmol/L"}}, "not_a_number"),
        ({"valueQuantity": {"value": 1e999}}, "not_a_number"),
        ({"hasMember": [{"reference": "Observation/2"}]}, "no_value"),
        ({"code": {}, "valueInteger": 1}, "no_code"),
        ({"subject": {"reference": "Group/g"}, "valueInteger": 1}, "not_a_patient"),
    ],
)
def test_what_has_no_value_is_counted(changes: Json, reason: str):
    assert reasons(observation(valueQuantity=None) | changes) == [reason]


def test_components_are_facts_of_their_own():
    pressure = observation(
        code=coded("85354-9"),
        valueQuantity=None,
        component=[
            {"code": coded("8480-6"), "valueQuantity": {"value": 120, "code": "mm[Hg]"}},
            {"code": coded("8462-4"), "valueQuantity": {"value": 80, "code": "mm[Hg]"}},
            {"code": coded("8478-0"), "dataAbsentReason": {"text": "unknown"}},
        ],
    )
    said = fhir.facts(pressure)
    assert [(f.code, f.numeric_value) for f in said.events] == [("LOINC//8480-6", 120), ("LOINC//8462-4", 80)]
    assert len({f.source_id for f in said.events}) == 2
    assert [(p.where, p.reason) for p in said.problems] == [("Observation.component", "data_absent")]


def test_the_first_coding_that_the_tables_know_is_kept():
    own = {"system": "http://north.example/codes", "code": "LAC"}
    known = {"system": "urn:oid:2.16.840.1.113883.6.1", "code": "2524-7"}
    assert only(observation(code={"coding": [own, known]})).code == "LOINC//2524-7"
    assert only(observation(code={"coding": [own]})).code == "http://north.example/codes//LAC"
    assert only(observation(code={"text": "Lactate"})).code == "LOCAL//Lactate"


@pytest.mark.parametrize(
    "reference",
    [
        {"reference": "Patient/p1"},
        {"reference": "https://ehr.example/fhir/Patient/p1"},
        {"reference": "https://ehr.example/fhir/Patient/p1/_history/3"},
        {"reference": "urn:uuid:p1"},
        {"reference": "urn:uuid:other"},
        {"reference": "Patient?identifier=http://mrn|77"},
        {"type": "Patient", "identifier": {"system": "http://mrn", "value": "77"}},
    ],
)
def test_references_of_every_kind_lead_to_the_patient(reference: Json):
    known = Known(urls={"urn:uuid:other": "p1"}, identifiers={("Patient", "http://mrn", "77"): "p1"})
    assert only(observation(subject=reference), known=known).subject_id == "p1"


def test_a_stay_is_told_by_its_locations_and_its_parts(tmp_path: Path):
    unit = {"resourceType": "Location", "id": "l2", "name": "Medical ICU"}
    stay = encounter(
        location=[
            {"location": {"display": "Emergency"}, "period": {"start": "2026-01-10T09:00:00Z"}},
            {"location": {"display": "Ward 4"}, "period": {"start": "2026-01-10T12:00:00Z"}},
            {"location": {"display": "Ward 5"}, "period": {"start": "2026-01-12T10:00:00Z"}},
        ],
        serviceType=coded("394802001", "http://snomed.info/sct", "General medicine"),
    )
    part = encounter(
        id="e2",
        partOf={"reference": "Encounter/e1"},
        location=[{"location": {"reference": "Location/l2"}}],
        period={"start": "2026-01-11T12:00:00Z", "end": "2026-01-12T10:00:00Z"},
    )
    inside = observation(encounter={"reference": "Encounter/e2"})
    encounters, events, account = read_these(tmp_path, bundle(inside, part, stay, unit, PATIENT))
    row = encounters.iloc[0]
    assert len(encounters) == 1
    assert (row["encounter_id"], row["subject_id"], row["encounter_class"]) == ("e1", "p1", "icu")
    assert (row["sex"], row["specialty"]) == ("female", "General medicine")
    assert row["age_years"] == pytest.approx(75.61, abs=0.01)
    assert row["icu_admission_time"] == pd.Timestamp("2026-01-11T12:00Z")
    moves = events[events["concept"] == "location"].sort_values("time")
    assert moves["text_value"].tolist() == ["ed", "ward", "icu", "ward", "left"]
    assert set(events["encounter_id"]) == {"e1"}
    assert set(events["concept"]) == {"", "location", "hospital_discharge", "icu_discharge"}
    assert not lost(account)
    validate(events)


def test_an_emergency_attendance_and_a_clinic(tmp_path: Path):
    ed = encounter(**{"class": {"code": "EMER"}})
    clinic = encounter(id="e2", **{"class": {"code": "AMB"}})
    planned = encounter(id="e3", status="planned")
    encounters, events, account = read_these(tmp_path, PATIENT, ed, clinic, planned)
    assert dict(zip(encounters["encounter_id"], encounters["encounter_class"], strict=True)) == {
        "e1": "ed",
        "e2": "ambulatory",
    }
    assert set(events["concept"]) == {"ed_arrival", "location", "hospital_discharge"}
    assert account.left == {
        ("Encounter", "no_stay"): 1,
        ("Encounter", "about_the_stay"): 1,
        ("Patient", "about_the_stay"): 1,
    }


def test_a_fact_without_an_encounter_goes_to_the_stay_that_contains_it(tmp_path: Path):
    inside = observation(encounter=None)
    outside = observation(id="o2", encounter=None, effectiveDateTime="2026-03-01T08:00:00Z")
    _, events, account = read_these(tmp_path, inside, outside, encounter(), PATIENT)
    assert events.loc[events["source_id"] == "Observation/o1", "encounter_id"].tolist() == ["e1"]
    assert account.left["Observation", "no_encounter"] == 1


def test_an_encounter_known_only_by_reference_begins_with_its_first_fact(tmp_path: Path):
    encounters, events, account = read_these(tmp_path, observation(), PATIENT)
    assert encounters["hospital_admission_time"].tolist() == events["time"].tolist()
    assert "known only because facts refer to them" in account.notes[0]


def test_an_encounter_of_another_patient_is_no_home(tmp_path: Path):
    stranger = observation(subject={"reference": "Patient/p9"})
    assert (
        read_these(tmp_path, encounter(), stranger)[2].left["Observation", "encounter_of_another_subject"]
        == 1
    )


def test_death_in_the_stay_and_after_it(tmp_path: Path):
    _, events, _ = read_these(tmp_path, PATIENT | {"deceasedDateTime": "2026-01-13T11:00:00Z"}, encounter())
    assert events.loc[events["concept"] == "death", "encounter_id"].tolist() == ["e1"]
    later = PATIENT | {"deceasedDateTime": "2026-06-01T11:00:00Z"}
    assert read_these(tmp_path, later, encounter())[2].left["Patient", "no_encounter"] == 1
    died = {
        "dischargeDisposition": coded("exp", "http://terminology.hl7.org/CodeSystem/discharge-disposition")
    }
    assert "death" in [f.concept for f in fhir.facts(encounter(hospitalization=died)).events]


def test_linked_patients_are_one(tmp_path: Path):
    old = {
        "resourceType": "Patient",
        "id": "p0",
        "link": [{"type": "replaced-by", "other": {"reference": "Patient/p1"}}],
    }
    assert fhir.facts(old).merges == [Merge("subject", "p0", "p1")]
    early = observation(subject={"reference": "Patient/p0"})
    _, events, account = read_these(tmp_path, encounter(), early, old, PATIENT)
    assert set(events["subject_id"]) == {"p1"}
    assert not lost(account)


# Drugs and cultures ---------------------------------------------------------------------------------------------------


def administration(**changes: Any) -> Json:
    return {
        "resourceType": "MedicationAdministration",
        "id": "m1",
        "status": "completed",
        "medicationCodeableConcept": {"text": "Norepinephrine 4 mg/50 mL"},
        "subject": {"reference": "Patient/p1"},
        "context": {"reference": "Encounter/e1"},
        "effectivePeriod": {"start": "2026-01-12T08:00:00Z", "end": "2026-01-12T10:00:00Z"},
        "dosage": {"rateQuantity": {"value": 0.1, "code": "ug/kg/min"}},
    } | changes


def test_an_infusion_is_its_rate_and_its_end():
    facts = fhir.facts(administration()).events
    assert [(f.concept, f.numeric_value, f.unit, f.time) for f in facts] == [
        ("norepinephrine", 0.1, "ug/kg/min", at("2026-01-12T08:00Z")),
        ("norepinephrine", 0.0, "ug/kg/min", at("2026-01-12T10:00Z")),
    ]
    ratio = {"numerator": {"value": 480, "code": "ug"}, "denominator": {"value": 2, "code": "h"}}
    first = fhir.facts(administration(dosage={"rateRatio": ratio})).events[0]
    assert (first.numeric_value, first.unit) == (240, "ug/h")


def test_other_drugs_are_kept_without_a_concept():
    plain = administration(
        medicationCodeableConcept=coded(
            "313782", "http://www.nlm.nih.gov/research/umls/rxnorm", "Acetaminophen 325 MG"
        ),
        dosage={"dose": {"value": 325, "code": "mg"}},
    )
    fact = only(plain)
    assert (fact.code, fact.concept, fact.numeric_value, fact.unit) == ("RXNORM//313782", "", 325, "mg")
    assert reasons(administration(status="not-done")) == ["not_given"]
    assert reasons(administration(medicationCodeableConcept={})) == ["no_drug"]
    assert reasons(administration(effectivePeriod={})) == ["no_time"]


@pytest.fixture
def cillins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "features.sources.therapies.antimicrobial", lambda name, route: "x" if "cillin" in name else None
    )


@pytest.mark.usefixtures("cillins")
def test_antimicrobials_given_and_ordered():
    drug = {"resourceType": "Medication", "id": "d1", "code": {"text": "Ampicillin 2 g"}}
    known = Known()
    fhir.learn(drug, known)
    given_ = administration(
        medicationCodeableConcept=None, medicationReference={"reference": "Medication/d1"}
    )
    given_.pop("medicationCodeableConcept")
    fact = only(given_, known=known)
    assert (fact.code, fact.concept, fact.numeric_value) == ("FHIR_DRUG//Ampicillin 2 g", "antibiotic", 1.0)
    inside = given_ | {"contained": [drug], "medicationReference": {"reference": "#d1"}}
    assert only(inside).text_value == "Ampicillin 2 g"
    order = {
        "resourceType": "MedicationRequest", "id": "r1", "status": "active", "intent": "order",
        "medicationCodeableConcept": {"text": "Ampicillin 2 g"}, "subject": {"reference": "Patient/p1"},
        "authoredOn": "2026-01-12",
    }  # fmt: skip
    ordered = only(order)
    assert (ordered.concept, ordered.available_time) == ("antibiotic", at("2026-01-13T00:00Z"))
    assert only(order | {"status": "cancelled"}).status == "deleted"
    assert reasons(order | {"intent": "plan"}) == ["not_an_order"]
    assert only(order | {"medicationCodeableConcept": {"text": "Norepinephrine"}}).concept == ""


def test_a_culture_is_known_when_taken_and_its_growth_when_reported():
    known = Known()
    fhir.learn(
        {
            "resourceType": "Specimen",
            "id": "s1",
            "type": {"text": "Venous blood"},
            "collection": {"collectedDateTime": "2026-01-12T07:50:00Z"},
        },
        known,
    )
    grown = observation(
        code=coded("600-7", display="Bacteria identified in Blood by Culture"),
        valueQuantity=None,
        valueCodeableConcept={"text": "Escherichia coli"},
        specimen={"reference": "Specimen/s1"},
        issued="2026-01-14T09:00:00Z",
    )
    by = {f.concept: f for f in fhir.facts(grown, known).events}
    assert set(by) == {"culture", "blood_culture", "positive_culture"}
    assert by["culture"].time == by["culture"].available_time == at("2026-01-12T07:50Z")
    assert by["culture"].code == "FHIR_SPEC//Venous blood"
    assert by["positive_culture"].available_time == at("2026-01-14T09:00Z")
    nothing = grown | {"valueCodeableConcept": {"text": "No growth after 5 days"}}
    assert {f.concept for f in fhir.facts(nothing, known).events} == {"culture", "blood_culture"}
    report = {"resourceType": "DiagnosticReport", "id": "r", "status": "final", "subject": {"reference": "Patient/p1"},
              "code": {"text": "Urine culture"}, "effectiveDateTime": "2026-01-12T08:00:00Z",
              "issued": "2026-01-14T09:00:00Z", "conclusion": "Klebsiella pneumoniae"}  # fmt: skip
    assert {f.concept for f in fhir.facts(report).events} == {"culture", "positive_culture"}
    assert reasons(report | {"result": [{"reference": "Observation/1"}]}) == ["not_a_culture"]


# Files ----------------------------------------------------------------------------------------------------------------

STORY = (PATIENT, encounter(), observation(), observation(id="o2", effectiveDateTime="2026-01-12T10:00:00Z"))


@pytest.mark.parametrize("kind", ["transaction", "batch", "message", "collection", "searchset"])
def test_bundles_of_every_kind_tell_the_same(tmp_path: Path, kind: str):
    _, events, account = read_these(tmp_path, bundle(*STORY, kind=kind))
    assert events["source_id"].str.startswith("Observation").sum() == 2
    assert account.rows == {"Patient": 1, "Encounter": 1, "Observation": 2}


def as_folder(folder: Path) -> None:
    for k, resource in enumerate(STORY):
        (folder / f"{k}.json").write_text(json.dumps(resource))


def as_bulk(folder: Path) -> None:
    for kind in ("Patient", "Encounter", "Observation"):
        lines = [json.dumps(r) for r in STORY if r["resourceType"] == kind]
        (folder / f"{kind}.000.ndjson").write_text("\n".join(lines) + "\n")


def as_bulk_packed(folder: Path) -> None:
    text = "\n".join(json.dumps(r) for r in reversed(STORY))
    (folder / "all.ndjson.gz").write_bytes(gzip.compress(text.encode()))


def as_nested(folder: Path) -> None:
    (folder / "b.json").write_text(
        json.dumps(bundle(bundle(*STORY[:2]), bundle(*STORY[2:]), kind="batch-response"))
    )


def as_prefetch(folder: Path) -> None:
    whole = {"patient": PATIENT, "stay": encounter(), "labs": bundle(*STORY[2:], kind="searchset")}
    (folder / "hook.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(whole).encode())


@pytest.mark.parametrize("written", [as_folder, as_bulk, as_bulk_packed, as_nested, as_prefetch])
def test_one_story_in_every_file_is_the_same(tmp_path: Path, written: Any):
    (tmp_path / "bundle").mkdir()
    stays, events, _ = read_these(tmp_path / "bundle", bundle(*STORY))
    (tmp_path / "other").mkdir()
    written(tmp_path / "other")
    same_stays, same_events, _ = read(tmp_path / "other")
    pd.testing.assert_frame_equal(same_stays, stays)
    order = ["time", "source_id", "concept"]
    pd.testing.assert_frame_equal(
        same_events.sort_values(order, ignore_index=True), events.sort_values(order, ignore_index=True)
    )


def test_temporary_identities_of_a_transaction_are_resolved(tmp_path: Path):
    entries = [
        {"fullUrl": "urn:uuid:a", "resource": {k: v for k, v in PATIENT.items() if k != "id"}},
        {"fullUrl": "urn:uuid:b", "resource": encounter(subject={"reference": "urn:uuid:a"})},
        {"resource": observation(subject={"reference": "urn:uuid:a"}, encounter={"reference": "urn:uuid:b"})},
        {"request": {"method": "DELETE", "url": "Observation/9"}},
    ]  # fmt: skip
    document = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    _, events, account = read_these(tmp_path, document)
    assert set(zip(events["subject_id"], events["encounter_id"], strict=True)) == {("a", "e1")}
    assert lost(account) == {("entry", "no_resource"): 1}


def test_a_site_says_what_its_own_codes_and_units_mean(tmp_path: Path):
    own = observation(code=coded("LAC", "http://north.example"), valueQuantity={"value": 2, "unit": "MMOLL"})
    mapping = {"codes": {"http://north.example//LAC": "lactate"}, "units": {"MMOLL": "mmol/L"}}
    _, events, _ = read_these(tmp_path, own, PATIENT, mapping=mapping)
    assert events[["code", "concept", "unit"]].iloc[0].tolist() == [
        "http://north.example//LAC",
        "lactate",
        "mmol/L",
    ]


def test_broken_files_and_lines_are_counted(tmp_path: Path):
    as_bulk(tmp_path)
    with (tmp_path / "Observation.000.ndjson").open("a") as lines:
        lines.write('{"resourceType": "Observ\n[1, 2]\n')
    (tmp_path / "x.json").write_text("{")
    (tmp_path / "y.json").write_text('{"a": 1}')
    account = read(tmp_path)[2]
    assert account.left["line", "not_json"] == account.left["line", "not_fhir"] == 1
    assert account.left["file", "not_json"] == account.left["file", "not_fhir"] == 1


def test_what_holds_no_fhir_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match="No FHIR at"):
        read(tmp_path)
    (tmp_path / "x.json").write_text('{"a": 1}')
    with pytest.raises(DataError, match="without a resourceType"):
        read(tmp_path)
    with pytest.raises(DataError, match="No mapping file"):
        read(tmp_path, mapping=tmp_path / "site.toml")


def test_a_packed_file_that_is_cut_short_is_refused(tmp_path: Path):
    as_bulk_packed(tmp_path)
    whole = (tmp_path / "all.ndjson.gz").read_bytes()
    (tmp_path / "all.ndjson.gz").write_bytes(whole[:-20])
    with pytest.raises(DataError, match=r"all\.ndjson\.gz could not be read"):
        read(tmp_path)


def test_batches_are_bounded_and_nothing_depends_on_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    many = [observation(id=f"o{k}", effectiveDateTime=f"2026-01-12T08:{k:02}:00Z") for k in range(20)]
    _, whole, _ = read_these(tmp_path, bundle(PATIENT, encounter(), *many))
    monkeypatch.setattr(fhir, "ROWS", 6)
    told: list[int] = []
    batches = list(fhir.batches(tmp_path, ReadAccount(), say=told.append))
    assert max(len(b.events) for b in batches) <= 8
    assert sum(told) == 22
    pd.testing.assert_frame_equal(pd.concat([b.events for b in batches], ignore_index=True), whole)


def test_problems_never_repeat_a_value():
    said = fhir.facts(
        observation(valueQuantity={"value": "SECRET"}, effectiveDateTime="SECRET", issued="SECRET")
    )
    assert said.problems
    assert "SECRET" not in str(said.problems)


ODD = [None, 1, -1.5, True, "", [], {}, [[]], [None], {"a": 1}, math.inf, 10**400, "2020-13-45", "9999-12-31",
       "0001-01-01T00:00:00+14:00", "Patient/", "#", "?", {"coding": "x"}, {"coding": [1, {"code": 3}]}]  # fmt: skip


def twisted(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON value with something wrong somewhere."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        return value | {key: twisted(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        return [twisted(value[0], rng), *value[1:]]
    return copy.deepcopy(rng.choice(ODD))


@given(st.integers(0, 2**32))
@settings(max_examples=300)
def test_no_twist_of_a_resource_is_an_error(seed: int):
    rng = random.Random(seed)
    resource = rng.choice(
        [PATIENT, encounter(location=[{"location": {"display": "ICU"}}]), observation(), administration()]
    )
    for _ in range(rng.randint(1, 4)):
        resource = twisted(resource, rng)
        resource = resource if isinstance(resource, dict) else {"resourceType": resource}
    known = Known()
    fhir.learn(resource, known, url="urn:uuid:1")
    for event in fhir.facts(resource, known).events:
        assert event.time != NAT
        assert event.available_time == NAT or event.available_time >= event.time
        assert not math.isinf(event.numeric_value)


@pytest.mark.data
def test_every_resource_of_the_open_collections_is_read(data_dir: Path):
    encounters, events, account = read(data_dir / "interop" / "fhir-r4")
    assert account.rows["Observation"] == 1_276
    assert account.events["Observation"] > 1_350
    assert len(encounters) > 300
    assert set(events["encounter_id"]) <= set(encounters["encounter_id"])
    assert encounters["encounter_id"].is_unique
    assert not (events["available_time"] < events["time"]).any()
    assert "ed" in set(encounters["encounter_class"])
