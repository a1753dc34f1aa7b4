"""POST /fhir: whatever its wrapping, FHIR ends where JSON does, and every entry is told what became of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.labels.sepsis3 import PRESETS
from serving.clock import to_us
from serving.monitoring.outcomes import from_store
from serving.store import facts

NINE = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
LOINC, UCUM = "http://loinc.org", "http://unitsofmeasure.org"
VITALS = {
    "8867-4": (118, "/min"), "8480-6": (96, "mm[Hg]"), "8478-0": (61, "mm[Hg]"), "8310-5": (38.6, "Cel"),
    "9279-1": (26, "/min"), "59408-5": (93, "%"), "2524-7": (4.1, "mmol/L"), "2160-0": (1.9, "mg/dL"),
}  # fmt: skip
Json = dict[str, Any]


def at(hour: float) -> str:
    return (NINE + timedelta(hours=hour)).isoformat()


def patient() -> Json:
    return {"resourceType": "Patient", "id": "p1", "gender": "female", "birthDate": "1955-02-14"}


def encounter(**more: Any) -> Json:
    place = {"location": {"display": "ICU"}, "period": {"start": at(0)}}
    return {
        "resourceType": "Encounter", "id": "e1", "status": "in-progress", "class": {"code": "IMP"},
        "subject": {"reference": "Patient/p1"}, "period": {"start": at(0)}, "location": [place],
    } | more  # fmt: skip


def observation(code: str, hour: float, value: float | None = None, **more: Any) -> Json:
    usual, unit = VITALS.get(code, (1, "1"))
    return {
        "resourceType": "Observation", "id": f"{code}-{hour}", "status": "final",
        "code": {"coding": [{"system": LOINC, "code": code}]},
        "subject": {"reference": "Patient/p1"}, "encounter": {"reference": "Encounter/e1"},
        "effectiveDateTime": at(hour), "issued": at(hour),
        "valueQuantity": {"value": usual if value is None else value, "system": UCUM, "code": unit},
    } | more  # fmt: skip


def administration(**more: Any) -> Json:
    return {
        "resourceType": "MedicationAdministration", "id": "m1", "status": "completed",
        "medicationCodeableConcept": {"text": "Vancomycin 1 g"}, "subject": {"reference": "Patient/p1"},
        "context": {"reference": "Encounter/e1"}, "effectiveDateTime": at(1.5),
        "dosage": {"route": {"text": "Intravenous"}},
    } | more  # fmt: skip


def bundle(kind: str, *resources: Json) -> Json:
    entries = [
        {"resource": r, "request": {"method": "POST", "url": r["resourceType"]}} if kind in ("transaction", "batch")
        else {"resource": r} for r in resources
    ]  # fmt: skip
    return {"resourceType": "Bundle", "type": kind, "entry": entries}


def whole() -> list[Json]:
    return [patient(), encounter(), *(observation(c, h) for h in (1, 2) for c in VITALS), administration()]


def send(service: Any, document: Any, **headers: str) -> Any:
    given = {"Content-Type": "application/fhir+json"} | service.headers | headers
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return service.client.post("/fhir", content=body, headers=given)


def clock(service: Any, hour: float) -> None:
    """Move the service's clock; FHIR has no word for it."""
    service.send({"as_of": at(hour)})


def events(service: Any, who: str = "e1") -> Any:
    return service.state.store.events([who], NINE + timedelta(days=9))


@pytest.mark.parametrize("kind", ["transaction", "batch", "message", "collection"])
def test_a_bundle_is_scored_as_the_same_facts_by_json(
    service: Any, make_service: Callable[..., Any], tmp_path: Path, kind: str
):
    clock(service, 2)
    answer = send(service, bundle(kind, *whole()))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("application/fhir+json")
    told = answer.json()
    assert told["type"] == ("transaction-response" if kind == "transaction" else "batch-response")
    assert [e["response"]["status"] for e in told["entry"]] == ["201 Created"] * len(whole())
    assert all(e["response"]["outcome"]["resourceType"] == "OperationOutcome" for e in told["entry"])
    other = make_service(VAR=str(tmp_path / "other"))
    about = {"encounter_id": "e1", "subject_id": "p1", "encounter_class": "icu", "age_years": 71.0, "sex": "female",
             "icu_admission_time": at(0), "hospital_admission_time": at(0)}  # fmt: skip
    said = [
        {"encounter_id": "e1", "code": f"LOINC//{c}", "value": v, "unit": u, "time": at(h), "available_time": at(h)}
        for h in (1, 2) for c, (v, u) in VITALS.items()
    ]  # fmt: skip
    other.send({"encounters": [about], "events": said, "as_of": at(2)})
    ours, theirs = (s.get("/v1/risk", encounter="e1").json() for s in (service, other))
    assert ours["status"] == theirs["status"] == "scored"
    assert ours["raw"] == theirs["raw"]


def test_single_resources_in_any_order_of_a_bundle_and_apart(service: Any):
    clock(service, 2)
    for resource in whole():
        answer = send(service, resource)
        assert answer.status_code == 201, answer.text
        assert answer.json()["issue"][0]["severity"] == "information"
    apart = service.get("/v1/risk", encounter="e1").json()["raw"]
    assert send(service, bundle("collection", *reversed(whole()))).status_code == 200
    assert service.get("/v1/risk", encounter="e1").json()["raw"] == apart
    assert "antibiotic" in set(events(service)["concept"])


def test_the_same_again_changes_nothing_and_says_so(service: Any):
    clock(service, 2)
    send(service, bundle("collection", *whole()))
    before = len(events(service))
    again = send(service, observation("8867-4", 1))
    assert (again.status_code, again.json()["issue"][0]["code"]) == (200, "duplicate")
    send(service, bundle("collection", *whole()))
    assert len(events(service)) == before


def test_a_correction_takes_the_place_of_what_it_corrects_and_an_error_takes_it_back(service: Any):
    clock(service, 2)
    send(service, bundle("collection", *whole()))
    first = service.get("/v1/risk", encounter="e1").json()["raw"]
    changed = observation("8867-4", 2, 70, status="corrected", issued=at(3))
    clock(service, 3)
    assert send(service, changed).status_code == 201
    second = service.get("/v1/risk", encounter="e1").json()["raw"]
    clock(service, 4)
    gone = observation("8867-4", 2, 70, status="entered-in-error", meta={"lastUpdated": at(4)})
    assert send(service, gone).status_code == 201
    third = service.get("/v1/risk", encounter="e1").json()["raw"]
    assert len({first, second, third}) == 3


def test_an_encounter_that_ends_is_no_longer_scored(service: Any):
    clock(service, 2)
    send(service, bundle("collection", *whole()))
    clock(service, 5)
    send(service, encounter(status="finished", period={"start": at(0), "end": at(4)}))
    assert service.get("/v1/risk", encounter="e1").json()["error"]["code"] == "encounter_ended"


def test_a_patient_replaced_by_another_brings_their_encounters(service: Any):
    clock(service, 2)
    send(service, bundle("collection", *whole()))
    link = [{"type": "replaced-by", "other": {"reference": "Patient/p2"}}]
    assert send(service, patient() | {"link": link}).status_code == 201
    with service.state.store.read() as connection:
        assert facts.latest(connection, ["e1"])["e1"]["subject_id"] == "p2"
    # The old name still leads there.
    assert send(service, observation("8867-4", 1.5)).status_code == 201


def test_a_batch_takes_what_it_can_and_a_transaction_all_or_nothing(service: Any):
    clock(service, 2)
    future = observation("8867-4", 30)
    good = [patient(), encounter(), observation("8867-4", 1)]
    refused = send(service, bundle("transaction", *good, future))
    assert refused.status_code == 422
    (issue,) = refused.json()["issue"]
    assert (issue["severity"], issue["expression"]) == ("error", ["Bundle.entry[3].resource"])
    assert len(events(service)) == 0
    taken = send(service, bundle("batch", *good, future)).json()["entry"]
    assert [e["response"]["status"][:3] for e in taken] == ["201", "201", "201", "422"]
    assert (events(service)["concept"] == "heart_rate").sum() == 1


def test_a_patient_who_died_long_before_or_after_any_encounter_spoils_no_transaction(service: Any):
    clock(service, 2)
    died = patient() | {"deceasedDateTime": at(-24 * 400)}
    taken = send(service, bundle("transaction", died, encounter(), observation("8867-4", 1)))
    assert [e["response"]["status"][:3] for e in taken.json()["entry"]] == ["201"] * 3
    (issue,) = taken.json()["entry"][0]["response"]["outcome"]["issue"]
    assert (issue["severity"], issue["expression"]) == ("information", ["Bundle.entry[0].resource.deceased"])
    assert "death" not in set(events(service)["concept"])
    assert "heart_rate" in set(events(service)["concept"])


def test_each_entry_hears_what_could_not_be_used(service: Any):
    clock(service, 2)
    strange = [
        observation("8867-4", 1, 9000),
        observation("0000-0", 1),
        observation("8867-4", 1.2, valueQuantity={"value": 80, "code": "furlong"}),
        {"resourceType": "Condition", "id": "c"},
        observation("8867-4", 1.3, encounter=None, subject={"reference": "Patient/stranger"}),
        observation("8867-4", 1.4, status="no such status"),
        observation("8867-4", 1.5, effectiveDateTime="yesterday", issued="yesterday"),
        observation("8867-4", 1.6, subject={"reference": "Patient/p2"}),
    ]
    answer = send(service, bundle("batch", patient(), encounter(), *strange)).json()["entry"][2:]
    found = [
        (e["response"]["status"][:3], e["response"]["outcome"]["issue"][0]["severity"],
         e["response"]["outcome"]["issue"][0]["code"]) for e in answer
    ]  # fmt: skip
    assert found == [
        ("201", "warning", "invalid"), ("201", "warning", "code-invalid"), ("201", "warning", "code-invalid"),
        ("200", "information", "not-supported"), ("422", "error", "invalid"), ("422", "error", "invalid"),
        ("422", "error", "invalid"), ("422", "error", "invalid"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"not json", "application/fhir+json", 400), (b"[]", "application/fhir+json", 400),
        (b"{}", "application/json", 400), (b'{"resourceType": "Bundle"}', "application/fhir+json", 400),
        (b'{"resourceType": "Bundle", "type": "batch"}', "application/fhir+json", 200),
        (b'{"resourceType": "Patient"}', "application/xml", 415), (b"\xff\xfe", "application/fhir+json", 400),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "application/fhir+json", 400),
    ],
)  # fmt: skip
def test_what_is_not_fhir_is_answered_in_fhir(service: Any, body: bytes, kind: str, status: int):
    answer = send(service, body, **{"Content-Type": kind})
    assert answer.status_code == status
    assert answer.json()["resourceType"] in ("OperationOutcome", "Bundle")


def test_too_many_facts_are_refused_whole(make_service: Callable[..., Any]):
    small = make_service(MAX_EVENTS="5")
    answer = send(small, bundle("collection", *whole()))
    assert (answer.status_code, answer.json()["issue"][0]["code"]) == (413, "too-costly")


def test_it_needs_a_feeds_token_and_is_audited(service: Any):
    assert service.client.post("/fhir", json=patient()).status_code == 401
    clock(service, 2)
    send(service, bundle("collection", *whole()))
    with service.state.store.read() as connection:
        rows = connection.exec_driver_sql("select encounters from audit where action = 'receive fhir'").all()
    assert [json.loads(r[0]) for r in rows] == [["e1"]]


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.sampled_from(range(4)), st.data())
def test_no_resource_however_wrong_breaks_it(service: Any, which: int, data: st.DataObject):
    resource = [patient(), encounter(), observation("8867-4", 1), administration()][which]
    spoilt = data.draw(st.sampled_from(sorted(set(resource) - {"resourceType"})))
    resource[spoilt] = data.draw(JUNK)
    for document in (resource, bundle("batch", resource)):
        answer = send(service, document)
        assert answer.status_code in (200, 201, 422), answer.text
        assert answer.json()["resourceType"] in ("OperationOutcome", "Bundle")


@pytest.mark.data
def test_bundles_of_real_senders_are_answered_entry_by_entry(
    data_dir: Path, make_service: Callable[..., Any]
):
    service = make_service(MAX_BODY_BYTES=str(1 << 26))
    clock(service, 24 * 365)
    files = sorted(
        (data_dir / "interop" / "fhir-r4" / "synthea").rglob("*.json"), key=lambda p: p.stat().st_size
    )
    assert files
    for file in files[:6]:
        document = json.loads(file.read_text("utf-8"))
        answer = send(service, document)
        assert answer.status_code in (200, 413), answer.text[:500]
        if answer.status_code == 200:
            assert len(answer.json()["entry"]) == len(document["entry"])


def test_sepsis_is_told_from_the_antibiotics_and_cultures_that_came_in_fhir(service: Any):
    """A culture at 10:00, vancomycin from 10:30 for three days, creatinine from 1.0 to 3.6 mg/dL (SOFA 0 to 3)."""
    clock(service, 90)
    taken = observation("600-7", 1, valueString="Escherichia coli")
    doses = [administration(id=f"m{k}", effectiveDateTime=at(1.5 + 12 * k)) for k in range(8)]
    renal = [observation("2160-0", hour, value) for hour, value in ((0.5, 1.0), (6, 3.6), (7, 3.6))]
    rest = [observation(code, hour) for hour in (0.5, 6, 7) for code in VITALS if code not in ("2160-0",)]
    answer = send(service, bundle("batch", patient(), encounter(), taken, *doses, *renal, *rest))
    assert answer.status_code == 200, answer.text
    now = to_us(NINE + timedelta(days=9))
    told = from_store(service.state.store, ["e1", "e2"], now, PRESETS["physionet_2019"])
    assert told is not None
    assert told.onset["e1"] == pd.Timestamp(at(1)), (
        "suspected at the culture, the earlier of it and of the failure"
    )
    assert pd.isna(told.onset["e2"])
    without = from_store(service.state.store, ["e2"], now, PRESETS["physionet_2019"])
    assert without is None, "where nobody had an antibiotic, nobody is known to be well"
